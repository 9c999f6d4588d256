"""Leadership: who polls, who calls, who watches; on the test's own thread, with a crew that only writes down.

``perform`` returns when the crew has a task for it, so with one task queued it makes exactly one round: work off, look,
work off, take the task, lay down the lead.  What another worker would do meanwhile is done by a thread that the test
starts, and waits for, inside a call.
"""

from __future__ import annotations

import errno
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import cast
from unittest import mock

import pytest

import bbipc
from bbipc import SocketEvent
from pool.crew import Crew
from pool.lookout import LOOKS, QUICK_LOOKS, QUICK_WATCH, SLOW, WATCH, Lookout
from pool.pace import PROBE, SPREAD
from pool.stations import Station
from pool.tasks import AnyTask, Task
from tests.support.leading import READ, Clock, ScriptedCrew, Stage, staged
from tests.support.makers import PATIENCE, Worker, wait_until_asleep


@pytest.fixture
def stage() -> Iterator[Stage]:
    with staged() as made:
        yield made


# A round.


def test_nothing_to_lead(stage: Stage) -> None:
    assert not stage.lead.wanted()
    assert stage.lead.perform() is None


def test_one_worker_makes_the_calls_of_his_batch(stage: Stage) -> None:
    for name in "abc":
        stage.add(name)
    assert stage.lead.wanted()
    stage.ready("a", "c")
    stage.during["a"] = lambda: stage.calls.append(("armed", stage.armed("a")))
    task = stage.queue_task()
    assert stage.lead.perform() is task
    assert sorted(stage.names()) == ["a", "armed", "c"]
    assert dict(stage.calls)["armed"] == READ  # nobody polls meanwhile, so the kernel is left alone
    assert stage.lead.wanted()  # he has laid down the lead for the task


def test_who_takes_a_task_calls_for_the_next_leader(stage: Stage) -> None:
    stage.add("a")
    stage.round()
    assert stage.crew.nudges == 1  # there was no batch, so nobody was called to watch


def test_a_batch_calls_for_one_watcher(stage: Stage) -> None:
    stage.add("a")
    stage.ready("a")
    during: list[int] = []
    stage.during["a"] = lambda: during.append(stage.crew.nudges)
    stage.round()
    assert during == [1]


def test_a_watcher_who_could_not_be_had_is_called_for_again(stage: Stage) -> None:
    """The system had no thread just then: behind the next batch somebody asks once more."""
    stage.add("a")
    called: list[bool] = []
    stage.during["a"] = lambda: called.append(stage.lead._lookout.called)
    for success in (False, True):
        with mock.patch.object(stage.crew, "nudge", return_value=success):
            stage.ready("a")
            stage.round()
    assert called == [False, True]


def test_the_end_of_the_crew_ends_the_lead(stage: Stage) -> None:
    stage.add("a")
    stage.ready("a")
    stage.crew.ending = True
    assert stage.lead.perform() is None
    assert not stage.calls
    assert not stage.lead.wanted()


def test_a_poll_comes_before_a_task(stage: Stage) -> None:
    """However many tasks there are: each round looks at the sockets first."""
    stage.add("a")
    for _ in range(5):
        stage.ready("a")
        stage.queue_task()
        stage.queue_task()
        assert stage.lead.perform() is not None
    assert stage.names() == ["a"] * 5


def test_interrupt_wakes_a_leader_who_waits(stage: Stage) -> None:
    stage.add("a")
    waiting = Worker(stage.lead.perform)
    wait_until_asleep(waiting)
    task = stage.queue_task()
    stage.lead.interrupt()
    assert waiting.outcome() is task


