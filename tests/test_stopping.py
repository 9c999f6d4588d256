"""How a server ends: in order and in time, whoever asks, and whatever happens behind its back."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import bbipc
from bbipc import SocketClosedError, SocketEvent, StreamSocket
from pool.connections import Connection, Connections
from pool.poller_thread import PollerThread
from pool.seldom import Seldom
from pool.server import ConnectionServer
from pool.stopping import GRACE, Stopping, StopReport
from pool.worker_pool import WorkerPool
from tests.support.makers import PATIENCE, Namespace, Server, Worker, make_namespace
from tests.support.serving import HANDLERS, READ, Blocking, Per, answer, ask, at_end, is_refused, until


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
            timeouts = (None, 60.0, 1e12, float("inf"))
            patient = [Worker(lambda timeout=timeout: served.stop(timeout)) for timeout in timeouts]  # type: ignore[misc]
            until(lambda: server.closed)
            assert served.stop(0) == StopReport(abandoned=1)
            assert [worker.outcome() for worker in patient] == [StopReport(abandoned=1)] * 4
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
            until(lambda: served.stats().connections == 1 and workers.stats().threads >= (per == "readiness"))
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
        loop = None

        def left(self, connection: Connection) -> None:
            gone.append(connection)

        def failed(self, error: BaseException, stream: StreamSocket) -> None:
            raise AssertionError(error)

        refused = failed

    one, other = bbipc.local_stream_pair()
    with one, other:
        connection = Connection(Home(), one, blocking)
        calling = Worker(lambda: connection.call(one, SocketEvent.DATA_AVAILABLE))

        def let_it_return() -> None:
            blocking.go_on.set()
            calling.outcome()

        blocking.wait()  # first: a call that came later would find no token
        connection._token = Token(let_it_return)
        connection._token.clear()
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
    stopping = Stopping(Connections(int, print, print), int, int)
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


@contextlib.contextmanager
def child(program: str, *args: str) -> Iterator[subprocess.Popen[str]]:
    """A program of its own, that ends with the block."""
    quiet = "import logging; logging.getLogger('pool.dispatch').disabled = True\n"  # a busy machine is slow
    command = [sys.executable, "-W", "error", "-c", quiet + textwrap.dedent(program), *args]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


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


@pytest.fixture(scope="module")
def lasting_helpers() -> None:
    """What multiprocessing starts once and keeps, before anything is counted."""
    resource_tracker.ensure_running()


@pytest.mark.usefixtures("lasting_helpers")
@pytest.mark.parametrize("kind", ["of threads, shut down", "of processes"])
@pytest.mark.filterwarnings(r"ignore:.*use of fork\(\) may lead to deadlocks:DeprecationWarning")
def test_a_broken_executor_takes_nobody(ipv4: Namespace, per: Per, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """Nor does one of other processes, to which no stream can go.  Found: all clients were dropped, and nobody told."""
    told: list[tuple[BaseException, bool]] = []
    server = ipv4.make_server()
    with contextlib.ExitStack() as stack:
        executor: Executor = ThreadPoolExecutor(1)
        if kind == "of processes":
            executor = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork"))
        stack.enter_context(executor)
        assert executor.submit(int).result(PATIENCE) == 0
        workers = stack.enter_context(WorkerPool(executor=executor))
        served = ConnectionServer(
            server, answer, per=per, workers=workers, on_error=lambda error, stream: told.append((error, stream.closed))
        )
        served._warnings = Seldom(60.0)
        stack.enter_context(served)
        if kind != "of processes":
            executor.shutdown()
        for count in range(1, 6):
            with ipv4.connect_plainly(server) as peer:
                peer.sendall(b"x")
                assert at_end(peer)
            until(lambda count=count: served.stats().refused == count)  # type: ignore[misc]
        until(lambda: served.stats().connections == 0)
    assert len([record for record in caplog.records if "was refused" in record.message]) == 1
    expected = TypeError if kind == "of processes" else RuntimeError
    assert [(type(error), closed) for error, closed in told] == [(expected, False)] * 5
    assert (served.stats().accepted, served.stats().handler_errors, served.stats().disconnected) == (5, 0, 0)


def test_a_server_that_is_stopped_refuses_in_silence(ipv4: Namespace, per: Per) -> None:
    """Whoever is cut off by its end, and by that of the workers, was served or is closed by it."""
    told: list[object] = []
    server = ipv4.make_server()
    executor = ThreadPoolExecutor(1)
    with WorkerPool(executor=executor) as workers:
        served = ConnectionServer(server, answer, per=per, workers=workers, on_error=lambda *args: told.append(args))
        served.start()
        with ipv4.connect_plainly(server) as peer:
            until(lambda: served.stats().connections == 1)
            served.stop()
            assert at_end(peer)
        executor.shutdown()
    assert (told, served.stats().refused) == ([], 0)


def test_a_pool_that_is_shut_down_ends_idle_connections_in_silence(ipv4: Namespace) -> None:
    """They were taken, and their client has asked for nothing."""
    told: list[object] = []
    server = ipv4.make_server()
    with PollerThread() as poller_thread:
        workers = WorkerPool(2, poller_thread=poller_thread)
        served = ConnectionServer(
            server, answer, per="readiness", workers=workers, on_error=lambda *args: told.append(args)
        )
        with served, ipv4.connect_plainly(server) as peer:
            assert ask(peer) == b"hello"
            workers.shutdown()
            assert at_end(peer)
            until(lambda: served.stats().connections == 0)
    assert (told, served.stats().refused) == ([], 0)


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
