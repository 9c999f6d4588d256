"""The kqueue backend on a system that has none: its translations, and its poller over kernels of paper.

``ScriptedKernel`` tells what the test has written down.  ``LiveKernel`` tells of real sockets what kqueue(2) of macOS
would: a reading and a writing filter each with an end of its own, and no flag for the peer's end in poll(2).
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bbipc
from bbipc import PollerClosedError, SocketEvent
from bbipc.events import STREAM_EVENTS
from bbipc.polling import poller, registry
from bbipc.polling.kqueue import (
    ADD,
    DELETE,
    EOF,
    READ_FILTER,
    WRITE_FILTER,
    Kevent,
    KqueuePoller,
    changes,
    filters,
    flags_of,
)
from bbipc.readiness import ERROR, EVERYTHING, HUNG_UP, INVALID, READ_HUNG_UP, READABLE, WRITABLE
from bbipc.sockets import base, connection
from bbipc.sockets.handle import Handle, at_end, look
from tests.contract.states import half_closed_and_full
from tests.support.makers import PATIENCE, Namespace, Worker, fill, wait_until_asleep

DATA, READY, GONE = SocketEvent.DATA_AVAILABLE, SocketEvent.READY_TO_WRITE, SocketEvent.REMOTE_DISCONNECTED
ROOM = SocketEvent.ROOM_TO_WRITE
ADD_CLEAR_ENABLE = 0x0001 | 0x0020 | 0x0004  # what a kernel may leave set in the flags of an event

Change = tuple[int, int, int]  # number, filter, flags


class ScriptedKernel:
    """A kqueue that keeps its books, refuses what a real one refuses, tells what was scripted, then of its waker."""

    def __init__(self) -> None:
        self.told: list[list[Change]] = []  # every changelist
        self.registered: list[tuple[int, int]] = []
        self.script: list[list[Kevent]] = []
        self.waits: list[float | None] = []
        self.full = False

    def control(self, changelist: Any, maxevents: int, timeout: float | None = None, /) -> list[Any]:
        if changelist is not None:
            assert (maxevents, timeout) == (0, 0), "a change must not wait"
            self.change(changelist)
            return []
        self.waits.append(timeout)
        batch = self.script.pop(0) if self.script else self.ready(timeout)
        assert len(batch) <= maxevents
        for event in batch:
            assert (event.ident, event.filter) in self.registered, "the script tells of what is not registered"
        return batch

    def change(self, changelist: list[Kevent]) -> None:
        if self.full:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        self.told.append([(event.ident, event.filter, event.flags) for event in changelist])
        for event in changelist:
            os.fstat(event.ident)  # EBADF, as the real one, for a number that is not open
            poll = select.poll()
            poll.register(event.ident, 0)
            assert not any(flags & INVALID for _, flags in poll.poll(0)), "the number has changed its meaning already"
            if event.flags == ADD:
                assert (event.ident, event.filter) not in self.registered
                self.registered.append((event.ident, event.filter))
            else:
                assert event.flags == DELETE
                if (event.ident, event.filter) not in self.registered:
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
                self.registered.remove((event.ident, event.filter))

    def ready(self, timeout: float | None) -> list[Kevent]:
        """The waker alone, which is registered first."""
        waker = self.registered[0][0]
        return [Kevent(waker, READ_FILTER, ADD)] if select.select([waker], [], [], timeout)[0] else []

    def filters_of(self, one: bbipc.Socket) -> set[int]:
        return {kind for number, kind in self.registered if number == one.fileno()}


class LiveKernel(ScriptedKernel):
    """Looks at the real sockets: level-triggered, as kqueue is without EV_CLEAR."""

    def ready(self, timeout: float | None) -> list[Kevent]:
        poll = select.poll()
        for number in {number for number, _ in self.registered}:
            mask = READ_HUNG_UP if (number, READ_FILTER) in self.registered else 0
            mask |= READABLE if (number, READ_FILTER) in self.registered else 0
            mask |= WRITABLE if (number, WRITE_FILTER) in self.registered else 0
            poll.register(number, mask)
        told = dict(poll.poll(None if timeout is None else timeout * 1000))
        return [event for number, kind in self.registered for event in self.event_of(number, kind, told.get(number, 0))]

    def event_of(self, number: int, kind: int, flags: int) -> list[Kevent]:
        end = flags & (READ_HUNG_UP | HUNG_UP if kind == READ_FILTER else HUNG_UP)
        if not flags & (READABLE if kind == READ_FILTER else WRITABLE) and not end:
            return []
        return [Kevent(number, kind, ADD | (EOF if end else 0), errno.ECONNRESET if flags & ERROR else 0)]


@pytest.fixture
def no_edge_for_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """poll(2) as the BSDs have it: it says nothing of the peer's end."""

    def look_without(handle: Handle, asked: int) -> int:
        return look(handle, asked & ~READ_HUNG_UP)

    def at_end_without(handle: Handle) -> bool:
        """A peek leaves a pending error where it is on the BSDs (soreceive); on Linux it takes it."""
        return not look(handle, 0) & ERROR and at_end(handle)

    monkeypatch.setattr(connection, "at_end", at_end_without)
    for module in (registry, connection):
        monkeypatch.setattr(module, "POLL_TELLS_END", False)
    for module in (poller, connection, base):
        monkeypatch.setattr(module, "look", look_without)


