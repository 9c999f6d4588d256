"""Settling futures: one outcome, told to everybody, and no circle of references behind an error."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import signal
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, as_completed, wait

import pytest

from pool import futures
from pool.futures import GuardedFuture, chain, fail, failed, finished, run, settle
from tests.support.alarm import Interrupt
from tests.support.makers import PATIENCE, Worker


class Custom(BaseException):
    """No Exception: what SystemExit and KeyboardInterrupt are."""


def cancelled() -> Future[int]:
    """Cancelled, and nobody who waits knows yet."""
    future: Future[int] = Future()
    assert future.cancel()
    return future


def test_finished_and_failed_futures_are_done() -> None:
    error = ValueError("no")
    assert finished(5).result(0) == 5
    assert failed(error).exception(0) is error
    assert wait([finished(1), failed(error)], 0).not_done == set()


def test_settle_and_fail_tell_whether_they_won() -> None:
    first: Future[int] = Future()
    second: Future[int] = Future()
    assert settle(first, 5) is True
    assert fail(second, ValueError("no")) is True
    assert first.result(0) == 5
    assert isinstance(second.exception(0), ValueError)


SETTLERS: dict[str, Callable[[Future[int]], bool]] = {
    "settle": lambda future: settle(future, 5),
    "fail": lambda future: fail(future, ValueError("no")),
    "run": lambda future: run(future, lambda: 5),
}


@pytest.mark.parametrize("settler", SETTLERS.values(), ids=SETTLERS)
def test_a_cancelled_future_stays_cancelled_and_its_waiters_know(settler: Callable[[Future[int]], bool]) -> None:
    """Nobody would tell them else: wait() does not see a future that is merely cancelled (HAZARDS 36)."""
    future = cancelled()
    assert wait([future], 0).done == set()
    assert settler(future) is False
    assert future.cancelled()
    assert wait([future], 0).done == {future}
    assert list(as_completed([future], 0)) == [future]


@pytest.mark.parametrize("settler", SETTLERS.values(), ids=SETTLERS)
def test_a_wait_that_has_begun_already_sees_the_end_of_a_cancelled_future(
    settler: Callable[[Future[int]], bool],
) -> None:
    future: Future[int] = Future()
    waiter = Worker(lambda: wait([future], PATIENCE).done)
    future.cancel()
    settler(future)
    assert waiter.outcome() == {future}


@pytest.mark.parametrize("settler", SETTLERS.values(), ids=SETTLERS)
def test_who_has_claimed_a_future_can_no_longer_be_cancelled(settler: Callable[[Future[int]], bool]) -> None:
    future: Future[int] = Future()
    refused: list[bool] = []
    future.add_done_callback(lambda future: refused.append(future.cancel()))
    assert settler(future) is True
    assert refused == [False]
    assert future.cancel() is False


def test_a_future_that_is_run_refuses_a_cancel_while_it_runs() -> None:
    future: Future[bool] = Future()
    assert run(future, future.cancel) is True
    assert future.result(0) is False


@pytest.mark.parametrize("kind", [ValueError, RecursionError, SystemExit, KeyboardInterrupt, GeneratorExit, Custom])
def test_whatever_is_raised_goes_to_the_future(kind: type[BaseException]) -> None:
    future: Future[int] = Future()

    def fn() -> int:
        raise kind("no")

    assert run(future, fn) is True
    assert isinstance(future.exception(0), kind)


def test_a_function_whose_future_was_cancelled_is_not_called() -> None:
    called = threading.Event()
    future: Future[None] = Future()
    future.cancel()
    assert run(future, called.set) is False
    assert not called.is_set()


def test_a_failed_call_leaves_no_circle_of_references() -> None:
    class Big:
        """What the traceback's frames would keep."""

    def fn(big: Big) -> None:
        raise ValueError("no")

    def call() -> tuple[weakref.ref[Future[None]], weakref.ref[Big]]:
        futures, bigs = [Future[None]()], [Big()]  # no names: this frame is seen from those in the traceback
        refs = weakref.ref(futures[0]), weakref.ref(bigs[0])
        run(futures.pop(), lambda: fn(bigs.pop()))
        return refs

    gc.collect()
    gc.disable()
    try:
        future, big = call()
        assert future() is None
        assert big() is None
    finally:
        gc.enable()


def test_asyncio_takes_each_kind_of_end() -> None:
    error = ValueError("no")
    given_up = cancelled()
    settle(given_up, 1)

    async def ask() -> list[object]:
        wrapped = [asyncio.wrap_future(future) for future in (finished(5), failed(error), given_up)]
        done: list[object] = await asyncio.gather(*wrapped, return_exceptions=True)
        return done

    result, raised, gone = asyncio.run(ask())
    assert result == 5
    assert raised is error
    assert isinstance(gone, asyncio.CancelledError)


