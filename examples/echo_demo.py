"""Starts echo_server.py and echo_client.py as two processes and shows what both print.

python examples/echo_demo.py [--tcp] TEXT ...        on a local socket under a new path, or over TCP on a free port
"""

import argparse
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent


def start(program: str, *words: str) -> subprocess.Popen[str]:
    print("$", shlex.join(["python", f"examples/{program}", *words]), flush=True)
    command = [sys.executable, str(HERE / program), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def demonstrate(server_words: list[str], texts: list[str]) -> int:
    """The exit code: 0 if server and client both ended well."""
    with start("echo_server.py", *server_words) as server:
        assert server.stdout is not None
        line = server.stdout.readline()  # it prints this once it listens
        print(line, end="", flush=True)
        if "listening" not in line:
            return server.wait()
        try:
            port = re.search(r"port (\d+)>", line)
            words = ["--port", port[1]] if port else server_words
            with start("echo_client.py", *words, "--", *texts) as client:
                print(client.communicate()[0], end="", flush=True)
        finally:
            server.send_signal(signal.SIGINT)  # what Ctrl-C sends
        print("^C", server.communicate()[0], sep="\n", end="", flush=True)
    return server.returncode or client.returncode


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tcp", action="store_true")
    parser.add_argument("text", nargs="+", metavar="TEXT")
    arguments = parser.parse_args()
    # A shell lets its background jobs ignore SIGINT, and children inherit that; one that is handled they do not.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if arguments.tcp:
        sys.exit(demonstrate(["--port", "0"], arguments.text))
    with tempfile.TemporaryDirectory(prefix="bbipc-") as directory:
        sys.exit(demonstrate(["--local", f"{directory}/echo"], arguments.text))
