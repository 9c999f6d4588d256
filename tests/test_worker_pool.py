"""WorkerPool as its users see it: calls, waits and monitored sockets on the same few threads."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait

import pytest

import bbipc
from bbipc import PollerClosedError, SocketClosedError, SocketEvent
from pool import worker_pool
from pool.poller_thread import PollerThread
from pool.worker_pool import PoolStats, WorkerPool
from tests.support.loops import pair
from tests.support.makers import PATIENCE, Worker, wait_until_asleep
from tests.test_crew import Held, all_held, until
from tests.test_fork import in_child

READ = SocketEvent.DATA_AVAILABLE | SocketEvent.REMOTE_DISCONNECTED
SOON = 2.0  # seconds in which what nobody holds up has happened, on a busy machine; it is milliseconds on an idle one


class Line:
    """A monitored stream and its peer.  The call reads all, does what ``during`` says, and lets the test know."""

    def __init__(self, pool: WorkerPool) -> None:
        self.pool = pool
        self.ours, self.peer = bbipc.local_stream_pair()
        self.during: Callable[[], object] = int
        self.read = bytearray()
        self.calls = 0
        self.called = threading.Semaphore(0)
        self.closes: list[Exception] = []
        self.closed = threading.Event()
        self.monitor = pool.monitor(self.ours, READ, self.call, on_close=self.on_close)

    def call(self, socket: bbipc.Socket, events: SocketEvent) -> None:
        self.calls += 1
        with contextlib.suppress(SocketClosedError):
            self.read += self.ours.read() or b""
        try:
            self.during()
        finally:
            self.called.release()

    def on_close(self, error: Exception) -> None:
        self.closes.append(error)
        self.closed.set()

    def ping(self, seconds: float = SOON) -> bool:
        """Whether a byte is seen in time."""
        self.peer.write(b"x")
        return self.called.acquire(timeout=seconds)

    def close(self) -> None:
        self.ours.close()
        self.peer.close()


@contextlib.contextmanager
def lines(pool: WorkerPool, count: int) -> Iterator[list[Line]]:
    made = [Line(pool) for _ in range(count)]
    try:
        yield made
    finally:
        for line in made:
            line.close()


@pytest.fixture(name="pool")
def pool_of_four() -> Iterator[WorkerPool]:
    with WorkerPool(4) as pool:
        yield pool


@pytest.fixture
def line(pool: WorkerPool) -> Iterator[Line]:
    line = Line(pool)
    yield line
    line.close()


# What is made of what.


@pytest.mark.parametrize("number", [0, -3])
def test_at_least_one_worker(number: int) -> None:
    with pytest.raises(ValueError, match="max_workers"):
        WorkerPool(number)


def test_no_patience() -> None:
    with pytest.raises(ValueError):
        WorkerPool(1, queue_timeout=-1)


def test_stats_and_repr(pool: WorkerPool) -> None:
    assert pool.stats() == PoolStats(4, 0, 0, 0, 0)
    assert "0 of 4 threads" in repr(pool)
    with lines(pool, 3), all_held(pool, 2):
        stats = pool.stats()
        assert (stats.max_workers, stats.queued, stats.monitored) == (4, 0, 3)
        assert 3 <= stats.threads <= 4
    pool.shutdown()
    assert "shut down" in repr(pool)
    assert pool.stats().threads == 0


def test_a_poller_thread_of_its_own() -> None:
    pool = WorkerPool(1, thread_name_prefix="mill")
    thread = pool.poller_thread
    assert thread is pool.poller_thread
    assert thread.name == "mill-poller"
    pool.shutdown()
    assert thread.closed
    assert pool.poller_thread is thread


def test_no_poller_thread_after_shutdown() -> None:
    pool = WorkerPool(1)
    pool.shutdown()
    with pytest.raises(RuntimeError):
        _ = pool.poller_thread


def test_a_poller_thread_of_somebody_elses_stays_open() -> None:
    with PollerThread() as thread:
        pool = WorkerPool(1, poller_thread=thread)
        assert pool.poller_thread is thread
        pool.shutdown()
        assert not thread.closed
        assert thread.call_later(0, int).result(PATIENCE) == 0


def test_shutdown_beside_the_first_use_of_the_poller_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = WorkerPool(2)
    inside, go_on = threading.Event(), threading.Event()

    def make(name: str) -> PollerThread:
        inside.set()
        assert go_on.wait(PATIENCE)
        return PollerThread(name=name)

    monkeypatch.setattr(worker_pool, "PollerThread", make)
    ours, peer = bbipc.local_stream_pair()
    first = Worker(lambda: pool.when(ours, READ, lambda socket, events: 7))
    assert inside.wait(PATIENCE)
    ending = Worker(pool.shutdown)
    until(lambda: pool._crew.ending)
    go_on.set()
    ending.outcome()
    with contextlib.suppress(RuntimeError, PollerClosedError):
        future = first.outcome()
        assert isinstance(future, Future)
        assert isinstance(future.exception(PATIENCE), RuntimeError | PollerClosedError)
    assert pool._poller_thread is not None
    assert pool._poller_thread.closed
    ours.close()
    peer.close()


# when


def test_when_it_comes(pool: WorkerPool) -> None:
    ours, peer = bbipc.local_stream_pair()
    names: list[str] = []

    def call(socket: bbipc.Socket, events: SocketEvent, one: int, two: int) -> tuple[object, ...]:
        names.append(threading.current_thread().name)
        return socket, events, one, two

    future = pool.when(ours, READ, call, 1, 2)
    assert not future.done()
    peer.write(b"x")
    assert future.result(PATIENCE) == (ours, SocketEvent.DATA_AVAILABLE, 1, 2)
    assert pool.when(ours, READ, call, 3, 4).result(PATIENCE) == (ours, SocketEvent.DATA_AVAILABLE, 3, 4)
    assert all(name.startswith(pool._crew.name) and "poller" not in name for name in names)
    ours.close()
    peer.close()


def test_when_it_fails(pool: WorkerPool) -> None:
    ours, peer = bbipc.local_stream_pair()

    def fail(socket: bbipc.Socket, events: SocketEvent) -> None:
        raise SystemExit("on purpose")

    future = pool.when(ours, SocketEvent.READY_TO_WRITE, fail)
    with pytest.raises(SystemExit, match="on purpose"):
        future.result(PATIENCE)
    with pytest.raises(TimeoutError):
        pool.when(ours, READ, fail, timeout=0.02).result(PATIENCE)
    with pytest.raises(TimeoutError):
        pool.when(ours, READ, fail, timeout=0).result(PATIENCE)
    future = pool.when(ours, READ, fail)
    ours.close()
    with pytest.raises(SocketClosedError):
        future.result(PATIENCE)
    peer.close()


def test_when_it_is_no_wait(pool: WorkerPool) -> None:
    ours, peer = bbipc.local_stream_pair()
    for events, timeout, error in [
        (SocketEvent(0), None, ValueError),
        (SocketEvent.CONNECTION_AVAILABLE, None, ValueError),
        (READ, -1, ValueError),
        (3, None, TypeError),
        (READ, "soon", TypeError),
    ]:
        with pytest.raises(error):
            pool.when(ours, events, int, timeout=timeout)  # type: ignore[arg-type]
    ours.close()
    with pytest.raises(SocketClosedError):
        pool.when(ours, READ, lambda *_: 0)
    peer.close()
    pool.shutdown()
    with pytest.raises(RuntimeError):
        pool.when(ours, READ, lambda *_: 0)


def test_when_it_is_cancelled_before_it_comes(pool: WorkerPool) -> None:
    ours, peer = bbipc.local_stream_pair()
    called: list[object] = []
    future = pool.when(ours, READ, lambda *args: called.append(args))
    assert future.cancel()
    assert wait([future], 1).done == {future}
    peer.write(b"x")
    pool.poller_thread.call_later(0, int).result(PATIENCE)
    assert not called
    ours.close()
    peer.close()


def test_when_it_is_cancelled_in_the_queue() -> None:
    ours, peer = bbipc.local_stream_pair()
    called: list[object] = []
    with WorkerPool(1) as pool:
        with all_held(pool, 1):
            future = pool.when(ours, READ, lambda *args: called.append(args))
            peer.write(b"x")
            until(lambda: pool.stats().queued == 1)
            assert future.cancel()
            assert wait([future], 1).done == {future}
        pool.submit(int).result(PATIENCE)
    assert not called
    ours.close()
    peer.close()


def test_when_cancelled_while_it_comes() -> None:
    """1,000 races of a cancel with the readiness: each future is settled, and called exactly if not cancelled."""
    rng = random.Random(1)
    with WorkerPool(2) as pool:
        for _ in range(1_000):
            ours, peer = bbipc.local_stream_pair()
            called: list[int] = []
            future = pool.when(ours, READ, lambda *args: called.append(1))  # noqa: B023
            peer.write(b"x")
            for _ in range(rng.randrange(120)):
                pass
            future.cancel()
            assert wait([future], PATIENCE).done
            assert future.cancelled() != bool(called)
            ours.close()
            peer.close()


def test_when_it_comes_it_is_called_for_even_where_the_queue_is_full() -> None:
    ours, peer = bbipc.local_stream_pair()
    with WorkerPool(1, queue_limit=1, queue_timeout=0) as pool:
        with all_held(pool, 1):
            pool.submit(int)
            futures = [pool.when(ours, READ, lambda *args: 7) for _ in range(3)]
            peer.write(b"x")
            until(lambda: pool.stats().queued == 4)
        assert [future.result(PATIENCE) for future in futures] == [7] * 3
    ours.close()
    peer.close()


def test_when_the_pool_is_shut_down() -> None:
    ours, peer = bbipc.local_stream_pair()
    pool = WorkerPool(1)
    future = pool.when(ours, READ, lambda *_: 0)
    pool.shutdown()
    assert isinstance(future.exception(PATIENCE), PollerClosedError | RuntimeError)
    with PollerThread() as thread:  # which tells it to a pool that takes nothing any more
        pool = WorkerPool(1, poller_thread=thread)
        future = pool.when(ours, READ, lambda *_: 0)
        pool.shutdown()
        peer.write(b"x")
        with pytest.raises(RuntimeError):
            future.result(PATIENCE)
    ours.close()
    peer.close()


# monitor: what is told


def test_every_byte_is_seen(pool: WorkerPool, line: Line) -> None:
    for number in range(200):
        assert line.ping(), number
    assert line.read == b"x" * 200
    assert line.monitor.active


def test_it_is_told_again_and_again_while_it_is_true(pool: WorkerPool) -> None:
    ours, peer = bbipc.local_stream_pair()
    called = threading.Semaphore(0)
    monitor = pool.monitor(ours, READ, lambda socket, events: called.release())
    peer.write(b"never read")
    for _ in range(50):
        assert called.acquire(timeout=PATIENCE)
    monitor.cancel()
    ours.close()
    peer.close()


def test_the_end_of_the_peer(pool: WorkerPool, line: Line) -> None:
    line.during = lambda: line.ours.close() if line.read == b"last" else None
    line.peer.write(b"last")
    line.peer.close()
    assert line.closed.wait(PATIENCE)
    assert line.read == b"last"


def test_once_a_socket(pool: WorkerPool, line: Line) -> None:
    with pytest.raises(ValueError, match="monitored already"):
        pool.monitor(line.ours, READ, print)
    with WorkerPool(1) as other:
        other.monitor(line.ours, SocketEvent.READY_TO_WRITE, lambda socket, events: other.submit(int)).cancel()


def test_what_cannot_be_monitored(pool: WorkerPool) -> None:
    with pytest.raises(TypeError):
        pool.monitor(3, READ, print)  # type: ignore[type-var]
    ours, peer = bbipc.local_stream_pair()
    with pytest.raises(ValueError):
        pool.monitor(ours, SocketEvent.CONNECTION_AVAILABLE, print)
    ours.close()
    with pytest.raises(SocketClosedError):
        pool.monitor(ours, READ, print)
    peer.close()
    assert pool.stats().monitored == 0


def test_no_thread_for_a_monitor(pool: WorkerPool, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, peer = bbipc.local_stream_pair()

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="can't start"):
        patched.setattr(threading.Thread, "start", start)
        pool.monitor(ours, READ, print)
    assert pool.stats().monitored == 0
    called = threading.Event()  # at once, though a pool with workers asks for one more only after a while
    pool.monitor(ours, READ, lambda socket, events: called.set())
    peer.write(b"x")
    assert called.wait(PATIENCE)
    ours.close()
    peer.close()


def test_four_hundred_idle_sockets_hold_no_thread() -> None:
    """Two do everything; a processor that was busy elsewhere may make a call look slow, and call one or two more."""
    count = 400  # 800 descriptors, of which a process is often allowed 1,024
    with WorkerPool(64) as pool, lines(pool, count) as all_lines:
        for line in all_lines[::40]:
            assert line.ping()
        assert pool.stats().monitored == count
        assert pool.stats().threads <= 4


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_never_twice_at_once_and_no_event_lost(workers: int) -> None:
    """32 sockets, 20,000 bytes from 4 writers, calls of random length: each byte is seen once, counted exactly."""
    total, problems = 20_000, list[str]()
    finished = threading.Event()
    with WorkerPool(workers) as pool:
        pairs = [bbipc.local_stream_pair() for _ in range(32)]
        locks = [threading.Lock() for _ in pairs]
        seen = [0] * len(pairs)  # each guarded by "never twice at once" alone
        written = [0] * len(pairs)

        def call_of(number: int) -> Callable[[bbipc.Socket, SocketEvent], None]:
            stream, lock, rng = pairs[number][0], locks[number], random.Random(number)

            def call(socket: bbipc.Socket, events: SocketEvent) -> None:
                if not lock.acquire(blocking=False):
                    problems.append(f"two calls at once for {number}")
                    return
                data = stream.read(rng.randrange(1, 40)) or b""
                for _ in range(rng.choice([0, 0, 0, 0, 50, 2_000])):
                    pass
                if rng.random() < 0.002:
                    time.sleep(0.01)
                seen[number] += len(data)
                lock.release()
                if sum(seen) == total:
                    finished.set()

            return call

        for number, (ours, _) in enumerate(pairs):
            pool.monitor(ours, READ, call_of(number))

        def write(part: int) -> None:
            rng, left = random.Random(part), total // 4
            while left:
                number = part * 8 + rng.randrange(8)
                count = pairs[number][1].write(bytes(min(rng.randrange(1, 30), left)))
                written[number] += count
                left -= count

        writers = [Worker(lambda part=part: write(part)) for part in range(4)]  # type: ignore[misc]
        for writer in writers:
            writer.outcome()
        assert finished.wait(PATIENCE), (sum(seen), pool.stats())
        assert seen == written
        assert not problems
        for pair in pairs:
            for stream in pair:
                stream.close()


# monitor: nobody waits behind a slow call


def test_a_call_that_blocks_for_ever_holds_up_nobody(pool: WorkerPool) -> None:
    with lines(pool, 6) as (blocked, *others):
        held = Held()
        blocked.during = held
        blocked.peer.write(b"x")
        assert held.begun.wait(PATIENCE)
        times = []
        for _ in range(10):
            for line in others:
                started = time.monotonic()
                assert line.ping()
                times.append(time.monotonic() - started)
        assert sorted(times)[len(times) // 2] < 0.1  # 100 ms is the promise for each; a busy machine may break it once
        assert pool.submit(int).result(SOON) == 0
        held.go_on.set()
        blocked.during = int
        assert blocked.called.acquire(timeout=PATIENCE)
        assert blocked.ping()


def test_a_call_that_blocks_in_the_middle_of_a_batch(pool: WorkerPool) -> None:
    """All are ready when the first one blocks: the others are served by somebody else."""
    for _ in range(10):
        with lines(pool, 8) as all_lines:
            held = Held()
            first = threading.Lock()

            def block_the_first(held: Held = held, first: threading.Lock = first) -> None:
                if first.acquire(blocking=False):
                    held()

            for line in all_lines:
                line.during = block_the_first
            for line in all_lines:
                line.peer.write(b"x")
            until(lambda: sum(bool(line.calls) for line in all_lines) == 8)
            held.go_on.set()


def test_all_workers_but_one_blocked() -> None:
    with WorkerPool(8) as pool, lines(pool, 9) as all_lines:
        calls = [Held() for _ in range(7)]
        for line, call in zip(all_lines, calls, strict=False):
            line.during = call
            line.peer.write(b"x")
            assert call.begun.wait(PATIENCE)
        for line in all_lines[7:] * 5:
            assert line.ping()
        assert pool.submit(int).result(SOON) == 0
        for call in calls:
            call.go_on.set()


@pytest.mark.parametrize("rounds", [1, 3])
def test_cancelled_and_monitored_anew_while_its_call_runs(rounds: int) -> None:
    """The new monitor's first call waits for the old one's last."""
    begun, go, again = threading.Event(), threading.Event(), threading.Event()
    running: list[int] = []
    most: list[int] = []

    def first(stream: bbipc.StreamSocket, events: SocketEvent) -> None:
        running.append(1)
        begun.set()
        assert go.wait(PATIENCE)
        running.pop()

    def second(stream: bbipc.StreamSocket, events: SocketEvent) -> None:
        most.append(len(running))
        if stream.read():
            again.set()

    with WorkerPool(4) as pool, pair() as (ours, theirs), pair() as (other, another):
        monitor = pool.monitor(ours, READ, first)
        theirs.write(b"x")
        assert begun.wait(PATIENCE)
        for _ in range(rounds):
            monitor.cancel()
            monitor = pool.monitor(ours, READ, second)
        turn = threading.Event()

        def beside(stream: bbipc.StreamSocket, events: SocketEvent) -> None:
            if stream.read():
                turn.set()

        pool.monitor(other, READ, beside)
        another.write(b"x")
        assert turn.wait(PATIENCE)  # others are served, and whoever leads has looked
        assert not most
        go.set()
        assert again.wait(PATIENCE)
        assert set(most) == {0}


@pytest.mark.parametrize("workers", [1, 3])
def test_all_workers_blocked(workers: int) -> None:
    """What comes meanwhile is served as soon as one of them returns, sockets and tasks alike."""
    with WorkerPool(workers) as pool, lines(pool, workers + 2) as all_lines:
        calls = [Held() for _ in range(workers)]
        for line, call in zip(all_lines, calls, strict=False):
            line.during = call
            line.peer.write(b"x")
            assert call.begun.wait(PATIENCE)
        future = pool.submit(int)
        for line in all_lines[workers:]:
            line.peer.write(b"x")
        assert not all_lines[-1].called.acquire(timeout=0.05)
        all_lines[0].during = int
        calls[0].go_on.set()
        for line in all_lines[workers:]:
            assert line.called.acquire(timeout=SOON)
        assert future.result(SOON) == 0
        for call in calls:
            call.go_on.set()


def test_slow_calls_run_side_by_side() -> None:
    """Eight calls that wait for each other."""
    with WorkerPool(8) as pool, lines(pool, 8) as all_lines:
        together = threading.Barrier(8)
        for _ in range(3):
            for line in all_lines:
                line.during = lambda: together.wait(PATIENCE)
                line.peer.write(b"x")
            for line in all_lines:
                assert line.called.acquire(timeout=PATIENCE)


def test_a_blocked_leader_is_a_worker_like_any_other_when_it_returns() -> None:
    """Ten times blocked and let go, with pauses in which the watcher sleeps: nothing is told twice, nothing stalls."""
    with WorkerPool(3) as pool, lines(pool, 4) as (blocked, *others):
        for number in range(10):
            held = Held()
            blocked.during = held
            blocked.peer.write(b"x")
            assert held.begun.wait(PATIENCE)
            for line in others:
                assert line.ping()
            blocked.during = int
            held.go_on.set()
            assert blocked.called.acquire(timeout=PATIENCE)
            if number % 3 == 0:
                until(lambda: pool._leadership._lookout.watcher == 0)
        assert blocked.read == b"x" * 10
        assert [line.calls for line in others] == [10] * 3


def test_a_blocked_leader_after_all_monitors_were_ended_once(pool: WorkerPool) -> None:
    """The watcher of the old days must not be counted on."""
    for _ in range(5):
        with lines(pool, 1) as (first,):
            assert first.ping()
            first.during = first.monitor.cancel
            assert first.ping()
            until(lambda: pool._leadership._term.lost or pool._leadership._term.polling)
        with lines(pool, 2) as (blocked, other):
            until(lambda: pool._leadership._term.polling)
            held = Held()
            blocked.during = held
            blocked.peer.write(b"x")
            assert held.begun.wait(PATIENCE)
            assert other.ping()
            held.go_on.set()


# monitor and submit on the same threads


def test_a_task_while_the_only_worker_waits_for_sockets() -> None:
    with WorkerPool(1) as pool, lines(pool, 1) as (line,):
        for _ in range(50):
            wait_until_asleep(next(iter(pool._threads)))
            assert pool.submit(pow, 2, 3).result(SOON) == 8
            assert line.ping()
        assert pool.stats().threads == 1


@pytest.mark.parametrize("workers", [1, 4])
def test_tasks_without_end_do_not_starve_sockets(workers: int) -> None:
    stop = threading.Event()
    with WorkerPool(workers) as pool, lines(pool, 2) as all_lines:

        def go_on() -> None:
            if not stop.is_set():
                pool.submit(go_on)

        for _ in range(4 * workers):
            pool.submit(go_on)
        try:
            for line in all_lines * 10:
                assert line.ping()
        finally:
            stop.set()


@pytest.mark.parametrize("workers", [1, 4])
def test_sockets_without_end_do_not_starve_tasks(workers: int) -> None:
    """As many sockets as can be are always ready."""
    with WorkerPool(workers) as pool:
        pairs = [bbipc.local_stream_pair() for _ in range(8)]
        for ours, _ in pairs:
            pool.monitor(ours, SocketEvent.READY_TO_WRITE, lambda socket, events: None)
        for _ in range(50):
            assert pool.submit(int).result(SOON) == 0
        for pair in pairs:
            for stream in pair:
                stream.close()


def test_a_call_that_waits_for_a_task(pool: WorkerPool, line: Line) -> None:
    results: list[int] = []
    line.during = lambda: results.append(pool.submit(pow, 2, 3).result(PATIENCE))
    for _ in range(20):
        assert line.ping()
    assert results == [8] * 20


# monitor: cancelling, pausing, changing


@pytest.mark.parametrize("inside", [False, True])
def test_no_call_begins_after_a_cancel(pool: WorkerPool, line: Line, inside: bool) -> None:
    if inside:
        line.during = line.monitor.cancel
        assert line.ping()
    else:
        assert line.ping()
        line.monitor.cancel()
    line.monitor.cancel()
    assert not line.monitor.active
    line.peer.write(b"more")
    with lines(pool, 1) as (other,):
        for _ in range(3):
            assert other.ping()
    assert line.calls == 1
    line.ours.close()
    assert not line.closed.wait(0.01)


def test_cancelled_inside_its_call_and_monitored_anew(pool: WorkerPool, line: Line) -> None:
    second = threading.Event()

    def replace() -> None:
        line.monitor.cancel()
        line.monitor = pool.monitor(line.ours, READ, lambda socket, events: second.set() if line.ours.read() else None)

    line.during = replace
    assert line.ping()
    line.peer.write(b"x")
    assert second.wait(PATIENCE)


@pytest.mark.parametrize("inside", [False, True])
def test_paused_and_resumed(pool: WorkerPool, line: Line, inside: bool) -> None:
    if inside:
        line.during = line.monitor.pause
    assert line.ping()
    line.during = int
    line.monitor.pause()
    line.monitor.pause()
    assert not line.ping(0.05)
    line.monitor.resume()
    line.monitor.resume()
    assert line.called.acquire(timeout=SOON)
    assert line.calls == 2


def test_other_events(pool: WorkerPool, line: Line) -> None:
    line.monitor.set_events(SocketEvent.REMOTE_DISCONNECTED)
    assert not line.ping(0.05)
    line.monitor.set_events(READ)
    assert line.called.acquire(timeout=SOON)
    with pytest.raises(ValueError):
        line.monitor.set_events(SocketEvent.CONNECTION_AVAILABLE)
    assert line.ping()


def test_paused_and_resumed_by_others_while_bytes_come(pool: WorkerPool, line: Line) -> None:
    """Two threads that pause, resume and set events lose nothing of 2,000 bytes."""
    stop = threading.Event()

    def change() -> None:
        while not stop.wait(0.0005):
            line.monitor.pause()
            line.monitor.resume()
            line.monitor.pause()
            line.monitor.set_events(READ)

    changers = [Worker(change) for _ in range(2)]
    written = sum(line.peer.write(bytes(10)) for _ in range(200))
    try:
        until(lambda: len(line.read) == written)
    finally:
        stop.set()
        for changer in changers:
            changer.outcome()


# monitor: closes


def test_a_close_is_told_on_a_worker(pool: WorkerPool, line: Line) -> None:
    names: list[str] = []
    told = threading.Event()
    ours, peer = bbipc.local_stream_pair()

    def on_close(error: Exception) -> None:
        names.append(threading.current_thread().name)
        told.set()

    pool.monitor(ours, READ, print, on_close=on_close)
    ours.close()
    assert told.wait(PATIENCE)
    assert names[0].startswith(pool._crew.name)
    peer.close()
    line.ours.close()
    assert line.closed.wait(PATIENCE)
    assert [type(error) for error in line.closes] == [SocketClosedError]
    assert not line.monitor.active
    assert pool.stats().monitored == 0


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("who", ["itself", "another"])
def test_a_close_while_its_call_runs(pool: WorkerPool, line: Line, who: str, alone: bool) -> None:
    """on_close exactly once, and never during the call; also where nobody else is monitored."""
    with lines(pool, 0 if alone else 1) as others:
        held = Held()

        def close_and_stay() -> None:
            if who == "itself":
                line.ours.close()
            held()
            assert not line.closes

        line.during = close_and_stay
        line.peer.write(b"x")
        assert held.begun.wait(PATIENCE)
        for other in others:
            assert other.ping()  # somebody else leads by now
        if who == "another":
            line.ours.close()
        for other in others:
            assert other.ping()
        pool.submit(int).result(PATIENCE)
        assert not line.closes
        held.go_on.set()
        assert line.closed.wait(PATIENCE)
    pool.shutdown()
    assert len(line.closes) == 1
    assert line.calls == 1


def test_closes_race_with_calls() -> None:
    """600 streams, closed by another thread just when a byte comes: on_close once each, never during the call."""
    problems: list[str] = []
    with WorkerPool(4) as pool:
        rng = random.Random(3)
        for _ in range(30):
            with lines(pool, 20) as all_lines:
                inside = [threading.Lock() for _ in all_lines]
                for line, lock in zip(all_lines, inside, strict=True):

                    def during(lock: threading.Lock = lock, line: Line = line) -> None:
                        with lock:
                            if line.closes:
                                problems.append("a call after the close was told")

                    def on_close(error: Exception, lock: threading.Lock = lock, line: Line = line) -> None:
                        if lock.locked():
                            problems.append("told during the call")
                        line.on_close(error)

                    line.during = during
                    line.monitor.on_close = on_close  # type: ignore[attr-defined]
                for line in all_lines:
                    line.peer.write(b"x")
                    for _ in range(rng.randrange(60)):
                        pass
                    line.ours.close()
                for line in all_lines:
                    assert line.closed.wait(PATIENCE)
            assert [len(line.closes) for line in all_lines] == [1] * 20
    assert not problems


def test_a_close_hook_that_blocks_holds_up_nobody(pool: WorkerPool) -> None:
    with lines(pool, 3) as (first, second, third):
        held = Held()
        first.closed = threading.Event()
        first.monitor.on_close = lambda error: held()  # type: ignore[attr-defined]
        until(lambda: pool._leadership._lookout.watcher == 0 and pool._leadership._term.polling)
        first.ours.close()
        second.ours.close()
        assert held.begun.wait(PATIENCE)
        for _ in range(3):
            assert third.ping()
        assert second.closed.wait(SOON)
        held.go_on.set()


# The end.


def test_shutdown_ends_monitors(pool: WorkerPool, line: Line) -> None:
    assert line.ping()
    pool.shutdown()
    assert [type(error) for error in line.closes] == [RuntimeError]
    assert not line.monitor.active
    line.peer.write(b"x")
    assert line.calls == 1
    with pytest.raises(RuntimeError):
        pool.monitor(line.ours, READ, print)
    line.monitor.cancel()
    line.monitor.pause()
    line.monitor.resume()
    pool.shutdown()
    assert len(line.closes) == 1


def test_shutdown_with_cancel_futures_tells_the_closes_too() -> None:
    with WorkerPool(1) as pool, lines(pool, 2) as all_lines:
        with all_held(pool, 1):
            future = pool.submit(int)
            pool.shutdown(wait=False, cancel_futures=True)
            assert future.cancelled()
        pool.shutdown()
        assert [len(line.closes) for line in all_lines] == [1, 1]


def test_shutdown_while_a_call_runs() -> None:
    with WorkerPool(2) as pool, lines(pool, 1) as (line,):
        held = Held()
        line.during = held
        line.peer.write(b"x")
        assert held.begun.wait(PATIENCE)
        pool.shutdown(timeout=0.05)
        assert not line.closes
        held.go_on.set()
        pool.shutdown()
        assert [type(error) for error in line.closes] == [RuntimeError]


def test_shutdown_inside_a_call(pool: WorkerPool, line: Line) -> None:
    line.during = pool.shutdown
    line.peer.write(b"x")
    assert line.called.acquire(timeout=PATIENCE)
    pool.shutdown()
    assert [type(error) for error in line.closes] == [RuntimeError]
    assert pool.stats().threads == 0


def test_shutdown_while_the_leader_waits_two_hundred_times() -> None:
    """At every moment of a young pool's life."""
    rng = random.Random(2)
    for _ in range(200):
        pool = WorkerPool(rng.choice([1, 2]))
        with lines(pool, 1) as (line,):
            if rng.random() < 0.5:
                line.peer.write(b"x")
            for _ in range(rng.randrange(3_000)):
                pass
            started = time.monotonic()
            pool.shutdown()
            assert time.monotonic() - started < 2
            assert len(line.closes) == 1