ENDS: dict[str, tuple[Callable[[Future[int]], object], type[BaseException] | None]] = {
    "a result": (lambda source: source.set_result(5), None),
    "a failure": (lambda source: source.set_exception(ValueError("no")), ValueError),
    "a cancel": (lambda source: source.cancel(), CancelledError),
}


@pytest.mark.parametrize(("end", "expected"), ENDS.values(), ids=ENDS)
def test_a_future_is_settled_from_another_ones_end(
    end: Callable[[Future[int]], object], expected: type[BaseException] | None
) -> None:
    source, target = Future[int](), Future[int]()
    target.set_running_or_notify_cancel()
    chain(source, target)
    assert not target.done()
    end(source)
    if expected is None:
        assert target.result(0) == 5
    else:
        assert isinstance(target.exception(0), expected)


# Interrupted.


def test_this_cpython_is_known() -> None:
    """Where it is not, ours are plain futures; and what follows fails as it does with those."""
    assert futures.KNOWN
    assert vars(GuardedFuture()).keys() == vars(Future()).keys()
    fresh, plain = vars(GuardedFuture()), vars(Future())
    del fresh["_condition"], plain["_condition"]
    assert fresh == plain


POLLS: list[Callable[[Future[int]], object]] = [
    lambda future: future.done(),
    lambda future: future.running(),
    lambda future: future.cancelled(),
    lambda future: future.add_done_callback(_nothing) or vars(future)["_done_callbacks"].clear(),  # type: ignore[func-returns-value]
    lambda future: _timed_out(future.result),
    lambda future: _timed_out(future.exception),
    repr,
]


def _nothing(future: Future[int]) -> None:
    """A callback."""


def _timed_out(ask: Callable[[float], object]) -> None:
    with contextlib.suppress(TimeoutError):
        ask(0)


def stays_locked(future: Future[int], poll: Callable[[Future[int]], object], patience: float) -> bool:
    """Whether an interrupt of a loop over *poll* has left it locked: nobody can settle it for *patience* seconds."""
    with pytest.raises(Interrupt):
        signal.setitimer(signal.ITIMER_REAL, random.uniform(2e-5, 2e-4))
        while True:
            poll(future)
    settling = threading.Thread(target=lambda: future.set_result(1), daemon=True)
    settling.start()
    settling.join(patience)
    locked = settling.is_alive()
    while settling.is_alive():  # let it through
        with contextlib.suppress(RuntimeError):
            future._condition.release()
        settling.join(0.001)
    return locked


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no such timer")
@pytest.mark.parametrize("poll", POLLS, ids=["done", "running", "cancelled", "callback", "result", "exception", "repr"])
def test_no_interrupt_leaves_it_locked(poll: Callable[[Future[int]], object], interrupts: None) -> None:
    """150 times each; of a plain future's ``done`` 15 to 62 % leave it locked (HAZARDS, finding 6)."""
    assert not any(stays_locked(GuardedFuture(), poll, PATIENCE) for _ in range(150))


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no such timer")
def test_a_plain_future_is_what_this_is_for(interrupts: None) -> None:
    assert any(stays_locked(Future(), lambda future: future.done(), 0.3) for _ in range(300))


def test_waiting_works_as_with_a_plain_one() -> None:
    ours: GuardedFuture[int] = GuardedFuture()
    waiting = [Worker(lambda: ours.result(PATIENCE)) for _ in range(3)]
    both = Worker(lambda: len(wait([ours, finished(2)], PATIENCE).done))
    first = Worker(lambda: list[Future[int]](as_completed([ours], PATIENCE)))
    with pytest.raises(TimeoutError):
        ours.result(0.01)
    began = time.monotonic()
    assert settle(ours, 5)
    assert [each.outcome() for each in waiting] == [5, 5, 5]
    assert both.outcome() == 2
    assert first.outcome() == [ours]
    assert time.monotonic() - began < PATIENCE / 2, "nobody was woken, and the time was up"
    assert repr(ours).endswith("state=finished returned int>")


def test_a_signal_handler_may_wait_for_it_inside_its_own_methods() -> None:
    ours: GuardedFuture[int] = GuardedFuture()
    with ours._condition, ours._condition:  # the interrupted method has taken it
        settling = Worker(lambda: settle(ours, 5))
        assert ours.result(PATIENCE) == 5
    assert settling.outcome() is True
    assert Worker(ours.done).outcome()
