"""A worker pool under everything at once, with a watchdog: nothing may stall, get lost, or happen twice.

The program (``python -m tests.stress.test_worker_pools --seconds 60 --seed 7``) goes on for as long as one likes; the
tests run it for a short while at sizes and switch intervals at which lost wake-ups were found.  What each driver does
follows from the seed; what the scheduler makes of it does not.

Every step has an effect that is waited for, PATIENCE seconds at most: a byte that was written is read by a handler, a
task is done, a close is told.  Never more calls block than leave one worker free, so a stall is the pool's.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import os
import random
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import NoReturn

import pytest

import bbipc
from bbipc import SocketClosedError, SocketEvent
from pool.term import Term
from pool.worker_pool import Monitoring, WorkerPool
from tests.stress.close_race import pinned_to_one_cpu, switch_interval
from tests.support.makers import Worker

READ = SocketEvent.DATA_AVAILABLE | SocketEvent.REMOTE_DISCONNECTED
STALL = 2.0  # seconds after which a step that has had no effect is a failure
#: how long drivers keep quiet between two steps, in seconds.  A watcher looks every 5 ms, and sleeps after 100
PAUSES = [0.0, 0.0, 0.0, 0.001, 0.006, 0.012, 0.04, 0.11]

QUICK, SLOW, BLOCK, RAISE = b"q", b"s", b"b", b"r"


def seven_after(pause: float) -> int:
    if pause:
        time.sleep(pause)
    return 7


class Stalled(AssertionError):
    """A step has had no effect."""


@dataclass
class Tally:
    """What one driver has begun, and what came of it."""

    tasks: int = 0
    done: int = 0
    cancelled: int = 0
    bytes: int = 0
    closes: int = 0
    waits: int = 0


class Channel:
    """A monitored stream and its peer."""

    def __init__(self, pool: WorkerPool, release: threading.Event) -> None:
        self.ours, self.peer = bbipc.local_stream_pair()
        self.written = 0
        self.seen = 0
        self.ends: list[Exception] = []
        self.problems: list[str] = []
        self.changed = threading.Condition()
        self._release = release
        self._calling = threading.Lock()
        self._pool = pool
        self.monitor = self.begin()

    def begin(self) -> Monitoring:
        return self._pool.monitor(self.ours, READ, self.handle, on_close=self.end)

    def handle(self, socket: bbipc.Socket, events: SocketEvent) -> None:
        if not self._calling.acquire(blocking=False):
            self.problems.append("two calls at once")
            return
        try:
            self._handle(events)
        finally:
            self._calling.release()

    def _handle(self, events: SocketEvent) -> None:
        if not events or events & ~READ:
            self.problems.append(f"called for {events!r}")
        try:
            data = self.ours.read(64)
        except SocketClosedError:
            return
        if not data:
            return
        if SLOW in data:
            time.sleep(0.004)
        if BLOCK in data:
            self._release.wait(30)
        with self.changed:
            self.seen += len(data)
            self.changed.notify_all()
        if RAISE in data:
            raise SystemExit("a handler of the stress test")

    def end(self, error: Exception) -> None:
        if self._calling.locked():
            self.problems.append("on_close during a call")
        with self.changed:
            self.ends.append(error)
            self.changed.notify_all()

    def wait_until(self, fact: Callable[[], bool]) -> bool:
        with self.changed:
            return self.changed.wait_for(fact, STALL)

    def close(self) -> None:
        self.ours.close()
        self.peer.close()


@dataclass
class Driver:
    """One thread that does random things to the pool, and sees to it that they happen."""

    pool: WorkerPool
    seed: int
    permits: threading.Semaphore
    stop: Callable[[], bool]
    failures: bool = True
    tally: Tally = field(default_factory=Tally)

    def run(self) -> Tally:
        self.random = random.Random(self.seed)
        self.release = threading.Event()
        self.channels = [Channel(self.pool, self.release) for _ in range(6)]
        self.pending: deque[tuple[str, Callable[[], bool]]] = deque()
        steps: list[Callable[[], object]] = [self.write, self.write, self.write, self.submit, self.submit]
        steps += [self.submit_and_cancel, self.wait_for, self.block, self.close_ours, self.close_peer]
        steps += [self.pause, self.begin_anew, self.be_quiet]
        try:
            while not self.stop():
                self.random.choice(steps)()
                while len(self.pending) > 12:
                    self.settle_one()
            self.settle_all()
        finally:
            self.release.set()
            for channel in self.channels:
                channel.close()
        problems = [problem for channel in self.channels for problem in channel.problems]
        assert not problems, problems
        return self.tally

    # What is waited for.

    def fail(self, what: str) -> NoReturn:
        """With everything that may tell why, as it is now."""
        faulthandler.dump_traceback(2)
        raise Stalled(f"{what}; seed {self.seed}, {describe(self.pool)}")

    def settle_one(self) -> None:
        what, fact = self.pending.popleft()
        if not fact():
            self.fail(what)

    def settle_all(self) -> None:
        while self.pending:
            self.settle_one()

    def expect_all_read(self, channel: Channel) -> None:
        count = channel.written

        def is_read() -> bool:
            return channel.wait_until(lambda: channel.seen >= count or bool(channel.ends))

        self.pending.append((f"byte {count} of {channel.monitor!r}", is_read))

    def expect_done(self, what: str, future: Future[int]) -> None:
        def is_done() -> bool:
            try:
                assert future.result(STALL) == 7
            except TimeoutError:
                return False
            self.tally.done += 1
            return True

        self.pending.append((what, is_done))

    # The steps.

    def write(self, kinds: bytes = QUICK * 6 + SLOW + RAISE) -> Channel:
        channel = self.random.choice(self.channels)
        command = bytes([self.random.choice(kinds)])
        channel.written += channel.peer.write(command)
        self.tally.bytes += 1
        self.expect_all_read(channel)
        return channel

    def submit(self) -> None:
        pause = self.random.choice([0.0, 0.0, 0.0, 0.003])
        self.tally.tasks += 1
        self.expect_done("a task", self.pool.submit(partial(seven_after, pause)))

    def submit_and_cancel(self) -> None:
        self.tally.tasks += 1
        future = self.pool.submit(lambda: 7)
        if future.cancel():
            self.tally.cancelled += 1
        else:
            self.expect_done("a task not cancelled", future)

    def wait_for(self) -> None:
        """``when``: one shot, on a stream that nobody monitors."""
        ours, peer = bbipc.local_stream_pair()
        future = self.pool.when(ours, READ, lambda socket, events: 7)
        peer.write(b"x")
        self.tally.waits += 1
        try:
            assert future.result(STALL) == 7
        except TimeoutError:
            self.fail("a wait")
        finally:
            ours.close()
            peer.close()

    def block(self) -> None:
        """A handler blocks; everything else goes on; it is let go."""
        if not self.permits.acquire(blocking=False):
            return
        try:
            self.settle_all()
            self.release.clear()
            blocked = self.write(BLOCK)
            self.pending.clear()
            others = [channel for channel in self.channels if channel is not blocked]
            for _ in range(self.random.randrange(1, 4)):
                channel = self.random.choice(others)
                channel.written += channel.peer.write(QUICK)
                self.expect_all_read(channel)
                self.submit()
                self.settle_all()
                time.sleep(self.random.choice(PAUSES))
        finally:
            self.release.set()
        self.expect_all_read(blocked)
        self.settle_all()
        self.permits.release()

    def close_ours(self) -> None:
        """A monitored socket is closed, with or without something unread."""
        channel = self.random.choice(self.channels)
        if self.random.random() < 0.5:
            channel.written += channel.peer.write(QUICK)
        channel.ours.close()
        self.tally.closes += 1
        if not channel.wait_until(lambda: bool(channel.ends)):
            self.fail("a close")
        self.replace(channel)

    def close_peer(self) -> None:
        """The end of the stream, which the handler sees again and again until the monitor is cancelled."""
        channel = self.random.choice(self.channels)
        self.settle_all()
        channel.peer.close()
        channel.monitor.cancel()
        self.replace(channel)

    def replace(self, channel: Channel) -> None:
        channel.close()
        assert len(channel.ends) <= 1, channel.ends
        assert not channel.problems, channel.problems
        self.channels[self.channels.index(channel)] = Channel(self.pool, self.release)

    def pause(self) -> None:
        channel = self.random.choice(self.channels)
        channel.monitor.pause()
        channel.written += channel.peer.write(QUICK)
        if self.random.random() < 0.5:
            channel.monitor.set_events(SocketEvent.REMOTE_DISCONNECTED)
            channel.monitor.set_events(READ)
        else:
            channel.monitor.resume()
        self.expect_all_read(channel)

    def begin_anew(self) -> None:
        """Cancelled, and monitored again by a new monitor.

        The last call of the old one may still be running then, so that it has to be waited for.
        """
        self.settle_all()
        channel = self.random.choice(self.channels)
        channel.monitor.cancel()
        with channel._calling:
            channel.monitor = channel.begin()

    def be_quiet(self) -> None:
        """Let everything fall asleep; the next step has to wake it."""
        self.settle_all()
        time.sleep(self.random.choice(PAUSES))


def describe(pool: WorkerPool) -> str:
    """Everything that tells why it stalls."""
    leader = {name: value for name, value in vars(pool._leadership).items() if isinstance(value, int | float | deque)}
    leader |= {name: getattr(pool._leadership._term, name) for name in Term.__slots__}
    stations = [(n, station.busy, station.held) for n, station in enumerate(tuple(pool._stations.table.values()))]
    return f"{pool!r} {pool.stats()} {leader} {stations}"


def run_mix(workers: int, seconds: float, seed: int, drivers: int = 2) -> list[Tally]:
    """Drive one pool for a while.

    :raises Stalled: something did not happen
    """
    end = time.monotonic() + seconds
    permits = threading.Semaphore(workers - 1)
    with WorkerPool(workers) as pool:
        crowd = [Driver(pool, seed * 100 + n, permits, lambda: time.monotonic() > end) for n in range(drivers)]
        threads = [Worker(driver.run) for driver in crowd]
        for thread in threads:
            thread.outcome(seconds + 20)
    tallies = [driver.tally for driver in crowd]
    assert all(tally.tasks == tally.done + tally.cancelled for tally in tallies), tallies
    return tallies


@contextlib.contextmanager
def circumstances(pinned: bool, interval: float) -> Iterator[None]:
    with pinned_to_one_cpu() if pinned else contextlib.nullcontext(), switch_interval(interval):
        yield


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    """Handlers raise on purpose."""
    caplog.set_level("CRITICAL", "pool")


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
@pytest.mark.parametrize(
    ("pinned", "interval"), [(False, 5e-3), (False, 1e-6), (True, 1e-6)], ids=["default", "1e-6", "1e-6-pinned"]
)
def test_nothing_stalls(workers: int, pinned: bool, interval: float) -> None:
    """1.2 s each."""
    with circumstances(pinned, interval):
        tallies = run_mix(workers, 1.2, seed=workers)
    assert sum(tally.tasks + tally.bytes for tally in tallies) > 0  # some hundred; a busy machine gets nowhere


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(2)))
    parser.add_argument("--workers", type=int, default=0, help="0: another number every two seconds")
    parser.add_argument("--pinned", action="store_true")
    parser.add_argument("--interval", type=float, default=5e-3)
    wanted = parser.parse_args()
    import logging

    logging.disable(logging.CRITICAL)
    end, seed = time.monotonic() + wanted.seconds, wanted.seed
    total = Tally()
    with circumstances(wanted.pinned, wanted.interval):
        while time.monotonic() < end:
            seed += 1
            workers = wanted.workers or random.Random(seed).choice([1, 2, 2, 3, 4, 8])
            for tally in run_mix(workers, min(2.0, wanted.seconds), seed):
                for name, value in vars(tally).items():
                    setattr(total, name, getattr(total, name) + value)
    sys.stdout.write(f"seeds {wanted.seed + 1} to {seed}: {total}\n")


if __name__ == "__main__":
    main()
