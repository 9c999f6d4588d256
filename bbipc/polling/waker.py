"""Waker: a descriptor that any thread can make readable.

Law of this file: ``wake`` never blocks, never fails and is never lost: a wake before, during or after a wait ends that
wait or the next one.  Many wakes before one ``drain`` count as one.  The numbers are freed when the last user lets
go, never by hand: a ``wake`` in flight must not write into a stranger's file.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Final

#: what eventfd() is called with
_NEW: Final = ((0,), (getattr(os, "EFD_NONBLOCK", 0) | getattr(os, "EFD_CLOEXEC", 0),))


class Waker:
    """An eventfd on Linux (a write never finds it full: 2**64 - 2 wakes fit), a socket pair elsewhere."""

    __slots__ = ("number", "_pair", "_owned")

    def __init__(self, *, retired: bool = False) -> None:
        """*retired*: one without a descriptor, for the place of one that is given up; nobody waits for it.

        :raises OSError: there are no descriptors left
        """
        self._pair: tuple[socket.socket, socket.socket] | None = None
        self.number = -1
        if retired:
            return
        if hasattr(os, "eventfd"):
            # Made and kept in one call, which lets go of the GIL: a Ctrl-C behind it would lose the number for good.
            self._owned: list[int] = []
            self._owned.extend(map(os.eventfd, *_NEW))
            self.number = self._owned[0]
        else:
            reader, writer = socket.socketpair()
            reader.setblocking(False)
            writer.setblocking(False)
            self._pair = reader, writer
            self.number = reader.fileno()

    def wake(self) -> None:
        """Make it readable.  Any thread."""
        if self._pair is None:
            if self.number >= 0:
                os.eventfd_write(self.number, 1)
            return
        try:
            self._pair[1].send(b"\0")
        except BlockingIOError:  # full of wakes that nobody has seen yet: one more would tell nothing new
            pass

    def drain(self) -> None:
        """Make it unreadable; the caller looks at everything *after* this, so a wake that comes in between counts."""
        try:
            if self.number < 0:
                return
            if self._pair is None:
                os.eventfd_read(self.number)
            else:
                while len(self._pair[0].recv(4096)) == 4096:
                    pass
        except BlockingIOError:
            pass

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # at exit the module's names are gone
        pair = getattr(self, "_pair", None)  # a Ctrl-C may have come before there was one
        if pair is not None:
            for end in pair:
                end.close()
        else:
            for number in getattr(self, "_owned", ()):
                close(number)


RETIRED: Final = Waker(retired=True)
