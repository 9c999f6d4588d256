"""What user code does wrong on the poller thread: it raises, it is slow, its log is broken; and nothing comes of it."""

# mypy: disable-error-code="func-returns-value"

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from typing import Any
from unittest import mock

import pytest

import bbipc
from bbipc import PollerClosedError, Socket, SocketEvent
from bbipc.polling.make import make_poller
from pool.dispatch import TIMED_TURNS, Dispatcher
from pool.interests import Interests
from pool.parties import Monitor
from pool.polling_loop import PollingLoop
from tests.support.loops import Broken, dealt_out, handler_added, on_thread, pair, pairs
from tests.support.makers import PATIENCE

DATA = SocketEvent.DATA_AVAILABLE
END = SocketEvent.REMOTE_DISCONNECTED


@pytest.fixture(name="loop")
def a_loop() -> Iterator[PollingLoop]:
    with PollingLoop() as loop:
        yield loop


def nothing(*args: object) -> None:
    """A callback."""


# What callbacks raise.


@pytest.mark.parametrize(
    "kind", [Exception, OSError, RecursionError, SystemExit, KeyboardInterrupt, GeneratorExit, PollerClosedError]
)
@pytest.mark.parametrize("parties", [1, 2])
def test_a_callback_that_raises_ends_nothing_and_is_logged_now_and_then(
    loop: PollingLoop, kind: type[BaseException], parties: int, caplog: pytest.LogCaptureFixture
) -> None:
    """250 failures: the 1st, the 10th and the 100th are logged, the others served meanwhile (HAZARDS 34)."""
    done = threading.Event()
    calls = [0]
    served = threading.Semaphore(0)

    def faulty(socket: bbipc.Socket, events: SocketEvent) -> None:
        calls[0] += 1
        if calls[0] == 250:
            assert isinstance(socket, bbipc.LocalStream)
            socket.read()
            done.set()
        raise kind("my fault")

    def good(socket: bbipc.Socket, events: SocketEvent) -> None:
        assert isinstance(socket, bbipc.LocalStream)
        socket.read()
        served.release()

    with pairs(2) as ((one, other), (two, another)):
        loop.monitor(one, DATA, faulty)
        if parties == 2:
            loop.monitor(one, END, nothing)
        loop.monitor(two, DATA, good)
        other.write(b"x")
        another.write(b"x")
        assert done.wait(PATIENCE)
        assert served.acquire(timeout=PATIENCE)
        another.write(b"x")
        assert served.acquire(timeout=PATIENCE)
        dealt_out(loop)
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 3
    assert ["(1 times)" in errors[0].message, "(10 times)" in errors[1].message, "(100 times)" in errors[2].message]
    assert all("faulty" in record.message and "bbipc-poller" in record.message for record in errors)
    assert all(record.exc_info and record.exc_info[0] is kind for record in errors)


def test_two_failing_monitors_of_one_socket_are_counted_each(
    loop: PollingLoop, caplog: pytest.LogCaptureFixture
) -> None:
    calls = [0, 0]
    done = threading.Event()

    def first(socket: bbipc.Socket, events: SocketEvent) -> None:
        calls[0] += 1
        raise ValueError("first")

    def second(socket: bbipc.Socket, events: SocketEvent) -> None:
        calls[1] += 1
        if calls[1] == 20:
            assert isinstance(socket, bbipc.LocalStream)
            socket.read()
            done.set()
        raise ValueError("second")

    with pair() as (one, other):
        loop.monitor(one, DATA, first)
        loop.monitor(one, DATA, second)
        other.write(b"x")
        assert done.wait(PATIENCE)
        dealt_out(loop)
    messages = [record.message for record in caplog.records if record.levelno >= logging.ERROR]
    assert ["first" in message for message in messages] == [True, False, True, False]
    assert ["second" in message for message in messages] == [False, True, False, True]


RAISERS: dict[str, Callable[[PollingLoop, bbipc.Socket, Callable[..., None]], object]] = {
    "a future's callback": lambda loop, socket, fn: on_thread(
        loop, lambda: loop.call_later(0, nothing).add_done_callback(fn)
    ),
    "a wait's callback": lambda loop, socket, fn: on_thread(
        loop, lambda: loop.when(socket, DATA, timeout=0.001).add_done_callback(fn)
    ),
    "on_close": lambda loop, socket, fn: (loop.monitor(socket, END, nothing, on_close=fn), socket.close()),
    "a monitor's": lambda loop, socket, fn: loop.monitor(socket, SocketEvent.READY_TO_WRITE, fn),
}


