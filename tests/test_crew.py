"""Crew: threads that grow on demand, a queue with a limit, sleepers that are never forgotten."""

from __future__ import annotations

import contextlib
import gc
import signal
import sysconfig
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, wait
from concurrent.futures.thread import BrokenThreadPool
from functools import partial
from unittest import mock

import pytest

from bbipc.errors import QueueFullError
from pool.crew import Crew
from pool.tasks import AnyTask, Task
from pool.worker_pool import WorkerPool
from tests.support.alarm import alarms
from tests.support.makers import PATIENCE, Worker


class Held:
    """A call that begins, and goes on until it is let go."""

    def __init__(self, result: object = None) -> None:
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.result = result

    def __call__(self) -> object:
        self.begun.set()
        assert self.go_on.wait(PATIENCE)
        return self.result


@contextlib.contextmanager
def all_held(pool: WorkerPool, count: int) -> Iterator[list[Held]]:
    """*count* workers of *pool* are busy."""
    calls = [Held() for _ in range(count)]
    try:
        for call in calls:
            pool.submit(call)
            assert call.begun.wait(PATIENCE)
        yield calls
    finally:
        for call in calls:
            call.go_on.set()


def until(fact: Callable[[], bool]) -> None:
    """A fact of another thread's that there is no event for."""
    deadline = time.monotonic() + PATIENCE
    while not fact():
        assert time.monotonic() < deadline
        threading.Event().wait(0.001)


def waiting_for_a_place(pool: WorkerPool, count: int) -> None:
    until(lambda: len(pool._crew._gates) == count)


# Growing, names, and reuse.


def test_no_thread_before_there_is_something_to_do() -> None:
    with WorkerPool(3) as pool:
        assert pool.stats().threads == 0


def test_a_thread_is_added_only_where_none_is_idle() -> None:
    with WorkerPool(3) as pool:
        for _ in range(5):
            assert pool.submit(pow, 2, 3).result(PATIENCE) == 8
            until(lambda: pool.stats().idle == pool.stats().threads)
        assert pool.stats().threads == 1
        with all_held(pool, 3):
            assert pool.stats().threads == 3
            assert pool.stats().idle == 0
            pool.submit(int)
            assert pool.stats().threads == 3
            assert pool.stats().queued == 1


def test_names() -> None:
    with WorkerPool(3, thread_name_prefix="smith") as pool, all_held(pool, 3):
        assert {thread.name for thread in pool._threads} == {"smith_0", "smith_1", "smith_2"}
        assert all(thread.daemon for thread in pool._threads)
    with WorkerPool(1) as one, WorkerPool(1) as two:
        names = [other.submit(lambda: threading.current_thread().name).result(PATIENCE) for other in (one, two)]
        assert len(set(names)) == 2
        assert all(name.startswith("WorkerPool-") and name.endswith("_0") for name in names)


def test_four_hundred_idle_spells_need_no_more_threads_than_at_once() -> None:
    with WorkerPool(8) as pool:
        for _ in range(400):
            wait([pool.submit(int) for _ in range(2)], PATIENCE)
        assert pool.stats().threads <= 8
        until(lambda: pool.stats().idle == pool.stats().threads)


def test_no_thread_to_be_had_at_all() -> None:
    pool = WorkerPool(2)
    with mock.patch.object(threading.Thread, "start", side_effect=RuntimeError("can't start new thread")):
        with pytest.raises(RuntimeError, match="can't start"):
            pool.submit(int)
    assert pool.stats().queued == 0
    assert pool.submit(int).result(PATIENCE) == 0
    pool.shutdown()


def test_no_further_thread_to_be_had() -> None:
    with WorkerPool(2) as pool:
        with all_held(pool, 1):
            with mock.patch.object(threading.Thread, "start", side_effect=RuntimeError("can't start new thread")):
                future = pool.submit(int)
                assert pool._crew.spare() == 0  # as far as is known
        assert future.result(PATIENCE) == 0
        assert pool.stats().threads == 1
        until(lambda: pool._crew.spare() == 2)


# What a task may come to.


