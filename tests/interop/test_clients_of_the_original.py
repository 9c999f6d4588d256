"""Our MessageServer against recorded clients: the original's, and others that it would not have survived.

What is expected stands in ``conversations/``; ``rules`` says the same of every golden frame with all of its flags.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

import bbipc
from bbipc.errors import MessageError
from pool import MessageServer, Request
from tests.interop.conversation import Conversation, Value, all_in
from tests.interop.engine import Cut, as_recorded, byte_by_byte, glued, in_two, play_client, send_apart
from tests.support import peers, wire
from tests.support.makers import PATIENCE
from tests.support.serving import until
from tests.support.wire import BLANK, CLOSE, DISCARD, NO_RESPONSE, STRING, UNSIGNED, Frame

CLIENTS = all_in("original_client") + all_in("other_clients")
GOLDEN_FILE = Path(__file__).parent.parent / "support" / "golden_frames.json"
GOLDEN = [
    Frame(frame["type"], bytes.fromhex(frame["payload_hex"]), frame["flags"], frame["unused_field"])
    for frame in json.loads(GOLDEN_FILE.read_text())["frames"]
]
HELLO = wire.string("Hello World")


def raising(request: Request) -> Value:
    raise ValueError("not today")


HANDLERS: dict[str, Callable[[Request], Value]] = {
    "echo": lambda request: request.value,
    "nothing": lambda request: None,
    "raise": raising,
}


class Served:
    """A server on a local path, and what its handler was given."""

    def __init__(self, path: Path, handler: str = "echo", **options: Any) -> None:
        self.path = path
        self.handled: list[tuple[str, Value]] = []
        self.errors: list[BaseException] = []
        self._handler = HANDLERS[handler]
        on_error = options.pop("on_error", lambda error, peer: self.errors.append(error))
        self.server = MessageServer(bbipc.make_local_server(path), self._handle, on_error=on_error, **options)

    def _handle(self, request: Request) -> Value:
        self.handled.append((request.type.name.lower(), request.value))
        return self._handler(request)

    def connect(self) -> socket.socket:
        return peers.connect(self.path)


@contextlib.contextmanager
def served(directory: Path, handler: str = "echo", **options: Any) -> Iterator[Served]:
    it = Served(directory / "server", handler, **options)
    it.server.start()
    try:
        yield it
        until(lambda: it.server.stats().connections == 0)
    finally:
        it.server.stop(PATIENCE)


def play(conversation: Conversation, directory: Path, cut: Cut, workers: Literal["inline"] | None) -> None:
    with served(directory, conversation.handler, workers=workers, **conversation.server) as it:
        play_client(it.connect, conversation, cut)
        until(lambda: len(it.handled) >= len(conversation.handled))
    assert it.handled == conversation.handled


@pytest.mark.parametrize("workers", [None, "inline"], ids=["workers", "inline"])
@pytest.mark.parametrize("conversation", CLIENTS, ids=lambda conversation: conversation.name)
def test_recorded_clients_get_what_was_recorded(
    conversation: Conversation, workers: Literal["inline"] | None, short_dir: Path
) -> None:
    play(conversation, short_dir, as_recorded, workers)


@pytest.mark.parametrize("cut", [byte_by_byte, glued], ids=["byte by byte", "glued"])
@pytest.mark.parametrize("conversation", CLIENTS, ids=lambda conversation: conversation.name)
def test_recorded_clients_get_the_same_however_they_cut(conversation: Conversation, cut: Cut, short_dir: Path) -> None:
    play(conversation, short_dir, cut, None)


def test_every_place_at_which_a_frame_can_be_cut(short_dir: Path) -> None:
    whole = HELLO.encoded() + Frame(wire.BINARY, b"\0\1").encoded()
    with served(short_dir) as it, it.connect() as peer:
        for at in range(1, len(whole)):
            send_apart(peer, in_two(at)([whole]))
            assert wire.receive_exactly(peer, len(whole)) == whole, at


def rules(frame: Frame) -> list[Frame]:
    """What the original's rules give to a client that sends *frame* to an echo (of texts by siqr_string)."""
    if frame.flags & NO_RESPONSE:
        return []
    if frame.flags & DISCARD or frame.type == CLOSE:
        return [BLANK]
    if frame.type == STRING:
        return [Frame(STRING, frame.payload.removesuffix(b"\0") + b"\0")]
    return [Frame(frame.type, frame.payload)]


