"""Monitors and waits on a running loop: what they do to themselves, to each other, and in the same batch of events."""

# mypy: disable-error-code="func-returns-value"

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from unittest import mock

import pytest

import bbipc
from bbipc import PollerClosedError, SocketClosedError, SocketEvent
from pool.parties import Monitor
from pool.polling_loop import PollingLoop
from tests.support.loops import NOTHING, dealt_out, left, on_thread, pair, pairs
from tests.support.makers import PATIENCE, fill

DATA = SocketEvent.DATA_AVAILABLE
END = SocketEvent.REMOTE_DISCONNECTED
WRITE = SocketEvent.READY_TO_WRITE


@pytest.fixture(name="loop")
def a_loop() -> Iterator[PollingLoop]:
    with PollingLoop() as loop:
        yield loop


class Log:
    """Callbacks that write down what they are told, and do one thing more."""

    def __init__(self) -> None:
        self.told: list[tuple[bbipc.Socket, SocketEvent]] = []
        self.came = threading.Semaphore(0)

    def __call__(self, socket: bbipc.Socket, events: SocketEvent) -> None:
        self.told.append((socket, events))
        self.came.release()

    def then(self, fn: Callable[[bbipc.Socket], object]) -> Callable[[bbipc.Socket, SocketEvent], None]:
        def callback(socket: bbipc.Socket, events: SocketEvent) -> None:
            self(socket, events)
            fn(socket)

        return callback

    def wait(self, count: int = 1) -> None:
        for _ in range(count):
            assert self.came.acquire(timeout=PATIENCE)


def read(socket: bbipc.Socket) -> None:
    assert isinstance(socket, bbipc.StreamSocket)
    socket.read()


# A monitor by itself.


def test_a_monitor_is_told_again_and_again_until_the_bytes_are_read(loop: PollingLoop) -> None:
    log = Log()
    with pair() as (one, other):

        def third(socket: bbipc.Socket) -> None:
            if len(log.told) == 3:
                read(socket)

        loop.monitor(one, DATA, log.then(third))
        other.write(b"x")
        log.wait(3)
        dealt_out(loop)
        assert log.told == [(one, DATA)] * 3


def test_a_monitor_says_what_it_is(loop: PollingLoop) -> None:
    with pair() as (one, _):
        monitor = loop.monitor(one, DATA, Log())
        assert (monitor.active, monitor.socket) == (True, one)
        assert repr(monitor) == f"<Monitor active of {one!r}>"
        monitor.pause()
        assert repr(monitor) == f"<Monitor paused of {one!r}>"
        monitor.cancel()
        assert monitor.active is False
        assert repr(monitor) == f"<Monitor ended of {one!r}>"


def test_cancelling_leaves_nothing_and_may_be_done_twice(loop: PollingLoop) -> None:
    log = Log()
    with pair() as (one, other):
        monitor = loop.monitor(one, DATA, log)
        monitor.cancel()
        monitor.cancel()
        assert left(loop) == NOTHING
        monitor.pause()
        monitor.resume()
        monitor.set_events(DATA | END)
        assert left(loop) == NOTHING
        other.write(b"x")
        dealt_out(loop)
        assert log.told == []


def test_a_monitor_that_cancels_itself_is_told_no_more(loop: PollingLoop) -> None:
    log, monitors = Log(), list[Monitor]()
    with pair() as (one, other):
        monitors.append(loop.monitor(one, DATA, log.then(lambda socket: monitors[0].cancel())))
        other.write(b"x")
        log.wait()
        dealt_out(loop)
        assert log.told == [(one, DATA)]
        assert left(loop) == NOTHING


def test_a_paused_monitor_is_silent_and_then_told_what_is_true_by_now(loop: PollingLoop) -> None:
    log = Log()
    with pair() as (one, other):
        monitor = loop.monitor(one, DATA, log.then(read))
        for _ in range(3):
            monitor.pause()
            monitor.pause()
            other.write(b"x")
            dealt_out(loop)
            assert log.told == []
            monitor.resume()
            monitor.resume()
            log.wait()
            dealt_out(loop)
            assert log.told == [(one, DATA)]
            log.told.clear()