pytestmark = pytest.mark.usefixtures("no_edge_for_the_end")


@pytest.fixture(name="pair")
def stream_pair() -> Iterator[tuple[bbipc.LocalStream, bbipc.LocalStream]]:
    one, other = bbipc.local_stream_pair()
    with one, other:
        yield one, other


LocalPair = tuple[bbipc.LocalStream, bbipc.LocalStream]


def scripted() -> tuple[ScriptedKernel, KqueuePoller]:
    kernel = ScriptedKernel()
    made = KqueuePoller(kernel, Kevent)
    kernel.told.clear()
    return kernel, made


# The translations.

RECORDED = [
    ("data", [Kevent(7, READ_FILTER, ADD_CLEAR_ENABLE)], {7: READABLE}),
    ("room", [Kevent(7, WRITE_FILTER, ADD_CLEAR_ENABLE)], {7: WRITABLE}),
    (
        "data and room of one number",
        [Kevent(7, READ_FILTER, ADD), Kevent(7, WRITE_FILTER, ADD)],
        {7: READABLE | WRITABLE},
    ),
    (
        "room and data of one number",
        [Kevent(7, WRITE_FILTER, ADD), Kevent(7, READ_FILTER, ADD)],
        {7: READABLE | WRITABLE},
    ),
    ("the peer sends no more", [Kevent(7, READ_FILTER, ADD | EOF)], {7: READABLE | READ_HUNG_UP}),
    ("the peer takes no more", [Kevent(7, WRITE_FILTER, ADD | EOF)], {7: WRITABLE | HUNG_UP}),
    (
        "the peer has gone",
        [Kevent(7, READ_FILTER, EOF), Kevent(7, WRITE_FILTER, EOF)],
        {7: READABLE | WRITABLE | READ_HUNG_UP | HUNG_UP},
    ),
    ("reset, reading", [Kevent(7, READ_FILTER, EOF, errno.ECONNRESET)], {7: READABLE | READ_HUNG_UP | ERROR}),
    ("refused, writing", [Kevent(7, WRITE_FILTER, EOF, errno.ECONNREFUSED)], {7: WRITABLE | HUNG_UP | ERROR}),
    (
        "reset, both",
        [Kevent(7, READ_FILTER, EOF, errno.ECONNRESET), Kevent(7, WRITE_FILTER, EOF, errno.ECONNRESET)],
        {7: READABLE | WRITABLE | READ_HUNG_UP | HUNG_UP | ERROR},
    ),
    ("fflags without an end are no error", [Kevent(7, READ_FILTER, ADD, 1)], {7: READABLE}),
    (
        "several numbers, in their order",
        [Kevent(9, READ_FILTER, ADD), Kevent(7, WRITE_FILTER, EOF), Kevent(9, WRITE_FILTER, ADD)],
        {9: READABLE | WRITABLE, 7: WRITABLE | HUNG_UP},
    ),
    ("nothing", [], {}),
]


