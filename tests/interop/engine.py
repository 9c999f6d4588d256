"""Drives one side of a recorded conversation, with plain sockets, against whoever plays the other one.

Each reply is compared byte for byte.  What a client of ours adds and the original ignores, the tag, is taken off before
its frame is compared, and then the checksum must be that of the frame without it.
"""

from __future__ import annotations

import fcntl
import itertools
import socket
import struct
import termios
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from tests.interop.conversation import Conversation, Step
from tests.support import wire
from tests.support.makers import PATIENCE

#: how a run of pieces that one side sends is cut
Cut = Callable[[Sequence[bytes]], Iterable[bytes]]


def as_recorded(pieces: Sequence[bytes]) -> Iterable[bytes]:
    return pieces


def byte_by_byte(pieces: Sequence[bytes]) -> Iterable[bytes]:
    return (bytes([byte]) for byte in b"".join(pieces))


def glued(pieces: Sequence[bytes]) -> Iterable[bytes]:
    return [b"".join(pieces)]


def in_two(at: int) -> Cut:
    """Cut once, behind *at* bytes."""

    def cut(pieces: Sequence[bytes]) -> Iterable[bytes]:
        whole = b"".join(pieces)
        return [piece for piece in (whole[:at], whole[at:]) if piece]

    return cut


def unread(peer: socket.socket) -> int:
    """Bytes that were sent and that the other side has not read yet (local sockets)."""
    return int(struct.unpack("i", fcntl.ioctl(peer, termios.TIOCOUTQ, bytes(4)))[0])


def send_apart(peer: socket.socket, pieces: Iterable[bytes]) -> None:
    """Each piece in a call of its own, and the next one when the other side has read it: it cannot see them as one."""
    pace = threading.Event()
    for piece in pieces:
        peer.sendall(piece)
        deadline = time.monotonic() + PATIENCE
        while unread(peer):
            assert time.monotonic() < deadline, "the other side does not read"
            pace.wait(0.0001)


def turns(steps: Sequence[Step]) -> Iterator[tuple[str, str, list[bytes]]]:
    """(who, what, pieces): pieces that follow each other on one side are one turn."""
    for (who, what), run in itertools.groupby(steps, key=lambda step: (step.who, step.what)):
        if what == "sends":
            yield who, what, [step.piece for step in run]
        else:
            yield from ((who, what, []) for _ in run)


def play_client(connect: Callable[[], socket.socket], conversation: Conversation, cut: Cut = as_recorded) -> None:
    """Be the client of *conversation*."""
    for steps in conversation.connections:
        with connect() as peer:
            peer.settimeout(PATIENCE)
            for who, what, pieces in turns(steps):
                if who == "C":
                    _act(peer, what, pieces, cut)
                else:
                    _expect(peer, what, pieces)


def _act(peer: socket.socket, what: str, pieces: list[bytes], cut: Cut) -> None:
    if what == "sends" and cut is as_recorded and len(pieces) == 1:
        peer.sendall(pieces[0])
    elif what == "sends":
        send_apart(peer, cut(pieces))
    elif what == "ends":
        peer.shutdown(socket.SHUT_WR)
    else:
        peer.close()


def _expect(peer: socket.socket, what: str, pieces: list[bytes]) -> None:
    if what == "sends":
        expected = b"".join(pieces)
        assert wire.receive_exactly(peer, len(expected)).hex(" ", -4) == expected.hex(" ", -4)
    elif what == "fails":
        frame = wire.receive(peer)
        assert frame is not None, "the server left without a word"
        assert wire.is_failure(frame), frame
    elif what == "may fail":
        said = wire.receive_all(peer)
        assert all(map(wire.is_failure, said)), said
        assert len(said) < 2, said
    else:
        try:
            assert peer.recv(65536).hex(" ", -4) == "", "the server says more than it should"
        except ConnectionResetError:  # it left something unread: an end, too
            pass


class Recorded(threading.Thread):
    """Is the server of *conversation*, on a thread: one connection after the other, on *listener*.

    It reads as the original does: 32 bytes in one call, then the payload in one call; what does not come so is an error
    here.  :meth:`outcome` raises what went wrong.
    """

    def __init__(self, listener: socket.socket, conversation: Conversation, cut: Cut = as_recorded) -> None:
        super().__init__(daemon=True)
        self._listener = listener
        self._conversation = conversation
        self._cut = cut
        self._error: BaseException | None = None
        self.flags: list[int] = []  # of the frames that came
        self.start()

    def run(self) -> None:
        try:
            for steps in self._conversation.connections:
                peer, _ = self._listener.accept()
                with peer:
                    peer.settimeout(PATIENCE)
                    for who, what, pieces in turns(steps):
                        self._step(peer, who, what, pieces)
        except BaseException as error:
            self._error = error

    def _step(self, peer: socket.socket, who: str, what: str, pieces: list[bytes]) -> None:
        if who == "S" and what == "sends":
            send_apart(peer, self._cut(pieces))
        elif who == "S":
            peer.close()
        elif what == "sends":
            self._read(peer, b"".join(pieces))
        else:
            assert peer.recv(1) == b"", "the client goes on"

    def _read(self, peer: socket.socket, expected: bytes) -> None:
        header = peer.recv(32)
        assert len(header) == 32, f"the header came in pieces: {len(header)} bytes at first"
        length = wire.HEADER.unpack(header)[2]
        payload = peer.recv(length) if length else b""
        assert len(payload) == length, f"the frame came in pieces: {len(payload)} of {length} bytes at first"
        frame = wire.decoded(header + payload)
        self.flags.append(frame.flags)
        assert wire.untagged(frame).encoded().hex(" ", -4) == expected.hex(" ", -4)
        peer.setblocking(False)
        try:
            assert not peer.recv(1, socket.MSG_PEEK), "there are bytes behind the frame"
        except BlockingIOError:
            pass
        finally:
            peer.settimeout(PATIENCE)

    def outcome(self) -> None:
        self.join(2 * PATIENCE)
        assert not self.is_alive(), "the recorded server still waits"
        if self._error is not None:
            raise self._error
