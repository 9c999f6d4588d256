"""The heap of timers, on a clock of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from pool import timers as timers_module
from pool.timers import Timer, Timers
from tests.stress.close_race import switch_interval
from tests.support.makers import PATIENCE, Worker


class Clock:
    """Stands still until it is put on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def noting(log: list[int], number: int) -> Callable[[], None]:
    return lambda: log.append(number)


def run_due(timers: Timers) -> None:
    for action in timers.due():
        action()


def test_they_run_in_the_order_of_their_time_and_those_of_one_time_in_the_order_they_came() -> None:
    clock, log = Clock(), list[int]()
    timers = Timers(clock)
    for number, delay in enumerate([3, 1, 2, 1, 0, 2]):
        timers.add(delay, noting(log, number))
    run_due(timers)
    assert log == [4]
    clock.now += 1
    run_due(timers)
    assert log == [4, 1, 3]
    clock.now += 10
    run_due(timers)
    assert log == [4, 1, 3, 2, 5, 0]
    assert len(timers) == 0
    assert timers.due() == []


def test_none_is_early() -> None:
    clock = Clock()
    timers = Timers(clock)
    timers.add(1, lambda: None)
    clock.now += 0.9999999
    assert timers.due() == []
    clock.now = 1001.0
    assert len(timers.due()) == 1


def test_a_cancelled_one_does_not_run_and_exactly_one_caller_cancels() -> None:
    clock, log = Clock(), list[int]()
    timers = Timers(clock)
    first, _ = timers.add(1, noting(log, 1))
    second, _ = timers.add(1, noting(log, 2))
    assert timers.cancel(first) is True
    assert timers.cancel(first) is False
    assert len(timers) == 1
    clock.now += 1
    run_due(timers)
    assert log == [2]
    assert timers.cancel(second) is False


def test_the_next_deadline_is_that_of_one_that_is_still_to_come() -> None:
    clock = Clock()
    timers = Timers(clock)
    assert timers.next_deadline() is None
    first, _ = timers.add(1, lambda: None)
    timers.add(2, lambda: None)
    assert timers.next_deadline() == 1001
    timers.cancel(first)
    assert timers.next_deadline() == 1002


def test_who_adds_one_that_is_due_before_the_sleeper_wakes_is_told_to_wake_him() -> None:
    timers = Timers(Clock())
    assert timers.next_deadline() is None  # he sleeps without an end
    assert timers.add(5, lambda: None)[1] is True
    assert timers.next_deadline() == 1005
    assert timers.add(6, lambda: None)[1] is False
    assert timers.add(4, lambda: None)[1] is True


def test_cancelled_ones_let_go_of_what_they_held_and_are_swept() -> None:
    """10,000 timers, of which all but ten are cancelled: the heap is as short as that (HAZARDS 44)."""
    timers = Timers(Clock())
    made = [timers.add(100 + number, lambda: None, lambda: None)[0] for number in range(10_000)]
    for timer in made[5:-5]:
        timers.cancel(timer)
        assert timer.action is None
        assert timer.drop is None
    assert len(timers) == 10
    assert len(timers._heap) < 10 + 2 * 64 + 2
    assert [timer.deadline - 1000 for timer in made[:5] + made[-5:]] == [
        100, 101, 102, 103, 104, 10_095, 10_096, 10_097, 10_098, 10_099,
    ]  # fmt: skip
    assert timers.next_deadline() == 1100


def test_a_heap_stays_short_where_each_timer_is_cancelled_before_it_is_due() -> None:
    """One wait after the other with a timeout that never comes: what a server does all day."""
    timers = Timers(Clock())
    longest = 0
    for _ in range(20_000):
        timers.cancel(timers.add(3600, lambda: None)[0])
        longest = max(longest, len(timers._heap))
    assert longest <= 2 * 64 + 2
    assert len(timers) == 0


def test_thousands_cost_logarithmic_time() -> None:
    """Adding, and cancelling, one of 100,000 costs less than ten times as much as one of 1,000."""

    def seconds(size: int) -> float:
        timers = Timers(Clock())
        for number in range(size):
            timers.add(1000 + number, lambda: None)
        best = float("inf")
        for _ in range(5):
            began = time.perf_counter()
            for number in range(500):
                timers.cancel(timers.add(size / 2 + number, lambda: None)[0])
            best = min(best, time.perf_counter() - began)
        return best

    assert seconds(100_000) < 10 * seconds(1_000)


