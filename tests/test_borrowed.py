"""Borrowed executors: the poller thread waits, somebody else's executor makes the calls."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import pytest

import bbipc
from bbipc import SocketClosedError, SocketEvent
from pool.borrowed import BorrowedMonitor
from pool.worker_pool import Monitoring, WorkerPool
from tests.support.makers import PATIENCE, Worker
from tests.test_crew import Held, until

READ = SocketEvent.DATA_AVAILABLE | SocketEvent.REMOTE_DISCONNECTED


class ByHand(Executor):
    """Calls are made when the test says so."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Future[Any], Callable[[], Any]]] = []
        self.submitted = threading.Semaphore(0)
        self.refusal: BaseException | None = None

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        if self.refusal is not None:
            raise self.refusal
        future: Future[Any] = Future()
        self.waiting.append((future, lambda: fn(*args, **kwargs)))
        self.submitted.release()
        return future

    def take(self) -> tuple[Future[Any], Callable[[], Any]]:
        assert self.submitted.acquire(timeout=PATIENCE)
        return self.waiting.pop(0)

    def make_a_call(self) -> None:
        future, call = self.take()
        assert future.set_running_or_notify_cancel()
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)


class AtOnce(Executor):
    """Calls are made by ``submit`` itself."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


class Scene:
    """A pool on an executor, and a monitored stream."""

    def __init__(self, executor: Executor) -> None:
        self.pool = WorkerPool(executor=executor)
        self.ours, self.peer = bbipc.local_stream_pair()
        self.calls: list[SocketEvent] = []
        self.read: list[bytes | None] = []
        self.closes: list[Exception] = []
        self.during: Callable[[], object] = int
        self.called = threading.Semaphore(0)

    def monitor(self) -> Monitoring:
        return self.pool.monitor(self.ours, READ, self._call, on_close=self._closed)

    def _call(self, socket: bbipc.Socket, events: SocketEvent) -> None:
        self.calls.append(events)
        if not self.ours.closed:
            self.read.append(self.ours.read())
        try:
            self.during()
        finally:
            self.called.release()

    def _closed(self, error: Exception) -> None:
        self.closes.append(error)

    def settle(self) -> None:
        """The poller thread has done what it had to do."""
        self.pool.poller_thread.call_later(0, int).result(PATIENCE)

    def armed(self) -> SocketEvent:
        """What the kernel is asked for."""
        poller = self.pool.poller_thread._poller
        assert poller is not None
        return poller.monitored_events(self.ours)

    def close(self) -> None:
        self.pool.shutdown()
        self.ours.close()
        self.peer.close()


@pytest.fixture
def by_hand() -> ByHand:
    return ByHand()


@pytest.fixture
def scene(by_hand: ByHand) -> Iterator[Scene]:
    scene = Scene(by_hand)
    yield scene
    scene.close()


# submit and map.


@pytest.fixture(scope="module")
def lasting_helpers() -> None:
    """What multiprocessing starts once and keeps, before anything is counted."""
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()


@pytest.mark.filterwarnings(r"ignore:.*use of fork\(\) may lead to deadlocks:DeprecationWarning")
def test_a_process_pool(lasting_helpers: None) -> None:
    import multiprocessing

    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(1, mp_context=context) as executor, WorkerPool(executor=executor) as pool:
        assert pool.submit(pow, 2, 5).result(PATIENCE) == 32
        assert list(pool.map(abs, [-1, 2, -3], timeout=PATIENCE)) == [1, 2, 3]


@pytest.mark.skipif(sys.version_info < (3, 14), reason="new in 3.14")
def test_an_interpreter_pool() -> None:
    executor_type: type[Executor] = futures.InterpreterPoolExecutor  # type: ignore[attr-defined]
    with executor_type(1) as executor, WorkerPool(executor=executor) as pool:  # type: ignore[call-arg]
        assert pool.submit(pow, 2, 5).result(PATIENCE) == 32
        assert list(pool.map(abs, [-1, 2, -3], timeout=PATIENCE)) == [1, 2, 3]


def test_a_thread_pool() -> None:
    with ThreadPoolExecutor(2) as executor:
        scene = Scene(executor)
        assert scene.pool.submit(pow, 2, 5).result(PATIENCE) == 32
        assert list(scene.pool.map(abs, [-1, 2, -3])) == [1, 2, 3]
        scene.monitor()
        for number in range(50):
            scene.peer.write(b"x")
            assert scene.called.acquire(timeout=PATIENCE), number
        assert b"".join(part or b"" for part in scene.read) == b"x" * 50
        future = scene.pool.when(scene.ours, SocketEvent.READY_TO_WRITE, lambda socket, events, more: more, 7)
        assert future.result(PATIENCE) == 7
        scene.close()
        assert executor.submit(int).result(PATIENCE) == 0  # it is its owner's


def test_a_worker_pool_for_a_worker_pool() -> None:
    with WorkerPool(2) as inner:
        scene = Scene(inner)
        scene.monitor()
        scene.peer.write(b"x")
        assert scene.called.acquire(timeout=PATIENCE)
        scene.close()


def test_an_executor_that_makes_the_call_at_once() -> None:
    scene = Scene(AtOnce())
    scene.monitor()
    for _ in range(5):
        scene.peer.write(b"x")
        assert scene.called.acquire(timeout=PATIENCE)
    scene.close()
    assert len(scene.closes) == 1


def test_its_threads_and_its_queue_are_its_owners() -> None:
    for wish in ({"max_workers": 3}, {"initializer": int}, {"queue_limit": 3}):
        with pytest.raises(ValueError, match="owner"):
            WorkerPool(executor=AtOnce(), **wish)


# Monitors.


def test_never_twice_at_once(scene: Scene, by_hand: ByHand) -> None:
    """While a call is on its way or running, nothing is asked of the executor."""
    scene.monitor()
    scene.peer.write(b"a")
    future, call = by_hand.take()
    scene.peer.write(b"b")
    scene.settle()
    scene.settle()
    assert not by_hand.waiting
    assert not scene.armed()
    future.set_running_or_notify_cancel()
    call()
    scene.peer.write(b"c")
    scene.settle()
    assert not by_hand.waiting
    future.set_result(None)
    by_hand.make_a_call()
    assert scene.read == [b"ab", b"c"]


def test_a_call_that_the_executor_has_cancelled(scene: Scene, by_hand: ByHand) -> None:
    scene.monitor()
    scene.peer.write(b"a")
    future, _ = by_hand.take()
    future.cancel()
    future.set_running_or_notify_cancel()
    by_hand.make_a_call()
    assert scene.read == [b"a"]


@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt])
def test_a_call_that_raises(
    scene: Scene, by_hand: ByHand, kind: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise kind("on purpose")

    scene.during = fail
    scene.monitor()
    for _ in range(12):
        scene.peer.write(b"x")
        by_hand.make_a_call()
    assert len(scene.calls) == 12
    assert len([record for record in caplog.records if "failed" in record.message]) == 2


@pytest.mark.parametrize("error", [TypeError("cannot be pickled"), BrokenExecutor("gone"), SystemExit("no")])
def test_a_call_that_fails_and_never_began_ends_the_monitor(
    scene: Scene, by_hand: ByHand, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """It would be made, and fail, again and again: nobody has read what it is for."""
    monitor = scene.monitor()
    scene.peer.write(b"x")
    by_hand.make_a_call()
    scene.peer.write(b"x")
    future, _ = by_hand.take()
    future.set_exception(error)
    assert not monitor.active
    scene.settle()
    assert (len(scene.calls), by_hand.waiting) == (1, [])
    if isinstance(error, Exception):
        assert scene.closes == [error]
    else:
        assert [type(told) for told in scene.closes] == [RuntimeError]
    assert len([record for record in caplog.records if "failed" in record.message]) == 1


def test_a_call_that_never_began_and_whose_socket_was_closed_is_told_as_a_close(scene: Scene, by_hand: ByHand) -> None:
    scene.monitor()
    scene.peer.write(b"x")
    future, _ = by_hand.take()
    scene.ours.close()
    scene.settle()
    assert scene.closes == []
    future.set_exception(BrokenExecutor("gone"))
    assert [type(told) for told in scene.closes] == [SocketClosedError]


def test_a_call_that_never_began_is_not_told_to_who_has_cancelled(scene: Scene, by_hand: ByHand) -> None:
    monitor = scene.monitor()
    scene.peer.write(b"x")
    future, _ = by_hand.take()
    monitor.cancel()
    future.set_exception(BrokenExecutor("gone"))
    scene.settle()
    assert scene.closes == []


@pytest.mark.filterwarnings(r"ignore:.*use of fork\(\) may lead to deadlocks:DeprecationWarning")
def test_a_monitor_with_a_process_pool_fails_by_name_and_once(
    lasting_helpers: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Found: 1,600 failures in half a second, and the monitor went on."""
    import multiprocessing

    submitted: list[object] = []

    class Counting(ProcessPoolExecutor):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            submitted.append(fn)
            return super().submit(fn, *args, **kwargs)

    with Counting(1, mp_context=multiprocessing.get_context("fork")) as processes:
        assert processes.submit(int).result(PATIENCE) == 0
        scene = Scene(processes)
        monitor = scene.monitor()
        scene.peer.write(b"x")
        until(lambda: bool(scene.closes))
        assert not monitor.active
        scene.settle()
        scene.peer.write(b"x")
        scene.settle()
        assert len(submitted) == 2
        (error,) = scene.closes
        assert isinstance(error, TypeError)
        assert "LocalStream cannot be pickled" in str(error)
        assert len([record for record in caplog.records if "failed" in record.message]) == 1
        scene.close()


