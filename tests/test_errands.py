"""Errands: what a call leaves behind for the worker that made it, or for whoever takes the lead from him."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator

import pytest

import bbipc
from bbipc import SocketEvent
from pool import WorkerPool
from pool.errands import Errands
from pool.lookout import WATCH
from pool.pace import SPREAD
from pool.tasks import Task
from tests.support.leading import READ, Stage, staged
from tests.support.loops import pair
from tests.support.makers import PATIENCE, Worker, wait_until_asleep


class Pieces:
    """An errand whose pieces are calls."""

    def __init__(self, *pieces: Callable[[], object]) -> None:
        self.pieces = deque(pieces)
        self.runs: list[int] = []

    def run(self) -> int:
        """All that nobody else takes."""
        self.runs.append(threading.get_ident())
        count = 0
        while self.pieces:
            self.pieces.popleft()()
            count += 1
        return count

    def waiting(self) -> int:
        return len(self.pieces)


@pytest.fixture
def stage() -> Iterator[Stage]:
    with staged() as made:
        yield made


def test_an_errand_runs_behind_the_call_that_has_left_it(stage: Stage) -> None:
    order: list[str] = []
    errand = Pieces(lambda: order.append(f"errand, armed {stage.armed('a') == READ}"))

    def call() -> None:
        order.append("call")
        if len(order) == 1:
            stage.lead.follow_up(errand)

    for name in "ab":
        stage.add(name)
        stage.during[name] = call
    stage.ready("a", "b")
    assert isinstance(stage.round(), Task)
    assert order == ["call", "errand, armed True", "call"]
    assert set(errand.runs) == {threading.get_ident()}


def test_an_errand_left_by_a_call_whose_lead_was_lost_is_run_by_who_has_it(stage: Stage) -> None:
    stage.add("a")
    stage.add("b")
    errand = Pieces(int)
    stage.ready("a")

    def block() -> None:
        stage.lead.follow_up(errand)
        assert stage.bert(stage.lead.begin_watch) == WATCH
        stage.clock.now += WATCH
        assert isinstance(stage.bert(stage.round), Task)
        assert not errand.runs

    stage.during["a"] = block
    assert stage.round() is None
    assert not errand.runs
    assert stage.lead.wanted()
    stage.bert(stage.round)
    assert len(errand.runs) == 1
    assert errand.runs[0] != threading.get_ident()


def test_an_errand_of_a_call_made_apart_is_run_apart(stage: Stage) -> None:
    stage.add("a")
    stage.lead._pace.apart = SPREAD
    errand = Pieces(int)
    stage.during["a"] = lambda: stage.lead.follow_up(errand)
    stage.ready("a")
    nudges = []
    stage.crew.nudge = lambda: not nudges.append(len(errand.runs))  # type: ignore[func-returns-value, method-assign]
    assert stage.round() is None
    assert nudges[0] == 0
    while not errand.runs:
        stage.round()
    assert stage.lead._pace.apart == SPREAD - 2


def test_an_errand_wakes_a_leader_who_waits(stage: Stage) -> None:
    stage.add("a")
    waiting = Worker(stage.lead.perform)
    wait_until_asleep(waiting)
    ran = threading.Event()
    stage.lead.follow_up(Pieces(ran.set))
    assert ran.wait(PATIENCE)
    stage.queue_task()
    stage.lead.interrupt()
    waiting.outcome()


def test_an_errand_calls_for_somebody_where_nobody_leads(stage: Stage) -> None:
    errand = Pieces(int)
    assert not stage.lead.wanted()
    stage.lead.follow_up(errand)
    assert stage.crew.nudges == 1
    assert stage.lead.wanted()
    assert stage.lead.perform() is None  # and there is no socket to wait for
    assert len(errand.runs) == 1
    assert not stage.lead.wanted()


def test_what_an_errand_leaves_comes_behind_a_look_at_the_sockets(stage: Stage) -> None:
    """One that never ends starves neither sockets nor tasks."""
    stage.add("a")
    order: list[str] = []
    stage.during["a"] = lambda: order.append("call")

    class Endless(Pieces):
        def run(self) -> int:
            order.append("errand")
            stage.lead.follow_up(self)
            return 1

    stage.lead.follow_up(Endless())
    for _ in range(3):
        stage.ready("a")
        assert isinstance(stage.round(), Task)
    assert order[:2] == ["errand", "call"]
    assert order.count("call") == 3
    assert order.count("errand") >= 3


def test_what_workers_leave_again_and_again_comes_behind_a_look_at_the_sockets(stage: Stage) -> None:
    """One errand is made apart by all of them, and each of its pieces leaves it again, several times.

    Found: nobody looked at the sockets until one client had his 1,500 answers, each of them slow.
    """
    stage.add("a")
    stage.lead._pace.apart = SPREAD

    class Endless(Pieces):
        def run(self) -> int:
            self.runs.append(threading.get_ident())
            for _ in range(5):
                stage.lead.follow_up(self)  # as a worker who does not lead
            return 5

        def waiting(self) -> int:
            return 9

    stage.lead.follow_up(errand := Endless())
    for _ in range(4):
        stage.round()
    stage.ready("a")
    for _ in range(2):
        stage.round()
    assert stage.names() == ["a"]
    assert len(errand.runs) >= 4


@pytest.mark.parametrize("apart", [0, SPREAD])
def test_errands_that_are_left_without_end_come_behind_a_look_at_the_sockets(stage: Stage, apart: int) -> None:
    """By threads that are no workers: each time one of two is begun the other is left again."""
    stage.add("a")
    stage.lead._pace.apart = apart
    pair: list[Pieces] = []

    def leave_other(number: int) -> Callable[[], object]:
        return lambda: stage.bert(lambda: stage.lead.follow_up(pair[1 - number]))

    class Endless(Pieces):
        def run(self) -> int:
            self.runs.append(threading.get_ident())
            if not stage.calls:
                assert len(self.runs) < 100
                self.pieces[0]()
            return 1

    pair += [Endless(leave_other(0)), Endless(leave_other(1))]
    for errand in pair:
        stage.lead.follow_up(errand)
    stage.ready("a")
    for _ in range(5):
        stage.round()
    assert stage.names() == ["a"]
    assert all(0 < len(errand.runs) < 100 for errand in pair)


def test_an_errand_that_is_left_twice_is_begun_once_and_does_all(stage: Stage) -> None:
    stage.add("a")
    errand, other = Pieces(int), Pieces(int)
    for each in (errand, other, errand):
        stage.lead.follow_up(each)
        errand.pieces.append(int)
    stage.round()
    assert [len(errand.runs), len(other.runs)] == [1, 1]
    assert not errand.pieces


@pytest.mark.parametrize("moment", ["waiting", "told"])
def test_an_errand_that_is_left_behind_the_look_at_those_left_is_run(stage: Stage, moment: str) -> None:
    """Nobody looks at the sockets once more for its sake: it is due behind this very wait, which ends at once."""
    stage.add("a")
    stage.add("b")
    errand = Pieces(int)
    poller = stage.stations.poller
    assert poller is not None
    wait = poller.wait_for_events

    def leave_one(timeout: float | None) -> list[tuple[bbipc.Socket, SocketEvent]]:
        poller.wait_for_events = wait  # type: ignore[method-assign]
        if moment == "waiting":
            stage.bert(lambda: stage.lead.follow_up(errand))
        told = wait(PATIENCE)
        if moment == "told":
            stage.bert(lambda: stage.lead.follow_up(errand))
        return told

    poller.wait_for_events = leave_one  # type: ignore[method-assign]
    if moment == "told":
        stage.ready("a")
    stage.round()
    assert len(errand.runs) == 1
    assert stage.names() == (["a"] if moment == "told" else [])


def test_what_is_left_of_a_blocked_errand_is_done_by_who_takes_over(stage: Stage) -> None:
    stage.add("a")
    done: list[str] = []

    def block() -> None:
        assert stage.bert(stage.lead.begin_watch) == WATCH
        stage.clock.now += WATCH
        while errand.pieces:
            stage.bert(stage.round)
        stage.ready("a")
        stage.lead._pace.apart = 0
        stage.bert(stage.round)  # the socket is free
        done.append("blocked")

    errand = Pieces(block, lambda: done.append("second"), lambda: done.append("third"))
    stage.during["a"] = lambda: done.append("call")
    stage.lead.follow_up(errand)
    assert stage.round() is None  # the lead is lost
    assert done == ["second", "third", "call", "blocked"]
    assert len(set(errand.runs)) == 2


def test_who_takes_over_looks_at_the_sockets_before_he_does_what_is_left(stage: Stage) -> None:
    """Found: 32 workers took over from one another in front of one client's requests, for as long as there were any."""
    stage.add("a")
    order: list[str] = []

    def block() -> None:
        stage.ready("a")
        assert stage.bert(stage.lead.begin_watch) == WATCH
        stage.clock.now += WATCH
        stage.bert(stage.round)

    stage.during["a"] = lambda: order.append("call")
    stage.lead.follow_up(Pieces(block, lambda: order.append("rest")))
    assert stage.round() is None
    assert order == ["call", "rest"]


