"""Pace: whether calls are slow on the average, so that they are made apart; see ``leader.py`` for what that means.

Law of this file: arithmetic, guarded by the lock of whoever owns it; ``apart`` may be read without.

Where calls seem to be slow, the next PROBE of them are made *apart*.  Each of these uses one up, and earns as many more
as SLOW goes into its time, SPREAD at most: so calls that are slow on the average run side by side at once, without
waiting for a watcher, and where most are quick the leader makes them himself again.

A processor that was busy elsewhere makes a call look slow, too; hence the probe.  So does a thread that waits for the
interpreter's lock, or for a leader who has the one processor, and making calls apart gives more such threads.  Where
one slow call earned SPREAD more, as once, a flood of connects kept a server at that for whole seconds, at half of its
pace: answers took 300 ms, not 2.
"""

from __future__ import annotations

from typing import Final

from pool.lookout import SLOW

#: so many calls are made apart when one has seemed slow, and so many at most are ahead when they are
PROBE: Final = 4
SPREAD: Final = 64


class Pace:
    """Of one pool's calls.  ``apart``: so many are still to be made apart."""

    def __init__(self) -> None:
        self.apart = 0.0

    def probe_locked(self) -> None:
        """Some calls have seemed slow."""
        self.apart = max(self.apart, PROBE)

    def spend_locked(self, count: int, seconds: float) -> None:
        """*count* calls were made apart, as one, and took so long."""
        if self.apart:  # or else others were quick: not revived by one that has waited for their leader
            self.apart = min(max(self.apart - 1 + seconds / (SLOW * count), 0.0), SPREAD)