@pytest.mark.parametrize(("events", "flags"), [row[1:] for row in RECORDED], ids=[row[0] for row in RECORDED])
def test_recorded_events_are_translated(events: list[Kevent], flags: dict[int, int]) -> None:
    assert flags_of(events) == flags
    assert list(flags_of(events)) == list(flags)


def test_events_may_come_from_any_iterable() -> None:
    assert flags_of(iter([Kevent(3, READ_FILTER, ADD)])) == {3: READABLE}


@pytest.mark.parametrize(
    ("mask", "kinds"),
    [
        (0, set()),
        (READ_HUNG_UP, set()),
        (READABLE, {READ_FILTER}),
        (WRITABLE | READ_HUNG_UP, {WRITE_FILTER}),
        (EVERYTHING, {READ_FILTER, WRITE_FILTER}),
    ],
)
def test_a_mask_asks_for_its_filters(mask: int, kinds: set[int]) -> None:
    assert filters(mask) == kinds


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (0, 0, set()),
        (0, READABLE, {(5, READ_FILTER, ADD)}),
        (0, EVERYTHING, {(5, READ_FILTER, ADD), (5, WRITE_FILTER, ADD)}),
        (READABLE, READABLE, set()),
        (READABLE, READABLE | READ_HUNG_UP, set()),
        (READABLE, EVERYTHING, {(5, WRITE_FILTER, ADD)}),
        (EVERYTHING, READABLE, {(5, WRITE_FILTER, DELETE)}),
        (READABLE, WRITABLE, {(5, READ_FILTER, DELETE), (5, WRITE_FILTER, ADD)}),
        (EVERYTHING, 0, {(5, READ_FILTER, DELETE), (5, WRITE_FILTER, DELETE)}),
        (READ_HUNG_UP, 0, set()),
    ],
)
def test_a_change_tells_what_differs_and_nothing_else(old: int, new: int, told: set[Change]) -> None:
    listed = [(change.ident, change.filter, change.flags) for change in changes(5, old, new)]
    assert set(listed) == told
    assert len(listed) == len(told)


masks = st.integers(0, EVERYTHING).map(lambda number: number & EVERYTHING)


@given(st.lists(masks, max_size=8))
@settings(database=None, deadline=None)
def test_any_row_of_changes_leaves_the_filters_of_the_last_mask(row: list[int]) -> None:
    registered: set[int] = set()
    old = 0
    for new in row:
        for change in changes(5, old, new):
            if change.flags == ADD:
                assert change.filter not in registered
                registered.add(change.filter)
            else:
                registered.remove(change.filter)
        old = new
        assert registered == filters(new)


def test_the_numbers_are_those_of_sys_event_h() -> None:
    assert (READ_FILTER, WRITE_FILTER, ADD, DELETE, EOF) == (-1, -2, 0x0001, 0x0002, 0x8000)


# What the poller tells the kernel.


def test_a_fresh_poller_listens_to_its_waker() -> None:
    kernel = ScriptedKernel()
    with KqueuePoller(kernel, Kevent) as made:
        assert kernel.told == [[(made._waker.number, READ_FILTER, ADD)]]
        assert made.backend == "kqueue"


