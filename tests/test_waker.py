"""The waker, over an eventfd and over a socket pair: never blocks, never lost, one drain for any number of wakes."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import threading
from collections.abc import Iterator

import pytest

from bbipc.polling.waker import Waker
from tests.support.makers import PATIENCE, Worker, wait_until_asleep

WAKES = 100_000
THREADS = 8


@pytest.fixture(params=["eventfd", "pair"], autouse=True)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which implementation a Waker() of the test is."""
    if request.param == "pair":
        monkeypatch.delattr(os, "eventfd", raising=False)
    elif not hasattr(os, "eventfd"):
        pytest.skip("this system has no eventfd")
    return str(request.param)


def is_readable(waker: Waker, seconds: float = 0) -> bool:
    return bool(select.select([waker.number], [], [], seconds)[0])


def numbers_of(waker: Waker) -> list[int]:
    return [waker.number] if waker._pair is None else [end.fileno() for end in waker._pair]


def test_a_waker_is_made_of_what_the_system_has(kind: str) -> None:
    assert len(numbers_of(Waker())) == (1 if kind == "eventfd" else 2)


def test_a_fresh_waker_is_quiet() -> None:
    waker = Waker()
    assert not is_readable(waker)


def test_a_wake_makes_it_readable_until_it_is_drained() -> None:
    waker = Waker()
    waker.wake()
    assert is_readable(waker)
    assert is_readable(waker)
    waker.drain()
    assert not is_readable(waker)


@contextlib.contextmanager
def unblocked_at_the_end(waker: Waker, *workers: Worker) -> Iterator[None]:
    """Where a wake blocks, the test fails, and its threads end nevertheless."""
    try:
        yield
    finally:
        for worker in workers:
            while worker.is_alive():
                waker.drain()
                worker.join(0.001)


def wake_often(waker: Waker, count: int) -> None:
    """In a thread of its own: a wake that blocks is a failure of the test and not its end."""

    def wakes() -> None:
        for _ in range(count):
            waker.wake()

    with unblocked_at_the_end(waker, worker := Worker(wakes)):
        worker.outcome()


def test_many_wakes_are_gone_after_one_drain() -> None:
    waker = Waker()
    wake_often(waker, 10_000)
    waker.drain()
    assert not is_readable(waker)


@pytest.mark.parametrize("wakes", [4095, 4096, 4097, 8192, 10_000])
def test_one_drain_is_enough_for_any_number_of_wakes(wakes: int) -> None:
    """Linux takes only some hundred single bytes, other systems 8,192: so they are put there at once."""
    waker = Waker()
    if waker._pair is None:
        wake_often(waker, wakes)
    else:
        assert waker._pair[1].send(bytes(wakes)) == wakes
    waker.drain()
    assert not is_readable(waker)


def test_a_drain_of_a_quiet_waker_returns_at_once() -> None:
    waker = Waker()
    Worker(waker.drain).outcome()
    waker.wake()
    waker.drain()
    Worker(waker.drain).outcome()
    assert not is_readable(waker)


def test_a_wake_that_comes_between_a_drain_and_the_wait_ends_the_wait() -> None:
    waker = Waker()
    waker.wake()
    waker.drain()
    waker.wake()
    assert is_readable(waker, PATIENCE)


def test_a_wake_during_the_wait_ends_it() -> None:
    waker = Waker()
    waiter = Worker(lambda: is_readable(waker, PATIENCE))
    wait_until_asleep(waiter)
    waker.wake()
    assert waiter.outcome() is True


def test_a_hundred_thousand_wakes_from_eight_threads_never_block_and_one_drain_takes_them_all() -> None:
    waker = Waker()
    start = threading.Barrier(THREADS, timeout=PATIENCE)

    def hammer() -> int:
        start.wait()
        for _ in range(WAKES // THREADS):
            waker.wake()
        return WAKES // THREADS

    workers = [Worker(hammer) for _ in range(THREADS)]
    with unblocked_at_the_end(waker, *workers):
        assert sum(int(str(worker.outcome(20))) for worker in workers) == WAKES
    assert is_readable(waker)
    waker.drain()
    assert not is_readable(waker)
    waker.wake()  # a pair that had been full takes wakes again
    assert is_readable(waker)


def test_no_wake_is_lost_against_a_thread_that_drains() -> None:
    """Each round a number is published, then woken for; the drainer drains, then looks, and must come to see them
    all without one wake that times out.
    """
    waker = Waker()
    rounds = 5_000
    published = [0]

    def publish() -> None:
        for number in range(1, rounds + 1):
            published[0] = number
            waker.wake()

    def see() -> int:
        seen = 0
        while seen < rounds:
            assert is_readable(waker, PATIENCE), f"a wake was lost after {seen}"
            waker.drain()
            seen = published[0]
        return seen

    seer, publisher = Worker(see), Worker(publish)
    publisher.outcome(60)
    assert seer.outcome(60) == rounds


def test_its_numbers_are_freed_when_it_is_dropped() -> None:
    made = Waker()
    numbers = numbers_of(made)
    assert numbers[0] == made.number
    for number in numbers:
        os.fstat(number)
    del made
    for number in numbers:
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            os.fstat(number)


def test_it_lives_for_as_long_as_anybody_uses_it() -> None:
    made = Waker()
    wake = made.wake
    number = made.number
    del made
    wake()
    os.fstat(number)
    assert select.select([number], [], [], 0)[0] == [number]


def test_a_started_program_inherits_none_of_its_numbers() -> None:
    waker = Waker()
    assert not any(os.get_inheritable(number) for number in numbers_of(waker))


def test_its_numbers_do_not_block() -> None:
    waker = Waker()
    assert not any(os.get_blocking(number) for number in numbers_of(waker))


def test_a_waker_that_could_not_be_made_leaves_nothing_to_free(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    if kind == "eventfd":
        monkeypatch.setattr(os, "eventfd", none_left)
    monkeypatch.setattr(socket, "socketpair", none_left)
    with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
        Waker()
