"""ConnectionServer: who is called when, who closes what, and how it ends."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import pytest

import bbipc
from bbipc import SocketClosedError, SocketEvent, StreamSocket
from pool.connections import Connection, Connections
from pool.server import ConnectionServer
from pool.stopping import GRACE, Stopping, StopReport
from pool.worker_pool import WorkerPool
from tests.support.makers import PATIENCE, Namespace, Server, Worker, drain, make_namespace

READ = SocketEvent.DATA_AVAILABLE | SocketEvent.REMOTE_DISCONNECTED
Per = Literal["connection", "readiness"]


def answer(stream: StreamSocket) -> None:
    """What is there, back; for per="readiness"."""
    data = stream.read()
    if data:
        stream.write(data)


def converse(stream: StreamSocket) -> None:
    """All that comes, back, until the peer's end; for per="connection"."""
    while True:
        bbipc.poll_socket(stream, READ, PATIENCE)
        data = stream.read()
        if data == b"":
            return
        stream.write(data or b"")


HANDLERS: dict[Per, Callable[[StreamSocket], None]] = {"connection": converse, "readiness": answer}


def ask(peer: socket.socket, data: bytes = b"hello") -> bytes:
    peer.sendall(data)
    return peer.recv(100)


def until(fact: Callable[[], bool]) -> None:
    """Return when *fact* is one."""
    deadline = time.monotonic() + PATIENCE
    pace = threading.Event()
    while not fact():
        assert time.monotonic() < deadline, "it never came about"
        pace.wait(0.001)


def at_end(peer: socket.socket) -> bool:
    """Whether the other side has closed; waits for it."""
    try:
        return peer.recv(1) == b""
    except ConnectionResetError:
        return True


def is_refused(namespace: Namespace, server: Server) -> bool:
    """Whether nobody listens there any more."""
    try:
        stream = namespace.connect(server)
    except bbipc.NoLocalServerError:
        return True
    with stream:
        assert bbipc.poll_socket(stream, SocketEvent.DETERMINED, PATIENCE)
        return stream.connection_failed()


class Blocking:
    """A handler that tells when it is called, and returns when it is told to."""

    def __init__(self) -> None:
        self.called = threading.Semaphore(0)
        self.go_on = threading.Event()

    def __call__(self, stream: StreamSocket) -> None:
        stream.read()
        self.called.release()
        assert self.go_on.wait(PATIENCE)
        stream.write(b"done")

    def wait(self, count: int = 1) -> None:
        for _ in range(count):
            assert self.called.acquire(timeout=PATIENCE)


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


# Stopping.


def test_stop_before_start(ipv4: Namespace) -> None:
    server = ipv4.make_server()
    served = ConnectionServer(server, answer)
    assert served.stop() == served.stop(0) == StopReport(0, 0, 0)
    assert server.closed


def test_idle_connections_are_closed_at_once(namespace: Namespace, per: Per, workers: WorkerPool) -> None:
    """HAZARDS 41, FEATURES M5: 20 idle clients, of which half have never said a word; all are told."""
    server = namespace.make_server()
    with contextlib.ExitStack() as stack:
        served = stack.enter_context(ConnectionServer(server, answer, per=per, workers=workers))
        peers = [stack.enter_context(namespace.connect_plainly(server)) for _ in range(20)]
        if per == "readiness":
            assert [ask(peer) for peer in peers[::2]] == [b"hello"] * 10
        until(lambda: served.stats().connections == 20)
        if per == "readiness":  # the last handler may not have returned yet
            until(lambda: served.workers.stats().queued == 0)
        begin = time.monotonic()
        report = served.stop()
        assert time.monotonic() - begin < 1
        assert report == StopReport(drained=20)
        assert all(at_end(peer) for peer in peers)
        assert served.stats().connections == 0
        assert is_refused(namespace, server)


