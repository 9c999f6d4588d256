"""Stations: which sockets workers are called for, and how the kernel is asked for them.

Law of this file: no thread, no user code.  Any thread may change the table; a name that ends in ``_locked`` needs its
lock, which is taken before a poller's, and that before a socket's.

A station is *busy* while its call is being made: whoever makes that has its token, the one element of ``idle``, which
is taken with pop and given back with append, with no lock.  It is then left armed, as long as nobody polls meanwhile
(see ``leader.py``), or else *held*: the kernel is not asked for it.  When the call returns it is armed again, and what
is true by then is told anew.

Whoever leaves something to be done behind the call (``held``, ``farewell``) notes it first, and looks *then* whether
the token has come back; whoever makes the call gives it back, and looks *then* whether something is noted.  So one of
the two does it, under the lock, where the other finds it done.  One that has ended keeps its token for good: so no call
begins any more, and its end is told once, behind the last one.

One that is cancelled while its call is being made goes on holding its socket: a new station of the same socket is its
*heir*, busy and held from the start, and begins when that call returns.  So no socket has two calls at once.
"""

from __future__ import annotations

import contextlib
from collections import deque
from typing import Final

from bbipc.errors import PollerClosedError, SocketClosedError
from bbipc.events import EVENTS, SocketEvent
from bbipc.polling.make import make_poller
from bbipc.polling.poller import Poller
from bbipc.polling.watch import wanted_bits
from bbipc.sockets import fork
from bbipc.sockets.base import Socket
from bbipc.sockets.locks import make_rlock
from pool.interests import Callback
from pool.parties import CloseHook
from pool.tasks import Errand, Listener

_NOTHING: Final = EVENTS[0]
#: seconds until the kernel is asked again for what it had no room for
RETRY: Final = 0.05
#: of the RuntimeError that an ``on_close`` is told at the end of a pool
SHUT_DOWN: Final = "the pool was shut down"


class Station:
    """What :meth:`WorkerPool.monitor` gives: to cancel, pause or change the monitoring.  Any thread.

    ``socket``: the monitored socket.
    """

    __slots__ = (
        "socket",
        "call",
        "on_close",
        "idle",
        "held",
        "gone",
        "farewell",
        "paused",
        "errand",
        "listener",
        "heir",
        "failures",
        "_events",
        "_table",
        "_owner",
    )

    def __init__(
        self, table: Stations, owner: object, socket: Socket, call: Callback, on_close: CloseHook | None
    ) -> None:
        self.socket = socket
        self.call = call
        self.on_close = on_close
        self.idle = [None]
        self.held = False
        self.gone = False  # out of the table, for good
        self.farewell: Exception | None = None  # why it has ended, if that is to be told
        self.failures = 0
        self._events = _NOTHING
        self.paused = False
        self.errand: Errand | None = None  # what its call has left; the leader's
        self.listener: Listener | None = None  # see dialogue.py
        self.heir: Station | None = None  # waits for our call to return
        self._table = table
        self._owner = owner  # a pool that nobody holds any more ends; so it is held while it has a station

    @property
    def busy(self) -> bool:
        """Not for users: whether its call is being made."""
        return not self.idle

    def begin(self) -> bool:
        """Not for users: take the token, for a call; False: another call is being made."""
        try:
            self.idle.pop()
        except IndexError:
            return False
        return True

    @property
    def active(self) -> bool:
        """Whether calls may still begin: neither cancelled, nor the socket or the pool closed."""
        return not self.gone

    def cancel(self) -> None:
        """End it; idempotent.  A call may be running, or about to."""
        self._table.remove(self)

    def pause(self) -> None:
        """Begin no call until :meth:`resume`; one may be running, or about to.  Idempotent."""
        self._table.change(self, self._events, paused=True)

    def resume(self) -> None:
        """Go on after :meth:`pause`; what is true by now is told.  Idempotent; nothing once it has ended.

        :raises OSError: the kernel has no room for it; the same call may be made again
        """
        self._table.change(self, self._events, paused=False)

    def set_events(self, events: SocketEvent) -> None:
        """Call for *events* from now on, and go on if it was paused.

        :raises ValueError: the socket does not have one of them
        :raises TypeError: not a SocketEvent
        :raises OSError: the kernel has no room for it; the same call may be made again
        """
        wanted_bits(self.socket, events)
        self._table.change(self, events, paused=False)

    def wanted_locked(self) -> SocketEvent:
        """Not for users: what the kernel is to be asked for now."""
        return _NOTHING if self.paused or self.held else self._events

    def end(self) -> None:
        """Not for users: tell that it has ended."""
        if self.on_close is not None and self.farewell is not None:
            self.on_close(self.farewell)

    def fits(self, events: SocketEvent) -> SocketEvent:
        """Not for users: those of *events* that it is to be called for."""
        return _NOTHING if self.gone or self.paused or self.socket.closed else EVENTS[events.value & self._events.value]

    def want_locked(self, events: SocketEvent, *, paused: bool) -> None:
        """Not for users: from now on it is to be called for *events*."""
        self._events, self.paused = events, paused

    def __repr__(self) -> str:
        state = "ended" if self.gone else "paused" if self.paused else "busy" if self.busy else "active"
        return f"<Station {state} of {self.socket!r}>"


