"""The thread itself: its start and its end, what callbacks may do to it, and what futures of it promise."""

# mypy: disable-error-code="func-returns-value"

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, as_completed, wait
from typing import Any
from unittest import mock

import pytest

import bbipc
from bbipc import PollerClosedError, SocketClosedError, SocketEvent
from pool.parties import Monitor
from pool.polling_loop import PollingLoop
from tests.stress.close_race import switch_interval
from tests.support.loops import NOTHING, dealt_out, left, on_thread, pair, pairs
from tests.support.makers import PATIENCE, Worker, wait_until_asleep

DATA = SocketEvent.DATA_AVAILABLE
END = SocketEvent.REMOTE_DISCONNECTED
NOTIFIED = 0.1  # seconds within which a cancelled future is seen by those who wait for it


@pytest.fixture(name="loop")
def a_loop() -> Iterator[PollingLoop]:
    with PollingLoop() as loop:
        yield loop


def nothing(*args: object) -> None:
    """A callback."""


# Its life.


def test_it_starts_at_first_use_as_a_named_daemon() -> None:
    with PollingLoop(name="ticker") as loop:
        assert loop.name == "ticker"
        assert "ticker" not in {thread.name for thread in threading.enumerate()}
        assert repr(loop) == "<PollingLoop 'ticker' 0 sockets, 0 timers>"
        assert not loop.is_current()
        thread = on_thread(loop, threading.current_thread)
        assert (thread.name, thread.daemon) == ("ticker", True)
        assert on_thread(loop, loop.is_current)
        assert not loop.is_current()
        assert not loop.closed
    assert loop.closed
    assert not thread.is_alive()
    assert repr(loop) == "<PollingLoop 'ticker' closed>"


def test_many_threads_that_use_it_first_start_one_thread() -> None:
    before = threading.active_count()
    barrier = threading.Barrier(8)

    def use() -> object:
        barrier.wait(PATIENCE)
        return on_thread(loop, threading.get_ident)

    with switch_interval(1e-6):
        for _ in range(20):
            with PollingLoop() as loop:
                workers = [Worker(use) for _ in range(8)]
                assert len({worker.outcome() for worker in workers}) == 1
                assert threading.active_count() == before + 1


def test_a_system_without_threads_is_no_end_of_it() -> None:
    with PollingLoop() as loop, pair() as (one, other):
        with mock.patch.object(threading.Thread, "start", side_effect=RuntimeError("can't start new thread")):
            for _ in range(2):
                with pytest.raises(RuntimeError, match="can't start"):
                    loop.when(one, DATA)
                with pytest.raises(RuntimeError, match="can't start"):
                    loop.call_later(0, nothing)
        future = loop.when(one, DATA)
        other.write(b"x")
        assert future.result(PATIENCE) == DATA
        assert left(loop) == NOTHING


@pytest.mark.parametrize("by_handler", [False, True], ids=["another thread", "a signal handler"])
def test_a_close_in_the_middle_of_the_start(by_handler: bool) -> None:
    """Between the making of the thread and its start, in another thread or in a handler of the same one."""
    start = threading.Thread.start
    closers: list[Worker] = []

    def closed_before(thread: threading.Thread) -> None:
        if thread.name == "starting":
            if by_handler:
                loop.close()
            else:
                closers.append(Worker(loop.close))
                with contextlib.suppress(AssertionError):  # it may wait for this one
                    closers[0].outcome(0.05)
        start(thread)

    loop = PollingLoop(name="starting")
    with mock.patch.object(threading.Thread, "start", closed_before), contextlib.suppress(PollerClosedError):
        loop.call_later(60, nothing)
    for closer in closers:
        closer.outcome()
    loop.close()
    assert loop._poller is not None
    assert loop._poller.closed


def test_it_closes_the_poller_that_it_was_given_started_or_not(backend: str) -> None:
    for use in (False, True):
        poller = bbipc.make_poller(backend)
        with PollingLoop(poller) as loop:
            if use:
                on_thread(loop, lambda: None)
        assert poller.closed


def test_closed_is_closed() -> None:
    loop = PollingLoop()
    for _ in range(3):
        loop.close()
    with pair() as (one, _):
        for call in (
            lambda: loop.when(one, DATA),
            lambda: loop.monitor(one, DATA, nothing),
            lambda: loop.call_later(0, nothing),
            loop.__enter__,
        ):
            with pytest.raises(PollerClosedError, match="'bbipc-poller' is closed"):
                call()
    with pytest.raises(ValueError, match="negative"):
        loop.close(-1)


