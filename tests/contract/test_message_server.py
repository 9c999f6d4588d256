"""MessageServer, the same over TCP and local connections, wherever its handlers run.

The clients are plain sockets, and their frames are made and read by ``tests/support/wire.py``.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, Literal

import pytest

from bbipc import MessageError
from pool import MessageServer, Request, WorkerPool
from tests.support import wire
from tests.support.makers import PATIENCE, Namespace
from tests.support.serving import at_end, until
from tests.support.wire import BLANK, DISCARD, NO_RESPONSE, Frame, is_failure, receive, receive_all, string, tagged

Workers = WorkerPool | Executor | Literal["inline"]


@pytest.fixture(params=["workers", "inline", "executor"])
def workers(request: pytest.FixtureRequest) -> Iterator[Workers]:
    if request.param == "inline":
        yield "inline"
        return
    with WorkerPool(4) if request.param == "workers" else ThreadPoolExecutor(4) as pool:
        yield pool


def answer(request: Request) -> Any:
    """What is asked for; anything else comes back."""
    value = request.value
    if value == "nothing":
        return None
    if value == "fail":
        raise KeyError("secret")
    if value == "respond":
        request.respond("early")
        return "too late"
    return value


class Served:
    def __init__(self, namespace: Namespace, workers: Workers, **options: Any) -> None:
        self.errors: list[tuple[BaseException, object]] = []
        self.namespace = namespace
        self.listening = namespace.make_server()
        options.setdefault("handler", answer)
        self.server = MessageServer(
            self.listening, workers=workers, on_error=lambda error, peer: self.errors.append((error, peer)), **options
        )

    def connect(self) -> socket.socket:
        return self.namespace.connect_plainly(self.listening)


@contextlib.contextmanager
def served(namespace: Namespace, workers: Workers, **options: Any) -> Iterator[tuple[Served, socket.socket]]:
    it = Served(namespace, workers, **options)
    with it.server, it.connect() as peer:
        yield it, peer
    assert it.server.stats().connections == 0


def ask(peer: socket.socket, *frames: Frame) -> list[Frame | None]:
    """Send *frames* in one piece; one reply for each."""
    peer.sendall(b"".join(frame.encoded() for frame in frames))
    return [receive(peer) for _ in frames]


def test_values_come_back_as_they_are(namespace: Namespace, workers: Workers) -> None:
    with served(namespace, workers) as (it, peer):
        for frame in (string("hello"), string(""), string("grüß"), Frame(wire.BINARY, b"\0\1"), Frame(wire.BINARY)):
            assert ask(peer, frame) == [frame]
        assert ask(peer, Frame(wire.STRING, b"no nul")) == [string("no nul")]
        until(lambda: it.server.stats().replies == 6)
        assert (it.server.stats().requests, it.server.stats().connections) == (6, 1)


def test_large_values_go_through_a_full_kernel(namespace: Namespace, workers: Workers) -> None:
    frame = Frame(wire.BINARY, bytes(range(256)) * 4096)
    with served(namespace, workers, handler=lambda request: request.payload) as (_, peer):
        data = frame.encoded()
        peer.sendall(data)
        assert wire.receive_exactly(peer, len(data)) == data


def test_untagged_requests_are_answered_in_order(namespace: Namespace, workers: Workers) -> None:
    frames = [string(str(number), DISCARD if number % 5 == 0 else 0) for number in range(300)]
    with served(namespace, workers) as (_, peer):
        assert ask(peer, *frames) == [BLANK if frame.flags else frame for frame in frames]


def test_tags_come_back(namespace: Namespace, workers: Workers) -> None:
    frames = [tagged(string(str(number)), number * 7_000_001 % 2**32) for number in range(300)]
    with served(namespace, workers) as (_, peer):
        assert sorted(ask(peer, *frames)) == sorted(frames)  # type: ignore[type-var]


def test_the_reserved_word_without_the_bit_means_nothing(namespace: Namespace, workers: Workers) -> None:
    with served(namespace, workers) as (_, peer):
        assert ask(peer, string("x")._replace(word=77)) == [string("x")]


def test_no_value_is_a_blank_response(namespace: Namespace, workers: Workers) -> None:
    with served(namespace, workers) as (_, peer):
        assert ask(peer, string("nothing")) == [BLANK]
        assert ask(peer, tagged(string("nothing"), 5)) == [tagged(BLANK, 5)]


def test_who_wants_no_response_gets_none(namespace: Namespace, workers: Workers) -> None:
    silent = [string(text, NO_RESPONSE) for text in ("x", "nothing", "fail", "respond")]
    with served(namespace, workers) as (it, peer):
        peer.sendall(b"".join(frame.encoded() for frame in silent))
        peer.sendall(string("x", NO_RESPONSE | DISCARD).encoded())
        assert ask(peer, string("last")) == [string("last")]
        until(lambda: it.server.stats().replies == 1)
        assert [type(error).__name__ for error, _ in it.errors] == ["KeyError", "ResponseDisabledError"]


def test_what_is_to_be_discarded_is_not_for_the_handler(namespace: Namespace, workers: Workers) -> None:
    called = []

    def handler(request: Request) -> None:
        called.append(request.value)

    with served(namespace, workers, handler=handler) as (_, peer):
        assert ask(peer, string("x", DISCARD)) == [BLANK]
        assert ask(peer, tagged(string("x", DISCARD), 9)) == [tagged(BLANK, 9)]
    assert called == []


def test_a_failure_is_told_by_name(namespace: Namespace, workers: Workers) -> None:
    with served(namespace, workers) as (it, peer):
        (first,) = ask(peer, string("fail"))
        (second,) = ask(peer, tagged(string("fail"), 3))  # together they may be answered in any order
        assert first is not None
        assert is_failure(first)
        assert first.text == "KeyError: 'secret'"
        assert second is not None
        assert is_failure(second, 3)
        assert ask(peer, string("x")) == [string("x")]
        assert [type(error) for error, _ in it.errors] == [KeyError, KeyError]
        assert it.server.stats().handler_errors == 2


def test_an_early_response_is_the_only_one(namespace: Namespace, workers: Workers) -> None:
    with served(namespace, workers) as (_, peer):
        assert ask(peer, string("respond"), string("x")) == [string("early"), string("x")]


def test_a_response_may_come_later(namespace: Namespace, workers: Workers) -> None:
    futures: list[Future[str]] = []

    def handler(request: Request) -> Future[str]:
        futures.append(Future())
        return futures[-1]

    with served(namespace, workers, handler=handler) as (it, peer):
        peer.sendall(string("one").encoded() + tagged(string("two"), 2).encoded() + string("three").encoded())
        until(lambda: len(futures) == 2)
        until(lambda: it.server.stats().waiting == 1)  # who has read may still be about to put it there
        assert it.server.stats().in_flight == 2
        futures[1].set_exception(ValueError("no"))
        failure = receive(peer)
        assert failure is not None
        assert is_failure(failure, 2)
        futures[0].set_result("1")
        assert receive(peer) == string("1")
        until(lambda: len(futures) == 3)
        futures[2].set_result("3")
        assert receive(peer) == string("3")


def test_a_close_is_answered_behind_everything(namespace: Namespace, workers: Workers) -> None:
    frames = [tagged(string(str(number)), number) for number in range(50)]
    with served(namespace, workers) as (_, peer):
        peer.sendall(b"".join(frame.encoded() for frame in frames))
        peer.sendall(Frame(wire.CLOSE, b"why").encoded() + string("behind").encoded())
        replies = receive_all(peer)
        assert sorted(replies[:-1]) == sorted(frames)
        assert replies[-1] == BLANK


def test_a_close_may_want_no_response(namespace: Namespace, workers: Workers) -> None:
    with served(namespace, workers) as (_, peer):
        peer.sendall(string("x").encoded() + Frame(wire.CLOSE, b"", NO_RESPONSE).encoded())
        assert receive_all(peer) == [string("x")]


def test_a_close_ends_no_other_connection(namespace: Namespace, workers: Workers) -> None:
    with served(namespace, workers) as (it, peer), it.connect() as other:
        assert ask(other, Frame(wire.CLOSE)) == [BLANK]
        assert at_end(other)
        assert ask(peer, string("x")) == [string("x")]
        assert not it.server.stopping


def test_a_close_may_stop_the_server(namespace: Namespace, workers: Workers) -> None:
    with served(namespace, workers, stop_on_close=True) as (it, peer), it.connect() as other:
        assert ask(other, Frame(wire.CLOSE)) == [BLANK]
        assert at_end(other)
        assert at_end(peer)
        until(lambda: it.server.stopping)


def test_half_a_close_still_gets_its_answers(namespace: Namespace, workers: Workers) -> None:
    with served(namespace, workers) as (it, peer):
        peer.sendall(string("one").encoded() + string("two").encoded())
        peer.shutdown(socket.SHUT_WR)
        assert receive_all(peer) == [string("one"), string("two")]
        until(lambda: it.server.stats().connections == 0)


@pytest.mark.parametrize(
    "behind", [b"garbage" * 10, string("bad").encoded()[:-2] + b"!\0", string("cut").encoded()[:20]]
)
def test_what_is_no_message_ends_its_connection(namespace: Namespace, workers: Workers, behind: bytes) -> None:
    """A bad header, a bad checksum, an end in the middle: what came before is answered, then the error is told."""
    with served(namespace, workers) as (it, peer), it.connect() as other:
        peer.sendall(string("good").encoded() + behind)
        peer.shutdown(socket.SHUT_WR)
        good, bad = receive_all(peer)
        assert good == string("good")
        assert is_failure(bad)
        assert ask(other, string("x")) == [string("x")]
        until(lambda: it.server.stats().connections == 1)
        assert it.server.stats().protocol_errors == 1
        ((error, _),) = it.errors
        assert isinstance(error, MessageError)


def test_what_is_too_large_is_refused_by_its_tag(namespace: Namespace, workers: Workers) -> None:
    with served(namespace, workers, max_message_size=100) as (it, peer):
        for frame in (Frame(wire.BINARY, bytes(100)), tagged(Frame(wire.BINARY, bytes(100)), 1)):
            assert ask(peer, frame) == [frame]
        peer.sendall(tagged(Frame(wire.BINARY, bytes(101)), 12).header())
        (failure,) = receive_all(peer)
        assert is_failure(failure, 12)
        assert "MessageTooLargeError" in failure.text
        assert it.server.stats().protocol_errors == 1


def test_a_client_that_vanishes_is_nobodys_concern(namespace: Namespace, workers: Workers) -> None:
    with served(namespace, workers) as (it, peer):
        for _ in range(20):
            with it.connect() as other:
                other.sendall(string("x").encoded() * 3)
        until(lambda: it.server.stats().connections == 1)
        assert it.server.stats().in_flight == 0
        assert ask(peer, string("x")) == [string("x")]


def test_silent_requests_of_who_leaves_at_once_are_handled(namespace: Namespace, workers: Workers) -> None:
    handled: list[object] = []
    with served(namespace, workers, handler=lambda request: handled.append(request.value)) as (it, _):
        with it.connect() as other:
            other.sendall(b"".join(string(str(number), NO_RESPONSE).encoded() for number in range(200)))
        until(lambda: len(handled) == 200)
    assert handled == [str(number) for number in range(200)]


def test_who_is_at_the_other_end(namespace: Namespace, workers: Workers) -> None:
    peers: list[Any] = []

    def handler(request: Request) -> None:
        peers.append(request.peer)

    with served(namespace, workers, handler=handler) as (_, peer):
        ask(peer, string("x"))
        if namespace.name == "local":
            assert [(one.uid, one.gid) for one in peers] == [(os.geteuid(), os.getegid())]
        else:
            assert peers == [peer.getsockname()[:2]]


def test_stop_answers_what_was_read(namespace: Namespace, workers: Workers) -> None:
    futures: list[Future[str]] = []

    def handler(request: Request) -> Future[str]:
        futures.append(Future())
        return futures[-1]

    with served(namespace, workers, handler=handler) as (it, peer), ThreadPoolExecutor(1) as other:
        peer.sendall(tagged(string("x"), 1).encoded())
        until(lambda: len(futures) == 1)
        report = other.submit(it.server.stop, PATIENCE)
        until(lambda: it.server.stopping)
        assert not report.done()
        futures[0].set_result("done")
        assert receive_all(peer) == [tagged(string("done"), 1)]
        outcome = report.result(PATIENCE)
        assert (outcome.drained, outcome.forced, outcome.abandoned) == (1, 0, 0)
