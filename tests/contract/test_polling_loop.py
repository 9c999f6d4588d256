"""What a polling loop promises, for every kind of socket on every poller backend."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from pathlib import Path

import pytest

import bbipc
from bbipc import PollerClosedError, SocketClosedError, SocketEvent
from pool.poller_thread import PollerThread
from pool.polling_loop import PollingLoop
from tests.contract.states import EVERY, NONE, TABLE, State, crowd
from tests.contract.test_truth_table import ROWS
from tests.stress.close_race import switch_interval
from tests.support.loops import NOTHING, dealt_out, left, on_thread
from tests.support.makers import PATIENCE, Namespace, Worker, accept, drain, fill, wait_until_asleep

DATA = SocketEvent.DATA_AVAILABLE
END = SocketEvent.REMOTE_DISCONNECTED
WRITE = SocketEvent.READY_TO_WRITE
ROOM = SocketEvent.ROOM_TO_WRITE
CALLER = SocketEvent.CONNECTION_AVAILABLE
SOON = 0.05  # seconds within which a registration takes effect


@pytest.fixture(name="loop", params=[PollingLoop, PollerThread])
def a_loop(request: pytest.FixtureRequest, backend: str) -> Iterator[PollingLoop]:
    with request.param(bbipc.make_poller(backend)) as loop:
        yield loop
        if not loop.closed:
            dealt_out(loop)


@pytest.fixture(name="plain")
def a_plain_loop(backend: str) -> Iterator[PollingLoop]:
    """Where the kind of loop does not matter."""
    with PollingLoop(bbipc.make_poller(backend)) as loop:
        yield loop


def asleep(loop: PollingLoop) -> None:
    """The thread waits in the kernel, and has nothing to do."""
    wait_until_asleep(on_thread(loop, threading.current_thread))


def best(measure: Callable[[], float]) -> float:
    """Of five: on a busy machine one may be late; what was not noticed is late each time."""
    return min(measure() for _ in range(5))


# when.


def test_what_is_there_is_told_at_once_and_registers_nothing(loop: PollingLoop, namespace: Namespace) -> None:
    with namespace.pair() as (one, other):
        other.write(b"x")
        assert bbipc.poll_socket(one, DATA, PATIENCE)
        future = loop.when(one, DATA | WRITE | END, timeout=60)
        assert future.result(0) == DATA | WRITE
        on_thread(loop, lambda: None)
        assert left(loop) == NOTHING


def test_what_comes_later_is_told_then_and_leaves_nothing(loop: PollingLoop, namespace: Namespace) -> None:
    with namespace.pair() as (one, other):
        for timeout in (None, 60):
            future = loop.when(one, DATA | END, timeout=timeout)
            asleep(loop)
            assert not future.done()
            other.write(b"x")
            assert future.result(PATIENCE) == DATA
            assert left(loop) == NOTHING
            one.read()


def test_a_caller_is_told_of(loop: PollingLoop, namespace: Namespace) -> None:
    with namespace.make_server() as server:
        future = loop.when(server, CALLER)
        asleep(loop)
        with namespace.connect_plainly(server):
            assert future.result(PATIENCE) == CALLER
            assert loop.when(server, CALLER).result(0) == CALLER
            assert left(loop) == NOTHING
            server.accept_connection().close()


def test_the_end_of_a_connect_is_told_of(plain: PollingLoop, namespace: Namespace) -> None:
    with crowd(namespace) as (stream, server):
        future = plain.when(stream, SocketEvent.DETERMINED)
        asleep(plain)
        assert not future.done()
        server.close()
        if namespace.name == "local":  # TCP goes on trying
            assert future.result(PATIENCE) == SocketEvent.DETERMINED
        else:
            assert future.cancel()
        assert left(plain) == NOTHING


def test_a_close_ends_the_wait_for_a_connect(plain: PollingLoop, namespace: Namespace) -> None:
    """Also where the kernel has no edge for it, and the poller looks now and then."""
    with crowd(namespace) as (stream, _):
        futures = [plain.when(stream, events) for events in (SocketEvent.DETERMINED, DATA, ROOM)]
        asleep(plain)
        stream.close()
        assert not wait(futures, PATIENCE).not_done
        assert all(isinstance(future.exception(0), SocketClosedError) for future in futures)
        assert left(plain) == NOTHING


@ROWS
def test_when_follows_the_truth_table(
    plain: PollingLoop, namespace: Namespace, state: State, expected: SocketEvent
) -> None:
    """What is true is told at once, what cannot come any more ends empty, and nothing else ends."""
    with state(namespace) as stream:
        _, possible = stream._state()
        futures = {event: plain.when(stream, event) for event in EVERY}
        hopeless = [futures[event] for event in EVERY if not event & expected and not event.value & possible]
        assert all(futures[event].result(0) == event for event in EVERY & expected)
        assert not wait(hopeless, PATIENCE).not_done
        assert [future.result(0) for future in hopeless] == [NONE] * len(hopeless)
        dealt_out(plain)
        for event in EVERY:
            if not event & expected and event.value & possible:
                assert not futures[event].done()
                assert futures[event].cancel()
        assert left(plain) == NOTHING


@pytest.mark.parametrize("first", [True, False], ids=["alone", "beside a monitor"])
def test_a_wait_that_loses_its_hope_ends_empty(plain: PollingLoop, namespace: Namespace, first: bool) -> None:
    with namespace.stream_and_peer() as (stream, peer):
        if not first:
            monitor = plain.monitor(stream, DATA, lambda socket, events: None)
        future = plain.when(stream, DATA)
        both = plain.when(stream, DATA | END)
        asleep(plain)
        peer.close()
        assert future.result(PATIENCE) == NONE
        assert both.result(PATIENCE) == END
        if not first:
            monitor.cancel()
        assert left(plain) == NOTHING


def test_a_wait_for_room_ends_when_the_own_side_is_shut_meanwhile(plain: PollingLoop, namespace: Namespace) -> None:
    with namespace.stream_and_peer() as (stream, _):
        fill(stream)
        ready = plain.when(stream, WRITE)
        room = plain.when(stream, ROOM)
        asleep(plain)
        Worker(stream.shutdown_write).outcome()
        assert ready.result(PATIENCE) == NONE
        assert room.result(PATIENCE) == ROOM
        assert left(plain) == NOTHING


def test_bytes_and_their_end_are_told_in_this_order(plain: PollingLoop, namespace: Namespace) -> None:
    with namespace.stream_and_peer() as (stream, peer):
        future = plain.when(stream, DATA | END)
        peer.sendall(b"last words")
        peer.close()
        assert future.result(PATIENCE) == DATA
        assert drain(stream, 10) == b"last words"
        assert plain.when(stream, DATA | END).result(PATIENCE) == END


def test_a_read_and_a_write_are_waited_for_at_once(loop: PollingLoop, namespace: Namespace) -> None:
    with namespace.pair() as (one, other):
        total = fill(one)
        reading, writing = loop.when(one, DATA | END), loop.when(one, ROOM)
        asleep(loop)
        assert not reading.done()
        assert not writing.done()
        drain(other, total)
        assert writing.result(PATIENCE) == ROOM
        assert not reading.done()
        other.write(b"x")
        assert reading.result(PATIENCE) == DATA
        assert left(loop) == NOTHING


# Its ends.


def test_a_cancelled_wait_leaves_nothing(loop: PollingLoop, namespace: Namespace) -> None:
    with namespace.pair() as (one, other):
        futures = [loop.when(one, DATA, timeout=60), loop.when(one, END), loop.when(other, DATA)]
        asleep(loop)
        for future in futures:
            assert future.cancel()
        assert left(loop) == NOTHING
        assert wait(futures, 0).not_done == set()
        other.write(b"x")
        dealt_out(loop)
        assert all(future.cancelled() for future in futures)
        assert one.read() == b"x"


def test_a_wait_whose_time_is_up_leaves_nothing(loop: PollingLoop, namespace: Namespace) -> None:
    with namespace.pair() as (one, other):
        for timeout in (0, 0.0, 1e-9, 0.02):
            began = time.monotonic()
            future = loop.when(one, DATA, timeout=timeout)
            with pytest.raises(TimeoutError, match="DATA_AVAILABLE"):
                future.result(PATIENCE)
            assert time.monotonic() - began >= timeout
        on_thread(loop, lambda: None)
        assert left(loop) == NOTHING
        other.write(b"x")
        assert loop.when(one, DATA, timeout=PATIENCE).result(PATIENCE) == DATA


def test_a_close_by_another_thread_ends_all_waits(loop: PollingLoop, namespace: Namespace) -> None:
    with namespace.pair() as (one, other):
        fill(one)
        futures = [loop.when(one, events, timeout=60) for events in (DATA, END, WRITE, ROOM, DATA | END)]
        untouched = loop.when(other, SocketEvent.CONNECTION_FAILED)
        asleep(loop)
        began = time.monotonic()
        Worker(one.close).outcome()
        assert not wait(futures, PATIENCE).not_done
        assert time.monotonic() - began < 1
        for future in futures:
            error = future.exception(0)
            assert isinstance(error, SocketClosedError)
            assert error.socket is one
        untouched.cancel()
        wait([untouched], PATIENCE)
        assert left(loop) == NOTHING
        with pytest.raises(SocketClosedError):
            loop.when(one, DATA)
        with pytest.raises(SocketClosedError):
            loop.monitor(one, DATA, lambda socket, events: None)
        assert left(loop) == NOTHING


def test_a_closed_server_ends_its_waits(loop: PollingLoop, namespace: Namespace) -> None:
    with namespace.make_server() as server:
        future = loop.when(server, CALLER)
        asleep(loop)
        server.close()
        with pytest.raises(SocketClosedError):
            future.result(PATIENCE)
        assert left(loop) == NOTHING


def test_a_closed_loop_ends_all_waits(loop: PollingLoop, namespace: Namespace) -> None:
    with namespace.make_server() as server, namespace.pair() as (one, _):
        futures: list[Future[SocketEvent]] = [loop.when(one, DATA), loop.when(server, CALLER, timeout=60)]
        loop.close()
        for future in futures:
            assert isinstance(future.exception(0), PollerClosedError)
        assert not server.closed
        assert not one.closed


def test_two_hundred_closed_sockets_tell_their_waiters_soon(plain: PollingLoop, namespace: Namespace) -> None:
    """One waiter each; 99 of 100 know within 100 ms, all within a second (HAZARDS 4), at the best of three times."""
    most, all_of_them = min(closed_and_told(plain, namespace) for _ in range(3))
    assert most < 0.1
    assert all_of_them < 1


def closed_and_told(loop: PollingLoop, namespace: Namespace) -> tuple[float, float]:
    """How long it took until the waiters of 200 closed sockets knew: 99 of 100, and all."""
    with namespace.make_server() as server, contextlib.ExitStack() as stack:
        clients = []
        for _ in range(200):
            clients.append(stack.enter_context(namespace.connect(server)))
            stack.enter_context(accept(server))
        assert all(bbipc.poll_socket(client, SocketEvent.DETERMINED, PATIENCE) for client in clients)
        late: list[float] = []
        closed: dict[Future[SocketEvent], float] = {}
        futures = [loop.when(client, DATA) for client in clients]
        for future in futures:
            future.add_done_callback(lambda future: late.append(time.monotonic() - closed[future]))
        for client, future in zip(clients, futures, strict=True):
            closed[future] = time.monotonic()
            client.close()
        assert not wait(futures, PATIENCE).not_done
        assert all(isinstance(future.exception(0), SocketClosedError) for future in futures)
        on_thread(loop, lambda: None)
        assert left(loop) == NOTHING
    return sorted(late)[197], max(late)


# Registrations by another thread, while the loop waits.


def test_a_wait_takes_effect_at_once(loop: PollingLoop, namespace: Namespace) -> None:
    with namespace.pair() as (one, other):

        def measure() -> float:
            future = loop.when(one, DATA)
            asleep(loop)
            began = time.monotonic()
            other.write(b"x")
            future.result(PATIENCE)
            spent = time.monotonic() - began
            one.read()
            return spent

        assert best(measure) < SOON


def test_a_monitor_and_its_changes_take_effect_at_once(loop: PollingLoop, namespace: Namespace) -> None:
    """Registered, changed, paused, resumed, cancelled, by a thread that is not the poller's (HAZARDS 28)."""
    told = threading.Semaphore(0)

    def callback(socket: bbipc.Socket, events: SocketEvent) -> None:
        monitor.pause()
        told.release()

    with namespace.pair() as (one, other):
        other.write(b"x")
        assert bbipc.poll_socket(one, DATA, PATIENCE)
        monitor = loop.monitor(one, END, callback)

        def by(change: Callable[[], object]) -> Callable[[], float]:
            def measure() -> float:
                asleep(loop)
                began = time.monotonic()
                change()
                assert told.acquire(timeout=PATIENCE)
                return time.monotonic() - began

            return measure

        assert best(by(lambda: monitor.set_events(DATA))) < SOON
        assert best(by(monitor.resume)) < SOON
        assert best(by(lambda: monitor.set_events(SocketEvent.DETERMINED))) < SOON  # true already: no edge tells
        monitor.cancel()
        asleep(loop)
        other.write(b"x")
        dealt_out(loop)
        assert not told.acquire(blocking=False)
        assert left(loop) == NOTHING