def test_calls_may_return_and_nobody_is_accepted_meanwhile(namespace: Namespace, per: Per, workers: WorkerPool) -> None:
    blocking = Blocking()
    server = namespace.make_server()
    with contextlib.ExitStack() as stack:
        served = stack.enter_context(ConnectionServer(server, blocking, per=per, workers=workers))
        busy = [stack.enter_context(namespace.connect_plainly(server)) for _ in range(2)]
        for peer in busy:
            peer.sendall(b"x")
        blocking.wait(2)
        idle = stack.enter_context(namespace.connect_plainly(server))
        until(lambda: served.stats().connections == 3)
        stopping = Worker(lambda: served.stop(PATIENCE))
        assert at_end(idle)  # while the others still work
        assert is_refused(namespace, server)
        until(lambda: served.stats().connections == 2)
        blocking.go_on.set()
        assert [peer.recv(100) for peer in busy] == [b"done"] * 2
        assert stopping.outcome() == StopReport(drained=3)
        assert all(at_end(peer) for peer in busy)


def test_who_does_not_return_in_time_is_forced(namespace: Namespace, per: Per, workers: WorkerPool) -> None:
    raised: Future[BaseException] = Future()
    called = threading.Event()

    def wait_for_ever(stream: StreamSocket) -> None:
        called.set()
        stream.read()
        try:
            while not stream.read():
                bbipc.poll_socket(stream, READ, None)
        except BaseException as error:
            raised.set_result(error)
            raise

    server = namespace.make_server()
    with ConnectionServer(server, wait_for_ever, per=per, workers=workers) as served:
        with namespace.connect_plainly(server) as peer:
            peer.sendall(b"x")
            assert called.wait(PATIENCE)
            begin = time.monotonic()
            assert served.stop(0.05) == StopReport(forced=1)
            assert 0.05 <= time.monotonic() - begin < 1
            assert at_end(peer)
    assert isinstance(raised.result(PATIENCE), SocketClosedError)
    assert (served.stats().handler_errors, served.stats().disconnected) == (0, 1)


def test_who_is_deaf_is_abandoned(namespace: Namespace, per: Per, workers: WorkerPool) -> None:
    blocking = Blocking()
    server = namespace.make_server()
    with ConnectionServer(server, blocking, per=per, workers=workers) as served:
        with namespace.connect_plainly(server) as peer, namespace.connect_plainly(server) as idle:
            peer.sendall(b"x")
            blocking.wait()
            until(lambda: served.stats().connections == 2)
            begin = time.monotonic()
            report = served.stop(0)
            assert GRACE <= time.monotonic() - begin < GRACE + 2
            assert report == StopReport(drained=1, abandoned=1)
            assert at_end(peer)
            assert at_end(idle)
            assert served.stats().connections == 1
            blocking.go_on.set()
            until(lambda: served.stats().connections == 0)
            assert served.stop() == report


def test_a_deaf_handler_on_a_pool_of_its_own_delays_stop_no_longer(ipv4: Namespace, per: Per) -> None:
    blocking = Blocking()
    server = ipv4.make_server()
    with ConnectionServer(server, blocking, per=per) as served, ipv4.connect_plainly(server) as peer:
        peer.sendall(b"x")
        blocking.wait()
        begin = time.monotonic()
        assert served.stop(0) == StopReport(abandoned=1)
        assert time.monotonic() - begin < 3
        blocking.go_on.set()


def test_everybody_is_given_the_same_report(ipv4: Namespace, per: Per) -> None:
    """5 threads, one after another and at once."""
    blocking = Blocking()
    server = ipv4.make_server()
    with ConnectionServer(server, blocking, per=per) as served, ipv4.connect_plainly(server) as peer:
        peer.sendall(b"x")
        blocking.wait()
        barrier = threading.Barrier(5)

        def stop() -> StopReport:
            barrier.wait(PATIENCE)
            return served.stop(PATIENCE)

        stopping = [Worker(stop) for _ in range(5)]
        until(lambda: server.closed)
        blocking.go_on.set()
        assert {worker.outcome() for worker in stopping} == {StopReport(drained=1)}
        assert served.stop() == StopReport(drained=1)


