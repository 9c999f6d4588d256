"""Calls of bytes by other means than ours: what a person would pick instead.

Law of this file: nothing of bbipc or pool.  Each side does its work as somebody who knows that library would write it,
over a local socket.  What is not installed is left out.

A *side* is a namespace.  ``serve(path, listening)`` answers every request with its bytes in capitals, for ever, and
calls ``listening`` once it may be connected to.  ``client(path)`` gives a function that makes one call, over a
connection of its own; ``client_futures(path)``, where the library has more than one call in flight, one that gives
something with ``result(timeout)``.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import socket
import struct
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Client, Connection, Listener
from typing import Any, Final, Protocol

BACKLOG: Final = 4096
LENGTH: Final = struct.Struct("<I")

Listening = Callable[[], None]
Call = Callable[[bytes], object]


class Answer(Protocol):
    def result(self, timeout: float | None = None, /) -> object: ...


Submit = Callable[[bytes], Answer]


def receive_exactly(sock: socket.socket, count: int) -> bytearray:
    data = bytearray(count)
    view, have = memoryview(data), 0
    while have < count:
        taken = sock.recv_into(view[have:])
        if not taken:
            raise EOFError
        have += taken
    return data


def receive_frame(sock: socket.socket) -> bytearray:
    return receive_exactly(sock, LENGTH.unpack(receive_exactly(sock, 4))[0])


def send_frame(sock: socket.socket, data: bytes | bytearray) -> None:
    sock.sendall(LENGTH.pack(len(data)) + data)


class Raw:
    """A length and the bytes, on a blocking socket, a thread a connection: the floor."""

    @staticmethod
    def serve(path: str, listening: Listening) -> None:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path)
            server.listen(BACKLOG)
            listening()
            while True:
                threading.Thread(target=Raw.answer, args=(server.accept()[0],), daemon=True).start()

    @staticmethod
    def answer(sock: socket.socket) -> None:
        try:
            while True:
                send_frame(sock, receive_frame(sock).upper())
        except (EOFError, OSError):
            sock.close()

    @staticmethod
    def connected(path: str) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(path)
        return sock

    @staticmethod
    def client(path: str) -> Call:
        sock = Raw.connected(path)

        def call(data: bytes) -> object:
            send_frame(sock, data)
            return receive_frame(sock)

        return call

    @staticmethod
    def client_futures(path: str) -> Submit:
        """Answers come in the order of the requests, so whoever asks for one reads the next."""
        sock = Raw.connected(path)

        class Next:
            @staticmethod
            def result(_timeout: float | None = None, /) -> object:
                return receive_frame(sock)

        def submit(data: bytes) -> Answer:
            send_frame(sock, data)
            return Next()

        return submit


class Multiprocessing:
    """The connections of multiprocessing, a thread each."""

    @staticmethod
    def serve(path: str, listening: Listening) -> None:
        with Listener(path, "AF_UNIX", backlog=BACKLOG) as listener:
            listening()
            while True:
                threading.Thread(target=Multiprocessing.answer, args=(listener.accept(),), daemon=True).start()

    @staticmethod
    def answer(connection: Connection[bytes, bytes]) -> None:
        try:
            while True:
                connection.send_bytes(connection.recv_bytes().upper())
        except (EOFError, OSError):
            connection.close()

    @staticmethod
    def client(path: str) -> Call:
        connection: Connection[bytes, bytes] = Client(path, "AF_UNIX")

        def call(data: bytes) -> object:
            connection.send_bytes(data)
            return connection.recv_bytes()

        return call


class Executor:
    """What a person writes for calls with futures: eight threads, each with a connection of multiprocessing."""

    serve = Multiprocessing.serve

    @staticmethod
    def client_futures(path: str) -> Submit:
        local, executor = threading.local(), ThreadPoolExecutor(8)

        def work(data: bytes) -> object:
            try:
                call = local.call
            except AttributeError:
                call = local.call = Multiprocessing.client(path)
            return call(data)

        return lambda data: executor.submit(work, data)


class AsyncioStreams:
    """The same frames as ``Raw``, on asyncio's streams."""

    client = Raw.client

    @staticmethod
    def serve(path: str, listening: Listening) -> None:
        asyncio.run(AsyncioStreams.serve_for_ever(path, listening))

    @staticmethod
    async def serve_for_ever(path: str, listening: Listening) -> None:
        server = await asyncio.start_unix_server(AsyncioStreams.answer, path, backlog=BACKLOG)
        listening()
        await server.serve_forever()

    @staticmethod
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                data = await reader.readexactly(LENGTH.unpack(await reader.readexactly(4))[0])
                writer.write(LENGTH.pack(len(data)) + data.upper())
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