def test_a_timer_takes_effect_at_once(loop: PollingLoop) -> None:
    def measure() -> float:
        asleep(loop)
        began = time.monotonic()
        loop.call_later(0, lambda: None).result(PATIENCE)
        return time.monotonic() - began

    loop.call_later(60, lambda: None)
    assert best(measure) < SOON


def test_every_registration_of_four_threads_takes_effect_while_it_waits(plain: PollingLoop, short_dir: Path) -> None:
    """4 threads, 250 rounds each of register, change, pause, resume, cancel; each change is acknowledged."""
    local = Namespace("local", short_dir)

    def work(number: int) -> None:
        told = threading.Semaphore(0)

        def callback(socket: bbipc.StreamSocket, events: SocketEvent) -> None:
            monitor.pause()
            told.release()

        with local.pair() as (one, other):
            monitor = plain.monitor(one, END, callback)
            for _ in range(250):
                future = plain.when(one, DATA, timeout=60)
                other.write(b"x")
                assert future.result(PATIENCE) == DATA
                monitor.set_events(DATA)
                assert told.acquire(timeout=PATIENCE)
                monitor.resume()
                assert told.acquire(timeout=PATIENCE)
                one.read()
                assert plain.when(one, DATA).cancel()
                monitor.set_events(END)
            monitor.cancel()

    with switch_interval(1e-5):
        for worker in [Worker(lambda number=number: work(number)) for number in range(4)]:  # type: ignore[misc]
            worker.outcome(30)
    assert left(plain) == NOTHING