def test_an_earlier_deadline_counts(ipv4: Namespace, per: Per, workers: WorkerPool) -> None:
    blocking = Blocking()
    server = ipv4.make_server()
    with ConnectionServer(server, blocking, per=per, workers=workers) as served:
        with ipv4.connect_plainly(server) as peer:
            peer.sendall(b"x")
            blocking.wait()
            patient = [Worker(lambda timeout=timeout: served.stop(timeout)) for timeout in (None, 60.0)]  # type: ignore[misc]
            until(lambda: server.closed)
            assert served.stop(0) == StopReport(abandoned=1)
            assert [worker.outcome() for worker in patient] == [StopReport(abandoned=1)] * 2
            blocking.go_on.set()
            until(lambda: served.stats().connections == 0)


def test_a_handler_may_stop_the_server(namespace: Namespace, per: Per, workers: WorkerPool) -> None:
    """It does not wait for itself, and goes on with its connection; others that are idle are closed."""
    reports: list[StopReport] = []

    def handler(stream: StreamSocket) -> None:
        if stream.read() == b"stop":
            reports.append(served.stop(PATIENCE))
            stream.write(b"stopped")

    server = namespace.make_server()
    served = ConnectionServer(server, handler, per=per, workers=workers)
    with served, namespace.connect_plainly(server) as peer, namespace.connect_plainly(server) as idle:
        until(lambda: served.stats().connections == 2)
        begin = time.monotonic()
        assert ask(peer, b"stop") == b"stopped"
        assert time.monotonic() - begin < 2
        assert at_end(peer)
        assert at_end(idle)
        until(lambda: served.stats().connections == 0)
        assert served.stop() == reports[0] == StopReport(drained=2)


def test_several_handlers_may_stop_the_server_and_wait_for_a_third(ipv4: Namespace, per: Per) -> None:
    blocking = Blocking()
    reports: Future[StopReport] = Future()
    both = threading.Barrier(2)

    def handler(stream: StreamSocket) -> None:
        if stream.read(1, peek=True) == b"b":
            blocking(stream)
            return
        stream.read()
        both.wait(PATIENCE)
        report = served.stop(PATIENCE)
        with contextlib.suppress(Exception):
            reports.set_result(report)
        assert report == StopReport(drained=3)
        stream.write(b"stopped")

    server = ipv4.make_server()
    served = ConnectionServer(server, handler, per=per)
    with served, contextlib.ExitStack() as stack:
        peers = [stack.enter_context(ipv4.connect_plainly(server)) for _ in range(3)]
        peers[2].sendall(b"b")
        blocking.wait()
        peers[0].sendall(b"s")
        peers[1].sendall(b"s")
        until(lambda: server.closed)
        assert not reports.done()
        blocking.go_on.set()
        assert [peer.recv(100) for peer in peers] == [b"stopped", b"stopped", b"done"]


def test_a_hook_may_stop_the_server(ipv4: Namespace, per: Per, workers: WorkerPool) -> None:
    def fail(stream: StreamSocket) -> None:
        raise ValueError

    reports: Future[StopReport] = Future()
    server = ipv4.make_server()
    served = ConnectionServer(
        server, fail, per=per, workers=workers, on_error=lambda error, stream: reports.set_result(served.stop())
    )
    with served, ipv4.connect_plainly(server) as peer:
        peer.sendall(b"x")
        assert reports.result(PATIENCE) == StopReport(drained=1)
        assert at_end(peer)


def test_a_task_of_its_own_pool_may_stop_it(ipv4: Namespace, per: Per) -> None:
    served = ConnectionServer(ipv4.make_server(), answer, per=per)
    served.start()
    assert served.workers.submit(served.stop).result(PATIENCE) == StopReport()


@pytest.mark.parametrize("own", [True, False])
def test_on_the_poller_thread_stop_only_begins(ipv4: Namespace, per: Per, own: bool) -> None:
    """The handler that is running needs that thread: it waits for a timer."""
    called = threading.Event()
    go_on = threading.Event()

    def handler(stream: StreamSocket) -> None:
        stream.read()
        called.set()
        assert go_on.wait(PATIENCE)
        served.workers.poller_thread.call_later(0, int).result(PATIENCE)
        stream.write(b"done")

    server = ipv4.make_server()
    with contextlib.ExitStack() as stack:
        workers = None if own else stack.enter_context(WorkerPool(4))
        served = ConnectionServer(server, handler, per=per, workers=workers)
        with served, ipv4.connect_plainly(server) as peer:
            peer.sendall(b"x")
            assert called.wait(PATIENCE)
            begin = time.monotonic()
            stopping = served.workers.poller_thread.call_later(0, served.stop)
            assert stopping.result(PATIENCE) == StopReport()
            assert time.monotonic() - begin < 5
            assert server.closed
            go_on.set()
            assert peer.recv(100) == b"done"
            assert served.stop() == StopReport(drained=1)


