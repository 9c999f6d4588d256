"""Dialogues: with whom a worker stays, and when he goes; on the test's own thread.

With a real server: ``contract/test_dialogues.py``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from unittest import mock

import pytest

import bbipc
from bbipc import SocketEvent
from bbipc.sockets.stream import CAN_WAIT
from pool.dialogue import ENOUGH, MOST, TICK, WORTH
from pool.lookout import SLOW, WATCH
from pool.stations import Station
from tests.support.forking import FORKS, Forking
from tests.support.leading import READ, Stage, staged

pytestmark = pytest.mark.skipif(not CAN_WAIT, reason="reads can wait on Linux only")
NOTHING = SocketEvent(0)


class Scripted:
    """A listener: hears as often as it is to, and does what a test says when it listens and when it runs."""

    def __init__(self, hears: int) -> None:
        self.hears = hears
        self.heard = 0
        self.pieces = 0
        self.count = 1
        self.listening: Callable[[], object] = int
        self.running: Callable[[], object] = int
        self.runs: list[int] = []
        self.taken = False
        self.station: Station

    def listen(self, seconds: float) -> bool:
        assert seconds == TICK
        self.listening()
        self.heard += 1
        return self.heard <= self.hears

    def take(self, events: SocketEvent) -> None:
        """Outside of a dialogue, where all is the station's."""
        self.taken = True
        self.station.call(self.station.socket, events)

    def run(self) -> int:
        if self.taken:
            self.taken = False
            return 0
        self.runs.append(threading.get_ident())
        self.running()
        return self.count

    def waiting(self) -> int:
        return self.pieces


@pytest.fixture
def stage() -> Iterator[Stage]:
    with staged() as made:
        yield made


def talkative(stage: Stage, hears: int, name: str = "a") -> tuple[Station, Scripted]:
    station, listener = stage.add(name), Scripted(hears)
    station.listener, listener.station = listener, station
    return station, listener


def told(stage: Stage, *names: str) -> None:
    """The leader is told of each, one look at a time."""
    for name in names:
        stage.ready(name)
        stage.round()


def begin(stage: Stage, name: str = "a", times: int = ENOUGH) -> None:
    """So often is it told that at the next look a dialogue begins, if it may."""
    told(stage, *[name] * (times + 1))


def look(stage: Stage) -> bool:
    """One look of the leader, with no task behind it; True: he has polled, so there was no dialogue."""
    polls: list[float | None] = []
    assert stage.stations.poller is not None
    me, original = threading.get_ident(), stage.stations.poller.wait_for_events

    def poll(timeout: float | None) -> list[tuple[bbipc.Socket, SocketEvent]]:
        if threading.get_ident() != me:
            return original(timeout)
        polls.append(timeout)
        stage.queue_task()
        return []

    with mock.patch.object(stage.stations.poller, "wait_for_events", poll):
        stage.lead.perform()
    stage.crew.tasks.clear()
    return bool(polls)


# With whom.


def test_a_client_who_keeps_the_leader_busy_gets_a_worker(stage: Stage) -> None:
    station, listener = talkative(stage, 3)
    during: list[tuple[SocketEvent, bool, bool]] = []
    listener.running = lambda: during.append((stage.armed("a"), station.busy, stage.lead.wanted()))
    begin(stage)
    nudges = stage.crew.nudges
    assert not look(stage)
    assert listener.heard == 4
    assert during == [(NOTHING, True, True)] * 3  # disarmed, and the lead is free
    assert stage.crew.nudges == nudges + 1
    assert (stage.armed("a"), station.busy) == (READ, False)
    assert stage.lead.wanted()


def test_fewer_times_are_not_enough(stage: Stage) -> None:
    _, listener = talkative(stage, 3)
    begin(stage, times=ENOUGH - 1)
    assert look(stage)
    assert not listener.heard


def test_who_is_told_of_others_too_stays_with_nobody(stage: Stage) -> None:
    _, listener = talkative(stage, 3)
    stage.add("b")
    for _ in range(ENOUGH):
        told(stage, "a", "b")
    assert look(stage)
    for _ in range(ENOUGH + 1):
        stage.ready("a", "b")
        stage.round()
    assert look(stage)
    assert not listener.heard


def test_a_client_who_takes_his_time_gets_none(stage: Stage) -> None:
    _, listener = talkative(stage, 3)
    for _ in range(2 * ENOUGH):
        told(stage, "a")
        stage.clock.now += TICK * 1.01
    assert look(stage)
    assert not listener.heard


