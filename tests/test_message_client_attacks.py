"""A MessageClient whose server is its enemy: late, doubled, foreign and endless replies, silence, ends at any byte."""

from __future__ import annotations

import contextlib
import gc
import random
import select
import socket
import sys
import threading
import time
from concurrent.futures import CancelledError, Future, wait
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from bbipc import RemoteDisconnectedError, RemoteHandlerError, StreamSocket
from bbipc.errors import MessageError
from pool import MessageClient
from tests.support import wire
from tests.support.attacks import switch_interval
from tests.support.makers import PATIENCE, Worker
from tests.support.peers import requests, reset, serving
from tests.support.serving import until
from tests.support.wire import BINARY, BLANK, FAILED, STRING, Frame

LOST = (RemoteDisconnectedError, MessageError, OSError)


def replying(frame: Frame, payload: bytes | None = None) -> Frame:
    """The right answer, or another payload for the same call."""
    return frame._replace(payload=frame.payload if payload is None else payload)


def send(peer: socket.socket, *frames: Frame) -> None:
    peer.sendall(b"".join(frame.encoded() for frame in frames))


def echo(peer: socket.socket) -> None:
    for frame in requests(peer):
        send(peer, replying(frame))


def settled(futures: list[Future[Any]]) -> list[object]:
    """What each came to; none may be left."""
    _, left = wait(futures, PATIENCE)
    assert not left, f"{len(left)} of {len(futures)} futures are still open"
    return ["cancelled" if future.cancelled() else future.exception() or future.result() for future in futures]


# Replies that belong to nobody (HAZARDS 45).


def test_replies_in_any_order_doubled_and_foreign_reach_who_asked(short_dir: Path) -> None:
    """Tags that were never sent, answers told twice, in any order: of 2,000 calls each gets its own."""
    dice = random.Random(4)

    def talk(peer: socket.socket) -> None:
        held: list[Frame] = []
        for frame in requests(peer):
            held.append(replying(frame))
            if len(held) >= dice.randrange(1, 12) or frame.payload.endswith(b"last\0"):
                dice.shuffle(held)
                for answer in held:
                    foreign = answer._replace(word=answer.word ^ 0x40000000, payload=b"foreign\0")
                    send(peer, *dice.choice(((answer,), (answer, answer), (foreign, answer), (answer, foreign))))
                held.clear()

    with serving(short_dir / "server", talk) as errors, MessageClient(short_dir / "server") as client:
        futures = [client.submit(f"{number}") for number in range(1999)]
        futures.append(client.submit("last"))
        assert settled(futures) == [*map(str, range(1999)), "last"]
    assert not errors


def test_cancelled_and_late_calls_never_shift_an_answer(short_dir: Path) -> None:
    """2,000 calls of 8 threads; a fifth cancelled, a fifth out of time; the server answers them all, and late."""
    dice = random.Random(11)
    outcomes: list[tuple[str, object]] = []

    def talk(peer: socket.socket) -> None:
        held: list[Frame] = []
        while True:
            if select.select([peer], [], [], 0.003)[0]:
                frame = wire.receive(peer)
                if frame is None:
                    return
                held.append(replying(frame))
            while held and (len(held) > 6 or not select.select([peer], [], [], 0)[0]):
                send(peer, held.pop(dice.randrange(len(held))))

    def work(client: MessageClient, thread: int) -> None:
        chance = random.Random(thread)
        for number in range(250):
            text = f"{thread}/{number}"
            timeout, cancelled = 0.002 if chance.random() < 0.2 else 0.5, chance.random() < 0.2
            try:
                future = client.submit(text, timeout=timeout)  # no connection in time: it raises
                if cancelled:
                    future.cancel()
                outcomes.append((text, future.result(PATIENCE)))
            except (TimeoutError, CancelledError) as error:
                outcomes.append((text, type(error).__name__))

    with switch_interval(1e-5), serving(short_dir / "server", talk) as errors:
        with MessageClient(short_dir / "server") as client:
            threads = [Worker(lambda thread=thread: work(client, thread)) for thread in range(8)]  # type: ignore[misc]
            for thread in threads:
                thread.outcome(6 * PATIENCE)
    assert not errors
    assert len(outcomes) == 2000
    wrong = [(text, got) for text, got in outcomes if got not in {text, "TimeoutError", "CancelledError"}]
    assert not wrong, wrong[:5]
    assert sum(got == text for text, got in outcomes) > 500