@pytest.mark.parametrize(
    ("events", "kinds"),
    [
        (DATA, {READ_FILTER}),
        (READY, {WRITE_FILTER}),
        (DATA | READY, {READ_FILTER, WRITE_FILTER}),
        (GONE, {READ_FILTER}),
        (SocketEvent.CONNECTION_FAILED, {READ_FILTER}),
        (READY | GONE, {READ_FILTER, WRITE_FILTER}),
        (SocketEvent(0), set()),
        (SocketEvent.DETERMINED, set()),
    ],
)
def test_a_monitored_stream_is_registered_with_the_filters_of_its_events(
    pair: LocalPair, events: SocketEvent, kinds: set[int]
) -> None:
    kernel, made = scripted()
    with made:
        made.monitor_socket(pair[0], events)
        assert kernel.filters_of(pair[0]) == kinds
        assert len(kernel.told) == (1 if kinds else 0)  # nothing to tell is no system call
        made.unmonitor_socket(pair[0])
        assert kernel.filters_of(pair[0]) == set()
        assert kernel.registered == [(made._waker.number, READ_FILTER)]


def test_changed_events_tell_the_difference(pair: LocalPair) -> None:
    kernel, made = scripted()
    number = pair[0].fileno()
    with made:
        made.monitor_socket(pair[0], DATA)
        kernel.told.clear()
        made.set_monitored_events(pair[0], DATA)
        assert kernel.told == []
        made.set_monitored_events(pair[0], DATA | READY)
        made.set_monitored_events(pair[0], READY)
        made.set_monitored_events(pair[0], DATA)
        made.set_monitored_events(pair[0], SocketEvent(0))
        assert [sorted(told) for told in kernel.told] == [
            [(number, WRITE_FILTER, ADD)],
            [(number, READ_FILTER, DELETE)],
            [(number, WRITE_FILTER, DELETE), (number, READ_FILTER, ADD)],
            [(number, READ_FILTER, DELETE)],
        ]


def test_a_closed_socket_leaves_the_kernel_before_its_number_changes_meaning(pair: LocalPair) -> None:
    """The kernel of paper refuses a number that is under the tombstone."""
    kernel, made = scripted()
    with made:
        made.monitor_socket(pair[0], DATA | READY)
        number = pair[0].fileno()
        pair[0].close()
        assert sorted(kernel.told[-1]) == [(number, WRITE_FILTER, DELETE), (number, READ_FILTER, DELETE)]
        assert kernel.registered == [(made._waker.number, READ_FILTER)]
        assert made.monitored_sockets() == ()


def test_a_server_is_registered_for_reading(namespace: Namespace) -> None:
    kernel, made = scripted()
    with namespace.make_server() as server, made:
        made.monitor_socket(server, SocketEvent.CONNECTION_AVAILABLE)
        assert kernel.filters_of(server) == {READ_FILTER}
        kernel.script.append([Kevent(server.fileno(), READ_FILTER, ADD)])
        assert made.wait_for_events(PATIENCE) == [(server, SocketEvent.CONNECTION_AVAILABLE)]


def test_a_kernel_without_room_leaves_nothing_monitored(pair: LocalPair) -> None:
    kernel, made = scripted()
    with made:
        kernel.full = True
        with pytest.raises(OSError, match=os.strerror(errno.ENOMEM)):
            made.monitor_socket(pair[0], DATA)
        assert made.monitored_sockets() == ()
        assert pair[0]._watchers == ()
        kernel.full = False
        made.monitor_socket(pair[0], DATA)
        assert kernel.filters_of(pair[0]) == {READ_FILTER}


# What comes of what the kernel tells.


def test_an_event_is_told_of_the_stream_that_has_it(pair: LocalPair) -> None:
    kernel, made = scripted()
    one, other = pair
    with made:
        made.monitor_socket(one, DATA)
        made.monitor_socket(other, READY)
        assert other.write(b"x") == 1
        kernel.script.append([Kevent(one.fileno(), READ_FILTER, ADD), Kevent(other.fileno(), WRITE_FILTER, ADD)])
        assert made.wait_for_events(PATIENCE) == [(one, DATA), (other, READY)]


