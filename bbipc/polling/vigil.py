"""Vigil: one stream waited for again and again, by one thread at a time.

Law of this file: the waits of one Vigil follow one another, and who waits next is agreed by its owner; ``wake`` may be
called by any thread.  The stream is connected.  A wait costs one system call and no object of its own: the poll
objects are made once.  (``poll_socket`` makes a waker a wait, 3 us, and may be used by any number of threads.)

It keeps the stream's handle, so that the number cannot become another file's under a wait.  A close ends the wait all
the same: it shuts the connection down first, and a wait that begins later meets the tombstone.  So its owner drops it
when the stream is closed, and makes one only for a stream of this process's own that was not passed on.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Final

from bbipc.polling.deadline import LONGEST_WAIT, milliseconds
from bbipc.polling.waker import Waker
from bbipc.readiness import READABLE, WRITABLE
from bbipc.sockets.stream import StreamSocket

_HAS_POLL: Final = hasattr(select, "poll")


class Vigil:
    """Waits for what comes of *stream*, which is connected.

    :raises SocketClosedError: it was closed
    :raises OSError: there are no descriptors left
    """

    __slots__ = ("_handle", "_number", "_waker", "_poll", "_poll_room")

    def __init__(self, stream: StreamSocket) -> None:
        self._handle = stream._open_handle()
        self._number = self._handle.fileno()
        self._waker = Waker()
        if _HAS_POLL:
            self._poll = self._poll_for(READABLE)
            self._poll_room = self._poll_for(READABLE | WRITABLE)

    def wait(self, seconds: float | None, room: bool = False) -> bool:
        """Sleep until there is something to read, the end, a wake, or with *room* room to write.

        False: the time is up.  *seconds*, ``None``: no limit.
        """
        limit = None if seconds is None else milliseconds(min(seconds, LONGEST_WAIT))
        if not _HAS_POLL:
            return self._select(limit, room)
        told = self._poll_room(limit) if room else self._poll(limit)
        if len(told) == 1 and told[0][0] == self._number:
            return True
        if told:
            self._waker.drain()
        return bool(told)

    def wake(self) -> None:
        """End the wait, or the next one."""
        self._waker.wake()

    def _poll_for(self, mask: int) -> Callable[[int | None], list[tuple[int, int]]]:
        poll = select.poll()
        poll.register(self._number, mask)
        poll.register(self._waker.number, READABLE)
        return poll.poll

    def _select(self, limit: int | None, room: bool) -> bool:
        """Windows."""
        watched = [self._number, self._waker.number]
        pause = None if limit is None else limit / 1000
        readable, writable, failed = select.select(watched, watched[:1] if room else [], watched[:1], pause)
        if self._waker.number in readable:
            self._waker.drain()
        return bool(readable or writable or failed)
