"""The wait of a poller: one thread is stopped at the line where another, or a signal handler, must do no harm."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from unittest import mock

import pytest

import bbipc
from bbipc import SocketEvent
from bbipc.polling.poller import Poller
from bbipc.polling.registry import Registry
from bbipc.polling.watch import Watch
from tests.support.alarm import Closer, alarms
from tests.support.makers import PATIENCE, Worker, wait_until_asleep

DATA = SocketEvent.DATA_AVAILABLE


class Stopped:
    """A method that stops on its way in, the first time, until it is let go."""

    def __init__(self, original: Callable[..., object]) -> None:
        self.reached, self.go = threading.Event(), threading.Event()
        self._original = original

    def __call__(self, *args: object) -> object:
        if not self.reached.is_set():
            self.reached.set()
            assert self.go.wait(PATIENCE)
        return self._original(*args)


def passing_on(stopped: Stopped) -> Callable[..., object]:
    """As a function, so that it becomes a method."""

    def method(*args: object) -> object:
        return stopped(*args)

    return method


@pytest.fixture
def retiring_stopped() -> Stopped:
    """``_retire_waker``, stopped: its wait is over (no waiter any more), and the waker is not retired yet."""
    return Stopped(Poller._retire_waker)


@pytest.mark.parametrize("kept", [True, False], ids=["short way", "long way"])
def test_a_report_for_a_socket_that_left_never_reaches_the_next_owner_of_its_number(backend: str, kept: bool) -> None:
    """1. The kernel reports a socket.  2. It is closed; its number goes to another.  3. The report is read."""
    one, other = bbipc.local_stream_pair()
    with other, bbipc.make_poller(backend) as poller:
        poller.monitor_socket(one, DATA)
        other.write(b"x")
        if kept:
            assert poller.wait_for_events(0) == [(one, DATA)]  # from now on the answer is kept ready
        reported = Stopped(type(poller)._kernel_wait)
        original = poller._kernel_wait

        def wait_and_stop(seconds: float | None) -> list[tuple[int, int]]:
            pairs = original(seconds)
            if not reported.reached.is_set():
                reported.reached.set()
                assert reported.go.wait(PATIENCE)
            return pairs

        with mock.patch.object(poller, "_kernel_wait", wait_and_stop):
            waiter = Worker(lambda: poller.wait_for_events(0.05))
            assert reported.reached.wait(PATIENCE)
            number = one.fileno()
            one.close()
            pairs = [bbipc.local_stream_pair() for _ in range(2)]
            streams = [stream for pair in pairs for stream in pair]
            assert number in [stream.fileno() for stream in streams]
            for stream in streams:
                poller.monitor_socket(stream, DATA)
            reported.go.set()
            assert waiter.outcome() == []
        for stream in streams:
            stream.close()


def test_the_wake_of_a_close_is_not_lost_to_a_wait_that_ended_before(retiring_stopped: Stopped) -> None:
    """A's wait is ended by a close, and A is stopped before it retires the waker: nobody hangs, nothing leaks."""
    poller = bbipc.make_poller()
    with mock.patch.object(Poller, "_retire_waker", passing_on(retiring_stopped)):
        a = Worker(lambda: poller.wait_for_events(None))
        wait_until_asleep(a)
        poller.close()
        assert retiring_stopped.reached.wait(PATIENCE)
        with pytest.raises(bbipc.PollerClosedError):
            poller.wait_for_events(None)
        retiring_stopped.go.set()
        with pytest.raises(bbipc.PollerClosedError):
            a.outcome()


def test_a_shutdown_during_the_judgement_leaves_no_answer_behind() -> None:
    """1. B reads "ready to write" of a socket.  2. The socket is shut down.  3. B must not keep that answer ready."""
    one, other = bbipc.local_stream_pair()
    ready = SocketEvent.READY_TO_WRITE
    with one, other, bbipc.make_poller() as poller:
        poller.monitor_socket(one, ready)
        original = type(one)._observe

        def observe(stream: bbipc.LocalStream, flags: int) -> tuple[int, int] | None:
            state = original(stream, flags)
            if stream._sending:
                stream.shutdown_write()
            return state

        with mock.patch.object(bbipc.LocalStream, "_observe", observe):
            assert poller.wait_for_events(0) == [(one, ready)]
        assert poller.wait_for_events(0) == []


def test_an_answer_that_was_kept_ready_before_the_peers_end_is_forgotten(backend: str) -> None:
    """Asked for room alone from the end on, the kernel says "writable" as it did before; it no longer means READY."""
    one, other = bbipc.local_stream_pair()
    room, ready = SocketEvent.ROOM_TO_WRITE, SocketEvent.READY_TO_WRITE
    with one, other, bbipc.make_poller(backend) as poller:
        poller.monitor_socket(one, room | ready | DATA)
        for _ in range(2):
            assert poller.wait_for_events(0) == [(one, room | ready)]
        other.shutdown_write()
        for _ in range(3):
            assert poller.wait_for_events(0) == [(one, room)]
        poller.set_monitored_events(one, room | SocketEvent.REMOTE_DISCONNECTED)
        for _ in range(3):
            assert poller.wait_for_events(0) == [(one, room | SocketEvent.REMOTE_DISCONNECTED)]


