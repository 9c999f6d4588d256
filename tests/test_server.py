"""ConnectionServer: who is called when, who closes what, and what limits it."""

from __future__ import annotations

import contextlib
import copy
import logging
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import bbipc
from bbipc import SocketClosedError, SocketEvent, StreamSocket
from pool.server import ConnectionServer
from pool.stopping import StopReport
from pool.worker_pool import WorkerPool
from tests.support.makers import PATIENCE, Namespace, drain, make_namespace
from tests.support.serving import HANDLERS, Blocking, Per, answer, ask, at_end, converse, is_refused, until


@pytest.fixture(params=["connection", "readiness"])
def per(request: pytest.FixtureRequest) -> Per:
    return "connection" if request.param == "connection" else "readiness"


@pytest.fixture(params=["pool", "executor"])
def workers(request: pytest.FixtureRequest) -> Iterator[WorkerPool]:
    """A pool, and one that lends an executor's threads."""
    with contextlib.ExitStack() as stack:
        executor = stack.enter_context(ThreadPoolExecutor(8)) if request.param == "executor" else None
        pool = WorkerPool(executor=executor) if executor is not None else WorkerPool(8)
        yield stack.enter_context(pool)


@pytest.fixture
def ipv4(short_dir: Path) -> Namespace:
    return make_namespace("ipv4", short_dir)


# Being called.


def test_an_echo(namespace: Namespace, per: Per, workers: WorkerPool) -> None:
    server = namespace.make_server()
    with (
        ConnectionServer(server, HANDLERS[per], per=per, workers=workers) as served,
        namespace.connect_plainly(server) as one,
        namespace.connect_plainly(server) as other,
    ):
        for peer in (one, other, one):
            assert [ask(peer), ask(peer, b"x")] == [b"hello", b"x"]
        assert served.stats().connections == served.stats().accepted == 2
        one.shutdown(socket.SHUT_WR)
        assert at_end(one)
        until(lambda: served.stats().connections == 1)
        one.close()
        other.close()
        until(lambda: served.stats().connections == 0)
    assert (served.stats().handler_errors, served.stats().disconnected) == (0, 0)


def test_a_pool_of_its_own_is_made_and_shut_down(ipv4: Namespace, per: Per) -> None:
    server = ipv4.make_server()
    with ConnectionServer(server, HANDLERS[per], per=per) as served, ipv4.connect_plainly(server) as peer:
        assert ask(peer) == b"hello"
    with pytest.raises(RuntimeError):
        served.workers.submit(int)
    assert served.workers.stats().threads == 0


def test_a_pool_that_was_given_is_left_alone(ipv4: Namespace, per: Per, workers: WorkerPool) -> None:
    with ConnectionServer(ipv4.make_server(), HANDLERS[per], per=per, workers=workers):
        pass
    assert workers.submit(int).result(PATIENCE) == 0
    assert not workers.poller_thread.closed


def test_handlers_run_on_workers(ipv4: Namespace, per: Per, workers: WorkerPool) -> None:
    seen: Future[bool] = Future()

    def handler(stream: StreamSocket) -> None:
        if stream.read():
            seen.set_result(workers.poller_thread.is_current())

    server = ipv4.make_server()
    with ConnectionServer(server, handler, per=per, workers=workers), ipv4.connect_plainly(server) as peer:
        peer.sendall(b"x")
        assert seen.result(PATIENCE) is False


def test_silent_clients_cost_no_worker(namespace: Namespace, per: Per) -> None:
    """50 of them, and one worker."""
    server = namespace.make_server()
    with WorkerPool(1) as workers, contextlib.ExitStack() as stack:
        stack.enter_context(ConnectionServer(server, HANDLERS[per], per=per, workers=workers))
        for _ in range(50):
            stack.enter_context(namespace.connect_plainly(server))
        peer = stack.enter_context(namespace.connect_plainly(server))
        assert ask(peer) == b"hello"


def test_who_speaks_first_is_called_at_once(namespace: Namespace, workers: WorkerPool) -> None:
    def greet(stream: StreamSocket) -> None:
        stream.write(b"welcome")
        converse(stream)

    server = namespace.make_server()
    with (
        ConnectionServer(server, greet, speaks_first=True, workers=workers),
        namespace.connect_plainly(server) as peer,
    ):
        assert peer.recv(100) == b"welcome"
        assert ask(peer) == b"hello"
        peer.shutdown(socket.SHUT_WR)
        assert at_end(peer)