def test_both_filters_of_a_stream_make_one_event(pair: LocalPair) -> None:
    kernel, made = scripted()
    one, other = pair
    with made:
        made.monitor_socket(one, DATA | READY)
        assert other.write(b"x") == 1
        kernel.script.append([Kevent(one.fileno(), kind, ADD) for kind in (READ_FILTER, WRITE_FILTER)])
        assert made.wait_for_events(PATIENCE) == [(one, DATA | READY)]


def test_an_end_with_unread_bytes_is_data_until_they_are_read(pair: LocalPair) -> None:
    kernel, made = scripted()
    one, other = pair
    with made:
        made.monitor_socket(one, DATA | GONE)
        assert other.write(b"last") == 4
        other.close()
        told = [Kevent(one.fileno(), READ_FILTER, ADD | EOF)]
        kernel.script += [told, told]
        assert made.wait_for_events(PATIENCE) == [(one, DATA)]
        assert one.read() == b"last"
        assert made.wait_for_events(PATIENCE) == [(one, GONE)]


def test_a_reset_is_an_end(pair: LocalPair) -> None:
    kernel, made = scripted()
    one, other = pair
    with made:
        made.monitor_socket(one, GONE | SocketEvent.CONNECTION_FAILED)
        assert one.write(b"never read") == 10
        other.close()
        kernel.script.append([Kevent(one.fileno(), READ_FILTER, ADD | EOF, errno.ECONNRESET)])
        assert made.wait_for_events(PATIENCE) == [(one, GONE | SocketEvent.CONNECTION_FAILED)]
        with pytest.raises(bbipc.RemoteDisconnectedError):
            one.read()


def test_a_refused_connect_is_told_by_the_writing_filter() -> None:
    kernel, made = scripted()
    with bbipc.make_ipv4_tcp_server(bbipc.IPV4_LOOPBACK, 0) as server:
        port = server.port
    with bbipc.connect_to_ipv4_tcp_server(bbipc.IPV4_LOOPBACK, port) as one, made:
        assert look(one._handle, WRITABLE)  # decided already, on the loopback; the stream has not looked yet
        made.monitor_socket(one, SocketEvent.DETERMINED | DATA)
        if kernel.filters_of(one):
            assert kernel.filters_of(one) == {WRITE_FILTER}
            kernel.script.append([Kevent(one.fileno(), WRITE_FILTER, ADD | EOF, errno.ECONNREFUSED)])
        assert made.wait_for_events(PATIENCE) == [(one, SocketEvent.DETERMINED)]
        assert isinstance(one.connection_error(), OSError)


def test_a_connected_stream_swaps_the_writing_filter_for_what_it_wants() -> None:
    kernel, made = scripted()
    with (
        bbipc.make_ipv4_tcp_server(bbipc.IPV4_LOOPBACK, 0) as server,
        bbipc.connect_to_ipv4_tcp_server(bbipc.IPV4_LOOPBACK, server.port) as one,
        made,
    ):
        made.monitor_socket(one, DATA)
        assert kernel.filters_of(one) == {WRITE_FILTER}  # connecting: the outcome
        kernel.script.append([Kevent(one.fileno(), WRITE_FILTER, ADD)])
        assert made.wait_for_events(0) == []
        assert kernel.filters_of(one) == {READ_FILTER}


def test_a_stream_of_which_nothing_can_come_is_parked_and_comes_back_with_other_events(pair: LocalPair) -> None:
    kernel, made = scripted()
    one, other = pair
    with made:
        made.monitor_socket(one, DATA)
        other.close()
        kernel.script.append([Kevent(one.fileno(), READ_FILTER, ADD | EOF)])
        assert made.wait_for_events(0) == []
        assert kernel.filters_of(one) == set()  # or the kernel would say it again and again
        assert made.monitored_sockets() == (one,)
        assert made.wait_for_events(0) == []
        made.set_monitored_events(one, GONE)
        assert kernel.filters_of(one) == {READ_FILTER}
        kernel.script.append([Kevent(one.fileno(), READ_FILTER, ADD | EOF)])
        assert made.wait_for_events(PATIENCE) == [(one, GONE)]
        made.unmonitor_socket(one)
        assert kernel.filters_of(one) == set()