def test_where_the_system_has_no_thread_it_stops_all_the_same(ipv4: Namespace, per: Per) -> None:
    server = ipv4.make_server()
    with WorkerPool(4) as workers:
        with ConnectionServer(server, answer, per=per, workers=workers) as served, ipv4.connect_plainly(server):
            until(lambda: served.stats().connections == 1)
            with mock.patch("threading.Thread.start", side_effect=RuntimeError("can't start new thread")):
                assert served.stop() == StopReport(drained=1)
            assert served.stop() == StopReport(drained=1)
        blocking = Blocking()
        with ConnectionServer(other := ipv4.make_server(), blocking, per=per, workers=workers) as served:
            with ipv4.connect_plainly(other) as peer:
                peer.sendall(b"x")
                blocking.wait()
                with mock.patch("threading.Thread.start", side_effect=RuntimeError("can't start new thread")):
                    workers.poller_thread.call_later(0, served.stop).result(PATIENCE)
                assert served.stop() == StopReport(abandoned=1)
                blocking.go_on.set()
                until(lambda: served.stats().connections == 0)


def test_a_connection_that_comes_while_it_stops_is_refused(ipv4: Namespace, per: Per, workers: WorkerPool) -> None:
    """It was accepted already, and finds the table shut."""
    server = ipv4.make_server()
    here, go_on = threading.Event(), threading.Event()
    accept = type(server).accept_connection

    def slow_accept(server: Server) -> StreamSocket:
        stream = accept(server)  # type: ignore[arg-type]
        here.set()
        assert go_on.wait(PATIENCE)
        return stream

    with mock.patch.object(type(server), "accept_connection", slow_accept):
        served = ConnectionServer(server, answer, per=per, workers=workers)
        with served, ipv4.connect_plainly(server) as peer:
            assert here.wait(PATIENCE)
            stopping = Worker(served.stop)
            until(lambda: server.closed)
            go_on.set()
            assert at_end(peer)
            assert stopping.outcome() == StopReport()
    until(lambda: (served.stats().refused, served.stats().accepted) == (1, 0))


class Token(list[None]):
    """A connection's token, with something that happens in the moment when it was not found."""

    def __init__(self, meanwhile: Callable[[], object]) -> None:
        super().__init__([None])
        self._meanwhile = meanwhile

    def pop(self, *_args: Any) -> None:
        try:
            super().pop()
        except IndexError:
            self._meanwhile()
            raise


def test_a_call_that_returns_while_its_end_is_asked_for_ends_it() -> None:
    """1. Somebody wants the end, and finds no token.  2. The call gives it back, and looks.  3. Nobody is left."""
    gone: list[Connection] = []
    blocking = Blocking()

    class Home:
        def left(self, connection: Connection) -> None:
            gone.append(connection)

        def failed(self, error: BaseException, stream: StreamSocket) -> None:
            raise AssertionError(error)

    one, other = bbipc.local_stream_pair()
    with one, other:
        connection = Connection(Home(), one, blocking)
        calling = Worker(lambda: connection.call(one, SocketEvent.DATA_AVAILABLE))

        def let_it_return() -> None:
            blocking.go_on.set()
            calling.outcome()

        connection._token = Token(let_it_return)
        connection._token.clear()
        blocking.wait()
        assert not connection.end()
    assert gone == [connection]


class Gates(list[threading.Lock]):
    """Of those who wait for the end, which comes in the moment when one of them joins."""

    def __init__(self, stopping: Stopping) -> None:
        super().__init__()
        self._stopping = stopping

    def append(self, gate: threading.Lock) -> None:
        ending = Worker(self._stopping._open_gates)
        ending.join(0.1)  # it has to wait
        super().append(gate)


