"""Starts worker_server.py and many clients, and shows live figures of both.

python examples/worker_demo.py [--seconds S] [--clients N] [--tcp]        It ends by itself; Ctrl-C ends it earlier.
"""

import argparse
import collections
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import bbipc
from bbipc import SocketEvent
from pool import WorkerPool

PATIENCE = 10.0  # seconds for each step of a client's
ROOM, DATA = SocketEvent.ROOM_TO_WRITE, SocketEvent.DATA_AVAILABLE
Connect = Callable[[], bbipc.StreamSocket]


class Clients:
    """What the clients do, and have done; any thread.

    Without locks, and without what has one in it (events, ``Future.done``): the main thread looks at it again and
    again, and a Ctrl-C just then would leave the lock taken, with all clients waiting for it.
    """

    def __init__(self, count: int) -> None:
        self.over = False
        self.answers = [0] * count  # each client counts his own
        self.times: collections.deque[float] = collections.deque([0.0], maxlen=10000)  # seconds each

    def call(self, connect: Connect, number: int) -> None:
        """One client: asks again and again, until it is over.  It is over for all when one fails."""
        question = f"hello from client {number}\n".encode()
        try:
            with connect() as stream:
                while not self.over:
                    began = time.perf_counter()
                    answer = ask(stream, question)
                    if answer != question.upper():
                        raise ValueError(f"client {number} was answered {answer!r}")
                    self.answers[number] += 1
                    self.times.append(time.perf_counter() - began)
        finally:
            self.over = True

    def figures(self) -> str:
        """How many answers came, and how soon."""
        times = sorted(self.times.copy())
        half, most = times[len(times) // 2], times[len(times) * 99 // 100]
        return f"{sum(self.answers):,} answers; round trip p50 {half * 1e3:.2f} ms, p99 {most * 1e3:.2f} ms"


def ask(stream: bbipc.StreamSocket, question: bytes) -> bytes:
    sent, answer = 0, b""
    while len(answer) < len(question):
        sending = sent < len(question)
        if not bbipc.poll_socket(stream, ROOM if sending else DATA, PATIENCE):
            raise ConnectionError("the server does not answer")
        if sending:
            sent += stream.write(question, sent)
        else:
            answer += stream.read() or b""
    return answer


def demonstrate(words: list[str], clients: int, seconds: float) -> int:
    """The exit code: 0 if the server and all clients ended well."""
    command = [sys.executable, str(Path(__file__).with_name("worker_server.py")), *words, "--workers", str(clients)]
    print("$", shlex.join(["python", "examples/worker_server.py", *command[2:]]), flush=True)
    # In a group of its own: a Ctrl-C in the terminal is for this program, which ends the server after its clients.
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, process_group=0) as server:
        assert server.stdout is not None
        errors: list[BaseException] = []
        try:
            greeting = server.stdout.readline()  # it prints this once it listens; if it cannot, it tells why
            print(greeting, end="", flush=True)
            if "listening" in greeting:
                errors = call_all(server.stdout, connector(words, greeting), clients, seconds)
        except KeyboardInterrupt:
            print("^C")
        finally:
            server.send_signal(signal.SIGINT)  # what Ctrl-C sends
        print(*server.communicate()[0].splitlines()[-1:])
    for error in errors[:1]:
        print(f"worker demo: {len(errors)} of {clients} clients failed: {error}", file=sys.stderr)
    return server.returncode or bool(errors)


def call_all(server: Iterable[str], connect: Connect, count: int, seconds: float) -> list[BaseException]:
    """Let *count* clients call for *seconds*; *server* gives a line of its figures twice a second."""
    clients = Clients(count)
    with WorkerPool(count, thread_name_prefix="client") as threads:
        calling = [threads.submit(clients.call, connect, number) for number in range(count)]
        try:
            watch(server, clients, time.monotonic() + seconds)
        except KeyboardInterrupt:
            print("^C")
        finally:
            clients.over = True
    print("\n" * 2 * sys.stdout.isatty() + f"clients: {clients.figures()}")
    return [error for client in calling if (error := client.exception())]


def watch(server: Iterable[str], clients: Clients, end: float) -> None:
    # In a frame of its own: CPython 3.12 and 3.13 have no handler for a Ctrl-C that comes where a loop jumps back.
    for line in server:
        show(f"server:  {line.strip()}", f"clients: {clients.figures()}")
        if time.monotonic() > end or clients.over:
            break


def connector(words: list[str], greeting: str) -> Connect:
    if port := re.search(r"port (\d+)", greeting):
        return partial(bbipc.connect_to_ipv4_tcp_server, bbipc.IPV4_LOOPBACK, int(port[1]))
    return partial(bbipc.connect_to_local_server, words[1])


def show(*lines: str) -> None:
    """Redrawn in place on a terminal, and as wide as that at most."""
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns - 1
        lines = *(f"\x1b[K{line[:width]}" for line in lines), f"\x1b[{len(lines)}A"
    print(*lines, sep="\n", end="\r" if sys.stdout.isatty() else "\n", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5, metavar="S")
    parser.add_argument("--clients", type=int, default=50, metavar="N")
    parser.add_argument("--tcp", action="store_true")
    args = parser.parse_args()
    # A shell lets its background jobs ignore SIGINT, and children inherit that; one that is handled they do not.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if args.tcp:
        sys.exit(demonstrate(["--port", "0"], args.clients, args.seconds))
    with tempfile.TemporaryDirectory(prefix="bbipc-") as directory:
        sys.exit(demonstrate(["--local", f"{directory}/demo"], args.clients, args.seconds))
