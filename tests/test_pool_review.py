"""Interleavings of a worker pool that a reviewer found by reading; each hung, span or was silent once."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from unittest import mock

import pytest

import bbipc
from bbipc import SocketEvent
from pool import PollerThread, WorkerPool
from pool.crew import Crew
from pool.tasks import Task
from tests.support.makers import PATIENCE, Worker
from tests.support.serving import until

READ = SocketEvent.DATA_AVAILABLE | SocketEvent.REMOTE_DISCONNECTED


def nothing(*args: object) -> None:
    """A callback."""


def test_a_submit_inside_the_lock_of_the_stations_meets_one_outside() -> None:
    """A finalizer of a user's may submit anywhere; another thread submits while nobody is free.  100 rounds."""
    one, other = bbipc.local_stream_pair()
    with WorkerPool(1) as pool, one, other:
        pool.monitor(one, READ, nothing)
        for _ in range(100):
            ready = threading.Barrier(2)

            def inside(ready: threading.Barrier = ready) -> None:
                with pool._stations.lock:
                    ready.wait(PATIENCE)
                    pool.submit(nothing)

            def outside(ready: threading.Barrier = ready) -> None:
                ready.wait(PATIENCE)
                pool.submit(nothing)

            for worker in [Worker(inside), Worker(outside)]:
                worker.outcome()


def test_a_kernel_without_room_is_asked_again_after_a_pause() -> None:
    """Not as fast as the processor can: some 10 times in half a second."""
    tries = []
    one, other = bbipc.local_stream_pair()
    with WorkerPool(2) as pool, one, other:
        station = pool.monitor(one, READ, lambda socket, events: socket.read())
        full = threading.Event()

        def refuse(*args: object) -> None:
            tries.append(time.monotonic())
            if len(tries) == 10:
                full.set()
            if not full.is_set():
                raise OSError(28, "no space")

        with mock.patch.object(pool._stations, "_arm_locked", refuse):
            with pool._stations.lock:
                station.held = True  # type: ignore[attr-defined]
                pool._stations.unarmed.append(station)  # type: ignore[arg-type]
            pool._stations.wake()
            assert full.wait(PATIENCE)
        assert tries[-1] - tries[0] > 0.3


def test_the_end_of_a_pool_ends_what_it_monitors_with_the_executor_of_another() -> None:
    one, other = bbipc.local_stream_pair()
    with PollerThread() as poller_thread, ThreadPoolExecutor(1) as executor, one, other:
        ended: Future[Exception] = Future()
        pool = WorkerPool(executor=executor, poller_thread=poller_thread)
        monitor = pool.monitor(one, READ, nothing, on_close=ended.set_result)
        pool.shutdown()
        assert isinstance(ended.result(PATIENCE), RuntimeError)
        assert not monitor.active


class Refusing(Executor):
    """It takes nothing."""

    def submit(self, *args: object, **kwargs: object) -> Future[object]:  # type: ignore[override]
        raise RuntimeError("shut down")


def test_an_executor_that_refuses_ends_the_monitor_aloud() -> None:
    one, other = bbipc.local_stream_pair()
    with WorkerPool(executor=Refusing()) as pool, one, other:
        ended: Future[Exception] = Future()
        monitor = pool.monitor(one, READ, nothing, on_close=ended.set_result)
        other.write(b"x")
        assert str(ended.result(PATIENCE)) == "shut down"
        assert not monitor.active


def test_a_cancel_that_was_torn_leaves_nobody_spinning() -> None:
    """Ctrl-C inside of cancel: the table has let go, the poller has not; what it tells then makes it let go."""
    one, other = bbipc.local_stream_pair()
    with WorkerPool(2) as pool, one, other:
        station = pool.monitor(one, READ, nothing)
        poller = pool._stations.poller
        assert poller is not None
        until(lambda: pool._leadership._term.polling)  # somebody is there to be told
        with (
            mock.patch.object(poller, "unmonitor_socket", side_effect=KeyboardInterrupt),
            pytest.raises(KeyboardInterrupt),
        ):
            station.cancel()
        other.write(b"x")
        end = time.monotonic() + PATIENCE
        while poller.monitored_sockets():
            assert time.monotonic() < end, "the poller still tells of it"


def test_a_task_that_was_cancelled_before_it_was_refused_is_settled_once(caplog: pytest.LogCaptureFixture) -> None:
    pool = WorkerPool(1)
    pool.shutdown()
    future: Future[None] = Future()
    task = Task(future, lambda: None)
    future.cancel()
    pool._put_urgently(task)
    assert future.cancelled()
    assert not caplog.records


def test_a_system_without_threads_does_not_make_beds_pile_up() -> None:
    crew = Crew(4, name="x", limit=None, initialize=None)
    with mock.patch("threading.Thread.start", side_effect=RuntimeError("can't start new thread")):
        for _ in range(100):
            with pytest.raises(RuntimeError):
                crew.put(Task(Future(), lambda: None), None)
    assert crew._all_beds == ()


def test_a_timer_that_the_poller_thread_adds_on_its_way_into_the_wait_is_not_slept_through() -> None:
    """A finalizer may run there: here it is the clock of its timers that adds one."""
    with PollerThread() as poller_thread:
        poller_thread.call_later(0, nothing).result(PATIENCE)
        late: list[Future[None]] = []
        real = poller_thread._timers.idle

        def idle() -> bool:
            answer = real()
            if answer and not late:
                late.append(poller_thread.call_later(0.01, nothing))
            return answer

        with mock.patch.object(poller_thread._timers, "idle", idle):
            end = time.monotonic() + PATIENCE
            while not late:
                poller_thread._wake()
                assert time.monotonic() < end
            late[0].result(PATIENCE)


def test_a_timeout_beyond_what_a_lock_takes_is_no_error() -> None:
    with WorkerPool(1, queue_limit=1, queue_timeout=1e12) as pool:
        gate = threading.Event()
        futures = [pool.submit(gate.wait, PATIENCE)]
        waiting = Worker(lambda: futures.extend(pool.submit(gate.wait, PATIENCE) for _ in range(3)))
        gate.set()
        waiting.outcome()
        assert all(future.result(PATIENCE) for future in futures)
