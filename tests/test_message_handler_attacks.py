"""A MessageServer whose handlers misbehave, and whose threads meet: HAZARDS 51, and what a race can do to a reply."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bbipc import ResponseAlreadySentError, ResponseDisabledError
from pool import Request, WorkerPool
from tests.support import wire
from tests.support.attacks import HELLO, Gate, Workers, either_way, opened, served, switch_interval
from tests.support.makers import PATIENCE, Worker
from tests.support.serving import until
from tests.support.wire import BLANK, CLOSE, NO_RESPONSE, Frame, tagged

# Replies: one exactly (HAZARDS 51).


def behave(request: Request) -> Any:
    """As the text says; what is refused is what must be."""
    text = str(request.value)
    if "respond" in text:
        if request.no_response:
            with pytest.raises(ResponseDisabledError):
                request.respond("no")
        else:
            request.respond("responded " + text)
            with pytest.raises(ResponseAlreadySentError):
                request.respond("twice")
    if "raise" in text:
        raise LookupError(text)
    if "bad" in text:
        return {"embedded": "a\0b", "object": object(), "large": bytes(3 << 20), "surrogate": "\udc80"}[
            text.rsplit(maxsplit=1)[-1]
        ]
    return None if "blank" in text else "returned " + text


def expected(text: str) -> str | None:
    """``None``: blank; "!": a failure."""
    if "respond" in text:
        return "responded " + text
    if "raise" in text or "bad" in text:
        return "!"
    return None if "blank" in text else "returned " + text


BEHAVIOURS = ["plain", "blank", "respond", "raise", "respond raise", "respond blank"]
BEHAVIOURS += ["bad embedded", "bad object", "bad large", "bad surrogate", "respond bad object"]


def check(frame: Frame | None, text: str, tag: int | None = None) -> None:
    assert frame is not None
    wanted = expected(text)
    bit, word = (0, 0) if tag is None else (wire.TAGGED, tag)
    if wanted == "!":
        assert wire.is_failure(frame, tag), frame
        assert "Traceback" not in frame.text
        assert "/" not in frame.text
    elif wanted is None:
        assert frame == BLANK._replace(flags=BLANK.flags | bit, word=word)
    else:
        assert frame == wire.string(wanted, bit, word)


@either_way
@pytest.mark.parametrize("seed", range(2))
def test_random_behaviour_gives_one_reply_each(seed: int, workers: Workers, short_dir: Path) -> None:
    """300 requests at once, some with a tag, some that want no response: one for each other, in order or by tag."""
    dice = random.Random(seed)
    plan = [(dice.choice(BEHAVIOURS), dice.random() < 0.3, dice.random() < 0.5) for _ in range(300)]
    with served(short_dir, behave, workers=workers, max_message_size=1 << 20) as it, it.connect() as peer:
        frames = [
            wire.string(text, NO_RESPONSE * mute | wire.TAGGED * with_tag, number * with_tag)
            for number, (text, mute, with_tag) in enumerate(plan)
        ]
        sender = Worker(lambda: peer.sendall(b"".join(frame.encoded() for frame in frames)))
        in_order = [text for text, mute, with_tag in plan if not mute and not with_tag]
        by_tag = {number: text for number, (text, mute, with_tag) in enumerate(plan) if not mute and with_tag}
        for _ in range(len(in_order) + len(by_tag)):
            frame = wire.receive(peer)
            if frame is not None and frame.flags & wire.TAGGED:
                check(frame, by_tag.pop(frame.word), frame.word)
            else:
                check(frame, in_order.pop(0))
        sender.outcome()
        peer.shutdown(socket.SHUT_WR)
        assert wire.receive_all(peer) == []


@either_way
@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), RecursionError(), MemoryError()]
)
def test_no_exception_ends_the_server(error: BaseException, workers: Workers, short_dir: Path) -> None:
    def raising(request: Request) -> str:
        if request.value == "raise":
            raise error
        return str(request.value)

    with served(short_dir, raising, workers=workers) as it, it.connect() as peer:
        peer.sendall(wire.string("raise").encoded() + HELLO.encoded())
        frame = wire.receive(peer)
        assert frame is not None
        assert wire.is_failure(frame)
        assert frame.text.startswith(type(error).__name__)
        assert wire.receive(peer) == HELLO


@pytest.fixture
def no_log() -> Iterator[None]:
    """A text that cannot be encoded cannot be reported by pytest-xdist, either."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise ValueError("I have no text")


class Nul(Exception):
    def __str__(self) -> str:
        return "a\0b" + "ü\udc80" * 5000


@either_way
@pytest.mark.parametrize("error", [Unspeakable, Nul])
@pytest.mark.usefixtures("no_log")
def test_an_error_that_cannot_be_told_is_told(error: type[Exception], workers: Workers, short_dir: Path) -> None:
    def raising(request: Request) -> str:
        raise error

    def on_error(error: BaseException, peer: object) -> None:
        raise SystemExit("the hook is broken, too")

    with served(short_dir, raising, workers=workers, on_error=on_error) as it, it.connect() as peer:
        for _ in range(3):
            peer.sendall(HELLO.encoded())
            frame = wire.receive(peer)
            assert frame is not None
            assert wire.is_failure(frame)
            assert len(frame.payload) <= 1024