def test_a_parked_stream_is_closed_and_unmonitored_without_a_word_to_the_kernel(pair: LocalPair) -> None:
    kernel, made = scripted()
    one, other = pair
    with made:
        for leave in (made.unmonitor_socket, bbipc.Socket.close):
            made.monitor_socket(one, DATA)
            other.close()
            kernel.script.append([Kevent(one.fileno(), READ_FILTER, ADD | EOF)])
            assert made.wait_for_events(0) == []
            kernel.told.clear()
            leave(one)
            assert kernel.told == []
            assert made.monitored_sockets() == ()


def test_a_wait_for_the_end_behind_unread_bytes_leaves_the_kernel_and_looks_in_ticks(pair: LocalPair) -> None:
    kernel, made = scripted()
    one, other = pair
    with made:
        made.monitor_socket(one, GONE)
        assert other.write(b"x") == 1
        kernel.script.append([Kevent(one.fileno(), READ_FILTER, ADD)])
        assert made.wait_for_events(0) == []
        assert kernel.filters_of(one) == set()
        other.close()
        assert one.read() == b"x"
        kernel.waits.clear()
        assert made.wait_for_events(PATIENCE) == [(one, GONE)]
        assert all(seconds is not None and seconds <= 0.05 for seconds in kernel.waits)


def test_a_wake_ends_the_wait_and_is_taken_once() -> None:
    kernel, made = scripted()
    with made:
        made.wake()
        assert made.wait_for_events(PATIENCE) == []
        assert len(kernel.waits) == 1
        assert not select.select([made._waker.number], [], [], 0)[0]
        assert made.wait_for_events(0) == []


def test_the_wakers_event_comes_along_with_others(pair: LocalPair) -> None:
    kernel, made = scripted()
    one, other = pair
    with made:
        made.monitor_socket(one, DATA)
        assert other.write(b"x") == 1
        made.wake()
        kernel.script.append([Kevent(made._waker.number, READ_FILTER, ADD), Kevent(one.fileno(), READ_FILTER, ADD)])
        assert made.wait_for_events(PATIENCE) == [(one, DATA)]
        assert made.wait_for_events(0) == []


@pytest.mark.parametrize(("timeout", "asked"), [(0, 0.0), (2.5, 2.5), (1e12, 86400.0)])
def test_the_kernel_is_given_the_seconds(timeout: float, asked: float) -> None:
    kernel, made = scripted()
    with made:
        kernel.script.append([Kevent(made._waker.number, READ_FILTER, ADD)])
        made.wake()
        made.wait_for_events(timeout)
        assert kernel.waits[0] == pytest.approx(asked)


def test_an_event_of_a_socket_that_was_closed_meanwhile_is_told_of_nobody(pair: LocalPair) -> None:
    """The batch was made by the kernel, then another thread closes the socket, then the batch is worked through."""
    one, _ = pair

    class Racing(ScriptedKernel):
        def control(self, changelist: Any, maxevents: int, timeout: float | None = None, /) -> list[Any]:
            batch = super().control(changelist, maxevents, timeout)
            if changelist is None and not one.closed:
                Worker(one.close).outcome()
            return batch

    kernel = Racing()
    with KqueuePoller(kernel, Kevent) as made:
        made.monitor_socket(one, DATA)
        kernel.script.append([Kevent(one.fileno(), READ_FILTER, ADD)])
        assert made.wait_for_events(PATIENCE) == []
        assert made.monitored_sockets() == ()


