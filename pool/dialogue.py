"""Dialogue: a worker who stays with one client, asleep in the read itself.

Law of this file: whom a worker stays with, for how long, and what happens when a handler blocks him meanwhile.  Who
leads, and what a turn of the leader is, stands in ``leader.py``; who decides here is the leader, under its lock.

What for.  A read that sleeps takes the bytes within a microsecond or two of their coming, while the client is still on
his way to sleep.  A poll and a read behind it come later: then the kernel, which tells whoever sleeps on a local socket
that its peer has read (``unix_write_space``), wakes the client for nothing, and he goes to sleep once more.  In a
hand-written server of 64 bytes a request the poll alone costs half of the throughput, and here a third.

How.  1. The leader is told of one socket, and of no other, again and again: he lays down the lead, has the socket
disarmed as for any call that is made apart, and stays.  2. He reads, runs what was read, and reads again; somebody else
leads.  3. Nothing comes for TICK seconds, or something unusual, or there is nobody to spare any more: the socket is
armed again, and he is a worker like any other.

Nobody waits behind a slow handler here either.  While a dialogue stands the leader looks around every WATCH seconds.
When its worker has run what he read for that long the dialogue is *broken*: the socket is armed again, and the worker
finds that out when he comes back.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from bbipc.sockets import fork
from bbipc.sockets.base import Socket
from bbipc.sockets.stream import CAN_WAIT
from pool import reports
from pool.crew import Crew
from pool.lookout import SLOW, WATCH
from pool.stations import Station, Stations
from pool.tasks import Errand, Listener

#: seconds that one read sleeps: a client who has not come back by then is not in a dialogue.  So long may a stop, a
#: task for which there is nobody else, and a reply that finds no room, have to wait.  (The kernel counts in ticks of
#: its own, 4 ms at 250 Hz, and each wake-up inside the read drops what is left of one: with a single tick a read comes
#: back empty-handed every 100 requests or so.)
TICK: Final = 0.012
#: so often in a row the leader has to be told of one socket alone
ENOUGH: Final = 8
#: and so often at most, when dialogues turned out to be short: fewer than WORTH readings
MOST: Final = 1024
WORTH: Final = 64

monotonic: Final = time.monotonic
logger = logging.getLogger(__name__)


class Dialogue:
    """One worker, and whom he stays with."""

    __slots__ = ("station", "listener", "runs", "started", "broken")

    def __init__(self, station: Station, listener: Listener) -> None:
        self.station = station
        self.listener = listener
        self.runs = 0
        self.started = 0.0  # when what was read began to be run; 0: nothing runs
        self.broken = False  # under the lock


class Dialogues:
    """Those of one crew.  *led*: whether anybody leads it, told without a lock."""

    def __init__(self, crew: Crew, stations: Stations, led: Callable[[], object]) -> None:
        self._led = led
        self._crew = crew
        self._stations = stations
        self._lock = stations.lock
        self.standing: list[Dialogue] = []  # under the lock
        self._generation = fork.generation
        self.last: Socket | None = None  # these are the leader's
        self._last_told = 0.0
        self._streak = 0
        self._enough = ENOUGH

    # The leader.

    def told(self, socket: Socket | None, now: float) -> None:
        """He was told of *socket* alone; ``None``: of several, or of none.  *now*: when he began to wait for that."""
        station = self._stations.table.get(socket) if socket is not None else None
        if station is None or station.listener is None:  # others are not even remembered: that would keep them alive
            self.last = None
        elif socket is self.last and now - self._last_told < TICK:
            self._streak += 1
        else:
            self.last, self._streak = socket, 0
        self._last_told = now

    def due(self) -> bool:
        """Whether he was told of one socket alone often enough."""
        return self._streak >= self._enough

    def begin_locked(self) -> Dialogue | None:
        """The dialogue to be had now, if there is one: its station is held, and the caller is to lay down the lead."""
        socket, self.last, self._streak = self.last, None, 0
        station = self._stations.table.get(socket) if socket is not None else None
        if station is None or station.listener is None or not CAN_WAIT:
            return None
        if not self._crew.idle() or self._crew.spare() < 2:
            return None
        if not self._stations.hold_locked(station):
            return None
        dialogue = Dialogue(station, station.listener)
        self.standing.append(dialogue)
        return dialogue

    def look_locked(self) -> list[Errand]:
        """Break those whose worker is blocked; what these have left to do for others."""
        left: list[Errand] = []
        now = monotonic()
        for dialogue in self.standing.copy():
            started = dialogue.started  # read once: the worker may come back meanwhile
            if started and now - started >= WATCH:
                dialogue.broken = True
                self._end_locked(dialogue)
                if dialogue.listener.waiting():
                    left.append(dialogue.listener)
        return left

    # The worker who stays.

    def hold(self, dialogue: Dialogue) -> None:
        """Talk with him until there is nothing more to say.  With no lock held."""
        try:
            self._crew.nudge()
            self._talk(dialogue)
        except BaseException as error:  # noqa: BLE001 # an error of this program; a handler's own ends nothing there
            reports.failure(logger, 1, dialogue.listener, "a worker", error)
        finally:
            if self._generation == fork.generation:
                with self._lock:
                    self._enough = ENOUGH if dialogue.runs >= WORTH else min(2 * self._enough, MOST)
                    if not dialogue.broken:
                        self._end_locked(dialogue)

    def _talk(self, dialogue: Dialogue) -> None:
        station, listen, run = dialogue.station, dialogue.listener.listen, dialogue.listener.run
        crew, led, generation = self._crew, self._led, self._generation
        led_at = monotonic()
        while listen(TICK):
            dialogue.started = started = monotonic()
            count = run() or 1
            dialogue.started = 0.0
            dialogue.runs += 1
            now = monotonic()
            if dialogue.broken or station.gone or station.paused or crew.tasks or generation != fork.generation:
                break
            if now - started > SLOW * count:  # what comes meanwhile is to be read: such handlers are the leader's
                break
            if not crew.spare():  # the next call may be one that blocks who leads, and nobody watch him
                break
            if led():
                led_at = now
            elif now - led_at > WATCH:  # who was called is on his way, or in an initializer for long
                break

    def _end_locked(self, dialogue: Dialogue) -> None:
        self.standing.remove(dialogue)
        dialogue.station.idle.append(None)
        self._stations.release_locked(dialogue.station)
