"""How a socket is waited for: the checks at the door, and the table of begin and decide, with a socket of paper."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import bbipc
from bbipc import SocketEvent
from bbipc.events import (
    CONNECTION_FAILED,
    CONNECTION_SUCCEEDED,
    DATA_AVAILABLE,
    DETERMINED,
    READY_TO_WRITE,
    REMOTE_DISCONNECTED,
    ROOM_TO_WRITE,
    STREAM_EVENTS,
)
from bbipc.polling.watch import FIRST_TICK, LONGEST_TICK, Mode, Watch, wanted_bits
from bbipc.readiness import (
    ATTAINABLE,
    ERROR,
    HUNG_UP,
    READ_HUNG_UP,
    READABLE,
    STANDING,
    WRITABLE,
    Condition,
    Stage,
    stream_interest,
)
from bbipc.sockets.handle import CLOSED
from tests.support.makers import make_namespace


class PaperHandle:
    """Nothing but a number."""

    def fileno(self) -> int:
        return 42


class PaperStream:
    """What a Watch asks of a stream, in a stage that is set by hand."""

    def __init__(self, stage: Stage, *, connect_has_edge: bool = True) -> None:
        self.stage = stage
        self.connect_has_edge = connect_has_edge

    def _interest(self, wanted: int, *, end_has_edge: bool) -> int | None:
        if self.stage is Stage.CONNECTING and not self.connect_has_edge:
            return None
        return stream_interest(self.stage, wanted, end_has_edge=end_has_edge)

    def _standing(self) -> int:
        standing = {
            Stage.CONNECTING: Condition.CONNECTING,
            Stage.CONNECTED: Condition.UP,
            Stage.FAILED: Condition.FAILED,
        }
        return STANDING[standing[self.stage]]


def paper_watch(stage: Stage, wanted: int, *, connect_has_edge: bool = True) -> Watch:
    stream: Any = PaperStream(stage, connect_has_edge=connect_has_edge)
    handle: Any = PaperHandle()
    return Watch(stream, handle, wanted)


def mode_of(watch: Watch) -> Mode:
    """The mode of this moment, which a type checker must not carry over to the next."""
    return watch.mode


@pytest.fixture(name="stream")
def one_stream() -> Iterator[bbipc.LocalStream]:
    one, other = bbipc.local_stream_pair()
    with one, other:
        yield one


class Begin(NamedTuple):
    """A row of the table of ``begin``."""

    stage: Stage
    edge: bool  # of the connect
    wanted: int
    mode: Mode
    mask: int


BEGIN = [
    Begin(Stage.CONNECTED, True, 0, Mode.NEVER, READ_HUNG_UP),
    Begin(Stage.CONNECTED, True, DATA_AVAILABLE, Mode.KERNEL, READABLE | READ_HUNG_UP),
    Begin(Stage.CONNECTED, True, READY_TO_WRITE, Mode.KERNEL, WRITABLE | READ_HUNG_UP),
    Begin(Stage.CONNECTED, True, ROOM_TO_WRITE, Mode.KERNEL, WRITABLE),
    Begin(Stage.CONNECTED, True, ROOM_TO_WRITE | READY_TO_WRITE, Mode.KERNEL, WRITABLE | READ_HUNG_UP),
    Begin(Stage.CONNECTED, True, REMOTE_DISCONNECTED, Mode.KERNEL, READ_HUNG_UP),
    Begin(Stage.CONNECTED, True, CONNECTION_FAILED, Mode.KERNEL, READ_HUNG_UP),
    Begin(Stage.CONNECTED, True, DETERMINED, Mode.NOW, READ_HUNG_UP),
    Begin(Stage.CONNECTED, True, DATA_AVAILABLE | CONNECTION_SUCCEEDED, Mode.NOW, READABLE | READ_HUNG_UP),
    Begin(Stage.CONNECTING, True, DATA_AVAILABLE, Mode.KERNEL, WRITABLE),
    Begin(Stage.CONNECTING, True, DETERMINED, Mode.KERNEL, WRITABLE),
    Begin(Stage.CONNECTING, True, 0, Mode.NEVER, WRITABLE),
    Begin(Stage.CONNECTING, False, DETERMINED, Mode.TICK, 0),
    Begin(Stage.CONNECTING, False, DATA_AVAILABLE, Mode.TICK, 0),
    Begin(Stage.CONNECTING, False, 0, Mode.NEVER, 0),
    Begin(Stage.FAILED, True, DETERMINED, Mode.NOW, READ_HUNG_UP),
    Begin(Stage.FAILED, True, CONNECTION_FAILED, Mode.NOW, READ_HUNG_UP),
    Begin(Stage.FAILED, True, ROOM_TO_WRITE, Mode.NOW, WRITABLE),
]


@pytest.mark.parametrize("row", BEGIN, ids=lambda row: f"{row.stage.value}-{row.edge}-{row.wanted}")
def test_a_watch_begins_as_the_table_says(row: Begin) -> None:
    watch = paper_watch(row.stage, row.wanted, connect_has_edge=row.edge)
    watch.begin(end_has_edge=True)
    assert (watch.mode, watch.mask) == (row.mode, row.mask)


def test_without_an_edge_for_the_end_a_watch_of_the_end_is_woken_by_data() -> None:
    watch = paper_watch(Stage.CONNECTED, REMOTE_DISCONNECTED)
    watch.begin(end_has_edge=False)
    assert (watch.mode, watch.mask) == (Mode.KERNEL, READABLE | READ_HUNG_UP)


class Decision(NamedTuple):
    """A row of the table of ``decide``: what was told and found, and how to go on."""

    why: str
    wanted: int
    flags: int
    found: int
    condition: Condition
    mode: Mode
    end_has_edge: bool = True


FULL_END = READABLE | READ_HUNG_UP

DECIDE = [
    Decision("found, the kernel tells again", DATA_AVAILABLE, READABLE, DATA_AVAILABLE, Condition.UP, Mode.KERNEL),
    Decision("nothing told, nothing found", DATA_AVAILABLE, 0, 0, Condition.UP, Mode.KERNEL),
    Decision("writable is not asked for", DATA_AVAILABLE, WRITABLE, 0, Condition.UP, Mode.KERNEL),
    Decision("ended: no data can come", DATA_AVAILABLE, READABLE | READ_HUNG_UP, 0, Condition.ENDED, Mode.NEVER),
    Decision("ended: no room can come", READY_TO_WRITE, WRITABLE | HUNG_UP, 0, Condition.ENDED, Mode.NEVER),
    Decision("failed: no data can come", DATA_AVAILABLE, ERROR | HUNG_UP, 0, Condition.FAILED, Mode.NEVER),
    Decision("nothing wanted", 0, HUNG_UP, 0, Condition.UP, Mode.NEVER),
    Decision("hung up, unread, end wanted", REMOTE_DISCONNECTED, READ_HUNG_UP | READABLE, 0, Condition.UP, Mode.TICK),
    Decision("hung up unasked, unread, end wanted", REMOTE_DISCONNECTED, HUNG_UP, 0, Condition.UP, Mode.TICK),
    Decision("error unasked, unread, end wanted", CONNECTION_FAILED, ERROR, 0, Condition.UP, Mode.TICK),
    Decision("hung up, unread, full, room wanted", READY_TO_WRITE, READ_HUNG_UP, 0, Condition.UP, Mode.TICK),
    Decision("hung up, unread and wanted", DATA_AVAILABLE, READ_HUNG_UP, DATA_AVAILABLE, Condition.UP, Mode.KERNEL),
    Decision("ended, end wanted", REMOTE_DISCONNECTED, READ_HUNG_UP, REMOTE_DISCONNECTED, Condition.ENDED, Mode.KERNEL),
    Decision("no edge, data, end wanted", REMOTE_DISCONNECTED, READABLE, 0, Condition.UP, Mode.TICK, False),
    Decision("edge, data, end wanted", REMOTE_DISCONNECTED, READABLE, 0, Condition.UP, Mode.KERNEL, True),
    Decision("ended, full, room wanted", ROOM_TO_WRITE, FULL_END, 0, Condition.ENDED, Mode.KERNEL),
    Decision("the same without an edge", ROOM_TO_WRITE, FULL_END, 0, Condition.ENDED, Mode.KERNEL, False),
    Decision("ended, full, data or room", DATA_AVAILABLE | ROOM_TO_WRITE, FULL_END, 0, Condition.ENDED, Mode.KERNEL),
    Decision(
        "ended, full, up or room", CONNECTION_SUCCEEDED | ROOM_TO_WRITE, FULL_END, 0, Condition.ENDED, Mode.KERNEL
    ),
    Decision("ended, no room, not asked for room", READY_TO_WRITE, FULL_END, 0, Condition.ENDED, Mode.NEVER),
    Decision("hung up, unread, full, room wanted alone", ROOM_TO_WRITE, FULL_END, 0, Condition.UP, Mode.KERNEL),
    Decision("ended, room found", ROOM_TO_WRITE, WRITABLE, ROOM_TO_WRITE, Condition.UP, Mode.KERNEL),
    Decision("standing", DETERMINED, WRITABLE, DETERMINED, Condition.UP, Mode.NOW),
]


@pytest.mark.parametrize("row", DECIDE, ids=lambda row: row.why)
def test_a_watch_goes_on_as_the_table_says(row: Decision) -> None:
    stage = Stage.FAILED if row.condition is Condition.FAILED else Stage.CONNECTED
    watch = paper_watch(stage, row.wanted)
    watch.begin(end_has_edge=row.end_has_edge)
    watch.decide(row.flags, row.found, ATTAINABLE[row.condition], end_has_edge=row.end_has_edge)
    assert watch.mode is row.mode


def test_a_connect_that_has_no_edge_stays_ticked_until_it_is_decided() -> None:
    watch = paper_watch(Stage.CONNECTING, DATA_AVAILABLE, connect_has_edge=False)
    watch.begin(end_has_edge=True)
    watch.decide(WRITABLE | HUNG_UP, 0, ATTAINABLE[Condition.CONNECTING], end_has_edge=True)
    assert watch.mode is Mode.TICK
    stream: Any = watch.socket
    stream.stage = Stage.CONNECTED
    watch.decide(WRITABLE, 0, ATTAINABLE[Condition.UP], end_has_edge=True)
    assert (watch.mode, watch.mask) == (Mode.KERNEL, READABLE | READ_HUNG_UP)


def test_a_connecting_stream_that_says_writable_without_an_outcome_is_ticked_and_not_spun_on() -> None:
    watch = paper_watch(Stage.CONNECTING, DETERMINED)
    watch.begin(end_has_edge=True)
    watch.decide(WRITABLE, 0, ATTAINABLE[Condition.CONNECTING], end_has_edge=True)
    assert watch.mode is Mode.TICK


def test_a_ticked_watch_returns_to_the_kernel_when_there_is_nothing_more_to_spin_on() -> None:
    watch = paper_watch(Stage.CONNECTED, REMOTE_DISCONNECTED)
    watch.begin(end_has_edge=False)
    watch.decide(READABLE, 0, STREAM_EVENTS, end_has_edge=False)
    assert mode_of(watch) is Mode.TICK
    watch.decide(WRITABLE, 0, STREAM_EVENTS, end_has_edge=False)
    assert mode_of(watch) is Mode.KERNEL


def test_a_silent_watch_is_tried_anew_when_the_wish_changes() -> None:
    watch = paper_watch(Stage.CONNECTED, DATA_AVAILABLE)
    watch.begin(end_has_edge=True)
    watch.decide(READ_HUNG_UP, 0, ATTAINABLE[Condition.ENDED], end_has_edge=True)
    assert mode_of(watch) is Mode.NEVER
    watch.want(REMOTE_DISCONNECTED)
    watch.begin(end_has_edge=True)
    assert mode_of(watch) is Mode.KERNEL


def test_what_has_become_hopeless_is_waited_for_no_more_until_it_is_wanted_anew() -> None:
    """The peer has ended: the kernel is asked for room alone, also after a report in which the end does not show."""
    watch = paper_watch(Stage.CONNECTED, DATA_AVAILABLE | READY_TO_WRITE | ROOM_TO_WRITE)
    watch.begin(end_has_edge=True)
    assert watch.mask == READABLE | WRITABLE | READ_HUNG_UP
    watch.decide(FULL_END, 0, ATTAINABLE[Condition.ENDED], end_has_edge=True)
    assert (watch.mode, watch.mask, watch.awaited) == (Mode.KERNEL, WRITABLE, ROOM_TO_WRITE)
    watch.decide(WRITABLE, ROOM_TO_WRITE, ATTAINABLE[Condition.UP], end_has_edge=True)
    assert (watch.mode, watch.mask, watch.awaited) == (Mode.KERNEL, WRITABLE, ROOM_TO_WRITE)
    watch.begin(end_has_edge=True)  # the socket tells that it has changed
    assert watch.awaited == ROOM_TO_WRITE
    watch.want(watch.wanted)
    watch.begin(end_has_edge=True)
    assert watch.mask == READABLE | WRITABLE | READ_HUNG_UP


def test_a_fresh_watch_has_asked_for_nothing_yet() -> None:
    watch = paper_watch(Stage.CONNECTED, DATA_AVAILABLE)
    assert (watch.number, watch.mode, watch.mask, watch.answers) == (42, Mode.NEVER, 0, ())


def test_a_released_watch_holds_no_handle_but_knows_its_number() -> None:
    watch = paper_watch(Stage.CONNECTED, DATA_AVAILABLE)
    watch.release()
    assert watch.handle is CLOSED
    assert watch.number == 42


def test_ticks_back_off_from_one_to_fifty_milliseconds() -> None:
    assert (FIRST_TICK, LONGEST_TICK) == (0.001, 0.05)


# The checks at the door.


def test_every_event_of_a_stream_may_be_wanted_of_it(stream: bbipc.LocalStream) -> None:
    for number in range(256):
        if not number & ~STREAM_EVENTS:
            assert wanted_bits(stream, SocketEvent(number)) == number


def test_a_stream_has_no_connections_to_accept(stream: bbipc.LocalStream) -> None:
    for events in (SocketEvent.CONNECTION_AVAILABLE, SocketEvent.CONNECTION_AVAILABLE | SocketEvent.DATA_AVAILABLE):
        with pytest.raises(ValueError, match=r"a LocalStream does not have .*CONNECTION_AVAILABLE") as caught:
            wanted_bits(stream, events)
        assert "DATA_AVAILABLE" not in str(caught.value)  # it names what is foreign, and only that


@pytest.mark.parametrize("event", [event for event in SocketEvent if event is not SocketEvent.CONNECTION_AVAILABLE])
def test_a_server_has_connections_to_accept_and_nothing_else(short_dir: Path, event: SocketEvent) -> None:
    with make_namespace("local", short_dir).make_server() as server:
        assert wanted_bits(server, SocketEvent.CONNECTION_AVAILABLE) == 1
        with pytest.raises(ValueError, match=f"a LocalServer does not have .*{event.name}"):
            wanted_bits(server, event | SocketEvent.CONNECTION_AVAILABLE)


@pytest.mark.parametrize(
    "value", [None, 3, "socket", object(), bbipc.LocalStream], ids=lambda value: type(value).__name__
)
def test_what_is_no_socket_is_refused_by_its_type(value: Any) -> None:
    with pytest.raises(TypeError, match=f"a Socket is required, not {type(value).__name__}"):
        wanted_bits(value, SocketEvent.DATA_AVAILABLE)


@pytest.mark.parametrize(
    "value", [None, 16, True, "DATA_AVAILABLE", SocketEvent], ids=lambda value: type(value).__name__
)
def test_what_is_no_socket_event_is_refused_by_its_type(stream: bbipc.LocalStream, value: Any) -> None:
    with pytest.raises(TypeError, match=f"events must be a SocketEvent, not {type(value).__name__}"):
        wanted_bits(stream, value)


def test_every_door_makes_the_same_checks(stream: bbipc.LocalStream) -> None:
    anything: Any = stream
    number: Any = 16
    with bbipc.make_poller() as poller:
        poller.monitor_socket(stream, SocketEvent(0))
        for call in (
            lambda socket, events: bbipc.poll_socket(socket, events, 0),
            lambda socket, events: bbipc.poll_sockets([(socket, events)], 0),
            poller.set_monitored_events,
        ):
            with pytest.raises(ValueError, match="does not have"):
                call(anything, SocketEvent.CONNECTION_AVAILABLE)
            with pytest.raises(TypeError, match="SocketEvent"):
                call(anything, number)
            with pytest.raises(TypeError, match="a Socket is required"):
                call(anything.fileno(), SocketEvent.DATA_AVAILABLE)
        poller.unmonitor_socket(stream)
        with pytest.raises(ValueError, match="does not have"):
            poller.monitor_socket(stream, SocketEvent.CONNECTION_AVAILABLE)
        with pytest.raises(TypeError, match="SocketEvent"):
            poller.monitor_socket(anything, number)
        assert poller.monitored_sockets() == ()