def test_a_monitor_may_pause_itself_and_be_resumed_by_another_thread(loop: PollingLoop) -> None:
    """What a worker does who reads: the poller thread is not told again meanwhile."""
    log, monitors = Log(), list[Monitor]()
    with pair() as (one, other):
        monitors.append(loop.monitor(one, DATA, log.then(lambda socket: monitors[0].pause())))
        for count in range(1, 4):
            other.write(b"x")
            log.wait()
            dealt_out(loop)
            assert len(log.told) == count
            one.read()
            monitors[0].resume()
        dealt_out(loop)
        assert len(log.told) == 3


def test_a_pause_at_a_hang_up_does_not_spin(loop: PollingLoop) -> None:
    log, monitors = Log(), list[Monitor]()
    with pair() as (one, other):
        monitors.append(loop.monitor(one, DATA | END, log.then(lambda socket: monitors[0].pause())))
        other.close()
        log.wait()
        with mock.patch.object(loop, "_turn", wraps=loop._turn) as turn:
            assert not wait([loop.call_later(0.2, lambda: None)], PATIENCE).not_done
        assert turn.call_count < 5


def test_set_events_takes_the_place_of_what_was_asked_and_ends_a_pause(loop: PollingLoop) -> None:
    log = Log()
    with pair() as (one, other):
        monitor = loop.monitor(one, END, log.then(lambda socket: monitor.pause()))
        other.write(b"x")
        dealt_out(loop)
        assert log.told == []
        monitor.set_events(DATA)
        log.wait()
        assert log.told == [(one, DATA)]
        monitor.set_events(WRITE)  # it has paused itself
        log.wait()
        assert log.told[1:] == [(one, WRITE)]
        monitor.resume()
        log.wait()
        assert log.told[2:] == [(one, WRITE)]
        monitor.set_events(SocketEvent(0))
        dealt_out(loop)
        assert len(log.told) == 3


def test_set_events_refuses_what_the_socket_does_not_have_and_goes_on(loop: PollingLoop) -> None:
    log = Log()
    with pair() as (one, other):
        monitor = loop.monitor(one, DATA, log.then(read))
        with pytest.raises(ValueError, match="CONNECTION_AVAILABLE"):
            monitor.set_events(SocketEvent.CONNECTION_AVAILABLE)
        with pytest.raises(TypeError):
            monitor.set_events(16)  # type: ignore[arg-type]
        monitor.pause()
        monitor.resume()
        other.write(b"x")
        log.wait()
        assert log.told == [(one, DATA)]


def test_a_resume_that_the_kernel_refused_may_be_made_again(loop: PollingLoop) -> None:
    log = Log()
    with pair() as (one, other):
        monitor = loop.monitor(one, DATA, log.then(read))
        monitor.pause()
        other.write(b"x")
        refusal = mock.patch.object(loop._poller, "set_monitored_events", side_effect=OSError(28, "no room"))
        with refusal, pytest.raises(OSError, match="no room"):
            monitor.resume()
        monitor.resume()
        log.wait()


# The end of a monitor.


def test_on_close_is_called_once_with_the_reason(loop: PollingLoop) -> None:
    reasons: list[tuple[Exception, bool]] = []
    told = threading.Event()

    def hook(error: Exception) -> None:
        reasons.append((error, loop.is_current()))
        told.set()

    with pair() as (one, other):
        monitor = loop.monitor(one, DATA, Log(), on_close=hook)
        loop.monitor(other, DATA, Log(), on_close=hook)
        one.close()
        assert told.wait(PATIENCE)
        ((error, on_it),) = reasons
        assert isinstance(error, SocketClosedError)
        assert error.socket is one
        assert on_it
        assert monitor.active is False
        loop.close()
        assert isinstance(reasons[1][0], PollerClosedError)
        assert reasons[1][1]
        assert len(reasons) == 2


def test_on_close_is_not_called_after_a_cancel(loop: PollingLoop) -> None:
    reasons: list[Exception] = []
    with pair() as (one, other):
        monitors = [loop.monitor(stream, DATA, Log(), on_close=reasons.append) for stream in (one, other)]
        for monitor in monitors:
            monitor.cancel()
        one.close()
        dealt_out(loop)
        loop.close()
    assert reasons == []


