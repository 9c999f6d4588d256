"""The race for a future, as a program: ``python -m tests.stress.future_race [--pairs N] [--reads N] [--plant]``.

A wait may end in five ways: its events come, its time is up, it is cancelled, its socket is closed, its loop is
closed.  Two threads go through the same waits side by side, and each ends them in a way of its own: a *pair*.  The
table of interests and the timers are real, the poller is a dummy, so that a pair takes 25 to 200 us.  Afterwards each
future must be settled, once, in one of the two ways, known to those who wait for it, and nothing registered.  The same
for calls in a pool's queue, and for calls that wait for their time.

Then real sockets: a peer writes, another thread cancels or closes at random, some waits have a timeout of no time.

The full size is 2,000,000 pairs of each kind and 20,000 reads: one to eight minutes a kind on two busy processors.
``--plant`` puts ``if not future.done(): future.set_result(...)`` in the place of the claim: the bug that the race must
find.
"""

# ruff: noqa: T201

from __future__ import annotations

import argparse
import contextlib
import itertools
import logging
import random
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, wait
from typing import Any, ClassVar, Generic, TypeVar, cast
from unittest import mock

import bbipc
from bbipc import PollerClosedError, SocketClosedError, SocketEvent
from bbipc.events import DATA_AVAILABLE
from bbipc.polling.poller import Poller
from bbipc.sockets.base import Socket
from pool.interests import Interests
from pool.parties import Call, Wait
from pool.polling_loop import PollingLoop
from pool.tasks import Task
from pool.timers import Timers
from tests.stress.close_race import switch_interval
from tests.support.loops import NOTHING, dealt_out, handler_added, left

BATCH = 100
DATA = SocketEvent.DATA_AVAILABLE


class Dummy:
    """A poller that does nothing, and a socket that is nothing."""

    closed = False

    def __init__(self) -> None:
        self.monitored: set[object] = set()

    def monitor_socket(self, socket: object, events: SocketEvent) -> None:
        self.monitored.add(socket)

    def set_monitored_events(self, socket: object, events: SocketEvent) -> None:
        """It is monitored already."""

    def unmonitor_socket(self, socket: object) -> None:
        self.monitored.discard(socket)


def plain_settle(future: Future[SocketEvent], result: SocketEvent) -> bool:
    """What the claim is instead of."""
    if not future.done():
        future.set_result(result)
    return True


def plain_fail(future: Future[SocketEvent], error: BaseException) -> bool:
    """The same for a failure."""
    if not future.done():
        future.set_exception(error)
    return True


def plain_run(future: Future[SocketEvent], fn: Callable[[], SocketEvent]) -> bool:
    """The same for what a function gives."""
    if not future.done():
        future.set_result(fn())
    return True


@contextlib.contextmanager
def planted() -> Iterator[None]:
    """Look, then settle: what everybody writes at first."""
    with (
        mock.patch("pool.parties.settle", plain_settle),
        mock.patch("pool.parties.fail", plain_fail),
        mock.patch("pool.parties.run", plain_run),
        mock.patch("pool.tasks.fail", plain_fail),
        mock.patch("pool.tasks.run", plain_run),
    ):
        yield


class Errors(logging.Handler):
    """Errors that a Future's own log hears of, since callbacks may not raise."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(repr(record.exc_info[1]) if record.exc_info else record.getMessage())


class Runner:
    """One future that two threads end."""

    __slots__ = ("future", "calls", "cancelled")

    def __init__(self, future: Future[SocketEvent]) -> None:
        self.future = future
        self.calls: list[int] = []
        self.cancelled = False
        future.add_done_callback(lambda future: self.calls.append(1))


class WaitRunner(Runner):
    """That of a wait for a socket."""

    __slots__ = ("socket", "wait")

    def __init__(self, table: Interests, timers: Timers) -> None:
        super().__init__(Future())
        self.socket = cast(Socket, Dummy())
        self.wait = Wait(table, timers, self.socket, DATA_AVAILABLE, self.future)
        self.future.add_done_callback(self.wait.future_done)
        table.join(self.socket, self.wait)
        self.wait.limit(timers.add(3600, self.wait.time_out)[0])


class TaskRunner(Runner):
    """That of a call in a pool's queue."""

    __slots__ = ("task",)

    def __init__(self) -> None:
        super().__init__(Future())
        self.task = Task(self.future, lambda: DATA)


class CallRunner(Runner):
    """That of a call that waits for its time."""

    __slots__ = ("call",)

    def __init__(self, timers: Timers) -> None:
        super().__init__(Future())
        self.call = Call(timers, self.future, lambda: DATA, ())
        self.future.add_done_callback(self.call.future_done)
        self.call.timer = timers.add(3600, self.call.run)[0]


def patience() -> int:
    """How often to look for the other thread.  With a GIL it does not come on while this one looks, and two that take
    turns strictly never meet; the short switch interval lets them meet.
    """
    return 10 if getattr(sys, "_is_gil_enabled", lambda: True)() else 5000


R = TypeVar("R", bound=Runner)
Way = tuple[Callable[[Any, Any], None], str]


