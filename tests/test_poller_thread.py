"""Connecting and accepting as futures."""

from __future__ import annotations

import errno
import random
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar
from unittest import mock

import pytest

import bbipc
from bbipc import (
    ConnectionFailedError,
    NoLocalServerError,
    PollerClosedError,
    SocketClosedError,
    SocketError,
    SocketEvent,
)
from pool.future_stream import FutureStream
from pool.poller_thread import PollerThread
from tests.support.makers import PATIENCE, Namespace, Server, Worker, accept, make_namespace

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)


@pytest.fixture
def poller_thread() -> Iterator[PollerThread]:
    with PollerThread() as thread:
        yield thread


def connect(poller_thread: PollerThread, server: Server, timeout: float | None = None) -> Future[FutureStream]:
    if isinstance(server, bbipc.LocalServer):
        return poller_thread.connect_local(server.path, timeout=timeout)
    if isinstance(server, bbipc.IPv4TCPServer):
        return poller_thread.connect_ipv4(server.host_address, server.port, timeout=timeout)
    return poller_thread.connect_ipv6(server.host_address, server.port, timeout=timeout)


def failure(future: Future[T], kind: type[E]) -> E:
    error = future.exception(PATIENCE)
    assert type(error) is kind, repr(error)
    return error


@pytest.fixture
def unanswered() -> Iterator[tuple[str, int]]:
    """An address at which a connect over TCP is never decided: a server whose backlog is full."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        port = server.getsockname()[1]
        waiting = []
        while True:  # as many as fit, and one that does not
            waiting.append(bbipc.connect_to_ipv4_tcp_server("127.0.0.1", port))
            if not bbipc.poll_socket(waiting[-1], SocketEvent.DETERMINED, 0.2):
                break
        yield "127.0.0.1", port
        for stream in waiting:
            stream.close()


# Connecting.


def test_a_connect_gives_a_stream_that_works_both_ways(namespace: Namespace, poller_thread: PollerThread) -> None:
    with namespace.make_server() as server:
        with connect(poller_thread, server).result(PATIENCE) as stream, accept(server) as accepted:
            assert isinstance(stream, FutureStream)
            assert stream.stream.connection_succeeded()
            stream.write(b"question").result(PATIENCE)
            other = FutureStream(accepted, poller_thread)
            assert other.read_exactly(8).result(PATIENCE) == b"question"
            other.write(b"answer")
            assert stream.read_exactly(6).result(PATIENCE) == b"answer"


def test_a_connect_may_name_its_own_end(poller_thread: PollerThread) -> None:
    with bbipc.make_ipv4_tcp_server("127.0.0.1", 0) as server:
        future = poller_thread.connect_ipv4("127.0.0.1", server.port, local_host_address="127.0.0.2")
        with future.result(PATIENCE) as stream:
            assert isinstance(stream.stream, bbipc.IPv4TCPStream)
            assert stream.stream.local_host_address == "127.0.0.2"


@pytest.mark.parametrize("kind", ["ipv4", "ipv6"])
def test_a_refused_connect_fails_in_the_future_with_its_cause(
    short_dir: Path, poller_thread: PollerThread, kind: str
) -> None:
    with make_namespace(kind, short_dir).make_server() as server:
        assert not isinstance(server, bbipc.LocalServer)
    error = failure(connect(poller_thread, server), ConnectionFailedError)
    assert error.errno == errno.ECONNREFUSED
    assert f"{server.host_address} port {server.port}" in str(error)
    assert isinstance(error.__cause__, OSError)


def test_a_missing_local_server_fails_in_the_future(short_dir: Path, poller_thread: PollerThread) -> None:
    error = failure(poller_thread.connect_local(short_dir / "none"), NoLocalServerError)
    assert error.path == str(short_dir / "none")


def test_a_peer_that_has_gone_already_was_connected_all_the_same(
    namespace: Namespace, poller_thread: PollerThread
) -> None:
    """200 rounds in which the server closes at once, half of them with a reset."""
    with namespace.make_server() as server:
        for number in range(200):
            future = connect(poller_thread, server)
            accepted = accept(server)
            if number % 2 and isinstance(accepted, bbipc.IPv4TCPStream | bbipc.IPv6TCPStream):
                accepted._handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            accepted.close()
            with future.result(PATIENCE) as stream:
                assert stream.read().exception(PATIENCE) is None or number % 2


def test_a_connect_waits_for_room_in_a_local_backlog(short_dir: Path, poller_thread: PollerThread) -> None:
    namespace = make_namespace("local", short_dir)
    with namespace.make_server(backlog=0) as server, namespace.connect(server):
        future = connect(poller_thread, server, PATIENCE)
        assert not future.done()
        with accept(server), future.result(PATIENCE) as stream, accept(server) as accepted:
            accepted.write(b"hello")
            assert stream.read().result(PATIENCE) == b"hello"


def test_a_full_local_backlog_is_tried_until_the_deadline(short_dir: Path, poller_thread: PollerThread) -> None:
    namespace = make_namespace("local", short_dir)
    with namespace.make_server(backlog=0) as server, namespace.connect(server):
        for timeout in (0.05, 0):
            error = failure(connect(poller_thread, server, timeout), TimeoutError)
            assert isinstance(server, bbipc.LocalServer)
            assert str(server.path) in str(error)


def test_a_server_that_dies_while_a_connect_waits_fails_it(short_dir: Path, poller_thread: PollerThread) -> None:
    namespace = make_namespace("local", short_dir)
    with namespace.make_server(backlog=0) as server, namespace.connect(server):
        future = connect(poller_thread, server)
        server.close()
        failure(future, ConnectionFailedError)


def test_a_timeout_names_the_address(poller_thread: PollerThread, unanswered: tuple[str, int]) -> None:
    error = failure(poller_thread.connect_ipv4(*unanswered, timeout=0.05), TimeoutError)
    assert f"127.0.0.1 port {unanswered[1]}" in str(error)
    assert "0.05 s" in str(error)


def made_streams() -> tuple[list[bbipc.StreamSocket], mock._patch[object]]:
    """Every stream that a connect makes from here on."""
    made: list[bbipc.StreamSocket] = []

    def begin(host_address: str, port: int, **rest: object) -> bbipc.StreamSocket:
        made.append(bbipc.connect_to_ipv4_tcp_server(host_address, port))
        return made[-1]

    return made, mock.patch("pool.poller_thread.connect_to_ipv4_tcp_server", begin)


@pytest.mark.parametrize("how", ["cancel", "timeout", "close", "refuse"])
def test_a_connect_that_comes_to_nothing_leaves_nothing_open(
    poller_thread: PollerThread, unanswered: tuple[str, int], how: str
) -> None:
    made, patch = made_streams()
    with patch:
        future = poller_thread.connect_ipv4(*unanswered, timeout=0.02 if how == "timeout" else None)
        if how == "cancel":
            assert future.cancel()
        elif how == "timeout":
            failure(future, TimeoutError)
        elif how == "close":
            poller_thread.close()
            failure(future, PollerClosedError)
        else:
            made[0].close()  # as if somebody else had found it
            failure(future, SocketClosedError)
    assert made[0].closed


def test_a_cancelled_connect_is_told_to_who_waits(poller_thread: PollerThread, unanswered: tuple[str, int]) -> None:
    future = poller_thread.connect_ipv4(*unanswered)
    assert future.cancel()
    with pytest.raises(RuntimeError):  # told once already
        future.set_running_or_notify_cancel()


def test_a_cancel_that_races_with_success_leaves_nothing_open(
    namespace: Namespace, poller_thread: PollerThread
) -> None:
    """300 rounds: either the caller has the stream, or nobody has (the fixture counts descriptors)."""
    rng = random.Random(1)
    outcomes = [0, 0]
    with namespace.make_server() as server:
        for _ in range(300):
            future = connect(poller_thread, server)
            for _ in range(rng.randrange(60)):
                pass
            cancelled = future.cancel()
            outcomes[cancelled] += 1
            accept(server).close()
            if not cancelled:
                future.result(PATIENCE).close()


def test_nonsense_is_refused_at_the_call(poller_thread: PollerThread, short_dir: Path) -> None:
    refused: list[tuple[Callable[[], object], type[Exception], str]] = [
        (lambda: poller_thread.connect_ipv4("localhost", 80), ValueError, "resolve_ipv4_address"),
        (lambda: poller_thread.connect_ipv6("localhost", 80), ValueError, "resolve_ipv6_address"),
        (lambda: poller_thread.connect_ipv4("127.0.0.1", 0), ValueError, "port"),
        (lambda: poller_thread.connect_ipv4("127.0.0.1", "80"), TypeError, "port"),  # type: ignore[arg-type]
        (lambda: poller_thread.connect_ipv4("127.0.0.1", 80, timeout=-1), ValueError, "timeout"),
        (lambda: poller_thread.connect_local(""), ValueError, "path"),
        (lambda: poller_thread.connect_local(3), TypeError, "path|PathLike"),  # type: ignore[arg-type]
        (lambda: poller_thread.accept(3), TypeError, "StreamServer"),  # type: ignore[arg-type]
    ]
    for call, kind, text in refused:
        with pytest.raises(kind, match=text):
            call()


def test_a_closed_poller_thread_refuses(short_dir: Path) -> None:
    poller_thread = PollerThread()
    poller_thread.close()
    with make_namespace("local", short_dir).make_server() as server:
        with pytest.raises(PollerClosedError):
            connect(poller_thread, server)
        with pytest.raises(PollerClosedError):
            poller_thread.accept(server)


# Accepting.


def test_a_connection_that_waits_is_accepted_at_once(namespace: Namespace, poller_thread: PollerThread) -> None:
    with namespace.make_server() as server, namespace.connect(server):
        assert bbipc.poll_socket(server, SocketEvent.CONNECTION_AVAILABLE, PATIENCE)
        future = poller_thread.accept(server)
        assert future.done()
        future.result(0).close()
        failure(poller_thread.accept(server, timeout=0), TimeoutError)
        assert poller_thread._thread is None


def test_each_accept_is_given_one_connection_in_order(namespace: Namespace, poller_thread: PollerThread) -> None:
    with namespace.make_server() as server:
        futures = [poller_thread.accept(server) for _ in range(20)]
        for number, future in enumerate(futures):
            with namespace.connect(server) as client, future.result(PATIENCE) as accepted:
                assert bbipc.poll_socket(client, SocketEvent.DETERMINED, PATIENCE)
                client.write(bytes([number]))
                assert FutureStream(accepted, poller_thread).read().result(PATIENCE) == bytes([number])
            assert not any(later.done() for later in futures[number + 1 :])


def test_a_crowd_is_accepted_by_a_crowd(namespace: Namespace, poller_thread: PollerThread) -> None:
    with namespace.make_server() as server:
        futures = [poller_thread.accept(server) for _ in range(100)]
        clients = [connect(poller_thread, server) for _ in range(100)]
        for one in futures:
            one.result(PATIENCE).close()
        for client in clients:
            client.result(PATIENCE).close()


def test_a_cancelled_accept_swallows_no_connection(namespace: Namespace, poller_thread: PollerThread) -> None:
    """300 rounds: a cancel races with a connection, which goes to the one or to the other, and is never lost."""
    rng = random.Random(2)
    with namespace.make_server() as server:
        for _ in range(300):
            first, second = poller_thread.accept(server), poller_thread.accept(server)
            client = namespace.connect(server)
            for _ in range(rng.randrange(200)):
                pass
            if first.cancel():
                second.result(PATIENCE).close()
            else:
                first.result(PATIENCE).close()
                assert second.cancel()
            client.close()


def test_an_accept_cannot_be_cancelled_any_more_while_its_connection_is_taken(
    namespace: Namespace, poller_thread: PollerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    with namespace.make_server() as server:
        future = poller_thread.accept(server)
        accept_connection = type(server).accept_connection
        cancelled: list[bool] = []

        def watched(self: bbipc.StreamServer) -> bbipc.StreamSocket:
            cancelled.append(future.cancel())
            return accept_connection(self)  # type: ignore[arg-type]

        monkeypatch.setattr(type(server), "accept_connection", watched)
        with namespace.connect(server), future.result(PATIENCE):
            assert cancelled == [False]


def test_an_accept_gives_up_in_time(namespace: Namespace, poller_thread: PollerThread) -> None:
    with namespace.make_server() as server:
        error = failure(poller_thread.accept(server, timeout=0.02), TimeoutError)
        assert "0.02 s" in str(error)
        waiting = poller_thread.accept(server)
        with namespace.connect(server), waiting.result(PATIENCE):
            pass


def test_accepts_end_with_their_server(namespace: Namespace, poller_thread: PollerThread) -> None:
    with namespace.make_server() as server:
        futures = [poller_thread.accept(server) for _ in range(3)]
        Worker(server.close).outcome()
        for future in futures:
            assert failure(future, SocketClosedError).socket is server
        failure(poller_thread.accept(server), SocketClosedError)
    assert poller_thread.call_later(0, lambda: len(poller_thread._accepts)).result(PATIENCE) == 0


def test_accepts_end_with_their_poller_thread(namespace: Namespace, poller_thread: PollerThread) -> None:
    with namespace.make_server() as server:
        futures = [poller_thread.accept(server) for _ in range(3)]
        poller_thread.close()
        for future in futures:
            failure(future, PollerClosedError)


def test_without_descriptors_an_accept_fails_and_its_peer_goes_on_waiting(
    namespace: Namespace, poller_thread: PollerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    with namespace.make_server() as server:
        first, second = poller_thread.accept(server), poller_thread.accept(server)
        accept_connection = type(server).accept_connection
        failures = [SocketError(errno.EMFILE)]

        def scarce(self: bbipc.StreamServer) -> bbipc.StreamSocket:
            if failures:
                raise failures.pop()
            return accept_connection(self)  # type: ignore[arg-type]

        monkeypatch.setattr(type(server), "accept_connection", scarce)
        with namespace.connect(server):
            assert failure(first, SocketError).errno == errno.EMFILE
            second.result(PATIENCE).close()


def test_an_accept_whose_connection_another_has_taken_goes_on_waiting(
    namespace: Namespace, poller_thread: PollerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    with namespace.make_server() as server:
        future = poller_thread.accept(server, timeout=PATIENCE)
        accept_connection = type(server).accept_connection
        taken = threading.Event()

        def late(self: bbipc.StreamServer) -> bbipc.StreamSocket:
            if not taken.is_set():
                accept_connection(self).close()  # type: ignore[arg-type]
                taken.set()
                raise bbipc.NoConnectionAvailableError(self)
            return accept_connection(self)  # type: ignore[arg-type]

        monkeypatch.setattr(type(server), "accept_connection", late)
        with namespace.connect(server):
            assert taken.wait(PATIENCE)
        with namespace.connect(server), future.result(PATIENCE):
            pass


def test_accepting_again_in_the_callback_of_an_accept_serves_all(
    namespace: Namespace, poller_thread: PollerThread
) -> None:
    count = threading.Semaphore(0)
    with namespace.make_server() as server:

        def accepted(future: Future[bbipc.StreamSocket]) -> None:
            if future.exception() is None:
                future.result().close()
                count.release()
                poller_thread.accept(server).add_done_callback(accepted)

        poller_thread.accept(server).add_done_callback(accepted)
        for _ in range(50):
            with namespace.connect(server):
                assert count.acquire(timeout=PATIENCE)