def test_a_task_that_comes_between_the_look_and_the_wait_is_not_missed(stage: Stage) -> None:
    """interrupt() finds nobody waiting; whoever is about to wait sees the task then, and only looks."""
    stage.add("a")
    poller = stage.stations.poller
    assert poller is not None
    original = poller.wait_for_events
    task: AnyTask = Task(Future(), int)
    limits: list[float | None] = []

    def wait_for_events(timeout: float | None) -> list[tuple[bbipc.Socket, SocketEvent]]:
        limits.append(timeout)
        assert timeout == 0
        return original(timeout)

    class Late(deque[Station]):
        def __bool__(self) -> bool:  # the leader looks there under the lock, before he waits
            stage.crew.tasks.append(task)
            stage.lead.interrupt()
            return False

    with mock.patch.object(poller, "wait_for_events", wait_for_events):
        with mock.patch.object(stage.stations, "unarmed", Late()):
            assert stage.lead.perform() is task
    assert limits[0] == 0
    stage.crew.tasks.clear()


def test_the_end_that_comes_between_the_look_and_the_wait_is_not_missed(stage: Stage) -> None:
    """end() finds nobody waiting, right behind the leader's look; whoever is about to wait looks once more."""
    stage.add("a")
    poller = stage.stations.poller
    assert poller is not None
    original = poller.wait_for_events
    reads: list[bool] = []

    class EndsLate(ScriptedCrew):
        def __init__(self) -> None:
            super().__init__()
            self._ending = False

        @property
        def ending(self) -> bool:
            found = self._ending
            reads.append(found)
            if len(reads) == 2:  # the second look is the last one before the wait
                self._ending = True
                stage.lead.interrupt()
            return found

        @ending.setter
        def ending(self, value: bool) -> None:
            self._ending = value

    def wait_for_events(timeout: float | None) -> list[tuple[bbipc.Socket, SocketEvent]]:
        assert timeout == 0
        return original(timeout)

    stage.lead._crew = cast(Crew, EndsLate())
    with mock.patch.object(poller, "wait_for_events", wait_for_events):
        assert stage.lead.perform() is None
    assert reads[:3] == [False, False, True]


# Watching and taking over.


def test_there_is_one_watcher(stage: Stage) -> None:
    stage.add("a")
    stage.ready("a")
    seen: list[object] = []
    stage.during["a"] = lambda: seen.extend([stage.bert(stage.lead.begin_watch), stage.carl(stage.lead.begin_watch)])
    stage.round()
    assert seen == [WATCH, None]


def test_nobody_watches_where_nobody_leads(stage: Stage) -> None:
    stage.add("a")
    assert stage.lead.begin_watch() is None


def test_a_watcher_sleeps_when_nothing_happens_and_is_called_again(stage: Stage) -> None:
    stage.add("a")
    waiting = Worker(stage.lead.perform)
    wait_until_asleep(waiting)
    assert [stage.lead.begin_watch() for _ in range(LOOKS + 1)] == [WATCH] * LOOKS + [None]
    called = threading.Event()
    stage.during["a"] = lambda: called.set() if stage.crew.nudges == 1 else None
    stage.ready("a")
    assert called.wait(PATIENCE)
    stage.queue_task()
    stage.stations.wake()
    assert isinstance(waiting.outcome(), Task)


def test_a_watcher_gives_up_the_watch_when_nobody_leads_any_more(stage: Stage) -> None:
    """Otherwise he sleeps without limit, and everybody thinks that somebody watches."""
    station = stage.add("a")
    stage.ready("a")

    def end() -> None:
        stage.bert(stage.lead.begin_watch)
        station.cancel()

    stage.during["a"] = end
    stage.round()
    assert stage.bert(stage.lead.perform) is None
    assert stage.bert(stage.lead.begin_watch) is None
    stage.add("b")
    stage.ready("b")
    stage.during["b"] = lambda: stage.calls.append((f"nudges: {stage.crew.nudges}", READ))
    before = stage.crew.nudges
    stage.round()
    assert f"nudges: {before + 1}" in stage.names()


