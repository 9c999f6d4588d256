"""Closing: the last steps of a FutureStream's close, when all was sent, or nothing more can be.

Law of this file: each step may be made by any thread, when nobody is at work.  A step that a Ctrl-C has ended in its
middle is made up for by the next one: in the end the stream is closed, or lingers, and the future is done.

    linger   what the peer has sent is unread: from here on ``lingering.py`` reads it, and closes the stream
    shut     otherwise close it now
    tell     … and let the reads know
    settle   the future
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from functools import partial
from typing import Protocol

from bbipc.errors import SocketClosedError
from bbipc.polling.deadline import time_left
from bbipc.sockets.stream import StreamSocket
from pool.afterwards import Afterwards
from pool.lingering import close_now, linger_of
from pool.polling_loop import PollingLoop
from pool.stream_writes import SendWaiter


class Reads(Protocol):
    """The other direction."""

    def end(self, error: Exception) -> None:
        """The stream is closed."""

    def leave(self, then: Callable[[], object]) -> None:
        """The stream is about to be closed, and not to be read any more; *then* is called behind that."""


class Closing:
    """The end of *stream*, whose other direction is *reads*."""

    __slots__ = ("_stream", "_loop", "_reads")

    def __init__(self, stream: StreamSocket, loop: PollingLoop, reads: Reads) -> None:
        self._stream = stream
        self._loop = loop
        self._reads = reads

    def finish(self, waiter: SendWaiter, error: Exception | None, after: Afterwards, *, gently: bool) -> None:
        """Close, *gently*: without a loss for the peer, and tell what came of it."""
        if gently:
            after.add(self._linger, waiter)
        after.add(self._shut, waiter)
        after.add(self._tell, waiter)
        after.add(self._settle, waiter, error)

    def _linger(self, waiter: SendWaiter) -> None:
        left = time_left(waiter.deadline)
        linger = linger_of(self._stream, self._loop) if left else None
        if linger is None:
            return
        if not waiter.leaves:
            linger.then(partial(_settle_once, waiter.future))
        if waiter.deadline is not None:
            linger.limit(left)
        if linger.take():
            self._reads.leave(linger.begin)
        waiter.lingers = True

    def _shut(self, waiter: SendWaiter) -> None:
        if not waiter.lingers:
            close_now(self._stream)

    def _tell(self, waiter: SendWaiter) -> None:
        if not waiter.lingers:
            self._reads.end(SocketClosedError(self._stream))

    def _settle(self, waiter: SendWaiter, error: Exception | None) -> None:
        if error is not None:
            waiter.future.set_exception(error)
        elif waiter.leaves or not waiter.lingers:
            waiter.future.set_result(None)


def _settle_once(future: Future[None]) -> None:
    with contextlib.suppress(InvalidStateError):
        future.set_result(None)
