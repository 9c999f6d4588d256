"""Stopping: a server's end, in order and in time.

Law of this file: it happens on a thread of its own, begun by the first who asks.  So whoever asks may give up waiting
(a Ctrl-C, a timeout), be a handler that would otherwise wait for itself, or be the thread that the handlers need; and
all who ask are told the same.

1. The doors are closed; who calls is refused.
2. Connections with no call running are closed.
3. Calls that are running may return, until the deadline.  Each connection is closed when its call has returned; one
   that lingers then (``lingering.py``) has until the deadline, too.
4. The streams of the others are closed.  Their handlers get SocketClosedError, and have GRACE seconds to return.
5. Who has not returned then is abandoned: he holds a worker, and nobody waits for him.

A handler that asks for the end is not waited for: he waits for us.  His connection is closed when he has returned.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from bbipc.errors import PollerClosedError
from bbipc.polling.make import make_poller
from bbipc.polling.poller import Poller
from bbipc.polling.signals import woken_by_signals
from bbipc.sockets.locks import make_rlock

#: seconds for handlers to return when their stream has been closed
GRACE: Final = 0.5
#: seconds beyond all deadlines before somebody who waits gives up: a local server's close may wait for 1 s
_MARGIN: Final = 1.5


@dataclass(frozen=True)
class StopReport:
    """What became of the connections that a server had when it was stopped; each is counted once.

    ``drained``: they were idle, or their calls returned in time.  ``forced``: closed in the middle of their call, which
    then returned, or while they lingered.  ``abandoned``: closed, but their handler did not return in spite of that.
    """

    drained: int = 0
    forced: int = 0
    abandoned: int = 0


class Inside(Protocol):
    """Who is inside of a server; see ``table.py``."""

    def end_all(self) -> int:
        """Step 2; how many there were when the doors were closed."""
        ...

    def wait_for_calls(self, deadline: Callable[[], float | None]) -> int:
        """Step 3; how many are still running at the *deadline*."""
        ...

    def force(self) -> None:
        """Step 4."""

    def look_again(self) -> None:
        """The deadline has changed."""


class Stopping:
    """The end of one server.  *close_doors*: step 1, idempotent.  *finish*: called at the end.  Any thread."""

    def __init__(self, connections: Inside, close_doors: Callable[[], object], finish: Callable[[], object]) -> None:
        self._connections = connections
        self._close_doors = close_doors
        self._finish = finish
        self._lock = make_rlock()  # guards what follows
        self._begun = False
        self._thread: threading.Thread | None = None
        self._ender = 0  # the ident of whoever is in _run(), which may be a caller of begin()
        self._deadline: float | None = None
        self._report = StopReport()
        self._done = False
        self._gates: list[threading.Lock] = []
        self._pollers: list[Poller] = []

    @property
    def report(self) -> StopReport:
        """What is known so far."""
        return self._report

    def is_current(self) -> bool:
        """Whether the calling thread is the one that the end happens on."""
        return self._ender == threading.get_ident()

    def begin(self, limit: float | None, *, wait: bool) -> None:
        """Begin, with *limit* seconds for the calls that are running (``None``: as long as it takes).

        Begun already, it only brings the deadline forward.  *wait*: whether the calling thread may do the work itself,
        where the system has no thread for it.
        """
        deadline = None if limit is None else time.monotonic() + limit
        with self._lock:
            if self._begun:
                if deadline is not None and (self._deadline is None or deadline < self._deadline):
                    self._deadline = deadline
                    self._connections.look_again()
                return
            try:
                self._begun, self._deadline = True, deadline
                self._thread = threading.Thread(target=self._run_apart, name="bbipc-stop", daemon=True)
                self._thread.start()
                return
            except RuntimeError:  # the system has no thread for it
                self._thread = None
            except BaseException:  # Ctrl-C: whether the thread has begun or not, the next who asks begins anew
                self._begun, self._thread = False, None
                raise
            if not wait:
                self._deadline = time.monotonic()
        self._run(GRACE if wait else 0)

    def wait(self) -> StopReport:
        """Wait for the end; bounded by the deadline and a few seconds more."""
        while True:
            deadline = self._deadline
            limit = None if deadline is None else max(deadline - time.monotonic(), 0.0) + GRACE + _MARGIN
            if self.wait_for_end(limit) or self._deadline == deadline:
                return self._report

    def wait_for_end(self, limit: float | None) -> bool:
        """Wait for the end, whoever begins it, for *limit* seconds at most; whether it has come.

        No ``Thread.join``: on 3.11 and 3.12 a Ctrl-C in one makes the thread look as if it had ended.
        """
        gate = threading.Lock()  # one for each who waits: whatever a Ctrl-C leaves behind, nobody else uses it
        gate.acquire()
        with self._lock:
            if self._done:
                return True
            self._gates.append(gate)
        return gate.acquire(timeout=-1 if limit is None else min(limit, threading.TIMEOUT_MAX))

    def serve_until_end(self, start: Callable[[], object]) -> None:
        """Call *start*, and wait for the end, whoever begins it, in the main thread.

        In a poll, not on a lock: on the free-threaded 3.14 a Ctrl-C that comes just before the main thread waits for a
        lock is lost (5 of 240 runs).
        """
        # First of all: before anybody is served there is nobody to press Ctrl-C.
        with make_poller() as gate, woken_by_signals(gate) as forget_signals:
            with self._lock:
                self._pollers.append(gate)
            start()
            self._wait_at(gate, forget_signals)

    def _wait_at(self, gate: Poller, forget_signals: Callable[[], object]) -> None:
        while not self._done:  # in a frame of its own: see the end of ``interests.py``
            gate.wait_for_events(None)
            forget_signals()

    def _run_apart(self) -> None:
        with self._lock:  # whoever starts us has it until he is done; a Ctrl-C may have made him give us up
            if self._thread is not threading.current_thread():
                return
        self._run()

    def _run(self, grace: float = GRACE) -> None:
        self._ender = threading.get_ident()
        with contextlib.ExitStack() as steps:  # whatever one of them raises, the others are taken
            steps.callback(self._leave)
            steps.callback(self._open_gates)
            steps.callback(self._finish)
            steps.callback(self._end_connections, grace)
            self._close_doors()

    def _leave(self) -> None:
        self._ender = 0

    def _end_connections(self, grace: float) -> None:
        total = self._connections.end_all()
        busy = self._connections.wait_for_calls(lambda: self._deadline)
        self._report = StopReport(drained=total - busy)
        self._connections.force()
        end = time.monotonic() + grace
        left = self._connections.wait_for_calls(lambda: end)
        self._report = StopReport(total - busy, busy - left, left)

    def _open_gates(self) -> None:
        with self._lock:
            self._done = True
            for gate in self._gates:
                gate.release()
            self._gates.clear()
            for poller in self._pollers:
                with contextlib.suppress(PollerClosedError):  # he has been interrupted
                    poller.wake()
            self._pollers.clear()