def test_a_monitor_cannot_be_copied(scene: Scene) -> None:
    import copy

    monitor = scene.monitor()
    with pytest.raises(TypeError, match="LocalStream cannot be pickled"):
        copy.copy(monitor)


@pytest.mark.parametrize("refusal", [RuntimeError("shut down"), ValueError("no"), SystemExit("no")])
def test_an_executor_that_refuses_is_not_asked_again(
    scene: Scene, by_hand: ByHand, refusal: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    by_hand.refusal = refusal
    monitor = scene.monitor()
    scene.peer.write(b"x")
    until(lambda: not monitor.active)
    scene.settle()
    assert str(refusal) in caplog.text
    scene.peer.write(b"x")
    scene.settle()
    assert len([record for record in caplog.records if str(refusal) in (record.exc_text or "")]) <= 1


@pytest.mark.parametrize("refusal", [RuntimeError("shut down"), ValueError("no"), SystemExit("no")])
def test_a_refusal_goes_to_the_future_that_waited(scene: Scene, by_hand: ByHand, refusal: BaseException) -> None:
    by_hand.refusal = refusal
    future = scene.pool.when(scene.ours, READ, lambda socket, events: 7)
    scene.peer.write(b"x")
    with pytest.raises(type(refusal), match=str(refusal)):
        future.result(PATIENCE)
    with pytest.raises(type(refusal), match=str(refusal)):
        scene.pool.submit(int)


def test_what_was_handed_over_is_the_executors_to_cancel(scene: Scene, by_hand: ByHand) -> None:
    """As docs/futures-and-workers.md says of ``executor=``."""
    early = scene.pool.when(scene.ours, READ, lambda socket, events: 7)
    assert early.cancel()
    future = scene.pool.when(scene.ours, READ, lambda socket, events: 8)
    other = scene.pool.when(scene.ours, READ, lambda socket, events: 9)
    scene.peer.write(b"x")
    (handed, _), (kept, call) = by_hand.take(), by_hand.take()
    assert not future.cancel()
    scene.pool.shutdown(wait=True, cancel_futures=True)
    assert not future.done()
    assert handed.cancel()
    handed.set_running_or_notify_cancel()
    with pytest.raises(CancelledError):
        future.result(PATIENCE)
    kept.set_result(call())
    assert other.result(PATIENCE) == 9
    assert not by_hand.waiting


def test_cancelled(scene: Scene, by_hand: ByHand) -> None:
    """A call that is on its way is made; none comes afterwards."""
    monitor = scene.monitor()
    scene.peer.write(b"a")
    future, call = by_hand.take()
    monitor.cancel()
    monitor.cancel()
    assert not monitor.active
    future.set_running_or_notify_cancel()
    call()
    future.set_result(None)
    scene.peer.write(b"b")
    scene.settle()
    assert not by_hand.waiting
    assert not scene.closes


def test_cancelled_inside_its_call(scene: Scene, by_hand: ByHand) -> None:
    monitor = scene.monitor()
    scene.during = monitor.cancel
    scene.peer.write(b"a")
    by_hand.make_a_call()
    scene.peer.write(b"b")
    scene.settle()
    assert not by_hand.waiting


def test_paused_and_resumed(scene: Scene, by_hand: ByHand) -> None:
    monitor = scene.monitor()
    monitor.pause()
    monitor.pause()
    scene.peer.write(b"a")
    scene.settle()
    assert not by_hand.waiting
    monitor.resume()
    monitor.resume()
    by_hand.make_a_call()
    assert scene.read == [b"a"]


@pytest.mark.parametrize("change", ["resume", "set_events", "nothing"])
def test_paused_while_its_call_runs(scene: Scene, by_hand: ByHand, change: str) -> None:
    monitor = scene.monitor()
    scene.peer.write(b"a")
    future, call = by_hand.take()
    monitor.pause()
    if change == "resume":
        monitor.resume()
    elif change == "set_events":
        monitor.set_events(SocketEvent.DATA_AVAILABLE)
    scene.peer.write(b"b")
    scene.settle()
    assert not by_hand.waiting  # the call still runs
    future.set_running_or_notify_cancel()
    call()
    future.set_result(None)
    scene.peer.write(b"c")
    scene.settle()
    if change == "nothing":
        assert not by_hand.waiting
        assert not scene.armed()
        monitor.resume()
    by_hand.make_a_call()
    assert scene.read == [b"ab", b"c"]


def test_other_events(scene: Scene, by_hand: ByHand) -> None:
    monitor = scene.monitor()
    monitor.set_events(SocketEvent.READY_TO_WRITE)
    by_hand.make_a_call()
    assert scene.calls == [SocketEvent.READY_TO_WRITE]
    with pytest.raises(ValueError):
        monitor.set_events(SocketEvent.CONNECTION_AVAILABLE)
    with pytest.raises(TypeError):
        monitor.set_events(1)  # type: ignore[arg-type]


def test_what_cannot_be_monitored(scene: Scene) -> None:
    with pytest.raises(ValueError):
        scene.pool.monitor(scene.ours, SocketEvent.CONNECTION_AVAILABLE, int)  # type: ignore[arg-type]
    scene.ours.close()
    with pytest.raises(SocketClosedError):
        scene.monitor()


# Closes.


def test_a_close_is_told_once(scene: Scene) -> None:
    monitor = scene.monitor()
    scene.ours.close()
    until(lambda: len(scene.closes) == 1)
    scene.pool.shutdown()
    assert [type(error) for error in scene.closes] == [SocketClosedError]
    assert not monitor.active


def test_a_close_while_its_call_runs_is_told_afterwards(scene: Scene, by_hand: ByHand) -> None:
    scene.monitor()
    scene.peer.write(b"a")
    future, _ = by_hand.take()
    scene.ours.close()
    scene.settle()
    scene.settle()
    assert not scene.closes
    future.set_running_or_notify_cancel()
    future.set_result(None)
    assert [type(error) for error in scene.closes] == [SocketClosedError]
    scene.settle()
    assert len(scene.closes) == 1


def test_cancelled_after_a_close_while_its_call_runs(scene: Scene, by_hand: ByHand) -> None:
    monitor = scene.monitor()
    scene.peer.write(b"a")
    future, _ = by_hand.take()
    scene.ours.close()
    scene.settle()
    scene.settle()
    monitor.cancel()
    future.set_running_or_notify_cancel()
    future.set_result(None)
    assert not scene.closes


def test_shutdown_ends_the_monitors(scene: Scene) -> None:
    monitor = scene.monitor()
    scene.pool.shutdown()
    assert len(scene.closes) == 1
    assert not monitor.active
    with pytest.raises(RuntimeError):
        scene.pool.submit(int)
    with pytest.raises(RuntimeError):
        scene.monitor()
    monitor.cancel()


def test_a_pool_is_held_by_its_monitors() -> None:
    executor = ByHand()
    ours, peer = bbipc.local_stream_pair()
    called = threading.Event()
    monitor = WorkerPool(executor=executor).monitor(ours, READ, lambda socket, events: called.set())
    import gc

    gc.collect()
    peer.write(b"x")
    executor.make_a_call()
    assert called.is_set()
    pool = monitor._owner  # type: ignore[attr-defined]
    pool.shutdown()
    ours.close()
    peer.close()


def test_a_blocked_call_holds_up_no_other() -> None:
    with ThreadPoolExecutor(4) as executor, WorkerPool(executor=executor) as pool:
        pairs = [bbipc.local_stream_pair() for _ in range(4)]
        held = Held()
        served = threading.Semaphore(0)

        def call(socket: bbipc.Socket, events: SocketEvent) -> None:
            assert isinstance(socket, bbipc.StreamSocket)
            if socket.read() == b"block":
                held()
            served.release()

        for ours, _ in pairs:
            pool.monitor(ours, READ, call)
        pairs[0][1].write(b"block")
        assert held.begun.wait(PATIENCE)
        for _ in range(5):
            for _, peer in pairs[1:]:
                peer.write(b"x")
            for _ in pairs[1:]:
                assert served.acquire(timeout=PATIENCE)
        held.go_on.set()
        assert served.acquire(timeout=PATIENCE)
        pool.shutdown()
        for pair in pairs:
            for stream in pair:
                stream.close()


def test_changes_and_calls_race() -> None:
    """Two threads pause, resume and change it while 2,000 bytes come: each is seen, never two calls at once."""
    with ThreadPoolExecutor(3) as executor, WorkerPool(executor=executor) as pool:
        ours, peer = bbipc.local_stream_pair()
        calling, seen, problems = threading.Lock(), [0], list[str]()
        done = threading.Event()

        def call(socket: bbipc.Socket, events: SocketEvent) -> None:
            if not calling.acquire(blocking=False):
                problems.append("two at once")
                return
            seen[0] += len(ours.read(1) or b"")
            calling.release()
            if seen[0] == 2_000:
                done.set()

        monitor = pool.monitor(ours, READ, call)
        stop = threading.Event()

        def change() -> None:
            while not stop.wait(0.0005):
                monitor.pause()
                monitor.resume()
                monitor.pause()
                monitor.set_events(READ)

        changers = [Worker(change) for _ in range(2)]
        for _ in range(200):
            peer.write(bytes(10))
        finished = done.wait(PATIENCE)
        stop.set()
        for changer in changers:
            changer.outcome()
        assert finished, seen
        assert not problems
        pool.shutdown()
        ours.close()
        peer.close()


# One socket, one monitor.


def test_a_socket_is_monitored_once(scene: Scene, by_hand: ByHand) -> None:
    """As by a pool with threads of its own."""
    first = scene.monitor()
    for _ in range(2):
        with pytest.raises(ValueError, match="monitored already"):
            scene.monitor()
        scene.peer.write(b"a")
        by_hand.make_a_call()
    first.cancel()
    second = scene.monitor()
    with pytest.raises(ValueError, match="monitored already"):
        scene.monitor()
    scene.peer.write(b"b")
    by_hand.make_a_call()
    second.cancel()
    assert scene.read == [b"a", b"a", b"b"]


@pytest.mark.parametrize("end", ["returns", "raises", "is cancelled"])
def test_a_successor_waits_for_the_call_of_the_one_before_it(scene: Scene, by_hand: ByHand, end: str) -> None:
    first = scene.monitor()
    scene.peer.write(b"a")
    future, call = by_hand.take()
    first.cancel()
    for _ in range(2000):  # each in the place of the one before it, which has not begun
        scene.monitor().cancel()
    second = scene.monitor()
    with pytest.raises(ValueError, match="monitored already"):
        scene.monitor()
    second.resume()
    second.set_events(READ)
    scene.settle()
    assert not by_hand.waiting
    assert not scene.armed()
    if end == "is cancelled":
        future.cancel()
        future.set_running_or_notify_cancel()
    else:
        future.set_running_or_notify_cancel()
        call()
        future.set_exception(LookupError()) if end == "raises" else future.set_result(None)
    scene.peer.write(b"b")
    by_hand.make_a_call()
    assert scene.read == ([b"ab"] if end == "is cancelled" else [b"a", b"b"])
    assert second.active
    assert scene.closes == []


def test_a_successor_made_in_the_call_itself(scene: Scene, by_hand: ByHand) -> None:
    monitors = [scene.monitor()]

    def renew() -> None:
        monitors[-1].cancel()
        monitors.append(scene.monitor())
        scene.peer.write(b"b")
        scene.settle()
        assert not by_hand.waiting

    scene.during = renew
    scene.peer.write(b"a")
    by_hand.make_a_call()
    scene.during = int
    by_hand.make_a_call()
    assert scene.read == [b"a", b"b"]


def test_a_successor_that_is_paused_stays_so(scene: Scene, by_hand: ByHand) -> None:
    first = scene.monitor()
    scene.peer.write(b"a")
    future, _ = by_hand.take()
    first.cancel()
    second = scene.monitor()
    second.pause()
    future.set_result(None)
    scene.settle()
    assert not by_hand.waiting
    second.resume()
    by_hand.make_a_call()
    assert scene.read == [b"a"]


def test_a_successor_whose_socket_is_closed_is_told_behind_the_call(scene: Scene, by_hand: ByHand) -> None:
    first = scene.monitor()
    scene.peer.write(b"a")
    future, _ = by_hand.take()
    first.cancel()
    scene.monitor()
    scene.ours.close()
    scene.settle()
    assert scene.closes == []
    future.set_result(None)
    assert [type(error) for error in scene.closes] == [SocketClosedError]


def test_one_that_could_not_begin_is_in_nobodys_way(scene: Scene, by_hand: ByHand) -> None:
    with pytest.raises(ValueError):
        scene.pool.monitor(scene.ours, SocketEvent.CONNECTION_AVAILABLE, lambda *_: None)
    first = scene.monitor()
    scene.peer.write(b"a")
    future, _ = by_hand.take()
    first.cancel()
    with pytest.raises(ValueError):
        scene.pool.monitor(scene.ours, SocketEvent.CONNECTION_AVAILABLE, lambda *_: None)
    second = scene.monitor()
    scene.settle()
    assert not by_hand.waiting  # the call of the first still is on its way
    future.set_result(None)
    by_hand.make_a_call()
    assert scene.read == [b"a"]
    second.cancel()


def test_a_call_that_returns_before_its_heir_has_begun(scene: Scene, by_hand: ByHand) -> None:
    first = scene.monitor()
    assert isinstance(first, BorrowedMonitor)
    scene.peer.write(b"a")
    future, _ = by_hand.take()
    first.cancel()
    heir = BorrowedMonitor(scene.pool.poller_thread, scene.pool, by_hand, scene.ours, scene._call, None)
    first.give_way(heir)
    future.set_result(None)
    heir.begin(READ)
    by_hand.make_a_call()
    assert scene.read == [b"a"]
    heir.cancel()


def test_who_was_told_and_is_cancelled_before_he_says_so_makes_no_call(scene: Scene, by_hand: ByHand) -> None:
    """1. the poller thread is told for the first; 2. that is cancelled, and another made; 3. it hears of the first."""
    first = scene.monitor()
    assert isinstance(first, BorrowedMonitor)
    first.cancel()
    second = scene.monitor()
    first._ready(scene.ours, READ)
    assert not by_hand.waiting
    scene.peer.write(b"a")
    by_hand.make_a_call()
    assert scene.read == [b"a"]
    second.cancel()


def test_an_executor_that_refuses_while_its_heir_waits(scene: Scene, by_hand: ByHand) -> None:
    """The heir goes on, and asks for itself."""
    monitors = [scene.monitor()]
    submit = by_hand.submit

    def refuse(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        by_hand.submit = submit  # type: ignore[method-assign]
        monitors[0].cancel()
        monitors.append(scene.monitor())
        raise RuntimeError("busy")

    by_hand.submit = refuse  # type: ignore[method-assign]
    scene.peer.write(b"a")
    by_hand.make_a_call()
    assert scene.read == [b"a"]
    assert monitors[1].active


def test_repr(scene: Scene, by_hand: ByHand) -> None:
    monitor = scene.monitor()
    assert "idle of <LocalStream" in repr(monitor)
    scene.peer.write(b"x")
    by_hand.submitted.acquire(timeout=PATIENCE)
    by_hand.submitted.release()
    assert "busy" in repr(monitor)
    by_hand.make_a_call()


def test_a_shutdown_before_a_monitor_has_begun(scene: Scene, by_hand: ByHand) -> None:
    """It does not begin any more, and the shutdown goes on."""
    monitor = BorrowedMonitor(scene.pool.poller_thread, scene.pool, by_hand, scene.ours, lambda *_: None, None)
    monitor.end(RuntimeError("the pool was shut down"))
    assert not monitor.active
    monitor.cancel()
    with pytest.raises(RuntimeError, match="shut down"):
        monitor.begin(READ)


def test_several_that_end_it_tell_once(scene: Scene, by_hand: ByHand) -> None:
    told: list[Exception] = []
    monitor = scene.pool.monitor(scene.ours, READ, lambda *_: None, on_close=told.append)
    assert isinstance(monitor, BorrowedMonitor)
    for error in (RuntimeError("one"), RuntimeError("other")):
        monitor._ended(error)
    assert [str(error) for error in told] == ["one"]
    monitor.cancel()


def test_a_call_that_raised_does_not_end_it_though_the_next_is_on_its_way(scene: Scene, by_hand: ByHand) -> None:
    """1. a call raises; 2. the next one is handed over before that is dealt with in full."""
    told: list[Exception] = []

    def call(socket: bbipc.StreamSocket, events: SocketEvent) -> None:
        raise LookupError

    monitor = scene.pool.monitor(scene.ours, READ, call, on_close=told.append)
    assert isinstance(monitor, BorrowedMonitor)
    scene.peer.write(b"a")
    future, made = by_hand.take()
    assert future.set_running_or_notify_cancel()
    try:
        made()
    except LookupError as error:
        raised = error
    ours, original = monitor, monitor._lock

    class Meanwhile:
        """In the place of the lock: when it is let go of, the next call is handed over."""

        def __enter__(self) -> None:
            original.acquire()

        def __exit__(self, *_: object) -> None:
            original.release()
            if not ours._busy:
                ours._lock, ours._begun = original, False

    monitor._lock = Meanwhile()  # type: ignore[assignment]
    future.set_exception(raised)
    assert monitor.active
    assert not told
    monitor.cancel()