@pytest.mark.parametrize("closers", [1, 4])
def test_a_close_fails_what_is_outstanding_and_leaves_the_sockets_open(closers: int) -> None:
    barrier = threading.Barrier(closers)
    with pair() as (one, other):
        loop = PollingLoop()
        futures: list[Future[Any]] = [
            loop.when(one, DATA),
            loop.when(other, DATA, timeout=60),
            loop.call_later(60, nothing),
        ]
        reasons: list[Exception] = []
        monitor = loop.monitor(one, DATA, nothing, on_close=reasons.append)
        workers = [Worker(lambda: (barrier.wait(PATIENCE), loop.close())) for _ in range(closers)]
        for worker in workers:
            worker.outcome()
        for future in futures:
            assert isinstance(future.exception(0), PollerClosedError)
        assert [type(reason) for reason in reasons] == [PollerClosedError]
        assert not monitor.active
        assert not one.closed
        assert other.write(b"x") == 1


def test_a_close_out_of_the_own_callbacks() -> None:
    """A monitor's, a timer's, a future's: the thread ends, and everything outstanding fails."""
    with pair() as (one, other):

        def by_monitor(loop: PollingLoop) -> None:
            loop.monitor(one, DATA, lambda socket, events: loop.close())

        def by_timer(loop: PollingLoop) -> None:
            loop.call_later(0, loop.close)

        def by_future(loop: PollingLoop) -> None:
            future: Future[object] = Future()
            loop.call_later(0.001, nothing).add_done_callback(lambda _: (loop.close(), loop.close()))
            future.cancel()

        other.write(b"x")
        for begin in (by_monitor, by_timer, by_future):
            loop = PollingLoop()
            futures: list[Future[Any]] = [loop.when(other, DATA), loop.call_later(60, nothing)]
            thread = on_thread(loop, threading.current_thread)
            begin(loop)
            assert not wait(futures, PATIENCE).not_done
            assert all(isinstance(future.exception(0), PollerClosedError) for future in futures)
            thread.join(PATIENCE)
            assert not thread.is_alive()
            assert loop.closed
            assert loop._poller is not None
            assert loop._poller.closed


def test_a_close_is_patient_with_a_callback_that_blocks_and_then_is_not() -> None:
    entered, release = threading.Event(), threading.Event()
    with pair() as (one, _):
        loop = PollingLoop()
        blocked = loop.call_later(0, lambda: (entered.set(), release.wait(PATIENCE)))
        assert entered.wait(PATIENCE)
        outstanding: list[Future[Any]] = [loop.when(one, DATA), loop.call_later(60, nothing)]
        began = time.monotonic()
        loop.close(timeout=0.05)
        assert 0.05 <= time.monotonic() - began < 2
        for future in outstanding:
            assert isinstance(future.exception(0), PollerClosedError)
        assert not blocked.done()
        with pytest.raises(PollerClosedError):
            loop.call_later(0, nothing)
        release.set()
        assert blocked.result(PATIENCE)
        loop.close()


def test_a_poller_that_is_closed_behind_its_back_ends_it_in_good_order() -> None:
    with pair() as (one, _):
        loop = PollingLoop(bbipc.make_poller())
        futures: list[Future[Any]] = [loop.when(one, DATA), loop.call_later(60, nothing)]
        assert loop._poller is not None
        loop._poller.close()
        assert not wait(futures, PATIENCE).not_done
        assert all(isinstance(future.exception(0), PollerClosedError) for future in futures)
        with pytest.raises(PollerClosedError):
            loop.when(one, DATA)
        loop.close()


def test_closing_against_using_leaves_no_future_behind() -> None:
    """25 loops, closed while 4 threads use them: all that was accepted is settled (HAZARDS 39)."""
    with pairs(4) as streams, switch_interval(1e-6):
        for number in range(25):
            loop = PollingLoop()
            futures: list[Future[object]] = []
            busy = threading.Semaphore(0)

            def use(
                number: int,
                loop: PollingLoop = loop,
                futures: list[Future[object]] = futures,
                busy: threading.Semaphore = busy,
            ) -> int:
                accepted = 0
                with contextlib.suppress(PollerClosedError):
                    while True:
                        for make in (
                            lambda: loop.when(streams[number][0], DATA, timeout=60),
                            lambda: loop.when(streams[number][1], DATA),
                            lambda: loop.call_later(60, nothing),
                        ):
                            futures.append(make())  # type: ignore[arg-type]
                            accepted += 1
                        busy.release()
                return accepted

            users = [Worker(lambda number=number: use(number)) for number in range(4)]  # type: ignore[misc]
            for _ in range(4 + number % 7):
                assert busy.acquire(timeout=PATIENCE)
            loop.close()
            assert sum(user.outcome() for user in users) == len(futures)  # type: ignore[misc]
            done = wait(futures, PATIENCE)
            assert not done.not_done
            assert {type(future.exception(0)) for future in futures} == {PollerClosedError}