class Pyzmq:
    """REQ to ROUTER; DEALER, whose answers come in order here, for more in flight: the cheapest that pyzmq has."""

    @staticmethod
    def socket(kind: str) -> Any:
        zmq = importlib.import_module("zmq")
        return zmq.Context.instance().socket(getattr(zmq, kind))

    @staticmethod
    def serve(path: str, listening: Listening) -> None:
        sock = Pyzmq.socket("ROUTER")
        sock.bind(f"ipc://{path}")
        listening()
        while True:
            peer, empty, data = sock.recv_multipart()
            sock.send_multipart([peer, empty, data.upper()])

    @staticmethod
    def client(path: str) -> Call:
        sock = Pyzmq.socket("REQ")
        sock.connect(f"ipc://{path}")

        def call(data: bytes) -> object:
            sock.send(data)
            return sock.recv()

        return call

    @staticmethod
    def client_futures(path: str) -> Submit:
        sock = Pyzmq.socket("DEALER")
        sock.connect(f"ipc://{path}")

        class Next:
            @staticmethod
            def result(_timeout: float | None = None, /) -> object:
                return sock.recv_multipart()[1]

        def submit(data: bytes) -> Answer:
            sock.send_multipart([b"", data])
            return Next()

        return submit


class Pynng:
    """Req0 to Rep0."""

    @staticmethod
    def serve(path: str, listening: Listening) -> None:
        sock = importlib.import_module("pynng").Rep0(listen=f"ipc://{path}")
        listening()
        while True:
            sock.send(sock.recv().upper())

    @staticmethod
    def client(path: str) -> Call:
        sock = importlib.import_module("pynng").Req0(dial=f"ipc://{path}", block_on_dial=True)

        def call(data: bytes) -> object:
            sock.send(data)
            return sock.recv()

        return call


class Rpyc:
    """A method of a service on a threaded server."""

    @staticmethod
    def serve(path: str, listening: Listening) -> None:
        rpyc: Any = importlib.import_module("rpyc")
        threaded: Any = importlib.import_module("rpyc.utils.server").ThreadedServer

        def upper(_service: object, data: bytes) -> bytes:
            return data.upper()

        service = type("Service", (rpyc.Service,), {"exposed_upper": upper})
        server = threaded(service, socket_path=path, logger=logging.getLogger("rpyc"), backlog=BACKLOG)
        server._listen()  # start() would not say when it listens
        listening()
        server.start()

    @staticmethod
    def client(path: str) -> Call:
        call: Call = importlib.import_module("rpyc").utils.factory.unix_connect(path).root.upper
        return call


#: by what they are called; the module without which there is none
PEERS: Final[dict[str, tuple[type, str]]] = {
    "raw sockets": (Raw, "socket"),
    "multiprocessing": (Multiprocessing, "multiprocessing"),
    "executor over multiprocessing": (Executor, "multiprocessing"),
    "asyncio streams": (AsyncioStreams, "asyncio"),
    "pyzmq": (Pyzmq, "zmq"),
    "pynng": (Pynng, "pynng"),
    "rpyc": (Rpyc, "rpyc"),
}