def test_an_untagged_answer_behind_a_timeout_is_nobodys(short_dir: Path) -> None:
    """A peer that ignores tags, and answers the first call when the second is waiting."""
    late = threading.Event()

    def talk(peer: socket.socket) -> None:
        for frame in requests(peer):
            if frame.payload == b"slow\0":
                assert late.wait(PATIENCE)
            send(peer, wire.untagged(replying(frame)))

    with serving(short_dir / "server", talk) as errors, MessageClient(short_dir / "server") as client:
        for first in ("hello", None):
            if first:
                assert client.send(first) == first
            with pytest.raises(TimeoutError):
                client.send("slow", timeout=0.03)
            threading.Timer(0.02, late.set).start()
            for number in range(20):
                with contextlib.suppress(RemoteDisconnectedError):
                    assert client.send(f"{number}", timeout=PATIENCE) == f"{number}"
            late.clear()
    assert not errors


def test_an_untagged_peer_not_known_yet_and_a_timeout_at_once(short_dir: Path) -> None:
    """The very first call runs out of time: nobody knows yet that this peer ignores tags."""
    late = threading.Event()

    def talk(peer: socket.socket) -> None:
        for frame in requests(peer):
            if frame.payload == b"slow\0":
                assert late.wait(PATIENCE)
            send(peer, wire.untagged(replying(frame)))

    with serving(short_dir / "server", talk) as errors, MessageClient(short_dir / "server") as client:
        with pytest.raises(TimeoutError):
            client.send("slow", timeout=0.03)
        futures = [client.submit(f"{number}", timeout=PATIENCE) for number in range(10)]
        late.set()
        for number, outcome in enumerate(settled(futures)):
            assert outcome == f"{number}" or isinstance(outcome, RemoteDisconnectedError), (number, outcome)
        assert client.send("hello", timeout=PATIENCE) == "hello"
    assert not errors


# Connections that end.


@pytest.mark.parametrize("at", [0, 1, 31, 32, 33])
@pytest.mark.parametrize("manner", ["close", "reset"])
def test_an_end_at_any_byte_settles_every_call(at: int, manner: str, short_dir: Path) -> None:
    """Of the reply; all who wait are told, by name, and the next call finds a new connection."""
    count = 0

    def talk(peer: socket.socket) -> None:
        nonlocal count
        count += 1
        if count > 1:
            return echo(peer)
        frames = requests(peer)
        first = next(frames)
        for _ in range(4):
            next(frames)
        peer.sendall(replying(first).encoded()[:at])
        if manner == "reset":
            reset(peer)
        return None

    with serving(short_dir / "server", talk) as errors, MessageClient(short_dir / "server") as client:
        futures = [client.submit(f"{number}") for number in range(5)]
        for outcome in settled(futures):
            assert isinstance(outcome, RemoteDisconnectedError), outcome
        assert client.send("again", timeout=PATIENCE) == "again"
    assert not errors


@pytest.mark.parametrize(
    "garbage",
    [
        b"HTTP/1.1 400 Bad Request\r\nServer: nobody\r\n\r\n",
        bytes(32),
        Frame(7, b"x").encoded(),
        Frame(BINARY, b"x").header(check=1) + b"x",
        Frame(BINARY).header(wire.LIMIT),
        Frame(BINARY).header(2**32 - 1),
        Frame(STRING, b"\xff\0").encoded(),
        Frame(BINARY, b"x", wire.UNSIGNED).encoded(),
    ],
    ids=["http", "zeros", "type", "checksum", "5 MiB", "4 GiB", "utf-8", "unsigned"],
)
def test_garbage_ends_the_connection_and_every_call_on_it(garbage: bytes, short_dir: Path) -> None:
    count = 0

    def talk(peer: socket.socket) -> None:
        nonlocal count
        count += 1
        if count > 1:
            return echo(peer)
        frames = requests(peer)
        for _ in range(5):
            next(frames)
        peer.sendall(garbage)
        list(frames)
        return None

    with serving(short_dir / "server", talk) as errors, MessageClient(short_dir / "server") as client:
        futures = [client.submit(f"{number}") for number in range(5)]
        for outcome in settled(futures):
            assert isinstance(outcome, (RemoteDisconnectedError, MessageError)), outcome
        assert client.send("again", timeout=PATIENCE) == "again"
    assert not errors


# Servers that do not read, or do not answer in time.