def test_no_payload_gets_into_a_log(short_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), served(short_dir, behave) as it:
        for piece in (Frame(wire.STRING, b"secret \xff").encoded(), b"secret secret secret secret secret secret"):
            with it.connect() as peer:
                peer.sendall(piece)
                wire.receive_all(peer)
    assert "secret" not in caplog.text


# Handlers that do not return.


@pytest.mark.parametrize("size", [2, 8])
def test_a_handler_that_blocks_holds_up_none_of_63_others(size: int, short_dir: Path) -> None:
    """Of the same connection: the blocked one has a tag, and so have they."""
    gate = Gate()
    with WorkerPool(size) as workers, served(short_dir, gate, workers=workers) as it, it.connect() as peer:
        peer.sendall(tagged(wire.string("wait"), 1000).encoded())
        gate.wait()
        peer.sendall(b"".join(tagged(HELLO, number).encoded() for number in range(63)))
        assert sorted(wire.receive(peer).word for _ in range(63)) == list(range(63))  # type: ignore[union-attr]
        gate.open.set()
        assert wire.receive(peer) == tagged(wire.string("wait"), 1000)


def test_blocked_and_unblocked_requests_in_one_piece(short_dir: Path) -> None:
    """The blocking one is read together with the others, which are answered all the same."""
    gate = Gate()
    with served(short_dir, gate) as it, it.connect() as peer:
        frames = [tagged(HELLO, number) for number in range(64)]
        frames[20] = tagged(wire.string("wait"), 20)
        peer.sendall(b"".join(frame.encoded() for frame in frames))
        answered = {wire.receive(peer).word for _ in range(63)}  # type: ignore[union-attr]
        assert answered == set(range(64)) - {20}
        gate.open.set()
        assert wire.receive(peer) == frames[20]


def test_an_untagged_request_waits_for_the_one_before_and_nothing_else_does(short_dir: Path) -> None:
    gate = Gate()
    with served(short_dir, gate) as it, it.connect() as peer, it.connect() as other:
        peer.sendall(wire.string("wait").encoded())
        gate.wait()
        peer.sendall(HELLO.encoded() + tagged(HELLO, 5).encoded())
        assert wire.receive(peer) == tagged(HELLO, 5)
        other.sendall(HELLO.encoded())
        assert wire.receive(other) == HELLO
        gate.open.set()
        assert wire.receive(peer) == wire.string("wait")
        assert wire.receive(peer) == HELLO


def test_a_close_waits_for_every_answer_before_it(short_dir: Path) -> None:
    """Tagged ones, too; what comes behind the CLOSE is not handled."""
    gate = Gate()
    with served(short_dir, gate) as it, it.connect() as peer:
        peer.sendall(tagged(wire.string("wait"), 1).encoded() + tagged(HELLO, 2).encoded() + Frame(CLOSE).encoded())
        gate.wait()
        assert wire.receive(peer) == tagged(HELLO, 2)
        gate.open.set()
        assert wire.receive_all(peer) == [tagged(wire.string("wait"), 1), BLANK]


def test_a_peer_that_ends_still_gets_every_answer(short_dir: Path) -> None:
    gate = Gate()
    with served(short_dir, gate) as it, it.connect() as peer:
        peer.sendall(wire.string("wait").encoded() + b"".join(tagged(HELLO, tag).encoded() for tag in range(40)))
        peer.shutdown(socket.SHUT_WR)
        gate.wait()
        gate.open.set()
        found = wire.receive_all(peer)
        assert wire.string("wait") in found
        assert sorted(frame.word for frame in found if frame.flags) == list(range(40))


def test_the_same_tag_twice_is_the_clients_own_business(short_dir: Path) -> None:
    with served(short_dir) as it, it.connect() as peer:
        peer.sendall(tagged(HELLO, 7).encoded() * 10)
        assert [wire.receive(peer) for _ in range(10)] == [tagged(HELLO, 7)] * 10


@pytest.mark.parametrize(("limit", "sent", "held"), [(8, 8, False), (8, 9, True), (1, 2, True)])
def test_requests_in_flight_at_the_limit_and_one_past_it(limit: int, sent: int, held: bool, short_dir: Path) -> None:
    gate = Gate()
    with contextlib.ExitStack() as stack:
        workers = stack.enter_context(WorkerPool(16))
        it = stack.enter_context(served(short_dir, gate, workers=workers, max_in_flight=limit))
        peer = stack.enter_context(it.connect())
        stack.callback(gate.open.set)
        for tag in range(sent):
            peer.sendall(tagged(wire.string("wait"), tag).encoded())
            if tag < limit:
                gate.wait()
        if held:
            until(lambda: it.server.stats().held_for_requests > 0)
        assert not gate.entered.acquire(blocking=False)
        assert (it.server.stats().held_for_requests > 0) == held
        gate.open.set()
        assert sorted(wire.receive(peer).word for _ in range(sent)) == list(range(sent))  # type: ignore[union-attr]


