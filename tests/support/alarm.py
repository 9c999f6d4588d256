"""Signals at a steady pace, delivered to the main thread in the middle of whatever it does."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator

import bbipc


@contextlib.contextmanager
def alarms(handler: Callable[[], None], seconds: float, *, once: bool = False) -> Iterator[None]:
    """Call *handler* every *seconds*, or once after them, as a signal handler.  One that raises must come but once."""
    before = signal.signal(signal.SIGALRM, lambda number, frame: handler())
    signal.setitimer(signal.ITIMER_REAL, seconds, 0 if once else seconds)
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