@pytest.mark.parametrize("stopped_at", ["_kernel_wait", "_observe"])
def test_a_report_for_room_alone_answers_no_question_about_the_end(backend: str, stopped_at: str) -> None:
    """1. The kernel, asked for room alone, reports room.  2. Others are wanted.  3. The peer had ended long ago."""
    one, other = bbipc.local_stream_pair()
    others = SocketEvent.READY_TO_WRITE | SocketEvent.CONNECTION_SUCCEEDED
    with one, other, bbipc.make_poller(backend) as poller:
        other.shutdown_write()
        poller.monitor_socket(one, SocketEvent.ROOM_TO_WRITE)
        target = poller if stopped_at == "_kernel_wait" else bbipc.LocalStream
        original = getattr(target, stopped_at)
        reported = Stopped(lambda: None)

        def then_stop(*args: object) -> object:
            outcome = original(*args)
            reported()
            return outcome

        with mock.patch.object(target, stopped_at, then_stop):
            waiter = Worker(lambda: poller.wait_for_events(0.05))
            assert reported.reached.wait(PATIENCE)
            poller.set_monitored_events(one, others)
            reported.go.set()
            assert waiter.outcome() == []
        poller.set_monitored_events(one, others | SocketEvent.ROOM_TO_WRITE)
        assert poller.wait_for_events(PATIENCE) == [(one, SocketEvent.ROOM_TO_WRITE)]


def test_a_close_during_the_judgement_reports_nothing(backend: str) -> None:
    one, other = bbipc.local_stream_pair()
    with other, bbipc.make_poller(backend) as poller:
        poller.monitor_socket(one, DATA)
        other.write(b"x")
        original = type(one)._observe

        def observe(stream: bbipc.LocalStream, flags: int) -> tuple[int, int] | None:
            state = original(stream, flags)
            stream.close()
            return state

        with mock.patch.object(bbipc.LocalStream, "_observe", observe):
            assert poller.wait_for_events(0) == []
        assert poller.monitored_sockets() == ()


def test_a_ready_socket_is_answered_without_being_asked_again() -> None:
    """The short cut: from the second time on the answer is a look-up."""
    one, other = bbipc.local_stream_pair()
    with one, other, bbipc.make_poller("epoll") as poller:
        poller.monitor_socket(one, DATA)
        other.write(b"x")
        assert poller.wait_for_events(0) == [(one, DATA)]
        with mock.patch.object(bbipc.LocalStream, "_observe", side_effect=AssertionError("asked")):
            for _ in range(3):
                assert poller.wait_for_events(0) == [(one, DATA)]
        assert len(poller._answers) == 1
        poller.unmonitor_socket(one)
        assert not poller._answers


def test_answers_do_not_pile_up_on_the_long_way() -> None:
    """With a socket that has to be looked at, every wait takes the long way, and keeps nothing twice."""
    one, other = bbipc.local_stream_pair()
    with one, other, bbipc.make_poller() as poller:
        poller.monitor_socket(one, DATA)
        poller.monitor_socket(other, SocketEvent.DETERMINED)
        other.write(b"x")
        for _ in range(100):
            assert dict(poller.wait_for_events(0)) == {one: DATA, other: SocketEvent.DETERMINED}
        assert len(poller._watches[one.fileno()].answers) == 1


@pytest.mark.parametrize("name", ["_kernel_wait", "_collect", "_judge", "_look_again", "_take_wake", "_pause"])
def test_a_ctrl_c_in_a_wait_leaves_the_poller_usable(name: str) -> None:
    """Interrupted at each step, the next wait is neither refused nor misled."""

    class Interrupt(BaseException):
        pass

    one, other = bbipc.local_stream_pair()
    gone, peer = bbipc.local_stream_pair()
    with one, other, gone, bbipc.make_poller("poll") as poller:
        peer.write(b"unread")
        peer.close()
        poller.monitor_socket(one, DATA)
        poller.monitor_socket(gone, SocketEvent.REMOTE_DISCONNECTED)
        other.write(b"x")
        with mock.patch.object(type(poller), name, side_effect=Interrupt), pytest.raises(Interrupt):
            for _ in range(3):
                poller.wait_for_events(0.01)
        assert poller.wait_for_events(PATIENCE) == [(one, DATA)]
        assert poller._lock.acquire(blocking=False)
        poller._lock.release()