def test_a_closed_poller_lets_go_of_its_kernel_and_tells_it_nothing_more(pair: LocalPair) -> None:
    kernel, made = scripted()
    made.monitor_socket(pair[0], DATA)
    kernel.told.clear()
    made.close()
    made.close()
    assert made._kernel is None
    assert kernel.told == []
    for call in (lambda: made.wait_for_events(0), made.wake, lambda: made.monitor_socket(pair[1], DATA)):
        with pytest.raises(PollerClosedError):
            call()
    pair[0].close()
    assert kernel.told == []


def test_a_poller_that_is_closed_during_its_wait_raises() -> None:
    with KqueuePoller(LiveKernel(), Kevent) as made:
        waiter = Worker(lambda: made.wait_for_events(PATIENCE))
        wait_until_asleep(waiter)
        made.close()
        with pytest.raises(PollerClosedError):
            waiter.outcome()


def test_where_poll_has_no_flag_for_the_end_no_answer_is_kept_ready(pair: LocalPair) -> None:
    """A readable flag may then stand for data now and for the end a moment later."""
    one, other = pair
    with KqueuePoller(LiveKernel(), Kevent) as made:
        made.monitor_socket(one, DATA | READY)
        assert other.write(b"x") == 1
        for _ in range(3):
            assert made.wait_for_events(PATIENCE) == [(one, DATA | READY)]
        assert made._answers == {}


@pytest.mark.skipif(hasattr(select, "kqueue"), reason="this system has kqueue")
def test_without_kqueue_the_backend_is_not_offered() -> None:
    assert "kqueue" not in bbipc.available_backends()
    with pytest.raises(ValueError, match="no backend 'kqueue'"):
        bbipc.make_poller("kqueue")


def test_a_system_with_kqueue_gets_its_own_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    made_kernels: list[ScriptedKernel] = []

    def kernel() -> ScriptedKernel:
        made_kernels.append(ScriptedKernel())
        return made_kernels[-1]

    monkeypatch.setattr(select, "kqueue", kernel, raising=False)
    monkeypatch.setattr(select, "kevent", Kevent, raising=False)
    with bbipc.make_poller("kqueue") as made:
        assert isinstance(made, KqueuePoller)
        assert made_kernels[0].told == [[(made._waker.number, READ_FILTER, ADD)]]


# The truth table of DESIGN.md section 3, over a kernel that tells of real sockets what kqueue would.


def unread(one: bbipc.StreamSocket, peer: socket.socket) -> None:
    peer.sendall(b"bytes")
    arrived(one, READABLE)


def arrived(one: bbipc.StreamSocket, flag: int) -> None:
    """Wait for the kernel, not for the stream."""
    poll = select.poll()
    poll.register(one.fileno(), flag)
    assert poll.poll(PATIENCE * 1000)


def closed(one: bbipc.StreamSocket, peer: socket.socket) -> None:
    peer.close()
    arrived(one, READ_HUNG_UP)


def shut(one: bbipc.StreamSocket, peer: socket.socket) -> None:
    peer.shutdown(socket.SHUT_WR)
    arrived(one, READ_HUNG_UP)


def full(one: bbipc.StreamSocket, peer: socket.socket) -> None:
    fill(one)


UP, ENDED = SocketEvent(6), SocketEvent(2 | 8 | 64)
ROWS: dict[str, tuple[list[Callable[[bbipc.StreamSocket, socket.socket], object]], SocketEvent]] = {
    "up, idle": ([], UP | READY | ROOM),
    "up, bytes unread": ([unread], UP | DATA | READY | ROOM),
    "up, our send buffer full": ([full], UP),
    "up, own side shut, our send buffer full": ([full, lambda one, _: one.shutdown_write()], UP | ROOM),
    "peer closed, bytes unread": ([unread, closed], UP | DATA | READY | ROOM),
    "peer closed, all read": ([closed], ENDED | ROOM),
    "peer shut its sending side, bytes unread": ([unread, shut], UP | DATA | READY | ROOM),
    "peer shut its sending side, bytes unread, our send buffer full": ([unread, shut, full], UP | DATA),
    "peer shut its sending side, all read": ([shut], ENDED | ROOM),
    "peer shut its sending side, all read, our send buffer full": ([shut, full], ENDED),
}


