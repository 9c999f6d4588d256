"""What every poller backend promises."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from functools import partial

import pytest

import bbipc
from bbipc import SocketEvent
from tests.contract.states import crowd
from tests.support.makers import PATIENCE, Namespace, Worker, accept, sleeping, wait_until_asleep

DATA = SocketEvent.DATA_AVAILABLE
SOON = 0.05  # seconds within which a change takes effect


def test_the_registrations_can_be_read_back(backend: str) -> None:
    one, other = bbipc.local_stream_pair()
    with one, other, bbipc.make_poller(backend) as poller:
        assert poller.backend == backend
        assert poller.monitored_sockets() == ()
        poller.monitor_socket(one, DATA)
        poller.monitor_socket(other, DATA | SocketEvent.READY_TO_WRITE)
        assert poller.monitored_sockets() == (one, other)
        assert poller.monitored_events(other) == DATA | SocketEvent.READY_TO_WRITE
        poller.set_monitored_events(other, DATA)
        assert poller.monitored_events(other) == DATA
        poller.unmonitor_socket(one)
        assert poller.monitored_sockets() == (other,)
        assert poller.wait_for_events(0) == []


def test_mistakes_are_named(backend: str, namespace: Namespace) -> None:
    one, other = bbipc.local_stream_pair()
    with one, other, namespace.make_server() as server, bbipc.make_poller(backend) as poller:
        poller.monitor_socket(one, DATA)
        with pytest.raises(ValueError, match="already"):
            poller.monitor_socket(one, DATA)
        with pytest.raises(ValueError, match="CONNECTION_AVAILABLE"):
            poller.set_monitored_events(one, SocketEvent.CONNECTION_AVAILABLE)
        with pytest.raises(ValueError, match="DATA_AVAILABLE"):
            poller.monitor_socket(server, DATA)
        with pytest.raises(TypeError):
            poller.monitor_socket(one.fileno(), DATA)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            poller.monitor_socket(other, 16)  # type: ignore[arg-type]
        for call in (
            lambda: poller.unmonitor_socket(other),
            lambda: poller.monitored_events(other),
            lambda: poller.set_monitored_events(other, DATA),
        ):
            with pytest.raises(KeyError):
                call()
        for timeout in (-1, -0.001, math.nan):
            with pytest.raises(ValueError):
                poller.wait_for_events(timeout)
        with pytest.raises(TypeError):
            poller.wait_for_events("1")  # type: ignore[arg-type]
        assert poller.monitored_sockets() == (one,)


def test_no_events_is_a_pause(backend: str) -> None:
    one, other = bbipc.local_stream_pair()
    with one, other, bbipc.make_poller(backend) as poller:
        poller.monitor_socket(one, SocketEvent(0))
        other.write(b"x")
        assert poller.wait_for_events(0) == []
        poller.set_monitored_events(one, DATA)
        assert poller.wait_for_events(0) == [(one, DATA)]
        poller.set_monitored_events(one, SocketEvent(0))
        assert poller.wait_for_events(0) == []
        other.close()
        with sleeping(0.01):
            assert poller.wait_for_events(0.2) == []


def test_a_wait_is_never_early(backend: str) -> None:
    with bbipc.make_poller(backend) as poller:
        for timeout in (0.0005, 0.01, 0.0301):
            began = time.monotonic()
            assert poller.wait_for_events(timeout) == []
            assert time.monotonic() - began >= timeout


@pytest.mark.parametrize("timeout", [None, math.inf, 1e12, 2**40, 1e300, 100_000.0])
def test_huge_timeouts_wait(backend: str, timeout: float | None) -> None:
    one, other = bbipc.local_stream_pair()
    with one, other, bbipc.make_poller(backend) as poller:
        poller.monitor_socket(one, DATA)
        waiter = Worker(lambda: poller.wait_for_events(timeout))
        single = Worker(lambda: bbipc.poll_socket(one, DATA, timeout))
        wait_until_asleep(waiter)
        wait_until_asleep(single)
        other.write(b"x")
        assert waiter.outcome() == [(one, DATA)]
        assert single.outcome() == DATA


def test_a_wake_ends_the_wait_or_the_next_one(backend: str) -> None:
    with bbipc.make_poller(backend) as poller:
        waiter = Worker(lambda: poller.wait_for_events(None))
        wait_until_asleep(waiter)
        began = time.monotonic()
        poller.wake()
        assert waiter.outcome() == []
        assert time.monotonic() - began < SOON
        poller.wake()
        poller.wake()
        began = time.monotonic()
        assert poller.wait_for_events(PATIENCE) == []
        assert time.monotonic() - began < SOON
        began = time.monotonic()
        assert poller.wait_for_events(0.02) == []  # the two counted as one
        assert time.monotonic() - began >= 0.02


def test_a_wake_is_not_lost_behind_events(backend: str) -> None:
    one, other = bbipc.local_stream_pair()
    with one, other, bbipc.make_poller(backend) as poller:
        poller.monitor_socket(one, DATA)
        other.write(b"x")
        assert poller.wait_for_events(None) == [(one, DATA)]
        poller.wake()
        assert poller.wait_for_events(None) == [(one, DATA)]


def test_changes_take_effect_during_a_wait(backend: str) -> None:
    """Monitoring, changed events and unmonitoring by another thread, each seen within 50 ms (HAZARDS 28)."""
    one, other = bbipc.local_stream_pair()
    with one, other, bbipc.make_poller(backend) as poller:
        other.write(b"x")
        waiter = Worker(lambda: poller.wait_for_events(None))
        wait_until_asleep(waiter)
        began = time.monotonic()
        poller.monitor_socket(one, DATA)
        assert waiter.outcome() == [(one, DATA)]
        assert time.monotonic() - began < SOON

        poller.set_monitored_events(one, SocketEvent.REMOTE_DISCONNECTED)
        waiter = Worker(lambda: poller.wait_for_events(None))
        wait_until_asleep(waiter)
        began = time.monotonic()
        poller.set_monitored_events(one, DATA)
        assert waiter.outcome() == [(one, DATA)]
        assert time.monotonic() - began < SOON

        one.read()
        waiter = Worker(lambda: poller.wait_for_events(0.3))
        wait_until_asleep(waiter)
        poller.unmonitor_socket(one)
        other.write(b"y")
        assert waiter.outcome() == []
        waiter = Worker(lambda: poller.wait_for_events(None))
        wait_until_asleep(waiter)
        began = time.monotonic()
        poller.monitor_socket(one, SocketEvent.DETERMINED)  # true already: no edge of the kernel will tell
        assert waiter.outcome() == [(one, SocketEvent.DETERMINED)]
        assert time.monotonic() - began < SOON


def test_a_second_waiting_thread_is_refused(backend: str) -> None:
    with bbipc.make_poller(backend) as poller:
        waiter = Worker(lambda: poller.wait_for_events(None))
        wait_until_asleep(waiter)
        with pytest.raises(RuntimeError, match="another thread"):
            poller.wait_for_events(0)
        assert waiter.is_alive()
        poller.wake()
        assert waiter.outcome() == []
        assert poller.wait_for_events(0) == []


def test_closing_a_poller_wakes_its_waiter_and_is_final(backend: str) -> None:
    one, other = bbipc.local_stream_pair()
    with one, other:
        poller = bbipc.make_poller(backend)
        poller.monitor_socket(one, DATA)
        waiter = Worker(lambda: poller.wait_for_events(None))
        wait_until_asleep(waiter)
        began = time.monotonic()
        poller.close()
        with pytest.raises(bbipc.PollerClosedError):
            waiter.outcome()
        assert time.monotonic() - began < 1
        poller.close()
        assert poller.closed
        for call in (
            lambda: poller.wait_for_events(0),
            lambda: poller.monitor_socket(one, DATA),
            lambda: poller.unmonitor_socket(one),
            lambda: poller.monitored_events(one),
            lambda: poller.set_monitored_events(one, DATA),
            poller.monitored_sockets,
            poller.wake,
            poller.__enter__,
        ):
            with pytest.raises(bbipc.PollerClosedError):
                call()
        other.write(b"still open")
        assert one.read() == b"still open"


def test_an_unclosed_poller_warns() -> None:
    poller = bbipc.make_poller()
    with pytest.warns(ResourceWarning, match="unclosed"):
        del poller


def test_a_socket_may_be_in_several_pollers(namespace: Namespace) -> None:
    with namespace.pair() as (client, accepted), contextlib.ExitStack() as stack:
        pollers = [stack.enter_context(bbipc.make_poller(name)) for name in bbipc.available_backends()]
        for poller in pollers:
            poller.monitor_socket(client, DATA)
        accepted.write(b"x")
        for poller in pollers:
            assert poller.wait_for_events(PATIENCE) == [(client, DATA)]
        client.read()
        waiters = [Worker(partial(poller.wait_for_events, None)) for poller in pollers]
        for waiter in waiters:
            wait_until_asleep(waiter)
        client.close()
        assert [waiter.outcome() for waiter in waiters] == [[]] * len(pollers)


def test_a_silent_stream_comes_back_when_its_events_change(namespace: Namespace, backend: str) -> None:
    """A peer shut its sending side; asked for data only the poller is silent, asked for the end it tells."""
    with namespace.pair() as (client, accepted), bbipc.make_poller(backend) as poller:
        poller.monitor_socket(client, DATA)
        accepted.shutdown_write()
        assert poller.wait_for_events(0.02) == []
        poller.set_monitored_events(client, DATA | SocketEvent.REMOTE_DISCONNECTED)
        assert poller.wait_for_events(PATIENCE) == [(client, SocketEvent.REMOTE_DISCONNECTED)]


def test_the_end_is_told_when_somebody_else_has_drained_the_stream(namespace: Namespace, backend: str) -> None:
    """No edge of the kernel tells of it: the stream is looked at in ticks of at most 50 ms."""
    with namespace.pair() as (client, accepted), bbipc.make_poller(backend) as poller:
        accepted.write(b"unread")
        accepted.close()
        poller.monitor_socket(client, SocketEvent.REMOTE_DISCONNECTED)
        waiter = Worker(lambda: poller.wait_for_events(None))
        single = Worker(lambda: bbipc.poll_socket(client, SocketEvent.REMOTE_DISCONNECTED, None))
        wait_until_asleep(waiter)
        wait_until_asleep(single)
        began = time.monotonic()
        while client.read():
            pass
        assert waiter.outcome() == [(client, SocketEvent.REMOTE_DISCONNECTED)]
        assert single.outcome() == SocketEvent.REMOTE_DISCONNECTED
        assert time.monotonic() - began < 0.3  # a tick, and what a busy machine adds


def test_a_waiting_connect_is_reported_when_the_backlog_has_room(namespace: Namespace, backend: str) -> None:
    with crowd(namespace) as (stream, server), bbipc.make_poller(backend) as poller:
        poller.monitor_socket(stream, SocketEvent.DETERMINED | SocketEvent.CONNECTION_FAILED)
        assert poller.wait_for_events(0) == []
        accept(server).close()
        if server.connection_available():
            accept(server).close()
        assert poller.wait_for_events(PATIENCE) == [(stream, SocketEvent.DETERMINED)]


def test_more_ready_sockets_than_one_batch(backend: str) -> None:
    """300 ready sockets are all reported within a few waits."""
    with contextlib.ExitStack() as stack, bbipc.make_poller(backend) as poller:
        ready = set()
        for _ in range(300):
            one, other = bbipc.local_stream_pair()
            stack.enter_context(one)
            stack.enter_context(other)
            poller.monitor_socket(one, DATA)
            other.write(b"x")
            ready.add(one)
        for _ in range(3):
            ready -= {socket for socket, _ in poller.wait_for_events(0)}
        assert not ready


def test_one_slow_answer_does_not_hide_the_others(backend: str) -> None:
    """A wait that has to look at one socket in ticks still reports the others at once."""
    one, other = bbipc.local_stream_pair()
    stuck, peer = bbipc.local_stream_pair()
    with one, other, stuck, bbipc.make_poller(backend) as poller:
        peer.write(b"unread")
        peer.close()
        poller.monitor_socket(stuck, SocketEvent.REMOTE_DISCONNECTED)
        poller.monitor_socket(one, DATA)
        assert poller.wait_for_events(0.01) == []
        for _ in range(20):
            other.write(b"x")
            assert poller.wait_for_events(PATIENCE) == [(one, DATA)]
            one.read()


def test_the_backends_are_named(backend: str) -> None:
    assert backend in bbipc.available_backends()
    with pytest.raises(ValueError, match="epoll"):
        bbipc.make_poller("devpoll")
    with bbipc.make_poller() as best:
        assert best.backend == bbipc.available_backends()[0]
        assert "0 sockets" in repr(best)


def test_threads_may_change_registrations_while_one_waits(backend: str) -> None:
    """4 threads make 500 changes each, each acknowledged by an event: none is missed (HAZARDS 28)."""
    rounds, done = 500, threading.Event()
    acknowledged: dict[bbipc.Socket, threading.Semaphore] = {}
    with bbipc.make_poller(backend) as poller, contextlib.ExitStack() as stack:

        def wait() -> None:
            while not done.is_set():
                for socket, _ in poller.wait_for_events(None):
                    poller.set_monitored_events(socket, SocketEvent(0))
                    acknowledged[socket].release()

        def change(socket: bbipc.LocalStream) -> None:
            poller.monitor_socket(socket, SocketEvent(0))
            for number in range(rounds):
                if number % 5 == 0:
                    poller.unmonitor_socket(socket)
                    poller.monitor_socket(socket, DATA)
                else:
                    poller.set_monitored_events(socket, DATA)
                assert acknowledged[socket].acquire(timeout=PATIENCE), f"change {number} was not seen"

        streams = []
        for _ in range(4):
            one, other = (stack.enter_context(stream) for stream in bbipc.local_stream_pair())
            other.write(b"always readable")
            acknowledged[one] = threading.Semaphore(0)
            streams.append(one)
        waiter = Worker(wait)
        changers = [Worker(partial(change, stream)) for stream in streams]
        for changer in changers:
            changer.outcome(60)
        done.set()
        poller.wake()
        waiter.outcome()
