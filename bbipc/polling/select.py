"""The select backend: everywhere, and on Windows the only one; on Unix for numbers below 1,024 only.

Some facts about select, and what they mean here:

- It knows "readable" and "writable" and no hang-up.  What it reports is looked at once more, with poll(0) where there
  is one, so that the flags are the same as everywhere.
- A number under the tombstone counts as readable; the look tells INVALID, and the socket knows that it is closed.
- A wait for the peer's end alone is woken by data, too: such a stream is ticked while its data lie unread.
- "Writable" is no hang-up here: where a local peer has shut both its sides with our bytes unread, so that a write would
  raise at once, a wait for ROOM_TO_WRITE alone ends when that peer reads or closes.
- It copies its sets: a change made during a wait is seen by the next, which ``Poller`` brings about by a nudge.
"""

from __future__ import annotations

import errno
import select
import sys
from typing import Final

from bbipc.errors import SocketError
from bbipc.polling.poller import Poller
from bbipc.readiness import EVERYTHING, READABLE, WRITABLE
from bbipc.sockets.handle import look

#: FD_SETSIZE: a limit of the numbers on Unix; on Windows one of their count, which select itself checks
_NUMBERS: Final = 1024


class SelectPoller(Poller):
    """A Poller on select(2)."""

    backend = "select"
    _end_has_edge = False

    def __init__(self) -> None:
        super().__init__()
        if self._waker.number >= _NUMBERS and sys.platform != "win32":
            self._closed = True
            raise SocketError(errno.EMFILE, f"select cannot watch its own descriptor {self._waker.number}")
        self._masks: dict[int, int] = {self._waker.number: READABLE}  # guarded by the lock

    def _tell_kernel(self, number: int, old: int, new: int) -> None:
        if number >= _NUMBERS and sys.platform != "win32":
            raise SocketError(errno.EMFILE, f"select cannot watch descriptor {number}: its limit is {_NUMBERS - 1}")
        if new:
            self._masks[number] = new
        else:
            self._masks.pop(number, None)

    def _kernel_wait(self, seconds: float | None) -> list[tuple[int, int]]:
        with self._lock:
            masks = list(self._masks.items())
        readers = [number for number, mask in masks if mask & READABLE]
        writers = [number for number, mask in masks if mask & WRITABLE]
        # The third set tells of a failed connect on Windows, and elsewhere of urgent data, which nobody asked for.
        failed = [number for number, _ in masks] if sys.platform == "win32" else []
        try:
            ready = select.select(readers, writers, failed, seconds)
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            return []  # a socket was closed since the sets were copied: they are copied anew
        return [(number, self._flags_of(number)) for number in dict.fromkeys(ready[0] + ready[1] + ready[2])]

    def _flags_of(self, number: int) -> int:
        watch = self._watches.get(number)
        return look(watch.handle, EVERYTHING) if watch is not None else READABLE

    def _release_kernel(self) -> None:
        self._masks.clear()