@pytest.mark.parametrize("raiser", RAISERS.values(), ids=RAISERS)
@pytest.mark.parametrize("kind", [ValueError, SystemExit])
def test_whatever_else_of_the_users_raises_ends_nothing(
    loop: PollingLoop,
    raiser: Callable[[PollingLoop, bbipc.Socket, Callable[..., None]], object],
    kind: type[BaseException],
    caplog: pytest.LogCaptureFixture,
) -> None:
    raised = threading.Event()

    def fn(*args: object) -> None:
        raised.set()
        raise kind("my fault")

    with pair() as (one, _):
        raiser(loop, one, fn)
        assert raised.wait(PATIENCE)
        dealt_out(loop)
    assert any(record.exc_info for record in caplog.records)


def test_what_a_timer_raises_goes_to_its_future_and_nowhere_else(
    loop: PollingLoop, caplog: pytest.LogCaptureFixture
) -> None:
    for kind in (ValueError, SystemExit, KeyboardInterrupt, GeneratorExit, RecursionError):

        def fn(kind: type[BaseException] = kind) -> None:
            raise kind("no")

        assert isinstance(loop.call_later(0, fn).exception(PATIENCE), kind)
    assert caplog.records == []


# A log that does not work.


def test_a_broken_log_ends_nothing(loop: PollingLoop) -> None:
    calls = threading.Semaphore(0)

    def faulty(socket: bbipc.Socket, events: SocketEvent) -> None:
        assert isinstance(socket, bbipc.LocalStream)
        socket.read()
        calls.release()
        raise ValueError("my fault")

    with pair() as (one, other), handler_added(Broken()), mock.patch("threading.excepthook"):
        loop.monitor(one, DATA, faulty)
        for _ in range(3):
            other.write(b"x")
            assert calls.acquire(timeout=PATIENCE)
        dealt_out(loop)


def test_a_broken_log_and_a_broken_excepthook_end_nothing(loop: PollingLoop) -> None:
    """What a closed stderr comes to, where no logging is set up."""

    def faulty(socket: bbipc.Socket, events: SocketEvent) -> None:
        assert isinstance(socket, bbipc.LocalStream)
        socket.read()
        raise ValueError("my fault")

    broken = mock.patch("threading.excepthook", side_effect=ValueError("broken, too"))
    with pair() as (one, other), handler_added(Broken()), broken, contextlib.suppress(PollerClosedError):
        loop.monitor(one, DATA, faulty)
        other.write(b"x")
        dealt_out(loop)
    assert not loop.closed


def test_a_broken_log_loses_no_future() -> None:
    def faulty(error: Exception) -> None:
        raise ValueError("my fault")

    with handler_added(Broken()), mock.patch("threading.excepthook"), pairs(2) as ((one, _), (two, _)):
        loop = PollingLoop()
        loop.monitor(one, DATA, nothing, on_close=faulty)
        closed = loop.when(one, DATA)
        loop.monitor(two, DATA, nothing, on_close=faulty)
        ended: list[Future[Any]] = [loop.when(two, DATA), loop.call_later(60, nothing)]
        one.close()
        told = wait([closed], 1).done
        with contextlib.suppress(ValueError):
            loop.close()
        assert told == {closed}
        assert wait(ended, 1).not_done == set()
        assert loop._poller is not None
        assert loop._poller.closed


def test_a_broken_log_keeps_no_timer_from_its_time(loop: PollingLoop) -> None:
    """Two are due in one turn; a callback of the first's future raises what only the log hears of."""
    with handler_added(Broken()), mock.patch("threading.excepthook"):

        def fault(future: Future[None]) -> None:
            raise SystemExit("my fault")

        def set_up() -> list[Future[None]]:
            futures = [loop.call_later(0, nothing) for _ in range(3)]
            for future in futures:
                future.add_done_callback(fault)
            return futures

        assert not wait(on_thread(loop, set_up), 1).not_done


# Slow ones.


