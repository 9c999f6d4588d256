"""WritingHalf: writes of a stream, at once or in turn, and what waits for them: flush, shutdown_write, close.

Law of this file: see ``stream_half.py``.  A write that nobody waits before is tried in the calling thread; the rest of
it, and the writes behind it, are sent by the poller thread, one system call a turn.  It waits for ROOM_TO_WRITE, never
for READY_TO_WRITE: a peer that has shut its sending side still reads.

An error that comes when the write's own future was done already is kept, and told by all that follows.
"""

from __future__ import annotations

import contextlib
import errno
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial

from typing_extensions import Buffer

from bbipc.errors import (
    ConnectionFailedError,
    PollerClosedError,
    RemoteDisconnectedError,
    SocketClosedError,
    SocketError,
    WriteTimeoutError,
)
from bbipc.events import SocketEvent
from bbipc.sockets.buffers import octets
from bbipc.sockets.stream import StreamSocket
from pool.afterwards import Afterwards
from pool.futures import fail, failed, finished, settle
from pool.polling_loop import PollingLoop
from pool.stream_half import StreamHalf
from pool.stream_writes import Held, Kind, Waiter, WriteQueue
from pool.told import again, with_facts


class WritingHalf(StreamHalf):
    """The direction towards the peer.  *on_close*: told when the stream was closed here."""

    def __init__(
        self, stream: StreamSocket, loop: PollingLoop, write_limit: int, on_close: Callable[[Exception], object]
    ) -> None:
        super().__init__(stream, loop, SocketEvent.ROOM_TO_WRITE)
        self._queue = WriteQueue(write_limit)
        self._on_close = on_close
        self._shut = False  # our sending is shut down, or is just about to be
        self._closing = False
        self._broken: Exception | None = None
        self._begun = 0  # how many bytes of the write at hand were sent at once
        self._lost = 0  # promised bytes that were never sent, and of which no close has told yet

    @property
    def pending(self) -> int:
        """How many bytes are to be sent."""
        return self._queue.pending

    def write(self, buffer: Buffer, timeout: float | None) -> Future[int]:
        """The future of a write of all of *buffer*."""
        limit = self._limit(timeout)
        size = len(buffer) if type(buffer) is bytes else octets(buffer).nbytes
        after: Afterwards | None = None
        try:
            with self._lock:
                if self._busy:
                    return self._write_soon(buffer, size, limit)
                try:
                    self._busy = True
                    future = self._at_once_locked(buffer, size)
                    if future is not None:
                        return future
                    after = Afterwards()
                    return self._enqueue_locked(buffer, size, limit, after)
                finally:
                    self._busy = False
        finally:
            if after is not None:
                after.do()

    def flush(self, timeout: float | None) -> Future[None]:
        """The future of all that is pending now."""
        limit = self._limit(timeout)
        return self._wait(Kind.FLUSH, limit)

    def shutdown(self, timeout: float | None) -> Future[None]:
        """The future of the end of our sending."""
        limit = self._limit(timeout)
        return self._wait(Kind.SHUTDOWN, limit)

    def close(self, flush: bool, timeout: float | None) -> Future[None]:
        """The future of the close."""
        limit = self._limit(timeout)
        waiter = Waiter(Kind.CLOSE)
        waiter.future.set_running_or_notify_cancel()  # a close cannot be taken back
        try:
            if flush:
                self._exclusively(lambda after: self._close_locked(waiter, limit, after))
            else:
                self._exclusively(lambda after: self._abandon_locked(waiter, after))
        except PollerClosedError:  # a finalizer, in the middle of a call on the same stream
            self._stream.close()
            waiter.future.set_result(None)
        return waiter.future

    def end(self, error: Exception) -> None:
        """The stream, or the poller thread, is closed: what is pending will never be sent."""

        def step(after: Afterwards) -> None:
            self._monitor, self._armed = None, False
            if self._queue.pending or isinstance(error, SocketClosedError):
                self._break_locked(error, after)

        self._exclusively(step)

    # Writing.

    def _at_once_locked(self, buffer: Buffer, size: int) -> Future[int] | None:
        """The outcome of a write, if it is there; otherwise ``_begun`` bytes of it are sent, the rest is to wait."""
        self._begun = 0
        refusal = self._refusal_locked()
        if refusal is not None:
            return failed(with_facts(refusal, sent=0, unsent=size))
        if self._queue.pending:
            return None
        try:
            sent = self._send_locked(buffer)
        except OSError as error:
            if isinstance(error, RemoteDisconnectedError | ConnectionFailedError):
                self._broken = again(error)
            return failed(with_facts(error, sent=0, unsent=size))
        if sent < size:
            self._begun = sent  # and torn it stays until the rest is in the queue
            return None
        self._torn = False
        return finished(size)

    def _send_locked(self, buffer: Buffer) -> int:
        """Hand bytes to the kernel.  ``_torn`` is set from here until the caller has counted them."""
        if self._torn:
            raise self._tear()
        try:
            self._torn = True
            return self._stream.write(buffer)
        except OSError:
            self._torn = False
            raise

    def _enqueue_locked(self, buffer: Buffer, size: int, limit: float | None, after: Afterwards) -> Future[int]:
        """What the kernel has not taken of a write: promise it, or let it wait."""
        rest, held = octets(buffer)[self._begun :], None
        try:
            self._arm_locked()
            if self._queue.promise(rest):
                self._torn = False
                return finished(size)
            held = Held(rest, size)
            if limit == 0:
                raise _late(0, held)
            self._queue.hold(held)
            self._torn = False
            if limit is not None:
                held.timer = self._loop.call_later(limit, self._expire, weakref.ref(held), limit)
            held.future.add_done_callback(partial(self._done, weakref.ref(held)))
        except (OSError, RuntimeError) as error:
            self._torn = False
            held = held or Held(rest, size)
            told = with_facts(error, sent=held.sent, unsent=len(held.view))
            self._give_up_locked(held, error, after)
            return failed(told)
        return held.future

    def _give_up_locked(self, held: Held, error: Exception, after: Afterwards) -> None:
        """*held* will not be sent any further; if a part of it was, nothing else can be."""
        sent = held.sent
        if not self._queue.withdraw(held, after):
            held.let_go(after)
        if sent:
            if isinstance(error, WriteTimeoutError):
                error = WriteTimeoutError(f"an earlier write was given up after {sent} bytes of it were sent")
            self._break_locked(error, after)

    def _obstacle_locked(self) -> Exception | None:
        """Why what is pending cannot be sent."""
        if self._stream.closed:
            return SocketClosedError(self._stream)
        return self._tear() if self._torn else self._broken

    def _refusal_locked(self) -> Exception | None:
        """Why nothing can be written any more."""
        error = self._obstacle_locked()
        if error is None and self._closing:
            error = SocketClosedError(self._stream)
        if error is None and (self._shut or self._queue.ending):
            error = SocketError(errno.EPIPE, "this side's sending was shut down", socket=self._stream)
        return error

    def _turn_locked(self, after: Afterwards) -> None:
        chunk = self._queue.next_bytes(after)
        if chunk is not None:
            try:
                count = self._send_locked(chunk)
            except OSError as error:
                self._break_locked(error, after)
            else:
                self._queue.taken(count, after)
                self._torn = False
            if isinstance(chunk, memoryview):
                chunk.release()
        self._go_on_locked(after)

    def _go_on_locked(self, after: Afterwards) -> None:
        """The queue has become shorter: promise what fits now, serve who has waited for that."""
        self._queue.promise_more(after)
        for waiter in self._queue.reached(after):
            if waiter.kind is Kind.FLUSH:
                after.add(settle, waiter.future, None)
            elif waiter.kind is Kind.SHUTDOWN:
                self._shut = True
                after.add(self._shut_down, waiter.future)
            else:
                self._finish_locked(waiter, None, after)
        if not self._queue.pending:
            self._pause_locked()

    def _break_locked(self, error: Exception, after: Afterwards) -> None:
        """Nothing can be sent any more."""
        pending, self._lost = self._queue.pending, self._lost + self._queue.promised
        if self._broken is None:
            self._broken = again(error)
        for waiter in self._queue.fail(error, after):
            told = with_facts(error, sent=0, unsent=pending)
            if waiter.kind is Kind.CLOSE:
                self._finish_locked(waiter, told, after)
            else:
                after.add(fail, waiter.future, told)

    def _done(self, reference: weakref.ref[Held], future: Future[int]) -> None:
        """A callback of the future: if it was cancelled, take the write back and let its waiters know."""
        held = reference()
        if held is None or not future.cancelled():
            return

        def step(after: Afterwards) -> None:
            if self._queue.withdraw(held, after):
                after.add(future.set_running_or_notify_cancel)
                after.add(self._soon, self._go_on_locked)

        with contextlib.suppress(PollerClosedError):
            self._exclusively(step)

    def _expire(self, reference: weakref.ref[Held], limit: float) -> None:
        """The time of a write is up."""
        held = reference()

        def step(after: Afterwards) -> None:
            if held is None or held not in self._queue:
                return
            error = _late(limit, held)
            if held.claim():
                after.add(held.future.set_exception, error)
            self._give_up_locked(held, error, after)
            self._go_on_locked(after)

        self._exclusively(step)

    # Waiting for what was written.

    def _wait(self, kind: Kind, limit: float | None) -> Future[None]:
        waiter = Waiter(kind)

        def step(after: Afterwards) -> None:
            error = self._obstacle_locked()
            if error is not None:
                after.add(fail, waiter.future, with_facts(error, sent=0, unsent=self._queue.pending + self._lost))
                return
            self._queue.wait(waiter)
            self._go_on_locked(after)
            self._limit_locked(waiter, limit, after)

        try:
            self._exclusively(step)
        except PollerClosedError as error:
            return failed(error)
        waiter.future.add_done_callback(partial(self._waiter_done, weakref.ref(waiter)))
        return waiter.future

    def _limit_locked(self, waiter: Waiter, limit: float | None, after: Afterwards) -> None:
        """*waiter* waits for *limit* seconds at most."""
        if limit is None or waiter not in self._queue:
            return
        if limit == 0:
            self._expire_waiter_locked(waiter, limit, after)
            return
        with contextlib.suppress(PollerClosedError):  # then all that waits is just being told
            waiter.timer = self._loop.call_later(limit, self._expire_waiter, weakref.ref(waiter), limit)

    def _expire_waiter(self, reference: weakref.ref[Waiter], limit: float) -> None:
        waiter = reference()
        if waiter is not None:
            self._exclusively(partial(self._expire_waiter_locked, waiter, limit))

    def _expire_waiter_locked(self, waiter: Waiter, limit: float, after: Afterwards) -> None:
        """Its time is up."""
        if not self._queue.drop(waiter, after):
            return
        unsent = self._queue.pending
        error = WriteTimeoutError(f"{unsent} bytes could not be sent within {limit:g} s", unsent=unsent)
        if waiter.kind is Kind.CLOSE:
            self._break_locked(SocketClosedError(self._stream), after)
            self._finish_locked(waiter, error, after)
        else:
            after.add(fail, waiter.future, error)

    def _waiter_done(self, reference: weakref.ref[Waiter], future: Future[None]) -> None:
        waiter = reference()
        if waiter is None or not future.cancelled():
            return

        def step(after: Afterwards) -> None:
            if self._queue.drop(waiter, after):
                after.add(future.set_running_or_notify_cancel)

        with contextlib.suppress(PollerClosedError):
            self._exclusively(step)

    def _shut_down(self, future: Future[None]) -> None:
        try:
            self._stream.shutdown_write()
        except OSError as error:
            self._shut = False
            fail(future, error)
        else:
            settle(future, None)

    # Closing.

    def _close_locked(self, waiter: Waiter, limit: float | None, after: Afterwards) -> None:
        self._closing = True
        if self._stream.closed and self._queue.pending:  # somebody else has closed it, and we are not told yet
            self._break_locked(SocketClosedError(self._stream), after)
        if self._queue.pending and not self._torn:
            self._queue.wait(waiter)
            self._limit_locked(waiter, limit, after)
            return
        error: Exception | None = self._tear() if self._torn else None
        if self._lost:
            error = self._broken
        self._finish_locked(waiter, error and with_facts(error, sent=0, unsent=self._lost), after)

    def _abandon_locked(self, waiter: Waiter, after: Afterwards) -> None:
        self._closing = True
        self._break_locked(SocketClosedError(self._stream), after)
        self._finish_locked(waiter, None, after)

    def _finish_locked(self, waiter: Waiter, error: Exception | None, after: Afterwards) -> None:
        """Close now, and tell what came of it."""
        self._closing, self._lost = True, 0
        after.add(self._stream.close)
        after.add(self._on_close, SocketClosedError(self._stream))
        if error is None:
            after.add(waiter.future.set_result, None)
        else:
            after.add(waiter.future.set_exception, error)

    def _write_soon(self, buffer: Buffer, size: int, limit: float | None) -> Future[int]:
        """On re-entry: what ``write`` does, on the poller thread."""
        future: Future[int] = Future()

        def pass_on(inner: Future[int]) -> None:
            error = inner.exception()
            if error is not None:
                fail(future, error)
            else:
                settle(future, inner.result())

        def step(after: Afterwards) -> None:
            inner = self._at_once_locked(buffer, size) or self._enqueue_locked(buffer, size, limit, after)
            after.add(inner.add_done_callback, pass_on)

        try:
            self._loop.call_later(0, self._exclusively, step)
        except PollerClosedError as error:
            return failed(error)
        return future


def _late(limit: float, held: Held) -> WriteTimeoutError:
    sent, unsent = held.sent, len(held.view)
    text = f"{sent} of {held.size} bytes were sent within {limit:g} s"
    return WriteTimeoutError(text, sent=sent, unsent=unsent)
