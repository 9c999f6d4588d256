"""Accepting: the doors of a server, and when they stay shut.

Law of this file: connections are accepted on the poller thread, ``TURN`` at most, for ``TURN_TIME`` at most, before it
looks at its other sockets, and handed on at once.  Any thread may tell that a connection has left, and close the
doors.  Nothing here waits.

The doors are shut, that is the monitors paused and the peers left in the kernel's backlog, for three reasons:

- *full*: there are as many connections as there may be.  Until one leaves.
- *short*: the system is out of something.  For ``PAUSE`` seconds; then it is tried again.
- *behind*, which counts as short: ``TURN`` sockets and more are ready, and wait for the workers.  Then ``FEW`` are let
  in, every ``SOON``: those that are inside come first, and nobody is left outside for good.

Out of descriptors (EMFILE, ENFILE) the peers that wait are turned away first, with the spare number
(``bbipc/sockets/spare.py``): they see an end at once, and may go elsewhere.  Has somebody stolen that number, nobody
is let in before there is one again, which is looked for ``SOON``.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from bbipc.errors import NoConnectionAvailableError, PollerClosedError, SocketClosedError
from bbipc.events import SocketEvent
from bbipc.sockets.base import Socket
from bbipc.sockets.locks import make_rlock
from bbipc.sockets.server import StreamServer
from bbipc.sockets.spare import SpareNumber
from bbipc.sockets.stream import StreamSocket
from pool.parties import Monitor
from pool.polling_loop import PollingLoop
from pool.seldom import Seldom

#: connections accepted, or turned away, of one listening socket before the others have their turn
TURN: Final = 64
#: the same where the workers are behind: 2,000 a second
FEW: Final = 4
#: seconds that a turn takes at most, and one accept: beside busy workers each waits for the interpreter's lock
TURN_TIME: Final = 0.01
#: seconds that the doors stay shut when the system is out of something
PAUSE: Final = 0.1
#: the same when others have taken the spare number: nobody can be turned away before we have one again; and when the
#: workers are behind
SOON: Final = 0.002

_OUT_OF_DESCRIPTORS: Final = frozenset({errno.EMFILE, errno.ENFILE})

logger = logging.getLogger(__name__)


class Accepting:
    """Accepts at *servers*, on the thread of *loop*.

    *take*: called there with every connection; what it raises as OSError or RuntimeError closes the connection.
    *inside*: how many there are now; *limit*: how many there may be, ``None``: any number.  *on_full*: called there
    whenever that many are reached.  *on_end*: called when the loop was closed and nobody can be accepted any more.
    *backlog*: how many sockets are ready and wait for the workers.
    """

    def __init__(
        self,
        servers: Sequence[StreamServer],
        loop: PollingLoop,
        take: Callable[[StreamSocket], object],
        *,
        inside: Callable[[], int],
        limit: int | None,
        on_end: Callable[[Exception], object],
        on_full: Callable[[], object] | None = None,
        backlog: Callable[[], int] = int,
    ) -> None:
        self.accepted = 0  # these three are the poller thread's
        self.shed = 0
        self.refused = 0
        self._servers = tuple(servers)
        self._loop = loop
        self._take = take
        self._inside = inside
        self._limit = limit
        self._on_end = on_end
        self._on_full = on_full
        self._backlog = backlog
        self._spare = SpareNumber()
        self._warnings = Seldom()
        self._lock = make_rlock()  # taken before the loop's; guards what follows
        self._monitors: list[Monitor] = []
        self._full = False
        self._short = False
        self._closed = False

    @property
    def paused(self) -> bool:
        """Whether the doors are shut just now."""
        return self._full or self._short

    def open(self) -> None:
        """Begin; once.

        :raises SocketClosedError: a server is closed
        :raises PollerClosedError: the loop is closed
        :raises OSError: the kernel has no room for it
        """
        self._spare.take()
        wanted = SocketEvent.CONNECTION_AVAILABLE
        try:
            for server in self._servers:
                turn = partial(self._turn, server)
                monitor = self._loop.monitor(server, wanted, turn, on_close=self._ended)
                with self._lock:  # where the doors were shut meanwhile, this one's first turn finds out
                    self._monitors.append(monitor)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Accept nobody any more.  The servers stay open.  Idempotent; any thread."""
        with self._lock:
            self._closed = True
            for monitor in self._monitors:
                monitor.cancel()
        self._spare.close()

    def left(self) -> None:
        """One connection is gone, and counted no more: there may be room for another."""
        with self._lock:
            full, self._full = self._full, False
        if full:
            self._reopen()

    # The poller thread.

    def _turn(self, server: StreamServer, _socket: Socket, _events: SocketEvent) -> None:
        if not (self._spare.held or self._spare.take()):
            # Whoever is let in now may get the number that was stolen, and nobody could be turned away any more.
            self._shut_for(SOON)
            return
        behind = self._backlog() >= TURN
        self._let_in(server, FEW if behind else TURN)
        if behind and not self.paused:
            self._shut_for(SOON)

    def _let_in(self, server: StreamServer, most: int) -> None:
        end = time.monotonic() + TURN_TIME
        for _ in range(most):
            if not self._has_room():
                return
            try:
                stream = server.accept_connection()
            except (NoConnectionAvailableError, SocketClosedError):
                return
            except OSError as error:
                self._starve(server, error)
                return
            if not self._admit(stream):
                return
            if time.monotonic() > end:
                break
        self._has_room()  # that the doors are full is to be seen at once, not when the next one knocks

    def _has_room(self) -> bool:
        with self._lock:
            was_full = self._full
            full = self._limit is not None and self._inside() >= self._limit
            self._full = was_full or full
            if self.paused:
                self._move_doors_locked()
            open_ = not (self.paused or self._closed)
        if full and not was_full and self._on_full is not None:
            self._on_full()
        return open_

    def _admit(self, stream: StreamSocket) -> bool:
        """Hand *stream* on; False: nobody takes it, nor the next one."""
        self.accepted += 1
        try:
            self._take(stream)
        except (OSError, RuntimeError) as error:
            stream.close()
            self.accepted -= 1
            self.refused += 1
            if not self._closed:
                self._shut_for(PAUSE)
                self._warn("a connection was refused: %s", error)
            return False
        return True

    def _starve(self, server: StreamServer, error: OSError) -> None:
        """The system is out of something."""
        turned_away = 0
        if error.errno in _OUT_OF_DESCRIPTORS:
            turned_away = self._spare.turn_away(server, TURN)
            self.shed += turned_away
        self._shut_for(PAUSE if self._spare.held else SOON)
        self._warn("no connection can be accepted, %d turned away: %s", turned_away, error.strerror)

    def _shut_for(self, seconds: float) -> None:
        with self._lock:
            self._short = True
            self._move_doors_locked()
        with contextlib.suppress(PollerClosedError):
            self._loop.call_later(seconds, self._try_again)

    def _try_again(self) -> None:
        if self._closed:
            return
        if not self._spare.take():
            self._shut_for(SOON)
            return
        with self._lock:
            self._short = False
        self._reopen()

    def _reopen(self) -> None:
        try:
            with self._lock:
                self._move_doors_locked()
        except OSError as error:  # epoll has no room for them
            self._shut_for(PAUSE)
            self._warn("no connection can be accepted: %s", error.strerror)

    def _ended(self, error: Exception) -> None:
        """A server, or the loop, is closed."""
        if isinstance(error, PollerClosedError) and not self._closed:
            self._on_end(error)

    def _move_doors_locked(self) -> None:
        """Let the monitors know whether the doors are shut.

        :raises OSError: the kernel has no room for it
        """
        for monitor in self._monitors:
            if self.paused:
                monitor.pause()
            else:
                monitor.resume()

    def _warn(self, text: str, *facts: object) -> None:
        left_out = self._warnings.ask()
        if left_out is not None:
            logger.warning("%s (%d warnings left out before this)", text % facts, left_out)
