"""One call at a time is at work on a queue, and nobody waits for it."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from concurrent.futures import Future

import pytest

import bbipc
from bbipc import SocketError, SocketEvent
from pool.afterwards import Afterwards
from pool.poller_thread import PollerThread
from pool.socket_queue import TURN, SocketQueue
from tests.support.makers import PATIENCE, Worker


@pytest.fixture
def poller_thread() -> Iterator[PollerThread]:
    with PollerThread() as thread:
        yield thread


@pytest.fixture
def queue(poller_thread: PollerThread) -> Iterator[SocketQueue]:
    one, other = bbipc.local_stream_pair()
    with one, other:
        yield SocketQueue(one, poller_thread, SocketEvent.DATA_AVAILABLE)


class Busy:
    """Another thread at work, until it is let go."""

    def __init__(self, queue: SocketQueue) -> None:
        self.begun, self.end = threading.Event(), threading.Event()
        self.worker = Worker(lambda: queue._try(self.work))
        assert self.begun.wait(PATIENCE)

    def work(self) -> bool:
        self.begun.set()
        return self.end.wait(PATIENCE)

    def let_go(self) -> None:
        self.end.set()
        assert self.worker.outcome() is True


def test_a_call_that_finds_nobody_is_made_at_once(queue: SocketQueue, poller_thread: PollerThread) -> None:
    assert queue._try(lambda: "done") == "done"
    threads = []
    queue._do(lambda after: after.add(lambda: threads.append(threading.current_thread())))
    assert threads == [threading.current_thread()]
    assert poller_thread._thread is None


def test_who_finds_somebody_at_work_goes_and_the_poller_thread_does_it(
    queue: SocketQueue, poller_thread: PollerThread
) -> None:
    busy = Busy(queue)
    done: Future[bool] = Future()
    assert queue._try(lambda: "done") is None
    queue._do(lambda after: after.add(lambda: done.set_result(poller_thread.is_current())))
    poller_thread.call_later(0, int).result(PATIENCE)
    assert not done.done()
    busy.let_go()
    assert done.result(PATIENCE) is True


def test_nobody_overtakes_what_was_handed_in(queue: SocketQueue, poller_thread: PollerThread) -> None:
    """Ten times what the poller thread does in a turn."""
    busy = Busy(queue)
    done: list[int] = []
    last: Future[None] = Future()
    for number in range(TURN * 10):
        queue._do(lambda after, number=number: done.append(number))  # type: ignore[misc]
    queue._do(lambda after: last.set_result(None))
    busy.let_go()
    last.result(PATIENCE)
    assert done == list(range(TURN * 10))


def test_a_call_in_the_middle_of_another_is_made_behind_it(queue: SocketQueue) -> None:
    done: list[str] = []
    last: Future[None] = Future()

    def inner(after: Afterwards) -> None:
        done.append("inner")
        last.set_result(None)

    def outer(after: Afterwards) -> None:
        queue._do(inner)
        done.append("outer")

    queue._do(outer)
    last.result(PATIENCE)
    assert done == ["outer", "inner"]


def test_without_a_poller_thread_who_goes_does_what_was_handed_in(
    queue: SocketQueue, poller_thread: PollerThread
) -> None:
    poller_thread.close()
    done: list[threading.Thread] = []
    busy = Busy(queue)
    queue._do(lambda after: done.append(threading.current_thread()))
    assert not done
    busy.let_go()
    assert done == [busy.worker]


def test_without_a_poller_thread_who_works_off_the_rest_looks_again_when_he_goes(
    queue: SocketQueue, poller_thread: PollerThread
) -> None:
    poller_thread.close()
    begun, end = threading.Event(), threading.Event()
    done: list[threading.Thread] = []

    def slow(after: Afterwards) -> None:
        begun.set()
        end.wait(PATIENCE)

    worker = Worker(lambda: queue._hand_in(slow))
    assert begun.wait(PATIENCE)
    queue._hand_in(lambda after: done.append(threading.current_thread()))
    assert not done
    end.set()
    worker.outcome()
    assert done == [worker]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, MemoryError])
def test_what_is_ended_in_its_middle_lets_the_others_in_and_tells_its_owner(
    queue: SocketQueue, poller_thread: PollerThread, kind: type[BaseException]
) -> None:
    poller_thread.close()  # so that this thread does what was handed in, and may meet a Ctrl-C in it
    done: list[int] = []
    future: Future[None] = Future()

    def spoiled(after: Afterwards) -> None:
        after.add(done.append, 1)
        raise kind

    queue._inbox.append((spoiled, future))
    queue._inbox.append((lambda after: done.append(2), None))
    with pytest.raises(kind):
        queue._work()
    assert done == [1, 2]
    error = future.exception(0)
    assert isinstance(error, SocketError)
    assert error.errno == errno.EINTR
    assert not queue._at_work
    with pytest.raises(kind):
        queue._try(spoiled, Afterwards())
    assert not queue._at_work


def test_every_step_of_many_threads_is_done_once_and_alone(queue: SocketQueue) -> None:
    """8 threads x 2,000 steps, of which some are made at once and some handed in."""
    total = 8 * 2000
    count, inside = 0, 0
    finished: Future[None] = Future()

    def step(after: Afterwards) -> None:
        nonlocal count, inside
        inside += 1
        assert inside == 1
        count += 1
        inside -= 1
        if count == total:
            after.add(finished.set_result, None)

    def use() -> None:
        for _ in range(2000):
            queue._do(step)

    workers = [Worker(use) for _ in range(8)]
    for worker in workers:
        worker.outcome(30)
    finished.result(30)
    assert count == total
