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
from bbipc.polling.deadline import deadline_after
from bbipc.sockets.buffers import octets
from bbipc.sockets.stream import StreamSocket
from pool.afterwards import Afterwards
from pool.closing import Closing
from pool.futures import fail, failed, finished, settle
from pool.polling_loop import PollingLoop
from pool.stream_half import StreamHalf
from pool.stream_writes import Held, Kind, SendWaiter, WriteQueue
from pool.told import again, with_facts


class WritingHalf(StreamHalf):
    """The direction towards the peer.  *closing*: how the stream is closed, when there is nothing more to send."""

    def __init__(self, stream: StreamSocket, loop: PollingLoop, write_limit: int, closing: Closing) -> None:
        super().__init__(stream, loop, SocketEvent.ROOM_TO_WRITE)
        self._queue = WriteQueue(write_limit)
        self._end = closing
        self._shut = False  # our sending is shut down, or is just about to be
        self._closing = False
        self._broken: Exception | None = None
        self._lost = 0  # promised bytes that were never sent, and of which no close has told yet

    @property
    def pending(self) -> int:
        """How many bytes are to be sent."""
        return self._queue.pending

    def write(self, buffer: Buffer, timeout: float | None) -> Future[int]:
        """The future of a write of all of *buffer*."""
        limit = self._limit(timeout)
        size = len(buffer) if type(buffer) is bytes else octets(buffer).nbytes
        return self._try(self._write_alone, buffer, size, limit) or self._write_by_another(buffer, size, limit)

    def flush(self, timeout: float | None) -> Future[None]:
        """The future of all that is pending now."""
        limit = self._limit(timeout)
        return self._wait(Kind.FLUSH, limit)

    def shutdown(self, timeout: float | None) -> Future[None]:
        """The future of the end of our sending."""
        limit = self._limit(timeout)
        return self._wait(Kind.SHUTDOWN, limit)

    def close(self, flush: bool, timeout: float | None, *, leaves: bool = False) -> Future[None]:
        """The future of the close.  *leaves*: it is done when all was sent, and the stream lingers."""
        limit = self._limit(timeout)
        waiter = SendWaiter(Kind.CLOSE)
        waiter.deadline, waiter.leaves = deadline_after(limit), leaves
        waiter.future.set_running_or_notify_cancel()  # a close cannot be taken back
        if flush:
            self._do(lambda after: self._close_alone(waiter, limit, after), waiter.future)
        else:
            self._do(lambda after: self._abandon_alone(waiter, after), waiter.future)
        return waiter.future

    def end(self, error: Exception) -> None:
        """The stream, or the poller thread, is closed: what is pending will never be sent."""

        def step(after: Afterwards) -> None:
            self._monitor, self._armed = None, False
            if self._queue.pending or isinstance(error, SocketClosedError):
                self._break_alone(error, after)

        self._do(step)

    # Writing.

    def _write_alone(self, buffer: Buffer, size: int, limit: float | None) -> Future[int]:
        refusal = self._refusal_alone()
        if refusal is not None:
            return failed(with_facts(refusal, sent=0, unsent=size))
        sent = 0
        if not self._queue.pending:
            try:
                sent = self._send_alone(buffer)
            except OSError as error:
                if isinstance(error, RemoteDisconnectedError | ConnectionFailedError):
                    self._broken = again(error)
                return failed(with_facts(error, sent=0, unsent=size))
            if sent == size:
                self._torn = False
                return finished(size)
            self._torn = sent > 0  # until the rest is in the queue
        return self._enqueue_alone(octets(buffer)[sent:], size, limit)

    def _send_alone(self, buffer: Buffer) -> int:
        """Hand bytes to the kernel.  ``_torn`` is set from here until the caller has counted them."""
        if self._torn:
            raise self._tear()
        try:
            self._torn = True
            return self._stream.write(buffer)
        except OSError:
            self._torn = False
            raise

    def _enqueue_alone(self, rest: memoryview, size: int, limit: float | None) -> Future[int]:
        """What the kernel has not taken of a write: promise it, or let it wait."""
        held = None
        try:
            self._arm_alone()
            if self._queue.promise(rest):
                self._torn = False
                return finished(size)
            held = Held(rest, size, self._done)
            if limit == 0:
                raise _late(0, held)
            self._hold_alone(held, limit)
        except (OSError, RuntimeError) as error:
            self._torn = False
            held = held or Held(rest, size, self._done)
            self._inbox.append((partial(self._give_up_alone, held, error), None))  # before anybody else comes in
            return failed(with_facts(error, sent=held.sent, unsent=held.unsent))
        return held.future

    def _hold_alone(self, held: Held, limit: float | None) -> None:
        self._queue.hold(held)
        self._torn = False
        if limit:
            held.timer = self._loop.start_timer(limit, partial(self._expire, weakref.ref(held), limit))

    def _write_by_another(self, buffer: Buffer, size: int, limit: float | None) -> Future[int]:
        """The same, by the poller thread."""
        held = Held(octets(buffer), size, self._done)

        def step(after: Afterwards) -> None:
            error = self._refusal_alone()
            try:
                if error is None:
                    self._arm_alone()
                    self._hold_alone(held, limit)
                    self._turn_alone(after)
                    if limit == 0 and held in self._queue:
                        error = _late(0, held)
            except (OSError, RuntimeError) as reason:
                error = reason
            if error is not None:
                self._fail_alone(held, error, after)

        self._hand_in(step, held.future)
        return held.future

    def _fail_alone(self, held: Held, error: Exception, after: Afterwards) -> None:
        """*held*, whose future its owner has, is not sent any further."""
        told = with_facts(error, sent=held.sent, unsent=held.unsent)
        if held.claim():
            after.add(held.future.set_exception, told)
        self._give_up_alone(held, error, after)

    def _give_up_alone(self, held: Held, error: Exception, after: Afterwards) -> None:
        """*held* will not be sent any further; if a part of it was, nothing else can be."""
        sent = held.sent
        if not self._queue.withdraw(held, after):
            held.let_go(after)
        if sent:
            if isinstance(error, WriteTimeoutError):
                error = WriteTimeoutError(f"an earlier write was given up after {sent} bytes of it were sent")
            self._break_alone(error, after)

    def _obstacle_alone(self) -> Exception | None:
        """Why what is pending cannot be sent."""
        if self._stream.closed:
            return SocketClosedError(self._stream)
        return self._tear() if self._torn else self._broken

    def _refusal_alone(self) -> Exception | None:
        """Why nothing can be written any more."""
        error = self._obstacle_alone()
        if error is None and self._closing:
            error = SocketClosedError(self._stream)
        if error is None and (self._shut or self._queue.ending):
            error = SocketError(errno.EPIPE, "this side's sending was shut down", socket=self._stream)
        return error

    def _turn_alone(self, after: Afterwards) -> None:
        chunk = self._queue.next_bytes(after)
        if chunk is not None:
            try:
                count = self._send_alone(chunk)
            except OSError as error:
                self._break_alone(error, after)
            else:
                self._queue.taken(count, after)
                self._torn = False
            if isinstance(chunk, memoryview):
                chunk.release()
        self._go_on_alone(after)

    def _go_on_alone(self, after: Afterwards) -> None:
        """The queue has become shorter: promise what fits now, serve who has waited for that."""
        self._queue.promise_more(after)
        for waiter in self._queue.reached(after):
            if waiter.kind is Kind.FLUSH:
                after.add(settle, waiter.future, None)
            elif waiter.kind is Kind.SHUTDOWN:
                self._shut = True
                after.add(self._shut_down, waiter.future)
            else:
                self._finish_alone(waiter, None, after, gently=True)
        if not self._queue.pending:
            self._pause_alone()

    def _break_alone(self, error: Exception, after: Afterwards) -> None:
        """Nothing can be sent any more."""
        pending, self._lost = self._queue.pending, self._lost + self._queue.promised
        if self._broken is None:
            self._broken = again(error)
        for waiter in self._queue.fail(error, after):
            told = with_facts(error, sent=0, unsent=pending)
            if waiter.kind is Kind.CLOSE:
                self._finish_alone(waiter, told, after)
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
                after.add(self._hand_in, self._go_on_alone)

        self._do(step)

    def _expire(self, reference: weakref.ref[Held], limit: float) -> None:
        """The time of a write is up."""
        held = reference()

        def step(after: Afterwards) -> None:
            if held is None or held not in self._queue:
                return
            self._fail_alone(held, _late(limit, held), after)
            self._go_on_alone(after)

        self._do(step)

    # Waiting for what was written.

    def _wait(self, kind: Kind, limit: float | None) -> Future[None]:
        waiter = SendWaiter(kind, self._waiter_done)

        def step(after: Afterwards) -> None:
            error = self._obstacle_alone()
            if error is not None:
                after.add(fail, waiter.future, with_facts(error, sent=0, unsent=self._queue.pending + self._lost))
                return
            self._queue.wait(waiter)
            self._go_on_alone(after)
            self._limit_alone(waiter, limit, after)

        self._do(step, waiter.future)
        return waiter.future

    def _limit_alone(self, waiter: SendWaiter, limit: float | None, after: Afterwards) -> None:
        """*waiter* waits for *limit* seconds at most."""
        if limit is None or waiter not in self._queue:
            return
        if limit == 0:
            self._expire_waiter_alone(waiter, limit, after)
            return
        with contextlib.suppress(PollerClosedError):  # then all that waits is just being told
            waiter.timer = self._loop.start_timer(limit, partial(self._expire_waiter, weakref.ref(waiter), limit))

    def _expire_waiter(self, reference: weakref.ref[SendWaiter], limit: float) -> None:
        waiter = reference()
        if waiter is not None:
            self._do(partial(self._expire_waiter_alone, waiter, limit))

    def _expire_waiter_alone(self, waiter: SendWaiter, limit: float, after: Afterwards) -> None:
        """Its time is up."""
        if not self._queue.drop(waiter, after):
            return
        unsent = self._queue.pending
        error = WriteTimeoutError(f"{unsent} bytes could not be sent within {limit:g} s", unsent=unsent)
        if waiter.kind is Kind.CLOSE:
            self._break_alone(SocketClosedError(self._stream), after)
            self._finish_alone(waiter, error, after)
        else:
            after.add(fail, waiter.future, error)

    def _waiter_done(self, reference: weakref.ref[SendWaiter], future: Future[None]) -> None:
        waiter = reference()
        if waiter is None or not future.cancelled():
            return

        def step(after: Afterwards) -> None:
            if self._queue.drop(waiter, after):
                after.add(future.set_running_or_notify_cancel)

        self._do(step)

    def _shut_down(self, future: Future[None]) -> None:
        try:
            self._stream.shutdown_write()
        except OSError as error:
            self._shut = False
            fail(future, error)
        else:
            settle(future, None)

    # Closing.

    def _close_alone(self, waiter: SendWaiter, limit: float | None, after: Afterwards) -> None:
        self._closing = True
        if self._stream.closed and self._queue.pending:  # somebody else has closed it, and we are not told yet
            self._break_alone(SocketClosedError(self._stream), after)
        if self._queue.pending and not self._torn:
            self._queue.wait(waiter)
            self._limit_alone(waiter, limit, after)
            return
        error: Exception | None = self._tear() if self._torn else None
        if self._lost:
            error = self._broken
        told = error and with_facts(error, sent=0, unsent=self._lost)
        self._finish_alone(waiter, told, after, gently=error is None)

    def _abandon_alone(self, waiter: SendWaiter, after: Afterwards) -> None:
        self._closing = True
        self._break_alone(SocketClosedError(self._stream), after)
        self._finish_alone(waiter, None, after)

    def _finish_alone(
        self, waiter: SendWaiter, error: Exception | None, after: Afterwards, *, gently: bool = False
    ) -> None:
        """Close now, and tell what came of it."""
        self._closing, self._lost = True, 0
        self._end.finish(waiter, error, after, gently=gently)


def _late(limit: float, held: Held) -> WriteTimeoutError:
    sent, unsent = held.sent, held.unsent
    text = f"{sent} of {held.size} bytes were sent within {limit:g} s"
    return WriteTimeoutError(text, sent=sent, unsent=unsent)
