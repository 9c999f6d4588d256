"""Across os.fork: the child finds every lock free and every field in order, and knows that it is a child."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import bbipc
from bbipc import PollerClosedError, SocketEvent
from bbipc.sockets import fork
from tests.support.makers import PATIENCE, Worker

FORKS = 200
HAMMERS = 4

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
    # Python 3.12 and later warn of a fork while threads run, which is what these tests are about.
    pytest.mark.filterwarnings(r"ignore:.*use of fork\(\) may lead to deadlocks:DeprecationWarning"),
]


def in_child(fn: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """What *fn* returns in a forked child, which reports through a pipe and leaves by os._exit.

    A child that does not report in time is killed, and the test fails.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            report = {"result": fn()}
        except BaseException as error:
            report = {"error": repr(error)}
        os.write(writer, json.dumps(report).encode())
        os._exit(0)
    os.close(writer)
    try:
        reported = bool(select.select([reader], [], [], seconds)[0])
        if not reported:
            os.kill(child, signal.SIGKILL)
        text = os.read(reader, 1 << 16)
    finally:
        os.close(reader)
        _, status = os.waitpid(child, 0)
    assert reported, "the child hangs"
    assert status == 0, f"the child ended with status {status}"
    report = json.loads(text)
    assert "error" not in report, report
    return report["result"]


def locks_not_free() -> list[int]:
    """Which of the locks somebody holds; no waiting."""
    held = []
    for number in range(64):
        lock = fork.lock_for(number)
        if not lock.acquire(blocking=False):
            held.append(number)  # another thread, perhaps one that is not here
            continue
        lock.release()
        try:
            lock.release()
        except RuntimeError:  # as it should be: it was not held before
            continue
        held.append(number)  # this thread itself
    return held


@pytest.fixture(name="hammering")
def locks_hammered() -> Iterator[Callable[[], int]]:
    """Threads that take and let go of all locks without a pause; gives a function that counts their rounds.

    Each writes two fields under the lock that must never be seen unlike.
    """
    stop = threading.Event()
    rounds = [0] * HAMMERS

    def hammer(number: int) -> None:
        while not stop.is_set():
            for index in range(64):
                with fork.lock_for(index):
                    FIELDS[index][0] += 1
                    FIELDS[index][1] += 1
            rounds[number] += 1

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)  # more interleavings in less time
    workers = [Worker(lambda number=number: hammer(number)) for number in range(HAMMERS)]  # type: ignore[misc]
    try:
        yield lambda: sum(rounds)
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        for worker in workers:
            worker.outcome()


FIELDS = [[0, 0] for _ in range(64)]


def test_there_are_64_locks_and_a_number_always_has_the_same() -> None:
    assert len({id(fork.lock_for(number)) for number in range(64)}) == 64
    for number in (0, 1, 63, 64, 1000, 2**20):
        assert fork.lock_for(number) is fork.lock_for(number + 64)


def test_the_socket_of_a_number_has_that_numbers_lock() -> None:
    one, other = bbipc.local_stream_pair()
    with one, other:
        for stream in (one, other):
            assert stream._lock is fork.lock_for(stream.fileno())


def test_a_lock_may_be_taken_again_by_the_thread_that_holds_it() -> None:
    lock = fork.lock_for(5)
    with lock, lock:
        taken = Worker(lambda: lock.acquire(blocking=False)).outcome()
    assert taken is False
    assert locks_not_free() == []


def test_a_forked_child_is_a_generation_on_and_the_parent_is_not() -> None:
    before = fork.generation
    assert in_child(lambda: fork.generation) == before + 1
    assert in_child(lambda: in_child(lambda: fork.generation)) == before + 2
    assert fork.generation == before


def test_two_hundred_forks_under_hammered_locks_give_children_with_free_locks_and_fields_in_order(
    hammering: Callable[[], int],
) -> None:
    expected = [fork.generation + 1, [], []]

    def look_around() -> list[object]:
        return [fork.generation, locks_not_free(), [index for index, (a, b) in enumerate(FIELDS) if a != b]]

    for _ in range(FORKS):
        assert in_child(look_around) == expected
    assert hammering() > 0
    assert locks_not_free_eventually() == []


def locks_not_free_eventually() -> list[int]:
    """In the parent others may hold a lock just now, but none for good."""
    stuck = []
    for number in range(64):
        if fork.lock_for(number).acquire(timeout=PATIENCE):
            fork.lock_for(number).release()
        else:
            stuck.append(number)
    return stuck