# Races.


@pytest.mark.parametrize("rounds", [300])
def test_respond_races_the_handlers_return(rounds: int, short_dir: Path) -> None:
    """From another thread, at the moment when the handler returns: one of both is the reply, and the other is told."""
    outcomes = []
    mailbox: list[Request] = []
    posted, done = threading.Semaphore(0), threading.Event()

    def responder() -> None:
        while posted.acquire(timeout=PATIENCE) and not done.is_set():
            request = mailbox.pop()
            try:
                request.respond("responded")
            except ResponseAlreadySentError:
                outcomes.append("late")
            else:
                outcomes.append("early")

    def handler(request: Request) -> str:
        mailbox.append(request)
        posted.release()
        return "returned"

    with switch_interval(), served(short_dir, handler) as it, it.connect() as peer:
        thread = Worker(responder)
        texts = []
        for tag in range(rounds):
            peer.sendall(tagged(HELLO, tag).encoded())
            frame = wire.receive(peer)
            assert frame is not None
            assert frame.word == tag
            texts.append(frame.text)
            until(lambda: len(outcomes) == len(texts))
        done.set()
        posted.release()
        thread.outcome()
        assert [text == "responded" for text in texts] == [outcome == "early" for outcome in outcomes]


def test_replies_of_many_threads_never_interleave(short_dir: Path) -> None:
    """64 in flight, replies of odd sizes, the kernel's buffer too small: each frame is whole, each tag comes once."""

    def sized(request: Request) -> bytes:
        number = int(str(request.value))
        return bytes([number % 251]) * (number * 997 % 70_000)

    with switch_interval(1e-5), WorkerPool(6) as workers, served(short_dir, sized, workers=workers) as it:
        with it.connect() as peer:
            frames = [tagged(wire.string(str(number)), number) for number in range(300)]
            sender = Worker(lambda: peer.sendall(b"".join(frame.encoded() for frame in frames)))
            left = set(range(300))
            for _ in range(300):
                header = wire.receive_exactly(peer, 32)
                _, flags, length, number, magic, _ = wire.HEADER.unpack(header)
                assert (flags, magic, length) == (wire.TAGGED, wire.MAGIC, number * 997 % 70_000)
                assert wire.receive_exactly(peer, length) == bytes([number % 251]) * length
                left.remove(number)
            sender.outcome()


def test_peers_that_vanish_race_replies_and_the_next_connection(short_dir: Path) -> None:
    """A reply never reaches another connection: 200 that leave at once, each followed by one that looks at its own."""
    with switch_interval(), served(short_dir) as it:
        for number in range(200):
            with it.connect() as leaving:
                leaving.sendall(tagged(wire.string("x" * 5000), number).encoded() * 3)
            with it.connect() as staying:
                staying.sendall(tagged(HELLO, number).encoded())
                staying.shutdown(socket.SHUT_WR)
                assert wire.receive_all(staying) == [tagged(HELLO, number)]


# The end.


@either_way
def test_stop_with_a_stuck_handler_and_unread_replies(workers: Workers, short_dir: Path) -> None:
    gate = Gate()
    with opened(gate), served(short_dir, handler_of(gate), workers=workers) as it:
        with it.connect() as greedy, it.connect() as stuck, it.connect() as idle:
            greedy.sendall(wire.string("big").encoded())
            assert greedy.recv(1)
            idle.sendall(HELLO.encoded())
            assert wire.receive(idle) == HELLO
            stuck.sendall(wire.string("wait").encoded())
            gate.wait()
            began = time.monotonic()
            report = it.server.stop(0.05)
            assert time.monotonic() - began < 3
            assert report.drained + report.forced + report.abandoned == 3
            assert report.forced + report.abandoned >= 1
            assert it.server.stop(0) == report
            gate.open.set()
            assert wire.receive_all(idle) == []


def handler_of(gate: Gate) -> Any:
    return lambda request: bytes(4 << 20) if request.value == "big" else gate(request)


@either_way
def test_stop_from_a_handler(workers: Workers, short_dir: Path) -> None:
    stops: list[Any] = []

    def stopping(request: Request) -> str:
        stops.append(it.server.stop(0.5))
        return "stopped"

    with served(short_dir, stopping, workers=workers) as it, it.connect() as peer:
        peer.sendall(HELLO.encoded())
        wire.receive_all(peer)
        until(lambda: it.server.stopping)
    assert len(stops) == 1


@pytest.mark.skipif(sys.platform == "darwin", reason="fork and threads")
@pytest.mark.filterwarnings("ignore:This process")
def test_a_forked_child_leaves_the_server_alone(short_dir: Path) -> None:
    with served(short_dir) as it, it.connect() as peer:
        peer.sendall(HELLO.encoded())
        assert wire.receive(peer) == HELLO
        child = os.fork()
        if not child:
            try:
                it.server.stop(0.1)
            except RuntimeError:
                os._exit(7)
            except BaseException:
                os._exit(8)
            os._exit(9)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) in {7, 9}
        peer.sendall(HELLO.encoded())
        assert wire.receive(peer) == HELLO
        assert it.works()