def test_a_pool_with_a_monitor_is_not_collected() -> None:
    ours, peer = bbipc.local_stream_pair()
    called = threading.Event()
    monitor = WorkerPool(2).monitor(ours, READ, lambda socket, events: called.set() if ours.read() else None)
    gc.collect()
    peer.write(b"x")
    assert called.wait(PATIENCE)
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("WorkerPool-")]
    assert threads
    monitor.cancel()
    del monitor
    until(lambda: gc.collect() >= 0 and not any(thread.is_alive() for thread in threads))
    ours.close()
    peer.close()


# Fork.

forks = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
    pytest.mark.filterwarnings(r"ignore:.*use of fork\(\) may lead to deadlocks:DeprecationWarning"),
]


def with_forks(test: Callable[..., None]) -> Callable[..., None]:
    for mark in forks:
        test = mark(test)
    return test


@with_forks
def test_a_forked_child_is_told_at_once(pool: WorkerPool, line: Line) -> None:
    assert line.ping()
    assert pool.submit(int).result(PATIENCE) == 0

    def in_the_child() -> list[str]:
        errors = []
        attempts: list[Callable[[], object]] = [
            lambda: pool.submit(int),
            lambda: pool.when(line.ours, READ, print),
            lambda: pool.monitor(line.peer, READ, print),
        ]
        for attempt in attempts:
            try:
                attempt()
            except RuntimeError as error:
                errors.append(str(error))
        line.monitor.cancel()
        repr(pool)
        pool.stats()
        pool.shutdown()
        with WorkerPool(1) as fresh:
            assert fresh.submit(int).result(PATIENCE) == 0
        return errors

    errors = in_child(in_the_child)
    assert len(errors) == 3
    assert all("forked" in error for error in errors)
    assert line.ping()
    assert pool.submit(int).result(PATIENCE) == 0


