"""The hooks of a MessageServer: what they are told, by which connection, and that they may stop the server."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bbipc import MessageTooLargeError, RemoteDisconnectedError, TruncatedMessageError
from pool import MessageServer, Request, StopReport
from tests.support.makers import PATIENCE, Namespace, Worker, make_namespace
from tests.support.serving import at_end, until
from tests.support.wire import (
    BLANK,
    CLOSE,
    DISCARD,
    NO_RESPONSE,
    Frame,
    is_failure,
    receive,
    receive_all,
    string,
    tagged,
)

HELLO = string("hello")
every_runner = pytest.mark.parametrize("kind", ["own pool", "inline", "executor"])


@pytest.fixture
def local(short_dir: Path) -> Namespace:
    return make_namespace("local", short_dir)


@pytest.fixture
def ipv4(short_dir: Path) -> Namespace:
    return make_namespace("ipv4", short_dir)


class Told:
    """A hook for errors that remembers."""

    def __init__(self) -> None:
        self.errors: list[tuple[BaseException, Any]] = []

    def __call__(self, error: BaseException, peer: Any) -> None:
        self.errors.append((error, peer))

    def one(self) -> tuple[BaseException, Any]:
        until(lambda: bool(self.errors))
        ((error, peer),) = self.errors
        return error, peer


@contextlib.contextmanager
def served(
    namespace: Namespace, kind: str, handler: Any, **options: Any
) -> Iterator[tuple[MessageServer, socket.socket]]:
    with contextlib.ExitStack() as stack:
        workers: Any = {"own pool": None, "inline": kind}.get(kind)
        if kind == "executor":
            workers = stack.enter_context(ThreadPoolExecutor(2))
        listening = namespace.make_server()
        server = stack.enter_context(MessageServer(listening, handler, workers=workers, **options))
        yield server, stack.enter_context(namespace.connect_plainly(listening))


def echo(request: Request) -> Any:
    return request.value


class Failing:
    """A handler that fails, at once or later."""

    def __init__(self, *, later: bool = False) -> None:
        self.later = later
        self.futures: list[Future[bytes]] = []

    def __call__(self, request: Request) -> Future[bytes]:
        if not self.later:
            raise ValueError("it fails")
        self.futures.append(Future())
        return self.futures[-1]


class Stopping:
    """A hook that stops the server, and remembers how long that took."""

    def __init__(self, timeout: float | None) -> None:
        self.timeout = timeout
        self.server: MessageServer
        self.done: Future[tuple[StopReport, float]] = Future()

    def __call__(self, *_: object) -> None:
        begin = time.monotonic()
        report = self.server.stop(self.timeout)
        self.done.set_result((report, time.monotonic() - begin))


# A hook may stop the server.


@every_runner
@pytest.mark.parametrize("timeout", [1.5, None])
@pytest.mark.parametrize("what", ["garbage", "too large", "raises", "raises later"])
def test_a_hook_may_stop_the_server_and_the_peer_is_told_all_the_same(
    local: Namespace, kind: str, timeout: float | None, what: str
) -> None:
    said = {"garbage": b"garbage!" * 8, "too large": string("x" * 200).encoded()}.get(what, HELLO.encoded())
    handler, hook = Failing(later=what == "raises later"), Stopping(timeout)
    with served(local, kind, handler, on_error=hook, max_message_size=100) as (hook.server, peer):
        with local.connect_plainly(hook.server.servers[0]) as idle:  # type: ignore[arg-type]
            until(lambda: hook.server.stats().connections == 2)
            peer.sendall(said)
            if what == "raises later":
                until(lambda: bool(handler.futures))
                handler.futures[0].set_exception(ValueError("it fails"))
            report, seconds = hook.done.result(1)
            assert seconds < 1
            assert report in (StopReport(drained=2), StopReport())  # on the poller thread it only begins
            (failure,) = receive_all(peer)
            assert is_failure(failure)
            assert at_end(idle)
        peer.close()
        assert hook.server.stop() == StopReport(drained=2)


@pytest.mark.parametrize("what", ["garbage", "raises"])
def test_on_the_poller_thread_a_stop_waits_for_all_that_was_read(local: Namespace, what: str) -> None:
    """It only begins there, so its own connection need not be left behind."""

    def handler(request: Request) -> Any:
        if request.value == "bad":
            raise ValueError("it fails")
        return request.value

    good = [tagged(HELLO, number) for number in range(100)]  # more than one turn
    said = b"".join(frame.encoded() for frame in good)
    hook = Stopping(5)
    with served(local, "inline", handler, on_error=hook, max_in_flight=200) as (hook.server, peer):
        peer.sendall(said + b"garbage!" * 8 if what == "garbage" else tagged(string("bad"), 999).encoded() + said)
        replies = receive_all(peer)
        assert [frame for frame in replies if frame in good] == good
        assert len(replies) == 101
        peer.close()
        assert hook.server.stop() == StopReport(drained=1)
        assert hook.server.stats().dropped_requests == 0


def test_a_hook_on_the_thread_of_the_end_does_not_wait_for_itself(local: Namespace) -> None:
    """Whoever concludes a connection calls its hook: that may be who ends all."""

    class Member:
        def end(self) -> None:
            hook()
            server._service.table.left(self)  # type: ignore[arg-type]

    hook = Stopping(None)
    with served(local, "own pool", echo) as (server, _):
        hook.server = server
        until(lambda: server.stats().connections == 1)
        assert server._service.table.add(Member())  # type: ignore[arg-type]
        begin = time.monotonic()
        report = server.stop(1)
        assert time.monotonic() - begin < 1
        assert hook.done.done()
        assert report == StopReport(drained=2)


def test_a_handler_inside_of_another_ones_hook_may_stop_it(local: Namespace) -> None:
    """It settles the future of another connection: neither is waited for."""
    futures: list[Future[bytes]] = []

    def handler(request: Request) -> Any:
        if request.value == "later":
            futures.append(Future())
            return futures[0]
        futures[0].set_exception(ValueError("it fails"))
        return "done"

    hook = Stopping(1.5)
    with served(local, "own pool", handler, on_error=hook) as (hook.server, peer):
        peer.sendall(string("later").encoded())
        until(lambda: bool(futures))
        with local.connect_plainly(hook.server.servers[0]) as other:  # type: ignore[arg-type]
            other.sendall(string("now").encoded())
            assert hook.done.result(1)[1] < 1
            (failure,) = receive_all(peer)
            assert is_failure(failure)
            assert receive_all(other) == [string("done")]


# What it is told of errors.


def reset(peer: socket.socket) -> None:
    """Close it so that the other side is told of a reset."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


