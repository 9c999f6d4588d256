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


class Waker:
    """An eventfd on Linux (a write never finds it full: 2**64 - 2 wakes fit), a socket pair elsewhere."""

    __slots__ = ("number", "_pair")

    def __init__(self, *, retired: bool = False) -> None:
        """*retired*: one without a descriptor, for the place of one that is given up; nobody waits for it.

        :raises OSError: there are no descriptors left
        """
        self._pair: tuple[socket.socket, socket.socket] | None = None
        self.number = -1
        if retired:
            return
        if hasattr(os, "eventfd"):
            self.number = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
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
        elif getattr(self, "number", -1) >= 0:
            close(self.number)


RETIRED: Final = Waker(retired=True)
