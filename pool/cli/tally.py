"""What callers have done, and how long it took: counts and a histogram, as numbers that add up.

Law of this file: pure.  A Tally is written by one thread; others may add it up meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

#: buckets of the histogram for each doubling of the time, from a microsecond on; the last holds all that is longer
_STEPS = 8
_BUCKETS = 24 * _STEPS


@dataclass
class Tally:
    """``answers``, ``bytes`` (both ways), ``wrong`` answers, and a histogram of the seconds that they took."""

    answers: int = 0
    bytes: int = 0
    wrong: int = 0
    times: list[int] = field(default_factory=lambda: [0] * _BUCKETS)

    def count(self, seconds: float, size: int, *, right: bool) -> None:
        """One answer."""
        microseconds = seconds * 1e6
        bucket = int(math.log2(microseconds) * _STEPS) if microseconds > 1 else 0
        self.times[min(bucket, _BUCKETS - 1)] += 1
        self.answers += 1
        self.bytes += size
        self.wrong += not right

    def milliseconds(self, share: float) -> float:
        """The time that this share of all answers did not exceed, give or take 5 %; 0 without any."""
        rest = share * sum(self.times)
        for bucket, count in enumerate(self.times):
            rest -= count
            if rest < 0:
                return float(2 ** ((bucket + 0.5) / _STEPS) / 1000)
        return 0.0


def added_up(tallies: Sequence[Tally]) -> Tally:
    """All of them as one."""
    return Tally(
        sum(tally.answers for tally in tallies),
        sum(tally.bytes for tally in tallies),
        sum(tally.wrong for tally in tallies),
        [sum(counts) for counts in zip(*(tally.times for tally in tallies), strict=True)] or [0] * _BUCKETS,
    )
