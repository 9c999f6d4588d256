"""Echo servers of pool, each one of its ways of doing the same work; beside them stand those of ``peers.py``.

Law of this file: the public names of bbipc and pool only.  What the kernel does not take at once is waited for: by the
poller where a callback may not block, by the worker where it may.

``python -m benchmarks.ours NAME ADDRESS`` is a server; see ``processes.py``.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Final, cast

import bbipc
from bbipc import NoConnectionAvailableError, SocketEvent
from benchmarks.processes import announce, serve
from pool import PollerThread, WorkerPool
from pool.server import ConnectionServer

BACKLOG: Final = 4096
ACCEPTS: Final = 64
SIZE: Final = 1 << 18
READ: Final = SocketEvent.DATA_AVAILABLE | SocketEvent.REMOTE_DISCONNECTED
ROOM: Final = SocketEvent.ROOM_TO_WRITE


def listening(address: str) -> bbipc.StreamServer:
    if "/" in address:
        local = bbipc.make_local_server(address, backlog=BACKLOG)
        announce(0)
        return local
    server = bbipc.make_ipv4_tcp_server(bbipc.IPV4_LOOPBACK, 0, backlog=BACKLOG)
    announce(server.port)
    return server


def accept_some(server: bbipc.StreamServer, take: Callable[[bbipc.StreamSocket], object]) -> None:
    """Not all: while thousands connect, those that are connected want answers."""
    with contextlib.suppress(NoConnectionAvailableError):
        for _ in range(ACCEPTS):
            take(server.accept_connection())


# On the poller thread.

buffer: Final = bytearray(SIZE)
view: Final = memoryview(buffer)


class Echo:
    """One connection, served by callbacks on the poller thread, which share one buffer."""

    __slots__ = ("stream", "rest", "monitor")

    def __init__(self, poller_thread: PollerThread, stream: bbipc.StreamSocket) -> None:
        self.stream = stream
        self.rest = b""
        self.monitor = poller_thread.monitor(stream, READ, self.ready)

    def ready(self, _socket: bbipc.Socket, _events: SocketEvent) -> None:
        if self.rest:
            self.go_on()
            return
        stream = self.stream
        count = stream.read_into(buffer)
        if count:
            taken = stream.write(view[:count])
            if taken < count:
                self.rest = bytes(view[taken:count])
                self.monitor.set_events(ROOM)
        elif count == 0:
            stream.close()

    def go_on(self) -> None:
        self.rest = self.rest[self.stream.write(self.rest) :]
        if not self.rest:
            self.monitor.set_events(READ)


def callbacks(address: str) -> None:
    server = listening(address)
    poller_thread = PollerThread()

    def accept(_socket: bbipc.Socket, _events: SocketEvent) -> None:
        accept_some(server, lambda stream: Echo(poller_thread, stream))

    poller_thread.monitor(server, SocketEvent.CONNECTION_AVAILABLE, accept)
    threading.Event().wait()


# On workers.


class Local(threading.local):
    """A buffer for every worker, and a view of it."""

    def __init__(self) -> None:
        own = bytearray(SIZE)
        self.pair = own, memoryview(own)


local: Final = Local()


def answer(stream: bbipc.StreamSocket, _events: SocketEvent = READ) -> None:
    """Read what is there, give it back."""
    own, whole = local.pair
    count = stream.read_into(own)
    if count:
        taken = stream.write(whole[:count])
        if taken < count:
            write_rest(stream, whole[taken:count])
    elif count == 0:
        stream.close()


def write_rest(stream: bbipc.StreamSocket, rest: memoryview) -> None:
    while rest:
        bbipc.poll_socket(stream, ROOM, None)
        rest = rest[stream.write(rest) :]


def workers(address: str) -> None:
    server = listening(address)
    pool = WorkerPool()

    call = cast(Callable[[bbipc.Socket, SocketEvent], object], answer)  # it is only ever given streams

    def accept(_socket: bbipc.Socket, _events: SocketEvent) -> None:
        accept_some(server, lambda stream: pool.monitor(stream, READ, call))

    pool.monitor(server, SocketEvent.CONNECTION_AVAILABLE, accept)
    threading.Event().wait()


def connection_server(address: str) -> None:
    ConnectionServer(listening(address), answer, max_connections=None, per="readiness").serve_forever()


SERVERS: Final[dict[str, Callable[[str], None]]] = {
    "callbacks": callbacks,
    "workers": workers,
    "server": connection_server,
}

if __name__ == "__main__":
    serve(SERVERS)