def test_a_blocked_leader_is_relieved(stage: Stage) -> None:
    """The rest of his batch is called for at once, and what comes later; he himself does nothing further."""
    for name in "abc":
        stage.add(name)
    stage.ready("a", "b")
    relieved: list[object] = []

    def block() -> None:
        first = stage.calls[0][0]
        stage.during.clear()
        assert stage.bert(stage.lead.begin_watch) == WATCH
        assert stage.bert(stage.lead.perform) is None  # not blocked yet: no time has passed
        stage.clock.now += WATCH
        stage.ready("c")
        relieved.append(stage.bert(stage.round))
        assert sorted(stage.names()) == ["a", "b", "c"]
        assert stage.names()[0] == first
        for spread in (0, 5):  # his own has something more: not told while his call runs
            stage.ready(first)
            stage.lead._pace.apart = spread
            stage.bert(stage.round)
        stage.lead._pace.apart = 0
        assert len(stage.calls) == 3

    stage.during = {"a": block, "b": block}
    assert stage.round() is None
    assert sorted(stage.names()) == ["a", "b", "c"]
    while len(stage.calls) < 4:
        stage.round()
    assert sorted(stage.names()) in (["a", "a", "b", "c"], ["a", "b", "b", "c"])


def test_whoever_relieves_calls_another_to_watch_himself_before_he_makes_a_call(stage: Stage) -> None:
    """What is left to him may block, too, and the last watcher is he."""
    for name in "ab":
        stage.add(name)
    stage.ready("a", "b")
    nudges: list[int] = []

    def block() -> None:
        stage.during = dict.fromkeys("ab", lambda: nudges.append(stage.crew.nudges))
        assert stage.bert(stage.lead.begin_watch) == WATCH
        stage.clock.now += WATCH
        nudges.append(stage.crew.nudges)
        stage.bert(stage.round)

    stage.during = {"a": block, "b": block}
    stage.round()
    before, during = nudges
    assert during == before + 1


def test_looks_are_quick_for_a_while_when_a_leader_was_found_blocked(stage: Stage) -> None:
    for name in "ab":
        stage.add(name)
    stage.ready("a", "b")
    paces: list[object] = []

    def look() -> None:
        paces.extend(stage.carl(stage.lead.begin_watch) for _ in range(QUICK_LOOKS + 2))

    def block() -> None:
        stage.during = dict.fromkeys("ab", look)
        stage.bert(stage.lead.begin_watch)
        stage.clock.now += WATCH
        stage.bert(stage.round)

    stage.during = {"a": block, "b": block}
    stage.round()
    assert paces == [QUICK_WATCH] * QUICK_LOOKS + [WATCH] * 2


@pytest.mark.parametrize(("late", "trusted"), [(1, True), (4, False)])
def test_a_quick_look_finds_a_blocked_leader_sooner(late: int, *, trusted: bool) -> None:
    lookout = Lookout()
    lookout.note_blocked_locked()
    with mock.patch("pool.lookout.time", Clock()) as clock:
        assert lookout.look_locked(1, 7, leads=True, polling=False) == QUICK_WATCH
        clock.now += QUICK_WATCH * late
        assert lookout.stands_still_locked(7) is trusted
        assert not lookout.stands_still_locked(8)


def test_one_who_makes_progress_is_not_relieved(stage: Stage) -> None:
    for name in "abcd":
        stage.add(name)
    stage.ready(*"abcd")

    def look() -> None:
        assert stage.bert(stage.lead.perform) is None
        assert stage.bert(stage.lead.begin_watch) == WATCH
        stage.clock.now += WATCH

    stage.during = dict.fromkeys("abcd", look)
    assert isinstance(stage.round(), Task)
    assert sorted(stage.names()) == list("abcd")


def test_one_who_waits_for_events_is_not_relieved(stage: Stage) -> None:
    stage.add("a")
    waiting = Worker(stage.lead.perform)
    wait_until_asleep(waiting)
    for _ in range(3):
        assert stage.lead.begin_watch() == WATCH
        stage.clock.now += WATCH
        assert stage.lead.perform() is None
    stage.queue_task()
    stage.lead.interrupt()
    waiting.outcome()


def test_a_look_that_comes_late_is_not_trusted(stage: Stage) -> None:
    """The processor was elsewhere, and so perhaps the leader, too."""
    stage.add("a")
    stage.ready("a")
    took: list[object] = []

    def block() -> None:
        stage.during.clear()
        assert stage.bert(stage.lead.begin_watch) == WATCH
        stage.clock.now += 10 * WATCH
        took.append(stage.bert(stage.round))
        assert stage.bert(stage.lead.begin_watch) == WATCH
        stage.clock.now += WATCH
        took.append(stage.bert(stage.round))

    stage.during["a"] = block
    stage.round()
    assert took[0] is None
    assert isinstance(took[1], Task)


