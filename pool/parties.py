"""Who may wait: for a socket a Monitor, until it is cancelled, or a Wait, once; for the time a Call.

Law of this file: no thread of its own.  A monitor's callbacks run on the poller thread; a wait's future is settled
there, or in the thread that cancels it.  Either is in the table of interests exactly as long as it may be told
something.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from bbipc.errors import SocketClosedError
from bbipc.events import CONNECTION_FAILED, EVENTS, ROOM_TO_WRITE, SocketEvent
from bbipc.polling.wait import glance
from bbipc.polling.watch import wanted_bits
from bbipc.sockets.base import Socket
from bbipc.sockets.stream import StreamSocket
from pool.futures import GuardedFuture, fail, run, settle
from pool.interests import Callback, Interests, Party
from pool.timers import Timer, Timers

T = TypeVar("T")
#: what is called when nothing can come any more
CloseHook = Callable[[Exception], object]


class Monitor(Party):
    """What :meth:`PollerThread.monitor` gives: to cancel, pause or change the monitoring.  Any thread.

    ``socket``: the monitored socket.
    """

    __slots__ = ("socket", "callback", "on_close", "failures", "suspicion", "_table", "_events", "_active")

    def __init__(
        self, table: Interests, socket: Socket, events: int, callback: Callback, on_close: CloseHook | None
    ) -> None:
        super().__init__(events, callback)
        self.socket = socket
        self.callback = callback
        self.on_close = on_close
        #: how often the callback has raised, and how it was reported to be slow; the poller thread's
        self.failures = 0
        self.suspicion = 0
        self._table = table
        self._events = events
        self._active = True

    @property
    def active(self) -> bool:
        """Whether callbacks may still come: neither cancelled, nor the socket or the poller thread closed."""
        return self._active

    def cancel(self) -> None:
        """End it; idempotent.  Called on the poller thread: no callback begins any more.  Called on another one: a
        callback may be running, or about to.
        """
        self._active = False
        self._table.leave(self.socket, self)

    def pause(self) -> None:
        """Report nothing until :meth:`resume`; the kernel is asked for nothing meanwhile.  Idempotent."""
        self._table.change(self.socket, self, 0)

    def resume(self) -> None:
        """Go on after :meth:`pause`; what is true by now is reported.  Idempotent; nothing once it has ended.

        :raises OSError: the kernel has no room for it; the same call may be made again
        """
        self._table.change(self.socket, self, self._events)

    def set_events(self, events: SocketEvent) -> None:
        """Report *events* from now on, and go on if it was paused.

        :raises ValueError: the socket does not have one of them
        :raises TypeError: not a SocketEvent
        :raises OSError: the kernel has no room for it; the same call may be made again
        """
        self._events = wanted = wanted_bits(self.socket, events)
        self._table.change(self.socket, self, wanted)  # not what another thread has written down since

    def tell(self, socket: Socket, events: int) -> None:
        """Not for users: call the callback."""
        if self._active:
            self.callback(socket, EVENTS[events])

    def end(self, error: Exception) -> None:
        """Not for users: the socket or the poller thread is closed."""
        active, self._active = self._active, False
        if active and self.on_close is not None:
            self.on_close(error)

    def __repr__(self) -> str:
        state = "paused" if self._active and not self.wanted else "active" if self._active else "ended"
        return f"<Monitor {state} of {self.socket!r}>"


class Wait(Party):
    """A future that waits for a socket."""

    __slots__ = ("_table", "_timers", "_socket", "_asked", "_future", "_timer")

    def __init__(
        self, table: Interests, timers: Timers, socket: Socket, asked: int, future: Future[SocketEvent]
    ) -> None:
        # The end of a stream is asked for always: a wait for what it makes impossible is then over, too.  It leaves
        # room to write possible.
        ends = isinstance(socket, StreamSocket) and not asked & ROOM_TO_WRITE
        super().__init__(asked | CONNECTION_FAILED if ends else asked)
        self._table = table
        self._timers = timers
        self._socket = socket
        self._asked = asked
        self._future = future
        self._timer: Timer | None = None

    def limit(self, timer: Timer) -> None:
        """*timer* ends it, unless it is over already."""
        with self._table.lock:  # who takes it out of the table later sees the timer
            self._timer = timer
            over = self not in self._table.parties_of(self._socket)
        if over:
            self._timers.cancel(timer)

    def tell(self, socket: Socket, events: int) -> None:
        """The events have come, or none of them can."""
        if self._take():
            settle(self._future, EVENTS[events & self._asked])

    def look_again(self) -> None:
        """What can come of the socket has changed: perhaps nothing of what it waits for."""
        try:
            found = glance(self._socket, EVENTS[self._asked])
        except SocketClosedError:  # its end is told as a close
            return
        if found is not None and self._take():
            settle(self._future, found)

    def end(self, error: Exception) -> None:
        """The socket, or the poller thread, is closed; called by who has taken it."""
        self._stop_timer()
        fail(self._future, error)

    def time_out(self) -> None:
        """Its time is up."""
        if self._take():
            fail(self._future, TimeoutError(f"{EVENTS[self._asked]!r} of {self._socket!r} did not come in time"))

    def future_done(self, future: Future[SocketEvent]) -> None:
        """A callback of the future: if it was cancelled, take the wait back and let its waiters know."""
        if future.cancelled() and self._take():
            future.set_running_or_notify_cancel()

    def __repr__(self) -> str:
        return f"when({self._socket!r}, …)"

    def _take(self) -> bool:
        """Take it out of the table; False: somebody else has, and settles the future."""
        if not self._table.leave(self._socket, self):
            return False
        self._stop_timer()
        return True

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timers.cancel(self._timer)


class Call(Generic[T]):
    """A future that waits for the time, and then for what a function gives."""

    __slots__ = ("timer", "_timers", "_future", "_fn", "_args")

    def __init__(self, timers: Timers, future: Future[T], fn: Callable[..., T], args: tuple[object, ...]) -> None:
        self.timer: Timer | None = None
        self._timers = timers
        self._future = future
        self._fn = fn
        self._args = args

    def run(self) -> None:
        """Its time has come."""
        # An error's traceback leads to this frame: nothing here may lead back to the future that keeps the error.
        future, self._future = self._future, GuardedFuture()
        run(future, lambda: self._fn(*self._args))
        del future

    def end(self, error: Exception) -> None:
        """Its time will not come."""
        fail(self._future, error)

    def future_done(self, future: Future[T]) -> None:
        """A callback of the future: if it was cancelled, take the timer back and let its waiters know."""
        if self.timer is not None and future.cancelled() and self._timers.cancel(self.timer):
            future.set_running_or_notify_cancel()

    def __repr__(self) -> str:
        return f"call_later(…, {self._fn!r})"