def test_who_waits_for_an_end_that_is_just_coming_is_told() -> None:
    stopping = Stopping(Connections(int, print), int, int)
    stopping._gates = Gates(stopping)
    assert stopping.wait_for_end(PATIENCE)


# Serving for ever.


def test_serve_forever_returns_when_somebody_stops_it(ipv4: Namespace, per: Per) -> None:
    server = ipv4.make_server()
    served = ConnectionServer(server, HANDLERS[per], per=per)
    serving = [Worker(served.serve_forever) for _ in range(3)]
    with ipv4.connect_plainly(server) as peer:
        assert ask(peer) == b"hello"
        if per == "connection":
            peer.shutdown(socket.SHUT_WR)
            assert at_end(peer)
        until(lambda: served.stats().connections == (per == "readiness"))
        report = served.stop()
        assert [worker.outcome() for worker in serving] == [report] * 3
    with pytest.raises(RuntimeError, match="stopped"):
        served.serve_forever()


CTRL_C = """
    import os, signal, sys, threading, bbipc
    from pool.server import ConnectionServer
    def handler(stream):
        stream.read()
        if "busy" in sys.argv:
            stream.write(b"x")
            threading.Event().wait()
        else:
            stream.write(b"done")
    served = ConnectionServer(bbipc.make_local_server(sys.argv[1]), handler, per=sys.argv[2])
    print("listening", flush=True)
    print(served.serve_forever(stop_timeout=0.1), flush=True)
    print(threading.active_count() <= 2, flush=True)
"""


def child(program: str, *args: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(program), *args]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("busy", ["idle", "busy"])
def test_ctrl_c_stops_it(short_dir: Path, per: Per, busy: str) -> None:
    path = short_dir / "s"
    with child(CTRL_C, str(path), per, busy) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "listening\n"
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(PATIENCE)
            peer.connect(str(path))
            assert ask(peer) == (b"x" if busy == "busy" else b"done")
            begin = time.monotonic()
            process.send_signal(signal.SIGINT)
            out, errors = process.communicate(timeout=PATIENCE)
            assert time.monotonic() - begin < 5
            assert at_end(peer)
    assert (process.returncode, errors) == (0, "")
    assert out.splitlines()[0].startswith("StopReport(")
    if busy == "busy":
        assert out.splitlines()[0] == "StopReport(drained=0, forced=0, abandoned=1)"
    assert out.splitlines()[1] == "True"
    assert not path.exists()


def test_a_signal_handler_may_stop_it(ipv4: Namespace, per: Per) -> None:
    """SIGTERM, say, in the thread that serves: it returns from serve_forever afterwards.  The handler waits."""
    server = ipv4.make_server()
    served = ConnectionServer(server, HANDLERS[per], per=per)
    before = signal.signal(signal.SIGUSR1, lambda number, frame: served.stop())
    main = threading.main_thread().ident
    assert main is not None

    def raise_it() -> None:
        with ipv4.connect_plainly(server) as peer:
            assert ask(peer) == b"hello"
        until(lambda: served.stats().connections == 0)
        signal.pthread_kill(main, signal.SIGUSR1)

    try:
        raising = Worker(raise_it)
        assert served.serve_forever() == StopReport()
        raising.outcome()
    finally:
        signal.signal(signal.SIGUSR1, before)


# What happens behind its back.