def test_only_the_watcher_relieves(stage: Stage) -> None:
    stage.add("a")
    stage.ready("a")

    def block() -> None:
        stage.during.clear()
        assert stage.bert(stage.lead.begin_watch) == WATCH
        stage.clock.now += WATCH
        assert stage.carl(stage.round) is None

    stage.during["a"] = block
    assert isinstance(stage.round(), Task)


def test_a_watcher_who_leaves_for_a_task_calls_another(stage: Stage) -> None:
    stage.add("a")
    stage.ready("a")
    nudges: list[int] = []

    def block() -> None:
        assert stage.bert(stage.lead.begin_watch) == WATCH
        nudges.append(stage.crew.nudges)
        stage.carl(stage.lead.leave)  # he did not watch
        nudges.append(stage.crew.nudges)
        stage.bert(stage.lead.leave)
        nudges.append(stage.crew.nudges)
        assert stage.carl(stage.lead.begin_watch) == WATCH

    stage.during["a"] = block
    stage.round()
    assert nudges == [1, 1, 2]


def test_a_watcher_who_leaves_while_the_leader_waits_calls_nobody(stage: Stage) -> None:
    stage.add("a")
    waiting = Worker(stage.lead.perform)
    wait_until_asleep(waiting)
    assert stage.lead.begin_watch() == WATCH
    stage.lead.leave()
    assert stage.crew.nudges == 0
    stage.queue_task()
    stage.lead.interrupt()
    waiting.outcome()


# Calls made apart.


def test_slow_calls_are_made_apart(stage: Stage) -> None:
    """The lead is laid down before each, the next worker called, and the kernel not asked for its socket."""
    for name in "abc":
        stage.add(name)
    stage.ready(*"abc")
    seen: list[tuple[bool, int, SocketEvent]] = []

    def look(name: str) -> Callable[[], None]:
        return lambda: seen.append((stage.lead.wanted(), stage.crew.nudges, stage.armed(name)))

    stage.during = {name: look(name) for name in "abc"}
    stage.lead._pace.apart = 3
    for number in range(1, 4):
        before = stage.crew.nudges
        assert stage.round() is None
        wanted, nudges, asked = seen[-1]
        assert wanted
        assert nudges > before
        assert not asked
        assert len(seen) == number
    assert [stage.armed(name) for name in "abc"] == [READ] * 3
    assert stage.lead._pace.apart == 0
    stage.ready("a")
    assert isinstance(stage.round(), Task)  # quick ones have used it up: the leader makes the calls himself


def test_a_slow_call_is_probed_and_then_many_are_made_apart(stage: Stage) -> None:
    stage.add("a")

    def slow() -> None:
        stage.clock.now += 10 * SLOW

    stage.during["a"] = slow
    stage.ready("a")
    stage.round()
    assert stage.lead._pace.apart == PROBE
    for earned in (9, 18, 27):
        stage.ready("a")
        stage.round()
        assert stage.lead._pace.apart == pytest.approx(PROBE + earned)
    for _ in range(9):
        stage.ready("a")
        stage.round()
    assert stage.lead._pace.apart == SPREAD


@pytest.mark.parametrize(("share", "apart"), [(0.9, False), (1.1, True)])
def test_calls_are_made_apart_while_they_are_slow_on_the_average(stage: Stage, share: float, *, apart: bool) -> None:
    """Every eighth is slow, the others take no time; *share*: of what pays for being made apart, on the average."""
    stage.add("a")
    turns = iter(range(10**6))

    def now_and_then_slow() -> None:
        stage.clock.now += 0 if next(turns) % 8 else 8 * share * SLOW

    stage.during["a"] = now_and_then_slow
    stage.lead._pace.apart = SPREAD
    for _ in range(2000):
        if not stage.lead._pace.apart:
            break
        stage.ready("a")
        stage.round()
    assert bool(stage.lead._pace.apart) is apart