@with_forks
def test_a_child_forked_while_others_hold_the_locks(pool: WorkerPool, line: Line) -> None:
    """It ends its copy of the pool, without waiting for threads that are not there."""
    assert line.ping()
    _ = pool.poller_thread
    locked, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with pool._crew._lock, pool._stations.lock, pool._lock:
            locked.set()
            assert go_on.wait(PATIENCE)

    holder = Worker(hold)
    assert locked.wait(PATIENCE)

    def in_the_child() -> bool:
        with contextlib.suppress(RuntimeError), pool:
            pool.submit(int)
        pool.shutdown()
        line.monitor.cancel()
        pool.__del__()
        return True

    try:
        assert in_child(in_the_child)
    finally:
        go_on.set()
        holder.outcome()


@with_forks
def test_thirty_forks_during_full_traffic(pool: WorkerPool) -> None:
    """The parent loses nothing; each child makes a pool of its own and ends."""
    stop = threading.Event()
    with lines(pool, 4) as all_lines:

        def traffic() -> int:
            count = 0
            while not stop.is_set():
                for line in all_lines:
                    assert line.ping(PATIENCE)
                    count += 1
                assert pool.submit(int).result(PATIENCE) == 0
            return count

        driver = Worker(traffic)

        def in_the_child() -> bool:
            with WorkerPool(2) as fresh:
                return fresh.submit(pow, 2, 3).result(PATIENCE) == 8

        try:
            for _ in range(30):
                assert in_child(in_the_child)
        finally:
            stop.set()
        assert isinstance(driver.outcome(), int)