def test_it_stops_when_its_pool_is_shut_down(ipv4: Namespace, per: Per, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody is left to accept: better an end than a server that nobody can reach."""
    server = ipv4.make_server()
    workers = WorkerPool(2)
    served = ConnectionServer(server, answer, per=per, workers=workers)
    serving = Worker(served.serve_forever)
    with ipv4.connect_plainly(server) as peer:
        until(lambda: served.stats().connections == 1)
        workers.shutdown()
        assert serving.outcome() == served.stop()
        assert at_end(peer)
    assert served.stats().connections == 0
    assert "stops" in caplog.text


def test_who_comes_to_a_pool_that_was_shut_down_is_refused(ipv4: Namespace, per: Per, workers: WorkerPool) -> None:
    """The poller thread is somebody else's, and goes on."""
    server = ipv4.make_server()
    other = WorkerPool(2, poller_thread=workers.poller_thread)
    with ConnectionServer(server, answer, per=per, workers=other) as served, ipv4.connect_plainly(server) as before:
        until(lambda: served.stats().connections == 1)
        other.shutdown()
        if per == "readiness":
            assert at_end(before)
        for count in (1, 2):
            with ipv4.connect_plainly(server) as peer:
                assert at_end(peer)
            until(lambda count=count: served.stats().refused == count)  # type: ignore[misc]
        served.stop()
        assert at_end(before)
    assert served.stats().connections == 0


def test_a_broken_executor_takes_nobody(ipv4: Namespace, per: Per) -> None:
    executor = ThreadPoolExecutor(1)
    server = ipv4.make_server()
    with WorkerPool(executor=executor) as workers:
        with ConnectionServer(server, answer, per=per, workers=workers) as served:
            executor.shutdown()
            with ipv4.connect_plainly(server) as peer:
                peer.sendall(b"x")
                if per == "connection":
                    assert at_end(peer)
                    until(lambda: served.stats().connections == 0)
            served.stop()


def in_child(check: Callable[[], bool]) -> bool:
    """Whether *check* holds in a forked child."""
    number = os.fork()
    if not number:
        code = 1
        try:
            code = 0 if check() else 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_no_server(namespace: Namespace, per: Per, workers: WorkerPool) -> None:
    server = namespace.make_server()
    with ConnectionServer(server, HANDLERS[per], per=per, workers=workers) as served:
        with namespace.connect_plainly(server) as peer:
            assert ask(peer) == b"hello"

            def check() -> bool:
                for refused in (served.start, served.serve_forever):
                    try:
                        refused()
                    except RuntimeError as error:
                        if "forked" in str(error):
                            continue
                    return False
                served.stats()
                return served.stop() == StopReport() and not server.closed

            with served._lock, served._connections._lock:  # held by another thread, as it were
                assert in_child(check)
            assert ask(peer) == b"hello"
            if per == "connection":
                peer.shutdown(socket.SHUT_WR)
                assert at_end(peer)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_handler_may_fork(ipv4: Namespace, per: Per) -> None:
    """The child leaves the handler as the parent does: its hold on the connection goes, and no more."""
    server = ipv4.make_server()

    def handler(stream: StreamSocket) -> None:
        data = stream.read()
        if data:
            connection = Connection(served._connections, stream, handler)
            assert in_child(lambda: connection.end() and stream.closed)
            stream.write(data)

    served = ConnectionServer(server, handler, per=per)
    with served, ipv4.connect_plainly(server) as peer:
        assert ask(peer) == b"hello"


EXIT = """
    import sys, threading, bbipc
    from pool.server import ConnectionServer
    from pool.worker_pool import WorkerPool
    def handler(stream):
        called.set()
        if "busy" in sys.argv:
            bbipc.poll_socket(stream, bbipc.SocketEvent.REMOTE_DISCONNECTED, None)
        elif "deaf" in sys.argv:
            threading.Event().wait()
    called = threading.Event()
    server = bbipc.make_local_server(sys.argv[1])
    served = ConnectionServer(server, handler, per=sys.argv[2])
    served.start()
    peer = bbipc.connect_to_local_server(server.path)
    peer.write(b"x")
    called.wait()
    if "stop" in sys.argv:
        served.stop(0)
    peer.close()
"""


@pytest.mark.parametrize("ending", ["idle", "busy", "deaf", "stop"])
def test_the_interpreter_exits_with_a_running_server(short_dir: Path, per: Per, ending: str) -> None:
    """HAZARDS 38: in less than 2 s, code 0, nothing on stderr, and the path is gone."""
    path = short_dir / "s"
    begin = time.monotonic()
    with child(EXIT, str(path), per, ending) as process:
        out, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, errors) == (0, "", "")
    assert time.monotonic() - begin < 4  # with the start of an interpreter on a busy machine
    assert not path.exists()