@pytest.mark.parametrize("kind", [ValueError, OSError, RecursionError, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_what_a_task_raises_goes_to_its_future(kind: type[BaseException]) -> None:
    def fail() -> None:
        raise kind("on purpose")

    with WorkerPool(1) as pool:
        with pytest.raises(kind, match="on purpose"):
            pool.submit(fail).result(PATIENCE)
        assert pool.submit(int).result(PATIENCE) == 0


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_callback_of_a_future_ends_no_worker(kind: type[BaseException], caplog: pytest.LogCaptureFixture) -> None:
    def fail(future: Future[object]) -> None:
        raise kind("on purpose")

    with WorkerPool(1) as pool:
        call = Held()
        pool.submit(call).add_done_callback(fail)
        call.go_on.set()
        assert pool.submit(int).result(PATIENCE) == 0
        assert pool.stats().threads == 1
    assert "on purpose" in caplog.text


def test_a_worker_holds_nothing_of_its_last_task() -> None:
    class Thing:
        pass

    gone = threading.Event()
    thing = Thing()
    finalizer = mock.Mock(side_effect=lambda *_: gone.set())
    weakref.finalize(thing, finalizer)
    gc.disable()
    try:
        with WorkerPool(1) as pool:
            pool.submit(id, thing).result(PATIENCE)
            del thing
            until(lambda: pool.stats().idle == 1)
            gc.collect()  # without a GIL an object of another thread's may need it
            assert gone.wait(PATIENCE)
    finally:
        gc.enable()


@pytest.mark.skipif(bool(sysconfig.get_config_var("Py_GIL_DISABLED")), reason="who frees what, and when, differs")
def test_an_error_leads_to_no_circle() -> None:
    """The future of a task that has failed goes with its last holder, without the collector."""

    def fail() -> None:
        raise ValueError("on purpose")

    gc.collect()
    gc.disable()
    try:
        with WorkerPool(1) as pool:
            future = pool.submit(fail)
            assert isinstance(future.exception(PATIENCE), ValueError)
            until(lambda: pool.stats().idle == 1)
            held = weakref.ref(future)
            del future
            assert held() is None
    finally:
        gc.enable()


# Cancelling.


def test_wait_sees_a_task_that_was_cancelled_in_the_queue_at_once() -> None:
    """10,000 of them, the only worker busy all the while (HAZARDS 36)."""
    with WorkerPool(1) as pool, all_held(pool, 1):
        futures = [pool.submit(int) for _ in range(10_000)]
        assert all(future.cancel() for future in futures)
        started = time.monotonic()
        done, not_done = wait(futures, timeout=1)
        assert (len(done), len(not_done)) == (10_000, 0)
        assert time.monotonic() - started < 1


def test_cancel_and_begin_race(caplog: pytest.LogCaptureFixture) -> None:
    """4,000 pairs: cancelled means that it was not called, not cancelled that it was, once; nobody finds it settled."""
    called: list[int] = []
    with WorkerPool(2) as pool:
        futures = []
        for number in range(4_000):
            future = pool.submit(called.append, number)
            future.cancel()
            futures.append(future)
        assert not wait(futures, PATIENCE).not_done
    not_cancelled = [number for number, future in enumerate(futures) if not future.cancelled()]
    assert sorted(called) == not_cancelled
    assert not caplog.records


# A queue with a limit.


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_is_a_number_of_places(limit: int) -> None:
    with pytest.raises(ValueError, match="queue_limit"):
        WorkerPool(1, queue_limit=limit)


def test_no_place_and_no_patience() -> None:
    with WorkerPool(1, queue_limit=2, queue_timeout=0) as pool, all_held(pool, 1):
        pool.submit(int)
        pool.submit(int)
        with pytest.raises(QueueFullError) as caught:
            pool.submit(int)
        assert "2" in str(caught.value)
        assert pool.stats().queued == 2


def test_no_place_for_some_time() -> None:
    with WorkerPool(1, queue_limit=1, queue_timeout=0.05) as pool, all_held(pool, 1):
        pool.submit(int)
        started = time.monotonic()
        with pytest.raises(QueueFullError):
            pool.submit(int)
        assert 0.04 < time.monotonic() - started < 2
        assert not pool._crew._gates


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_last_worker_does_not_wait_for_a_place(workers: int) -> None:
    """Nobody would be left to make one: all of them would wait for ever."""
    begun, full = threading.Barrier(workers + 1), threading.Barrier(workers + 1)

    def call() -> str:
        begun.wait(PATIENCE)
        full.wait(PATIENCE)
        try:
            pool.submit(int)
        except QueueFullError:
            return "refused"
        return "placed"

    with WorkerPool(workers, queue_limit=workers) as pool:
        calls = [pool.submit(call) for _ in range(workers)]
        begun.wait(PATIENCE)
        for _ in range(workers):
            pool.submit(int)
        full.wait(PATIENCE)
        assert [future.result(PATIENCE) for future in calls].count("refused") == 1
        assert pool.submit(int).result(PATIENCE) == 0


def test_a_worker_waits_for_a_place_that_another_will_make() -> None:
    with WorkerPool(2, queue_limit=1) as pool, all_held(pool, 1) as (held,):
        begun = threading.Event()

        def call() -> int:
            pool.submit(int)
            begun.set()
            return pool.submit(int).result(PATIENCE)

        waiting = pool.submit(call)
        assert begun.wait(PATIENCE)
        waiting_for_a_place(pool, 1)
        held.go_on.set()
        assert waiting.result(PATIENCE) == 0


def test_places_are_passed_on_in_order() -> None:
    order: list[int] = []
    with WorkerPool(1, queue_limit=1) as pool:
        with all_held(pool, 1):
            pool.submit(order.append, 0)
            waiters = []
            for number in range(1, 6):
                waiters.append(Worker(lambda number=number: pool.submit(order.append, number)))  # type: ignore[misc]
                waiting_for_a_place(pool, number)
        futures = [waiter.outcome() for waiter in waiters]
        assert all(isinstance(future, Future) for future in futures)
    assert order == [0, 1, 2, 3, 4, 5]


def test_many_producers() -> None:
    """8 of them, 300 tasks each, 3 places: all are done, once, and the queue never holds more."""
    lock, counts, longest = threading.Lock(), [0] * 8, [0]

    def count(producer: int) -> None:
        with lock:
            counts[producer] += 1
            longest[0] = max(longest[0], pool.stats().queued)

    with WorkerPool(2, queue_limit=3) as pool:
        producers = [Worker(lambda n=n: [pool.submit(count, n) for _ in range(300)]) for n in range(8)]  # type: ignore[misc]
        futures = [future for producer in producers for future in producer.outcome()]  # type: ignore[attr-defined]
        _, not_done = wait(futures, PATIENCE)
        assert not not_done
    assert counts == [300] * 8
    assert longest[0] <= 3


def test_urgent_tasks_take_no_place_from_others_for_good() -> None:
    """They may exceed the limit; a place is passed on only below it."""
    crew = Crew(1, name="x", limit=1, initialize=None)
    held = Held()
    crew.put(Task(Future(), held), None)
    assert held.begun.wait(PATIENCE)
    for _ in range(4):
        crew.put(Task(Future(), int), None, urgent=True)
    assert len(crew.tasks) == 4
    assert not crew.put(Task(Future(), int), 0)
    waiter = Worker(lambda: crew.put(Task(Future(), int), PATIENCE))
    until(lambda: len(crew._gates) == 1)
    first = crew.try_take()
    assert first is not None
    assert len(crew.tasks) == 3
    assert len(crew._gates) == 1
    held.go_on.set()
    assert waiter.outcome() is True
    crew.end()
    assert crew.join(PATIENCE)


def test_shutdown_refuses_those_who_wait_for_a_place() -> None:
    with WorkerPool(1, queue_limit=1) as pool, all_held(pool, 1):
        kept = pool.submit(int)
        waiters = [Worker(lambda: pool.submit(int)) for _ in range(3)]
        waiting_for_a_place(pool, 3)
        pool.shutdown(wait=False)
        for waiter in waiters:
            with pytest.raises(RuntimeError, match="shutdown"):
                waiter.outcome()
    assert kept.result(PATIENCE) == 0


def test_ctrl_c_while_waiting_for_a_place() -> None:
    """The place that was waited for goes to nobody, and the pool works on."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    with WorkerPool(1, queue_limit=1) as pool:
        with all_held(pool, 1):
            pool.submit(int)
            for _ in range(5):
                with pytest.raises(KeyboardInterrupt), alarms(interrupt, 0.02):
                    pool.submit(int)
            assert not pool._crew._gates
        assert pool.submit(int).result(PATIENCE) == 0


def test_ctrl_c_while_waiting_for_the_end() -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    pool = WorkerPool(1)
    with all_held(pool, 1):
        with pytest.raises(KeyboardInterrupt), alarms(interrupt, 0.02):
            pool.shutdown()
        with pytest.raises(RuntimeError):
            pool.submit(int)
    pool.shutdown()
    assert pool.stats().threads == 0


# The initializer.


def test_the_initializer_is_called_in_every_thread() -> None:
    seen: list[str] = []
    lock = threading.Lock()

    def note(what: str) -> None:
        with lock:
            seen.append(f"{what} {threading.current_thread().name}")

    with WorkerPool(3, thread_name_prefix="w", initializer=note, initargs=("began",)) as pool, all_held(pool, 3):
        assert sorted(seen) == ["began w_0", "began w_1", "began w_2"]


def test_an_initializer_that_fails_breaks_the_pool(caplog: pytest.LogCaptureFixture) -> None:
    go_on = threading.Event()

    def fail() -> None:
        assert go_on.wait(PATIENCE)
        raise ValueError("on purpose")

    with WorkerPool(1, initializer=fail, queue_limit=2) as pool:
        futures = [pool.submit(int) for _ in range(2)]
        waiter = Worker(lambda: pool.submit(int))
        waiting_for_a_place(pool, 1)
        go_on.set()
        for future in futures:
            with pytest.raises(BrokenThreadPool) as caught:
                future.result(PATIENCE)
            assert isinstance(caught.value.__cause__, ValueError)
        with pytest.raises(BrokenThreadPool):
            waiter.outcome()
        with pytest.raises(BrokenThreadPool):
            pool.submit(int)
    assert "initializer" in caplog.text


def test_not_an_initializer() -> None:
    with pytest.raises(TypeError):
        WorkerPool(1, initializer=3)  # type: ignore[arg-type]


# The end.


def test_what_is_queued_is_done_before_the_threads_end() -> None:
    pool = WorkerPool(2)
    with all_held(pool, 2):
        futures = [pool.submit(pow, 2, n) for n in range(50)]
        pool.shutdown(wait=False)
        assert pool.stats().queued == 50
    pool.shutdown()
    assert [future.result(0) for future in futures] == [2**n for n in range(50)]
    assert (pool.stats().threads, pool.stats().idle) == (0, 0)


def test_cancel_futures() -> None:
    pool = WorkerPool(2)
    with all_held(pool, 2):
        futures = [pool.submit(int) for _ in range(50)]
        pool.shutdown(wait=False, cancel_futures=True)
        done, _ = wait(futures, timeout=1)
        assert len(done) == 50
        for future in futures:
            with pytest.raises(CancelledError):
                future.result(0)
    pool.shutdown()


def test_cancel_futures_with_a_callback_that_raises(caplog: pytest.LogCaptureFixture) -> None:
    def fail(future: Future[int]) -> None:
        raise SystemExit("on purpose")

    pool = WorkerPool(1)
    with all_held(pool, 1):
        futures = [pool.submit(int) for _ in range(5)]
        futures[1].add_done_callback(fail)
        pool.shutdown(wait=False, cancel_futures=True)
        assert len(wait(futures, timeout=1).done) == 5
    pool.shutdown()
    assert "on purpose" in caplog.text


def test_shutdown_waits_no_longer_than_it_is_told() -> None:
    pool = WorkerPool(1)
    with all_held(pool, 1):
        pool.poller_thread.call_later(0, int).result(PATIENCE)
        started = time.monotonic()
        pool.shutdown(timeout=0.1)
        assert 0.09 < time.monotonic() - started < 1
        assert pool.stats().threads == 1
    pool.shutdown()
    assert pool.stats().threads == 0


@pytest.mark.parametrize("timeout", [-1, float("nan")])
def test_no_timeout(timeout: float) -> None:
    with WorkerPool(1) as pool:
        with pytest.raises(ValueError):
            pool.shutdown(timeout=timeout)
        assert pool.submit(int).result(PATIENCE) == 0


def test_shutdown_by_a_worker() -> None:
    pool = WorkerPool(2)
    pool.submit(pool.shutdown).result(PATIENCE)
    with pytest.raises(RuntimeError):
        pool.submit(int)
    pool.shutdown()
    assert pool.stats().threads == 0


def test_shutdown_by_all_workers_at_once() -> None:
    pool = WorkerPool(4)
    together = threading.Barrier(4)

    def stop() -> None:
        together.wait(PATIENCE)
        pool.shutdown()

    assert not wait([pool.submit(stop) for _ in range(4)], PATIENCE / 2).not_done
    pool.shutdown()
    assert pool.stats().threads == 0


def test_the_last_shutdown_waits_for_a_worker_that_has_called_it_too() -> None:
    pool = WorkerPool(2)
    held = Held()

    def stop_and_go_on() -> None:
        pool.shutdown()
        held()

    future = pool.submit(stop_and_go_on)
    assert held.begun.wait(PATIENCE)
    last = Worker(pool.shutdown)
    last.join(0.05)
    assert last.is_alive()
    held.go_on.set()
    last.outcome()
    assert future.result(0) is None


def test_shutdown_races_with_submitters() -> None:
    """500 times, 8 of them: submitted = done + cancelled + rejected, exactly (HAZARDS 39)."""
    for number in range(500):
        pool = WorkerPool(4, queue_limit=None if number % 2 else 3)
        together = threading.Barrier(9)
        outcomes: list[list[Future[int]]] = [[] for _ in range(8)]
        rejected = [0] * 8

        def submit_some(which: int) -> None:
            together.wait(PATIENCE)  # noqa: B023
            for _ in range(5):
                try:
                    outcomes[which].append(pool.submit(int))  # noqa: B023
                except RuntimeError:
                    rejected[which] += 1  # noqa: B023

        submitters = [threading.Thread(target=submit_some, args=(which,)) for which in range(8)]
        for thread in submitters:
            thread.start()
        together.wait(PATIENCE)
        pool.shutdown(wait=number % 3 == 0, cancel_futures=number % 5 == 0)
        for thread in submitters:
            thread.join(PATIENCE)
        pool.shutdown()
        futures = [future for part in outcomes for future in part]
        assert all(future.done() for future in futures), number
        cancelled = sum(future.cancelled() for future in futures)
        done = sum(future.result(0) == 0 for future in futures if not future.cancelled())
        assert done + cancelled + sum(rejected) == 40
        assert not wait(futures, 1).not_done


# A pool that nobody holds.


def test_a_pool_that_is_collected_ends_its_threads() -> None:
    pool: WorkerPool | None = WorkerPool(3)
    assert pool is not None
    with all_held(pool, 3):
        threads = tuple(pool._threads)
        future = pool.submit(int)
    del pool
    gc.collect()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert future.result(0) == 0


def test_a_pool_collected_while_it_is_busy_does_what_is_queued() -> None:
    pool: WorkerPool | None = WorkerPool(2)
    assert pool is not None
    calls = [Held(7) for _ in range(2)]
    futures = [pool.submit(call) for call in calls] + [pool.submit(int) for _ in range(20)]
    threads = tuple(pool._threads)
    del pool
    gc.collect()
    for call in calls:
        call.go_on.set()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert all(future.done() for future in futures)


def test_a_pool_is_collected_inside_its_own_locks() -> None:
    """A finalizer takes no lock (HAZARDS 43): it may run inside any call, also of the very locks that it needs."""
    pool: WorkerPool | None = WorkerPool(1)
    assert pool is not None
    pool.submit(int).result(PATIENCE)
    crew, stations, threads = pool._crew, pool._stations, tuple(pool._threads)
    locked, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with crew._lock, stations.lock:
            locked.set()
            assert go_on.wait(PATIENCE)

    holder = Worker(hold)
    assert locked.wait(PATIENCE)
    del pool
    gc.collect()
    go_on.set()
    holder.outcome()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()


# The sleepers.


class Duty:
    """A duty that the test says everything about."""

    def __init__(self) -> None:
        self.want = False
        self.nap: float | None = None
        self.interrupts = 0
        self.naps = 0

    def perform(self) -> AnyTask | None:
        return None

    def wanted(self) -> bool:
        return self.want

    def begin_watch(self) -> float | None:
        self.naps += 1
        return self.nap

    def leave(self) -> None:
        pass

    def dismiss(self) -> None:
        pass

    def interrupt(self) -> None:
        self.interrupts += 1


@contextlib.contextmanager
def a_crew(max_workers: int, duty: Duty) -> Iterator[Crew]:
    crew = Crew(max_workers, name="crew", limit=None, initialize=None)
    crew.duty = duty
    try:
        yield crew
    finally:
        duty.want = False
        crew.end()
        assert crew.join(PATIENCE)


def test_the_duty_is_interrupted_only_where_nobody_else_takes_the_task() -> None:
    duty = Duty()
    with a_crew(1, duty) as crew:
        crew.put(Task(Future(), int), None)  # a new thread takes it
        until(lambda: crew.idle() == 1)
        crew.put(Task(Future(), int), None)  # the sleeper takes it
        until(lambda: crew.idle() == 1)
        assert duty.interrupts == 0
        held = Held()
        crew.put(Task(Future(), held), None)
        assert held.begun.wait(PATIENCE)
        crew.put(Task(Future(), int), None)
        assert duty.interrupts == 1
        held.go_on.set()
        until(lambda: crew.idle() == 1)


def test_a_worker_does_not_sleep_while_the_duty_is_wanted() -> None:
    duty = Duty()
    with a_crew(1, duty) as crew:
        crew.nudge()
        until(lambda: crew.idle() == 1)
        slept = duty.naps
        duty.want = True
        crew.nudge()
        until(lambda: crew.idle() == 0)
        until(lambda: crew.idle() == 1)
        assert duty.naps == slept  # it went round and round
        duty.want = False
        until(lambda: duty.naps > slept)


def test_naps_lose_no_task() -> None:
    """Four workers whose sleeps all end after 1 ms or so, beside 2,000 tasks put just then."""
    duty = Duty()
    duty.nap = 0.001
    with a_crew(4, duty) as crew:
        futures: list[Future[int]] = []
        for number in range(2_000):
            future: Future[int] = Future()
            crew.put(Task(future, int), None)
            futures.append(future)
            if number % 10 == 0:
                assert future.result(PATIENCE) == 0
                until(lambda: crew.idle() > 0)
        assert not wait(futures, PATIENCE).not_done
        duty.nap = None
        for _ in range(4):
            crew.nudge()
        until(lambda: crew.idle() == len(crew.threads))


def test_a_timed_sleep_ends_beside_others_who_are_woken_for_it() -> None:
    """Up to 3.12 a timed SimpleQueue.get that comes too late waits for ever: a watcher who never looks again.

    A thread that only computes makes sleepers late.  30 times: one of six is called every 3 ms for a while, then
    nobody is, and each of them has to go on napping all the same.
    """
    duty = Duty()
    duty.nap = 0.005
    naps: Counter[int] = Counter()
    stop = threading.Event()

    def nap() -> float | None:
        naps[threading.get_ident()] += 1
        return duty.nap

    def compute() -> None:
        while not stop.is_set():
            sum(range(1000))

    with mock.patch.object(duty, "begin_watch", nap), a_crew(6, duty) as crew:
        together = threading.Barrier(6)
        for _ in range(6):
            crew.put(Task(Future(), together.wait), None)
        computing = Worker(compute)
        try:
            for _ in range(30):
                for _ in range(10):
                    crew.nudge()
                    stop.wait(0.003)
                naps.clear()
                until(lambda: len(naps) == 6)
        finally:
            stop.set()
            computing.outcome()


def test_signal_handlers_are_untouched() -> None:
    """Workers leave signals to the main thread."""
    before = signal.getsignal(signal.SIGINT)
    with WorkerPool(2) as pool:
        pool.submit(int).result(PATIENCE)
        assert signal.getsignal(signal.SIGINT) is before


def test_a_thread_that_whoever_starts_it_has_given_up_takes_nothing() -> None:
    """A Ctrl-C inside ``Thread.start``, when it runs already."""
    original = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        original(thread)
        thread._ident = None  # type: ignore[attr-defined] # as it is before the thread has told
        raise KeyboardInterrupt

    with WorkerPool(2) as pool:
        with mock.patch.object(threading.Thread, "start", start), pytest.raises(KeyboardInterrupt):
            pool.submit(int)
        assert not pool._crew.threads
        assert pool.submit(threading.current_thread).result(PATIENCE) in pool._crew.threads


def test_an_end_inside_an_end_leaves_nobody_at_the_queue() -> None:
    """A signal handler that shuts the pool down in the middle of a shutdown, in the same thread."""
    crew = Crew(1, name="x", limit=1, initialize=None)
    released: list[int] = []

    def release(number: int) -> None:
        released.append(number)
        if released == [0]:
            crew.end()

    gates = [mock.Mock(refused=False) for _ in range(3)]
    for number, gate in enumerate(gates):
        gate.lock.release.side_effect = partial(release, number)
    crew._gates.extend(gates)
    crew.end()
    assert not crew._gates
    assert all(gate.refused for gate in gates)
    assert sorted(set(released)) == [0, 1, 2]
