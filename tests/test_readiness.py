"""The truth table: row by row as data, its laws for all inputs, and the same rows on real sockets."""

from __future__ import annotations

import contextlib
import itertools
import select
import socket
from collections.abc import Iterator
from functools import reduce
from operator import or_
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bbipc
from bbipc import SocketEvent
from bbipc.events import (
    CONNECTION_AVAILABLE,
    CONNECTION_FAILED,
    CONNECTION_SUCCEEDED,
    DATA_AVAILABLE,
    DETERMINED,
    READY_TO_WRITE,
    REMOTE_DISCONNECTED,
    ROOM_TO_WRITE,
    SERVER_EVENTS,
    STREAM_EVENTS,
)
from bbipc.readiness import (
    ANY_HANG_UP,
    ATTAINABLE,
    ERROR,
    EVERYTHING,
    HUNG_UP,
    INVALID,
    READ_HUNG_UP,
    READABLE,
    STANDING,
    UNASKED,
    WRITABLE,
    WRITE_ANSWERED,
    Condition,
    Stage,
    condition_of,
    server_events,
    stream_events,
    stream_interest,
)
from tests.support.makers import PATIENCE, Namespace, fill, make_namespace

UP = DETERMINED | CONNECTION_SUCCEEDED
ENDED = DETERMINED | CONNECTION_FAILED | REMOTE_DISCONNECTED
FAILED = DETERMINED | CONNECTION_FAILED | ROOM_TO_WRITE
WRITE = READY_TO_WRITE | ROOM_TO_WRITE
TCP_END = READABLE | WRITABLE | READ_HUNG_UP
FULL_END = READABLE | READ_HUNG_UP
LOCAL_END = READABLE | WRITABLE | READ_HUNG_UP | HUNG_UP
RESET = READABLE | WRITABLE | READ_HUNG_UP | HUNG_UP | ERROR


class Row(NamedTuple):
    """A row of DESIGN.md section 3, with the flags by which a kernel tells of it."""

    state: str
    stage: Stage
    flags: int
    unread: int
    condition: Condition
    events: int


TABLE = [
    Row("connecting, tcp", Stage.CONNECTING, 0, 0, Condition.CONNECTING, 0),
    Row("connecting, local", Stage.CONNECTING, WRITABLE | HUNG_UP, 0, Condition.CONNECTING, 0),
    Row("refused", Stage.FAILED, RESET, 0, Condition.FAILED, FAILED),
    Row("refused, error taken", Stage.FAILED, WRITABLE | HUNG_UP, 0, Condition.FAILED, FAILED),
    Row("unreachable", Stage.FAILED, 0, 0, Condition.FAILED, FAILED),
    Row("up, idle", Stage.CONNECTED, WRITABLE, 0, Condition.UP, UP | WRITE),
    Row("up, unread", Stage.CONNECTED, READABLE | WRITABLE, 5, Condition.UP, UP | DATA_AVAILABLE | WRITE),
    Row("up, unread, not counted", Stage.CONNECTED, READABLE, 0, Condition.UP, UP | DATA_AVAILABLE),
    Row("up, send buffer full", Stage.CONNECTED, 0, 0, Condition.UP, UP),
    Row("up, full and unread", Stage.CONNECTED, READABLE, 5, Condition.UP, UP | DATA_AVAILABLE),
    Row("tcp peer closed, unread", Stage.CONNECTED, TCP_END, 5, Condition.UP, UP | DATA_AVAILABLE | WRITE),
    Row("local peer closed, unread", Stage.CONNECTED, LOCAL_END, 5, Condition.UP, UP | DATA_AVAILABLE | WRITE),
    Row("tcp peer closed, all read", Stage.CONNECTED, TCP_END, 0, Condition.ENDED, ENDED | ROOM_TO_WRITE),
    Row("local peer closed, all read", Stage.CONNECTED, LOCAL_END, 0, Condition.ENDED, ENDED | ROOM_TO_WRITE),
    Row("peer shut its side, all read", Stage.CONNECTED, TCP_END, 0, Condition.ENDED, ENDED | ROOM_TO_WRITE),
    Row("peer shut its side, unread, full", Stage.CONNECTED, FULL_END, 1, Condition.UP, UP | DATA_AVAILABLE),
    Row("peer shut its side, all read, full", Stage.CONNECTED, FULL_END, 0, Condition.ENDED, ENDED),
    Row(
        "local peer shut both sides, unread, full",
        Stage.CONNECTED,
        FULL_END | HUNG_UP,
        1,
        Condition.UP,
        UP | DATA_AVAILABLE | ROOM_TO_WRITE,
    ),
    Row(
        "local peer shut both sides, all read, full",
        Stage.CONNECTED,
        FULL_END | HUNG_UP,
        0,
        Condition.ENDED,
        ENDED | ROOM_TO_WRITE,
    ),
    Row("reset, unread", Stage.CONNECTED, RESET, 5, Condition.UP, UP | DATA_AVAILABLE | WRITE),
    Row("reset, all read", Stage.CONNECTED, RESET, 0, Condition.ENDED, ENDED | ROOM_TO_WRITE),
    Row("reset, told as error alone", Stage.CONNECTED, ERROR, 0, Condition.ENDED, ENDED | ROOM_TO_WRITE),
]