# Timers.


def test_timers_run_in_their_order_and_are_never_early(loop: PollingLoop) -> None:
    began, log = time.monotonic(), list[tuple[int, float]]()

    def note(number: int) -> int:
        log.append((number, time.monotonic() - began))
        return number

    delays = [0.03, 0.01, 0.02, 0.0, 0.01]
    futures = [loop.call_later(delay, note, number) for number, delay in enumerate(delays)]
    assert [future.result(PATIENCE) for future in futures] == [0, 1, 2, 3, 4]
    assert [number for number, _ in log] == [3, 1, 4, 2, 0]
    assert all(at >= delays[number] for number, at in log)


def test_thousands_of_timers(loop: PollingLoop) -> None:
    """5,000 timers, every second one cancelled: the others all run, in order, and the heap is empty."""
    log: list[int] = []

    def set_up() -> list[Future[None]]:
        futures = [loop.call_later(number * 1e-6, log.append, number) for number in range(5000)]
        assert all(future.cancel() for future in futures[1::2])
        assert len(loop._timers) == 2500
        return futures

    futures = on_thread(loop, set_up)
    done = wait(futures, PATIENCE)
    assert not done.not_done
    assert log == list(range(0, 5000, 2))
    assert all(future.cancelled() for future in futures[1::2])
    assert len(loop._timers) == len(loop._timers._heap) == 0


def test_a_timer_that_is_due_earlier_than_the_sleeper_wakes(loop: PollingLoop) -> None:
    late = loop.call_later(60, nothing)
    wait_until_asleep(on_thread(loop, threading.current_thread))
    assert loop.call_later(0.01, lambda: 5).result(PATIENCE) == 5
    assert not late.done()


@pytest.mark.parametrize("delay", [-1, -0.001, math.nan, math.inf, None])
def test_a_delay_that_is_none_is_refused(loop: PollingLoop, delay: float | None) -> None:
    with pytest.raises(ValueError):
        loop.call_later(delay, nothing)  # type: ignore[arg-type]


def test_what_is_no_number_is_refused(loop: PollingLoop) -> None:
    for delay in ("1", True):
        with pytest.raises(TypeError):
            loop.call_later(delay, nothing)  # type: ignore[arg-type]


def test_a_huge_delay_is_waited_for(loop: PollingLoop) -> None:
    futures = [loop.call_later(delay, nothing) for delay in (1e14, 2**40, 100_000.0)]
    dealt_out(loop)
    assert not any(future.done() for future in futures)
    assert all(future.cancel() for future in futures)


def test_a_failed_call_leaves_no_circle_of_references(loop: PollingLoop) -> None:
    """Its arguments are let go of with its future, without the collector."""

    class Big:
        """An argument."""

    def fail(big: Big) -> None:
        raise ValueError("no")

    def call() -> tuple[weakref.ref[Future[None]], weakref.ref[Big]]:
        bigs = [Big()]
        ref = weakref.ref(bigs[0])
        done = threading.Event()
        future = loop.call_later(0, fail, bigs.pop())
        future.add_done_callback(lambda future: done.set())
        assert done.wait(PATIENCE)
        return weakref.ref(future), ref

    dealt_out(loop)
    gc.collect()
    gc.disable()
    try:
        future, big = call()
        dealt_out(loop)
        assert future() is None
        assert big() is None
    finally:
        gc.enable()


# Futures of it.


def test_a_cancelled_future_is_seen_by_those_who_wait(loop: PollingLoop) -> None:
    """Within 100 ms, by wait, as_completed and asyncio (HAZARDS 36)."""
    with pair() as (one, _):
        for make in (lambda: loop.when(one, DATA, timeout=60), lambda: loop.call_later(60, nothing)):
            futures: list[Future[object]] = [make() for _ in range(300)]  # type: ignore[misc]
            waiter = Worker(lambda futures=futures: wait(futures, PATIENCE).not_done)  # type: ignore[misc]
            began = time.monotonic()
            assert all(future.cancel() for future in futures)
            assert waiter.outcome() == set()
            assert time.monotonic() - began < NOTIFIED
            assert set(as_completed(futures, 0)) == set(futures)
            assert not any(future.cancel() is False for future in futures)
        assert left(loop) == NOTHING


