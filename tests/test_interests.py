"""The table of who waits for what, with a poller that only writes down what it is asked."""

from __future__ import annotations

import errno
import gc
import threading
import weakref
from collections.abc import Callable
from typing import cast

import pytest

import bbipc
from bbipc import PollerClosedError, SocketClosedError, SocketEvent
from bbipc.events import DATA_AVAILABLE, READY_TO_WRITE, REMOTE_DISCONNECTED
from bbipc.polling.poller import Poller
from bbipc.sockets import fork
from bbipc.sockets.base import Socket
from pool.interests import Interests, Party
from tests.stress.close_race import switch_interval
from tests.support.makers import PATIENCE, Worker


class Interrupt(BaseException):
    """What a signal handler raises."""


class Book:
    """A poller that writes down, and raises where it is told to: before the work is done, or behind it."""

    def __init__(self) -> None:
        self.monitored: dict[object, SocketEvent] = {}
        self.asked: list[tuple[str, object]] = []
        self.error: BaseException | None = None
        self.behind = False

    def _enter(self, name: str, socket: object, write: Callable[[], object]) -> None:
        self.asked.append((name, socket))
        error, self.error = self.error, None
        if error is None or self.behind:
            write()
        if error is not None:
            raise error

    def monitor_socket(self, socket: object, events: SocketEvent) -> None:
        if socket in self.monitored:
            raise ValueError("already")
        self._enter("monitor", socket, lambda: self.monitored.__setitem__(socket, events))

    def set_monitored_events(self, socket: object, events: SocketEvent) -> None:
        if socket not in self.monitored:
            raise KeyError(socket)
        self._enter("set", socket, lambda: self.monitored.__setitem__(socket, events))

    def unmonitor_socket(self, socket: object) -> None:
        if socket not in self.monitored:
            raise KeyError(socket)
        self._enter("unmonitor", socket, lambda: self.monitored.pop(socket))


@pytest.fixture(name="book")
def a_book() -> Book:
    return Book()


@pytest.fixture(name="table")
def a_table(book: Book) -> Interests:
    table = Interests()
    table.poller = cast(Poller, book)
    return table


class Stub:
    """A socket, for a table that only compares it."""

    closed = False


def stub() -> Socket:
    return cast(Socket, Stub())


def nobody(socket: Socket, events: SocketEvent) -> None:
    """A callback."""


def consistent(table: Interests, book: Book) -> bool:
    """The poller is asked for exactly what somebody wants, and the short cut is of those it is meant for."""
    wanted = {}
    table.refresh()
    for socket in list(table._table):
        parties = table.parties_of(socket)
        assert parties
        bits = 0
        for party in parties:
            bits |= party.wanted
        wanted[socket] = bits
        direct = len(parties) == 1 and bits and parties[0].direct is not None
        assert bool(direct) is (socket in table.direct)
    return {socket: events.value for socket, events in book.monitored.items()} == wanted


def test_the_poller_is_asked_for_the_union_and_only_where_it_changes(table: Interests, book: Book) -> None:
    socket = stub()
    first, second, third = Party(DATA_AVAILABLE), Party(DATA_AVAILABLE), Party(READY_TO_WRITE)
    table.join(socket, first)
    table.join(socket, second)
    assert book.monitored == {socket: SocketEvent.DATA_AVAILABLE}
    table.join(socket, third)
    assert book.monitored == {socket: SocketEvent.DATA_AVAILABLE | SocketEvent.READY_TO_WRITE}
    assert table.parties_of(socket) == (first, second, third)
    assert table.leave(socket, first) is True
    assert table.leave(socket, second) is True
    assert book.monitored == {socket: SocketEvent.READY_TO_WRITE}
    assert table.leave(socket, third) is True
    assert book.monitored == {}
    assert len(table) == 0
    assert [name for name, _ in book.asked] == ["monitor", "set", "set", "unmonitor"]


def test_a_party_leaves_once(table: Interests) -> None:
    socket, party = stub(), Party(DATA_AVAILABLE)
    table.join(socket, party)
    assert table.leave(socket, party) is True
    assert table.leave(socket, party) is False
    assert table.parties_of(socket) == ()
    assert table.parties_of(None) == ()


def test_the_short_cut_is_for_a_single_monitor_that_is_not_paused(table: Interests) -> None:
    """It is left at every change, and come back to before the next wait."""
    socket, monitor, wait = stub(), Party(DATA_AVAILABLE, nobody), Party(READY_TO_WRITE)

    def direct() -> dict[Socket, object]:
        assert table.direct == {}
        table.refresh()
        return dict(table.direct)

    table.join(socket, monitor)
    assert direct() == {socket: nobody}
    table.join(socket, wait)
    assert direct() == {}
    table.leave(socket, wait)
    assert direct() == {socket: nobody}
    table.change(socket, monitor, 0)
    assert direct() == {}
    table.change(socket, monitor, READY_TO_WRITE)
    assert direct() == {socket: nobody}
    table.leave(socket, monitor)
    assert direct() == {}
    table.join(socket, wait)
    assert direct() == {}