def test_a_blocked_errand_with_nothing_left_is_not_run_again(stage: Stage) -> None:
    stage.add("a")

    def block() -> None:
        assert stage.bert(stage.lead.begin_watch) == WATCH
        stage.clock.now += WATCH
        assert isinstance(stage.bert(stage.round), Task)

    errand = Pieces(block)
    stage.lead.follow_up(errand)
    stage.round()
    assert len(errand.runs) == 1


def test_slow_errands_are_shared(stage: Stage) -> None:
    """Each worker that begins one leaves it for the next, as long as there is more than he takes."""
    stage.add("a")
    stage.lead._pace.apart = SPREAD
    done: list[str] = []
    nudges: list[int] = []

    def slow(name: str, other: Callable[[Callable[[], object]], object] | None) -> Callable[[], None]:
        def piece() -> None:
            nudges.append(stage.crew.nudges)
            if other is not None:
                other(stage.lead.perform)
            stage.clock.now += 1
            done.append(name)

        return piece

    errand = Pieces(slow("first", stage.bert), slow("second", stage.carl), slow("third", None))
    stage.lead.follow_up(errand)
    before = stage.crew.nudges
    assert stage.lead.perform() is None
    assert done == ["third", "second", "first"]
    assert len(set(errand.runs)) == 3
    assert nudges == [before + 1, before + 2, before + 3]
    assert stage.lead._pace.apart == SPREAD


