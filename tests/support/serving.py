"""What tests of servers have in common: handlers, clients, and ways to wait for a fact."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import Literal

import bbipc
from bbipc import SocketEvent, StreamSocket
from tests.support.makers import PATIENCE, Namespace, Server

READ = SocketEvent.DATA_AVAILABLE | SocketEvent.REMOTE_DISCONNECTED
Per = Literal["connection", "readiness"]


def answer(stream: StreamSocket) -> None:
    """What is there, back; for per="readiness"."""
    data = stream.read()
    if data:
        stream.write(data)


def converse(stream: StreamSocket) -> None:
    """All that comes, back, until the peer's end; for per="connection"."""
    while True:
        bbipc.poll_socket(stream, READ, PATIENCE)
        data = stream.read()
        if data == b"":
            return
        stream.write(data or b"")


HANDLERS: dict[Per, Callable[[StreamSocket], None]] = {"connection": converse, "readiness": answer}


def ask(peer: socket.socket, data: bytes = b"hello") -> bytes:
    peer.sendall(data)
    return peer.recv(100)


def until(fact: Callable[[], bool]) -> None:
    """Return when *fact* is one."""
    deadline = time.monotonic() + PATIENCE
    pace = threading.Event()
    while not fact():
        assert time.monotonic() < deadline, "it never came about"
        pace.wait(0.001)


def at_end(peer: socket.socket) -> bool:
    """Whether the other side has closed; waits for it."""
    try:
        return peer.recv(1) == b""
    except ConnectionResetError:
        return True


def is_refused(namespace: Namespace, server: Server) -> bool:
    """Whether nobody listens there any more."""
    try:
        stream = namespace.connect(server)
    except bbipc.NoLocalServerError:
        return True
    with stream:
        assert bbipc.poll_socket(stream, SocketEvent.DETERMINED, PATIENCE)
        return stream.connection_failed()


class Blocking:
    """A handler that tells when it is called, and returns when it is told to."""

    def __init__(self) -> None:
        self.called = threading.Semaphore(0)
        self.go_on = threading.Event()

    def __call__(self, stream: StreamSocket) -> None:
        stream.read()
        self.called.release()
        assert self.go_on.wait(PATIENCE)
        stream.write(b"done")

    def wait(self, count: int = 1) -> None:
        for _ in range(count):
            assert self.called.acquire(timeout=PATIENCE)
