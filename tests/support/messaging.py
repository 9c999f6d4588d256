"""A server of messages that does what a test tells it to: plain sockets, a thread a connection, and the codec."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from bbipc.messages import Decoder, Message, MessageFlag, MessageType, encode
from tests.support.makers import PATIENCE, Server

TAGGED = int(MessageFlag.TAGGED)
FAILED = int(MessageFlag.FAILED)


class Peer:
    """One connection, seen from the server."""

    def __init__(self, connection: socket.socket, number: int) -> None:
        self.connection = connection
        self.number = number
        self._decoder = Decoder()
        self._messages: list[Message] = []

    def receive(self) -> Message | None:
        """The next request; None: the client has closed."""
        while not self._messages:
            try:
                data = self.connection.recv(1 << 16)
            except OSError:
                return None
            if not data:
                return None
            self._messages += self._decoder.feed(data)
            self._decoder.check()
        return self._messages.pop(0)

    def send(self, message: Message) -> None:
        with contextlib.suppress(OSError):  # the client has gone
            self.connection.sendall(encode(message))

    def answer(self, request: Message, payload: bytes | None = None, flags: int = 0) -> None:
        """Reply as a server that knows of tags; turned upside down unless there is a *payload*."""
        payload = request.payload.upper() if payload is None else payload
        self.send(Message(request.type, payload, flags | request.flags & TAGGED, request.tag))

    def answer_plainly(self, request: Message, payload: bytes | None = None, flags: int = 0) -> None:
        """Reply as one that knows nothing of tags, with garbage in the reserved word."""
        payload = request.payload.upper() if payload is None else payload
        self.send(Message(request.type, payload, flags, 0xDEADBEEF))

    def refuse(self, text: bytes) -> None:
        """Read a header, say that this is no message for us, and linger: read on for a while, and throw it away."""
        header = self.connection.recv(32, socket.MSG_WAITALL)
        tag = int.from_bytes(header[12:16], "little")
        self.send(Message(MessageType.STRING, text, FAILED | TAGGED, tag))
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            while self.connection.recv(1 << 16):
                pass

    def hang_up(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()


Script = Callable[[Peer], object]


class ScriptedServer:
    """Calls *script* with every connection, in a thread of its own, and closes the connection when it returns.

    *one_at_a_time*: the next connection is accepted when the script has returned.
    """

    def __init__(self, script: Script, where: Path | Server, *, one_at_a_time: bool = False) -> None:
        """*where*: the path to listen on, or a server that listens, which stays the caller's."""
        self._script = script
        self._one_at_a_time = one_at_a_time
        self.connections = 0
        self.ended = 0  # connections that the script has left
        if isinstance(where, Path):
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.bind(os.fspath(where))
            self._socket.listen(128)
        else:
            self._socket = socket.socket(fileno=os.dup(where.fileno()))
            self._socket.setblocking(True)
        self._peers: list[Peer] = []
        self._threads: list[threading.Thread] = []
        self.errors: list[BaseException] = []
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            connection.setblocking(True)
            connection.settimeout(PATIENCE)
            self.connections += 1
            peer = Peer(connection, self.connections)
            self._peers.append(peer)
            if self._one_at_a_time:
                self._serve(peer)
            else:
                thread = threading.Thread(target=self._serve, args=(peer,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, peer: Peer) -> None:
        try:
            self._script(peer)
        except BaseException as error:
            self.errors.append(error)
        finally:
            peer.hang_up()
            self.ended += 1

    def close(self) -> None:
        """Stop listening, end the connections, wait for the scripts."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for peer in self._peers:
            with contextlib.suppress(OSError):
                peer.connection.shutdown(socket.SHUT_RDWR)
        for thread in (self._acceptor, *self._threads):
            thread.join(PATIENCE)
            assert not thread.is_alive(), "a script hangs"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
        if error is None and self.errors:
            raise self.errors[0]


def requests_of(peer: Peer) -> Iterator[Message]:
    """All requests until the client closes."""
    while (request := peer.receive()) is not None:
        yield request


def echo(peer: Peer) -> None:
    """Answers all, knows tags."""
    for request in requests_of(peer):
        peer.answer(request)


def echo_in_order(peer: Peer) -> None:
    """Answers all, knows nothing of tags."""
    for request in requests_of(peer):
        peer.answer_plainly(request)


def echo_once(peer: Peer) -> None:
    """As the original: one message a connection, and no bytes behind it."""
    request = peer.receive()
    if request is not None:
        peer.answer_plainly(request)
        peer.connection.setblocking(False)
        try:
            extra = peer.connection.recv(100)
        except (BlockingIOError, ConnectionResetError):
            return
        assert not extra, "bytes came behind the message"
