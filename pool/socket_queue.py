"""SocketQueue: what waits for one socket, in its order: the reads of a stream, its writes, the accepts of a server.

Law of this file: any thread may come in.  A queue has one lock, which serialises short calls that never wait; the order
is: a queue's lock, then the poller thread's, then a socket's, and never two queues' at once.  Futures are settled when
the lock is let go (``Afterwards``).

Re-entry.  The lock is re-entrant, because a signal handler, or a finalizer that the garbage collector runs, may use the
stream in the middle of its own thread's call.  What it would find is half done: bytes that the kernel has taken and
nobody has counted yet.  So whoever finds ``_busy`` set hands his call to the poller thread, which waits for the lock.

What that does not cover: a handler that interrupts its thread inside the poller thread's own locks, and uses a stream
whose lock another thread holds that waits for those.  Closing the socket itself is safe there, too; a queue is not.

Circles.  A future keeps its callbacks when it is done.  So a callback, and a timer, holds what waits by a weak
reference: it is alive as long as it is in the queue, and then the future, with its bytes, is freed at once, not by the
collector.

Waiting.  One monitor a queue, made when something has to wait for the first time.  Each change of it costs a system
call and 2 us, so it stays as it is until an event comes that nobody asks for.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

from bbipc.errors import PollerClosedError
from bbipc.events import SocketEvent
from bbipc.polling.deadline import checked_timeout
from bbipc.sockets import fork
from bbipc.sockets.base import Socket
from pool.afterwards import Afterwards
from pool.parties import Monitor
from pool.polling_loop import PollingLoop


class SocketQueue:
    """A queue at *socket*, served when one of *events* is true of it.

    Fields belong to ``_lock``; a helper whose name ends in ``_locked`` needs it.
    """

    def __init__(self, socket: Socket, loop: PollingLoop, events: SocketEvent) -> None:
        self._socket = socket
        self._loop = loop
        self._events = events
        self._lock = threading.RLock()
        self._busy = False
        self._monitor: Monitor | None = None
        self._armed = False
        self._generation = fork.generation

    def _limit(self, timeout: float | None) -> float | None:
        """*timeout* in seconds, ``None``: none.

        :raises TypeError, ValueError: no timeout
        :raises PollerClosedError: in a forked child, where the lock may be held by a thread that is not there
        """
        if self._generation != fork.generation:
            raise PollerClosedError("this belongs to the process that forked this one")
        return None if timeout is None else checked_timeout(timeout)

    def _arm_locked(self) -> None:
        """Let the poller thread tell of events.

        :raises SocketClosedError, PollerClosedError: it cannot any more
        :raises OSError, RuntimeError: the system has no room for the registration, or no thread
        """
        if self._armed:
            return
        if self._monitor is None:
            self._monitor = self._loop.monitor(self._socket, self._events, self._on_event, on_close=self.end)
        else:
            self._monitor.resume()
        self._armed = True

    def _pause_locked(self) -> None:
        """Nobody asks for events."""
        if self._armed and self._monitor is not None:
            self._armed = False
            self._monitor.pause()

    def _on_event(self, socket: Socket, events: SocketEvent) -> None:
        """The poller thread tells."""
        self._exclusively(self._turn_locked)

    def _exclusively(self, step: Callable[[Afterwards], object]) -> None:
        """Do *step* under the lock, and what it leaves to be done afterwards; on re-entry let the poller thread.

        :raises PollerClosedError: on re-entry, and there is no poller thread any more; nobody can be waiting then
        """
        after = Afterwards()
        try:
            with self._lock:
                if self._busy:
                    self._loop.call_later(0, self._exclusively, step)
                    return
                try:
                    self._busy = True
                    step(after)
                finally:
                    self._busy = False
        finally:
            after.do()

    def _soon(self, step: Callable[[Afterwards], object]) -> None:
        """Do *step* on the poller thread; if that is closed, nobody waits any more, or he is just being told."""
        with contextlib.suppress(PollerClosedError):
            self._loop.call_later(0, self._exclusively, step)

    # What a queue supplies.

    def _turn_locked(self, after: Afterwards) -> None:
        """Do what can be done now, within bounds."""
        raise AssertionError("every queue has its own")

    def end(self, error: Exception) -> None:
        """The socket, or the poller thread, is closed."""
        raise AssertionError("every queue has its own")