stages = st.sampled_from(Stage)
conditions = st.sampled_from(Condition)
flag_sets = st.sets(st.sampled_from([READABLE, WRITABLE, ERROR, HUNG_UP, INVALID, READ_HUNG_UP])).map(
    lambda some: reduce(or_, some, 0)
)
unread_counts = st.integers(0, 2**31 - 1)
wishes = st.integers(0, STREAM_EVENTS).map(lambda number: number & STREAM_EVENTS)
table_settings = settings(database=None, deadline=None, max_examples=200)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.state)
def test_a_row_of_the_table_holds(row: Row) -> None:
    assert condition_of(row.stage, row.flags, row.unread) is row.condition
    assert stream_events(row.condition, row.flags, row.unread) == row.events


@pytest.mark.parametrize(
    ("condition", "standing", "attainable"),
    [
        (Condition.CONNECTING, 0, STREAM_EVENTS),
        (Condition.FAILED, FAILED, FAILED),
        (Condition.UP, UP, STREAM_EVENTS),
        (Condition.ENDED, ENDED, ENDED | ROOM_TO_WRITE),
    ],
    ids=lambda value: value.value if isinstance(value, Condition) else None,
)
def test_a_condition_has_its_standing_and_its_attainable_events(
    condition: Condition, standing: int, attainable: int
) -> None:
    assert STANDING[condition] == standing
    assert ATTAINABLE[condition] == attainable


def test_every_condition_stands_in_both_tables() -> None:
    assert set(STANDING) == set(ATTAINABLE) == set(Condition)


@given(stages, flag_sets, unread_counts)
@table_settings
def test_nothing_true_is_unattainable_and_everything_standing_is_true(stage: Stage, flags: int, unread: int) -> None:
    condition = condition_of(stage, flags, unread)
    events = stream_events(condition, flags, unread)
    assert events & ~ATTAINABLE[condition] == 0
    assert events & STANDING[condition] == STANDING[condition]
    assert events & ~STREAM_EVENTS == 0


@given(stages, flag_sets, unread_counts)
@table_settings
def test_a_stream_has_succeeded_or_failed_exactly_when_it_is_determined(stage: Stage, flags: int, unread: int) -> None:
    events = stream_events(condition_of(stage, flags, unread), flags, unread)
    outcomes = (events & CONNECTION_SUCCEEDED > 0) + (events & CONNECTION_FAILED > 0)
    assert outcomes == (1 if events & DETERMINED else 0)
    assert bool(events & DETERMINED) == (stage is not Stage.CONNECTING)


@given(flag_sets, unread_counts)
@table_settings
def test_an_ended_stream_never_has_data_nor_is_ready_to_write(flags: int, unread: int) -> None:
    assert stream_events(Condition.ENDED, flags, unread) & (DATA_AVAILABLE | READY_TO_WRITE) == 0


