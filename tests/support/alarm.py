"""Signals at a steady pace, delivered to the main thread in the middle of whatever it does."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator

import bbipc


@contextlib.contextmanager
def alarms(handler: Callable[[], None], seconds: float) -> Iterator[None]:
    """Call *handler*, which must not raise, every *seconds*, as a signal handler."""
    before = signal.signal(signal.SIGALRM, lambda number, frame: handler())
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Closer:
    """A signal handler that closes the current sockets, and counts how many it found open."""

    def __init__(self) -> None:
        self.current: list[bbipc.Socket] = []
        self.hits = 0

    def __call__(self) -> None:
        for socket in self.current:
            self.hits += not socket.closed
            socket.close()


class Interrupt(Exception):
    """What the handler of the fixture ``interrupts`` raises."""
