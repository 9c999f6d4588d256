"""Echo: a server on a poller of ours beside the same loop hand-written on select.epoll, each in a process of its own.

Both servers run at the same time on one core, and the load, on another, goes to the one and to the other in turns: an
idle server sleeps in the kernel and costs nothing.  The load generator does less for each message than either
server (it does not poll), so that the servers are what is measured.  The processor time of the server, where the
system tells it, says the same without the load generator's part.
"""

from __future__ import annotations

import contextlib
import select
import socket
import sys
import tempfile
from collections.abc import Callable
from typing import Any, Final

import bbipc
from bbipc import SocketEvent
from benchmarks.load import connected, counting, load
from benchmarks.measure import Effort, Row, Target, pinned, rate_ratio, ratio, take_turns
from benchmarks.processes import announce, running, serve

TARGET: Final = Target(0.85, at_least=True)
_BUFFER: Final = 1 << 16


# The servers.


def serve_ours(address: str) -> None:
    server = bbipc.make_local_server(address) if "/" in address else bbipc.make_ipv4_tcp_server("127.0.0.1", 0)
    announce(server.port if isinstance(server, bbipc.IPv4TCPServer) else 0)
    poller = bbipc.make_poller("epoll")
    poller.monitor_socket(server, SocketEvent.CONNECTION_AVAILABLE)
    buffer = bytearray(_BUFFER)
    view = memoryview(buffer)
    while True:
        events: list[tuple[Any, SocketEvent]] = poller.wait_for_events(None)
        for stream, _ in events:
            if stream is server:
                poller.monitor_socket(server.accept_connection(), SocketEvent.DATA_AVAILABLE)
                continue
            count = stream.read_into(buffer)
            if count:
                stream.write(view[:count])
            elif count == 0:
                stream.close()


def serve_epoll(address: str) -> None:
    server = socket.socket(socket.AF_UNIX if "/" in address else socket.AF_INET)
    server.bind(address if "/" in address else ("127.0.0.1", 0))
    server.listen(128)
    server.setblocking(False)
    announce(0 if "/" in address else server.getsockname()[1])
    epoll = select.epoll()
    listening = server.fileno()
    epoll.register(listening, select.EPOLLIN)
    connections: dict[int, socket.socket] = {}
    buffer = bytearray(_BUFFER)
    view = memoryview(buffer)
    while True:
        for number, _ in epoll.poll():
            if number == listening:
                connection = accepted(server)
                connections[connection.fileno()] = connection
                epoll.register(connection.fileno(), select.EPOLLIN)
                continue
            connection = connections[number]
            try:
                count = connection.recv_into(buffer)
            except BlockingIOError:
                continue
            if count:
                connection.send(view[:count])
            else:
                epoll.unregister(number)
                connections.pop(number).close()


def accepted(server: socket.socket) -> socket.socket:
    connection, _ = server.accept()
    connection.setblocking(False)
    if connection.family == socket.AF_INET:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


SERVERS: Final[dict[str, Callable[[str], None]]] = {"ours": serve_ours, "epoll": serve_epoll}


# The comparison.


def compare(kind: str, count: int, directory: str, effort: Effort) -> list[Row]:
    addresses = [f"{directory}/{name}{count}" if kind == "local" else kind for name in SERVERS]
    messages = 20 if count == 1 else 8 * count  # about 1 ms: less than another program's slice of the core
    spent: tuple[list[float], list[float]] = [], []
    with contextlib.ExitStack() as stack:
        turns = []
        for name, address, own in zip(SERVERS, addresses, spent, strict=True):
            with pinned(0):
                process, where = stack.enter_context(running("benchmarks.echo", name, address))
            connections = [stack.enter_context(sock) for sock in connected(where, count)]
            turns.append(counting(load(connections, messages // count), process, messages, own))
        with pinned(1):
            taken = take_turns(turns[0], turns[1], effort.rounds)
    what = f"echo {kind}, {count} connection{'s' if count > 1 else ''}"
    rows = [rate_ratio("echo", what, "epoll by hand", taken, TARGET)]
    if sys.platform == "linux":
        rows.append(ratio("echo", f"{what}: processor time", "epoll by hand", spent))
    return rows


def echo(effort: Effort) -> list[Row]:
    if not hasattr(select, "epoll"):
        return []
    with tempfile.TemporaryDirectory(prefix="bbipc-") as directory:
        shapes = [(kind, count) for kind in ("tcp", "local") for count in (1, 50)]
        return [row for kind, count in shapes for row in compare(kind, count, directory, effort)]


if __name__ == "__main__":
    serve(SERVERS)
