"""Cancel, timeout, close and readiness race for a future, and exactly one wins (HAZARDS 35).

The full size is run by hand: ``python -m tests.stress.future_race`` (2,000,000 pairs).
"""

from __future__ import annotations

import threading
from typing import cast

import pytest

import bbipc
from bbipc import SocketEvent
from pool.polling_loop import PollingLoop
from tests.stress.close_race import pinned_to_one_cpu, switch_interval
from tests.stress.future_race import CallRace, ReadRace, TaskRace, WaitRace, planted
from tests.support.loops import NOTHING, left, pair
from tests.support.makers import PATIENCE, Worker

WAITS = {"events", "TimeoutError", "cancelled", "SocketClosedError", "PollerClosedError"}
TASKS = {"events", "TimeoutError", "cancelled"}
CALLS = {"events", "PollerClosedError", "cancelled"}
RACES = [(WaitRace, WAITS), (TaskRace, TASKS), (CallRace, CALLS)]
AnyRace = WaitRace | TaskRace | CallRace


@pytest.mark.parametrize("interval", [1e-6, 5e-3], ids=["1e-6", "default"])
@pytest.mark.parametrize(("kind", "outcomes"), RACES)
def test_exactly_one_of_two_wins(kind: type[AnyRace], outcomes: set[str], interval: float) -> None:
    """15,000 pairs: no InvalidStateError, no future lost, none that its waiters do not know of, nothing left."""
    race = kind()
    with switch_interval(interval):
        race.run(15_000)
    assert race.faults == {}
    assert sum(race.outcomes.values()) >= 15_000
    assert set(race.outcomes) == outcomes


@pytest.mark.parametrize(("kind", "outcomes"), RACES)
def test_exactly_one_of_two_wins_on_one_processor(kind: type[AnyRace], outcomes: set[str]) -> None:
    """10,000 pairs, the threads taking turns."""
    race = kind()
    with pinned_to_one_cpu(), switch_interval(1e-6):
        race.run(10_000)
    assert race.faults == {}
    assert set(race.outcomes) == outcomes


def test_real_reads_are_cancelled_closed_and_timed_out_while_the_bytes_arrive(backend: str) -> None:
    """2,000 reads on each backend: settled once, no byte lost, nothing left registered."""
    race = ReadRace(seed=len(backend))
    with switch_interval(1e-6):
        race.run(2000, backend)
    assert race.faults == {}
    assert {"events", "cancelled"} <= set(race.outcomes)


def test_a_resume_by_another_thread_is_never_lost(backend: str) -> None:
    """3 sockets, 800 rounds each: the callback pauses, another thread reads and resumes, and so on."""
    rounds = 800

    def play(loop: PollingLoop) -> int:
        told = threading.Semaphore(0)

        def callback(socket: bbipc.LocalStream, events: SocketEvent) -> None:
            monitor.pause()
            told.release()

        with pair() as (one, other):
            monitor = loop.monitor(one, SocketEvent.DATA_AVAILABLE, callback)
            for number in range(rounds):
                if number % 2:
                    monitor.resume()
                    other.write(b"x")
                else:
                    other.write(b"x")
                    monitor.resume()
                assert told.acquire(timeout=PATIENCE)
                one.read()
            monitor.cancel()
        return rounds - told._value

    with PollingLoop(bbipc.make_poller(backend)) as loop, switch_interval(1e-6):
        players = [Worker(lambda: play(loop)) for _ in range(3)]
        # A resume that comes before the bytes, or beside the pause, may be told once more; never once less.
        assert all(cast(int, player.outcome(30)) <= rounds for player in players)
        assert left(loop) == NOTHING


@pytest.mark.parametrize("kind", [WaitRace, TaskRace, CallRace])
def test_the_race_finds_the_bug_that_it_is_for(kind: type[AnyRace]) -> None:
    """With a look in the place of the claim: by 10,000 pairs on a machine that is free, by ten times as many on any."""
    race = kind()
    with planted(), switch_interval(1e-6):
        for _ in range(10):
            race.run(10_000)
            if race.faults:
                return
    raise AssertionError("not found")