def test_a_call_that_ends_when_no_others_are_made_apart_any_more_does_not_begin_that_anew(stage: Stage) -> None:
    """It may have waited for the leader's batch, with one processor, or for the interpreter's lock, and not blocked."""
    for name in "ab":
        stage.add(name)
    stage.ready("a", "b")
    stage.lead._pace.apart = 1

    def wait_for_the_leader() -> None:
        stage.during.clear()
        stage.bert(stage.round)
        assert sorted(stage.names()) == ["a", "b"]
        assert not stage.lead._pace.apart
        stage.clock.now += 10 * SLOW

    stage.during = dict.fromkeys("ab", wait_for_the_leader)
    assert stage.round() is None
    assert not stage.lead._pace.apart


def test_a_watcher_who_leaves_where_no_other_can_be_had_is_not_thought_to_have_been_replaced(stage: Stage) -> None:
    stage.add("a")
    stage.ready("a")
    called: list[bool] = []

    def leave() -> None:
        stage.bert(stage.lead.begin_watch)
        stage.crew.nudge = lambda: False  # type: ignore[method-assign]
        stage.bert(stage.lead.leave)
        called.append(stage.lead._lookout.called)

    stage.during["a"] = leave
    stage.round()
    assert called == [False]


def test_a_pool_of_one_makes_no_call_apart(stage: Stage) -> None:
    stage.crew.max_workers = 1
    stage.add("a")

    def slow() -> None:
        stage.clock.now += 0.01

    stage.during["a"] = slow
    for _ in range(3):
        stage.ready("a")
        assert isinstance(stage.round(), Task)
    assert stage.names() == ["a"] * 3


def test_what_comes_while_a_call_is_made_apart_is_told_when_it_has_returned(stage: Stage) -> None:
    stage.add("a")
    stage.ready("a")
    stage.lead._pace.apart = 5

    def more() -> None:
        stage.during.clear()
        stage.ready("a")
        stage.bert(stage.round)
        assert stage.names() == ["a"]

    stage.during["a"] = more
    stage.round()
    stage.round()
    assert stage.names() == ["a", "a"]


