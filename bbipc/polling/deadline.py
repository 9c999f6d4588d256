"""Timeouts: what a caller may say, and what is left of it.

Law of this file: seconds, ``time.monotonic``, never early.
"""

from __future__ import annotations

import math
import time
from typing import Final

#: no single kernel wait is longer: poll(2) counts milliseconds in a C int, and a wait that ends early goes on
LONGEST_WAIT: Final = 86400.0


def checked_timeout(timeout: float | None, name: str = "timeout") -> float | None:
    """*timeout* in seconds; ``None`` and infinity: no limit.  *name*: how the caller knows it.

    :raises TypeError: not a number
    :raises ValueError: negative or NaN
    """
    if timeout is None:
        return None
    if type(timeout) is float and 0.0 <= timeout < 1e15:  # the common case, at a fifth of the price
        return timeout
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise TypeError(f"{name} must be a number of seconds or None, not {type(timeout).__name__}")
    if not timeout >= 0:
        raise ValueError(f"{name} must not be negative or NaN: {timeout!r}")
    return None if timeout > 1e15 or math.isinf(timeout) else float(timeout)


def deadline_after(timeout: float | None) -> float | None:
    """The moment *timeout* seconds from now; ``None``: never."""
    return None if timeout is None else time.monotonic() + timeout


def time_left(deadline: float | None) -> float:
    """How long one kernel wait may be: up to the deadline, a day at most; 0 when the time is up."""
    if deadline is None:
        return LONGEST_WAIT
    return min(max(deadline - time.monotonic(), 0.0), LONGEST_WAIT)


def milliseconds(seconds: float) -> int:
    """*seconds* for poll(2), rounded up: a wait may be late, never early."""
    return math.ceil(seconds * 1000)