def without_listener(stage: Stage) -> None:
    stage.made["a"].listener = None


def without_hands(stage: Stage) -> None:
    stage.crew.threads = {1, 2, 3}  # of four


def with_nobody_who_sleeps(stage: Stage) -> None:
    stage.crew.idle = lambda: 0  # type: ignore[method-assign] # all others are still to be started


def with_slow_calls(stage: Stage) -> None:
    stage.lead._pace.apart = 1


def with_spin(stage: Stage) -> None:
    stage.lead._spin = 1e-6


def with_a_pause(stage: Stage) -> None:
    stage.made["a"].pause()


def with_a_cancel(stage: Stage) -> None:
    stage.made["a"].cancel()
    stage.add("b")


def with_a_call_that_still_runs(stage: Stage) -> None:
    stage.made["a"].idle.clear()


@pytest.mark.parametrize(
    "hinder",
    [
        without_listener,
        without_hands,
        with_nobody_who_sleeps,
        with_slow_calls,
        with_spin,
        with_a_pause,
        with_a_cancel,
        with_a_call_that_still_runs,
    ],
)
def test_there_is_none(stage: Stage, hinder: Callable[[Stage], None]) -> None:
    _, listener = talkative(stage, 3)
    begin(stage)
    hinder(stage)
    assert look(stage)
    assert not listener.heard
    stage.made["a"].idle.append(None)


def test_short_ones_have_to_be_earned(stage: Stage) -> None:
    """ENOUGH, then twice as often, and so on up to MOST; one that was worth it, and ENOUGH is enough again."""
    _, listener = talkative(stage, 0)
    needed = ENOUGH
    while needed <= MOST:
        begin(stage, times=needed - 1)
        assert look(stage), needed
        begin(stage, times=needed)
        assert not look(stage), needed
        needed *= 2
    listener.hears, listener.heard = WORTH, 0
    begin(stage, times=MOST)
    assert not look(stage)
    begin(stage)
    assert not look(stage)


def test_only_who_has_a_listener_is_remembered(stage: Stage) -> None:
    """Others would be kept, and their descriptors with them, behind a cancel and until somebody else is ready."""
    talkative(stage, 1)
    stage.add("b")
    told(stage, "a")
    remembered = [stage.lead._dialogues.last]
    told(stage, "b")
    remembered.append(stage.lead._dialogues.last)
    assert remembered == [stage.sockets["a"], None]


# For how long.


def ends_after(stage: Stage, listener: Scripted, runs: int) -> None:
    begin(stage)
    assert not look(stage)
    assert len(listener.runs) == runs
    station = listener_station(stage, listener)
    assert station.busy is station.gone  # whoever ends a station keeps its token
    assert not station.held


def listener_station(stage: Stage, listener: Scripted) -> Station:
    return next(station for station in stage.made.values() if station.listener is listener)


def test_a_slow_handler_ends_it(stage: Stage) -> None:
    _, listener = talkative(stage, 9)

    def run() -> None:
        if len(listener.runs) == 2:
            stage.clock.now += SLOW * 1.01

    listener.running = run
    ends_after(stage, listener, 2)


def test_a_task_ends_it(stage: Stage) -> None:
    _, listener = talkative(stage, 9)
    listener.running = stage.queue_task
    ends_after(stage, listener, 1)
    assert stage.armed("a") == READ


def test_a_pause_ends_it(stage: Stage) -> None:
    station, listener = talkative(stage, 9)
    listener.running = station.pause
    ends_after(stage, listener, 1)
    assert stage.armed("a") == NOTHING
    station.resume()
    assert stage.armed("a") == READ


def test_a_cancel_ends_it(stage: Stage) -> None:
    station, listener = talkative(stage, 9)
    listener.running = station.cancel
    ends_after(stage, listener, 1)
    assert not stage.stations.table


def test_a_close_is_told_when_it_is_over(stage: Stage) -> None:
    _, listener = talkative(stage, 9)
    told_in_time: list[list[tuple[str, str]]] = []

    def run() -> None:
        stage.sockets["a"].close()
        stage.bert(stage.lead.perform)
        told_in_time.append(stage.closes.copy())

    listener.running = run
    ends_after(stage, listener, 1)
    stage.lead.perform()
    assert told_in_time == [[]]
    assert stage.closes == [("a", "SocketClosedError")]