# monitor.


def test_a_monitor_serves_a_stream_to_its_end(loop: PollingLoop, namespace: Namespace) -> None:
    """An echo: every byte, then the end, then a close out of the callback."""
    ended: list[Exception] = []
    gone = threading.Event()

    def echo(socket: bbipc.Socket, events: SocketEvent) -> None:
        assert isinstance(socket, bbipc.StreamSocket)
        assert loop.is_current()
        data = socket.read()
        if data:
            assert socket.write(data) == len(data)
        elif data == b"":
            socket.close()

    def end(error: Exception) -> None:
        ended.append(error)
        gone.set()

    with namespace.stream_and_peer() as (stream, peer):
        monitor = loop.monitor(stream, DATA | END, echo, on_close=end)
        for number in range(50):
            word = b"%d" % number * 10
            peer.sendall(word)
            got = b""
            while len(got) < len(word):
                got += peer.recv(1000)
            assert got == word
        peer.shutdown(2)
        assert gone.wait(PATIENCE)
        assert isinstance(ended[0], SocketClosedError)
        assert not monitor.active
        assert left(loop) == NOTHING


def test_a_monitor_of_a_server_takes_all_its_callers(plain: PollingLoop, namespace: Namespace) -> None:
    accepted: list[bbipc.StreamSocket] = []
    came = threading.Semaphore(0)

    def take(socket: bbipc.Socket, events: SocketEvent) -> None:
        assert isinstance(socket, bbipc.StreamServer)
        assert events == CALLER
        accepted.append(socket.accept_connection())
        came.release()

    with namespace.make_server() as server:
        plain.monitor(server, CALLER, take)
        clients = [namespace.connect(server) for _ in range(30)]
        for _ in clients:
            assert came.acquire(timeout=PATIENCE)
        for stream in [*clients, *accepted]:
            stream.close()
    assert len(accepted) == 30


def test_a_monitor_whose_events_cannot_come_is_silent_and_does_not_spin(
    plain: PollingLoop, namespace: Namespace
) -> None:
    told: list[SocketEvent] = []
    with namespace.stream_and_peer() as (stream, peer):
        plain.monitor(stream, DATA, lambda socket, events: told.append(events))
        peer.close()
        cpu = on_thread(plain, time.thread_time)
        spent = plain.call_later(0.2, time.thread_time).result(PATIENCE) - cpu
        assert told == []
        assert spent < 0.02


def test_all_rows_of_the_table_are_there() -> None:
    """The test of the truth table above is as good as its rows."""
    assert len(TABLE) >= 13
