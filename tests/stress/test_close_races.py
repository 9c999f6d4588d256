"""Close against use, close against close, close against polling: hazards 1, 2 and 3 of the field.

Each race states its rounds.  The bug that each is for was planted once, and seen (see ``docs/design-notes.md``).
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import Counter
from collections.abc import Iterator
from unittest import mock

import pytest

import bbipc
from bbipc import SocketEvent
from tests.stress.close_race import OPERATIONS, AcceptRace, StreamRace, pinned_to_one_cpu, rounds_of, switch_interval
from tests.support.alarm import Closer, alarms
from tests.support.makers import PATIENCE, Worker

DATA = SocketEvent.DATA_AVAILABLE


@pytest.mark.parametrize(("interval", "rounds"), [(1e-6, 4000), (5e-3, 1000)], ids=["1e-6", "default"])
def test_no_read_reaches_a_stranger(interval: float, rounds: int) -> None:
    """4,000 and 1,000 closes (a twentieth without a GIL); without a tombstone 0.4 to 1.5 % of them find it."""
    with pinned_to_one_cpu(), switch_interval(interval):
        assert StreamRace("read_into", rounds_of(rounds)).run() == 0


def test_no_read_reaches_a_stranger_on_all_processors() -> None:
    """250 closes, the threads truly side by side where there is no GIL."""
    with switch_interval(1e-6):
        assert StreamRace("read_into", 250).run() == 0


@pytest.mark.parametrize("operation", [name for name in OPERATIONS if name != "read_into"])
def test_no_operation_reaches_a_stranger(operation: str) -> None:
    """500 closes each (25 without a GIL)."""
    with pinned_to_one_cpu(), switch_interval(1e-6):
        assert StreamRace(operation, rounds_of(500)).run() == 0


def test_no_accept_takes_the_caller_of_another_server() -> None:
    """1,000 closes."""
    with pinned_to_one_cpu(), switch_interval(1e-6):
        assert AcceptRace(rounds_of(1000)).run() == 0


@contextlib.contextmanager
def tombstones_counted() -> Iterator[Counter[int]]:
    """How often each number was put under the tombstone."""
    counted: Counter[int] = Counter()
    original = os.dup2

    def dup2(source: int, target: int, inheritable: bool = True) -> int:
        counted[target] += 1
        return original(source, target, inheritable)

    with mock.patch("os.dup2", dup2):
        yield counted


@pytest.mark.parametrize("interval", [1e-6, 1e-4, 5e-3])
def test_exactly_one_of_four_threads_closes(interval: float) -> None:
    """4 threads close the same 10,000 sockets in the same order: one dup2 each (HAZARDS 2)."""
    rounds, size = 20, 500
    barrier = threading.Barrier(5)
    batch: list[bbipc.Socket] = []

    def close_all() -> None:
        for _ in range(rounds):
            barrier.wait(PATIENCE)
            for socket in batch:
                socket.close()
            barrier.wait(PATIENCE)

    closers = [Worker(close_all) for _ in range(4)]
    for _ in range(rounds):
        batch[:] = [stream for _ in range(size // 2) for stream in bbipc.local_stream_pair()]
        numbers = [stream.fileno() for stream in batch]
        with tombstones_counted() as counted, switch_interval(interval):
            barrier.wait(PATIENCE)
            barrier.wait(PATIENCE)
        assert counted == Counter(numbers)
    for closer in closers:
        closer.outcome()


def test_a_signal_handler_may_close_what_the_main_thread_is_closing() -> None:
    """5,000 closes under a timer of 0.1 ms whose handler closes the same socket: never twice, never stuck."""
    closer = Closer()
    with tombstones_counted() as counted, alarms(closer, 0.0001):
        for _ in range(2500):
            pair = bbipc.local_stream_pair()
            numbers = [stream._handle.fileno() for stream in pair]
            before = Counter(counted)
            closer.current[:] = pair
            for stream in pair:
                stream.close()
            assert counted - before == Counter(numbers)
    assert closer.hits > 10, "the timer never hit"


def test_a_batch_of_events_never_reaches_a_new_owner_of_a_number(backend: str) -> None:
    """200 batches of 32 ready sockets; each handler closes the next three and opens as many (HAZARDS 3).

    The new ones are idle, so an event that is reported for one of them was another's.
    """
    with bbipc.make_poller(backend) as poller, contextlib.ExitStack() as peers:
        idle: set[bbipc.Socket] = set()
        for _ in range(200):
            ready = []
            for _ in range(32):
                one, other = bbipc.local_stream_pair()
                poller.monitor_socket(one, DATA)
                other.write(b"x")
                other.shutdown_write()
                ready.append((one, other))
            for socket, _ in poller.wait_for_events(0):
                assert socket not in idle
                assert isinstance(socket, bbipc.LocalStream)
                if socket.closed:
                    with pytest.raises(bbipc.SocketClosedError):
                        socket.read()
                    continue
                assert socket.read() == b"x"
                victims = [stream for stream, _ in ready if not stream.closed and stream is not socket][:3]
                for victim in victims:
                    victim.close()
                    new, peer = bbipc.local_stream_pair()
                    poller.monitor_socket(new, DATA)
                    idle.add(new)
                    peers.callback(peer.close)
            for pair in ready:
                for stream in pair:
                    stream.close()
            for socket in idle:
                socket.close()
            idle.clear()
            peers.close()


def test_sockets_closed_and_opened_while_a_poller_waits_are_never_mixed_up(backend: str) -> None:
    """3,000 sockets become ready, are closed by one thread, and their numbers go to idle ones, while another waits."""
    rounds, done = 1000, threading.Event()
    with bbipc.make_poller(backend) as poller:
        idle: set[bbipc.Socket] = set()
        mixed_up: list[bbipc.Socket] = []

        def wait() -> None:
            while not done.is_set():
                mixed_up.extend(socket for socket, _ in poller.wait_for_events(None) if socket in idle)

        waiter = Worker(wait)
        with switch_interval(1e-6):
            for _ in range(rounds):
                pairs = [bbipc.local_stream_pair() for _ in range(3)]
                for one, other in pairs:
                    poller.monitor_socket(one, DATA)
                    other.write(b"x")
                for one, _ in pairs:
                    one.close()
                fresh = [bbipc.local_stream_pair() for _ in range(3)]
                idle.update(one for one, _ in fresh)
                for one, _ in fresh:
                    poller.monitor_socket(one, DATA)
                for one, other in [*pairs, *fresh]:
                    other.close()
                    one.close()
        done.set()
        poller.wake()
        waiter.outcome()
        assert not mixed_up


def test_monitoring_against_closing_leaves_nothing_registered(backend: str) -> None:
    """2,000 rounds: one thread monitors, one closes.  Either it is refused, or the close removes it."""
    barrier = threading.Barrier(2)
    current: list[bbipc.LocalStream] = []
    rounds = 2000
    with bbipc.make_poller(backend) as poller:

        def monitor() -> None:
            for _ in range(rounds):
                barrier.wait(PATIENCE)
                with contextlib.suppress(bbipc.SocketClosedError):
                    poller.monitor_socket(current[0], DATA)
                barrier.wait(PATIENCE)

        monitoring = Worker(monitor)
        with switch_interval(1e-6):
            for _ in range(rounds):
                current[:] = bbipc.local_stream_pair()
                barrier.wait(PATIENCE)
                current[0].close()
                barrier.wait(PATIENCE)
                assert poller.monitored_sockets() == ()
                current[1].close()
        monitoring.outcome()
        assert poller.wait_for_events(0) == []


def test_a_close_in_another_thread_is_never_a_false_end() -> None:
    """2,000 closes (100 without a GIL) under a reading thread: SocketClosedError every time, b"" never."""
    rounds = rounds_of(2000)
    barrier = threading.Barrier(2)
    current: list[bbipc.LocalStream] = []
    false_ends: list[int] = []
    at_it = threading.Semaphore(0)

    def read() -> None:
        for number in range(rounds):
            barrier.wait(PATIENCE)
            try:
                current[0].read()
                at_it.release()
                while current[0].read() is None:
                    pass
                false_ends.append(number)
            except bbipc.SocketClosedError:
                pass
            barrier.wait(PATIENCE)

    with pinned_to_one_cpu(), switch_interval(1e-6):
        reader = Worker(read)
        for _ in range(rounds):
            current[:] = bbipc.local_stream_pair()
            barrier.wait(PATIENCE)
            assert at_it.acquire(timeout=PATIENCE)
            current[0].close()
            barrier.wait(PATIENCE)
            current[1].close()
        reader.outcome()
    assert not false_ends


def test_wakes_are_never_lost(backend: str) -> None:
    """10,000 rounds of ping-pong through wake(): one that is lost hangs, and fails after 10 s (HAZARDS 29)."""
    rounds = 10_000
    with bbipc.make_poller(backend) as ping, bbipc.make_poller(backend) as pong:

        def answer() -> None:
            for _ in range(rounds):
                while not asked.acquire(blocking=False):
                    ping.wait_for_events(None)
                answered.release()
                pong.wake()

        asked, answered = threading.Semaphore(0), threading.Semaphore(0)
        answering = Worker(answer)
        for _ in range(rounds):
            asked.release()
            ping.wake()
            while not answered.acquire(blocking=False):
                pong.wait_for_events(PATIENCE)
        answering.outcome()


def test_wakes_from_many_threads_never_block(backend: str) -> None:
    """8 threads wake a poller that nobody waits on, 20,000 times each; then one wait ends at once."""
    with bbipc.make_poller(backend) as poller:

        def wake() -> None:
            for _ in range(20_000):
                poller.wake()

        for waker in [Worker(wake) for _ in range(8)]:
            waker.outcome(30)
        assert poller.wait_for_events(None) == []
        assert poller.wait_for_events(0) == []
