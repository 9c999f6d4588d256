"""The engine itself: it must see what is wrong, or everything it passes means nothing."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path

import pytest

from tests.interop.conversation import Conversation, all_in, read
from tests.interop.engine import Recorded, in_two, play_client, send_apart
from tests.support import peers, wire
from tests.support.makers import PATIENCE, Worker
from tests.support.peers import OriginalServer, SplittingProxy, listen, serving, sizes
from tests.support.serving import until
from tests.support.wire import Frame

SERVERS = all_in("original_server")
HELLO = wire.string("Hello World")


def test_the_checksum_is_the_standards() -> None:
    assert wire.crc64(b"123456789") == 0xE9C6D914C4B8D9CA
    assert wire.quick_crc64(b"123456789") == 0xE9C6D914C4B8D9CA
    assert wire.crc64(b"6789", wire.crc64(b"12345")) == 0xE9C6D914C4B8D9CA


@pytest.mark.parametrize("conversation", SERVERS, ids=lambda conversation: conversation.name)
def test_what_is_recorded_can_be_played_against_itself(conversation: Conversation, short_dir: Path) -> None:
    """The recorded client meets the recorded server; both sides compare."""
    path = short_dir / "server"
    with listen(path) as listener:
        server = Recorded(listener, conversation)
        play_client(lambda: peers.connect(path), conversation)
        server.outcome()


@pytest.mark.parametrize("at", range(0, 76, 5))
def test_one_wrong_bit_of_an_answer_is_seen(at: int, short_dir: Path) -> None:
    conversation = read(Path(__file__).parent / "conversations" / "original_server" / "string_echo.txt")
    right = conversation.said_by("S")
    wrong = bytearray(right)
    wrong[at % len(right)] ^= 1 << at % 8
    with serving(short_dir / "server", lambda peer: peer.sendall(bytes(wrong)) if wire.receive(peer) else None):
        with pytest.raises(AssertionError):
            play_client(lambda: peers.connect(short_dir / "server"), conversation)


@pytest.mark.parametrize("at", [1, 31, 33, 40])
def test_a_frame_in_two_pieces_is_seen(at: int, short_dir: Path) -> None:
    conversation = read(Path(__file__).parent / "conversations" / "original_server" / "string_echo.txt")
    whole = conversation.said_by("C")
    with listen(short_dir / "server") as listener:
        server = Recorded(listener, conversation)
        with peers.connect(short_dir / "server") as peer:
            with pytest.raises(AssertionError, match="pieces"):
                try:
                    send_apart(peer, in_two(at)([whole]))
                except BrokenPipeError:
                    pass
                server.outcome()


def test_bytes_behind_a_frame_are_seen(short_dir: Path) -> None:
    conversation = read(Path(__file__).parent / "conversations" / "original_server" / "string_echo.txt")
    with listen(short_dir / "server") as listener:
        server = Recorded(listener, conversation)
        with peers.connect(short_dir / "server") as peer:
            peer.sendall(conversation.said_by("C") + b"x")
            with pytest.raises(AssertionError, match="behind the frame"):
                server.outcome()


def test_a_tag_is_taken_off_and_nothing_else(short_dir: Path) -> None:
    conversation = read(Path(__file__).parent / "conversations" / "original_server" / "string_echo.txt")
    for frame, right in [
        (wire.tagged(HELLO, 5), True),
        (HELLO._replace(word=5), False),
        (wire.tagged(HELLO, 5)._replace(flags=32), False),
    ]:
        with listen(short_dir / "server") as listener:
            server = Recorded(listener, conversation)
            with peers.connect(short_dir / "server") as peer:
                peer.sendall(frame.encoded())
                peer.recv(100)
            if right:
                server.outcome()
            else:
                with pytest.raises(AssertionError):
                    server.outcome()
        (short_dir / "server").unlink()


def test_the_played_original_has_the_recorded_answers(short_dir: Path) -> None:
    """OriginalServer, which is used beyond what is recorded, says the same."""
    for conversation in SERVERS:
        blank = all(ask.answer is None for ask in conversation.asks)
        word = int.from_bytes(conversation.said_by("S")[12:16], "little")
        path = short_dir / conversation.name
        with OriginalServer(path, lambda frame, none=blank: None if none else Frame(*frame[:2]), word):  # type: ignore[misc]
            play_client(lambda path=path: peers.connect(path), conversation)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("pieces", "errors"),
    [
        ((HELLO.encoded(),), []),
        ((HELLO.encoded()[:31], HELLO.encoded()[31:]), ["INVALID"]),
        ((HELLO.encoded()[:33], HELLO.encoded()[33:]), ["CHECKSUM"]),
        ((HELLO.encoded()[:33],), ["PCONCLS"]),
        ((b"",), ["PCONCLS"]),
    ],
    ids=["whole", "header", "payload", "half", "nothing"],
)
def test_the_played_original_has_the_originals_faults(
    pieces: tuple[bytes, ...], errors: list[str], short_dir: Path
) -> None:
    with OriginalServer(short_dir / "server", lambda frame: Frame(*frame[:2])) as server:
        with peers.connect(short_dir / "server") as peer:
            with contextlib.suppress(BrokenPipeError, TimeoutError):
                send_apart(peer, pieces)
            with contextlib.suppress(OSError):
                peer.shutdown(socket.SHUT_WR)
            assert wire.receive_all(peer) == ([] if errors else [HELLO])
        assert server.errors == errors


def test_the_played_original_dies_of_a_client_that_leaves(short_dir: Path) -> None:
    gone = threading.Event()

    def answer(frame: Frame) -> Frame:
        assert gone.wait(PATIENCE)
        return frame

    with OriginalServer(short_dir / "server", answer) as server:
        with peers.connect(short_dir / "server") as peer:
            peer.sendall(HELLO.encoded())
        gone.set()
        until(lambda: server.dead)


@pytest.mark.parametrize("seed", range(3))
def test_the_proxy_keeps_every_byte(seed: int, short_dir: Path) -> None:
    def echo(peer: socket.socket) -> None:
        while data := peer.recv(65536):
            peer.sendall(data)

    data = bytes(range(256)) * 20
    with serving(short_dir / "server", echo) as errors:
        proxy = SplittingProxy(short_dir / "proxy", short_dir / "server", sizes(seed))
        with proxy, peers.connect(short_dir / "proxy") as peer:
            back = Worker(lambda: wire.receive_exactly(peer, len(data) + 1))
            peer.sendall(data)
            peer.shutdown(socket.SHUT_WR)
            assert back.outcome() == data
        assert proxy.pieces > 200
    assert not errors
