"""Calls for stations: what they raise ends nothing; and one that forks may return in the child, too.

There the locks may be held for ever, by threads that are not there (HAZARDS 55).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator

import pytest

from bbipc import SocketEvent
from pool import WorkerPool
from pool.station_calls import failed, farewell, make_call, run_errand
from pool.stations import Station
from tests.support.forking import FORKS, Forking
from tests.support.leading import READ, Stage, staged
from tests.support.loops import pair
from tests.support.makers import PATIENCE
from tests.test_errands import Pieces
from tests.test_term import Reader


@pytest.fixture
def stage() -> Iterator[Stage]:
    with staged() as made:
        yield made


def explode(*args: object) -> None:
    raise LookupError("of the user's")


# What is raised.


def test_a_call_is_told_what_is_still_wanted(stage: Stage) -> None:
    station, told = stage.add("a"), list[SocketEvent]()
    station.call = lambda socket, events: told.append(events)
    make_call(station, stage.sockets["a"], READ)
    station.set_events(SocketEvent.DATA_AVAILABLE)
    make_call(station, stage.sockets["a"], READ)
    make_call(station, stage.sockets["a"], SocketEvent.REMOTE_DISCONNECTED)
    station.cancel()
    make_call(station, stage.sockets["a"], READ)
    assert told == [READ, SocketEvent.DATA_AVAILABLE]


@pytest.mark.parametrize(
    "act",
    [
        lambda station: make_call(station, station.socket, READ),
        lambda station: farewell(station, explode),
        lambda station: run_errand(Pieces(explode)),
    ],
    ids=["call", "farewell", "errand"],
)
def test_what_is_raised_goes_to_the_log(
    stage: Stage, act: Callable[[Station], object], caplog: pytest.LogCaptureFixture
) -> None:
    station = stage.add("a")
    station.call = explode
    act(station)
    assert [(record.levelno, record.exc_info and record.exc_info[0]) for record in caplog.records] == [
        (logging.ERROR, LookupError)
    ]


def test_repeats_are_told_seldom(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    station = stage.add("a")
    for _ in range(250):
        failed(station, LookupError())
    assert [record.getMessage().split()[-2] for record in caplog.records] == ["(1", "(10", "(100"]


def test_an_errand_counts_its_pieces() -> None:
    class Counting(Pieces):
        def run(self) -> int:
            return 5

    assert run_errand(Counting()) == 5
    assert run_errand(Pieces(int)) == 1


# Forks.


def a_plain_call(stage: Stage, forking: Forking) -> None:
    stage.during["a"] = forking


def one_told_before_a_change(stage: Stage, forking: Forking) -> None:
    """Not quick: something has changed since."""
    stage.add("b")
    stage.ready("b")
    stage.during["b"] = lambda: stage.add("c")
    stage.during["a"] = forking


def one_made_apart(stage: Stage, forking: Forking) -> None:
    stage.lead._pace.apart = 5
    stage.during["a"] = forking


def an_errand_behind_a_call(stage: Stage, forking: Forking) -> None:
    stage.during["a"] = lambda: stage.lead.follow_up(Pieces(forking))


def a_listener_that_reads(stage: Stage, forking: Forking) -> None:
    reader = Reader(stage.made["a"])
    reader.behind_take = forking
    reader.handle = lambda request: forking.leave(1)  # only in the child, where nothing is to be run


def an_errand_of_another(stage: Stage, forking: Forking) -> None:
    stage.bert(lambda: stage.lead.follow_up(Pieces(forking)))


def an_errand_made_apart(stage: Stage, forking: Forking) -> None:
    stage.lead._pace.apart = 5
    an_errand_of_another(stage, forking)
    stage.lead._errands.look_locked()  # as whoever has led until now has: what is told from here on comes behind it


def a_farewell(stage: Stage, forking: Forking) -> None:
    stage.made["a"].on_close = lambda error: forking()
    stage.sockets["a"].close()


FORKED = [
    pytest.param(case, marks=FORKS, id=case.__name__)
    for case in (
        a_plain_call,
        one_told_before_a_change,
        one_made_apart,
        an_errand_behind_a_call,
        a_listener_that_reads,
        an_errand_of_another,
        an_errand_made_apart,
        a_farewell,
    )
]


@pytest.mark.parametrize("case", FORKED)
def test_a_child_that_returns_from(case: Callable[[Stage, Forking], None], stage: Stage) -> None:
    forking = Forking(stage.stations.lock)
    stage.add("a")
    stage.add("y")
    stage.during["y"] = lambda: forking.leave(1)  # in the child nothing further is called for
    case(stage, forking)
    if case is not a_farewell:
        stage.ready("a", "y")
    with forking.child_ends():
        stage.round()
        forking.leave()
    stage.during.clear()  # and the parent goes on
    stage.add("z")
    stage.ready("z")
    for _ in range(3):
        stage.round()
    assert "z" in stage.names()


def a_task(pool: WorkerPool, forking: Forking) -> None:
    pool.submit(forking).result(PATIENCE)


def a_call(pool: WorkerPool, forking: Forking) -> None:
    returned = threading.Event()
    with pair() as (ours, theirs):

        def call(*args: object) -> None:
            forking()
            returned.set()

        pool.when(ours, READ, call)
        theirs.write(b"x")
        assert returned.wait(PATIENCE)


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=FORKS) for kind in (a_task, a_call)])
@pytest.mark.parametrize("lock", ["leader", "crew"])
def test_a_child_has_no_workers(kind: Callable[[WorkerPool, Forking], None], lock: str) -> None:
    """The thread that has forked ends there, and with it the process."""
    with WorkerPool(2) as pool, pair() as (ours, _):
        pool.monitor(ours, READ, explode)
        forking = Forking({"leader": pool._leadership._lock, "crew": pool._crew._lock}[lock])
        with forking.child_ends():
            kind(pool, forking)
        assert pool.submit(int).result(PATIENCE) == 0
