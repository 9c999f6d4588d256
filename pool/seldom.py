"""Seldom: at most once a second.

Law of this file: it knows no logger and no thread; the clock is injected.  Any thread may ask.  Whoever floods a server
must not flood its log as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from bbipc.sockets.locks import make_rlock


class Seldom:
    """A gate that opens once every *interval* seconds, and counts whom it keeps out."""

    def __init__(self, interval: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = interval
        self._clock = clock
        self._lock = make_rlock()
        self._next: float | None = None
        self._kept_out = 0

    def ask(self) -> int | None:
        """``None``: not now.  Otherwise how many were kept out since the last one that was let through."""
        with self._lock:
            now = self._clock()
            if self._next is not None and now < self._next:
                self._kept_out += 1
                return None
            self._next = now + self._interval
            kept_out, self._kept_out = self._kept_out, 0
            return kept_out