def test_timeouts_hold_against_a_server_that_never_reads(short_dir: Path) -> None:
    with serving(short_dir / "server", lambda peer: threading.Event().wait(0.9)):
        with MessageClient(short_dir / "server") as client:
            began = time.monotonic()
            for _ in range(2):
                with pytest.raises((TimeoutError, RemoteDisconnectedError)):
                    client.send(bytes(4 << 20), timeout=0.2)
            assert time.monotonic() - began < 1.5


def test_timeouts_hold_against_a_server_that_drips(short_dir: Path) -> None:
    """A byte now and then is no reason to wait longer."""
    ending = threading.Event()

    def talk(peer: socket.socket) -> None:
        for frame in requests(peer):
            for byte in replying(frame, bytes(500)).encoded():
                peer.sendall(bytes([byte]))
                if ending.wait(0.01):
                    return

    with serving(short_dir / "server", talk), MessageClient(short_dir / "server") as client:
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            client.send("hello", timeout=0.2)
        with pytest.raises(TimeoutError):
            client.submit("hello", timeout=0.2).result(PATIENCE)
        assert time.monotonic() - began < 1
        ending.set()


def test_timeouts_hold_against_a_server_that_talks_without_end(short_dir: Path) -> None:
    ending = threading.Event()

    def talk(peer: socket.socket) -> None:
        unasked = Frame(BINARY, bytes(1000), wire.TAGGED, 0xFFFFFFF0).encoded() * 50
        while not ending.is_set():
            peer.sendall(unasked)

    with serving(short_dir / "server", talk), MessageClient(short_dir / "server") as client:
        began = time.monotonic()
        with pytest.raises((TimeoutError, RemoteDisconnectedError, MessageError)):
            client.send("hello", timeout=0.3)
        assert time.monotonic() - began < 1
        ending.set()


def test_large_requests_of_many_threads_never_interleave(short_dir: Path) -> None:
    """They are more than the kernel takes at once; nothing may come between the halves of one."""

    def talk(peer: socket.socket) -> None:
        while header := wire.receive_exactly(peer, 32):
            kind, flags, length, tag, magic, _ = wire.HEADER.unpack(header)
            assert magic == wire.MAGIC
            first, *others = set(wire.receive_exactly(peer, length))
            assert not others
            send(peer, Frame(kind, bytes([first]), flags, tag))

    write, between = StreamSocket.write_vector, list[Future[Any]]()

    def interrupted(stream: StreamSocket, buffers: Any) -> int:
        """While a large one is with the kernel, which takes a part of it, another thread sends a small one."""
        count = write(stream, buffers)
        if count < sum(map(len, buffers)) and not between:
            Worker(lambda: between.append(client.submit(b"b" * 64, timeout=PATIENCE))).outcome()
        return count

    with serving(short_dir / "server", talk) as errors, MessageClient(short_dir / "server") as client:
        assert client.send(b"s" * 64, timeout=PATIENCE) == b"s"
        with mock.patch.object(StreamSocket, "write_vector", interrupted):
            assert client.send(b"a" * 600_000, timeout=PATIENCE) == b"a"
            assert settled(between) == [b"b"]
        threads = [
            Worker(lambda thread=thread: [client.send(bytes(300_000 - thread), timeout=PATIENCE) for _ in range(5)])  # type: ignore[misc]
            for thread in range(6)
        ]
        for thread in threads:
            assert thread.outcome() == [b"\0"] * 5
    assert not errors


def test_calls_that_were_given_up_are_not_kept_for_a_server_that_never_reads(short_dir: Path) -> None:
    """Each would hold its megabyte until the connection ends; two of the largest messages may wait."""
    ending = threading.Event()
    payloads = [bytes(1 << 20) for _ in range(41)]
    with serving(short_dir / "server", lambda peer: ending.wait(PATIENCE)):
        with contextlib.closing(MessageClient(short_dir / "server")) as client:
            for number in range(0, 40, 2):
                for call in (client.send, client.submit):
                    with contextlib.suppress(TimeoutError, OSError, RuntimeError):
                        call(payloads[number + (call == client.submit)], timeout=0.005)
            gc.collect()
            counts = [sys.getrefcount(payload) for payload in payloads]
            ending.set()
            assert sum(count > counts[40] for count in counts) <= 14  # of the one that was never sent


