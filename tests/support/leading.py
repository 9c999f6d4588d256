"""A leadership on the test's own thread, with a crew that only writes down, and a clock that stands still."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import cast
from unittest import mock

import bbipc
from bbipc import SocketEvent
from pool.crew import Crew
from pool.leader import Leadership
from pool.stations import Station, Stations
from pool.tasks import AnyTask, Task
from pool.term import Term
from tests.support.makers import PATIENCE

READ = SocketEvent.DATA_AVAILABLE | SocketEvent.REMOTE_DISCONNECTED


class ScriptedCrew:
    """As much of a crew as a leader asks for."""

    def __init__(self) -> None:
        self.max_workers = 4
        self.ending = False
        self.tasks: deque[AnyTask] = deque()
        self.threads: set[object] = set()
        self.nudges = 0

    def try_take(self) -> AnyTask | None:
        return self.tasks.popleft() if self.tasks else None

    def spare(self) -> int:
        return self.max_workers - len(self.threads)

    def idle(self) -> int:
        return 1 if self.spare() else 0

    def nudge(self) -> bool:
        self.nudges += 1
        return True


class Clock:
    """The leader's clock, which stands still unless the test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Stage:
    """A leadership with its crew, its clock and its sockets."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.crew = ScriptedCrew()
        self.stations = Stations()
        self.lead = Leadership(cast(Crew, self.crew), self.stations)
        self.calls: list[tuple[str, SocketEvent]] = []
        self.closes: list[tuple[str, str]] = []
        self.during: dict[str, Callable[[], object]] = {}
        self.peers: dict[str, bbipc.LocalStream] = {}
        self.sockets: dict[str, bbipc.LocalStream] = {}
        self.made: dict[str, Station] = {}
        self._bert = ThreadPoolExecutor(1)
        self._carl = ThreadPoolExecutor(1)

    def add(self, name: str, events: SocketEvent = READ) -> Station:
        """A monitored socket; its call reads what there is, and does what ``during[name]`` says."""
        ours, self.peers[name] = bbipc.local_stream_pair()
        self.sockets[name] = ours

        def call(socket: bbipc.Socket, told: SocketEvent) -> None:
            self.calls.append((name, told))
            if not ours.closed:
                ours.read()
            self.during.get(name, int)()

        def on_close(error: Exception) -> None:
            self.closes.append((name, type(error).__name__))

        station = Station(self.stations, None, ours, call, on_close)
        self.stations.add(station, events)
        self.made[name] = station
        return station

    def ready(self, *names: str) -> None:
        for name in names:
            self.peers[name].write(b"x")

    def queue_task(self) -> AnyTask:
        task: AnyTask = Task(Future(), int)
        self.crew.tasks.append(task)
        return task

    def round(self) -> AnyTask | None:
        """One round of whoever calls this."""
        self.queue_task()
        taken = self.lead.perform()
        if taken is None:
            self.crew.tasks.pop()  # whoever leads now may have taken the other's
        return taken

    def bert(self, fn: Callable[[], object]) -> object:
        """*fn* on a second worker, while this one is where it is."""
        return self._bert.submit(fn).result(PATIENCE)

    def carl(self, fn: Callable[[], object]) -> object:
        """*fn* on a third one."""
        return self._carl.submit(fn).result(PATIENCE)

    def led_by_another(self, led: bool) -> None:
        """Whether somebody else leads from now on, who does nothing; not for a thread that leads itself."""
        self.lead._term = Term(1)
        self.lead._term.lost = not led

    def armed(self, name: str) -> SocketEvent:
        """What the kernel is asked for."""
        assert self.stations.poller is not None
        return self.stations.poller.monitored_events(self.sockets[name])

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]

    def close(self) -> None:
        self._bert.shutdown()
        self._carl.shutdown()
        self.lead.end(lambda station: None)
        for stream in [*self.sockets.values(), *self.peers.values()]:
            stream.close()


@contextlib.contextmanager
def staged() -> Iterator[Stage]:
    clock = Clock()
    with (
        mock.patch("pool.leader.time", clock),
        mock.patch("pool.lookout.time", clock),
        mock.patch("pool.dialogue.monotonic", clock.monotonic),
    ):
        made = Stage(clock)
        yield made
        made.close()
