"""Our MessageClient and send_quick against the original's server: recorded, and played with all its faults.

It serves one message a connection and one connection at a time, needs the header in one piece and the frame in one
system call, ignores tags, sends garbage in the reserved word, closes behind its response, and dies of a client that
leaves before it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bbipc import RemoteDisconnectedError
from pool import MessageClient, connecting, send_quick
from tests.interop.conversation import Conversation, Value, all_in
from tests.interop.engine import Cut, Recorded, as_recorded, byte_by_byte, glued
from tests.support import wire
from tests.support.makers import PATIENCE, Worker
from tests.support.peers import OriginalServer, listen
from tests.support.serving import until
from tests.support.wire import Frame

SERVERS = all_in("original_server")


@pytest.fixture(autouse=True)
def time_to_hang_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The original closes microseconds behind its answer; a thread of a busy test machine may take longer.

    A peer that closes is waited for no longer than it takes; only this test's failure would be.
    """
    monkeypatch.setattr(connecting, "MANNERS", PATIENCE)


by_name = pytest.mark.parametrize("conversation", SERVERS, ids=lambda conversation: conversation.name)


@contextlib.contextmanager
def recorded(conversation: Conversation, path: Path, cut: Cut = as_recorded) -> Iterator[Recorded]:
    with listen(path) as listener:
        server = Recorded(listener, conversation, cut)
        try:
            yield server
        finally:
            server.outcome()


@pytest.mark.parametrize("cut", [as_recorded, byte_by_byte, glued], ids=["as recorded", "byte by byte", "glued"])
@by_name
def test_our_client_gets_what_was_recorded(conversation: Conversation, cut: Cut, short_dir: Path) -> None:
    path = short_dir / "server"
    with recorded(conversation, path, cut), MessageClient(path, timeout=PATIENCE) as client:
        assert [client.send(ask.value) for ask in conversation.asks] == [ask.answer for ask in conversation.asks]


@by_name
def test_futures_get_it_too(conversation: Conversation, short_dir: Path) -> None:
    path = short_dir / "server"
    with recorded(conversation, path), MessageClient(path, timeout=PATIENCE) as client:
        answers = [client.submit(ask.value).result(PATIENCE) for ask in conversation.asks]
        assert answers == [ask.answer for ask in conversation.asks]


@by_name
def test_send_quick_gets_what_was_recorded(conversation: Conversation, short_dir: Path) -> None:
    path = short_dir / "server"
    with recorded(conversation, path):
        for ask in conversation.asks:
            assert send_quick(path, ask.value, timeout=PATIENCE) == ask.answer


def echo(frame: Frame) -> Frame:
    return Frame(frame.type, frame.payload)


def text_of(number: int) -> str:
    return f"message {number}"


@pytest.mark.parametrize("word", [0, 0xA5A5A5A5, 1, 0xFFFFFFFF])
def test_a_hundred_messages_one_behind_the_other(word: int, short_dir: Path) -> None:
    """*word*: even where the garbage looks like a tag of ours (1 would be the first), it is none."""
    path = short_dir / "server"
    with OriginalServer(path, lambda frame: None if frame.payload[-2] % 2 else echo(frame), word) as server:
        with MessageClient(path, timeout=PATIENCE) as client:
            for number in range(100):
                expected = None if ord(text_of(number)[-1]) % 2 else text_of(number)
                assert client.send(text_of(number)) == expected
    assert [frame.payload for frame in server.seen] == [wire.string(text_of(number)).payload for number in range(100)]
    assert not server.errors
    assert not server.dead


@pytest.mark.parametrize("size", [0, 1, 4000, 4096, 4097, 20000, 32000])
def test_frames_arrive_in_one_piece(size: int, short_dir: Path) -> None:
    """Above some 60 kB the original itself fails now and then."""
    path = short_dir / "server"
    with OriginalServer(path, echo) as server:
        for _ in range(20):
            assert send_quick(path, bytes(size), timeout=PATIENCE) == bytes(size)
        with MessageClient(path, timeout=PATIENCE) as client:
            for _ in range(20):
                assert client.send(bytes(size)) == bytes(size)
    assert not server.errors


def test_a_close_stops_it(short_dir: Path) -> None:
    path = short_dir / "server"
    with OriginalServer(path, echo) as server, MessageClient(path, timeout=PATIENCE) as client:
        assert client.send("hello") == "hello"
        assert client.send(None) is None
        with pytest.raises((OSError, TimeoutError)):
            client.send("anybody?", timeout=0.5)
    assert not server.errors
    assert not server.dead


def test_many_threads_never_get_each_others_answer(short_dir: Path) -> None:
    """Whatever such a server can serve is right; what it cannot is an error that says so; no call is left behind."""
    path = short_dir / "server"
    wrong: list[tuple[Value, str]] = []
    right: list[str] = []
    lost: list[BaseException] = []
    start = threading.Barrier(8)

    def work(client: MessageClient, thread: int) -> None:
        start.wait(PATIENCE)
        for number in range(20):
            text = f"{thread}/{number}"
            try:
                answer = client.send(text)
            except RemoteDisconnectedError as error:
                lost.append(error)
            else:
                right.append(text)
                if answer != text:
                    wrong.append((answer, text))

    with OriginalServer(path, echo) as server, MessageClient(path, timeout=PATIENCE) as client:
        workers = [Worker(lambda thread=thread: work(client, thread)) for thread in range(8)]  # type: ignore[misc]
        for worker in workers:
            worker.outcome(6 * PATIENCE)
    assert not wrong
    assert len(right) + len(lost) == 160
    assert len(right) >= 20, (len(right), len(lost))
    assert "INVALID" not in server.errors
    assert "CHECKSUM" not in server.errors


def test_one_answer_for_no_response_belongs_to_nobody(short_dir: Path) -> None:
    """The original never enforced NO_RESPONSE: its handler may answer all the same."""
    path = short_dir / "server"
    with OriginalServer(path, echo) as server, MessageClient(path, timeout=PATIENCE) as client:
        assert client.send("first") == "first"
        client.send("unasked", no_response=True)
        for number in range(5):
            try:
                assert client.send(text_of(number)) == text_of(number)
            except OSError:
                until(lambda: server.dead)  # it answered, and nobody was there: of that it dies
                break


def test_a_late_answer_is_nobodys(short_dir: Path) -> None:
    """A call that ran out of time; the next one is not given its answer."""
    path = short_dir / "server"
    go_on = threading.Event()

    def late(frame: Frame) -> Frame:
        if frame.payload.startswith(b"slow"):
            assert go_on.wait(PATIENCE)
        return echo(frame)

    server = OriginalServer(path, late)
    with server, MessageClient(path, timeout=PATIENCE) as client:
        assert client.send("hello") == "hello"
        with pytest.raises(TimeoutError):
            client.send("slow", timeout=0.05)
        go_on.set()
        with contextlib.suppress(OSError):  # dead: SIGPIPE, it answered somebody who had gone
            assert client.send("next") == "next"