def test_on_close_of_a_monitor_that_another_ones_on_close_cancels_is_not_called(loop: PollingLoop) -> None:
    told, monitors = list[int](), list[Monitor]()

    def hook(number: int) -> Callable[[Exception], None]:
        def told_of_the_end(error: Exception) -> None:
            told.append(number)
            monitors[1 - number].cancel()

        return told_of_the_end

    with pair() as (one, _):
        monitors += [loop.monitor(one, DATA, Log(), on_close=hook(number)) for number in range(2)]
        one.close()
        dealt_out(loop)
        assert len(told) == 1


def test_closing_its_own_socket_ends_a_monitor(loop: PollingLoop) -> None:
    log, reasons = Log(), list[Exception]()
    with pair() as (one, other):
        monitor = loop.monitor(one, DATA, log.then(lambda socket: socket.close()), on_close=reasons.append)
        other.write(b"x")
        log.wait()
        dealt_out(loop)
        assert log.told == [(one, DATA)]
        assert left(loop) == NOTHING
        assert monitor.active is False
        assert len(reasons) == 1


# Two in one batch.  They are registered, and made ready, on the poller thread: so the next wait finds both.


def test_a_socket_that_is_closed_by_a_callback_of_its_batch_gets_none_any_more(backend: str) -> None:
    for plain in (True, False):  # the short cut, and the long way of several parties
        with PollingLoop(bbipc.make_poller(backend)) as loop, pairs(2) as ready:
            log, sockets = Log(), [one for one, _ in ready]

            def close_the_other(socket: bbipc.Socket, sockets: list[bbipc.LocalStream] = sockets) -> None:
                sockets[socket is sockets[0]].close()
                read(socket)

            def set_up(
                loop: PollingLoop = loop,
                ready: list[tuple[bbipc.LocalStream, bbipc.LocalStream]] = ready,
                plain: bool = plain,
                log: Log = log,
                close_the_other: Callable[[bbipc.Socket], None] = close_the_other,
            ) -> None:
                for one, other in ready:
                    loop.monitor(one, DATA, log.then(close_the_other))
                    if not plain:
                        loop.when(one, END)
                    other.write(b"x")

            on_thread(loop, set_up)
            dealt_out(loop)
            assert len(log.told) == 1


def test_a_wait_whose_socket_was_closed_in_its_batch_says_so_or_what_came_first(loop: PollingLoop) -> None:
    """Settled once, with one of the two."""
    with pairs(2) as ((one, peer), (two, pear)):
        futures: list[Future[SocketEvent]] = []

        def set_up() -> None:
            for stream, other in ((one, peer), (two, pear)):
                future = loop.when(stream, DATA)
                future.add_done_callback(lambda future: (one.close(), two.close()))
                futures.append(future)
                other.write(b"x")

        on_thread(loop, set_up)
        assert not wait(futures, PATIENCE).not_done
        for future in futures:
            assert future.exception(0) is None or isinstance(future.exception(0), SocketClosedError)
        dealt_out(loop)
        assert left(loop) == NOTHING