def test_close_from_another_thread_ends_every_wait(short_dir: Path) -> None:
    asked = threading.Semaphore(0)

    def talk(peer: socket.socket) -> None:
        for _ in requests(peer):
            asked.release()

    with serving(short_dir / "server", talk):
        client = MessageClient(short_dir / "server")
        senders = [Worker(lambda: client.send("hello")) for _ in range(4)]
        futures = [client.submit("hello") for _ in range(4)]
        for _ in range(8):
            assert asked.acquire(timeout=PATIENCE)
        began = time.monotonic()
        client.close()
        for sender in senders:
            with pytest.raises((OSError, RuntimeError)):
                sender.outcome()
        assert all(outcome == "cancelled" or isinstance(outcome, BaseException) for outcome in settled(futures))
        assert time.monotonic() - began < 1
        with pytest.raises((OSError, RuntimeError)):
            client.send("hello")


# Replies that are strange.


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        (Frame(STRING, b"no nul"), "no nul"),
        (Frame(STRING, b""), ""),
        (Frame(STRING, b"a\0b\0"), "a\0b"),
        (Frame(STRING, b"two\0\0"), "two\0"),
        (Frame(BINARY, b""), b""),
        (Frame(wire.CLOSE, b""), None),
        (BLANK, None),
        (Frame(STRING, b"dropped\0", wire.DISCARD), None),
        (Frame(BINARY, b"bits", 0xFFFFFFE0), b"bits"),
    ],
    ids=lambda value: repr(value)[:30],
)
@pytest.mark.parametrize("with_tag", [True, False])
def test_values_of_strange_replies(answer: Frame, value: object, with_tag: bool, short_dir: Path) -> None:
    def talk(peer: socket.socket) -> None:
        for frame in requests(peer):
            send(peer, wire.tagged(answer, frame.word) if with_tag else answer)

    with serving(short_dir / "server", talk), MessageClient(short_dir / "server", timeout=PATIENCE) as client:
        assert client.send("hello") == value
        assert client.submit("hello").result(PATIENCE) == value


@pytest.mark.parametrize("payload", [b"", b"\0", b"no nul", b"ValueError: no\0", "ü" * 5000])
@pytest.mark.parametrize("kind", [STRING, BINARY])
def test_failures_of_any_form_are_failures(kind: int, payload: bytes | str, short_dir: Path) -> None:
    octets = payload.encode() if isinstance(payload, str) else payload

    def talk(peer: socket.socket) -> None:
        for frame in requests(peer):
            send(peer, wire.tagged(Frame(kind, octets, FAILED), frame.word))

    with serving(short_dir / "server", talk), MessageClient(short_dir / "server", timeout=PATIENCE) as client:
        with pytest.raises(RemoteHandlerError):
            client.send("hello")
        assert isinstance(client.submit("hello").exception(PATIENCE), RemoteHandlerError)


def test_a_refusal_is_read_though_the_sending_failed(short_dir: Path) -> None:
    """HAZARDS 23, the client's half: the server says why, and hangs up with 4 MiB unread."""

    def talk(peer: socket.socket) -> None:
        peer.recv(1000)
        send(peer, wire.string("MessageTooLargeError: far too much", FAILED))
        peer.shutdown(socket.SHUT_WR)
        threading.Event().wait(0.05)

    seen = 0
    with serving(short_dir / "server", talk), MessageClient(short_dir / "server", timeout=PATIENCE) as client:
        for _ in range(10):
            try:
                client.send(bytes(4 << 20))
            except RemoteHandlerError as error:
                seen += "far too much" in str(error)
            except RemoteDisconnectedError:
                pass
    assert seen == 10


def test_no_thread_is_left_waiting_when_the_reader_gives_up(short_dir: Path) -> None:
    """The caller that reads for all runs out of time: somebody else must read on, or the others wait for ever."""

    def talk(peer: socket.socket) -> None:
        held: list[Frame] = []
        for frame in requests(peer):
            held.append(frame)
            if len(held) == 9:
                threading.Event().wait(0.15)
                send(peer, *map(replying, held))

    with serving(short_dir / "server", talk), MessageClient(short_dir / "server") as client:
        impatient = Worker(lambda: client.send("first", timeout=0.05))
        until(lambda: client.stats().in_flight == 1)
        patient = [Worker(lambda n=n: client.send(f"{n}", timeout=PATIENCE)) for n in range(4)]  # type: ignore[misc]
        futures = [client.submit(f"f{n}", timeout=PATIENCE) for n in range(4)]
        with pytest.raises(TimeoutError):
            impatient.outcome()
        assert [worker.outcome() for worker in patient] == [f"{n}" for n in range(4)]
        assert settled(list(futures)) == [f"f{n}" for n in range(4)]