ALL_FLAGS = [frame._replace(flags=flags) for frame, flags in itertools.product(dict.fromkeys(GOLDEN), range(8))]


def converse(it: Served, frame: Frame) -> list[Frame]:
    """All that a client gets for one frame, byte for byte as the independent codec would say it, until the end."""
    with it.connect() as peer:
        peer.sendall(frame.encoded())
        peer.shutdown(socket.SHUT_WR)
        return wire.receive_all(peer)


def test_golden_frames_with_all_flags(short_dir: Path) -> None:
    """Where unsigned messages are accepted, as the original's server accepts them."""
    with served(short_dir, accept_unsigned=True) as it:
        for frame in ALL_FLAGS:
            assert converse(it, frame) == rules(frame), frame
        expected = [frame for frame in ALL_FLAGS if frame.type != CLOSE and not frame.flags & DISCARD]
        until(lambda: len(it.handled) == len(expected))
        assert not it.errors


def test_golden_frames_with_all_flags_where_a_checksum_is_required(short_dir: Path) -> None:
    with served(short_dir) as it:
        for frame in ALL_FLAGS:
            replies = converse(it, frame)
            if frame.flags & UNSIGNED:
                assert len(replies) == 1, frame
                assert wire.is_failure(replies[0]), replies
            else:
                assert replies == rules(frame), frame
        refused = sum(bool(frame.flags & UNSIGNED) for frame in ALL_FLAGS)
        until(lambda: len(it.errors) == refused)
        assert all(isinstance(error, MessageError) for error in it.errors)


@pytest.mark.parametrize("size", [0, 1, 4000, 4096, 5000, 30000])
def test_a_reply_comes_in_one_piece(size: int, short_dir: Path) -> None:
    """The original's client reads 32 bytes with one call and the payload with one call; what is split it gets wrong.

    Unix sockets hand bytes over by the sender's calls: MSG_PEEK sees header and payload at once, or never.
    """
    frame = Frame(wire.BINARY, bytes(size))
    with served(short_dir) as it:
        for _ in range(20):
            with it.connect() as peer:
                peer.sendall(frame.encoded())
                assert len(peer.recv(1 << 17)) == 32 + size


def test_a_client_that_never_comes_back_is_nobodys_concern(short_dir: Path) -> None:
    """100 that leave without reading, then one that reads."""
    with served(short_dir) as it:
        for _ in range(100):
            with it.connect() as peer:
                peer.sendall(HELLO.encoded())
        with it.connect() as peer:
            peer.settimeout(PATIENCE)
            peer.sendall(HELLO.encoded())
            assert wire.receive(peer) == HELLO


@pytest.mark.parametrize("stop_on_close", [True, False])
def test_a_close_that_is_to_be_discarded_closes_nothing(stop_on_close: bool, short_dir: Path) -> None:
    """The original does not show it to its handler, which alone could end something."""
    with served(short_dir, stop_on_close=stop_on_close) as it, it.connect() as peer:
        peer.sendall(Frame(CLOSE, b"", DISCARD).encoded() + HELLO.encoded())
        assert wire.receive(peer) == BLANK
        assert wire.receive(peer) == HELLO
        assert not it.server.stopping


def test_stop_on_close_stops(short_dir: Path) -> None:
    with served(short_dir, stop_on_close=True) as it, it.connect() as idle:
        with it.connect() as peer:
            peer.sendall(HELLO.encoded() + Frame(CLOSE).encoded())
            assert wire.receive_all(peer) == [HELLO, BLANK]
        until(lambda: it.server.stopping)
        assert wire.receive_all(idle) == []