def test_it_ends_where_nobody_else_is_free(stage: Stage) -> None:
    _, listener = talkative(stage, 9)

    def run() -> None:
        stage.crew.threads = {1, 2, 3, 4} if len(listener.runs) == 3 else {1, 2, 3}

    listener.running = run
    ends_after(stage, listener, 3)


def test_it_ends_where_nobody_leads_for_long(stage: Stage) -> None:
    """Who was called may be in an initializer."""
    _, listener = talkative(stage, 9)
    moments = [0.0, WATCH * 0.9, 0.0, WATCH * 0.9, WATCH * 0.2]

    def run() -> None:
        stage.led_by_another(len(listener.runs) == 3)
        stage.clock.now += moments[len(listener.runs) - 1]

    listener.running = run
    with mock.patch("pool.dialogue.SLOW", 1.0):
        ends_after(stage, listener, 5)


def test_many_requests_at_once_may_take_longer(stage: Stage) -> None:
    _, listener = talkative(stage, 9)
    listener.count = 3

    def run() -> None:
        stage.clock.now += SLOW * (2.9 if len(listener.runs) < 4 else 3.1)
        stage.led_by_another(True)

    listener.running = run
    ends_after(stage, listener, 4)


@pytest.mark.parametrize("slow", [False, True])
@FORKS[0]
@FORKS[1]
def test_a_child_that_returns_from_it(stage: Stage, slow: bool) -> None:
    """A handler has forked, while somebody else had the lock that the child finds held for ever (HAZARDS 55)."""
    station, listener = talkative(stage, 9)
    begin(stage)
    forking = Forking(stage.stations.lock)

    def run() -> None:
        forking()
        stage.clock.now += SLOW * 1.01 if slow else 0.0

    listener.running = lambda: run() if len(listener.runs) == 2 else None
    with forking.child_ends():
        look(stage)
        forking.leave()
    assert len(listener.runs) == (2 if slow else 9)
    assert (stage.armed("a"), station.busy) == (READ, False)


def test_what_goes_wrong_ends_it_and_is_told(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    _, listener = talkative(stage, 9)

    def run() -> None:
        raise SystemExit("of this test")

    listener.running = run
    ends_after(stage, listener, 1)
    assert "of this test" in caplog.text
    assert stage.armed("a") == READ


# Blocked.


def test_a_blocked_worker_keeps_nobody_waiting(stage: Stage) -> None:
    """1. he runs; 2. the leader finds that, WATCH later: the socket is armed, another runs what is left;
    3. a call begins there; 4. he comes back, and lets go of nothing."""
    station, listener = talkative(stage, 9)
    looks: list[tuple[SocketEvent, bool]] = []

    def block() -> None:
        if len(listener.runs) > 1:
            listener.pieces = 0
            return
        listener.pieces = 1
        stage.clock.now += WATCH * 0.9
        stage.bert(stage.round)
        looks.append((stage.armed("a"), station.busy))
        stage.clock.now += WATCH * 0.2
        stage.bert(stage.round)
        looks.append((stage.armed("a"), station.busy))
        stage.bert(stage.round)
        station.idle.clear()

    listener.running = block
    begin(stage)
    assert not look(stage)
    assert looks == [(NOTHING, True), (READ, False)]
    assert len(set(listener.runs)) == len(listener.runs) == 2
    assert listener.heard == 1
    assert station.busy
    station.idle.append(None)
    assert not stage.lead._dialogues.standing


def test_a_leader_beside_a_dialogue_looks_around(stage: Stage) -> None:
    _, listener = talkative(stage, 1)
    stage.add("b")
    limits: list[float | None] = []

    def poll(timeout: float | None) -> list[tuple[bbipc.Socket, SocketEvent]]:
        limits.append(timeout)
        stage.queue_task()
        return []

    def lead_beside() -> None:
        with mock.patch.object(stage.stations.poller, "wait_for_events", poll):
            stage.lead.perform()
        stage.crew.tasks.clear()

    listener.running = lambda: stage.bert(lead_beside)
    begin(stage)
    assert not look(stage)
    lead_beside()
    assert limits == [WATCH, None]


def test_who_only_listens_is_not_blocked(stage: Stage) -> None:
    _, listener = talkative(stage, 2)

    def listen() -> None:
        stage.clock.now += 10 * WATCH
        stage.led_by_another(False)
        stage.bert(stage.round)
        stage.led_by_another(True)  # and leads on

    listener.listening = listen
    begin(stage)
    assert not look(stage)
    stage.led_by_another(False)
    assert listener.heard == 3