def test_asyncio_waits_for_them(loop: PollingLoop) -> None:
    async def ask() -> list[object]:
        ready = asyncio.wrap_future(loop.when(one, DATA))
        late = asyncio.wrap_future(loop.when(two, DATA, timeout=0.001))
        timer = asyncio.wrap_future(loop.call_later(0, lambda: 5))
        closed = asyncio.wrap_future(loop.when(three, DATA))
        given_up = asyncio.wrap_future(loop.when(two, DATA))
        other.write(b"x")
        three.close()
        given_up.cancel()
        return list(await asyncio.gather(ready, late, timer, closed, given_up, return_exceptions=True))

    with pairs(3) as ((one, other), (two, _), (three, _)):
        ready, late, timer, closed, given_up = asyncio.run(ask())
        assert (ready, timer) == (DATA, 5)
        assert isinstance(late, TimeoutError)
        assert isinstance(closed, SocketClosedError)
        assert isinstance(given_up, asyncio.CancelledError)
        dealt_out(loop)
        assert left(loop) == NOTHING


def test_a_settled_future_cannot_be_cancelled_and_a_cancelled_one_not_settled(loop: PollingLoop) -> None:
    with pair() as (one, other):
        other.write(b"x")
        there = loop.when(one, DATA)
        assert there.done()
        assert there.cancel() is False
        late = loop.when(other, DATA)
        assert late.cancel()
        one.write(b"x")
        dealt_out(loop)
        with pytest.raises(CancelledError):
            late.result(0)


def test_a_future_calls_back_once_on_the_poller_thread_with_no_lock_held(loop: PollingLoop) -> None:
    """Another thread may do anything meanwhile: every lock that it needs is free."""
    with pairs(2) as ((one, other), (two, _)):
        told: list[bool] = []

        def use() -> bool:
            monitor = loop.monitor(two, DATA, nothing)
            monitor.pause()
            monitor.cancel()
            return loop.when(two, DATA).cancel() and loop.call_later(60, nothing).cancel()

        def done(future: Future[SocketEvent]) -> None:
            told.append(loop.is_current() and Worker(use).outcome() is True)

        future = loop.when(one, DATA)
        future.add_done_callback(done)
        other.write(b"x")
        future.result(PATIENCE)
        dealt_out(loop)
        assert told == [True]


def test_callbacks_of_futures_may_use_the_loop(loop: PollingLoop) -> None:
    """1,000 times each: when, monitor, call_later, cancel, close of a socket, from within (HAZARDS 42)."""
    count = threading.Semaphore(0)

    def again(number: int) -> None:
        def done(future: Future[SocketEvent]) -> None:
            loop.monitor(other, DATA, nothing).cancel()
            loop.when(other, DATA, timeout=60).cancel()
            loop.call_later(60, nothing).cancel()
            future.cancel()
            count.release()
            if number < 1000:
                loop.call_later(0, again, number + 1)

        loop.when(one, DATA, timeout=0.0001 if number % 2 else None).add_done_callback(done)
        if not number % 2:
            other.write(b"x")
            bbipc.poll_socket(one, DATA, PATIENCE)

    with pair() as (one, other):
        monitor = loop.monitor(one, DATA, lambda socket, events: one.read())
        loop.call_later(0, again, 1)
        for _ in range(1000):
            assert count.acquire(timeout=PATIENCE)
        monitor.cancel()
        dealt_out(loop)
        assert left(loop) == NOTHING


def test_a_future_that_closes_the_loop_when_it_is_cancelled_in_another_thread(loop: PollingLoop) -> None:
    """Callbacks of a cancelled future run in the thread that cancels: close() there waits for the poller thread."""
    with pair() as (one, _):
        future = loop.when(one, DATA)
        other = loop.when(one, END)
        future.add_done_callback(lambda future: loop.close())
        assert future.cancel()
        assert loop.closed
        assert isinstance(other.exception(0), PollerClosedError)
        assert wait([future], 0).done


def test_a_dropped_monitor_goes_on_and_a_dropped_loop_does_not_leak(loop: PollingLoop) -> None:
    told = threading.Event()
    with pair() as (one, other):

        def begin() -> Monitor | None:
            loop.monitor(one, DATA, lambda socket, events: (one.read(), told.set()))
            return None

        begin()
        other.write(b"x")
        assert told.wait(PATIENCE)