# The end of the interpreter (HAZARDS 38).

PREPARED = """
import atexit, threading

def count():  # the last thing that is done at the exit
    left = [thread for thread in threading.enumerate() if thread.name.startswith("mill")]
    print("left", len(left), flush=True)

atexit.register(count)

import os, signal, sys, threading, time
import bbipc
from bbipc import SocketEvent
from pool.worker_pool import WorkerPool

READ = SocketEvent.DATA_AVAILABLE | SocketEvent.REMOTE_DISCONNECTED
pool = WorkerPool(4, thread_name_prefix='mill')
ours, peer = bbipc.local_stream_pair()
seen = threading.Event()
monitor = pool.monitor(ours, READ, lambda socket, events: (ours.read(), seen.set()))
pool.when(peer, READ, print)
peer.write(b"x")
assert seen.wait(5)
assert pool.submit(pow, 2, 3).result(5) == 8
begun = threading.Event()

def short():
    begun.set()
    time.sleep(0.3)
    print("done", flush=True)

def for_ever():
    begun.set()
    threading.Event().wait()

def again(handler):
    monitor.cancel()
    pool.monitor(ours, SocketEvent.READY_TO_WRITE, handler)

print(time.monotonic(), flush=True)
"""

#: what the program does at its end -> its code, what it prints (at last how many threads of the pool are left), how
#: the last line of its stderr begins
ENDS: dict[str, tuple[str, int, str, str]] = {
    "no close": ("", 0, "left 0", ""),
    "close": ("pool.shutdown()", 0, "left 0", ""),
    "close of all": ("pool.shutdown(); ours.close(); peer.close()", 0, "left 0", ""),
    "work running": ("pool.submit(short); begun.wait()", 0, "done left 0", ""),
    "work submitted": ("pool.submit(short)", 0, "done left 0", ""),
    "a blocked task": ("pool.submit(for_ever); begun.wait()", 0, "left 1", ""),
    "all workers blocked": ("[pool.submit(for_ever) for _ in range(9)]; begun.wait()", 0, "left 4", ""),
    "a blocked handler": ("again(lambda *args: for_ever()); begun.wait()", 0, "left 1", ""),
    "a busy handler": ("again(lambda *args: begun.set()); begun.wait()", 0, "left 0", ""),
    "exception in main": ("raise ValueError('on purpose')", 1, "left 0", "ValueError: on purpose"),
    "sys.exit": ("pool.submit(short); sys.exit(3)", 3, "done left 0", ""),
    "sys.exit in a task": ("assert type(pool.submit(sys.exit, 3).exception(5)) is SystemExit", 0, "left 0", ""),
    "sys.exit in a thread": ("t = threading.Thread(target=sys.exit); t.start(); t.join()", 0, "left 0", ""),
    "SIGTERM": ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(9)", -signal.SIGTERM, "", ""),
    "SIGINT": ("os.kill(os.getpid(), signal.SIGINT); time.sleep(9)", -signal.SIGINT, "left 0", "KeyboardInterrupt"),
    "SIGINT while a worker is blocked": (
        "pool.submit(for_ever); begun.wait(); os.kill(os.getpid(), signal.SIGINT); time.sleep(9)",
        -signal.SIGINT,
        "left 1",
        "KeyboardInterrupt",
    ),
    "os._exit": ("pool.submit(for_ever); begun.wait(); os._exit(4)", 4, "", ""),
    "dropped": ("del pool, monitor; import gc; gc.collect()", 0, "left 0", ""),
    "shutdown at exit": ("atexit.register(pool.shutdown)", 0, "left 0", ""),
    "submit at exit": ("atexit.register(lambda: pool.submit(short))", 0, "done left 0", ""),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_program_ends(end: str) -> None:
    """In under two seconds, with the right code, and nothing on stderr but what it is to blame for itself."""
    script, code, out, err = ENDS[end]
    # That the streams are left open is the program's own affair; a poller left open would be the pool's.
    warnings = ["-W", "error", "-W", "ignore:unclosed <LocalStream:ResourceWarning"]
    program = subprocess.Popen(
        [sys.executable, *warnings, "-c", PREPARED + script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    printed, problems = program.communicate(timeout=PATIENCE)
    ended = time.monotonic()
    began, *words = printed.split()
    spent = ended - float(began)  # imports are not the pool's; the clock is the whole system's
    assert (program.returncode, " ".join(words)) == (code, out), problems
    assert spent < 3  # 2 s are promised, the rest is for a busy machine
    if err:
        assert problems.startswith("Traceback")
        assert problems.rstrip().splitlines()[-1].startswith(err), problems
        assert problems.count("Traceback") == 1, problems
    else:
        assert not problems
