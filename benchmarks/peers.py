"""Echo servers that are not ours, each another way of doing the same work.

Law of this file: nothing of bbipc or pool.  Each does its work as somebody who knows that way would write it, with no
layer that the work does not need; TCP_NODELAY everywhere (asyncio and uvloop set it themselves), 4,096 connections may
wait to be accepted.

``python -m benchmarks.peers NAME ADDRESS`` is a server; see ``processes.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import select
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, cast

from benchmarks.processes import announce, serve

BACKLOG: Final = 4096
BUFFER: Final = 1 << 18


def listening(address: str) -> socket.socket:
    server = socket.socket(socket.AF_UNIX if "/" in address else socket.AF_INET)
    server.bind(address if "/" in address else ("127.0.0.1", 0))
    server.listen(BACKLOG)
    announce(0 if "/" in address else server.getsockname()[1])
    return server


def accepted(server: socket.socket) -> socket.socket:
    connection, _ = server.accept()
    if connection.family == socket.AF_INET:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def send_rest(connection: socket.socket, rest: memoryview) -> None:
    """Everybody waits: the simplest thing that is correct for peers which do read."""
    room = select.poll()
    room.register(connection, select.POLLOUT)
    while rest:
        room.poll()
        with contextlib.suppress(BlockingIOError):
            rest = rest[connection.send(rest) :]


def epoll_by_hand(address: str) -> None:
    """One thread, one epoll, no layers: what Python itself costs."""
    server = listening(address)
    server.setblocking(False)
    door = server.fileno()
    epoll = select.epoll()
    epoll.register(door, select.EPOLLIN)
    connections: dict[int, socket.socket] = {}
    buffer = bytearray(BUFFER)
    view = memoryview(buffer)
    while True:
        for number, _ in epoll.poll():
            if number == door:
                connection = accepted(server)
                connection.setblocking(False)
                connections[connection.fileno()] = connection
                epoll.register(connection.fileno(), select.EPOLLIN)
                continue
            connection = connections[number]
            try:
                count = connection.recv_into(buffer)
            except BlockingIOError:
                continue
            if not count:
                epoll.unregister(number)
                connections.pop(number).close()
                continue
            sent = connection.send(view[:count])
            if sent < count:
                send_rest(connection, view[sent:count])


def thread_per_connection(address: str) -> None:
    """Blocking calls only."""
    server = listening(address)

    def answer(connection: socket.socket) -> None:
        buffer = bytearray(1 << 16)
        view = memoryview(buffer)
        with connection:
            while count := connection.recv_into(buffer):
                connection.sendall(view[:count])

    while True:
        threading.Thread(target=answer, args=(accepted(server),), daemon=True).start()


def epoll_executor(address: str) -> None:
    """What one writes by hand: an epoll thread that hands each ready socket to a ThreadPoolExecutor; one-shot, so
    that no two of its threads have the same socket, and armed again behind the answer.
    """
    server = listening(address)
    server.setblocking(False)
    door = server.fileno()
    once = select.EPOLLIN | select.EPOLLONESHOT
    epoll = select.epoll()
    epoll.register(door, select.EPOLLIN)
    connections: dict[int, socket.socket] = {}
    executor = ThreadPoolExecutor(8)

    def answer(number: int, connection: socket.socket) -> None:
        data = connection.recv(BUFFER)
        if not data:
            epoll.unregister(number)
            connections.pop(number).close()
            return
        connection.sendall(data)
        epoll.modify(number, once)

    while True:
        for number, _ in epoll.poll():
            if number == door:
                connection = accepted(server)
                connections[connection.fileno()] = connection
                epoll.register(connection.fileno(), once)
            else:
                executor.submit(answer, number, connections[number])


class Echo(asyncio.Protocol):
    """The callbacks of asyncio, the fastest way that it has."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.write = cast(asyncio.Transport, transport).write

    def data_received(self, data: bytes) -> None:
        self.write(data)


async def answer_for_ever(address: str) -> None:
    loop = asyncio.get_running_loop()
    server: asyncio.Server
    if "/" in address:
        server = await loop.create_unix_server(Echo, address, backlog=BACKLOG)
    else:
        server = await loop.create_server(Echo, "127.0.0.1", 0, backlog=BACKLOG)
    announce(0 if "/" in address else server.sockets[0].getsockname()[1])
    await server.serve_forever()


def asyncio_protocol(address: str) -> None:
    asyncio.run(answer_for_ever(address))


def uvloop_protocol(address: str) -> None:
    new_loop: Callable[[], Any] = importlib.import_module("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(answer_for_ever(address))


SERVERS: Final[dict[str, Callable[[str], None]]] = {
    "epoll": epoll_by_hand,
    "threads": thread_per_connection,
    "executor": epoll_executor,
    "asyncio": asyncio_protocol,
    "uvloop": uvloop_protocol,
}

if __name__ == "__main__":
    serve(SERVERS)
