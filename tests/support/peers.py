"""Peers that behave badly, or as others do: plain sockets and threads, nothing of bbipc.

``OriginalServer`` does what the original's C library does, faults included.  ``serving`` plays any server, a thread a
connection.  ``SplittingProxy`` stands between a client and a server and cuts what goes by into pieces.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

from tests.support import wire
from tests.support.makers import PATIENCE
from tests.support.wire import Frame


def listen(path: Path, backlog: int = 128) -> socket.socket:
    """A plain listener on a local path."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.fspath(path))
    listener.listen(backlog)
    listener.settimeout(PATIENCE)
    return listener


def connect(path: Path) -> socket.socket:
    """A plain client on a local path."""
    peer = socket.socket(socket.AF_UNIX)
    try:
        peer.connect(os.fspath(path))  # blocks where the backlog is full; with a timeout it would not
    except OSError:
        peer.close()
        raise
    peer.settimeout(PATIENCE)
    return peer


def hang_up(path: Path) -> None:
    """Wake whoever accepts on *path*: to shut a listening local socket down does not do it everywhere."""
    with contextlib.suppress(OSError):
        connect(path).close()


def reset(peer: socket.socket) -> None:
    """Leave with a bang: RST over TCP; over a local socket unread bytes do the same."""
    with contextlib.suppress(OSError):
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


class OriginalServer:
    """The original's ``si_listen``, line by line, with its faults.

    One connection at a time, one message each.  It reads 32 bytes with one call and the payload with one call, and
    whatever comes in two pieces lands on top of the first.  No answer to what it does not understand.  A blank
    response carries *word* where the original has uninitialised memory.  A client that leaves before its response is
    SIGPIPE: the server is dead.  *answer* is its handler: a frame, or ``None``.  CLOSE stops it, behind the response.
    """

    def __init__(self, path: Path, answer: Callable[[Frame], Frame | None], word: int = 0xA5A5A5A5) -> None:
        self._answer = answer
        self._word = word
        self.seen: list[Frame] = []  # by the handler
        self.errors: list[str] = []  # what its error callback was given
        self.dead = False
        self.connections = 0
        self._ending = False
        self._path = path
        self._listener = listen(path, 10)
        self._listener.settimeout(None)
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *what: object) -> None:
        self._ending = True
        hang_up(self._path)
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "it still serves"

    def _listen(self) -> None:
        with self._listener:
            while not self.dead:
                peer, _ = self._listener.accept()
                if self._ending:
                    peer.close()
                    return
                self.connections += 1
                with peer:
                    peer.settimeout(PATIENCE)
                    try:
                        if self._serve(peer):
                            return
                    except BrokenPipeError:
                        self.dead = True

    def _serve(self, peer: socket.socket) -> bool:
        """One connection.  Whether that was the last."""
        header = self._read(peer, 32)
        if header is None:
            return False
        kind, flags, length, word, magic, _ = wire.HEADER.unpack(header)
        if kind > wire.CLOSE or length >= wire.LIMIT or magic != wire.MAGIC:
            self.errors.append("INVALID")
            return False
        payload = self._read(peer, length)
        if payload is None:
            return False
        frame = Frame(kind, payload, flags, word)
        if not flags & wire.UNSIGNED and frame.header() != header:
            self.errors.append("CHECKSUM")
            return False
        response = None
        if not flags & wire.DISCARD:
            self.seen.append(frame)
            response = self._answer(frame)
        if response is None and not flags & wire.NO_RESPONSE:
            response = wire.BLANK._replace(word=self._word)
        if response is not None:
            peer.sendall(response.encoded())
        return kind == wire.CLOSE and not flags & wire.DISCARD

    def _read(self, peer: socket.socket, count: int) -> bytes | None:
        """What ``while ((read += recv(sd, buffer, count, 0)) < count)`` leaves in the buffer."""
        buffer = bytearray(count)
        got = 0
        while got < count:
            try:
                part = peer.recv(count)
            except OSError:
                self.errors.append("READ")
                return None
            if not part:
                self.errors.append("PCONCLS")
                return None
            buffer[: len(part)] = part  # on top of the last piece
            got += len(part)
        return bytes(buffer)


@contextlib.contextmanager
def serving(path: Path, talk: Callable[[socket.socket], object]) -> Iterator[list[BaseException]]:
    """A server that calls *talk* for each connection, on a thread of its own, and closes it when *talk* returns.

    Gives the errors of *talk*; that the peer has gone is none.  At the end its connections are cut.
    """
    errors: list[BaseException] = []
    threads: list[threading.Thread] = []
    peers: list[socket.socket] = []
    ending = threading.Event()

    def run(peer: socket.socket) -> None:
        with peer:
            try:
                talk(peer)
            except (ConnectionError, TimeoutError):
                pass
            except BaseException as error:
                if not ending.is_set():
                    errors.append(error)

    def accept() -> None:
        with listener:
            while True:
                peer, _ = listener.accept()
                if ending.is_set():
                    peer.close()
                    return
                peer.settimeout(PATIENCE)
                peers.append(peer)
                threads.append(threading.Thread(target=run, args=(peer,), daemon=True))
                threads[-1].start()

    listener = listen(path)
    listener.settimeout(None)
    acceptor = threading.Thread(target=accept, daemon=True)
    acceptor.start()
    try:
        yield errors
    finally:
        ending.set()
        hang_up(path)
        acceptor.join(PATIENCE)
        assert not acceptor.is_alive(), "it still accepts"
        for peer in peers:
            with contextlib.suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "a connection is still served"


def requests(peer: socket.socket) -> Iterator[Frame]:
    """What comes, frame by frame, until the end."""
    while (frame := wire.receive(peer)) is not None:
        yield frame


class SplittingProxy:
    """Between a client and the server at *target*, both ways: each piece as long as *size* says, each a call."""

    def __init__(self, path: Path, target: Path, size: Callable[[], int]) -> None:
        self._target = target
        self._size = size
        self._path = path
        self.pieces = 0

    def __enter__(self) -> Self:
        self._stack = contextlib.ExitStack()
        errors = self._stack.enter_context(serving(self._path, self._relay))
        self._errors = errors
        return self

    def __exit__(self, *what: object) -> None:
        self._stack.close()
        assert not self._errors, self._errors

    def _relay(self, client: socket.socket) -> None:
        with connect(self._target) as server:
            back = threading.Thread(target=self._pump, args=(server, client), daemon=True)
            back.start()
            self._pump(client, server)
            back.join(PATIENCE)

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                at = 0
                while at < len(data):
                    size = self._size()
                    sink.sendall(data[at : at + size])
                    at += size
                    self.pieces += 1
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


def sizes(seed: int, largest: int = 100) -> Callable[[], int]:
    """Sizes of pieces at random, small ones more often."""
    dice = random.Random(seed)
    return lambda: dice.choice((1, 1, 2, 3, 31, 32, 33, dice.randrange(1, largest)))
