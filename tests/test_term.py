"""Terms: the quick way of a leader, and what happens where he loses the lead on it; on the test's own thread."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from unittest import mock

import pytest

from bbipc import SocketEvent
from pool.lookout import WATCH
from pool.stations import Station
from pool.tasks import Task
from pool.term import Report, Term
from tests.support.leading import READ, Stage, staged
from tests.support.makers import PATIENCE
from tests.test_errands import Pieces

DATA = SocketEvent.DATA_AVAILABLE


class Reader:
    """A listener: reads its socket, a request a byte, and answers each with ``handle``."""

    def __init__(self, station: Station) -> None:
        self.station = station
        self.queue: deque[bytes] = deque()
        self.answered: list[tuple[bytes, int]] = []
        self.handle: Callable[[bytes], object] = bytes
        self.before_take: Callable[[], object] = int
        self.behind_take: Callable[[], object] = int
        self.asked: Callable[[], object] = int
        station.listener = self

    def take(self, events: SocketEvent) -> None:
        self.before_take()
        data = self.station.socket.read() or b""  # type: ignore[attr-defined]
        self.queue.extend(data[at : at + 1] for at in range(len(data)))
        self.behind_take()

    def run(self) -> int:
        count = 0
        while self.queue:
            request = self.queue.popleft()
            self.handle(request)
            self.answered.append((request, threading.get_ident()))
            count += 1
        return count

    def waiting(self) -> int:
        self.asked()
        return len(self.queue)

    def listen(self, seconds: float) -> bool:
        raise AssertionError("there is no dialogue here")


class Tokens(list[None]):
    """``Station.idle``, where *action* follows the first look at it."""

    def __init__(self, action: Callable[[list[None]], object], *, there: bool = True) -> None:
        super().__init__([None] if there else [])
        self.action: Callable[[list[None]], object] | None = action

    def __bool__(self) -> bool:
        found = len(self) > 0
        action, self.action = self.action, None
        if action is not None:
            action(self)
        return found


@pytest.fixture
def stage() -> Iterator[Stage]:
    with staged() as made:
        yield made


def relieve(stage: Stage, then: Callable[[], object]) -> None:
    """A second worker finds the leader blocked, which is the calling thread, and does *then*."""
    assert stage.bert(stage.lead.begin_watch) == WATCH
    stage.clock.now += WATCH
    stage.bert(then)


def calls_of(stage: Stage, term: Term, *reports: Report) -> tuple[int, Report | None]:
    term.since = stage.stations.changes
    return term.make_calls(deque(reports), stage.stations, stage.lead._finish, stage.lead.follow_up)


def test_the_usual_call_takes_no_lock(stage: Stage) -> None:
    station, other = stage.add("a"), stage.add("b")
    reader = Reader(other)
    stage.ready("a", "b")
    locked, done = threading.Event(), threading.Event()

    def hold_lock() -> None:
        with stage.stations.lock:
            locked.set()
            assert done.wait(PATIENCE)

    holder = threading.Thread(target=hold_lock)
    holder.start()
    assert locked.wait(PATIENCE)
    count, report = calls_of(stage, Term(1), (station.socket, DATA), (other.socket, DATA))
    done.set()
    holder.join()
    assert (count, report, stage.names(), len(reader.answered)) == (3, None, ["a"], 1)


@pytest.mark.parametrize("unusual", ["gone", "busy", "just taken"])
def test_what_is_unusual_is_given_back(stage: Stage, unusual: str) -> None:
    station, other = stage.add("a"), stage.add("b")
    stage.ready("a", "b")
    if unusual == "gone":
        del stage.stations.table[other.socket]
    elif unusual == "busy":
        other.idle.clear()
    else:
        other.idle = Tokens(lambda token: token.clear())
    report = (other.socket, DATA)
    assert calls_of(stage, Term(1), (station.socket, DATA), report, (station.socket, DATA)) == (1, report)
    assert stage.names() == ["a"]


@pytest.mark.parametrize("change", ["change", "close", "loss"])
def test_what_happens_in_a_call_ends_the_quick_way(stage: Stage, change: str) -> None:
    station, other = stage.add("a"), stage.add("b")
    stage.ready("a", "b")
    term = Term(1)
    stage.during["a"] = {
        "change": other.pause,
        "close": other.socket.close,
        "loss": lambda: setattr(term, "lost", True),
    }[change]
    assert calls_of(stage, term, (station.socket, DATA), (other.socket, DATA)) == (1, None)
    assert stage.names() == ["a"]


def test_what_is_read_by_who_has_lost_the_lead_is_left_for_who_has_it(stage: Stage) -> None:
    """Whoever took over had looked before anything was read; he has nothing more to do just then."""
    reader = Reader(stage.add("a"))
    stage.ready("a")

    def take_over() -> None:
        term = stage.lead._begin(threading.get_ident())
        assert term is not None
        stage.lead._lay_down(term)

    reader.before_take = lambda: relieve(stage, take_over)
    assert stage.round() is None
    assert not reader.answered
    assert stage.lead.wanted()
    reader.before_take = int
    stage.bert(stage.round)
    assert len(reader.answered) == 1
    assert reader.answered[0][1] != threading.get_ident()


def test_who_takes_over_says_so_before_he_looks_what_is_left(stage: Stage) -> None:
    """Otherwise he could look before the leader has read, and the leader before he says so."""
    reader = Reader(stage.add("a"))
    stage.ready("a")
    looks: list[bool] = []
    term = Term(0)

    def look() -> None:
        looks.append(term.lost)

    def take_over() -> None:
        nonlocal term
        term, reader.asked, reader.behind_take = stage.lead._term, look, int
        relieve(stage, stage.round)

    reader.behind_take = take_over
    stage.round()
    assert looks
    assert looks[0]
    assert len(reader.answered) == 1


def test_what_was_read_before_the_lead_was_lost_is_found_by_who_takes_it(stage: Stage) -> None:
    """The leader has seen that he leads still, and then a request blocks: whoever takes over does the others."""
    reader = Reader(stage.add("a"))
    stage.ready("a")
    stage.peers["a"].write(b"yz")

    def block(request: bytes) -> None:
        reader.handle = bytes
        relieve(stage, stage.round)
        assert [done for done, _ in reader.answered] == [b"y", b"z"]

    reader.handle = block
    assert stage.round() is None
    assert [request for request, _ in reader.answered] == [b"y", b"z", b"x"]
    assert len({worker for _, worker in reader.answered}) == 2


def test_the_lead_is_lost_between_the_look_and_the_first_request(stage: Stage) -> None:
    """Whoever takes over there finds all that was read; each request is answered once."""
    reader = Reader(stage.add("a"))
    stage.ready("a")
    stage.peers["a"].write(b"yz")
    relieved: list[bool] = []

    class Relieved(Term):
        """Is told that it leads, just before that is not so any more."""

        __slots__ = ("_lost",)

        @property
        def lost(self) -> bool:
            found = self._lost
            if reader.queue and not found and threading.get_ident() == self.ident and not relieved:
                relieved.append(True)
                relieve(stage, stage.round)
            return found

        @lost.setter
        def lost(self, value: bool) -> None:
            self._lost = value

    with mock.patch("pool.leader.Term", Relieved):
        assert stage.round() is None
    assert sorted(request for request, _ in reader.answered) == [b"x", b"y", b"z"]
    assert {worker for _, worker in reader.answered} != {threading.get_ident()}


def test_what_a_listener_raises_is_logged_and_ends_nothing(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    reader = Reader(stage.add("a"))
    reader.handle = lambda request: int(request, 10)
    stage.ready("a")
    assert isinstance(stage.round(), Task)
    stage.peers["a"].write(b"7")
    assert isinstance(stage.round(), Task)
    assert [request for request, _ in reader.answered] == [b"7"]
    assert [type((record.exc_info or (None, None))[1]) for record in caplog.records] == [ValueError]


def test_an_errand_of_a_listener_is_no_matter_of_the_call_before(stage: Stage) -> None:
    """It runs, though the socket that was called for before has nothing further."""
    station, reader = stage.add("a"), Reader(stage.add("b"))
    errand = Pieces(int)
    reader.handle = lambda request: stage.lead.follow_up(errand)
    term = stage.lead._begin(threading.get_ident())
    assert term is not None
    stage.ready("a", "b")
    assert calls_of(stage, term, (station.socket, DATA), (reader.station.socket, DATA)) == (3, None)
    assert (term.calling, term.running, station.errand) == (None, None, None)
    stage.lead._lay_down(term)
    stage.round()
    assert errand.runs


def test_a_call_that_is_made_with_care_has_the_token(stage: Stage) -> None:
    for name in "ab":
        stage.add(name)
    stage.ready("a", "b")
    busy: list[bool] = []

    def change_something() -> None:
        busy.extend(stage.made[name].busy for name in "ab")
        stage.made[stage.names()[0]].set_events(READ)

    stage.during = dict.fromkeys("ab", change_something)
    stage.round()
    assert len(stage.calls) == 2
    assert sorted(busy[:2]) == sorted(busy[2:]) == [False, True]
    assert busy[:2] != busy[2:]


def test_a_new_leader_has_made_progress() -> None:
    """Else the watcher of the one before would find him blocked at once."""
    last = Term(1)
    assert Term(2, last).steps > last.steps


# A token that comes back while somebody notes what is to be done behind the call.


def test_a_token_that_another_has_taken_makes_the_leader_hold_the_socket(stage: Stage) -> None:
    """Perhaps one who has lost the lead, and is just about to make his call."""
    station = stage.add("a")
    station.idle.clear()
    assert stage.lead._call_with_care(Term(1), (station.socket, DATA)) == (True, 0)
    assert (stage.names(), stage.armed("a"), station.held) == ([], SocketEvent(0), True)
    station.idle.append(None)
    stage.lead._finish(Term(1), station)
    assert (stage.armed("a"), station.held) == (READ, False)


@pytest.mark.parametrize("paused", [False, True])
def test_a_call_that_returns_while_its_socket_is_being_held(stage: Stage, paused: bool) -> None:
    station, stations = stage.add("a"), stage.stations
    if paused:
        station.pause()
    station.idle = Tokens(lambda token: token.append(None), there=False)
    with stations.lock:
        assert stations.hold_locked(station) is not paused
    if not paused:
        assert stage.armed("a") == SocketEvent(0)
        station.idle.append(None)
        stage.lead._finish(Term(1), station)
    station.resume()
    assert (stage.armed("a"), station.held, len(station.idle)) == (READ, False, 1)


def test_a_call_that_returns_while_it_is_being_cancelled(stage: Stage) -> None:
    station, stations = stage.add("a"), stage.stations
    station.idle = Tokens(lambda token: token.append(None), there=False)
    station.cancel()
    assert not stations._leaving
    fresh = Station(stations, None, station.socket, station.call, None)
    stations.add(fresh, READ)
    assert (stage.armed("a"), fresh.busy) == (READ, False)


def test_an_end_that_both_have_seen_is_told_once(stage: Stage) -> None:
    """The closer finds the token back, and whoever made the call finds the end then."""
    station, stations = stage.add("a"), stage.stations
    station.socket.close()
    with stations.lock:
        assert stations.take_departed_locked() is station
    stage.lead._finish(Term(1), station)
    with stations.lock:
        assert stations.take_departed_locked() is None


def test_no_release_while_the_next_call_runs(stage: Stage) -> None:
    station, stations = stage.add("a"), stage.stations
    with stations.lock:
        assert stations.hold_locked(station)
        stations.release_locked(station)  # by who made the call before, and comes late
    assert (stage.armed("a"), station.held) == (SocketEvent(0), True)
    station.idle.append(None)
    stage.lead._finish(Term(1), station)
    assert (stage.armed("a"), station.held) == (READ, False)
