"""Stations: the table of what workers are called for, and how the kernel is asked."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from unittest import mock

import pytest

import bbipc
from bbipc import SocketClosedError, SocketEvent
from pool.stations import Station, Stations
from tests.support.makers import PATIENCE, Worker
from tests.test_fork import in_child

READ = SocketEvent.DATA_AVAILABLE | SocketEvent.REMOTE_DISCONNECTED
NOTHING = SocketEvent(0)


class Table(Stations):
    """With a pair of streams, and a station for one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.ours, self.peer = bbipc.local_stream_pair()
        self.told: list[Exception] = []
        self.station = self.make()

    def make(self) -> Station:
        return Station(self, None, self.ours, lambda socket, events: None, self.told.append)

    def armed(self) -> SocketEvent:
        assert self.poller is not None
        return self.poller.monitored_events(self.ours)

    def look(self) -> SocketEvent:
        """What the poller tells just now."""
        assert self.poller is not None
        return dict(self.poller.wait_for_events(0)).get(self.ours, NOTHING)


def some_departed(table: Table) -> bool:
    """Whether the end of a station is to be told, perhaps."""
    return bool(table.departed or table.closed_sockets)


@pytest.fixture
def table() -> Iterator[Table]:
    table = Table()
    yield table
    table.close()
    table.ours.close()
    table.peer.close()


def test_no_poller_before_there_is_a_station(table: Table) -> None:
    assert table.poller is None
    assert len(table) == 0
    table.wake()  # nobody to wake


def test_added_and_removed(table: Table) -> None:
    table.add(table.station, READ)
    assert len(table) == 1
    assert table.armed() == READ
    assert table.station.active
    assert table.remove(table.station)
    assert not table.remove(table.station)
    assert not table.station.active
    assert len(table) == 0
    with pytest.raises(KeyError):
        table.armed()
    table.add(table.make(), READ)
    assert table.armed() == READ


def test_once_a_socket(table: Table) -> None:
    table.add(table.station, READ)
    with pytest.raises(ValueError, match="monitored already"):
        table.add(table.make(), READ)
    assert table.table[table.ours] is table.station


