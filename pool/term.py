"""Term: one worker's time in the lead, and the quick way to make the calls of a batch.

Law of this file: it takes no lock, so that a call of the usual kind costs a few steps of the interpreter beside its own
work.  A term is written by its worker alone, but for ``lost``, which is set under the lock of the stations by whoever
takes the lead.  Others read it at any time: who watches, who takes over, who has something for the leader.

Why no lock is needed.  A report is taken out of the batch with popleft, and a station is called by whoever has taken
its token (``Station.idle``): both are atomic, so nothing is called for twice, nor twice at once.  What is unusual (a
change since the poll, a close, a call that is still being made, a lost lead) ends the quick way in front of the report
in question; ``leader.py`` goes on from there, under the lock.

A *listener* is read here (``take``) and then run, with no errand between.  Nobody waits behind one that blocks:

1. The leader notes it in ``running``, reads, looks whether the lead is lost, and runs what was read.
2. Whoever takes over sets ``lost``, and *then* looks what ``running`` has left to do for others.
3. If he came before the look in 1, what was read is left as an errand, as by any call.  If he came behind it, he finds
   it.

(While a listener reads nothing holds its socket: it reads once at a time by itself, as whoever waits in a read does.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TypeAlias

from bbipc.events import SocketEvent
from bbipc.sockets import fork
from bbipc.sockets.base import Socket
from pool.station_calls import failed
from pool.stations import Station, Stations
from pool.tasks import Errand

Report: TypeAlias = tuple[Socket, SocketEvent]


class Term:
    """*ident*: the worker's.  *last*: the term before this one.

    ``lost``: he leads no more.  ``polling``: he waits for events; ``polled``: he has, since he began.  ``since``: the
    changes of the stations when what is ready was told.  ``steps``: how many polls and calls have begun, in all terms.
    ``worked_until``: when he had made the last call, or began, on the monotonic clock.  ``calling``: the station whose
    call he makes; ``running``: the errand.
    """

    __slots__ = ("ident", "lost", "polling", "polled", "since", "steps", "worked_until", "calling", "running")

    def __init__(self, ident: int, last: Term | None = None) -> None:
        self.ident = ident
        self.lost = False
        self.polling = False
        self.polled = False
        self.since = -1  # nothing was told to him yet
        self.steps: int = 0 if last is None else last.steps + 1
        self.worked_until = 0.0
        self.calling: Station | None = None
        self.running: Errand | None = None

    def make_calls(
        self,
        ready: deque[Report],
        stations: Stations,
        finish: Callable[[Term, Station], int],
        follow_up: Callable[[Errand], None],
    ) -> tuple[int, Report | None]:
        """Make the calls of *ready*; how many calls, and requests of listeners, that were.

        Beside it stands the report that is unusual: taken out of *ready*, and nothing done about it; ``None``: there is
        none.  *finish*: behind a call that has left something to do.  *follow_up*: for what is left when the lead is
        lost.
        """
        table, closed, since, generation = stations.table, stations.closed_sockets, self.since, fork.generation
        count = 0
        while ready and stations.changes == since and not (self.lost or closed) and generation == fork.generation:
            try:
                socket, events = report = ready.popleft()
            except IndexError:  # somebody has taken the lead, and this one with it
                break
            station = table.get(socket)
            if station is None or not station.idle:
                return count, report
            self.steps += 1
            listener = station.listener
            if listener is not None:
                self.running = listener
                try:
                    listener.take(events)
                    if not self.lost:
                        count += listener.run() + 1
                    elif listener.waiting():
                        follow_up(listener)
                except BaseException as error:  # noqa: BLE001 # whatever user code raises, it ends nothing
                    failed(station, error)
                self.running = None
                continue
            try:
                station.idle.pop()
            except IndexError:  # since a moment ago
                return count, report
            self.calling = station
            try:
                station.call(socket, events)
            except BaseException as error:  # noqa: BLE001 # as above
                failed(station, error)
            self.calling = None
            station.idle.append(None)
            count += 1
            if station.held or station.errand is not None or station.farewell is not None:
                count += finish(self, station)
        return count, None
