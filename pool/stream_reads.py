"""What is asked of a stream, and what has come of it: the bytes and the order, without any I/O.

Law of this file: no system call, no lock, no thread: one call at a time, which the owner sees to.  Futures
are claimed here, because that and the taking of their bytes must be one; they are settled afterwards.

- Requests are served strictly in the order of their calls, each from the front of the buffer.
- Bytes leave the buffer only for a future that was claimed.  So a read that is cancelled, or has timed out, costs
  nobody a byte: what has come for it goes to the next one.
- The buffer holds what has arrived, never more because more was asked for.

The bytes of a whole answer that come in one piece do not go through the buffer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from concurrent.futures import Future
from operator import index

from typing_extensions import Buffer, override

from bbipc.errors import IncompleteReadError, SeparatorNotFoundError
from bbipc.sockets.buffers import octets
from pool.afterwards import Afterwards
from pool.timers import Timer
from pool.told import again


class ReadRequest(ABC):
    """One read.

    ``future``: made when it has to wait.  ``timer``: what ends it at its time.
    """

    __slots__ = ("future", "timer", "__weakref__")

    def __init__(self) -> None:
        self.future: Future[bytes] | None = None
        self.timer: Timer | None = None

    @abstractmethod
    def lacks(self, have: int) -> int:
        """How many bytes are worth asking for where *have* have come and are not enough; at least 1."""

    @abstractmethod
    def ready(self, buffer: bytearray, ended: bool) -> bool:
        """Whether there is an answer, good or bad; *ended*: nothing more comes behind *buffer*."""

    @abstractmethod
    def take(self, buffer: bytearray) -> bytes:
        """The answer, out of *buffer*, once it is ready.

        :raises IncompleteReadError: the stream ended too early; what there was is in it, and out of the buffer
        :raises SeparatorNotFoundError: the limit came first; the bytes stay
        """

    def fits(self, data: bytes) -> bool:
        """Whether *data*, come behind an empty buffer, is the answer as it stands."""
        return False


class UpTo(ReadRequest):
    """Whatever there is, at most so many bytes."""

    __slots__ = ("_max_bytes",)

    def __init__(self, max_bytes: int) -> None:
        super().__init__()
        self._max_bytes = index(max_bytes)
        if max_bytes < 1:
            raise ValueError(f"max_bytes must be at least 1, not {max_bytes}")

    @override
    def lacks(self, have: int) -> int:
        return self._max_bytes

    @override
    def ready(self, buffer: bytearray, ended: bool) -> bool:
        return bool(buffer) or ended

    @override
    def take(self, buffer: bytearray) -> bytes:
        return _cut(buffer, self._max_bytes)

    @override
    def fits(self, data: bytes) -> bool:
        return True


class Exactly(ReadRequest):
    """So many bytes, no fewer."""

    __slots__ = ("_count",)

    def __init__(self, count: int) -> None:
        super().__init__()
        self._count = index(count)
        if count < 0:
            raise ValueError(f"n must not be negative: {count}")

    @override
    def lacks(self, have: int) -> int:
        return self._count - have

    @override
    def ready(self, buffer: bytearray, ended: bool) -> bool:
        return len(buffer) >= self._count or ended

    @override
    def take(self, buffer: bytearray) -> bytes:
        if len(buffer) < self._count:
            raise IncompleteReadError(_cut(buffer, len(buffer)), self._count)
        return _cut(buffer, self._count)

    @override
    def fits(self, data: bytes) -> bool:
        return len(data) == self._count


class Until(ReadRequest):
    """All up to a separator and with it, at most so many bytes."""

    __slots__ = ("_separator", "_max_bytes", "_searched", "_end")

    def __init__(self, separator: Buffer, max_bytes: int) -> None:
        super().__init__()
        self._separator = octets(separator).tobytes()
        self._max_bytes = index(max_bytes)
        if not self._separator:
            raise ValueError("the separator is empty")
        if max_bytes < len(self._separator):
            raise ValueError(f"max_bytes {max_bytes} has no room for the separator {self._separator!r}")
        self._searched = 0  # bytes of the buffer in which no separator ends; the buffer only grows while it waits
        self._end = -1  # behind the separator

    @override
    def lacks(self, have: int) -> int:
        return self._max_bytes - have

    @override
    def ready(self, buffer: bytearray, ended: bool) -> bool:
        size = len(self._separator)
        found = buffer.find(self._separator, max(self._searched - size + 1, 0), self._max_bytes)
        self._end = found + size if found >= 0 else -1
        self._searched = len(buffer)
        return found >= 0 or len(buffer) >= self._max_bytes or ended

    @override
    def take(self, buffer: bytearray) -> bytes:
        if self._end >= 0:
            return _cut(buffer, self._end)
        if len(buffer) >= self._max_bytes:
            raise SeparatorNotFoundError(self._separator, self._max_bytes)
        raise IncompleteReadError(_cut(buffer, len(buffer)))


class ReadQueue:
    """The requests that wait, in their order, and the bytes that nobody has taken yet."""

    __slots__ = ("buffer", "_requests")

    def __init__(self) -> None:
        self.buffer = bytearray()
        self._requests: OrderedDict[ReadRequest, None] = OrderedDict()

    def __len__(self) -> int:
        """How many wait."""
        return len(self._requests)

    def add(self, request: ReadRequest) -> None:
        """*request*, which has a future, waits behind all others."""
        self._requests[request] = None

    def drop(self, request: ReadRequest) -> bool:
        """Take *request* out; False: somebody else has, and settles it."""
        if request not in self._requests:
            return False
        del self._requests[request]
        return True

    def lacks(self) -> int:
        """How many bytes are worth asking for; 0: nobody waits."""
        return next(iter(self._requests)).lacks(len(self.buffer)) if self._requests else 0

    def feed(self, data: bytes, after: Afterwards) -> None:
        """*data* has come, b"" is the end: serve whom it serves."""
        if data and not self.buffer and self._requests:
            head = next(iter(self._requests))
            if head.fits(data) and self._take_head(head, after):
                assert head.future is not None
                after.add(head.future.set_result, data)
                return
        self.buffer += data
        self.serve(after, ended=not data)

    def serve(self, after: Afterwards, *, ended: bool = False) -> None:
        """Serve those for whom there is enough; *ended*: nothing more comes, so it is enough for all."""
        while self._requests:
            head = next(iter(self._requests))
            if not head.ready(self.buffer, ended):
                return
            if self._take_head(head, after):
                self._answer(head, after)

    def fail(self, error: Exception, after: Afterwards) -> None:
        """Nothing more can be read: all fail for whom there is not enough."""
        while self._requests:
            head = next(iter(self._requests))
            ready = head.ready(self.buffer, False)
            if self._take_head(head, after):
                if ready:
                    self._answer(head, after)
                else:
                    assert head.future is not None
                    after.add(head.future.set_exception, again(error))

    def _take_head(self, head: ReadRequest, after: Afterwards) -> bool:
        """*head* is out of the queue, and claimed; False: it was cancelled."""
        del self._requests[head]
        if head.timer is not None:
            after.add(head.timer.cancel)
        assert head.future is not None
        return head.future.set_running_or_notify_cancel()

    def _answer(self, head: ReadRequest, after: Afterwards) -> None:
        assert head.future is not None
        try:
            data = head.take(self.buffer)
        except (IncompleteReadError, SeparatorNotFoundError) as error:
            # Without its traceback, which holds this frame, and with it the future: a circle.
            after.add(head.future.set_exception, error.with_traceback(None))
        else:
            after.add(head.future.set_result, data)


def _cut(buffer: bytearray, count: int) -> bytes:
    """The first *count* bytes, out of *buffer*."""
    if count >= len(buffer):
        data = bytes(buffer)
        buffer.clear()
        return data
    with memoryview(buffer) as view:  # a slice of the bytearray itself would be copied twice
        data = bytes(view[:count])
    del buffer[:count]
    return data
