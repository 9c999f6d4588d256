"""Leader: readiness turned into calls on workers, without a thread between.

Law of this file: it decides which worker waits for events, and which makes the calls.  Everything runs on workers;
calls are made with no lock held, never two at once for one station.

Who polls.  A hand-over to a worker costs a wake-up, 50 us where a small request takes 3.  So there is none: one worker
at a time is the *leader*.  He waits for events, makes the calls of the batch himself, one after the other, and waits
again.  While all is quick no socket is disarmed: nobody polls meanwhile, so nobody is told of the same event twice.

Nobody waits behind a slow call.

1. While a leader makes calls, one idle worker *watches* him: every WATCH seconds he looks whether the leader still
   makes the same call as before.  If so he takes the lead: the rest of the batch, then the poll; and for a while looks
   come every QUICK_WATCH seconds.  (The watcher sleeps without limit when nothing has happened for a while; a leader
   nudges one awake at his next batch, and before what somebody else has left to him.)
2. A leader who finds the lead lost when his call returns is a worker like any other.
3. Where calls seem to be slow, the next PROBE of them are made *apart*: the leader disarms the socket and lays down
   the lead before he makes the call, and nudges the next worker.  Each of these uses one up, and earns as many more as
   SLOW goes into its time, SPREAD at most: so calls that are slow on the average run side by side at once, without
   waiting for a watcher, and where most are quick the leader makes them himself again.

   A processor that was busy elsewhere makes a call look slow, too; hence the probe, and hence the watcher does not
   trust a look that came late.  So does a thread that waits for the interpreter's lock, or for a leader who has the
   one processor, and making calls apart gives more such threads.  Where one slow call earned SPREAD more, as once, a
   flood of connects kept a server at that for whole seconds, at half of its pace: answers took 300 ms, not 2.

A leader who took over may be told of the socket whose call still runs: he disarms it then (``stations.py``).  One who
is told of the same client again and again stays with him, and lays down the lead (``dialogue.py``).

Errands.  What a call has found to do, and should not do while it holds its socket, it leaves as an *errand*: the leader
runs it right behind the call.  An errand has several pieces (requests, say) and may be run by several workers at once,
each taking pieces.  If one blocks, whoever takes the lead runs the same errand for the pieces that are left; where
calls seem to be slow each worker that begins an errand leaves it for the next.  What an errand leaves itself comes
behind the next look at the sockets, so one without end starves nobody.

Who guards what: everything here belongs to the lock of the stations; the order is this one, the poller's, a socket's.
Nothing is asked of the crew while it is held, nor the other way round: neither comes first.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final, cast

from bbipc.errors import PollerClosedError
from bbipc.events import SocketEvent
from bbipc.sockets import fork
from bbipc.sockets.base import Socket
from pool.crew import Crew
from pool.dialogue import Dialogues
from pool.lookout import SLOW, WATCH, Lookout
from pool.station_calls import failed, farewell, make_call, run_errand
from pool.stations import Station, Stations
from pool.tasks import AnyTask, Errand

#: seconds until the kernel is asked again for what it had no room for
RETRY: Final = 0.05
#: so many calls are made apart when one has seemed slow, and so many at most are ahead when they are
PROBE: Final = 4
SPREAD: Final = 64


class Leadership:
    """The duty of one crew's workers: to wait for the stations' events, and to make their calls."""

    def __init__(self, crew: Crew, stations: Stations, spin: float = 0.0) -> None:
        self._spin = spin
        self._awake_until = 0.0  # until then the leader does not sleep
        self._crew = crew
        self._stations = stations
        self._lock = stations.lock
        self._ready: deque[tuple[Socket, SocketEvent]] = deque()  # told by the poller, no call made yet
        self._leader = 0  # the thread's ident; 0: nobody
        self._polling = False  # the leader waits for events
        self._polled = False  # he has waited, or looked, since he began to lead
        self._ready_since = 0  # the changes of the stations when he was told of what is ready
        self._progress = 0  # how many polls and calls have begun
        self._spread = 0.0  # so many calls are still to be made apart
        self._errands: deque[Errand] = deque()
        self._later: deque[Errand] = deque()  # left by errands: behind the next look at the sockets
        self._running: Errand | None = None  # by the leader
        self._calling: Station | None = None  # whose call the leader makes
        self._lookout = Lookout()
        self._dialogues = Dialogues(crew, stations, lambda: self._leader)
        self._generation = fork.generation

    # What the crew asks; see duty.py.

    def perform(self) -> AnyTask | None:
        """Lead, if nobody else does, for as long as the lead is not lost and there is no task."""
        me = threading.get_ident()
        if not self._begin(me):
            return None
        try:
            return self._lead(me)
        except PollerClosedError:  # the pool is shut down
            return None
        finally:
            self._lay_down(me)

    def wanted(self) -> bool:
        """Whether somebody has to lead, and nobody does."""
        with self._lock:
            return not self._leader and self._something_to_do_locked() and not self._crew.ending

    def begin_watch(self) -> float | None:
        """About to sleep: for how many seconds at most, as a watcher; ``None``: without limit."""
        me = threading.get_ident()
        with self._lock:
            return self._lookout.look_locked(me, self._progress, leads=bool(self._leader), polling=self._polling)

    def leave(self) -> None:
        """About to run a task: somebody else has to watch."""
        lookout = self._lookout
        if lookout.watcher != threading.get_ident():
            return
        with self._lock:
            lookout.watcher = 0
            lookout.called = call = bool(self._leader) and not self._polling
        if call and not self._crew.nudge():
            lookout.called = False

    def follow_up(self, errand: Errand) -> None:
        """Have *errand* run; any thread.  By the caller himself, if he leads."""
        station = self._calling  # before the look at who leads: so it is the caller's own, if he leads
        if station is not None and self._leader == threading.get_ident() and station.errand is None:
            station.errand = errand
            return
        with self._lock:
            leads = self._leader == threading.get_ident()
            (self._later if leads and self._running is not None else self._errands).append(errand)
            polling, nobody = self._polling, not self._leader
        if polling:
            self._stations.wake()
        elif nobody:
            self._crew.nudge()

    def backlog(self) -> int:
        """How many events were told and wait for their calls."""
        return len(self._ready)

    def interrupt(self) -> None:
        """There is a task, and nobody but the leader to take it."""
        with self._lock:
            polling = self._polling
        if polling:
            self._stations.wake()

    def dismiss(self) -> None:
        """A worker ends, because the crew does."""
        self.end(Station.end)

    def end(self, how: Callable[[Station], None]) -> None:
        """End all stations, each by *how*; those whose call is running end when it returns."""
        for station in self._stations.close():
            farewell(station, how)

    # The lead.

    def _begin(self, me: int) -> bool:
        """Take the lead, if nobody has it, or its holder is blocked."""
        lookout = self._lookout
        with self._lock:
            if self._leader == 0:
                if self._crew.ending or not self._something_to_do_locked():
                    return False
            elif lookout.watcher != me or not self._blocked_locked():
                return False
            else:
                lookout.note_blocked_locked()
                if self._running is not None and self._running.waiting():
                    self._errands.appendleft(self._running)
            self._leader, self._polled, self._running, self._calling = me, False, None, None
            if lookout.watcher in (0, me):
                lookout.rest_locked()
            return True

    def _something_to_do_locked(self) -> bool:
        left = self._ready or self._errands or self._later
        return bool(left or len(self._stations) or self._stations.some_departed())

    def _lead(self, me: int) -> AnyTask | None:
        if (self._ready or self._errands) and not self._spread:  # left by somebody whose watcher we may have been
            self._call_watch()
        while self._work_off(me) and self._run_errands(me):
            if self._stations.some_departed() and not self._tell_departed(me):
                return None
            # Behind a poll, and what came of it: tasks that never cease do not starve the sockets.
            task = self._crew.try_take() if self._crew.tasks and self._polled else None
            if task is not None or self._crew.ending or not self._poll(me):
                return task
        return None

    def _blocked_locked(self) -> bool:
        """Whether the leader still makes the call that he made when the watcher looked last."""
        return not self._polling and self._lookout.stands_still_locked(self._progress)

    def _lay_down(self, me: int) -> None:
        """Give up the lead; somebody else takes it, if anybody is free."""
        if self._generation != fork.generation:
            return
        with self._lock:
            if self._leader != me:
                return
            self._leader = 0
        if self.wanted():
            self._crew.nudge()

    def _poll(self, me: int) -> bool:
        """Wait for events; False: the lead is lost, or was laid down, or there is nothing to wait for."""
        with self._lock:
            dialogues, poller = self._dialogues, self._stations.poller
            if self._leader != me:
                return False
            if self._stations.some_departed():
                return True
            pause = None
            if self._stations.unarmed:
                self._stations.try_again_locked()
                pause = RETRY if self._stations.unarmed else None
            if self._later:
                self._errands.extend(self._later)
                self._later.clear()
            if dialogues.standing:
                self._errands.extend(dialogues.look_locked())
                pause = WATCH
            if poller is None or not len(self._stations):
                if not self._errands:
                    self._leader = 0
                return bool(self._errands)
            hurried = self._spread or self._spin or self._errands or self._crew.tasks
            dialogue = None if hurried else dialogues.begin_locked()
            self._leader, self._polling = (me, True) if dialogue is None else (0, False)
            self._progress += 1
            self._ready_since = self._stations.changes
        if dialogue is not None:
            dialogues.hold(dialogue)
            return False
        batch: list[tuple[Socket, SocketEvent]] = []
        try:
            now = time.monotonic()
            # Who puts a task down looks afterwards whether somebody polls: one of us sees the other.
            at_once = self._crew.tasks or self._errands or self._crew.ending or now < self._awake_until
            batch = poller.wait_for_events(0 if at_once else pause)
        finally:
            with self._lock:
                self._polling, self._polled = False, True
                self._progress += 1
                self._ready.extend(batch)
        dialogues.told(batch[0][0] if len(batch) == 1 else None, now)
        if batch or self._errands:
            self._call_watch()
        return True

    def _call_watch(self) -> None:
        """User code is about to be called: somebody is to watch."""
        if not (self._lookout.called or self._lookout.watcher):
            self._lookout.called = True
            if not self._crew.nudge():  # perhaps there will be one later
                self._lookout.called = False

    def _work_off(self, me: int) -> bool:  # noqa: PLR0912 # every frame more is paid by every call
        """Make the calls of all that is ready, each with its errand; False: the lead is lost, or was laid down."""
        lock, ready, stations, table = self._lock, self._ready, self._stations, self._stations.table
        station: Station | None = None
        apart: Station | None = None
        errand: Errand | None = None
        told, quick = cast(tuple[Socket, SocketEvent], ()), True
        count, started = len(ready), time.monotonic()
        while self._generation == fork.generation:
            with lock:
                if station is not None:
                    station.busy = False
                    errand, station.errand = station.errand, None
                    if station.held or station.farewell is not None:
                        stations.release_locked(station)
                    station = None
                mine = self._leader == me
                if not mine:
                    break
                self._calling, self._running = None, errand
                self._progress += 1
                if errand is None:
                    if not ready:
                        break
                    told = ready.popleft()
                    station = table.get(told[0])
                    if station is None:
                        stations.drop_locked(told[0])
                        continue
                    quick = stations.changes == self._ready_since and not stations.closed_sockets
                    if station.busy or station.paused or self._spread:
                        apart, station = self._part_locked(station), None
                    else:
                        apart = None
                        station.busy, self._calling = True, station
            if errand is not None:
                count += run_errand(errand)
                errand = None
            elif apart is not None:
                self._apart(partial(make_call, apart, *told), apart)
                return False
            elif station is not None:
                if quick:
                    try:
                        station.call(*told)
                    except BaseException as error:  # noqa: BLE001 # whatever user code raises, it ends nothing
                        failed(station, error)
                else:
                    make_call(station, *told)
        else:  # a call has forked, and returned in the child, where there are no workers
            return False
        if errand is not None:
            self.follow_up(errand)
        self._judge(count, started)
        return mine

    def _run_errands(self, me: int) -> bool:
        """Run what the calls have left; False: the lead is lost, or was laid down."""
        if not self._errands:
            return True
        if not self._spread:  # one may have come since somebody was called to watch
            self._call_watch()
        count, started = 0, time.monotonic()
        while self._generation == fork.generation:
            with self._lock:
                if self._leader != me:
                    return False
                self._running = None
                if not self._errands:
                    break
                errand = self._errands.popleft()
                self._progress += 1
                if apart := bool(self._spread):
                    self._leader = 0
                    if errand.waiting() > 1:
                        self._errands.append(errand)
                else:
                    self._running = errand
            if apart:
                self._apart(partial(run_errand, errand))
                return False
            count += run_errand(errand)
        else:
            return False
        self._judge(count, started)
        return True

    def _judge(self, count: int, started: float) -> None:
        """*count* calls were made since *started*: probe, if that was slow; stay awake for a while."""
        if count:
            now = time.monotonic()
            self._awake_until = now + self._spin
            if now - started > SLOW * count and self._crew.max_workers > 1:
                with self._lock:
                    self._spread = max(self._spread, PROBE)

    def _part_locked(self, station: Station) -> Station | None:
        """*station*, if its call may be made: apart, so the lead is laid down."""
        apart = self._stations.hold_locked(station)
        if apart is not None:
            self._leader = 0
        return apart

    def _apart(self, action: Callable[[], int | None], station: Station | None = None) -> None:
        """Run an errand, or make *station*'s call, while somebody else leads."""
        started, count = time.monotonic(), 1
        try:
            self._crew.nudge()
            count = action() or 1
        finally:
            earned = (time.monotonic() - started) / (SLOW * count)
            if self._generation == fork.generation:
                with self._lock:
                    if station is not None:
                        station.busy = False
                        self._stations.release_locked(station)
                    if self._spread:  # or else others were quick: not revived by one that has waited for their leader
                        self._spread = min(max(self._spread - 1 + earned, 0.0), SPREAD)

    def _tell_departed(self, me: int) -> bool:
        """Tell of the stations that have ended; False: the lead is lost, and somebody else does the rest."""
        while self._generation == fork.generation:
            with self._lock:
                mine = self._leader == me
                station = self._stations.take_departed_locked() if mine else None
                self._progress += 1
            if station is None:
                return mine
            self._call_watch()
            farewell(station, Station.end)
        return False