TAKERS: dict[str, Callable[[Interests, Socket, Party], object]] = {
    "leave": lambda table, socket, party: table.leave(socket, party),
    "take": lambda table, socket, party: table.take(socket),
    "take_all": lambda table, socket, party: table.take_all(),
}


@pytest.mark.parametrize("taker", TAKERS.values(), ids=TAKERS)
def test_nothing_is_kept_of_a_socket_that_nobody_waits_for(
    table: Interests, book: Book, taker: Callable[[Interests, Socket, Party], object]
) -> None:
    """Also while the poller thread sleeps, and no refresh comes."""
    socket, party = stub(), Party(DATA_AVAILABLE, nobody)
    ref = weakref.ref(socket)
    table.join(socket, party)
    taker(table, socket, party)
    book.monitored.clear()
    book.asked.clear()
    del socket
    gc.collect()
    assert ref() is None


def test_the_short_cut_does_not_come_back_for_a_closed_socket(table: Interests) -> None:
    socket = stub()
    table.join(socket, Party(DATA_AVAILABLE, nobody))
    cast(Stub, socket).closed = True
    table.refresh()
    assert table.direct == {}


def test_a_pause_keeps_the_place_and_asks_for_nothing(table: Interests, book: Book) -> None:
    socket, party = stub(), Party(DATA_AVAILABLE, nobody)
    table.join(socket, party)
    table.change(socket, party, 0)
    table.change(socket, party, 0)
    assert book.monitored == {socket: SocketEvent(0)}
    assert table.parties_of(socket) == (party,)
    assert [name for name, _ in book.asked] == ["monitor", "set"]


def test_whoever_is_out_changes_nothing(table: Interests, book: Book) -> None:
    socket, party = stub(), Party(DATA_AVAILABLE, nobody)
    table.change(socket, party, READY_TO_WRITE)
    assert book.asked == []
    assert party.wanted == DATA_AVAILABLE


def test_all_of_a_socket_are_taken_by_one_caller(table: Interests) -> None:
    socket, one, other = stub(), Party(DATA_AVAILABLE), Party(DATA_AVAILABLE, nobody)
    table.join(socket, one)
    table.join(socket, other)
    assert table.take(socket) == (one, other)
    assert table.take(socket) == ()
    assert table.leave(socket, one) is False
    assert len(table) == 0
    assert table.direct == {}


def test_all_are_taken(table: Interests) -> None:
    parties = [Party(DATA_AVAILABLE, nobody) for _ in range(5)]
    for party in parties:
        table.join(stub(), party)
    assert table.take_all() == parties
    assert table.take_all() == []
    assert table.direct == {}


def test_a_socket_that_has_left_the_poller_is_closed(table: Interests, book: Book) -> None:
    """Its parties are still there, to be told of it by the poller thread; nobody new is let in."""
    socket, first, second = stub(), Party(DATA_AVAILABLE), Party(READY_TO_WRITE)
    table.join(socket, first)
    book.monitored.clear()
    with pytest.raises(SocketClosedError):
        table.join(socket, second)
    assert table.parties_of(socket) == (first,)
    table.change(socket, first, REMOTE_DISCONNECTED)
    assert table.take(socket) == (first,)
    table.join(socket, second)  # a poller that takes it again: one that has the socket says no by itself
    book.monitored.clear()
    assert table.leave(socket, second) is True
    assert len(table) == 0


@pytest.mark.parametrize("error", [SocketClosedError(None), PollerClosedError("closed"), OSError(errno.ENOSPC, "full")])
def test_who_is_refused_leaves_nothing(table: Interests, book: Book, error: Exception) -> None:
    socket, first, second = stub(), Party(DATA_AVAILABLE), Party(READY_TO_WRITE, nobody)
    book.error = error
    with pytest.raises(type(error)):
        table.join(socket, second)
    assert len(table) == 0
    assert table.direct == {}
    table.join(socket, first)
    book.error = error
    with pytest.raises(type(error)):
        table.join(socket, second)
    assert table.parties_of(socket) == (first,)
    assert consistent(table, book)
    table.join(socket, second)
    assert consistent(table, book)


def test_a_change_that_was_refused_may_be_made_again(table: Interests, book: Book) -> None:
    socket, party = stub(), Party(DATA_AVAILABLE, nobody)
    table.join(socket, party)
    book.error = OSError(errno.ENOSPC, "full")
    with pytest.raises(OSError, match="full"):
        table.change(socket, party, READY_TO_WRITE)
    table.change(socket, party, READY_TO_WRITE)
    assert book.monitored == {socket: SocketEvent.READY_TO_WRITE}
    assert consistent(table, book)