def test_who_speaks_first_is_called_though_the_queue_is_full(ipv4: Namespace) -> None:
    """The poller thread must not wait for a place in it."""
    go_on = threading.Event()
    server = ipv4.make_server()
    with WorkerPool(1, queue_limit=1) as workers:
        calls = [workers.submit(go_on.wait, PATIENCE) for _ in range(2)]
        with ConnectionServer(server, lambda stream: stream.write(b"x"), speaks_first=True, workers=workers) as served:
            with contextlib.ExitStack() as stack:
                peers = [stack.enter_context(ipv4.connect_plainly(server)) for _ in range(5)]
                until(lambda: served.stats().accepted == 5)
                go_on.set()
                assert [peer.recv(1) for peer in peers] == [b"x"] * 5
        assert all(call.result(PATIENCE) for call in calls)


def test_a_client_that_leaves_without_a_word_is_told_of(namespace: Namespace, per: Per) -> None:
    seen: Future[bytes | None] = Future()
    server = namespace.make_server()
    with ConnectionServer(server, lambda stream: seen.set_result(stream.read()), per=per) as served:
        namespace.connect_plainly(server).close()
        assert seen.result(PATIENCE) == b""
        until(lambda: served.stats().connections == 0)
    assert served.stats().handler_errors == 0


def test_a_handler_for_a_connection_is_called_once(ipv4: Namespace, workers: WorkerPool) -> None:
    calls = []

    def handler(stream: StreamSocket) -> None:
        calls.append(stream.read())

    server = ipv4.make_server()
    with ConnectionServer(server, handler, workers=workers), ipv4.connect_plainly(server) as peer:
        peer.sendall(b"first")
        assert at_end(peer)
    assert calls == [b"first"]


def test_never_two_calls_for_one_connection(namespace: Namespace, workers: WorkerPool) -> None:
    """A call is running, more bytes come and are called for only when it has returned: 100 rounds."""
    running = threading.Semaphore(1)
    overlaps = []
    called = threading.Semaphore(0)
    go_on = threading.Semaphore(0)

    def handler(stream: StreamSocket) -> None:
        if not running.acquire(blocking=False):
            overlaps.append(stream)
            return
        called.release()
        if stream.read(1):
            assert go_on.acquire(timeout=PATIENCE)
        running.release()

    server = namespace.make_server()
    with (
        ConnectionServer(server, handler, per="readiness", workers=workers),
        namespace.connect_plainly(server) as peer,
    ):
        for _ in range(100):
            peer.sendall(b"12")
            assert called.acquire(timeout=PATIENCE)
            go_on.release()
            assert called.acquire(timeout=PATIENCE)
            go_on.release()
        peer.shutdown(socket.SHUT_WR)
        assert at_end(peer)
    assert not overlaps


def test_nobody_waits_behind_a_slow_handler(ipv4: Namespace, per: Per) -> None:
    blocking = Blocking()

    def handler(stream: StreamSocket) -> None:
        if stream.read(1, peek=True) == b"!":
            blocking(stream)
        else:
            HANDLERS[per](stream)

    server = ipv4.make_server()
    with WorkerPool(4) as workers, ConnectionServer(server, handler, per=per, workers=workers):
        with ipv4.connect_plainly(server) as slow, ipv4.connect_plainly(server) as quick:
            slow.sendall(b"!")
            blocking.wait()
            assert [ask(quick) for _ in range(20)] == [b"hello"] * 20
            blocking.go_on.set()
            assert slow.recv(10) == b"done"


def test_a_handler_may_close_the_stream(namespace: Namespace, per: Per, workers: WorkerPool) -> None:
    server = namespace.make_server()
    with ConnectionServer(server, lambda stream: stream.close(), per=per, workers=workers) as served:
        with namespace.connect_plainly(server) as peer:
            peer.sendall(b"x")
            assert at_end(peer)
            until(lambda: served.stats().connections == 0)


