"""Pauses: threads that sleep for a moment at places drawn by lot, as on a machine that others use, only more often.

An interleaving that needs a thread to stand still between two lines comes about once in a million runs by itself, and
every few seconds here.  What is held to be true anyway must be so however long a thread pauses.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType


class Pauses:
    """One call or return in *one_in* pauses for *seconds*, and every tenth of them for five times as long."""

    def __init__(self, seed: int, one_in: int, seconds: float) -> None:
        self._draw = random.Random(seed).random
        self._likely = 1 / one_in
        self._seconds = seconds
        self._process = os.getpid()
        self.over = False
        self.count = 0

    def profile(self, frame: FrameType, event: str, arg: object) -> None:
        """For :func:`threading.setprofile`."""
        if self._draw() < self._likely and not self.over and os.getpid() == self._process:
            self.count += 1
            time.sleep(self._seconds * (5 if self._draw() < 0.1 else 1))


@contextlib.contextmanager
def pausing(seed: int, one_in: int = 500, seconds: float = 0.004, *, own: bool = False) -> Iterator[Pauses]:
    """Threads that start in the block pause; the caller's own as well, if *own*."""
    pauses = Pauses(seed, one_in, seconds)
    threading.setprofile(pauses.profile)
    if own:
        sys.setprofile(pauses.profile)
    try:
        yield pauses
    finally:
        if own:
            sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type, unused-ignore] # typeshed does not know of None
        pauses.over = True
