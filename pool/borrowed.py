"""Monitoring with calls on an executor of somebody else's: a thread pool, a cluster's.

Law of this file: the poller thread waits, the executor calls.  While a call is on its way or running, the socket is
paused in the kernel; when its future is done the monitor goes on.  So there is never more than one call for a socket,
and a slow executor is never flooded.

A call that raises is told to the log, and the monitor goes on.  A call that has failed and never began ends it: the
next one would fail in the same way, and at once, as nobody has read what it is for.  Such are the calls of an executor
that is broken, and all calls of one whose workers are other processes, as a socket cannot be pickled.

One that has ended while its call is on its way or running still holds its socket: a new monitor of the same pool for
that is its *heir*, busy from the start, and begins when that call is over.  So no socket has two calls at once here
either (``stations.py``).
"""

from __future__ import annotations

import contextlib
import logging
import threading
from concurrent.futures import Executor, Future
from typing import Final, NoReturn, Self

from bbipc.errors import PollerClosedError
from bbipc.events import SocketEvent
from bbipc.sockets import fork
from bbipc.sockets.base import Socket
from bbipc.sockets.locks import make_rlock
from pool import reports
from pool.interests import Callback
from pool.parties import CloseHook, Monitor
from pool.polling_loop import PollingLoop
from pool.stations import SHUT_DOWN

#: seconds until the kernel is asked again for what it had no room for
RETRY: Final = 0.05

logger = logging.getLogger(__name__)