@contextlib.contextmanager
def in_row(namespace: Namespace, row: str) -> Iterator[tuple[bbipc.StreamSocket, SocketEvent]]:
    with namespace.stream_and_peer() as (one, peer):
        for step in ROWS[row][0]:
            step(one, peer)
        yield one, ROWS[row][1]


@pytest.mark.parametrize("row", ROWS)
def test_the_table_holds_on_kqueue_when_all_is_asked_for(namespace: Namespace, row: str) -> None:
    with in_row(namespace, row) as (one, expected), KqueuePoller(LiveKernel(), Kevent) as made:
        made.monitor_socket(one, SocketEvent(STREAM_EVENTS))
        assert made.wait_for_events(PATIENCE) == [(one, expected)]


@pytest.mark.parametrize("event", SocketEvent(STREAM_EVENTS))
@pytest.mark.parametrize("row", ROWS)
def test_the_table_holds_on_kqueue_for_each_event_alone(namespace: Namespace, row: str, event: SocketEvent) -> None:
    with in_row(namespace, row) as (one, expected), KqueuePoller(LiveKernel(), Kevent) as made:
        made.monitor_socket(one, event)
        assert made.wait_for_events(0) == ([(one, event)] if event in expected else [])


@pytest.mark.parametrize("event", SocketEvent(STREAM_EVENTS))
@pytest.mark.parametrize("row", ROWS)
def test_a_silent_stream_does_not_spin_on_kqueue(namespace: Namespace, row: str, event: SocketEvent) -> None:
    kernel = LiveKernel()
    with in_row(namespace, row) as (one, expected), KqueuePoller(kernel, Kevent) as made:
        if event in expected:
            return
        made.monitor_socket(one, event)
        kernel.waits.clear()
        assert made.wait_for_events(0.05) == []
        assert len(kernel.waits) < 15, f"{len(kernel.waits)} waits in 50 ms"


@pytest.mark.parametrize("wanted", [ROOM, ROOM | DATA, ROOM | READY | SocketEvent.CONNECTION_SUCCEEDED])
def test_room_on_a_stream_whose_peer_has_ended_is_told_by_the_writing_filter_alone(
    namespace: Namespace, wanted: SocketEvent
) -> None:
    kernel = LiveKernel()
    with half_closed_and_full(namespace) as (one, peer), KqueuePoller(kernel, Kevent) as made:
        made.monitor_socket(one, wanted)
        assert made.wait_for_events(0) == []
        assert kernel.filters_of(one) == {WRITE_FILTER}
        kernel.waits.clear()
        assert made.wait_for_events(0.05) == []
        assert len(kernel.waits) <= 2, "it ticks"  # the second with no time left
        peer.close()
        for _ in range(3):
            assert made.wait_for_events(PATIENCE) == [(one, ROOM)]


@pytest.mark.parametrize(("row", "room"), [("shut", True), ("shut, full", False)])
def test_a_poll_that_tells_the_end_as_a_hang_up_is_asked_for_room_by_itself(
    pair: LocalPair, monkeypatch: pytest.MonkeyPatch, row: str, room: bool
) -> None:
    """macOS: HUP for a peer that has ended, and no OUT beside it; asked for room alone it tells of room alone."""
    one, other = pair

    def look_of_macos(handle: Handle, asked: int) -> int:
        flags = look(handle, asked)
        if asked & READABLE and flags & READ_HUNG_UP:
            flags = flags & ~WRITABLE | HUNG_UP
        return flags & ~READ_HUNG_UP

    other.shutdown_write()
    if "full" in row:
        fill(one)
    for module in (connection, base):
        monkeypatch.setattr(module, "look", look_of_macos)
    assert one.remote_disconnected()
    assert one.room_to_write() is room
