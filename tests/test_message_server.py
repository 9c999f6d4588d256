"""MessageServer: where its handlers run, who waits for whom, and how it begins and ends.

What is the same over every kind of connection stands in ``contract/test_message_server.py``.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bbipc import ChecksumError, ResponseAlreadySentError, SocketClosedError
from pool import MessageServer, Request, StopReport, WorkerPool
from tests.support import wire
from tests.support.makers import PATIENCE, Namespace, Worker, make_namespace
from tests.support.serving import at_end, until
from tests.support.wire import BLANK, CLOSE, UNSIGNED, Frame, is_failure, receive, receive_all, string, tagged

HELLO = string("hello")
Runner = Any
WITHOUT_POOL: list[Any] = [None, "inline"]
every_runner = pytest.mark.parametrize("kind", ["workers", "inline", "executor"])


@pytest.fixture
def local(short_dir: Path) -> Namespace:
    return make_namespace("local", short_dir)


@contextlib.contextmanager
def runner(kind: str, size: int = 4) -> Iterator[Runner]:
    if kind == "inline":
        yield kind
    else:
        with WorkerPool(size) if kind == "workers" else ThreadPoolExecutor(size) as workers:
            yield workers


def echo(request: Request) -> Any:
    return request.value


class Gate:
    """A handler that lets everything through but "wait"."""

    def __init__(self) -> None:
        self.called = threading.Semaphore(0)
        self.go_on = threading.Event()

    def __call__(self, request: Request) -> Any:
        if request.value == "wait":
            self.called.release()
            assert self.go_on.wait(PATIENCE)
        return request.value

    def wait(self, count: int = 1) -> None:
        for _ in range(count):
            assert self.called.acquire(timeout=PATIENCE)


@contextlib.contextmanager
def served(local: Namespace, handler: Any = echo, **options: Any) -> Iterator[tuple[MessageServer, socket.socket]]:
    listening = local.make_server()
    with MessageServer(listening, handler, **options) as server, local.connect_plainly(listening) as peer:
        yield server, peer


def connect(local: Namespace, server: MessageServer) -> socket.socket:
    return local.connect_plainly(server.servers[0])  # type: ignore[arg-type]


def ask(peer: socket.socket, frame: Frame = HELLO) -> Frame | None:
    peer.sendall(frame.encoded())
    return receive(peer)


# Where handlers run.


def test_a_pool_of_its_own_is_made_and_shut_down(local: Namespace) -> None:
    with served(local) as (server, peer):
        assert ask(peer) == HELLO
        assert isinstance(server.workers, WorkerPool)
    assert server.workers.stats().threads == 0


@every_runner
def test_what_was_given_is_left_alone(local: Namespace, kind: str) -> None:
    with runner(kind) as workers:
        with served(local, workers=workers) as (server, peer):
            assert ask(peer) == HELLO
        assert server.workers is workers
        if not isinstance(workers, str):
            assert workers.submit(int).result(PATIENCE) == 0


@pytest.mark.parametrize(("kind", "name"), [("workers", "mine"), ("inline", "bbipc-messages"), ("executor", "theirs")])
def test_handlers_run_where_they_should(local: Namespace, kind: str, name: str) -> None:
    with contextlib.ExitStack() as stack:
        workers: Runner = kind
        if kind == "workers":
            workers = stack.enter_context(WorkerPool(2, thread_name_prefix="mine"))
        elif kind == "executor":
            workers = stack.enter_context(ThreadPoolExecutor(2, "theirs"))
        _, peer = stack.enter_context(served(local, lambda request: threading.current_thread().name, workers=workers))
        said = ask(peer)
        assert said is not None
        assert said.text.startswith(name)


def test_a_pool_with_an_executor_is_that_executor(local: Namespace) -> None:
    with ThreadPoolExecutor(2, "theirs") as executor, WorkerPool(executor=executor) as workers:
        with served(local, lambda request: threading.current_thread().name, workers=workers) as (_, peer):
            said = ask(peer)
            assert said is not None
            assert said.text.startswith("theirs")


@pytest.mark.parametrize("kind", ["workers", "executor"])
def test_nobody_waits_behind_a_handler_that_blocks(local: Namespace, kind: str) -> None:
    """Not on the same connection, even in the same piece, if they have tags; nor on another one."""
    gate = Gate()
    with runner(kind) as workers, served(local, gate, workers=workers) as (server, peer):
        with connect(local, server) as other:
            frames = [tagged(string(text), number) for number, text in enumerate(["1", "wait", "2", "3"])]
            peer.sendall(b"".join(frame.encoded() for frame in frames))
            assert sorted(receive(peer).word for _ in range(3)) == [0, 2, 3]  # type: ignore[union-attr]
            assert ask(other) == HELLO
            gate.go_on.set()
            assert receive(peer) == frames[1]


@pytest.mark.parametrize("kind", ["workers", "executor"])
def test_untagged_requests_wait_for_each_other_and_tagged_ones_do_not(local: Namespace, kind: str) -> None:
    gate = Gate()
    with runner(kind) as workers, served(local, gate, workers=workers) as (server, peer):
        peer.sendall(string("wait").encoded() + HELLO.encoded() + tagged(HELLO, 4).encoded())
        gate.wait()
        assert receive(peer) == tagged(HELLO, 4)
        until(lambda: server.stats().waiting == 1)
        gate.go_on.set()
        assert [receive(peer), receive(peer)] == [string("wait"), HELLO]


@pytest.mark.parametrize("kind", ["workers", "executor"])
def test_slow_handlers_run_side_by_side(local: Namespace, kind: str) -> None:
    gate = Gate()
    with runner(kind, 4) as workers, served(local, gate, workers=workers) as (_, peer):
        peer.sendall(b"".join(tagged(string("wait"), number).encoded() for number in range(4)))
        gate.wait(4)
        gate.go_on.set()
        assert sorted(receive(peer).word for _ in range(4)) == [0, 1, 2, 3]  # type: ignore[union-attr]


# Responses of the handler's own.


@every_runner
def test_a_response_may_come_from_another_thread(local: Namespace, kind: str) -> None:
    outcomes: list[object] = []

    def handler(request: Request) -> None:
        Worker(lambda: request.respond("from afar")).outcome()
        assert request.responded
        with pytest.raises(ResponseAlreadySentError):
            request.respond("again")
        outcomes.append(request)

    with runner(kind) as workers, served(local, handler, workers=workers) as (_, peer):
        assert ask(peer) == string("from afar")
        assert ask(peer, tagged(HELLO, 8)) == tagged(string("from afar"), 8)
        until(lambda: len(outcomes) == 2)


@every_runner
def test_a_failure_behind_a_response_is_told_at_home_only(local: Namespace, kind: str) -> None:
    told: list[BaseException] = []

    def handler(request: Request) -> None:
        request.respond("done")
        raise ValueError("afterwards")

    with runner(kind) as workers:
        with served(local, handler, workers=workers, on_error=lambda error, peer: told.append(error)) as (_, peer):
            assert ask(peer) == string("done")
            peer.shutdown(socket.SHUT_WR)
            assert receive_all(peer) == []
    assert [str(error) for error in told] == ["afterwards"]


@every_runner
@pytest.mark.parametrize("value", ["a\0b", 7, object(), b"x" * 101], ids=["nul", "int", "object", "large"])
def test_a_value_that_cannot_be_sent_is_a_failure(local: Namespace, kind: str, value: object) -> None:
    with runner(kind) as workers:
        with served(local, lambda request: value, workers=workers, max_message_size=100) as (server, peer):
            failure = ask(peer)
            assert failure is not None
            assert is_failure(failure)
            peer.sendall(string("x", wire.NO_RESPONSE).encoded())  # whose value is looked at by nobody
            failure = ask(peer, tagged(HELLO, 1))
            assert failure is not None
            assert is_failure(failure, 1)
            assert server.stats().handler_errors >= 2


@every_runner
def test_a_cancelled_response_is_a_failure(local: Namespace, kind: str) -> None:
    def handler(request: Request) -> Future[str]:
        future: Future[str] = Future()
        future.cancel()
        return future

    with runner(kind) as workers, served(local, handler, workers=workers) as (_, peer):
        failure = ask(peer)
        assert failure is not None
        assert failure.text.startswith("CancelledError")


@every_runner
def test_a_hook_that_fails_disturbs_nobody(local: Namespace, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    def hook(error: BaseException, peer: object) -> None:
        raise SystemExit

    def handler(request: Request) -> None:
        raise LookupError(request.value)

    with runner(kind) as workers, served(local, handler, workers=workers, on_error=hook) as (server, peer):
        for _ in range(3):
            failure = ask(peer, string("secret"))
            assert failure is not None
            assert failure.text == "LookupError: secret"
        assert server.stats().handler_errors == 3
    assert len([record for record in caplog.records if record.name == "pool.message_service"]) == 2


# Limits of who may come, and what.


def test_strangers_are_turned_away(local: Namespace) -> None:
    with served(local, allowed_uids=[os.geteuid() + 1]) as (server, peer):
        assert at_end(peer)
        until(lambda: server.stats().refused_uids == 1)
        with connect(local, server) as other:
            assert at_end(other)
        assert server.stats().connections == 0
        assert not server.stats().paused
    with served(local, allowed_uids={os.geteuid()}) as (server, peer):
        assert ask(peer) == HELLO


def test_uids_are_known_of_local_peers_only(short_dir: Path) -> None:
    with make_namespace("ipv4", short_dir).make_server() as listening:
        with pytest.raises(ValueError, match="allowed_uids"):
            MessageServer(listening, echo, allowed_uids=[0])


@pytest.mark.parametrize("accepts", [True, False])
def test_messages_without_a_checksum(local: Namespace, accepts: bool) -> None:
    with served(local, accept_unsigned=accepts) as (_, peer):
        said = ask(peer, string("hello", UNSIGNED))
        assert said is not None
        assert said == HELLO if accepts else is_failure(said)


def test_who_is_one_too_many_waits_outside(local: Namespace) -> None:
    with served(local, max_connections=2) as (server, peer), connect(local, server) as other:
        assert [ask(peer), ask(other)] == [HELLO, HELLO]
        with connect(local, server) as third:
            third.sendall(HELLO.encoded())
            until(lambda: server.stats().paused)
            assert server.stats().connections == 2
            other.close()
            assert receive(third) == HELLO


def test_what_is_no_message_goes_to_the_hook_and_quietly_to_the_log(
    local: Namespace, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[tuple[BaseException, Any]] = []
    bad = HELLO.encoded()[:-2] + b"!\0"
    with caplog.at_level(logging.DEBUG), served(local, on_error=lambda *what: told.append(what)) as (_, peer):
        peer.sendall(bad)
        assert is_failure(receive_all(peer)[0])
    ((error, who),) = told
    assert isinstance(error, ChecksumError)
    assert who.pid == os.getpid()
    assert [record.levelname for record in caplog.records] == ["DEBUG"]
    assert "hell" not in caplog.text


# Beginning and end.


def test_it_starts_once_and_not_again(local: Namespace) -> None:
    with served(local) as (server, peer):
        server.start()
        assert ask(peer) == HELLO
    with pytest.raises(RuntimeError, match="stopped"):
        server.start()


@every_runner
def test_stop_before_start(local: Namespace, kind: str) -> None:
    with runner(kind) as workers:
        listening = local.make_server()
        server = MessageServer(listening, echo, workers=workers)
        assert server.stop() == server.stop() == StopReport()
        assert listening.closed


def test_a_closed_socket_cannot_be_served(local: Namespace) -> None:
    listening = local.make_server()
    listening.close()
    for workers in WITHOUT_POOL:
        server = MessageServer(listening, echo, workers=workers)
        with pytest.raises(SocketClosedError):
            server.start()
        server.stop()


@every_runner
def test_stop_from_a_handler(local: Namespace, kind: str) -> None:
    """It is not waited for, and its own response still goes out."""
    reports: list[StopReport] = []

    def handler(request: Request) -> str:
        reports.append(server.stop(5))
        return "stopped"

    with runner(kind) as workers, served(local, handler, workers=workers) as (server, peer):
        with connect(local, server) as idle:
            until(lambda: server.stats().connections == 2)
            assert ask(peer) == string("stopped")
            assert at_end(peer)
            assert at_end(idle)
    assert len(reports) == 1


@every_runner
def test_idle_connections_are_closed_at_once(local: Namespace, kind: str) -> None:
    with runner(kind) as workers, served(local, workers=workers) as (server, peer):
        assert ask(peer) == HELLO
        with connect(local, server) as other:
            other.sendall(HELLO.encoded()[:20])  # in the middle of a message
            until(lambda: server.stats().connections == 2)
            assert server.stop(PATIENCE) == StopReport(drained=2)
            assert at_end(peer)


@pytest.mark.parametrize("kind", ["workers", "executor"])
def test_a_handler_that_does_not_return_is_left_behind(local: Namespace, kind: str) -> None:
    gate = Gate()
    with runner(kind, 2) as workers, served(local, gate, workers=workers) as (server, peer):
        peer.sendall(b"".join(string(text).encoded() for text in ("one", "wait", "dropped", "dropped")))
        assert receive(peer) == string("one")
        gate.wait()
        assert server.stop(0.05) == StopReport(abandoned=1)
        assert receive_all(peer) == []
        assert server.stop() == StopReport(abandoned=1)
        gate.go_on.set()
        until(lambda: server.stats().connections == 0)
        assert server.stats().dropped_requests == 2
        assert server.stats().dropped_replies == 1


def test_replies_that_nobody_reads_are_forced_out(local: Namespace) -> None:
    with served(local, lambda request: bytes(1 << 20)) as (server, peer):
        peer.sendall(HELLO.encoded() * 3)
        until(lambda: server.stats().requests == 3 and server.stats().in_flight == 0)
        assert server.stop(0.05) == StopReport(forced=1)
        assert server.stats().dropped_replies == 3


def test_serve_forever_ends_with_a_close_if_that_is_wanted(local: Namespace) -> None:
    listening = local.make_server()
    server = MessageServer(listening, echo, stop_on_close=True)
    serving = Worker(server.serve_forever)
    with local.connect_plainly(listening) as peer:
        assert ask(peer) == HELLO
        assert ask(peer, Frame(CLOSE)) == BLANK
        assert at_end(peer)
    assert serving.outcome() == StopReport(drained=1)


def test_a_pool_that_is_shut_down_behind_its_back_ends_it(local: Namespace) -> None:
    with WorkerPool(2) as workers:
        with served(local, workers=workers) as (server, peer):
            assert ask(peer) == HELLO
            workers.shutdown()
            assert at_end(peer)
            until(lambda: server.stats().connections == 0)
            until(lambda: server.stopping)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_connections": 0}, ValueError),
        ({"max_in_flight": 0}, ValueError),
        ({"max_in_flight": 65536}, ValueError),
        ({"max_in_flight_total": 0}, ValueError),
        ({"max_unsent": 0}, ValueError),
        ({"max_unverified": 0}, ValueError),
        ({"max_message_size": -1}, ValueError),
        ({"max_message_size": 1 << 32}, ValueError),
        ({"min_body_rate": -1}, ValueError),
        ({"idle_timeout": 0}, ValueError),
        ({"header_timeout": -1}, ValueError),
        ({"body_timeout": float("nan")}, ValueError),
        ({"stall_timeout": "soon"}, TypeError),
        ({"workers": "outline"}, TypeError),
        ({"workers": 4}, TypeError),
    ],
)
def test_options_that_make_no_sense_are_refused(local: Namespace, options: Any, error: type[Exception]) -> None:
    with local.make_server() as listening, pytest.raises(error):
        MessageServer(listening, echo, **options)


def test_the_most_that_may_be_in_flight(local: Namespace) -> None:
    with served(local, max_in_flight=65535, max_in_flight_total=65536) as (_, peer):
        assert ask(peer) == HELLO


def test_what_cannot_be_served_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        MessageServer([], echo)
    with pytest.raises(TypeError, match="StreamServer"):
        MessageServer(["here"], echo)  # type: ignore[list-item]


def test_several_sockets_and_its_repr(local: Namespace, short_dir: Path) -> None:
    other = make_namespace("ipv4", short_dir)
    sockets = [local.make_server(), other.make_server()]
    server = MessageServer(sockets, echo)
    assert "not started" in repr(server)
    with server, local.connect_plainly(sockets[0]) as one, other.connect_plainly(sockets[1]) as two:
        assert [ask(one), ask(two)] == [HELLO, HELLO]
        assert "serving, 2 connections" in repr(server)
        with pytest.raises(TypeError, match="copied"):
            copy.copy(server)
    assert "stopped" in repr(server)
    assert all(socket.closed for socket in sockets)
