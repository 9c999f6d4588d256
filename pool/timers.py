"""Timers: what is to be done, and when.

Law of this file: seconds of an injected clock, no thread, no wait, no user code under the lock.  Any thread may add
and cancel; the thread that runs them asks ``next_deadline`` before it sleeps and ``due`` when it wakes.

A heap, so that one more among thousands costs logarithmic time.  Cancelling leaves a dead entry in the heap and lets
go of what it held; when more than half of the entries are dead, they are swept.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from typing import Final, TypeAlias

from bbipc.sockets import fork
from bbipc.sockets.locks import make_rlock

#: fewer dead entries than this are not worth a sweep
_FEW: Final = 64


class Timer:
    """One thing to do once.  Made by :meth:`Timers.add`."""

    __slots__ = ("deadline", "action", "drop", "_timers")

    def __init__(
        self, timers: Timers, deadline: float, action: Callable[[], None], drop: Callable[[], None] | None
    ) -> None:
        self._timers = timers
        self.deadline = deadline
        self.action: Callable[[], None] | None = action  # None: done or cancelled; guarded by the lock of Timers
        self.drop = drop

    def cancel(self) -> None:
        """Take it back, unless it was due already.  Any thread."""
        self._timers.cancel(self)

    def empty(self) -> None:
        """Let go of what it holds."""
        self.action = self.drop = None


#: when it is due, how many were made before it, and itself
Entry: TypeAlias = tuple[float, int, Timer]


class Timers:
    """A heap of timers."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = make_rlock()
        self._heap: list[Entry] = []
        self._dead = 0
        self._count = 0  # keeps timers of one deadline in their order
        self._sleeps_until: float | None = 0.0  # what next_deadline() said last
        self._generation = fork.generation

    def __len__(self) -> int:
        """How many are still to come."""
        with self._lock:
            return len(self._heap) - self._dead

    def add(
        self, delay: float, action: Callable[[], None], drop: Callable[[], None] | None = None
    ) -> tuple[Timer, bool]:
        """*action* after *delay* seconds; and whether the thread that sleeps has to be woken, as it sleeps longer.

        *drop*: what is to be done instead when it is cleared away.
        """
        timer = Timer(self, self._clock() + delay, action, drop)
        with self._lock:
            self._count += 1
            heapq.heappush(self._heap, (timer.deadline, self._count, timer))
            return timer, self._sleeps_until is None or timer.deadline < self._sleeps_until

    def cancel(self, timer: Timer) -> bool:
        """Take it back; False: it was due, or cancelled, already.  Of all callers exactly one is told True."""
        if self._generation != fork.generation:  # the lock may be held for ever, by a thread that is not here
            return False
        with self._lock:
            if timer.action is None:
                return False
            timer.empty()
            self._dead += 1
            if self._dead > _FEW and self._dead * 2 > len(self._heap):
                self._sweep_locked()
            return True

    def _sweep_locked(self) -> None:
        """Let go of the dead; anew, if a signal handler of this very thread has added or cancelled in the middle."""
        while True:
            heap, count, dead = self._heap, self._count, self._dead
            living = _living(heap.copy())
            heapq.heapify(living)
            if self._heap is heap and self._count == count and self._dead == dead:  # no call from here on
                self._heap, self._dead = living, 0
                return

    def idle(self) -> bool:
        """Whether there is none, and ``next_deadline`` has said so last: who adds one now has the sleeper woken."""
        return not self._heap and self._sleeps_until is None

    def next_deadline(self) -> float | None:
        """When the next one is due; ``None``: there is none.  A timer added later and due earlier tells its adder."""
        with self._lock:
            self._drop_dead_locked()
            self._sleeps_until = self._heap[0][0] if self._heap else None
            return self._sleeps_until

    def due(self) -> list[Callable[[], None]]:
        """Take out what is due by now, the earliest first."""
        actions = []
        with self._lock:
            now = self._clock()
            self._drop_dead_locked()
            while self._heap and self._heap[0][0] <= now:
                timer = heapq.heappop(self._heap)[2]
                if timer.action is not None:
                    actions.append(timer.action)
                    timer.empty()
                self._drop_dead_locked()
        return actions

    def clear(self) -> list[Callable[[], None]]:
        """Take out all of them; what is to be done instead of their actions, the earliest first."""
        with self._lock:
            drops = _drops(self._heap)
            for _, _, timer in self._heap:
                timer.empty()
            self._heap.clear()
            self._dead = 0
            return drops

    def _drop_dead_locked(self) -> None:
        while self._heap and self._heap[0][2].action is None:
            heapq.heappop(self._heap)
            self._dead -= 1


# In frames of their own for what ``interests.py`` says at its end.


def _living(heap: list[Entry]) -> list[Entry]:
    return [entry for entry in heap if entry[2].action is not None]


def _drops(heap: list[Entry]) -> list[Callable[[], None]]:
    return [timer.drop for _, _, timer in sorted(heap) if timer.drop is not None]
