"""Turn: one at a time does a thing, the others wait for theirs.

Law of this file: no I/O, no thread.  Any thread.  Like a lock, but a Ctrl-C can come anywhere, a wait may have a limit,
and whoever sleeps, also in the middle of his turn, can be roused.  ``_holder[0]`` is who has it, as in
``socket_queue.py``; nobody is left asleep for the reasons that ``conversation.py`` gives.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from pool.calls import Waiter

T = TypeVar("T")


class Turn:
    """Whose turn it is."""

    __slots__ = ("_holder", "_sleepers")

    def __init__(self) -> None:
        self._holder: dict[int, Waiter] = {}
        self._sleepers: dict[Waiter, None] = {}

    def run(
        self, action: Callable[[Waiter], T], deadline: float | None, check: Callable[[], object] | None = None
    ) -> T:
        """What *action* gives, once it is this thread's turn; it is given who it is, to sleep as.

        *check*: called before each sleep until then, and may raise.

        :raises TimeoutError: it was not before *deadline*, on the monotonic clock
        :raises RuntimeError: it is this thread's turn already, further out
        """
        waiter = Waiter()
        try:
            self._wait_for_it(waiter, deadline, check)
            return action(waiter)
        finally:
            try:
                self._leave(waiter)
            except BaseException:  # Ctrl-C in the middle: a step may be taken twice, none may be left out
                self._leave(waiter)
                raise

    def pause(self, waiter: Waiter, until: float, go_on: Callable[[], bool]) -> None:
        """Let the holder *waiter* sleep *until* that moment, or until it is roused; not if he need not *go_on*."""
        bed = waiter.lie_down()
        self._sleepers[waiter] = None
        try:
            left = until - time.monotonic()
            if left > 0 and go_on():
                bed.acquire(timeout=left)
        finally:
            self._sleepers.pop(waiter, None)

    def rouse(self) -> None:
        """Let everybody look around."""
        for waiter in list(self._sleepers):
            waiter.wake()

    def _wait_for_it(self, waiter: Waiter, deadline: float | None, check: Callable[[], object] | None) -> None:
        # In a frame of its own: see the end of ``interests.py``.
        while self._holder.setdefault(0, waiter) is not waiter:
            self._sleep(waiter, deadline, check)

    def _sleep(self, waiter: Waiter, deadline: float | None, check: Callable[[], object] | None) -> None:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError("no connection in time")
        bed = waiter.lie_down()
        self._sleepers[waiter] = None
        holder = self._holder.get(0)
        if holder is None:
            return
        if holder.thread == waiter.thread:
            raise RuntimeError("a signal handler or finalizer waits for a connection inside of a call that makes it")
        if check is not None:
            check()
        bed.acquire(timeout=-1 if left is None else min(left, threading.TIMEOUT_MAX))

    def _leave(self, waiter: Waiter) -> None:
        try:
            if self._holder[0] is waiter:
                del self._holder[0]
        except KeyError:
            pass
        self._sleepers.pop(waiter, None)
        if not self._holder:
            for sleeper in list(self._sleepers)[:1]:
                sleeper.wake()