@given(stages, flag_sets, unread_counts)
@table_settings
def test_there_is_room_exactly_when_a_write_is_answered(stage: Stage, flags: int, unread: int) -> None:
    condition = condition_of(stage, flags, unread)
    answered = stage is Stage.FAILED or (stage is Stage.CONNECTED and bool(flags & (WRITABLE | HUNG_UP | ERROR)))
    assert bool(stream_events(condition, flags, unread) & ROOM_TO_WRITE) == answered


@given(stages, flag_sets, unread_counts)
@table_settings
def test_who_is_ready_to_write_has_room(stage: Stage, flags: int, unread: int) -> None:
    events = stream_events(condition_of(stage, flags, unread), flags, unread)
    assert events & ROOM_TO_WRITE or not events & READY_TO_WRITE


@given(stages, flag_sets, unread_counts)
@table_settings
def test_data_and_the_end_are_never_told_together(stage: Stage, flags: int, unread: int) -> None:
    events = stream_events(condition_of(stage, flags, unread), flags, unread)
    assert not (events & DATA_AVAILABLE and events & REMOTE_DISCONNECTED)


@given(st.sampled_from([READ_HUNG_UP, HUNG_UP, ERROR]), flag_sets, st.integers(1, 2**31 - 1))
@table_settings
def test_a_hang_up_never_hides_unread_bytes(hang_up: int, flags: int, unread: int) -> None:
    condition = condition_of(Stage.CONNECTED, flags | hang_up, unread)
    events = stream_events(condition, flags | hang_up, unread)
    assert condition is Condition.UP
    assert events & DATA_AVAILABLE
    assert not events & REMOTE_DISCONNECTED


@given(st.sampled_from([READ_HUNG_UP, HUNG_UP, ERROR]), flag_sets)
@table_settings
def test_a_hang_up_with_nothing_unread_is_the_end(hang_up: int, flags: int) -> None:
    assert condition_of(Stage.CONNECTED, flags | hang_up, 0) is Condition.ENDED


@given(flag_sets, unread_counts)
@table_settings
def test_without_a_hang_up_a_connected_stream_is_up_whatever_is_unread(flags: int, unread: int) -> None:
    assert condition_of(Stage.CONNECTED, flags & ~ANY_HANG_UP, unread) is Condition.UP


@given(st.sampled_from([Stage.CONNECTING, Stage.FAILED]), flag_sets, unread_counts)
@table_settings
def test_flags_never_guess_the_stage_of_the_connect(stage: Stage, flags: int, unread: int) -> None:
    expected = Condition.CONNECTING if stage is Stage.CONNECTING else Condition.FAILED
    assert condition_of(stage, flags, unread) is expected


@given(flag_sets)
@table_settings
def test_a_server_is_available_exactly_when_readable(flags: int) -> None:
    assert server_events(flags) == (CONNECTION_AVAILABLE if flags & READABLE else 0)
    assert server_events(flags) & ~SERVER_EVENTS == 0


INTEREST = [
    # (wanted, with an edge for the end, without one)
    (0, READ_HUNG_UP, READ_HUNG_UP),
    (DATA_AVAILABLE, READABLE | READ_HUNG_UP, READABLE | READ_HUNG_UP),
    (READY_TO_WRITE, WRITABLE | READ_HUNG_UP, WRITABLE | READ_HUNG_UP),
    (DATA_AVAILABLE | READY_TO_WRITE, EVERYTHING, EVERYTHING),
    (REMOTE_DISCONNECTED, READ_HUNG_UP, READABLE | READ_HUNG_UP),
    (CONNECTION_FAILED, READ_HUNG_UP, READABLE | READ_HUNG_UP),
    (READY_TO_WRITE | REMOTE_DISCONNECTED, WRITABLE | READ_HUNG_UP, EVERYTHING),
    (ROOM_TO_WRITE, WRITABLE, WRITABLE),
    (ROOM_TO_WRITE | READY_TO_WRITE, WRITABLE | READ_HUNG_UP, WRITABLE | READ_HUNG_UP),
    (ROOM_TO_WRITE | DATA_AVAILABLE, EVERYTHING, EVERYTHING),
    (ROOM_TO_WRITE | REMOTE_DISCONNECTED, WRITABLE | READ_HUNG_UP, EVERYTHING),
    (DETERMINED | CONNECTION_SUCCEEDED, READ_HUNG_UP, READ_HUNG_UP),
    (STREAM_EVENTS, EVERYTHING, EVERYTHING),
]