CHANGES: dict[str, Callable[[PollingLoop, Monitor, Log], object]] = {
    "cancel": lambda loop, monitor, log: monitor.cancel(),
    "pause": lambda loop, monitor, log: monitor.pause(),
    "set_events": lambda loop, monitor, log: monitor.set_events(DATA),
    "pause, and set_events": lambda loop, monitor, log: (monitor.pause(), monitor.set_events(DATA)),
    "cancel, and a new one": lambda loop, monitor, log: (monitor.cancel(), loop.monitor(monitor.socket, DATA, log)),
    "close of the socket": lambda loop, monitor, log: monitor.socket.close(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_a_callback_takes_back_is_not_told_any_more(
    loop: PollingLoop, change: Callable[[PollingLoop, Monitor, Log], object]
) -> None:
    """Two sockets are ready to be written to; whoever is told first changes the other so that it asks for DATA."""
    log, monitors = Log(), dict[bbipc.Socket, Monitor]()
    with pair() as (one, other):

        def callback(socket: bbipc.Socket) -> None:
            monitors[socket].cancel()
            change(loop, monitors[other if socket is one else one], log)

        def set_up() -> None:
            for stream in (one, other):
                monitors[stream] = loop.monitor(stream, WRITE, log.then(callback))

        on_thread(loop, set_up)
        dealt_out(loop)
        assert [events for _, events in log.told] == [WRITE]


def test_a_monitor_left_alone_in_its_batch_is_not_told_what_the_other_had_asked_for(loop: PollingLoop) -> None:
    log, told = Log(), Log()
    writers: dict[bbipc.Socket, Monitor] = {}
    with pair() as (one, other):

        def callback(socket: bbipc.Socket) -> None:
            for monitor in writers.values():
                monitor.cancel()

        def set_up() -> None:
            for stream in (one, other):
                writers[stream] = loop.monitor(stream, WRITE, log.then(callback))
                loop.monitor(stream, DATA, told)

        on_thread(loop, set_up)
        dealt_out(loop)
        assert len(log.told) == 1
        assert told.told == []


# Several parties of one socket.


def test_many_monitors_and_waits_on_one_socket_are_each_told_what_they_asked_for(loop: PollingLoop) -> None:
    readers, writers = [Log() for _ in range(5)], [Log() for _ in range(5)]
    with pair() as (one, other):
        fill(one)
        futures = [loop.when(one, DATA) for _ in range(10)]
        ends = [loop.when(one, END) for _ in range(3)]
        rooms = [loop.when(one, WRITE) for _ in range(3)]
        monitors = [loop.monitor(one, DATA, log) for log in readers]
        monitors += [loop.monitor(one, WRITE, log) for log in writers]
        other.write(b"x")
        for log in readers:
            log.wait(2)
        assert [future.result(PATIENCE) for future in futures] == [DATA] * 10
        assert all(not log.told for log in writers)
        assert not any(future.done() for future in ends + rooms)
        for monitor in monitors:
            monitor.cancel()
        while other.read():
            pass
        assert [future.result(PATIENCE) for future in rooms] == [WRITE] * 3
        one.read()
        other.close()
        assert [future.result(PATIENCE) for future in ends] == [END] * 3
        assert left(loop) == NOTHING


def test_a_monitor_that_adds_others_to_its_socket_while_it_is_told(loop: PollingLoop) -> None:
    first, second = Log(), Log()
    with pair() as (one, other):
        monitor = loop.monitor(
            one,
            DATA,
            first.then(lambda socket: (monitor.cancel(), loop.monitor(one, DATA, second.then(read)))),
        )
        other.write(b"x")
        first.wait()
        second.wait()
        dealt_out(loop)
        assert (len(first.told), len(second.told)) == (1, 1)


def test_the_first_of_two_monitors_cancels_the_second(loop: PollingLoop) -> None:
    log, monitors = Log(), list[Monitor]()
    with pair() as (one, other):
        callback = log.then(lambda socket: [monitor.cancel() for monitor in monitors])
        monitors += [loop.monitor(one, DATA, callback) for _ in range(3)]
        other.write(b"x")
        dealt_out(loop)
        assert len(log.told) == 1
        assert left(loop) == NOTHING


# Waits and a kernel without room.


@pytest.mark.parametrize("end", ["readiness", "timeout", "cancel"])
def test_a_wait_is_settled_though_the_kernel_has_no_room_for_who_stays(loop: PollingLoop, end: str) -> None:
    """ENOSPC, when the poller is asked for what the others of that socket want: no trouble of who leaves."""
    with pair() as (one, other):
        loop.monitor(one, END, Log())
        refusal = mock.patch.object(loop._poller, "set_monitored_events", side_effect=OSError(28, "no room"))
        future = loop.when(one, DATA, timeout=0.05 if end == "timeout" else None)
        with refusal:
            if end == "readiness":
                other.write(b"x")
            elif end == "cancel":
                future.cancel()
            assert wait([future], PATIENCE / 5).done == {future}


def test_a_wait_that_the_kernel_refuses_is_refused_at_the_call(loop: PollingLoop) -> None:
    with pair() as (one, other):
        loop.when(other, DATA).cancel()
        refusal = mock.patch.object(loop._poller, "monitor_socket", side_effect=OSError(28, "no room"))
        with refusal:
            with pytest.raises(OSError, match="no room"):
                loop.when(one, DATA, timeout=5)
            with pytest.raises(OSError, match="no room"):
                loop.monitor(one, DATA, Log())
        assert left(loop) == NOTHING
        future = loop.when(one, DATA)
        other.write(b"x")
        assert future.result(PATIENCE) == DATA
