"""Settling futures: exactly one outcome, whoever races for it.

Law of this file: it knows ``concurrent.futures.Future`` and nothing of sockets, threads or pollers.  Any thread may
call anything here, with no lock of ours held: a future's callbacks run in the thread that settles it.

A plain Future raises InvalidStateError out of ``set_result`` when somebody has cancelled it meanwhile, and between
``done()`` and ``set_result()`` there is always a meanwhile (6,299 of a million on the free-threaded build).  So whoever
settles *claims* first, with ``set_running_or_notify_cancel``: from there on ``cancel()`` is refused.  That call may be
made once only (a second one on a cancelled future raises), so those who race agree beforehand who makes it: each of
our waits can be taken from its table once, and the taker makes the call.

A plain Future takes its lock in Python code, ``Condition.__enter__``.  A Ctrl-C that comes in there when the lock is
taken leaves it held: the main thread has asked ``done()`` once too often, and the thread that settles the future waits
for ever (HAZARDS 37).  So ours have a condition that *is* a lock, entered in C, or as ``locks.py`` tells from 3.14 on.
To make one, to settle it and to ask costs 1.6 us besides, and a plain one 3.1 (3.13).
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    RLock = threading.RLock
else:
    RLock = type(threading.RLock())

T = TypeVar("T")

#: what is in a plain future, in all CPythons that we know.  Where it is something else, ours are plain ones
_FIELDS: Final = {"_condition", "_state", "_result", "_exception", "_waiters", "_done_callbacks"}
KNOWN: Final = set(vars(Future())) == _FIELDS
_PENDING: Final = Future()._state


class GuardedCondition(RLock):  # type: ignore[misc, unused-ignore]
    """What a future needs of a ``threading.Condition``; no Ctrl-C leaves it held, or held by nobody in a block."""

    __slots__ = ("_sleepers",)

    def __init__(self) -> None:
        self._sleepers: list[threading.Lock] = []

    def wait(self, timeout: float | None = None) -> bool:
        """Sleep until notified, for *timeout* seconds at most; whether it was.  The caller has taken it."""
        if timeout is not None and timeout <= 0:  # without letting go, as there is a gap in which it is nobody's
            return False
        bed, taken = threading.Lock(), None
        bed.acquire()
        self._sleepers.append(bed)
        try:
            taken = self._release_save()  # type: ignore[attr-defined] # however often: by a signal handler's caller, too
            return bed.acquire(timeout=-1 if timeout is None else timeout)
        finally:
            if taken is not None:
                self._acquire_restore(taken)  # type: ignore[attr-defined]
            elif not self._is_owned():  # type: ignore[attr-defined] # a Ctrl-C came as soon as it was let go
                self.acquire()
            if bed in self._sleepers:
                self._sleepers.remove(bed)

    def notify_all(self) -> None:
        """Wake all sleepers."""
        sleepers, self._sleepers = self._sleepers, []
        for bed in sleepers:
            bed.release()

    if sys.version_info >= (3, 14):

        def __enter__(self) -> bool:
            for _ in iter(self.acquire, None):
                return True
            raise RuntimeError("a signal handler has raised StopIteration")


class GuardedFuture(Future[T]):
    """A future that no Ctrl-C leaves locked, whichever of its methods it comes in."""

    def __init__(self) -> None:
        if not KNOWN:
            super().__init__()
            return
        self._condition = GuardedCondition()  # type: ignore[assignment]
        self._state = _PENDING
        self._result = None
        self._exception = None
        self._waiters = []
        self._done_callbacks: list[object] = []


def finished(result: T) -> Future[T]:
    """A future that has its result already."""
    future: Future[T] = GuardedFuture()
    future.set_result(result)
    return future


def failed(error: BaseException) -> Future[Any]:
    """A future that has failed already."""
    future: Future[Any] = GuardedFuture()
    future.set_exception(error)
    return future


def settle(future: Future[T], result: T) -> bool:
    """Give *future* its result; False: it was cancelled, and whoever waits for it knows now."""
    if not future.set_running_or_notify_cancel():
        return False
    future.set_result(result)
    return True


def fail(future: Future[T], error: BaseException) -> bool:
    """Let *future* fail; False: it was cancelled, and whoever waits for it knows now."""
    if not future.set_running_or_notify_cancel():
        return False
    future.set_exception(error)
    return True


def run(future: Future[T], fn: Callable[[], T]) -> bool:
    """Settle *future* with what *fn* comes to, whatever it raises; False: it was cancelled, *fn* was not called."""
    if not future.set_running_or_notify_cancel():
        return False
    try:
        result = fn()
    except BaseException as error:  # noqa: BLE001 # the future's owner is told
        future.set_exception(error)
        # The error's traceback holds this frame, and this frame the error's future: break the circle.
        del future, fn
    else:
        future.set_result(result)
    return True


def chain(source: Future[T], target: Future[T]) -> None:
    """Settle *target*, which is claimed, as *source* will be."""

    def done(source: Future[T]) -> None:
        try:
            result = source.result()
        except BaseException as error:  # noqa: BLE001 # CancelledError, too: whoever cancelled it had no say here
            target.set_exception(error)
        else:
            target.set_result(result)

    source.add_done_callback(done)
