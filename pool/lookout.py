"""Lookout: who watches the leader, and what he has seen; see ``leader.py`` for why.

Law of this file: state and arithmetic, guarded by the lock of whoever owns it; every method is called with that held.
It calls nobody.
"""

from __future__ import annotations

import sys
import time
from typing import Final

#: a call that takes longer, in seconds, is slow: twenty times what it costs to hand the lead over.  Without a GIL calls
#: that only compute run side by side as well, so there it pays earlier
SLOW: Final = 0.001 if getattr(sys, "_is_gil_enabled", lambda: True)() else 0.0002
#: seconds between two looks of the watcher.  Shorter finds a blocked leader earlier; this one costs 0.3 % of a core
WATCH: Final = 0.005
#: the same for the next so many looks when a leader was found blocked, as others may follow: where one call in a
#: hundred sleeps 10 ms that gives 6 to 8 times the calls.  They cost a tenth of a core, and last while some calls take
#: longer than about 0.2 ms; 10 to 20 ms without such a call end them
QUICK_WATCH: Final = 0.0001
QUICK_LOOKS: Final = 100
#: after so many looks without anything new the watcher sleeps
LOOKS: Final = 20


class Lookout:
    """One watcher at most, and how the leader's work stood when he looked last."""

    def __init__(self) -> None:
        self.watcher = 0  # the thread's ident; 0: nobody
        self.called = False  # somebody was asked to watch
        self._seen = -1  # the progress at the last look, and since when it is that
        self._since = 0.0
        self._looks = 0
        self._late = False  # the last look came late
        self._quick = 0  # so many looks are still to be quick ones
        self._pace = WATCH  # seconds from the last look to the next

    def look_locked(self, me: int, progress: int, *, leads: bool, polling: bool) -> float | None:
        """*me* is about to sleep: for how many seconds at most, as the watcher; ``None``: without limit.

        *leads*: whether anybody does; *polling*: whether he waits for events.
        """
        if not leads and self.watcher == me:
            self.rest_locked()
        if not leads or self.watcher not in (0, me):
            return None
        if progress != self._seen:
            self._seen, self._since, self._looks, self._late = progress, time.monotonic(), 0, False
        self._looks += 1
        if self._looks > LOOKS and polling:
            self.rest_locked()
            return None
        self.watcher = me
        self._pace = QUICK_WATCH if self._quick else WATCH
        self._quick = max(self._quick - 1, 0)
        return self._pace

    def note_blocked_locked(self) -> None:
        """The leader was found blocked in a call."""
        self._quick = QUICK_LOOKS

    def rest_locked(self) -> None:
        """Nobody watches."""
        self.watcher, self.called = 0, False

    def stands_still_locked(self, progress: int) -> bool:
        """Whether nothing has happened since the last look, so that the leader must be blocked in a call."""
        if progress != self._seen:
            return False
        since = time.monotonic() - self._since
        if since > 3 * self._pace and not self._late:  # the processor was elsewhere, perhaps with him, too: look again
            self._late, self._since = True, time.monotonic()
            return False
        return since >= self._pace / 2