def test_a_callback_that_blocks_is_reported_once(loop: PollingLoop, caplog: pytest.LogCaptureFixture) -> None:
    """With 2 ms in the place of 100."""
    calls = threading.Semaphore(0)
    clock = mock.patch("pool.dispatch.SLOW", 0.002)

    def slow(socket: bbipc.Socket, events: SocketEvent) -> None:
        assert isinstance(socket, bbipc.LocalStream)
        assert threading.Event().wait(0.004) is False
        socket.read()
        calls.release()

    with pair() as (one, other), clock:
        loop.monitor(one, DATA, slow)
        for _ in range(5):
            other.write(b"x")
            assert calls.acquire(timeout=PATIENCE)
        dealt_out(loop)
    reports = [record.message for record in caplog.records if "slow" in record.message]
    assert len(reports) == 1, reports
    assert "kept the poller thread 'bbipc-poller' from its work for" in reports[0]


def test_a_report_of_slowness_tells_where_to_look(loop: PollingLoop, caplog: pytest.LogCaptureFixture) -> None:
    """The monitors of the socket, the socket where the monitor has gone meanwhile, the function of a timer."""
    calls = threading.Semaphore(0)

    def slow(socket: bbipc.Socket, events: SocketEvent) -> None:
        assert isinstance(socket, bbipc.LocalStream)
        assert threading.Event().wait(0.12) is False
        socket.read()
        calls.release()

    def slow_and_gone(socket: bbipc.Socket, events: SocketEvent) -> None:
        monitor.cancel()
        slow(socket, events)

    def slow_timer() -> None:
        assert threading.Event().wait(0.12) is False

    with pairs(2) as ((one, other), (two, another)):
        loop.monitor(one, DATA, nothing)
        loop.monitor(one, DATA, slow)
        monitor = loop.monitor(two, DATA, slow_and_gone)
        for stream in (other, another):  # one after the other: what is slow together is reported together
            stream.write(b"x")
            assert calls.acquire(timeout=PATIENCE)
            dealt_out(loop)
        loop.call_later(0, slow_timer).result(PATIENCE)
        dealt_out(loop)
    messages = [record.message for record in caplog.records]
    assert len(messages) == 3
    for name in ("slow at", repr(two).split()[0], "slow_timer"):
        assert any(name in message for message in messages), messages


class Clock:
    """In the place of ``time``: callbacks take as long as they say, and the machine takes none."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def slow(self, *args: object) -> None:
        """A callback that blocks for 150 ms."""
        self.now += 0.15


@pytest.fixture
def clock() -> Iterator[Clock]:
    made = Clock()
    with mock.patch("pool.dispatch.time", made):
        yield made


SLOW_ONES: dict[str, tuple[str, Callable[[PollingLoop, Socket, Callable[..., None]], object]]] = {
    "on_close": ("slow", lambda loop, socket, fn: (loop.monitor(socket, DATA, nothing, on_close=fn), socket.close())),
    "a wait that timed out": (
        "when(",
        lambda loop, socket, fn: on_thread(loop, lambda: loop.when(socket, DATA, timeout=0.001).add_done_callback(fn)),
    ),
    "a wait whose socket was closed": (
        "when(",
        lambda loop, socket, fn: (loop.when(socket, DATA).add_done_callback(fn), socket.close()),
    ),
    "a timer": ("call_later(", lambda loop, socket, fn: loop.call_later(0, fn)),
    "a callback of a timer's future": (
        "call_later(",
        lambda loop, socket, fn: on_thread(loop, lambda: loop.call_later(0, nothing).add_done_callback(fn)),
    ),
}


@pytest.mark.parametrize(("name", "begin"), SLOW_ONES.values(), ids=SLOW_ONES)
def test_whatever_blocks_is_reported(
    loop: PollingLoop,
    clock: Clock,
    name: str,
    begin: Callable[[PollingLoop, Socket, Callable[..., None]], object],
    caplog: pytest.LogCaptureFixture,
) -> None:
    called = threading.Event()

    def slow(*args: object) -> None:
        clock.slow()
        called.set()

    with pair() as (one, _):
        begin(loop, one, slow)
        assert called.wait(PATIENCE)
        dealt_out(loop)
    (message,) = [record.message for record in caplog.records]
    assert name in message
    assert message.endswith("kept the poller thread 'bbipc-poller' from its work for 150 ms")


class Turns:
    """A dispatcher without a thread, and two sockets with a monitor each, of which the second one may be slow."""

    def __init__(self, clock: Clock, sockets: list[Socket]) -> None:
        self.table = Interests()
        self.table.poller = make_poller()
        self.dispatcher = Dispatcher(self.table, "the thread")
        self.sockets = sockets
        self.is_slow = True
        self.clock = clock
        for socket, callback in zip(sockets, (self.innocent, self.slow), strict=True):
            self.table.join(socket, Monitor(self.table, socket, DATA.value, callback, None))
        self.table.refresh()

    def innocent(self, socket: Socket, events: SocketEvent) -> None:
        """Takes no time."""

    def slow(self, socket: Socket, events: SocketEvent) -> None:
        if self.is_slow:
            self.clock.slow()

    def take(self, count: int, *numbers: int) -> None:
        """*count* turns with events of these sockets."""
        for _ in range(count):
            self.dispatcher.serve([(self.sockets[number], DATA) for number in numbers])


@pytest.fixture
def turns(clock: Clock) -> Iterator[Turns]:
    with pair() as (one, other):
        made = Turns(clock, [one, other])
        yield made
        assert made.table.poller is not None
        made.table.poller.close()


def test_who_was_reported_alone_is_not_reported_again_with_an_innocent_one(
    turns: Turns, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor when the turns that are timed one by one are over."""
    turns.take(1, 1)
    assert "slow" in caplog.messages[0]
    for _ in range(3):
        turns.take(5, 0, 1)
        turns.is_slow = False
        turns.take(TIMED_TURNS, 0)
        turns.is_slow = True
    turns.take(1, 1)
    assert len(caplog.messages) == 1


