"""SpareNumber: one descriptor number in reserve, to turn peers away with when there is no other.

Law of this file: it never waits and never raises for a lack of numbers.  One thread uses a spare number; any thread may
close it.  This is the only place where a handle is closed by hand: nobody else has ever had it, so nobody can be in the
middle of a call on it, and the number must be free *now*, whichever thread's garbage the handle is.

A process without free numbers cannot accept, and cannot refuse either: its peers wait for ever, and a level-triggered
poller spins (265,000 failing accepts a second).  So:

1. The spare number is given up.
2. The next accept is given it.  (Another thread may have been faster; then the peer waits for the next try.)
3. The connection ends, and the peer sees that.  The tombstone stands over the number meanwhile, as after every close,
   so the number stays ours: the only gap in which it can be stolen is that between 1 and 2.
4. A tombstone shares its open file with all the others.  Where it is not numbers but files that the system is out of
   (ENFILE) giving it up frees nothing.  So one with a file of its own is put in its place, if there is any.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Final

from bbipc.errors import SocketClosedError
from bbipc.sockets.handle import Handle, make_handle
from bbipc.sockets.locks import make_rlock
from bbipc.sockets.server import StreamServer

#: any family will do: the socket is never used
_FAMILY: Final = socket.AF_INET
#: who takes and gives back numbers all the time leaves gaps of microseconds; a try costs one
_TRIES: Final = 10


class SpareNumber:
    """A descriptor number in reserve.  Made empty: see :meth:`take`."""

    def __init__(self) -> None:
        self._lock = make_rlock()
        self._handle: Handle | None = None  # these three are guarded by the lock
        self._has_file = False
        self._closed = False

    @property
    def held(self) -> bool:
        """Whether there is a number in reserve."""
        return self._handle is not None

    def take(self) -> bool:
        """Put a number in reserve, if there is none yet; False: none is free, or this is closed."""
        if not (self._handle is not None and self._has_file):
            for _ in range(_TRIES):
                try:
                    self._keep(make_handle(_FAMILY), has_file=True)
                except OSError:  # what there is, if only a tombstone, is better than nothing
                    if self._handle is None:
                        continue
                break
        return self.held

    def turn_away(self, server: StreamServer, most: int) -> int:
        """Accept and close up to *most* connections that wait at *server*; how many there were.

        It ends early when nobody waits, or when other threads have taken the number and there is no other: look at
        :attr:`held` and come back.
        """
        count = 0
        with contextlib.suppress(SocketClosedError):
            for _ in range(most):
                if not (self.take() and server.connection_available()):  # for nobody it is not given up
                    break
                count += self._turn_one_away(server)
        return count

    def _turn_one_away(self, server: StreamServer) -> bool:
        self._let_go()
        try:
            stream = server.accept_connection()
        except OSError:  # stolen; or the peer has gone, or the server
            self.take()
            return False
        handle = stream._handle
        stream.close()
        self._keep(handle, has_file=False)
        return True

    def close(self) -> None:
        """Give the number up for good.  Idempotent; any thread."""
        with self._lock:
            self._closed = True
            self._let_go()

    def _keep(self, handle: Handle, *, has_file: bool) -> None:
        with self._lock:
            self._let_go()
            if self._closed:
                handle.close()
            else:
                self._handle, self._has_file = handle, has_file

    def _let_go(self) -> None:
        with self._lock:
            handle, self._handle = self._handle, None
            if handle is not None:
                handle.close()