def test_clearing_tells_what_is_to_be_done_instead_the_earliest_first() -> None:
    clock, log = Clock(), list[int]()
    timers = Timers(clock)
    for number, delay in enumerate([3, 1, 2]):
        timers.add(delay, noting(log, number), noting(log, 10 + number))
    timers.add(0.5, noting(log, 3))
    gone, _ = timers.add(0.5, noting(log, 4), noting(log, 14))
    timers.cancel(gone)
    for drop in timers.clear():
        drop()
    assert log == [11, 12, 10]
    assert len(timers) == 0
    assert timers.next_deadline() is None
    assert timers.clear() == []


def test_one_that_was_cleared_cannot_be_cancelled() -> None:
    timers = Timers(Clock())
    timer, _ = timers.add(1, lambda: None)
    timers.clear()
    assert timers.cancel(timer) is False
    assert len(timers) == 0


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.integers(0, 50)),
            st.tuples(st.just("cancel"), st.integers(0, 200)),
            st.tuples(st.just("pass"), st.integers(0, 20)),
            st.tuples(st.just("next"), st.just(0)),
        ),
        max_size=300,
    )
)
def test_it_behaves_like_a_plain_list(steps: list[tuple[str, int]]) -> None:
    clock, log = Clock(), list[int]()
    timers, made = Timers(clock), list[Timer]()
    waiting: dict[int, float] = {}
    for step, number in steps:
        if step == "add":
            waiting[len(made)] = clock.now + number
            made.append(timers.add(number, noting(log, len(made)))[0])
        elif step == "cancel" and made:
            chosen = number % len(made)
            assert timers.cancel(made[chosen]) is (waiting.pop(chosen, None) is not None)
        elif step == "pass":
            clock.now += number
            due = sorted((at, which) for which, at in waiting.items() if at <= clock.now)
            log.clear()
            run_due(timers)
            assert log == [which for _, which in due]
            for _, which in due:
                del waiting[which]
        assert len(timers) == len(waiting)
        if step == "next":
            assert timers.next_deadline() == min(waiting.values(), default=None)
        assert len(timers._heap) <= 2 * len(waiting) + 2 * 64 + 2


def test_of_those_who_race_for_a_timer_exactly_one_has_it() -> None:
    """20,000 timers, each run or cancelled by one of three threads: together exactly once."""
    clock = Clock()
    timers, size = Timers(clock), 1000
    barrier = threading.Barrier(3)
    batch: list[Timer] = []
    ran: list[int] = []
    won = [0, 0]

    def cancel_all(number: int) -> None:
        for _ in range(20):
            barrier.wait(PATIENCE)
            won[number] += sum(timers.cancel(timer) for timer in batch)
            barrier.wait(PATIENCE)

    cancellers = [Worker(lambda number=number: cancel_all(number)) for number in range(2)]  # type: ignore[misc]
    with switch_interval(1e-6):
        for _ in range(20):
            batch[:] = [timers.add(number, noting(ran, number))[0] for number in range(size)]
            barrier.wait(PATIENCE)
            for _ in range(size):
                clock.now += 1
                run_due(timers)
            barrier.wait(PATIENCE)
            assert len(timers) == 0
            assert timers.next_deadline() is None
    for canceller in cancellers:
        canceller.outcome()
    assert len(ran) + sum(won) == 20 * size
    assert timers._dead == 0


def test_a_signal_handler_in_the_middle_of_a_sweep_loses_nothing() -> None:
    """It adds a timer and cancels another, in the thread that sweeps."""
    timers, done = Timers(), list[int]()
    kept, other = (timers.add(60, done.clear)[0] for _ in range(2))
    dead = [timers.add(60, done.clear)[0] for _ in range(200)]
    made: list[Timer] = []
    original = timers_module._living

    def living(heap: list[timers_module.Entry]) -> list[timers_module.Entry]:
        found = original(heap)
        if not made:
            made.append(timers.add(1, done.clear)[0])
            assert timers.cancel(other)
        return found

    with mock.patch.object(timers_module, "_living", living):
        for timer in dead:
            assert timers.cancel(timer)
    assert made
    assert len(timers) == 2
    assert timers.cancel(made[0])
    assert timers.cancel(kept)
    assert len(timers) == 0
    assert timers.next_deadline() is None