@pytest.mark.parametrize("stage", [Stage.CONNECTED, Stage.FAILED])
@pytest.mark.parametrize(("wanted", "with_edge", "without"), INTEREST)
def test_a_decided_stream_asks_for_what_can_matter(stage: Stage, wanted: int, with_edge: int, without: int) -> None:
    assert stream_interest(stage, wanted, end_has_edge=True) == with_edge
    assert stream_interest(stage, wanted, end_has_edge=False) == without


@given(wishes, st.booleans())
@table_settings
def test_a_connecting_stream_asks_for_the_outcome_alone_whatever_is_wanted(wanted: int, end_has_edge: bool) -> None:
    assert stream_interest(Stage.CONNECTING, wanted, end_has_edge=end_has_edge) == WRITABLE


def events_of(stage: Stage, flags: int, unread: int) -> int:
    return stream_events(condition_of(stage, flags, unread), flags, unread)


@pytest.mark.parametrize("end_has_edge", [True, False])
def test_every_change_that_can_matter_wakes_the_waiter(end_has_edge: bool) -> None:
    """For every wish and every two states of a connected stream between which the wished-for comes true, the flag that
    makes the difference is one that was asked for (or that the kernel tells unasked).
    """
    told_states = [
        (flags, unread)
        for flags, unread in itertools.product(
            (0, WRITABLE, READABLE, READABLE | WRITABLE, TCP_END, FULL_END, FULL_END | HUNG_UP, LOCAL_END, RESET),
            (0, 5),
        )
        if (not unread or flags & READABLE) and (unread or not flags & READABLE or flags & READ_HUNG_UP)
    ]
    for wanted in range(1, STREAM_EVENTS + 1):
        if wanted & ~STREAM_EVENTS:
            continue
        asked = stream_interest(Stage.CONNECTED, wanted, end_has_edge=end_has_edge) | UNASKED
        if not end_has_edge:
            asked &= ~READ_HUNG_UP  # a kernel without the flag does not tell it
        for flags, unread in told_states:
            found = events_of(Stage.CONNECTED, flags, unread) & wanted
            if not events_of(Stage.CONNECTED, 0, 0) & wanted and found:
                assert flags & asked, f"{SocketEvent(wanted)!r} comes true with flags {flags:#x} and nobody wakes"


def test_who_waits_for_room_alone_is_told_of_no_end_that_lasts() -> None:
    """The peer has ended, our buffer is full: no flag that was asked for is up, so the wait neither spins nor ticks."""
    asked = stream_interest(Stage.CONNECTED, ROOM_TO_WRITE, end_has_edge=True) | UNASKED
    assert not FULL_END & asked
    assert ATTAINABLE[condition_of(Stage.CONNECTED, FULL_END, 0)] & ROOM_TO_WRITE


def test_the_flags_have_the_numbers_of_this_systems_poll() -> None:
    """Backends hand the numbers on as they are; on a system with others (FreeBSD's POLLRDHUP is 0x4000) this fails."""
    assert (READABLE, WRITABLE, ERROR) == (select.POLLIN, select.POLLOUT, select.POLLERR)
    assert (HUNG_UP, INVALID) == (select.POLLHUP, select.POLLNVAL)
    if hasattr(select, "POLLRDHUP"):
        assert select.POLLRDHUP == READ_HUNG_UP
    if hasattr(select, "epoll"):
        assert (READABLE, WRITABLE, ERROR) == (select.EPOLLIN, select.EPOLLOUT, select.EPOLLERR)
        assert (HUNG_UP, READ_HUNG_UP) == (select.EPOLLHUP, select.EPOLLRDHUP)


def test_the_flags_are_single_bits_and_the_groups_are_made_of_them() -> None:
    flags = (READABLE, WRITABLE, ERROR, HUNG_UP, INVALID, READ_HUNG_UP)
    assert all(flag.bit_count() == 1 for flag in flags)
    assert len(set(flags)) == len(flags)
    assert ANY_HANG_UP == READ_HUNG_UP | HUNG_UP | ERROR
    assert UNASKED == HUNG_UP | ERROR | INVALID
    assert WRITE_ANSWERED == WRITABLE | HUNG_UP | ERROR
    assert EVERYTHING == READABLE | WRITABLE | READ_HUNG_UP


