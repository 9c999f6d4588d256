"""Task: a call that a worker is to make, and its future.  Errand: something to do that nobody waits for.

(A Listener is an errand that reads itself what it has to do, and can wait for that.)

Law of this file: exactly one of three takes a task: the worker that makes the call, whoever cancels its future, whoever
gives it up.  He settles the future; the others leave it alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from bbipc.events import SocketEvent
from pool.futures import GuardedFuture, fail, run

T = TypeVar("T")


class Task(Generic[T]):
    """A call and its future."""

    __slots__ = ("future", "obligatory", "_call", "_claim")

    def __init__(self, future: Future[T], call: Callable[[], T], *, obligatory: bool = False) -> None:
        """*obligatory*: not to be cancelled with the rest of a queue."""
        self.future = future
        self.obligatory = obligatory
        self._call: Callable[[], T] | None = call
        self._claim = threading.Lock()  # taken for good, by the worker or by whoever cancels
        # It must not hold the task: a future that holds what holds it lives on until the collector comes.
        future.add_done_callback(partial(_notify_if_cancelled, self._claim))

    def run(self) -> None:
        """Make the call, unless the future was cancelled."""
        call, self._call = self._call, None
        if call is not None and self._claim.acquire(blocking=False):
            # An error's traceback leads to this frame: nothing here may lead back to the future that keeps the error.
            future, self.future = self.future, GuardedFuture()
            run(future, call)
            del future

    def give_up(self, error: BaseException) -> None:
        """It will not be called: let the future fail."""
        if self._claim.acquire(blocking=False):
            fail(self.future, error)


def _notify_if_cancelled(claim: threading.Lock, future: Future[T]) -> None:
    """Cancelled in the queue: whoever waits for it is to know now, not when a worker comes across it."""
    if future.cancelled() and claim.acquire(blocking=False):
        future.set_running_or_notify_cancel()


AnyTask = Task[Any]


class Errand(Protocol):
    """Something to do on a worker, in pieces.  It may be run by several workers at once."""

    def run(self) -> int:
        """Do some of it; how many pieces that were.  It may block."""
        ...

    def waiting(self) -> int:
        """How many pieces nobody has taken yet, and could be done now.  Takes no lock: it is asked under one."""
        ...


class Listener(Errand, Protocol):
    """Whose events are waited for, where one may also wait for them in the read."""

    def take(self, events: SocketEvent) -> None:
        """*events* have come: read; what is to be done with it is left to :meth:`run`."""

    def listen(self, seconds: float) -> bool:
        """Wait for what comes, and read it, for so long at most; False: nothing has come, or is to be read now.

        What is to be done with it is left to :meth:`run`.
        """
        ...