def test_a_kernel_without_room_keeps_nobody_from_leaving(table: Interests, book: Book) -> None:
    """Whoever leaves has to settle a future: he must come to that."""
    socket, first, second = stub(), Party(DATA_AVAILABLE), Party(READY_TO_WRITE, nobody)
    table.join(socket, first)
    table.join(socket, second)
    book.error = OSError(errno.ENOSPC, "full")
    assert table.leave(socket, first) is True
    assert table.parties_of(socket) == (second,)


STEPS: dict[str, Callable[[Interests, Socket, Party], object]] = {
    "join the first": lambda table, socket, party: table.join(socket, party),
    "join another": lambda table, socket, party: table.join(socket, party),
    "change": lambda table, socket, party: table.change(socket, party, REMOTE_DISCONNECTED),
    "leave the first": lambda table, socket, party: table.leave(socket, party),
    "leave another": lambda table, socket, party: table.leave(socket, party),
}


@pytest.mark.parametrize("behind", [False, True], ids=["before", "behind"])
@pytest.mark.parametrize("step", STEPS)
def test_a_ctrl_c_beside_the_pollers_work_leaves_no_lie(table: Interests, book: Book, step: str, behind: bool) -> None:
    """A socket that stays in the poller without a party makes the thread spin, and can never be waited for again."""
    socket, party, other = stub(), Party(DATA_AVAILABLE, nobody), Party(READY_TO_WRITE)
    if step != "join the first":
        table.join(socket, other if step == "join another" else party)
    if step == "leave another":
        table.join(socket, other)
    book.error, book.behind = Interrupt(), behind
    with pytest.raises(Interrupt):
        STEPS[step](table, socket, party)
    table.leave(socket, party)
    table.leave(socket, other)
    assert table.parties_of(socket) == ()
    assert book.monitored == {}
    table.join(socket, party)
    assert consistent(table, book)
    table.leave(socket, party)
    assert consistent(table, book)


def test_what_the_poller_was_asked_too_much_for_is_taken_back(table: Interests, book: Book) -> None:
    """The kernel had no room for the change, or a Ctrl-C came: the poller thread is told what nobody wants."""
    socket, first, second = stub(), Party(DATA_AVAILABLE), Party(READY_TO_WRITE, nobody)
    table.join(socket, first)
    table.join(socket, second)
    book.error = OSError(errno.ENOSPC, "full")
    table.leave(socket, first)
    table.arm_anew(socket)
    assert book.monitored == {socket: SocketEvent.READY_TO_WRITE}
    table.leave(socket, second)
    book.monitored[socket] = SocketEvent.READY_TO_WRITE
    table.arm_anew(socket)
    assert book.monitored == {}
    table.arm_anew(socket)
    assert consistent(table, book)
    assert len(table) == 0


def test_a_childs_copy_is_left_alone(table: Interests, book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lock may be held by a thread that is not there."""
    socket, party = stub(), Party(DATA_AVAILABLE, nobody)
    table.join(socket, party)
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with table.lock:
            held.set()
            assert done.wait(PATIENCE)

    holder = Worker(hold)
    assert held.wait(PATIENCE)
    monkeypatch.setattr(fork, "generation", fork.generation + 1)
    assert table.leave(socket, party) is False
    table.change(socket, party, 0)
    assert len(table) == 1
    done.set()
    holder.outcome()
    assert book.monitored == {socket: SocketEvent.DATA_AVAILABLE}


def test_a_table_that_many_threads_change_stays_in_order() -> None:
    """4 threads, 3,000 changes each, on three sockets and a real poller; each party is taken out exactly once."""
    table = Interests()
    streams = [stream for _ in range(2) for stream in bbipc.local_stream_pair()]
    barrier = threading.Barrier(4)
    taken: list[Party] = []

    def work(number: int) -> int:
        count = 0
        barrier.wait(PATIENCE)
        for step in range(1000):
            socket = streams[(number + step) % 3]
            wanted = (DATA_AVAILABLE, READY_TO_WRITE, REMOTE_DISCONNECTED)[step % 3]
            party = Party(wanted, nobody if step % 2 else None)
            table.join(socket, party)
            table.change(socket, party, DATA_AVAILABLE)
            if step % 50 == 0:
                taken.extend(table.take_all() if step % 100 == 0 else ())
            count += table.leave(socket, party)
        return count

    with bbipc.make_poller() as poller:
        table.poller = poller
        # taken out of the table alone, it stands in the poller: this poller takes it again
        poller.monitor_socket = lambda socket, events: _again(poller, socket, events)  # type: ignore[method-assign]
        with switch_interval(1e-6):
            workers = [Worker(lambda number=number: work(number)) for number in range(4)]  # type: ignore[misc]
            counts = [cast(int, worker.outcome()) for worker in workers]
        assert sum(counts) + len(taken) == 4000
        assert len(table) == 0
        assert table.direct == {}
    for stream in streams:
        stream.close()


def _again(poller: bbipc.Poller, socket: Socket, events: SocketEvent) -> None:
    if socket in poller.monitored_sockets():
        poller.set_monitored_events(socket, events)
    else:
        type(poller).monitor_socket(poller, socket, events)