# The same rows on real connections, by every way of looking.


@contextlib.contextmanager
def real_state(namespace: Namespace, state: str) -> Iterator[bbipc.StreamSocket]:
    """A stream that is in *state* now."""
    with namespace.stream_and_peer() as (stream, peer):
        if "unread" in state:
            peer.sendall(b"bytes")
            assert bbipc.poll_socket(stream, SocketEvent.DATA_AVAILABLE, PATIENCE)
        if state.startswith("closed"):
            peer.close()
        elif state.startswith("shut"):
            peer.shutdown(socket.SHUT_WR)
        elif state == "reset":
            namespace.reset(stream, peer)
        if state in {"closed, read", "shut, read", "shut, read, full", "reset"}:
            assert bbipc.poll_socket(stream, SocketEvent.REMOTE_DISCONNECTED, PATIENCE)
        if state in {"closed, unread", "shut, unread", "shut, unread, full"}:
            # The end must have arrived behind the bytes, or the row would be another one.
            with select_end(stream) as arrived:
                assert arrived
        if state.endswith("full"):
            fill(stream)
        yield stream


@contextlib.contextmanager
def select_end(stream: bbipc.StreamSocket) -> Iterator[bool]:
    poll = select.poll()
    poll.register(stream.fileno(), READ_HUNG_UP)
    yield bool(poll.poll(PATIENCE * 1000))


REAL = {
    "idle": UP | WRITE,
    "unread": UP | DATA_AVAILABLE | WRITE,
    "full": UP,
    "closed, unread": UP | DATA_AVAILABLE | WRITE,
    "closed, read": ENDED | ROOM_TO_WRITE,
    "shut, unread": UP | DATA_AVAILABLE | WRITE,
    "shut, unread, full": UP | DATA_AVAILABLE,
    "shut, read": ENDED | ROOM_TO_WRITE,
    "shut, read, full": ENDED,
    "reset": ENDED | ROOM_TO_WRITE,
}


@pytest.mark.parametrize("state", REAL)
def test_a_real_stream_stands_in_its_row_by_poll_and_by_its_predicates(namespace: Namespace, state: str) -> None:
    with real_state(namespace, state) as stream:
        told = bbipc.poll_socket(stream, SocketEvent(STREAM_EVENTS), 0)
        assert told == SocketEvent(REAL[state])
        for event in SocketEvent(STREAM_EVENTS):
            assert event.name is not None
            assert getattr(stream, event.name.lower())() is (event in told), event


@pytest.mark.parametrize("state", REAL)
def test_a_poller_tells_the_same_row_on_every_backend(namespace: Namespace, backend: str, state: str) -> None:
    with real_state(namespace, state) as stream, bbipc.make_poller(backend) as poller:
        poller.monitor_socket(stream, SocketEvent(STREAM_EVENTS))
        assert poller.wait_for_events(PATIENCE) == [(stream, SocketEvent(REAL[state]))]


@pytest.mark.parametrize("state", REAL)
def test_a_poller_tells_each_event_of_the_row_when_asked_for_it_alone(
    namespace: Namespace, backend: str, state: str
) -> None:
    with real_state(namespace, state) as stream, bbipc.make_poller(backend) as poller:
        poller.monitor_socket(stream, SocketEvent(0))
        for event in SocketEvent(STREAM_EVENTS):
            poller.set_monitored_events(stream, event)
            expected = [(stream, event)] if event.value & REAL[state] else []
            assert poller.wait_for_events(0) == expected, event


def test_a_refused_tcp_connect_stands_in_its_row(short_dir: Path) -> None:
    for name in ("ipv4", "ipv6"):
        namespace = make_namespace(name, short_dir)
        with namespace.make_server() as server:
            pass
        with namespace.connect(server) as stream:
            assert bbipc.poll_socket(stream, SocketEvent.DETERMINED, PATIENCE)
            assert bbipc.poll_socket(stream, SocketEvent(STREAM_EVENTS), 0) == SocketEvent(FAILED)