# What a call may do.


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("kind", [ValueError, RecursionError, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_whatever_a_call_raises(
    stage: Stage, apart: bool, kind: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """Logged the 1st, 10th and 100th time; everything goes on."""
    stage.add("a")

    def fail() -> None:
        raise kind("on purpose")

    stage.during["a"] = fail
    for _ in range(120):
        stage.lead._pace.apart = int(apart)
        stage.ready("a")
        stage.round()
    assert stage.names() == ["a"] * 120
    assert len([record for record in caplog.records if "failed" in record.message]) == 3


@pytest.mark.parametrize("spread", [0, 9])
def test_a_monitor_that_another_call_of_the_batch_has_ended_is_not_called(stage: Stage, spread: int) -> None:
    for name in "ab":
        stage.add(name)
    stage.ready("a", "b")
    stage.during = {"a": stage.made["b"].cancel, "b": stage.made["a"].cancel}
    for _ in range(3):
        stage.lead._pace.apart = spread
        stage.round()
    assert len(stage.calls) == 1
    assert not stage.closes


@pytest.mark.parametrize("spread", [0, 9])
def test_a_monitor_that_another_call_of_the_batch_has_paused_is_not_called(stage: Stage, spread: int) -> None:
    for name in "ab":
        stage.add(name)
    stage.ready("a", "b")
    stage.during = {"a": stage.made["b"].pause, "b": stage.made["a"].pause}
    for _ in range(3):
        stage.lead._pace.apart = spread
        stage.round()
    assert len(stage.calls) == 1
    other = "b" if stage.names() == ["a"] else "a"
    stage.during.clear()
    stage.made[other].resume()
    stage.round()
    assert stage.names()[1:] == [other]  # it was not read, so it is told


def test_events_that_are_not_wanted_any_more_are_not_told(stage: Stage) -> None:
    for name in "ab":
        stage.add(name)
    stage.ready("a", "b")
    change = SocketEvent.REMOTE_DISCONNECTED
    stage.during = {
        "a": lambda: stage.made["b"].set_events(change),
        "b": lambda: stage.made["a"].set_events(change),
    }
    for _ in range(3):
        stage.round()
    assert len(stage.calls) == 1


def test_a_new_monitor_is_not_told_what_the_old_one_wanted(stage: Stage) -> None:
    """Cancelled and made anew, for other events, by an earlier call of the batch."""
    for name in "ab":
        stage.add(name)
    stage.ready("a", "b")
    told: list[SocketEvent] = []

    def replace(name: str) -> None:
        stage.during.clear()
        stage.made[name].cancel()
        fresh = Station(stage.stations, None, stage.sockets[name], lambda socket, events: told.append(events), None)
        stage.stations.add(fresh, SocketEvent.READY_TO_WRITE)

    stage.during = {"a": lambda: replace("b"), "b": lambda: replace("a")}
    for _ in range(2):
        stage.round()
    assert set(told) == {SocketEvent.READY_TO_WRITE}


# Closes.


def test_a_close_is_told_once_by_the_leader(stage: Stage) -> None:
    stage.add("a")
    stage.round()
    stage.sockets["a"].close()
    assert not stage.closes
    stage.round()
    stage.round()
    assert stage.closes == [("a", "SocketClosedError")]
    assert not stage.made["a"].active


def test_a_close_wakes_the_leader(stage: Stage) -> None:
    stage.add("a")
    stage.add("b")
    waiting = Worker(stage.lead.perform)
    wait_until_asleep(waiting)
    told = threading.Event()
    stage.made["a"].on_close = lambda error: told.set()
    stage.sockets["a"].close()
    assert told.wait(PATIENCE)
    stage.queue_task()
    stage.lead.interrupt()
    waiting.outcome()


def test_a_close_inside_its_own_call(stage: Stage) -> None:
    stage.add("a")
    stage.ready("a")

    def close() -> None:
        stage.sockets["a"].close()
        assert not stage.closes

    stage.during["a"] = close
    stage.round()
    stage.round()
    assert stage.names() == ["a"]
    assert stage.closes == [("a", "SocketClosedError")]


def test_a_socket_that_another_call_of_the_batch_has_closed_is_not_called_for(stage: Stage) -> None:
    for name in "ab":
        stage.add(name)
    stage.ready("a", "b")
    stage.during = {"a": stage.sockets["b"].close, "b": stage.sockets["a"].close}
    stage.round()
    assert len(stage.calls) == 1
    stage.round()
    assert len(stage.closes) == 1


@pytest.mark.parametrize("others", ["", "b"])
@pytest.mark.parametrize("apart", [False, True])
def test_a_close_while_its_call_runs_and_another_leads(stage: Stage, others: str, apart: bool) -> None:
    """Told when the call has returned, also where it was the only station; and not before."""
    for name in "a" + others:
        stage.add(name)
    stage.ready("a")
    stage.lead._pace.apart = int(apart)

    def block() -> None:
        assert apart or stage.bert(stage.lead.begin_watch) == WATCH
        stage.clock.now += WATCH
        stage.bert(stage.round)
        stage.carl(stage.sockets["a"].close)
        stage.bert(stage.round)
        assert not stage.closes

    stage.during["a"] = block
    stage.round()
    while stage.lead.wanted() and not stage.closes:
        stage.round()
    assert stage.closes == [("a", "SocketClosedError")]
    assert stage.names() == ["a"]


def test_a_monitor_cancelled_after_its_socket_was_closed_is_told_nothing(stage: Stage) -> None:
    """*on_close*: "not after a cancel"; here the leader knows of the close already."""
    stage.add("a")
    stage.ready("a")

    def block() -> None:
        assert stage.bert(stage.lead.begin_watch) == WATCH
        stage.clock.now += WATCH
        stage.sockets["a"].close()
        stage.bert(stage.round)
        stage.made["a"].cancel()

    stage.during["a"] = block
    stage.round()
    stage.round()
    assert not stage.closes


def test_somebody_watches_who_tells_of_a_close(stage: Stage) -> None:
    stage.add("a")
    stage.round()
    nudges: list[int] = []
    stage.made["a"].on_close = lambda error: nudges.append(stage.crew.nudges)
    before = stage.crew.nudges
    stage.sockets["a"].close()
    stage.round()
    assert nudges == [before + 1]


def test_a_blocked_close_hook_is_relieved(stage: Stage) -> None:
    for name in "abc":
        stage.add(name)
    stage.round()
    later: list[object] = []

    def block(error: Exception) -> None:
        assert stage.bert(stage.lead.begin_watch) == WATCH
        stage.clock.now += WATCH
        stage.ready("c")
        while "c" not in stage.names() and len(later) < 9:
            later.append(stage.bert(stage.round))

    stage.made["a"].on_close = block
    stage.sockets["a"].close()
    stage.sockets["b"].close()
    stage.round()
    assert stage.names() == ["c"]
    assert stage.closes == [("b", "SocketClosedError")]


def test_a_close_hook_that_raises(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    for name in "ab":
        stage.add(name)
    stage.round()

    def fail(error: Exception) -> None:
        raise SystemExit("on purpose")

    stage.made["a"].on_close = fail
    stage.sockets["a"].close()
    stage.sockets["b"].close()
    stage.round()
    assert stage.closes == [("b", "SocketClosedError")]
    assert "on purpose" in caplog.text


def test_dismissal_tells_all_once(stage: Stage) -> None:
    for name in "ab":
        stage.add(name)
    stage.lead.dismiss()
    stage.lead.dismiss()
    assert sorted(stage.closes) == [("a", "RuntimeError"), ("b", "RuntimeError")]
    assert not stage.lead.wanted()
    assert stage.lead.perform() is None


def test_dismissal_while_a_call_runs(stage: Stage) -> None:
    """Its end is told when it has returned."""
    stage.add("a")
    stage.ready("a")
    during: list[int] = []

    def dismiss() -> None:
        stage.bert(stage.lead.dismiss)
        during.append(len(stage.closes))

    stage.during["a"] = dismiss
    stage.round()
    stage.lead.dismiss()
    assert during == [0]
    assert stage.closes == [("a", "RuntimeError")]


def test_a_kernel_without_room_is_asked_again(stage: Stage) -> None:
    """After a call made apart the socket has to come back into the kernel's set, which may be full just then."""
    stage.add("a")
    stage.add("b")
    poller = stage.stations.poller
    assert poller is not None
    stage.ready("a")
    stage.lead._pace.apart = 1
    original, refusals = poller._tell_kernel, [2]

    def tell_kernel(number: int, old: int, new: int) -> None:
        if new and refusals[0]:
            refusals[0] -= 1
            raise OSError(errno.ENOSPC, "no room")
        original(number, old, new)

    with mock.patch.object(poller, "_tell_kernel", tell_kernel):
        stage.round()
        assert not stage.made["a"].busy
        stage.ready("a", "b")
        for _ in range(6):
            stage.round()
    assert sorted(stage.names()) == ["a", "a", "b"]


# Spinning.


def test_a_leader_who_spins_looks_again_before_he_sleeps(stage: Stage) -> None:
    """For as long as was asked, behind a call; a wake in between is not lost."""
    stage.lead._spin = 0.5
    stage.add("a")
    poller = stage.stations.poller
    assert poller is not None
    original = poller.wait_for_events
    limits: list[float | None] = []

    def wait_for_events(timeout: float | None) -> list[tuple[bbipc.Socket, SocketEvent]]:
        limits.append(timeout)
        if len(limits) < 5:
            stage.clock.now += 0.2
        else:
            stage.queue_task()
            stage.lead.interrupt()
        return original(timeout)

    stage.ready("a")
    with mock.patch.object(poller, "wait_for_events", wait_for_events):
        assert isinstance(stage.lead.perform(), Task)
    assert limits == [None, 0, 0, 0, None]