def test_signals_neither_shorten_nor_prolong_a_wait(backend: str) -> None:
    """A timer of 1 ms during a wait of 0.1 s: never early, at most 50 ms late (HAZARDS 26)."""
    one, other = bbipc.local_stream_pair()
    with one, other, bbipc.make_poller(backend) as poller:
        for wait in (lambda: poller.wait_for_events(0.1), lambda: bbipc.poll_socket(one, DATA, 0.1)):
            with alarms(lambda: None, 0.001):
                began = time.monotonic()
                assert not wait()
                taken = time.monotonic() - began
            assert 0.1 <= taken < 0.15


def test_a_signal_handler_may_close_what_its_thread_is_monitoring(backend: str) -> None:
    """2,000 registrations under a timer whose handler closes the socket: none stays registered, nothing hangs."""
    closer = Closer()
    with bbipc.make_poller(backend) as poller:
        with alarms(closer, 0.0002):
            for _ in range(1000):
                pair = bbipc.local_stream_pair()
                closer.current[:] = pair
                for socket in pair:
                    with contextlib.suppress(bbipc.SocketClosedError, KeyError):
                        poller.monitor_socket(socket, DATA)
                        poller.set_monitored_events(socket, DATA | SocketEvent.READY_TO_WRITE)
                        poller.wait_for_events(0)
                        poller.unmonitor_socket(socket)
                    socket.close()
                assert not poller.monitored_sockets()
        assert poller.wait_for_events(0) == []
        assert not poller._watches
        assert not poller._looked
        assert not poller._answers
    assert closer.hits > 10, "the timer never hit"


def test_a_number_is_free_again_when_its_wait_is_over(backend: str) -> None:
    """A socket closed during a wait ends that wait, and keeps no number."""
    one, other = bbipc.local_stream_pair()
    with other, bbipc.make_poller(backend) as poller:
        numbers = len(os.listdir("/proc/self/fd"))
        poller.monitor_socket(one, DATA)
        waiter = Worker(lambda: poller.wait_for_events(None))
        wait_until_asleep(waiter)
        one.close()
        assert waiter.outcome() == []
        assert len(os.listdir("/proc/self/fd")) == numbers - 1


def test_sockets_that_come_and_go_during_one_long_wait_keep_no_numbers(backend: str) -> None:
    """1,000 are monitored, unmonitored and closed while one thread sits in one wait: the numbers are free again."""
    with bbipc.make_poller(backend) as poller:
        waiter = Worker(lambda: poller.wait_for_events(None))
        wait_until_asleep(waiter)
        numbers = len(os.listdir("/proc/self/fd"))
        for _ in range(1000):
            one, other = bbipc.local_stream_pair()
            poller.monitor_socket(one, DATA)
            poller.unmonitor_socket(one)
            one.close()
            other.close()
        assert waiter.is_alive()
        assert len(os.listdir("/proc/self/fd")) <= numbers + 4
        wait_until_asleep(waiter)
        poller.wake()
        assert waiter.outcome() == []
        assert len(os.listdir("/proc/self/fd")) == numbers


def test_what_stays_true_is_reported_at_once_beside_what_is_looked_at_in_ticks(backend: str) -> None:
    """Once in five times, as a busy machine makes some late; with the next tick it would never be."""

    def seconds() -> float:
        stuck, peer = bbipc.local_stream_pair()
        one, other = bbipc.local_stream_pair()
        with stuck, one, other, bbipc.make_poller(backend) as poller:
            peer.write(b"unread")
            peer.close()
            poller.monitor_socket(stuck, SocketEvent.REMOTE_DISCONNECTED)
            assert poller.wait_for_events(0.2) == []
            waiter = Worker(lambda: poller.wait_for_events(None))
            wait_until_asleep(waiter)
            began = time.monotonic()
            poller.monitor_socket(one, SocketEvent.DETERMINED)
            assert waiter.outcome() == [(one, SocketEvent.DETERMINED)]
            return time.monotonic() - began

    assert any(seconds() < 0.02 for _ in range(5))


def test_a_close_that_meets_a_change_still_ends_the_wait_and_keeps_the_number(backend: str) -> None:
    """1. A thread waits.  2. Another is changing the socket's events.  3. A third has marked the socket as closed,
    and comes to the poller when the change is over: the change has found the mark, and does what the closer would
    have.
    """
    one, other = bbipc.local_stream_pair()
    with other, bbipc.make_poller(backend) as poller:
        poller.monitor_socket(one, DATA)
        waiter = Worker(lambda: poller.wait_for_events(None))
        wait_until_asleep(waiter)
        closers: list[Worker] = []
        want = Registry._want_locked

        def change(registry: Registry, watch: Watch, wanted: int) -> None:
            closers.append(Worker(one.close))
            while not one.closed:
                pass
            want(registry, watch, wanted)

        with mock.patch.object(Registry, "_want_locked", change), pytest.raises(KeyError):
            poller.set_monitored_events(one, DATA | SocketEvent.READY_TO_WRITE)
        closers[0].outcome()
        assert waiter.outcome() == []
        assert poller.monitored_sockets() == ()