@every_runner
@pytest.mark.parametrize("size", [20, 35])
@pytest.mark.parametrize("how", ["reset", "end"])
def test_who_leaves_in_the_middle_of_a_message_is_told_of(
    ipv4: Namespace, kind: str, size: int, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    told = Told()
    with caplog.at_level(logging.DEBUG), served(ipv4, kind, echo, on_error=told) as (server, peer):
        here = peer.getsockname()
        peer.sendall(HELLO.encoded() + HELLO.encoded()[:size])
        assert receive(peer) == HELLO
        until(lambda: all(member.part == size for member in server._service.table.members()))
        reset(peer) if how == "reset" else peer.close()
        error, who = told.one()
        assert isinstance(error, TruncatedMessageError)
        assert (error.have, who) == (size, here)
        assert isinstance(error.__cause__, RemoteDisconnectedError if how == "reset" else type(None))
        until(lambda: server.stats().connections == 0)
        assert (server.stats().protocol_errors, server.stats().unverified) == (1, 0)
    assert [record.levelname for record in caplog.records] == ["DEBUG"]


@every_runner
@pytest.mark.parametrize("how", ["reset", "end"])
def test_who_leaves_between_two_messages_is_nobodys_concern(ipv4: Namespace, kind: str, how: str) -> None:
    told = Told()
    with served(ipv4, kind, echo, on_error=told) as (server, peer):
        peer.sendall(HELLO.encoded())
        assert receive(peer) == HELLO
        reset(peer) if how == "reset" else peer.close()
        until(lambda: server.stats().connections == 0)
        assert server.stats().protocol_errors == 0
    assert told.errors == []


@every_runner
def test_a_stop_in_the_middle_of_a_message_is_no_error_of_the_peer(local: Namespace, kind: str) -> None:
    told = Told()
    with served(local, kind, echo, on_error=told) as (server, peer):
        peer.sendall(HELLO.encoded()[:20])
        until(lambda: [member.part for member in server._service.table.members()] == [20])
        server.stop()
        assert server.stats().protocol_errors == 0
    assert told.errors == []


CUTS: list[Any] = [
    ("header_timeout", {"header_timeout": 0.1}, HELLO.encoded()[:20]),
    ("body_timeout", {"body_timeout": 0.1, "min_body_rate": 1000}, HELLO.encoded()[:35]),
    ("stall_timeout", {"stall_timeout": 0.1}, string("much").encoded()),
    ("max_unverified", {"max_unverified": 1}, string("x" * 9000).encoded()[:8000]),
]


@every_runner
@pytest.mark.parametrize(("limit", "options", "said"), CUTS, ids=[limit for limit, _, _ in CUTS])
def test_who_is_cut_is_told_of(ipv4: Namespace, kind: str, limit: str, options: Any, said: bytes) -> None:
    told = Told()

    def handler(request: Request) -> bytes:
        return bytes(5_000_000)

    with served(ipv4, kind, handler, on_error=told, **options) as (server, peer):
        peer.sendall(said)
        if limit == "max_unverified":  # a connection that is read once more finds that it has to deliver
            until(lambda: [member.part for member in server._service.table.members()] == [len(said)])
            peer.sendall(b"x")
        error, who = told.one()
        assert isinstance(error, TimeoutError)
        assert str(error).startswith(f"{limit}: ")
        assert who == peer.getsockname()
        until(lambda: server.stats().connections == 0)


def test_an_idle_connection_is_closed_without_a_word(local: Namespace) -> None:
    told = Told()
    with served(local, "inline", echo, on_error=told, idle_timeout=0.1) as (server, peer):
        assert at_end(peer)
        until(lambda: server.stats().cut_for_idle == 1)
    assert told.errors == []


@every_runner
def test_whose_request_has_failed(ipv4: Namespace, kind: str) -> None:
    told = Told()
    with served(ipv4, kind, Failing(), on_error=told) as (_, peer):
        peer.sendall(HELLO.encoded())
        failure = receive(peer)
        assert failure is not None
        assert is_failure(failure)
        error, who = told.one()
        assert isinstance(error, ValueError)
        assert who == peer.getsockname()


def test_a_local_peer_is_told_by_its_credentials(local: Namespace) -> None:
    told = Told()
    with served(local, "own pool", echo, on_error=told, max_message_size=9) as (_, peer):
        peer.sendall(string("x" * 9).encoded())
        error, who = told.one()
        assert isinstance(error, MessageTooLargeError)
        assert (who.pid, who.uid) == (os.getpid(), os.geteuid())


# What it is told of a CLOSE.


@every_runner
@pytest.mark.parametrize("flags", [0, NO_RESPONSE])
def test_a_close_is_told_once_and_behind_what_came_before_it(ipv4: Namespace, kind: str, flags: int) -> None:
    seen: list[Any] = []

    def handler(request: Request) -> Any:
        seen.append(request.value)
        return request.value

    with served(ipv4, kind, handler, on_close=seen.append) as (server, peer):
        here = peer.getsockname()
        close = Frame(CLOSE, b"with words", flags).encoded()
        peer.sendall(HELLO.encoded() * 3 + close + close + HELLO.encoded())
        assert len(receive_all(peer)) == 3 + (not flags)
        peer.close()
        until(lambda: server.stats().connections == 0)
        assert seen == ["hello"] * 3 + [here]


@every_runner
def test_an_end_without_a_close_is_not_told_as_one(local: Namespace, kind: str) -> None:
    seen: list[Any] = []
    with served(local, kind, echo, on_close=seen.append) as (server, peer):
        peer.sendall(HELLO.encoded() + Frame(CLOSE, b"", DISCARD).encoded())
        assert receive(peer) == HELLO
        peer.close()
        until(lambda: server.stats().connections == 0)
    assert seen == []


@every_runner
@pytest.mark.parametrize("timeout", [1.5, None])
def test_the_hook_for_a_close_may_stop_the_server(local: Namespace, kind: str, timeout: float | None) -> None:
    hook = Stopping(timeout)
    with served(local, kind, echo, on_close=hook) as (hook.server, peer):
        peer.sendall(HELLO.encoded() + Frame(CLOSE, b"").encoded())
        assert hook.done.result(1)[1] < 1
        assert receive_all(peer) == [HELLO, BLANK]
        peer.close()
        assert hook.server.stop() == StopReport(drained=1)


@every_runner
def test_a_hook_for_a_close_that_fails_ends_nothing(
    local: Namespace, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    def hook(peer: Any) -> None:
        raise SystemExit

    with served(local, kind, echo, on_close=hook) as (server, peer):
        peer.sendall(Frame(CLOSE, b"").encoded())
        assert len(receive_all(peer)) == 1
        with local.connect_plainly(server.servers[0]) as other:  # type: ignore[arg-type]
            other.sendall(HELLO.encoded())
            assert receive(other) == HELLO
        assert server.stats().hook_errors == 1
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_a_stop_by_whoever_settles_the_futures_of_all_only_begins(ipv4: Namespace) -> None:
    """He would wait for himself: the other connection's reply is his to settle."""
    replies: dict[str, Future[str]] = {}

    def handler(request: Request) -> Future[str]:
        return replies.setdefault(str(request.value), Future())

    listening, reports = ipv4.make_server(), list[StopReport]()
    with MessageServer(listening, handler, on_error=lambda error, peer: reports.append(server.stop(None))) as server:
        with ipv4.connect_plainly(listening) as one, ipv4.connect_plainly(listening) as other:
            one.sendall(string("bad").encoded())
            other.sendall(string("good").encoded())
            until(lambda: len(replies) == 2)

            def settle() -> None:
                replies["bad"].set_exception(LookupError())
                replies["good"].set_result("good")

            Worker(settle).outcome()
            failure, reply = receive(one), receive(other)
            assert failure is not None
            assert is_failure(failure)
            assert reply == string("good")
        assert reports == [StopReport()]
        assert server.stop() == StopReport(drained=2)


def test_replies_leave_while_a_close_is_told(local: Namespace) -> None:
    """The peer takes them: nothing stands still, and nobody goes round in circles."""
    large, entered, go = b"L" * 4_000_000, threading.Event(), threading.Event()
    released: list[bool] = []

    def on_close(peer: Any) -> None:
        entered.set()
        released.append(go.wait(PATIENCE))

    with served(local, "own pool", lambda request: large, on_close=on_close) as (_, peer):
        peer.sendall(HELLO.encoded() + Frame(CLOSE).encoded())
        assert entered.wait(PATIENCE)
        reply = receive(peer)
        assert reply is not None
        assert reply.payload == large
        go.set()
        assert receive(peer) == BLANK
        assert at_end(peer)
    assert released == [True]  # the reply did not wait for the hook
