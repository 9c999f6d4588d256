"""Settling futures: exactly one outcome, whoever races for it.

Law of this file: it knows ``concurrent.futures.Future`` and nothing of sockets, threads or pollers.  Any thread may
call anything here, with no lock of ours held: a future's callbacks run in the thread that settles it.

A plain Future raises InvalidStateError out of ``set_result`` when somebody has cancelled it meanwhile, and between
``done()`` and ``set_result()`` there is always a meanwhile (6,299 of a million on the free-threaded build).  So whoever
settles *claims* first, with ``set_running_or_notify_cancel``: from there on ``cancel()`` is refused.  That call may be
made once only (a second one on a cancelled future raises), so those who race agree beforehand who makes it: each of
our waits can be taken from its table once, and the taker makes the call.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


def finished(result: T) -> Future[T]:
    """A future that has its result already."""
    future: Future[T] = Future()
    future.set_result(result)
    return future


def failed(error: BaseException) -> Future[Any]:
    """A future that has failed already."""
    future: Future[Any] = Future()
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