class BorrowedMonitor:
    """A monitor whose calls are made by an executor; as :class:`pool.Monitoring`.  Any thread.

    ``socket``: the monitored socket.
    """

    def __init__(
        self,
        loop: PollingLoop,
        owner: object,
        executor: Executor,
        socket: Socket,
        call: Callback,
        on_close: CloseHook | None,
    ) -> None:
        self.socket = socket
        self._loop = loop
        self._owner = owner  # a pool that nobody holds any more ends; so it is held while it monitors something
        self._executor = executor
        self._call = call
        self._on_close = on_close
        self._lock = make_rlock()
        self._busy = False  # these four are guarded by the lock, which is taken before the loop's
        self._paused = False
        self._farewell: Exception | None = None  # what its end is to be told as, when its call has returned
        self._heir: BorrowedMonitor | None = None  # waits for our call to be over
        self._begun = False  # the call that is on its way; the executor's, and then whoever's who settles its future
        self._monitor: Monitor
        self._monitored = False  # there is one
        self._over = False  # whoever ended it has told, or is about to; guarded by the lock
        self._cancelled = False
        self._failures = 0
        self._generation = fork.generation

    def begin(self, events: SocketEvent) -> Self:
        """Not for users: monitor *events*; the monitor itself.

        :raises ValueError: the socket does not have one of them
        :raises SocketClosedError: the socket was closed
        :raises PollerClosedError: the poller thread is closed
        """
        with self._lock:  # the first callback waits here until there is a monitor
            if self._over:
                raise RuntimeError(SHUT_DOWN)
            try:
                self._monitor = self._loop.monitor(self.socket, events, self._ready, on_close=self._ended)
            except BaseException:
                self._over = True
                raise
            self._monitored = True
            if self._busy:
                self._monitor.pause()
        return self

    def give_way(self, heir: BorrowedMonitor) -> None:
        """Not for users: *heir* is to have the socket, when our last call is over.

        :raises ValueError: we go on
        """
        with self._lock:
            if not self._has_ended():
                raise ValueError(f"{self.socket!r} is monitored already")
            if self._busy:
                self._heir, heir._busy = heir, True

    def _has_ended(self) -> bool:
        """Whether no call begins any more; one may be on its way, or running.  (There may be no monitor as yet.)"""
        return self._over or self._cancelled or (self._monitored and not self._monitor.active)

    @property
    def active(self) -> bool:
        """Whether calls may still begin: neither cancelled, nor the socket or the poller thread closed."""
        return self._monitored and self._monitor.active

    def cancel(self) -> None:
        """End it; idempotent.  A call that is on its way to the executor, or running there, goes on."""
        self._cancelled = True
        if self._monitored:
            self._monitor.cancel()

    def pause(self) -> None:
        """Begin no call until :meth:`resume`.  Idempotent."""
        if self._generation != fork.generation:  # the lock may be held for ever, by a thread that is not here
            return
        with self._lock:
            self._paused = True
            self._monitor.pause()

    def resume(self) -> None:
        """Go on after :meth:`pause`.  Idempotent; nothing once it has ended.

        :raises OSError: the kernel has no room for it; the same call may be made again
        """
        if self._generation != fork.generation:
            return
        with self._lock:
            self._paused = False
            if not self._busy:
                self._monitor.resume()

    def set_events(self, events: SocketEvent) -> None:
        """Call for *events* from now on, and go on if it was paused.

        :raises ValueError: the socket does not have one of them
        :raises TypeError: not a SocketEvent
        :raises OSError: the kernel has no room for it; the same call may be made again
        """
        if self._generation != fork.generation:
            return
        with self._lock:
            self._paused = False
            self._monitor.set_events(events)
            if self._busy:
                self._monitor.pause()

    def _ready(self, socket: Socket, events: SocketEvent) -> None:
        """On the poller thread: let the executor make the call."""
        with self._lock:
            if self._busy or self._paused or self._has_ended():
                return
            self._busy = True
            self._begun = False
            self._monitor.pause()
        try:
            future = self._executor.submit(self._make_call, socket, events)
        except BaseException as error:  # noqa: BLE001 # whatever it is: it is told, and the poller thread goes on
            self._call_is_over(error)
        else:
            future.add_done_callback(self._called)

    def _make_call(self, socket: Socket, events: SocketEvent) -> object:
        """On a worker of the executor."""
        self._begun = True
        return self._call(socket, events)

    def _called(self, future: Future[object]) -> None:
        """In whatever thread settles the executor's futures."""
        self._call_is_over(None if future.cancelled() else future.exception())

    def _call_is_over(self, error: BaseException | None) -> None:
        """It has failed with *error*, or has not.  Who waits for that goes on first, whatever our own hook does."""
        if error is not None:
            self._report(error)
        begun = self._begun  # the next call may be on its way as soon as this one is not
        farewell, heir = self._put_down()
        while heir is not None:  # all but the last of them were cancelled, or closed
            told, following = heir._put_down()
            heir._proceed(told)
            heir = following
        if farewell is None and error is not None and not begun:
            self._break(error)
        else:
            self._proceed(farewell)

    def _put_down(self) -> tuple[Exception | None, BorrowedMonitor | None]:
        """No call of this socket is on its way: how our end is to be told now, if it is, and who has waited for it."""
        with self._lock:
            self._busy = False
            heir, self._heir = self._heir, None
            return self._farewell, heir

    def _proceed(self, farewell: Exception | None) -> None:
        if farewell is not None:
            self._say_farewell(farewell)
        else:
            self._go_on()

    def _report(self, error: BaseException) -> None:
        self._failures += 1
        reports.failure(logger, self._failures, self._call, repr(self._executor), error)

    def _break(self, error: BaseException) -> None:
        """The executor takes nothing, or not this: it would be asked again and again."""
        self.end(error if isinstance(error, Exception) else RuntimeError(f"{self._executor!r} takes nothing"))

    def _go_on(self) -> None:
        try:
            with self._lock:
                if self._monitored and not (self._busy or self._paused):  # an heir may not have begun as yet
                    self._monitor.resume()
        except OSError:  # the kernel has no room for it
            with contextlib.suppress(PollerClosedError):
                self._loop.call_later(RETRY, self._go_on)

    def end(self, error: Exception) -> None:
        """Not for users: monitor nothing any more, and tell why; whichever thread."""
        with self._lock:
            self._over = self._over or not self._monitored  # it does not begin any more
        if self.active:
            self._monitor.cancel()
            self._ended(error)

    def _ended(self, error: Exception) -> None:
        """The socket, its thread or the pool is closed, or the executor broken.  Several may come with that at once."""
        with self._lock:
            if self._over:
                return
            self._over = True
            if self._busy:
                self._farewell = error
                return
        self._say_farewell(error)

    def _say_farewell(self, error: Exception) -> None:
        if self._on_close is not None and not self._cancelled:
            try:
                self._on_close(error)
            except Exception as problem:  # noqa: BLE001 # it is the user's, and whoever calls it here is not
                reports.failure(logger, 1, self._on_close, f"the thread {threading.current_thread().name!r}", problem)

    def __reduce__(self) -> NoReturn:
        """Whoever pickles the call of a monitor for another process is told what cannot go there: its socket."""
        self.socket.__reduce__()
        raise TypeError("a monitor can be neither copied nor pickled")

    def __repr__(self) -> str:
        return f"<BorrowedMonitor {'busy' if self._busy else 'idle'} of {self.socket!r}>"
