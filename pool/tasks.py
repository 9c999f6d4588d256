"""Task: a call that a worker is to make, and its future.

Law of this file: exactly one of three takes a task: the worker that makes the call, whoever cancels its future, whoever
gives it up.  He settles the future; the others leave it alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from pool.futures import fail, run

T = TypeVar("T")


class Task(Generic[T]):
    """A call and its future."""

    __slots__ = ("future", "_call", "_claim")

    def __init__(self, future: Future[T], call: Callable[[], T]) -> None:
        self.future = future
        self._call = call
        self._claim = threading.Lock()  # taken for good, by the worker or by whoever cancels
        future.add_done_callback(self._done)

    def run(self) -> None:
        """Make the call, unless the future was cancelled."""
        if self._claim.acquire(blocking=False):
            # An error's traceback leads to this frame: nothing here may lead back to the future that keeps the error.
            future, self.future = self.future, Future()
            run(future, self._call)
            del future

    def give_up(self, error: BaseException) -> None:
        """It will not be called: let the future fail."""
        if self._claim.acquire(blocking=False):
            fail(self.future, error)

    def _done(self, future: Future[T]) -> None:
        # Cancelled in the queue: whoever waits for the future is to know now, not when a worker comes across it.
        if future.cancelled() and self._claim.acquire(blocking=False):
            future.set_running_or_notify_cancel()


AnyTask = Task[Any]
