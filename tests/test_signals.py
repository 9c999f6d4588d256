"""Signals that interrupt no system call, and end the main thread's wait all the same."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator

import pytest

import bbipc
from bbipc.polling.signals import woken_by_signals
from pool import ConnectionServer, StopReport
from tests.support.makers import PATIENCE, Namespace, Worker, wait_until_asleep


@pytest.fixture(autouse=True)
def no_wakeup_descriptor() -> Iterator[None]:
    before = signal.set_wakeup_fd(-1)
    assert before == -1
    yield
    assert signal.set_wakeup_fd(-1) == -1, "a number that is another's would be written to"


def take_signal(number: int) -> None:
    """Let this thread, which is not the main one, take a signal while the main thread is asleep."""
    wait_until_asleep(threading.main_thread())
    signal.pthread_kill(threading.get_ident(), number)


@pytest.fixture
def heard() -> Iterator[list[int]]:
    """Hears SIGUSR1."""
    numbers: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: numbers.append(number))
    yield numbers
    signal.signal(signal.SIGUSR1, before)


def test_a_signal_that_another_thread_took_ends_the_wait(heard: list[int]) -> None:
    with bbipc.make_poller() as poller, woken_by_signals(poller) as forget:
        taker = Worker(lambda: take_signal(signal.SIGUSR1))
        assert poller.wait_for_events(PATIENCE)
        assert heard == [signal.SIGUSR1]
        forget()
        assert not poller.wait_for_events(0)  # it does not spin
        taker.outcome()


def test_a_ctrl_c_that_another_thread_took_is_one() -> None:
    with bbipc.make_poller() as poller:
        end = time.monotonic() + PATIENCE
        with pytest.raises(KeyboardInterrupt), woken_by_signals(poller):
            taker = Worker(lambda: take_signal(signal.SIGINT))
            poller.wait_for_events(PATIENCE)
        assert time.monotonic() < end, "the main thread slept on"
        assert poller.monitored_sockets() == ()
        taker.outcome()


def test_serve_forever_ends_on_such_a_ctrl_c(namespace: Namespace) -> None:
    server = ConnectionServer(namespace.make_server(), lambda stream: None)
    taker = Worker(lambda: take_signal(signal.SIGINT))
    rescue = threading.Timer(PATIENCE, server.stop)
    rescue.start()
    try:
        assert server.serve_forever() == StopReport()
        assert rescue.is_alive(), "the main thread slept on"
    finally:
        rescue.cancel()
        rescue.join()
    taker.outcome()


def test_what_was_there_before_is_there_again(heard: list[int]) -> None:
    one, other = bbipc.local_stream_pair()
    with one, other, bbipc.make_poller() as poller:
        signal.set_wakeup_fd(other.fileno())
        with woken_by_signals(poller):
            assert signal.set_wakeup_fd(-1) not in (-1, other.fileno())
        assert signal.set_wakeup_fd(-1) == other.fileno()


def test_another_thread_leaves_signals_alone() -> None:
    def enter() -> None:
        with bbipc.make_poller() as poller, woken_by_signals(poller) as forget:
            forget()
            assert poller.monitored_sockets() == ()

    Worker(enter).outcome()