def test_anybody_may_close_the_stream(ipv4: Namespace, per: Per, workers: WorkerPool) -> None:
    """While its connection is idle, and in the middle of its call."""
    streams: list[StreamSocket] = []
    blocking = Blocking()

    def handler(stream: StreamSocket) -> None:
        streams.append(stream)
        blocking(stream)

    server = ipv4.make_server()
    with ConnectionServer(server, handler, per=per, workers=workers) as served:
        with ipv4.connect_plainly(server) as peer:
            peer.sendall(b"x")
            blocking.wait()
            streams[0].close()
            assert at_end(peer)
            assert served.stats().connections == 1  # its handler is still running
            blocking.go_on.set()
            until(lambda: served.stats().connections == 0)
        if per == "readiness":
            with ipv4.connect_plainly(server) as peer:
                assert ask(peer) == b"done"
                streams[1].close()
                until(lambda: served.stats().connections == 0)
    assert served.stats().handler_errors == 0
    assert served.stats().disconnected == 1  # the write of the first one


@pytest.mark.parametrize("closes", [True, False])
def test_the_end_is_shown_to_the_handler_once_and_then_closed(
    namespace: Namespace, workers: WorkerPool, closes: bool
) -> None:
    read: list[bytes | None] = []

    def handler(stream: StreamSocket) -> None:
        read.append(stream.read())
        if closes and read[-1] == b"":
            stream.close()

    server = namespace.make_server()
    with ConnectionServer(server, handler, per="readiness", workers=workers) as served:
        with namespace.connect_plainly(server) as peer:
            peer.sendall(b"x")
            until(lambda: read == [b"x"])
            peer.shutdown(socket.SHUT_WR)
            assert at_end(peer)
        until(lambda: served.stats().connections == 0)
    assert read == [b"x", b""]


