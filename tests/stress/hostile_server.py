"""A MessageServer in a process of its own, so that what is measured of it is its own: memory, processor, figures.

``Child`` starts it and asks it; ``python -m tests.stress.hostile_server '{"handler": "echo", …}'`` is what it starts.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Self

import bbipc
from pool import MessageServer, Request
from tests.support.makers import PATIENCE

BIG: Final = b"x" * (64 << 10)
HUGE: Final = b"x" * (4 << 20)


def slow(request: Request) -> Any:
    """The value, after 0 to 4 ms."""
    time.sleep(len(request.payload) % 5 / 1000)
    return request.value


HANDLERS: Final[dict[str, Callable[[Request], Any]]] = {
    "echo": lambda request: request.value,
    "big": lambda request: BIG + os.urandom(1) if request.value == "big" else request.value,
    "huge": lambda request: HUGE + os.urandom(1) if request.value == "big" else request.value,
    "slow": slow,
}


def memory() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def serve(what: dict[str, Any]) -> None:
    """Answer each line of stdin with a line of facts."""
    faulthandler.register(signal.SIGUSR1)  # for who wants to know where it hangs
    directory = what.pop("directory")
    handler = HANDLERS[what.pop("handler")]
    interval = what.pop("switch_interval", None)
    if interval:
        sys.setswitchinterval(interval)
    local = bbipc.make_local_server(f"{directory}/server")
    tcp = bbipc.make_ipv4_tcp_server(bbipc.IPV4_LOOPBACK, 0)
    with MessageServer([local, tcp], handler, **what) as served:
        sys.stdout.write(f"{tcp.port}\n")
        sys.stdout.flush()
        for _ in sys.stdin:
            times = os.times()
            facts = {"memory": memory(), "cpu": times.user + times.system, **dataclasses.asdict(served.stats())}
            sys.stdout.write(json.dumps(facts) + "\n")
            sys.stdout.flush()


class Child:
    """The server's process.  *what*: its handler's name, and keywords of MessageServer."""

    def __init__(self, handler: str = "echo", **what: Any) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="bbipc-")
        self.path = Path(self._directory.name) / "server"
        text = json.dumps({"handler": handler, "directory": self._directory.name, **what})
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.stress.hostile_server", text],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.port = int(self._line())

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def facts(self) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        found: dict[str, Any] = json.loads(self._line())
        return found

    def connect(self, kind: str = "local") -> socket.socket:
        if kind == "tcp":
            peer = socket.create_connection(("127.0.0.1", self.port))
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            peer.settimeout(PATIENCE)
            return peer
        peer = socket.socket(socket.AF_UNIX)
        try:
            peer.connect(os.fspath(self.path))  # blocks where the backlog is full; with a timeout it would not
        except OSError:
            peer.close()
            raise
        peer.settimeout(PATIENCE)
        return peer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *what: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            code = self._process.wait(2 * PATIENCE)
        finally:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._directory.cleanup()
        assert code == 0, f"the server ended with {code}"


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