@pytest.mark.parametrize(
    ("events", "error"),
    [(SocketEvent.CONNECTION_AVAILABLE, ValueError), (3, TypeError), (None, TypeError)],
)
def test_what_is_no_wish(table: Table, events: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        table.add(table.station, events)  # type: ignore[arg-type]
    assert len(table) == 0
    table.add(table.station, READ)
    with pytest.raises(error):
        table.station.set_events(events)  # type: ignore[arg-type]
    assert table.armed() == READ


def test_a_closed_socket(table: Table) -> None:
    table.ours.close()
    with pytest.raises(SocketClosedError):
        table.add(table.station, READ)
    assert len(table) == 0


def test_after_the_end(table: Table) -> None:
    table.close()
    with pytest.raises(RuntimeError, match="shutdown"):
        table.add(table.station, READ)


def test_pause_resume_and_other_events(table: Table) -> None:
    table.add(table.station, READ)
    table.peer.write(b"x")
    assert table.look() == SocketEvent.DATA_AVAILABLE
    table.station.pause()
    table.station.pause()
    assert (table.armed(), table.look()) == (NOTHING, NOTHING)
    table.station.resume()
    table.station.resume()
    assert table.look() == SocketEvent.DATA_AVAILABLE
    table.station.pause()
    table.station.set_events(SocketEvent.READY_TO_WRITE)
    assert table.look() == SocketEvent.READY_TO_WRITE
    table.station.pause()
    table.station.resume()
    assert table.armed() == SocketEvent.READY_TO_WRITE


def test_nothing_changes_what_has_ended(table: Table) -> None:
    table.add(table.station, READ)
    table.station.cancel()
    table.station.cancel()
    for change in (table.station.pause, table.station.resume, lambda: table.station.set_events(READ)):
        change()
        assert not table.station.active
        with pytest.raises(KeyError):
            table.armed()


def test_held_means_that_the_kernel_is_not_asked(table: Table) -> None:
    """Whatever is changed meanwhile; afterwards it is asked for what is wanted then."""
    table.add(table.station, READ)
    with table.lock:
        assert table.hold_locked(table.station)
        assert not table.hold_locked(table.station)
    assert table.armed() == NOTHING
    table.station.set_events(SocketEvent.READY_TO_WRITE)
    assert table.armed() == NOTHING
    table.station.pause()
    table.station.resume()
    assert table.armed() == NOTHING
    with table.lock:
        table.station.idle.append(None)
        table.release_locked(table.station)
    assert table.armed() == SocketEvent.READY_TO_WRITE


def test_paused_in_its_own_call(table: Table) -> None:
    table.add(table.station, READ)
    with table.lock:
        table.hold_locked(table.station)
    table.station.pause()
    with table.lock:
        table.station.idle.append(None)
        table.release_locked(table.station)
        assert not table.hold_locked(table.station)  # told before the pause
    assert table.armed() == NOTHING
    table.station.resume()
    assert table.armed() == READ


def test_cancelled_in_its_own_call(table: Table) -> None:
    table.add(table.station, READ)
    with table.lock:
        table.hold_locked(table.station)
    table.station.cancel()
    with table.lock:
        table.station.idle.append(None)
        table.release_locked(table.station)
    with pytest.raises(KeyError):
        table.armed()
    assert not some_departed(table)


def returns(table: Table, station: Station) -> None:
    """What the leader does then."""
    with table.lock:
        station.idle.append(None)
        if station.held or station.farewell is not None:
            table.release_locked(station)


@pytest.mark.parametrize("held", [False, True])
def test_cancelled_and_made_anew_in_its_own_call(table: Table, held: bool) -> None:
    """The new one begins when the old one's call has returned: no two at once for one socket."""
    table.add(table.station, READ)
    with table.lock:
        if held:
            table.hold_locked(table.station)
        table.station.idle.clear()
    table.station.cancel()
    fresh = table.make()
    table.add(fresh, SocketEvent.READY_TO_WRITE)
    with table.lock:
        assert not table.hold_locked(fresh)  # what was told before
    assert table.armed() == NOTHING
    returns(table, table.station)
    assert table.armed() == SocketEvent.READY_TO_WRITE
    assert table.table[table.ours] is fresh
    with table.lock:
        assert table.hold_locked(fresh)
    returns(table, fresh)
    assert not table._leaving


def test_made_anew_again_and_again_in_its_own_call(table: Table) -> None:
    """The last one begins; those between never had a call."""
    table.add(table.station, READ)
    with table.lock:
        table.station.idle.clear()
    for _ in range(3):
        table.table[table.ours].cancel()
        table.add(table.make(), READ)
    last = table.table[table.ours]
    assert table.armed() == NOTHING
    returns(table, table.station)
    assert (table.armed(), last.busy, last.held) == (READ, False, False)
    last.cancel()
    table.add(table.make(), READ)
    assert table.armed() == READ


@pytest.mark.parametrize("busy", [False, True])
def test_a_ctrl_c_in_a_cancel_leaves_the_rest_to_the_next(table: Table, busy: bool) -> None:
    table.add(table.station, READ)
    if busy:
        table.station.idle.clear()
    assert table.poller is not None
    with mock.patch.object(table.poller, "unmonitor_socket", side_effect=KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt):
            table.station.cancel()
    assert table.station.active
    assert table.look() == NOTHING
    table.station.cancel()
    assert not table.station.active
    assert not table.poller.monitored_sockets()
    if busy:
        returns(table, table.station)
    table.add(table.make(), READ)
    assert table.armed() == READ


@pytest.mark.parametrize("change", ["pause", "cancel", "close", "end"])
def test_an_heir_that_is_changed_before_it_begins(table: Table, change: str) -> None:
    table.add(table.station, READ)
    with table.lock:
        table.station.idle.clear()
    table.station.cancel()
    heir = table.make()
    table.add(heir, READ)
    if change in ("pause", "cancel"):
        getattr(heir, change)()
    elif change == "close":
        table.ours.close()
        with table.lock:
            assert table.take_departed_locked() is None  # not while a call is being made for its socket
    else:
        assert table.close() == []
    returns(table, table.station)
    if change == "pause":
        assert table.armed() == NOTHING
        heir.resume()
        assert table.armed() == READ
    elif change == "cancel":
        assert not some_departed(table)
    else:
        with table.lock:
            assert table.take_departed_locked() is heir
    assert not table._leaving


def test_a_close_is_written_down_by_the_closer(table: Table) -> None:
    """In whatever thread, while another one holds all locks; the wait is ended."""
    table.add(table.station, READ)
    assert not some_departed(table)
    with table.lock:
        Worker(table.ours.close).outcome()
    assert some_departed(table)
    with table.lock:
        assert table.take_departed_locked() is table.station
        assert table.take_departed_locked() is None
    assert not some_departed(table)
    table.station.end()
    assert [type(error) for error in table.told] == [SocketClosedError]
    assert not table.station.active


def test_a_close_while_it_is_busy(table: Table) -> None:
    table.add(table.station, READ)
    with table.lock:
        table.hold_locked(table.station)
        table.ours.close()
        assert table.take_departed_locked() is None
        table.station.idle.append(None)
        table.release_locked(table.station)
        assert table.take_departed_locked() is table.station


def test_closed_and_cancelled(table: Table) -> None:
    table.add(table.station, READ)
    table.ours.close()
    table.station.cancel()
    with table.lock:
        assert table.take_departed_locked() is None
    assert not table.told


def test_the_end_of_all(table: Table) -> None:
    table.add(table.station, READ)
    assert table.close() == [table.station]
    assert table.close() == []
    assert not table.station.active
    assert isinstance(table.station.farewell, RuntimeError)
    assert table.poller is not None
    assert table.poller.closed
    table.wake()
    table.station.cancel()
    table.station.pause()


def test_the_end_of_all_while_one_is_busy(table: Table) -> None:
    table.add(table.station, READ)
    with table.lock:
        table.hold_locked(table.station)
    assert table.close() == []
    with table.lock:
        table.station.idle.append(None)
        table.release_locked(table.station)
    assert table.close() == [table.station]


def test_no_descriptor_for_a_poller(table: Table) -> None:
    with mock.patch("pool.stations.make_poller", side_effect=OSError(errno.EMFILE, "too many")):
        with pytest.raises(OSError, match="too many"):
            table.add(table.station, READ)
    assert len(table) == 0
    table.add(table.station, READ)


def test_the_kernel_has_no_room(table: Table) -> None:
    """What was asked is refused; the same call may be made again."""
    table.add(table.station, READ)
    table.station.pause()
    assert table.poller is not None
    refused = mock.patch.object(table.poller, "_tell_kernel", side_effect=OSError(errno.ENOSPC, "no room"))
    with refused, pytest.raises(OSError, match="no room"):
        table.station.resume()
    table.station.resume()
    assert table.armed() == READ


def test_a_change_does_not_wait_for_a_wait(table: Table) -> None:
    """While the leader waits the kernel is told at once."""
    table.add(table.station, SocketEvent.DATA_AVAILABLE)
    assert table.poller is not None
    waiting = Worker(lambda: table.poller and table.poller.wait_for_events(PATIENCE))
    table.station.set_events(SocketEvent.READY_TO_WRITE)
    assert waiting.outcome() == [(table.ours, SocketEvent.READY_TO_WRITE)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings(r"ignore:.*use of fork\(\) may lead to deadlocks:DeprecationWarning")
def test_in_a_forked_child_nothing_waits_for_the_parents_lock(table: Table) -> None:
    table.add(table.station, READ)
    locked, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with table.lock:
            locked.set()
            assert go_on.wait(PATIENCE)

    holder = Worker(hold)
    assert locked.wait(PATIENCE)

    def in_the_child() -> bool:
        table.station.pause()
        table.station.resume()
        table.station.set_events(READ)
        table.station.cancel()
        table.wake()
        repr(table.station)
        table.ours.close()
        table.close()
        return True

    try:
        assert in_child(in_the_child)
    finally:
        go_on.set()
        holder.outcome()
    table.peer.write(b"x")
    assert table.look() == SocketEvent.DATA_AVAILABLE  # the parent's is untouched


def test_repr(table: Table) -> None:
    table.add(table.station, READ)
    assert "Station active of <LocalStream" in repr(table.station)
    table.station.pause()
    assert "paused" in repr(table.station)
    table.station.cancel()
    assert "ended" in repr(table.station)