class Stations:
    """The table of one pool.

    ``lock`` guards everything here, and what the leader keeps.  ``changes``: how often something was changed; events
    told before that may not be wanted any more.  ``closed_sockets``: written down by their closers, without the lock.
    ``departed``: the stations whose end is to be told.
    """

    def __init__(self) -> None:
        self.lock = make_rlock()
        self.poller: Poller | None = None  # made with the first station
        self.table: dict[Socket, Station] = {}
        self.changes = 0
        self.closed_sockets: deque[Socket] = deque()  # written down by the closer, without a lock
        self.unarmed: deque[Station] = deque()  # for which the kernel had no room
        self.departed: deque[Station] = deque()  # whose end is to be told
        self._leaving: dict[Socket, Station] = {}  # cancelled, and their calls have not returned
        self._closed = False
        self._generation = fork.generation

    def __len__(self) -> int:
        return len(self.table)

    def add(self, station: Station, events: SocketEvent) -> None:
        """Call *station* for *events* from now on.

        :raises ValueError: its socket is in the table already, or does not have one of *events*
        :raises TypeError: not a Socket, or not a SocketEvent
        :raises SocketClosedError: its socket is closed
        :raises RuntimeError: the pool was shut down
        :raises OSError: the kernel has no room for it
        """
        with self.lock:
            if self._closed:
                raise RuntimeError("cannot monitor after shutdown")
            if self.poller is None:
                self.poller = make_poller()
                self.poller.on_change = self._socket_changed
            station.want_locked(events, paused=False)
            self.changes += 1
            leaving = self._leaving.get(station.socket)
            if leaving is not None:
                station.held = True
                station.idle.clear()
            self.poller.monitor_socket(station.socket, events)
            self.table[station.socket] = station
            if leaving is not None:
                leaving.heir = station
                self._arm_locked(station)

    def remove(self, station: Station) -> bool:
        """Take *station* out; False: it was out already."""
        if self._generation != fork.generation:  # the lock may be held for ever, by a thread that is not here
            return False
        with self.lock:
            if station.gone:
                station.farewell = None  # what it would have been told when its call returns
                return False
            self.changes += 1
            if self.table.get(station.socket, station) is station:
                self.table.pop(station.socket, None)  # first: what the poller tells then is for nobody
                self.drop_locked(station.socket)
            station.gone = True  # late: what a Ctrl-C has left undone a second cancel does
            if not station.begin():  # else nobody begins a call any more, who has found it in the table before
                self._leave_locked(station)
            return True

    def change(self, station: Station, events: SocketEvent, *, paused: bool) -> None:
        """*station* is to be called for other events from now on."""
        if self._generation != fork.generation:
            return
        with self.lock:
            if not station.gone:
                self.changes += 1
                station.want_locked(events, paused=paused)
                self._arm_locked(station)

    def hold_locked(self, station: Station) -> bool:
        """Take *station* for a call beside others, with the kernel not asked for it meanwhile; False: not now.

        One that is busy is told of again and again, for as long as it is armed.
        """
        if (station.busy or not station.paused) and not station.held:
            station.held = True
            self._arm_locked(station)
        if not station.paused:
            return station.begin()
        if station.held and not station.busy:  # its call has returned meanwhile
            self._let_go_locked(station)
        return False

    def _leave_locked(self, station: Station) -> None:
        """It was cancelled while its call is being made, or while it waits for another's to return."""
        leaving = self._leaving.get(station.socket, station)
        if leaving is not station:
            leaving.heir = None
            return
        self._leaving[station.socket] = station
        station.held = True
        if not station.busy:  # the call has returned meanwhile
            self.release_locked(station)

    def release_locked(self, station: Station) -> None:
        """Its call has returned: do what was left for that.  Idempotent."""
        if station.busy:  # the next one has begun
            return
        if station.gone and not station.begin():  # since a moment ago, by a leader who is late
            return
        if station.held:
            self._let_go_locked(station)
            if station.held:  # whoever waits for events is to wait for a moment only
                self.wake()
        if self._leaving and self._leaving.get(station.socket) is station:
            del self._leaving[station.socket]
            heir, station.heir = station.heir, None
            if heir is not None:
                heir.idle.append(None)
                self.release_locked(heir)
        if station.farewell is not None and station.gone:
            self._part_locked(station)
            self.wake()

    def try_again_locked(self) -> float | None:
        """Arm those for which the kernel had no room; seconds until it is to be asked again, ``None``: it has."""
        for _ in range(len(self.unarmed)):
            station = self.unarmed.popleft()
            if station.held and not station.busy:
                self._let_go_locked(station)
        return RETRY if self.unarmed else None

    def _let_go_locked(self, station: Station) -> None:
        station.held = False
        try:
            if not station.gone:
                self._arm_locked(station)
        except OSError:  # the kernel has no room for it: whoever leads tries again
            station.held = True
            self.unarmed.append(station)

    def drop_locked(self, socket: Socket) -> None:
        """*socket* was told of, and is in the table no more: let the poller forget it, if it has not.

        A Ctrl-C between the two would otherwise leave a socket that is told of for ever, to nobody.
        """
        if self.poller is not None:
            with contextlib.suppress(KeyError, PollerClosedError):
                self.poller.unmonitor_socket(socket)

    def take_departed_locked(self) -> Station | None:
        """One whose end is to be told; one whose call is still running is only marked, and comes when it returns."""
        while self.closed_sockets:
            station = self.table.pop(self.closed_sockets.popleft(), None)
            if station is not None:
                self._depart_locked(station, SocketClosedError(station.socket))
        return self.departed.popleft() if self.departed else None

    def close(self) -> list[Station]:
        """Take out all of them, and close the poller; those whose end is to be told."""
        error = RuntimeError(SHUT_DOWN)
        departed = []
        if self._generation == fork.generation:
            with self.lock:
                self._closed = True
                for station in self.table.values():
                    self._depart_locked(station, error)
                self.table.clear()
                departed = list(self.departed)
                self.departed.clear()
        if self.poller is not None:
            self.poller.close()
        return departed

    def _depart_locked(self, station: Station, error: Exception) -> None:
        self.changes += 1
        station.gone = True
        station.farewell = error
        if station.begin():  # else whoever makes its call finds that when it returns
            self._part_locked(station)

    def _part_locked(self, station: Station) -> None:
        """Its end is to be told, and we have its token for good."""
        self.departed.append(station)

    def wake(self) -> None:
        """End the wait of the leader.  Without a lock: also from finalizers and signal handlers."""
        if self.poller is not None:
            with contextlib.suppress(PollerClosedError):
                self.poller.wake()

    def _arm_locked(self, station: Station) -> None:
        # KeyError, SocketClosedError: the socket was closed, and left the poller; its end is on the way.
        if self.poller is not None:
            with contextlib.suppress(KeyError, SocketClosedError, PollerClosedError):
                self.poller.set_monitored_events(station.socket, station.wanted_locked())

    def _socket_changed(self, socket: Socket) -> None:
        """The poller's hook: perhaps in a signal handler, so nothing here takes a lock."""
        if socket.closed:
            self.closed_sockets.append(socket)
            self.wake()