class Race(ABC, Generic[R]):
    """Pairs of ends of one future: what all races have in common."""

    #: how a future may be ended, and as what
    WAYS: ClassVar[tuple[Way, ...]]

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.steps = [0, 0]

    @abstractmethod
    def make(self) -> R:
        """A future to race for."""

    def leftovers(self) -> dict[str, int]:
        """What should not be there any more, and how often it is."""
        return {}

    def cancel(self, runner: R) -> None:
        runner.cancelled = runner.future.cancel()

    def run(self, pairs: int) -> None:
        """Race *pairs* pairs; every combination of two different ways, and of two cancels, in turn."""
        cancel = next(way for way in self.WAYS if way[1] == "cancelled")
        combinations = [*itertools.permutations(self.WAYS, 2), (cancel, cancel)]
        batches = max(pairs // BATCH, len(combinations))
        plan = [combinations[number % len(combinations)] for number in range(batches)]
        current: list[R] = []
        barrier = threading.Barrier(2)
        other = threading.Thread(target=self._other, args=(plan, current, barrier), daemon=True)
        other.start()
        heard = Errors()
        with handler_added(heard, "concurrent.futures"):
            for ways in plan:
                current[:] = [self.make() for _ in range(BATCH)]
                self.steps[:] = [0, 0]
                barrier.wait(60)
                self._end_all(current, ways[0][0], 0)
                barrier.wait(60)
                self._judge(current, {ways[0][1], ways[1][1]})
        other.join(60)
        for error in heard.seen:
            self.faults[f"logged {error}"] += 1

    def _other(self, plan: list[tuple[Way, Way]], current: list[R], barrier: threading.Barrier) -> None:
        for ways in plan:
            barrier.wait(60)
            self._end_all(current, ways[1][0], 1)
            barrier.wait(60)

    def _end_all(self, runners: list[R], way: Callable[[Any, Any], None], me: int) -> None:
        """Side by side: whoever is ahead waits for the other, for a while."""
        steps, other, pace = self.steps, 1 - me, patience()
        for number, runner in enumerate(runners):
            for _ in range(pace):
                if steps[other] >= number:
                    break
            try:
                way(self, runner)
            except BaseException as error:
                self.faults[f"raised {type(error).__name__}"] += 1
            steps[me] = number + 1

    def _judge(self, runners: list[R], expected: set[str]) -> None:
        for runner in runners:
            outcome = outcome_of(runner.future)
            self.outcomes[outcome] += 1
            if outcome not in expected:
                self.faults[f"{outcome}, where {' or '.join(sorted(expected))} was to be"] += 1
            if runner.future._state not in {"FINISHED", "CANCELLED_AND_NOTIFIED"}:
                self.faults[f"{runner.future._state}: those who wait do not know"] += 1
            if runner.cancelled is not (outcome == "cancelled"):
                self.faults[f"cancel() said {runner.cancelled}, and it is {outcome}"] += 1
            if len(runner.calls) != 1:
                self.faults[f"{len(runner.calls)} calls of a callback"] += 1
        for what, count in self.leftovers().items():
            if count:
                self.faults[f"{what} are left"] += count


class WaitRace(Race[WaitRunner]):
    """Waits: their events come, their time is up, they are cancelled, their socket or their loop is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.dummy = Dummy()
        self.table = Interests()
        self.table.poller = cast(Poller, self.dummy)
        self.timers = Timers()
        self.close_error = PollerClosedError("closed")

    def make(self) -> WaitRunner:
        return WaitRunner(self.table, self.timers)

    def leftovers(self) -> dict[str, int]:
        left = {"sockets in the table": len(self.table), "sockets in the poller": len(self.dummy.monitored)}
        return left | {"timers": len(self.timers)}

    def readiness(self, runner: WaitRunner) -> None:
        for party in self.table.parties_of(runner.socket):
            party.tell(runner.socket, DATA_AVAILABLE)

    def timeout(self, runner: WaitRunner) -> None:
        runner.wait.time_out()

    def close_socket(self, runner: WaitRunner) -> None:
        self.dummy.monitored.discard(runner.socket)  # a socket leaves its pollers before its end is told
        for party in self.table.take(runner.socket):
            party.end(SocketClosedError(runner.socket))

    def close_loop(self, runner: WaitRunner) -> None:
        """As ``take_all`` does it, for one: all at once would leave the rest of the batch no race."""
        self.dummy.monitored.discard(runner.socket)
        for party in self.table.take(runner.socket):
            party.end(self.close_error)

    WAYS = (
        (readiness, "events"),
        (timeout, "TimeoutError"),
        (Race.cancel, "cancelled"),
        (close_socket, "SocketClosedError"),
        (close_loop, "PollerClosedError"),
    )


class TaskRace(Race[TaskRunner]):
    """Calls in a queue: a worker makes them, they are cancelled, the pool gives them up."""

    def make(self) -> TaskRunner:
        return TaskRunner()

    def work(self, runner: TaskRunner) -> None:
        runner.task.run()

    def give_up(self, runner: TaskRunner) -> None:
        runner.task.give_up(TimeoutError())

    WAYS = ((work, "events"), (Race.cancel, "cancelled"), (give_up, "TimeoutError"))


class CallRace(Race[CallRunner]):
    """Calls that wait for their time: it comes, they are cancelled, their loop is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.timers = Timers()

    def make(self) -> CallRunner:
        return CallRunner(self.timers)

    def leftovers(self) -> dict[str, int]:
        return {"timers": len(self.timers)}

    def taken(self, runner: CallRunner) -> bool:
        """As ``due`` and ``clear`` take theirs: out of the same heap, under its lock."""
        return runner.call.timer is not None and self.timers.cancel(runner.call.timer)

    def time(self, runner: CallRunner) -> None:
        if self.taken(runner):
            runner.call.run()

    def close(self, runner: CallRunner) -> None:
        if self.taken(runner):
            runner.call.end(PollerClosedError("closed"))

    WAYS = ((time, "events"), (Race.cancel, "cancelled"), (close, "PollerClosedError"))


def outcome_of(future: Future[SocketEvent]) -> str:
    """In one word."""
    if not future.done():
        return "lost"
    try:
        return "events" if future.result(0) else "nothing"
    except (CancelledError, TimeoutError, SocketClosedError, PollerClosedError) as error:
        return "cancelled" if isinstance(error, CancelledError) else type(error).__name__


class ReadRace:
    """Real sockets: reads that are cancelled, time out or lose their socket while the bytes arrive."""

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self.outcomes: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()

    def run(self, reads: int, backend: str | None = None) -> None:
        """Race *reads* reads, a hundred at a time."""
        heard = Errors()
        with (
            PollingLoop(bbipc.make_poller(backend)) as loop,
            handler_added(heard, "concurrent.futures"),
            handler_added(heard),
        ):
            for _ in range(max(reads // 100, 1)):
                self._round(loop)
        for error in heard.seen:
            self.faults[f"logged {error}"] += 1

    def _round(self, loop: PollingLoop) -> None:
        pairs = [bbipc.local_stream_pair() for _ in range(100)]
        plans = [self._random.choice(("nothing", "cancel", "cancel", "close", "timeout")) for _ in pairs]
        barrier = threading.Barrier(3)

        def write() -> None:
            barrier.wait(30)
            for _, other in pairs:
                with contextlib.suppress(bbipc.RemoteDisconnectedError):  # closed already
                    other.write(b"x")

        futures = [
            loop.when(one, DATA, timeout=self._random.uniform(0, 2e-3) if plan == "timeout" else 60)
            for (one, _), plan in zip(pairs, plans, strict=True)
        ]

        def end(kind: str) -> None:
            barrier.wait(30)
            for (one, _), plan, future in zip(pairs, plans, futures, strict=True):
                if plan == kind == "cancel":
                    future.cancel()
                elif plan == kind == "close":
                    one.close()

        threads = [threading.Thread(target=write), threading.Thread(target=end, args=("close",))]
        for thread in threads:
            thread.start()
        end("cancel")
        for thread in threads:
            thread.join(30)
        late = wait(futures, 30).not_done
        allowed = {"cancel": "cancelled", "close": "SocketClosedError", "timeout": "TimeoutError", "nothing": ""}
        for (one, other), plan, future in zip(pairs, plans, futures, strict=True):
            outcome = "lost" if future in late else outcome_of(future)
            self.outcomes[outcome] += 1
            if outcome not in {"events", allowed[plan]}:
                self.faults[f"{outcome} after {plan}"] += 1
            if plan != "close" and one.read() != b"x":
                self.faults["bytes were lost"] += 1
            one.close()
            other.close()
        dealt_out(loop)
        if left(loop) != NOTHING:
            self.faults[f"left: {left(loop)!r}"] += 1


def main() -> None:
    """Run both races and say what they found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=2_000_000)
    parser.add_argument("--reads", type=int, default=20_000)
    parser.add_argument("--interval", type=float, default=1e-6)
    parser.add_argument("--plant", action="store_true")
    args = parser.parse_args()
    print(
        f"{sys.version.split()[0]}, switch interval {args.interval}, {'the bug planted' if args.plant else 'as it is'}"
    )
    wrong = 0
    with planted() if args.plant else contextlib.nullcontext(), switch_interval(args.interval):
        for race, run, count in (
            (pairs := WaitRace(), pairs.run, args.pairs),
            (tasks := TaskRace(), tasks.run, args.pairs),
            (calls := CallRace(), calls.run, args.pairs),
            (reads := ReadRace(), reads.run, args.reads),
        ):
            began = time.perf_counter()
            run(count)
            spent = time.perf_counter() - began
            faults = dict(race.faults)
            print(f"{type(race).__name__}: {sum(race.outcomes.values())} in {spent:.1f} s: {dict(race.outcomes)}")
            print(f"  faults: {faults or 'none'}", flush=True)
            wrong += sum(race.faults.values())
    sys.exit(min(wrong, 1))


if __name__ == "__main__":
    main()
