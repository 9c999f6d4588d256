"""Terms: the quick way of a leader, and what happens where he loses the lead on it; on the test's own thread."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, SupportsIndex
from unittest import mock

import pytest

from bbipc import Socket, SocketEvent
from pool.lookout import LOOKS, SLOW, WATCH
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
    """``Station.idle``, where *action* follows the first look at it, or comes just before it is taken."""

    def __init__(self, action: Callable[[list[None]], object], *, there: bool = True) -> None:
        super().__init__([None] if there else [])
        self.action: Callable[[list[None]], object] | None = action

    def __bool__(self) -> bool:
        found = len(self) > 0
        self.act()
        return found

    def pop(self, index: SupportsIndex = -1) -> None:
        self.act()
        super().pop(index)

    def act(self) -> None:
        action, self.action = self.action, None
        if action is not None:
            action(self)


class Found(dict[Socket, Station]):
    """``Stations.table``, where *action* comes just before something is found in it."""

    def __init__(self, table: dict[Socket, Station], action: Callable[[], object]) -> None:
        super().__init__(table)
        self.action = action

    def get(self, socket: Socket, default: Any = None) -> Any:
        self.action()
        return super().get(socket, default)


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


@pytest.mark.parametrize("unusual", ["gone", "busy", "changed"])
def test_what_is_unusual_is_given_back(stage: Stage, unusual: str) -> None:
    station, other = stage.add("a"), stage.add("b")
    stage.ready("a", "b")
    if unusual == "gone":
        del stage.stations.table[other.socket]
    elif unusual == "busy":
        other.idle.clear()
    else:
        stage.during["a"] = other.pause
    report = (other.socket, DATA)
    assert calls_of(stage, Term(1), (station.socket, DATA), report, (station.socket, DATA)) == (1, report)
    assert stage.names() == ["a"]


@pytest.mark.parametrize("change", ["close", "loss"])
def test_what_happens_in_a_call_ends_the_quick_way(stage: Stage, change: str) -> None:
    station, other = stage.add("a"), stage.add("b")
    stage.ready("a", "b")
    term = Term(1)
    stage.during["a"] = {
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


# A leader who is late: something is changed just before he takes the token.


def test_one_that_is_made_anew_waits_for_the_call_of_a_late_leader(stage: Stage) -> None:
    """Cancelled and made anew, just before a leader who has found the old one begins its call."""
    station, socket = stage.add("a"), stage.sockets["a"]
    running: list[str] = []
    together: list[list[str]] = []

    def call(name: str) -> None:
        running.append(name)
        together.append(running.copy())
        if name == "old":
            stage.ready("a")
            relieve(stage, stage.round)
        running.remove(name)

    def make_anew() -> None:
        station.cancel()
        fresh = Station(stage.stations, None, socket, lambda socket, events: call("new"), None)
        stage.stations.add(fresh, READ)

    stage.during["a"] = lambda: call("old")
    station.idle = Tokens(lambda token: make_anew())
    stage.ready("a")
    for _ in range(3):
        stage.round()
    assert together
    assert max(map(len, together)) == 1


@pytest.mark.parametrize("end", ["close", "shutdown"])
def test_no_call_begins_when_the_end_was_told(stage: Stage, end: str) -> None:
    station = stage.add("a")
    stage.add("b")

    def end_it() -> None:
        if end == "shutdown":
            stage.lead.end(Station.end)
        else:
            stage.sockets["a"].close()
            relieve(stage, stage.round)

    station.idle = Tokens(lambda token: end_it())
    stage.ready("a")
    stage.round()
    assert ("a" in stage.names(), [name for name, _ in stage.closes].count("a")) == (False, 1)


def test_an_heir_is_nowhere_to_be_found_with_a_token(stage: Stage) -> None:
    station, stations = stage.add("a"), stage.stations
    assert station.begin()
    station.cancel()
    heir = Station(stations, None, station.socket, station.call, None)
    found: list[bool] = []

    class Noted(dict[Socket, Station]):
        def __setitem__(self, socket: Socket, station: Station) -> None:
            found.append(bool(station.idle))
            super().__setitem__(socket, station)

    stations.table = Noted()
    stations.add(heir, READ)
    assert found == [False]


def test_what_was_told_for_another_is_looked_at_with_care(stage: Stage) -> None:
    """The station in the table is a new one, which wants something else."""
    station, stations = stage.add("a"), stage.stations
    told: list[SocketEvent] = []

    def make_anew() -> None:
        stations.table.action = int  # type: ignore[attr-defined]
        station.cancel()
        fresh = Station(stations, None, station.socket, lambda socket, events: told.append(events), None)
        stations.add(fresh, SocketEvent.REMOTE_DISCONNECTED)

    stations.table = Found(stations.table, make_anew)
    report = (station.socket, DATA)
    assert calls_of(stage, Term(1), report) == (0, report)
    assert told == []


def test_a_report_that_another_has_taken_is_no_error(stage: Stage) -> None:
    assert stage.lead._call_with_care(Term(1), None) == 0


def test_who_has_lost_the_lead_makes_no_further_call(stage: Stage) -> None:
    station, term = stage.add("a"), Term(1)
    term.lost = True
    assert stage.lead._call_with_care(term, (station.socket, DATA)) == 0
    assert not stage.calls


def test_an_errand_is_taken_while_the_token_is_held(stage: Stage) -> None:
    """Behind that another leader's call may leave one there."""
    station = stage.add("a")
    left: list[object] = []

    class Returned(list[None]):
        def append(self, item: None) -> None:
            left.append(station.errand)
            super().append(item)

    station.idle = Returned([None])
    stage.during["a"] = lambda: stage.lead.follow_up(Pieces(int))
    term = stage.lead._begin(threading.get_ident())
    assert term is not None
    report = (station.socket, DATA)
    assert calls_of(stage, term, report) == (2, None)
    assert stage.lead._call_with_care(term, report) == 2
    assert left == [None, None]