def test_a_half_closed_peer_gets_its_answer(namespace: Namespace, per: Per, workers: WorkerPool) -> None:
    """HAZARDS 24, 50 rounds: the request, and with it the end, before the handler is called."""
    size = 300_000

    def handler(stream: StreamSocket) -> None:
        if bbipc.poll_socket(stream, SocketEvent.DATA_AVAILABLE, PATIENCE):
            rest = memoryview(drain(stream, 3) * (size // 3))
            while rest:
                bbipc.poll_socket(stream, SocketEvent.ROOM_TO_WRITE, PATIENCE)
                rest = rest[stream.write(rest) :]

    server = namespace.make_server()
    with ConnectionServer(server, handler, per=per, workers=workers):
        for _ in range(50):
            with namespace.connect_plainly(server) as peer:
                peer.sendall(b"abc")
                peer.shutdown(socket.SHUT_WR)
                received = b"".join(iter(lambda peer=peer: peer.recv(1 << 16), b""))  # type: ignore[misc]
                assert received == b"abc" * (size // 3)


def test_a_connection_may_be_passed_on(short_dir: Path, per: Per, workers: WorkerPool) -> None:
    """Its descriptor goes to another process (here: over a local stream); the server's close leaves it alone."""
    local = make_namespace("local", short_dir)
    server = local.make_server()
    ours, theirs = bbipc.local_stream_pair()

    def handler(stream: StreamSocket) -> None:
        if not stream.closed:
            ours.send_descriptors([stream])
            stream.close()

    with ours, theirs, ConnectionServer(server, handler, per=per, workers=workers) as served:
        with local.connect_plainly(server) as peer:
            peer.sendall(b"hello")
            assert bbipc.poll_socket(theirs, SocketEvent.DATA_AVAILABLE, PATIENCE)
            received = theirs.receive_descriptors(1)
            assert received is not None
            until(lambda: served.stats().connections == 0)
            served.stop()
            with bbipc.adopt_descriptor(received[1][0]) as adopted:
                assert isinstance(adopted, StreamSocket)
                assert adopted.read() == b"hello"
                adopted.write(b"from elsewhere")
                assert peer.recv(100) == b"from elsewhere"


def test_several_listening_sockets(short_dir: Path, per: Per) -> None:
    spaces = [make_namespace(name, short_dir) for name in ("ipv4", "ipv6", "local")]
    servers = [space.make_server() for space in spaces]
    with ConnectionServer(servers, HANDLERS[per], per=per) as served, contextlib.ExitStack() as stack:
        assert served.servers == tuple(servers)
        for space, server in zip(spaces, servers, strict=True):
            assert ask(stack.enter_context(space.connect_plainly(server))) == b"hello"
        servers[0].close()  # the others go on
        assert is_refused(spaces[0], servers[0])
        assert ask(stack.enter_context(spaces[2].connect_plainly(servers[2]))) == b"hello"
        assert served.stats().connections == 4
    assert all(server.closed for server in servers)


# What is not a server.


def test_nonsense_is_refused(ipv4: Namespace) -> None:
    nobody: Any = []
    with ipv4.make_server() as server:
        with pytest.raises(ValueError, match="at least one"):
            ConnectionServer(nobody, answer)
        with pytest.raises(TypeError, match="StreamServer"):
            ConnectionServer([server, nobody], answer)
        for limit in (0, -1):
            with pytest.raises(ValueError, match="max_connections"):
                ConnectionServer(server, answer, max_connections=limit)
        with pytest.raises(ValueError, match="speak first"):
            ConnectionServer(server, answer, per="readiness", speaks_first=True)
        with pytest.raises(ValueError, match="per must be"):
            ConnectionServer(server, answer, per="moon")  # type: ignore[arg-type]
        served = ConnectionServer(server, answer)
        with pytest.raises(TypeError, match="copied"):
            copy.copy(served)
        for timeout in (-1, float("nan")):
            with pytest.raises(ValueError, match="timeout"):
                served.stop(timeout)
            with pytest.raises(ValueError, match="timeout"):
                served.serve_forever(stop_timeout=timeout)
        served.stop()


def test_start_is_idempotent_and_not_for_the_dead(ipv4: Namespace) -> None:
    server = ipv4.make_server()
    served = ConnectionServer(server, answer, per="readiness")
    assert "not started" in repr(served)
    served.start()
    served.start()
    assert "serving" in repr(served)
    with ipv4.connect_plainly(server) as peer:
        assert ask(peer) == b"hello"
    served.stop()
    assert "stopped" in repr(served)
    with pytest.raises(RuntimeError, match="stopped"):
        served.start()


def test_a_server_that_cannot_start_leaves_nothing_behind(ipv4: Namespace) -> None:
    good, closed = ipv4.make_server(), ipv4.make_server()
    closed.close()
    with WorkerPool(2) as workers:
        served = ConnectionServer([good, closed], answer, per="readiness", workers=workers)
        for _ in range(2):
            with pytest.raises(SocketClosedError):
                served.start()
        assert not good.closed
        assert "0 sockets" in repr(workers.poller_thread)
        assert served.stop() == StopReport()
        assert good.closed


# What handlers raise.

RAISED = [ValueError("x"), OSError(5, "x"), SystemExit(3), KeyboardInterrupt(), GeneratorExit(), RecursionError("x")]


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
def test_what_a_handler_raises_is_told_and_ends_its_connection(
    ipv4: Namespace, per: Per, workers: WorkerPool, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[tuple[BaseException, StreamSocket, bool]] = []

    def handler(stream: StreamSocket) -> None:
        if stream.read() == b"!":
            raise error
        stream.write(b"fine")

    def hook(error: BaseException, stream: StreamSocket) -> None:
        told.append((error, stream, stream.closed))

    server = ipv4.make_server()
    with ConnectionServer(server, handler, per=per, workers=workers, on_error=hook) as served:
        with ipv4.connect_plainly(server) as peer, ipv4.connect_plainly(server) as other:
            peer.sendall(b"!")
            assert at_end(peer)
            assert ask(other) == b"fine"
        until(lambda: served.stats().connections == 0)
    assert served.stats().handler_errors == 1
    assert [(who, closed) for who, _, closed in told] == [(error, False)]
    assert isinstance(told[0][1], StreamSocket)
    records = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [record.exc_info[1] for record in records if record.exc_info] == [error]
    error.__traceback__ = None


def test_the_log_is_not_flooded(ipv4: Namespace, per: Per, caplog: pytest.LogCaptureFixture) -> None:
    """50 failures: one record a second, and the hook is told of all."""
    told: list[BaseException] = []

    def handler(stream: StreamSocket) -> None:
        raise ValueError(stream.read())

    server = ipv4.make_server()
    begin = time.monotonic()
    with ConnectionServer(server, handler, per=per, on_error=lambda error, stream: told.append(error)) as served:
        for _ in range(50):
            with ipv4.connect_plainly(server) as peer:
                peer.sendall(b"x")
                assert at_end(peer)
        until(lambda: served.stats().handler_errors == 50)
    seconds = time.monotonic() - begin
    assert len(told) == 50
    assert 1 <= len([record for record in caplog.records if record.levelno == logging.ERROR]) <= 1 + seconds


@pytest.mark.parametrize("raised", [ValueError, SystemExit])
def test_a_hook_that_raises_is_logged(
    ipv4: Namespace, per: Per, raised: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_args: object) -> None:
        raise raised

    server = ipv4.make_server()
    with ConnectionServer(server, fail, per=per, on_error=fail) as served:
        for _ in range(2):
            with ipv4.connect_plainly(server) as peer:
                peer.sendall(b"x")
                assert at_end(peer)
        until(lambda: served.stats().connections == 0)
    assert len([record for record in caplog.records if "fail" in record.message]) == 2  # the handler; the hook


def test_a_log_that_raises_does_no_harm(ipv4: Namespace, per: Per) -> None:
    def fail(*_args: object, **_kwargs: object) -> None:
        raise ValueError

    server = ipv4.make_server()
    with mock.patch("pool.server.logger.error", fail), mock.patch("pool.server.logger.log", fail):
        with mock.patch("threading.excepthook", fail), ConnectionServer(server, fail, per=per) as served:
            for _ in range(2):
                with ipv4.connect_plainly(server) as peer:
                    peer.sendall(b"x")
                    assert at_end(peer)
            until(lambda: served.stats().connections == 0)


def test_a_peer_that_resets_is_no_error_of_the_handlers(
    namespace: Namespace, per: Per, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    told: list[BaseException] = []
    reset = threading.Event()
    called = threading.Event()

    def handler(stream: StreamSocket) -> None:
        if stream.read(1):
            stream.write(b"never read")
        called.set()
        assert reset.wait(PATIENCE)
        while stream.read(1):
            pass

    server = namespace.make_server()
    with ConnectionServer(server, handler, per=per, on_error=lambda error, stream: told.append(error)) as served:
        peer = namespace.connect_plainly(server)
        peer.sendall(b"x")
        assert called.wait(PATIENCE)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        peer.close()
        reset.set()
        until(lambda: served.stats().connections == 0)
    assert not told
    assert (served.stats().handler_errors, served.stats().disconnected) == (0, 1)
    assert {record.levelno for record in caplog.records if record.name == "pool.server"} == {logging.DEBUG}


def test_the_loss_of_another_connection_is_an_error(ipv4: Namespace) -> None:
    other, peer = bbipc.local_stream_pair()
    other.close()
    server = ipv4.make_server()
    with peer, ConnectionServer(server, lambda stream: other.write(b"x")) as served:
        with ipv4.connect_plainly(server) as client:
            client.sendall(b"x")
            assert at_end(client)
        until(lambda: served.stats().connections == 0)
    assert (served.stats().handler_errors, served.stats().disconnected) == (1, 0)


# Limits.


@pytest.mark.parametrize("limit", [1, 3])
def test_as_many_connections_as_there_may_be_and_one_more(
    namespace: Namespace, per: Per, workers: WorkerPool, limit: int
) -> None:
    server = namespace.make_server()
    with contextlib.ExitStack() as stack:
        served = stack.enter_context(
            ConnectionServer(server, HANDLERS[per], per=per, workers=workers, max_connections=limit)
        )
        peers = [stack.enter_context(namespace.connect_plainly(server)) for _ in range(limit)]
        assert [ask(peer) for peer in peers] == [b"hello"] * limit
        late = stack.enter_context(namespace.connect_plainly(server))  # by the kernel
        late.sendall(b"hello")
        until(lambda: served.stats().paused)
        assert served.stats().connections == served.stats().accepted == limit
        peers[0].close()
        assert late.recv(100) == b"hello"
        assert served.stats().accepted == limit + 1
        until(lambda: served.stats().connections == limit)


def test_without_a_limit(ipv4: Namespace) -> None:
    server = ipv4.make_server()
    with contextlib.ExitStack() as stack:
        served = stack.enter_context(ConnectionServer(server, answer, per="readiness", max_connections=None))
        peers = [stack.enter_context(ipv4.connect_plainly(server)) for _ in range(100)]
        assert [ask(peer) for peer in peers] == [b"hello"] * 100
        assert served.stats().connections == 100
