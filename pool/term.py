"""Term: one worker's time in the lead, and the quick way to make the calls of a batch.

Law of this file: it takes no lock, so that a call of the usual kind costs a few steps of the interpreter beside its own
work.  A term is written by its worker alone, but for ``lost``, which is set under the lock of the stations by whoever
takes the lead.  Others read it at any time: who watches, who takes over, who has something for the leader.

Why no lock is needed.  A report is taken out of the batch with popleft, and a station is called by whoever has taken
its token (``Station.idle``): both are atomic, so nothing is called for twice, nor twice at once.  What is unusual (a
change since the poll, a close, a call that is still being made, a lost lead) ends the quick way in front of the report
in question; ``leader.py`` goes on from there, under the lock.  Who cancels or ends a station keeps its token, so no
leader who is late can call it any more.

A *listener* is read here (``take``), as any station is called, and then run with its token given back, so that others
may read on.  Nobody waits behind one that blocks:

1. The leader notes it in ``running``, reads, looks whether the lead is lost, and runs what was read.
2. Whoever takes over sets ``lost``, and *then* looks what ``running`` has left to do for others.
3. If he came before the look in 1, what was read is left as an errand, as by any call.  If he came behind it, he finds
   it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TypeAlias

from bbipc.events import SocketEvent
from bbipc.sockets import fork
from bbipc.sockets.base import Socket
from pool.station_calls import failed, run_errand
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
        finish: Callable[[Term, Station, Errand | None], int],
        follow_up: Callable[[Errand], None],
    ) -> tuple[int, Report | None]:
        """Make the calls of *ready*; how many calls, and requests of listeners, that were.

        Beside it stands the report that is unusual: taken out of *ready*, and nothing done about it; ``None``: there is
        none.  *finish*: behind a call that has left something to do.  *follow_up*: for what is left when the lead is
        lost.
        """
        table, closed, since, generation = stations.table, stations.closed_sockets, self.since, fork.generation
        count = 0
        while ready and not (self.lost or closed) and generation == fork.generation:
            try:
                socket, events = report = ready.popleft()
            except IndexError:  # somebody has taken the lead, and this one with it
                break
            station = table.get(socket)
            if station is None or stations.changes != since:  # in this order: what is new there was not told of
                return count, report
            try:
                station.idle.pop()
            except IndexError:
                return count, report
            self.steps += 1
            listener = station.listener
            try:
                if listener is None:
                    self.calling = station
                    station.call(socket, events)
                else:
                    self.running = listener
                    listener.take(events)
            except BaseException as error:  # noqa: BLE001 # whatever user code raises, it ends nothing
                failed(station, error)
            if generation != fork.generation:  # it has forked, and this is the child, where there are no workers
                break
            self.calling = None
            errand, station.errand = station.errand, None  # while we have the token: see follow_up
            station.idle.append(None)
            count += 1
            if station.held or errand is not None or station.farewell is not None:
                count += finish(self, station, errand)
            if listener is not None:
                if not self.lost:
                    count += run_errand(listener)
                elif listener.waiting():
                    follow_up(listener)
                self.running = None
        return count, None