def test_of_several_it_is_told_that_it_was_one_of_them_and_then_who(
    turns: Turns, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        turns.take(5, 0, 1)
        turns.is_slow = False
        turns.take(TIMED_TURNS, 0)
        turns.is_slow = True
    first, second = caplog.messages
    assert first.startswith("one of [")
    assert "innocent" in first
    assert "slow" in first
    assert "innocent" not in second
    assert "slow" in second


def test_those_who_were_reported_together_are_not_reported_together_again(
    turns: Turns, caplog: pytest.LogCaptureFixture
) -> None:
    """The slow one is slow too seldom to be found out."""
    for _ in range(3):
        turns.is_slow = True
        turns.take(1, 0, 1)
        turns.is_slow = False
        turns.take(TIMED_TURNS, 0, 1)
    assert len(caplog.messages) == 1


def test_a_slow_one_is_found_beside_one_that_is_known(turns: Turns, caplog: pytest.LogCaptureFixture) -> None:
    """The first one becomes slow, in turns with the other, which was reported before."""
    turns.take(1, 1)
    innocent = turns.table.parties_of(turns.sockets[0])[0]
    assert isinstance(innocent, Monitor)
    turns.table.leave(turns.sockets[0], innocent)
    turns.table.join(turns.sockets[0], Monitor(turns.table, turns.sockets[0], DATA.value, turns.clock.slow, None))
    turns.table.refresh()
    turns.take(3, 0, 1)
    assert len(caplog.messages) == 2
    assert "Clock.slow" in caplog.messages[1]


def test_a_turn_without_events_that_takes_long_is_nobodys_fault(turns: Turns, caplog: pytest.LogCaptureFixture) -> None:
    """The processor was elsewhere, between two looks at the clock."""
    with mock.patch.object(turns.dispatcher, "_serve", turns.clock.slow):
        turns.dispatcher.serve([])
    assert not caplog.records


def test_a_slow_callback_need_not_be_hashable(turns: Turns, caplog: pytest.LogCaptureFixture) -> None:
    class Unhashable:
        __hash__ = None  # type: ignore[assignment]

        def __call__(self, *args: object) -> None:
            turns.clock.slow()

    monitor = turns.table.parties_of(turns.sockets[0])[0]
    assert isinstance(monitor, Monitor)
    turns.table.leave(turns.sockets[0], monitor)
    turns.table.join(turns.sockets[0], Monitor(turns.table, turns.sockets[0], DATA.value, Unhashable(), None))
    turns.table.refresh()
    turns.take(1, 0)
    assert "Unhashable" in caplog.messages[0]