def test_a_fork_leaves_the_locks_of_the_parent_free() -> None:
    assert in_child(lambda: True) is True
    assert Worker(locks_not_free).outcome() == []
    assert locks_not_free() == []


def test_a_fork_by_a_thread_that_holds_a_lock_leaves_it_held_there_and_in_the_child() -> None:
    """The lock is re-entrant: a signal handler that forks in the middle of a close is such a thread."""
    with fork.lock_for(7):
        held = in_child(locks_not_free)
        assert Worker(locks_not_free).outcome() == [7]
    assert held == [7]
    assert locks_not_free() == []


def test_sockets_open_and_close_in_a_child_while_threads_of_the_parent_do_the_same() -> None:
    stop = threading.Event()

    def churn() -> int:
        count = 0
        while not stop.is_set():
            one, other = bbipc.local_stream_pair()
            with one, other, bbipc.make_poller() as poller:
                poller.monitor_socket(one, SocketEvent.DATA_AVAILABLE)
            count += 1
        return count

    def use() -> bool:
        one, other = bbipc.local_stream_pair()
        with one, other, bbipc.make_poller() as poller:
            poller.monitor_socket(one, SocketEvent.DATA_AVAILABLE)
            return other.write(b"x") == 1 and len(poller.wait_for_events(PATIENCE)) == 1

    workers = [Worker(churn) for _ in range(2)]
    try:
        assert all(in_child(use) for _ in range(50))
    finally:
        stop.set()
        counts = [worker.outcome() for worker in workers]
    assert all(counts)


def test_a_close_in_the_child_frees_the_number_there_and_leaves_the_connection_to_the_parent() -> None:
    one, other = bbipc.local_stream_pair()

    def close_there() -> list[bool]:
        number = one.fileno()
        one.close()
        try:
            os.fstat(number)
        except OSError:
            return [one.closed, True]
        return [one.closed, False]

    with one, other:
        assert in_child(close_there) == [True, True]
        assert not one.closed
        assert one.write(b"still here") == 10
        assert other.read() == b"still here"
        assert not other.remote_disconnected()


REFUSAL = "this poller belongs to the process that forked this one; make another"


def refusals(poller: bbipc.Poller, one: bbipc.Socket, other: bbipc.Socket) -> list[str]:
    """What a child is told by a poller of its parent's; it closes what it has, too."""
    told = []
    calls: list[Callable[[], object]] = [
        lambda: poller.wait_for_events(0),
        poller.wake,
        poller.__enter__,
        lambda: poller.monitored_events(one),
        poller.monitored_sockets,
        lambda: poller.unmonitor_socket(one),
        lambda: poller.set_monitored_events(one, SocketEvent.READY_TO_WRITE),
        lambda: poller.monitor_socket(other, SocketEvent.READY_TO_WRITE),
    ]
    for call in calls:
        try:
            call()
        except PollerClosedError as error:
            told.append(str(error))
    one.close()
    poller.close()
    return told


def test_a_poller_of_the_parent_refuses_in_the_child_and_keeps_its_registrations(backend: str) -> None:
    one, other = bbipc.local_stream_pair()
    with one, other, bbipc.make_poller(backend) as poller:
        poller.monitor_socket(one, SocketEvent.DATA_AVAILABLE)
        assert in_child(lambda: refusals(poller, one, other)) == [REFUSAL] * 8
        assert poller.monitored_sockets() == (one,)
        assert poller.wait_for_events(0) == []
        assert other.write(b"x") == 1
        assert poller.wait_for_events(PATIENCE) == [(one, SocketEvent.DATA_AVAILABLE)]


def test_a_poller_whose_lock_was_held_at_the_fork_refuses_in_the_child_too(backend: str) -> None:
    """By a thread that is not there: who waits for it waits for ever."""
    one, other = bbipc.local_stream_pair()
    held, done = threading.Event(), threading.Event()

    def hold(poller: bbipc.Poller) -> None:
        with poller._lock:
            held.set()
            assert done.wait(PATIENCE)

    with one, other, bbipc.make_poller(backend) as poller:
        poller.monitor_socket(one, SocketEvent.DATA_AVAILABLE)
        holder = Worker(lambda: hold(poller))
        try:
            assert held.wait(PATIENCE)
            told = in_child(lambda: refusals(poller, one, other), 5)
        finally:
            done.set()
            holder.outcome()
        assert told == [REFUSAL] * 8