def test_a_listener_that_blocks_where_it_reads_is_told_of_no_more(stage: Stage) -> None:
    """In a hook, say: whoever takes over would else be told of its socket again and again."""
    reader = Reader(stage.add("a"))
    armed: list[SocketEvent] = []

    def block() -> None:
        reader.before_take = int
        relieve(stage, stage.round)
        stage.bert(stage.round)
        armed.append(stage.armed("a"))

    reader.before_take = block
    stage.ready("a")
    stage.round()
    assert armed == [SocketEvent(0)]
    assert stage.armed("a") == READ
    assert len(reader.answered) <= 1
    stage.round()
    assert len(reader.answered) == 1


def test_calls_are_not_judged_by_the_time_of_one_made_apart(stage: Stage) -> None:
    for name in "ab":
        stage.add(name)
    stage.ready("a", "b")

    def act() -> None:
        if len(stage.calls) == 1:
            stage.lead._pace.apart = 1.0
            stage.add("c")  # looked at with care from here on
        else:
            stage.clock.now += SLOW * 2.5

    stage.during = dict.fromkeys("ab", act)
    stage.round()
    assert len(stage.calls) == 2
    assert stage.lead._pace.apart == pytest.approx(2.5)


# Who watches, where the leader ends his wait just then.


class Woken(Term):
    """Is found waiting once more, and waits no more behind that."""

    __slots__ = ("_polling", "then")

    def __init__(self) -> None:
        super().__init__(1)
        self.then: Callable[[], object] = int
        self._polling = True

    @property
    def polling(self) -> bool:
        found, self._polling = self._polling, False
        self.then()
        return found

    @polling.setter
    def polling(self, value: bool) -> None:
        self._polling = value


def test_a_watcher_does_not_rest_where_the_leader_has_just_ended_his_wait(stage: Stage) -> None:
    for _ in range(LOOKS):
        stage.lead._term = Woken()
        assert stage.lead.begin_watch() == WATCH
    stage.lead._term = Woken()
    assert stage.lead.begin_watch() == WATCH


def test_a_watcher_who_leaves_is_seen_to_by_the_leader_who_has_just_ended_his_wait(stage: Stage) -> None:
    """One of the two calls somebody: the leader looks at who watches behind the end of his wait."""
    term = stage.lead._term = Woken()
    assert stage.lead.begin_watch() == WATCH
    stage.lead._lookout.called = True
    term.polling = True
    term.then = stage.lead._call_watch
    before = stage.crew.nudges
    stage.lead.leave()
    assert stage.crew.nudges == before + 1


# A token that comes back while somebody notes what is to be done behind the call.


def test_a_token_that_another_has_taken_makes_the_leader_hold_the_socket(stage: Stage) -> None:
    """Perhaps one who has lost the lead, and is just about to make his call."""
    station = stage.add("a")
    station.idle.clear()
    assert stage.lead._call_with_care(Term(1), (station.socket, DATA)) == 0
    assert (stage.names(), stage.armed("a"), station.held) == ([], SocketEvent(0), True)
    station.idle.append(None)
    stage.lead._finish(Term(1), station, None)
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
        stage.lead._finish(Term(1), station, None)
    station.resume()
    assert (stage.armed("a"), station.held, len(station.idle)) == (READ, False, 1)


def test_a_call_that_returns_while_it_is_being_cancelled(stage: Stage) -> None:
    station, stations = stage.add("a"), stage.stations

    class Returning(list[None]):
        def pop(self, index: SupportsIndex = -1) -> None:
            try:
                super().pop(index)
            except IndexError:
                self.append(None)
                raise

    station.idle = Returning()
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
    stage.lead._finish(Term(1), station, None)
    with stations.lock:
        assert stations.take_departed_locked() is None


def test_no_release_while_the_next_call_runs(stage: Stage) -> None:
    station, stations = stage.add("a"), stage.stations
    with stations.lock:
        assert stations.hold_locked(station)
        stations.release_locked(station)  # by who made the call before, and comes late
    assert (stage.armed("a"), station.held) == (SocketEvent(0), True)
    station.idle.append(None)
    stage.lead._finish(Term(1), station, None)
    assert (stage.armed("a"), station.held) == (READ, False)
