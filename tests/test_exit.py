"""The interpreter's exit: in time, with code 0 and nothing on stderr, whatever was left open (hazard 38)."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

SETUP = """
    import sys, threading, bbipc
    from bbipc import SocketEvent
    one, other = bbipc.local_stream_pair()
    server = bbipc.make_ipv4_tcp_server(bbipc.IPV4_LOOPBACK, 0)
    client = bbipc.connect_to_ipv4_tcp_server(bbipc.IPV4_LOOPBACK, server.port)
    poller = bbipc.make_poller()
    poller.monitor_socket(one, SocketEvent.DATA_AVAILABLE)
    waiting = threading.Event()
    def wait():
        waiting.set()
        poller.wait_for_events(None)
"""
ENDINGS = {
    "nothing closed": "",
    "all closed": "for thing in (one, other, server, client, poller): thing.close()",
    "a daemon thread waits": "threading.Thread(target=wait, daemon=True).start(); waiting.wait()",
    "a daemon thread waits in poll_socket": """
    threading.Thread(target=bbipc.poll_socket, args=(one, SocketEvent.DATA_AVAILABLE, None), daemon=True).start()
    """,
    "sys.exit": "sys.exit(0)",
    "closed by atexit": "import atexit; [atexit.register(thing.close) for thing in (one, other, server, poller)]",
    "in a cycle": "cycle = [one, poller]; cycle.append(cycle); del one, other, server, client, poller, cycle",
    "kept by a module": "sys.kept = (one, other, server, client, poller)",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_interpreter_exits_quietly(ending: str) -> None:
    program = textwrap.dedent(SETUP) + textwrap.dedent(ENDINGS[ending])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=10, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