def test_quick_pieces_do_not_count_as_one_slow_errand(stage: Stage) -> None:
    stage.add("a")

    def quick() -> None:
        stage.clock.now += 0.0001

    stage.lead.follow_up(Pieces(*[quick] * 16))
    stage.round()
    assert not stage.lead._pace.apart
    stage.lead.follow_up(Pieces(lambda: stage.lead._pace.__setattr__("apart", 1.0)))
    stage.round()
    stage.lead.follow_up(Pieces(*[quick] * 16))
    stage.round()
    assert stage.lead._pace.apart < 1  # as one, they would have earned more than the one that they have used up


def test_what_an_errand_raises_is_logged(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    stage.add("a")
    stage.lead.follow_up(Pieces(lambda: int("x")))
    assert isinstance(stage.round(), Task)
    assert [type((record.exc_info or (None, None))[1]) for record in caplog.records] == [ValueError]


def test_an_errand_that_comes_between_two_looks_of_the_leader_is_watched(stage: Stage) -> None:
    """Behind his look whether something was left to him, and before he runs it: nobody watches as yet."""
    stage.add("a")
    watchers: list[bool] = []
    errand = Pieces(lambda: watchers.append(stage.lead._lookout.called))
    monotonic = stage.clock.monotonic

    def leave_one() -> float:
        stage.clock.monotonic = monotonic  # type: ignore[method-assign]
        stage.bert(lambda: stage.lead.follow_up(errand))
        return monotonic()

    stage.clock.monotonic = leave_one  # type: ignore[method-assign] # the first of his clocks comes behind that look
    stage.round()
    assert watchers == [True]


def test_pieces_that_block_run_side_by_side_in_a_pool() -> None:
    """Four pieces of one errand wait for each other; it was left by a call, whose socket is served meanwhile."""
    barrier = threading.Barrier(4)
    errand = Pieces(*[lambda: barrier.wait(PATIENCE)] * 3)
    told = threading.Event()

    def call(stream: object, _events: object) -> None:
        if ours.read() == b"go":
            workers.follow_up(errand)
        else:
            told.set()

    with WorkerPool(5) as workers, pair() as (ours, peer):
        workers.monitor(ours, READ, call)
        peer.write(b"go")
        barrier.wait(PATIENCE)
        errand.pieces.append(lambda: told.wait(PATIENCE))
        workers.follow_up(errand)
        peer.write(b"more")
        assert told.wait(PATIENCE)


def test_an_errand_made_apart_that_is_never_done_starves_no_socket(stage: Stage) -> None:
    """One that says that there is more for others to do, and finds nothing to do itself."""
    stage.add("a")

    class Vain(Pieces):
        def waiting(self) -> int:
            return 2

    stage.lead._pace.apart = SPREAD
    stage.lead.follow_up(errand := Vain())
    stage.ready("a")
    for _ in range(6):
        stage.round()
    assert stage.names() == ["a"]
    assert len(errand.runs) > 1


def test_an_errand_that_is_due_is_not_left_for_later_as_well() -> None:
    errands, errand = Errands(), Pieces()
    errands.leave_locked(errand, soon=True)
    errands.leave_locked(errand)
    assert errands.take_locked() is errand
    errands.look_locked()
    assert errands.take_locked() is None
