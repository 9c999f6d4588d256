"""ReadingHalf: reads of a stream, at once or in turn.

Law of this file: see ``stream_half.py``.  A read that nobody waits before is tried in the calling thread; the others
are served in the order of their calls by the poller thread, 64 KiB a turn, so that a greedy peer starves nobody.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Final

from bbipc.errors import SocketClosedError
from bbipc.events import SocketEvent
from bbipc.sockets.stream import StreamSocket
from pool.afterwards import Afterwards
from pool.futures import GuardedFuture, fail, failed, finished
from pool.polling_loop import PollingLoop
from pool.stream_half import StreamHalf
from pool.stream_reads import ReadQueue, ReadRequest

#: bytes taken from the kernel for one stream before the poller thread turns to the next
TURN: Final = 64 * 1024
#: bytes that a caller may take for himself before he has to stand in line: nobody else comes in meanwhile
AT_ONCE: Final = 1024 * 1024
#: a failed connect is no disconnect, and DATA_AVAILABLE alone never tells of an end
_EVENTS: Final = SocketEvent.DATA_AVAILABLE | SocketEvent.REMOTE_DISCONNECTED | SocketEvent.CONNECTION_FAILED


class ReadingHalf(StreamHalf):
    """The direction towards us."""

    def __init__(self, stream: StreamSocket, loop: PollingLoop) -> None:
        super().__init__(stream, loop, _EVENTS)
        self._queue = ReadQueue()
        self._left = False  # what comes is somebody else's to read, though the stream is not closed yet

    @property
    def waiting(self) -> int:
        """How many reads wait."""
        return len(self._queue)

    def ask(self, request: ReadRequest, timeout: float | None) -> Future[bytes]:
        """The future of *request*."""
        limit = self._limit(timeout)
        return self._try(self._ask_alone, request, limit) or self._ask_by_another(request, limit)

    def end(self, error: Exception) -> None:
        """The stream, or the poller thread, is closed: nobody will be served any more."""

        def step(after: Afterwards) -> None:
            self._monitor, self._armed = None, False
            if isinstance(error, SocketClosedError):
                self._queue.buffer.clear()
            self._queue.fail(error, after)

        self._do(step)

    def leave(self, then: Callable[[], object]) -> None:
        """The stream is about to be closed: no read is served any more.  Behind that *then* is called, on the poller
        thread, or where there is none any more.
        """

        def step(after: Afterwards) -> None:
            self._left = True
            monitor, self._monitor, self._armed = self._monitor, None, False
            if monitor is not None:
                after.add(monitor.cancel)
            self._queue.buffer.clear()
            self._queue.fail(SocketClosedError(self._stream), after)
            after.add(then)

        self._hand_in(step)

    def _ask_alone(self, request: ReadRequest, limit: float | None) -> Future[bytes]:
        if not self._queue:
            try:
                data = self._at_once_alone(request)
            except (OSError, EOFError, ValueError) as error:
                return failed(error)
            if data is not None:
                return finished(data)
        if limit == 0:
            return failed(_late(0))
        future: Future[bytes] = GuardedFuture()
        try:
            self._enqueue_alone(request, future, limit)
        except (OSError, RuntimeError) as error:
            return failed(error)
        return future

    def _at_once_alone(self, request: ReadRequest) -> bytes | None:
        """The answer to *request*, if it is there."""
        buffer = self._queue.buffer
        if self._stream.closed or self._left:
            raise SocketClosedError(self._stream)
        budget = AT_ONCE
        while not request.ready(buffer, False):
            wanted = min(request.lacks(len(buffer)), budget)
            data = self._receive_alone(wanted) if wanted else None
            if data is None:
                return None
            if not data:
                request.ready(buffer, True)
                break
            if not buffer and request.fits(data):
                self._torn = False
                return data
            buffer += data
            self._torn = False
            budget -= len(data)
        self._torn = False
        return request.take(buffer)

    def _receive_alone(self, size: int) -> bytes | None:
        """Read from the kernel.  ``_torn`` is set from here until the caller has put the bytes where they belong."""
        if self._torn:
            raise self._tear()
        try:
            self._torn = True
            data = self._stream.read(size)
        except OSError:
            self._torn = False
            raise
        if data is None:
            self._torn = False
        return data

    def _enqueue_alone(self, request: ReadRequest, future: Future[bytes], limit: float | None) -> None:
        """*request* waits behind the others; if that cannot be, nothing of it is left."""
        if self._left:
            raise SocketClosedError(self._stream)
        request.future = future
        try:
            self._queue.add(request)
            self._arm_alone()
            if limit:
                request.timer = self._loop.start_timer(limit, partial(self._expire, weakref.ref(request), limit))
            future.add_done_callback(partial(self._done, weakref.ref(request)))
        except BaseException:  # Ctrl-C as well: a request that nobody knows of would swallow bytes
            self._queue.drop(request)
            request.future = None
            raise

    def _turn_alone(self, after: Afterwards) -> None:
        self._queue.serve(after)  # those for whom there is enough since somebody before them was cancelled
        if not self._queue:
            self._pause_alone()
            return
        budget = TURN
        try:
            while budget:
                wanted = min(self._queue.lacks(), budget)
                data = self._receive_alone(wanted) if wanted else None
                if data is None:
                    return
                self._queue.feed(data, after)
                self._torn = False
                if len(data) < wanted:  # that was all, or the end
                    return
                budget -= len(data)
        except OSError as error:
            self._queue.fail(error, after)

    def _done(self, reference: weakref.ref[ReadRequest], future: Future[bytes]) -> None:
        """A callback of the future: if it was cancelled, take the request back and let its waiters know."""
        request = reference()
        if request is None or not future.cancelled():
            return

        def step(after: Afterwards) -> None:
            if self._queue.drop(request):
                after.add(future.set_running_or_notify_cancel)
                if request.timer is not None:
                    after.add(request.timer.cancel)
                if self._queue and self._queue.buffer:  # what was too little for this one may do for the next
                    after.add(self._hand_in, self._queue.serve)

        self._do(step)

    def _expire(self, reference: weakref.ref[ReadRequest], limit: float) -> None:
        """Its time is up."""
        request = reference()

        def step(after: Afterwards) -> None:
            if request is not None and self._queue.drop(request):
                assert request.future is not None
                after.add(fail, request.future, _late(limit))
                self._queue.serve(after)

        self._do(step)

    def _ask_by_another(self, request: ReadRequest, limit: float | None) -> Future[bytes]:
        """The same, by whoever is at work."""
        future: Future[bytes] = GuardedFuture()

        def step(after: Afterwards) -> None:
            try:
                self._enqueue_alone(request, future, limit)
            except (OSError, RuntimeError) as error:
                after.add(fail, future, error)
                return
            self._turn_alone(after)
            if limit == 0 and self._queue.drop(request):
                after.add(fail, future, _late(0))

        self._hand_in(step, future)
        return future


def _late(limit: float) -> TimeoutError:
    return TimeoutError(f"what was to be read has not come within {limit:g} s")
