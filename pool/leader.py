"""Leader: readiness turned into calls on workers, without a thread between.

Law of this file: it decides which worker waits for events, and which makes the calls.  Everything runs on workers;
calls are made with no lock held, never two at once for one station.

Who polls.  A hand-over to a worker costs a wake-up, 50 us where a small request takes 3.  So there is none: one worker
at a time is the *leader*.  He waits for events, makes the calls of the batch himself, one after the other, and waits
again.  While all is quick no socket is disarmed: nobody polls meanwhile, so nobody is told of the same event twice.

Nobody waits behind a slow call.

1. While a leader makes calls, one idle worker *watches* him: every WATCH seconds he looks whether the leader still
   makes the same call as before (``Term.steps``).  If so he takes the lead: the rest of the batch, then the poll; and
   for a while looks come every QUICK_WATCH seconds.  (The watcher sleeps without limit when nothing has happened for a
   while; a leader nudges one awake at his next batch, and before what somebody else has left to him.)
2. A leader who finds the lead lost when his call returns is a worker like any other.
3. Where calls are slow on the average (``pace.py``) they are made *apart*: the leader disarms the socket and lays down
   the lead before he makes the call, and nudges the next worker.

Calls of the usual kind are made in ``term.py``, without a lock; what is unusual, here.  A leader who took over may be
told of the socket whose call still runs: he disarms it then (``stations.py``).  One who is told of the same client
again and again stays with him, and lays down the lead (``dialogue.py``).

Errands.  What a call has found to do, and should not do while it holds its socket, it leaves as an *errand*: the leader
runs it right behind the call.  An errand has several pieces (requests, say) and may be run by several workers at once,
each taking pieces.  If one blocks, whoever takes the lead runs the same errand for the pieces that are left; where
calls seem to be slow each worker that begins an errand leaves it for the next.  Errands without end starve no socket
(``errands.py``).

Who guards what: all but the terms belongs to the lock of the stations; the order is this one, the poller's, a socket's.
Nothing is asked of the crew while it is held, nor the other way round: neither comes first.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial

from bbipc.errors import PollerClosedError
from bbipc.sockets import fork
from pool.crew import Crew
from pool.dialogue import Dialogues
from pool.errands import Errands
from pool.lookout import SLOW, WATCH, Lookout
from pool.pace import Pace
from pool.station_calls import farewell, make_call, run_errand
from pool.stations import Station, Stations
from pool.tasks import AnyTask, Errand
from pool.term import Report, Term


class Leadership:
    """The duty of one crew's workers: to wait for the stations' events, and to make their calls."""

    def __init__(self, crew: Crew, stations: Stations, spin: float = 0.0) -> None:
        self._spin = spin
        self._awake_until = 0.0  # until then the leader does not sleep
        self._crew = crew
        self._stations = stations
        self._lock = stations.lock
        self._ready: deque[Report] = deque()  # told by the poller, no call made yet
        self._term = Term(0)  # the last one; nobody leads where that is lost
        self._term.lost = True
        self._pace = Pace()
        self._errands = Errands()
        self._lookout = Lookout()
        self._dialogues = Dialogues(crew, stations, lambda: not self._term.lost)
        self._generation = fork.generation

    # What the crew asks; see duty.py.

    def perform(self) -> AnyTask | None:
        """Lead, if nobody else does, for as long as the lead is not lost and there is no task."""
        term = self._begin(threading.get_ident())
        if term is None:
            return None
        try:
            return self._lead(term)
        except PollerClosedError:  # the pool is shut down
            return None
        finally:
            self._lay_down(term)

    def wanted(self) -> bool:
        """Whether somebody has to lead, and nobody does."""
        with self._lock:
            return self._term.lost and self._something_to_do_locked() and not self._crew.ending

    def begin_watch(self) -> float | None:
        """About to sleep: for how many seconds at most, as a watcher; ``None``: without limit."""
        me = threading.get_ident()
        with self._lock:
            term = self._term
            leads, polling = not term.lost, term.polling
            pace = self._lookout.look_locked(me, term.steps, leads=leads, polling=polling)
            if pace is None and leads and polling and not term.polling:  # since: and he has seen that somebody watches
                pace = self._lookout.look_locked(me, term.steps, leads=True, polling=False)
            return pace

    def leave(self) -> None:
        """About to run a task: somebody else has to watch."""
        lookout, me = self._lookout, threading.get_ident()
        if lookout.watcher != me:
            return
        with self._lock:
            if lookout.watcher != me:
                return
            lookout.rest_locked()  # first: a leader who ends his wait looks afterwards whether somebody watches
            lookout.called = call = not (self._term.lost or self._term.polling)
        if call and not self._crew.nudge():
            lookout.called = False

    def follow_up(self, errand: Errand) -> None:
        """Have *errand* run; any thread.  By the caller himself, if he leads."""
        term = self._own_term()
        if term is not None and (station := term.calling) is not None and station.errand is None:
            station.errand = errand
            return
        with self._lock:
            nobody, polling, term = self._term.lost, self._term.polling, self._own_term()
            by_itself = term is not None and term.running is not None
            self._errands.leave_locked(errand, soon=polling or not (by_itself or self._pace.apart))
        if nobody:
            self._crew.nudge()
        elif polling:
            self._stations.wake()

    def backlog(self) -> int:
        """How many events were told and wait for their calls."""
        return len(self._ready)

    def interrupt(self) -> None:
        """There is a task, and nobody but the leader to take it."""
        if self._term.polling:  # else he looks for tasks before he waits
            self._stations.wake()

    def dismiss(self) -> None:
        """A worker ends, because the crew does."""
        self.end(Station.end)

    def end(self, how: Callable[[Station], None]) -> None:
        """End all stations, each by *how*; those whose call is running end when it returns."""
        for station in self._stations.close():
            farewell(station, how)

    # The lead.

    def _own_term(self) -> Term | None:
        """The caller's, if he leads."""
        term = self._term
        return None if term.lost or term.ident != threading.get_ident() else term

    def _begin(self, me: int) -> Term | None:
        """Take the lead, if nobody has it, or its holder is blocked; ``None``: not now."""
        lookout = self._lookout
        with self._lock:
            last = self._term
            if last.lost:
                if self._crew.ending or not self._something_to_do_locked():
                    return None
            elif lookout.watcher != me or last.polling or not lookout.stands_still_locked(last.steps):
                return None
            else:
                lookout.note_blocked_locked()
                last.lost = True  # first: see ``term.py``
                if last.running is not None and last.running.waiting():
                    self._errands.leave_locked(last.running)
            if lookout.watcher in (0, me):
                lookout.rest_locked()
            self._term = Term(me, last)
            return self._term

    def _something_to_do_locked(self) -> bool:
        left = self._ready or self._errands.due or self._errands.later
        return bool(left or len(self._stations) or self._stations.departed or self._stations.closed_sockets)

    def _lead(self, term: Term) -> AnyTask | None:
        ready, errands, crew, stations = self._ready, self._errands.due, self._crew, self._stations
        if (ready or errands) and not self._pace.apart:  # left by somebody whose watcher we may have been
            self._call_watch()
        term.worked_until = time.monotonic()
        while (not ready or self._work_off(term)) and (not errands or self._run_errands(term)):
            if (stations.departed or stations.closed_sockets) and not self._tell_departed(term):
                return None
            # Behind a poll, and what came of it: tasks that never cease do not starve the sockets.
            task = crew.try_take() if crew.tasks and term.polled else None
            if task is not None or crew.ending or not self._poll(term):
                return task
        return None

    def _lay_down(self, term: Term) -> None:
        """Give up the lead; somebody else takes it, if anybody is free."""
        if self._generation != fork.generation:
            return
        with self._lock:
            if term.lost:
                return
            term.lost = True
        if self.wanted():
            self._crew.nudge()

    def _poll(self, term: Term) -> bool:
        """Wait for events; False: the lead is lost, or was laid down, or there is nothing to wait for."""
        stations, dialogues, dialogue, pause = self._stations, self._dialogues, None, None
        errands = self._errands
        with self._lock:
            poller = stations.poller
            if term.lost:
                return False
            if stations.departed or stations.closed_sockets:
                return True
            if errands.later or stations.unarmed or dialogues.standing:
                pause = self._prepare_locked()
            if poller is None or not stations.table:
                return bool(errands.due)  # else somebody else leads when there is something
            if dialogues.due() and not (self._pace.apart or self._spin or errands.due or self._crew.tasks):
                dialogue = dialogues.begin_locked()
            if dialogue is None:
                term.polling = True
            else:
                term.lost = True
            term.since = stations.changes
            errands.begun = 0
        if dialogue is not None:
            dialogues.hold(dialogue)
            return False
        batch: list[Report] = []
        try:
            # Who puts a task down looks afterwards whether somebody polls: one of us sees the other.
            at_once = bool(self._crew.tasks or errands.due or self._crew.ending)
            at_once = at_once or (self._spin > 0 and time.monotonic() < self._awake_until)
            batch = poller.wait_for_events(0 if at_once else pause)
        finally:
            # In this order: who is called to take over finds what was told, and then nobody who waits.
            self._ready.extend(batch)
            term.polled = True
            term.steps += 1
            term.polling = False
        if len(batch) == 1 or dialogues.last is not None:
            dialogues.told(batch[0][0] if len(batch) == 1 else None, term.worked_until)
        if batch:
            self._call_watch()
        return True

    def _prepare_locked(self) -> float | None:
        """Before a wait: what comes seldom; how long to wait at most, ``None``: without limit."""
        dialogues, pause = self._dialogues, self._stations.try_again_locked()
        self._errands.look_locked()
        if dialogues.standing:
            self._errands.look_locked(dialogues.look_locked())
            pause = WATCH
        return pause

    def _call_watch(self) -> None:
        """User code is about to be called: somebody is to watch."""
        if not (self._lookout.called or self._lookout.watcher):
            self._lookout.called = True
            if not self._crew.nudge():  # perhaps there will be one later
                self._lookout.called = False

    def _work_off(self, term: Term) -> bool:
        """Make the calls of all that is ready, each with its errand; False: the lead is lost, or was laid down."""
        ready, count, started = self._ready, 0, time.monotonic()
        while ready and not term.lost:
            report: Report | None = None
            if not self._pace.apart:
                made, report = term.make_calls(ready, self._stations, self._finish, self.follow_up)
                count += made
            if self._generation != fork.generation:  # a call has forked, and returned in the child, without workers
                return False
            if report is not None or ready:
                careful = self._call_with_care(term, report)
                if careful is None:
                    return False
                count += careful
        self._judge(term, count, started)
        return not term.lost

    def _call_with_care(self, term: Term, report: Report | None) -> int | None:
        """Make the call of *report*, or of the next one; how many calls, and pieces of errands, that were.

        ``None``: it was made apart, and the lead laid down; or it has forked, and this is the child.
        """
        with self._lock:
            if term.lost:  # what was told, and not called for, will be told again
                return 0
            try:
                socket, events = report or self._ready.popleft()
            except IndexError:  # somebody who has lost the lead was about to take it
                return 0
            term.steps += 1
            station = self._stations.table.get(socket)
            if station is None:
                self._stations.drop_locked(socket)
                return 0
            apart = bool(self._pace.apart or station.paused or not station.begin())
            if apart:
                if not self._stations.hold_locked(station):
                    return 0
                term.lost = True
            else:
                term.calling = station
        if apart:
            self._apart(partial(make_call, station, socket, events), station)
            return None
        make_call(station, socket, events)
        if self._generation != fork.generation:
            return None
        term.calling = None
        errand, station.errand = station.errand, None
        station.idle.append(None)
        count = 1 + self._finish(term, station, errand)
        return None if self._generation != fork.generation else count

    def _finish(self, term: Term, station: Station, errand: Errand | None) -> int:
        """The call of *station* has returned, and has left *errand*; how many pieces of that were done."""
        with self._lock:
            self._stations.release_locked(station)
            if errand is not None and not term.lost:
                term.running = errand
                term.steps += 1
        if errand is None:
            return 0
        if term.lost:
            self.follow_up(errand)
            return 0
        count = run_errand(errand)
        term.running = None
        return count

    def _run_errands(self, term: Term) -> bool:
        """Run what the calls have left; False: the lead is lost, or was laid down."""
        if not self._errands.due:
            return True
        count, started = 0, time.monotonic()
        while self._generation == fork.generation:
            with self._lock:
                if term.lost:
                    return False
                term.running = None
                errand = self._errands.take_locked()
                if errand is None:
                    break
                term.steps += 1
                if apart := bool(self._pace.apart):
                    term.lost = True
                    if errand.waiting() > 1:
                        self._errands.leave_locked(errand)
                else:
                    term.running = errand
            if apart:
                self._apart(partial(run_errand, errand))
                return False
            self._call_watch()  # it may have come since somebody was called to watch
            count += run_errand(errand)
        else:
            return False
        self._judge(term, count, started)
        return True

    def _judge(self, term: Term, count: int, started: float) -> None:
        """*count* calls were made since *started*: probe, if that was slow; stay awake for a while."""
        term.worked_until = now = time.monotonic()
        if count:
            self._awake_until = now + self._spin
            if now - started > SLOW * count and self._crew.max_workers > 1:
                with self._lock:
                    self._pace.probe_locked()

    def _apart(self, action: Callable[[], int | None], station: Station | None = None) -> None:
        """Run an errand, or make *station*'s call, while somebody else leads."""
        started, count = time.monotonic(), 1
        try:
            self._crew.nudge()
            count = action() or 1
        finally:
            seconds = time.monotonic() - started
            if self._generation == fork.generation:
                with self._lock:
                    if station is not None:
                        station.idle.append(None)
                        self._stations.release_locked(station)
                    self._pace.spend_locked(count, seconds)

    def _tell_departed(self, term: Term) -> bool:
        """Tell of the stations that have ended; False: the lead is lost, and somebody else does the rest."""
        while self._generation == fork.generation:
            with self._lock:
                station = None if term.lost else self._stations.take_departed_locked()
                term.steps += 1
            if station is None:
                return not term.lost
            self._call_watch()
            farewell(station, Station.end)
        return False
