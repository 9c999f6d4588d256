"""The same things in every namespace: servers, connections, peers in every state of the truth table.

A *peer* is a plain ``socket.socket``, so that it can do what bbipc never does: reset, die, send half.
"""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import bbipc
from bbipc import SocketEvent

NAMESPACES = ("ipv4", "ipv6", "local")
PATIENCE = 10.0  # seconds; only a failing test waits so long

Server = bbipc.IPv4TCPServer | bbipc.IPv6TCPServer | bbipc.LocalServer


@dataclass
class Namespace:
    """One kind of address."""

    name: str
    directory: Path
    _made: int = 0

    def make_server(self, backlog: int = 128) -> Server:
        if self.name == "ipv4":
            return bbipc.make_ipv4_tcp_server(bbipc.IPV4_LOOPBACK, 0, backlog=backlog)
        if self.name == "ipv6":
            return bbipc.make_ipv6_tcp_server(bbipc.IPV6_LOOPBACK, 0, backlog=backlog)
        self._made += 1
        return bbipc.make_local_server(self.directory / f"s{self._made}", backlog=backlog)

    def connect(self, server: Server) -> bbipc.StreamSocket:
        """Begin to connect."""
        if isinstance(server, bbipc.LocalServer):
            return bbipc.connect_to_local_server(server.path)
        if isinstance(server, bbipc.IPv4TCPServer):
            return bbipc.connect_to_ipv4_tcp_server(server.host_address, server.port)
        return bbipc.connect_to_ipv6_tcp_server(server.host_address, server.port)

    def connect_plainly(self, server: Server) -> socket.socket:
        """A peer that is a plain, blocking socket."""
        if isinstance(server, bbipc.LocalServer):
            peer = socket.socket(socket.AF_UNIX)
            peer.settimeout(PATIENCE)
            peer.connect(os.fsencode(server.path))
            return peer
        family = socket.AF_INET if isinstance(server, bbipc.IPv4TCPServer) else socket.AF_INET6
        peer = socket.socket(family)
        peer.settimeout(PATIENCE)
        peer.connect((server.host_address, server.port))
        return peer

    @contextlib.contextmanager
    def pair(self) -> Iterator[tuple[bbipc.StreamSocket, bbipc.StreamSocket]]:
        """(client, accepted), both connected."""
        with self.make_server() as server, self.connect(server) as client, accept(server) as accepted:
            assert bbipc.poll_socket(client, SocketEvent.DETERMINED, PATIENCE)
            yield client, accepted

    @contextlib.contextmanager
    def stream_and_peer(self) -> Iterator[tuple[bbipc.StreamSocket, socket.socket]]:
        """A connected stream of ours, and its peer as a plain socket."""
        with self.make_server() as server, self.connect_plainly(server) as peer, accept(server) as accepted:
            yield accepted, peer

    def reset(self, stream: bbipc.StreamSocket, peer: socket.socket) -> None:
        """The peer resets the connection: with RST over TCP, by leaving bytes unread over a local one."""
        if self.name == "local":
            assert stream.write(b"never read") == 10
        else:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()


def make_namespace(name: str, directory: Path) -> Namespace:
    return Namespace(name, directory)


def accept(server: Server) -> bbipc.StreamSocket:
    """The next connection, waited for."""
    assert bbipc.poll_socket(server, SocketEvent.CONNECTION_AVAILABLE, PATIENCE)
    return server.accept_connection()


def fill(stream: bbipc.StreamSocket) -> int:
    """Write until the kernel takes no more: "no room" is then a fact, whether the peer has ended or not."""
    total = 0
    while True:
        count = stream.write(bytes(1 << 16))
        if not count and not stream.room_to_write():
            return total
        total += count


def drain(stream: bbipc.StreamSocket, count: int) -> bytes:
    """Read *count* bytes, waiting as needed; fewer at the end of the stream."""
    data = bytearray()
    while len(data) < count:
        bbipc.poll_socket(stream, SocketEvent.DATA_AVAILABLE, PATIENCE)
        part = stream.read(count - len(data))
        if part == b"":
            break
        data += part or b""
    return bytes(data)


class Worker(threading.Thread):
    """A thread whose result, or exception, is asked for with :meth:`outcome`."""

    def __init__(self, fn: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._fn = fn
        self._result: object = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._result = self._fn()
        except BaseException as error:
            self._error = error

    def outcome(self, timeout: float = PATIENCE) -> object:
        """What the thread came to; raises what it raised."""
        self.join(timeout)
        assert not self.is_alive(), "the thread hangs"
        if self._error is not None:
            raise self._error
        return self._result


@contextlib.contextmanager
def sleeping(limit: float) -> Iterator[None]:
    """The block takes less than *limit* seconds of the processor.

    Without the collector, whose turn may come in any thread at any time: without a GIL all that the tests have made
    is looked at then, for 50 ms.
    """
    gc.disable()
    try:
        start = time.thread_time()
        yield
        spent = time.thread_time() - start
    finally:
        gc.enable()
    assert spent < limit, f"{spent * 1000:.1f} ms of processor time"


def is_asleep(thread: threading.Thread) -> bool:
    """Whether the kernel has *thread* asleep in a system call other than waiting for a lock of Python's.

    /proc/…/syscall tells what it sleeps in: poll (7), ppoll (271), select (23), pselect6 (270), epoll_wait (232) or
    epoll_pwait (281) on x86-64; ppoll (73), pselect6 (72) or epoll_pwait (22) on arm64.
    """
    try:
        words = Path(f"/proc/self/task/{thread.native_id}/syscall").read_text().split()
    except OSError:
        return False
    return words[0] in {"7", "23", "232", "270", "271", "281", "73", "72", "22"}


def wait_until_asleep(thread: threading.Thread) -> None:
    """Return when *thread* sleeps in a poll: a fact, where a pause would be a hope."""
    deadline = threading.Event()
    timer = threading.Timer(PATIENCE, deadline.set)
    timer.start()
    try:
        while not is_asleep(thread):
            assert not deadline.is_set(), "the thread never slept"
            assert thread.is_alive(), "the thread ended"
    finally:
        timer.cancel()
        timer.join()
