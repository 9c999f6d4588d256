"""Table: who is inside a server, from his acceptance until the server has let go of him.

Law of this file: it knows neither streams nor messages.  Any thread may call anything.  No user code runs, and nothing
waits, under the lock of the table.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from bbipc.sockets import fork
from bbipc.sockets.locks import make_rlock


class Member(Protocol):
    """Whoever is inside."""

    def end(self) -> object:
        """End, at once or when the calls that are running have returned."""

    def cut(self) -> object:
        """Close the stream, whatever is running."""


M = TypeVar("M", bound=Member)


class Table(Generic[M]):
    """The table of one server.  *on_leave*: called, with no lock held, whenever somebody has left."""

    def __init__(self, on_leave: Callable[[], object]) -> None:
        self._on_leave = on_leave
        self._lock = make_rlock()
        self._inside: set[M] = set()  # these five are guarded by the lock
        self._callers: set[M] = set()  # their handlers wait for us: we do not wait for them
        self._closing = False
        self._at_closing = 0
        self._gates: list[threading.Lock] = []  # of those in wait_for_calls; let go of when there is something new
        self._generation = fork.generation

    def __len__(self) -> int:
        return len(self._inside)

    def members(self) -> list[M]:
        """Who is inside just now."""
        with self._lock:
            return list(self._inside)

    def add(self, member: M) -> bool:
        """One more; False: nobody is let in any more."""
        with self._lock:
            if self._closing:
                return False
            self._inside.add(member)
            return True

    def left(self, member: M) -> None:
        """It has ended."""
        if self._generation != fork.generation:  # a handler has forked, and this is the child
            return
        with self._lock:
            self._inside.discard(member)
            self.look_again()
        self._on_leave()

    def look_again(self) -> None:
        """Let those in :meth:`wait_for_calls` look at everything anew."""
        with self._lock:
            for gate in self._gates:
                with contextlib.suppress(RuntimeError):  # released, by somebody whom a Ctrl-C has stopped
                    gate.release()
            self._gates.clear()

    # Ending.

    def excuse(self, member: M) -> None:
        """Do not wait for its call: it waits for us."""
        with self._lock:
            self._callers.add(member)
        self.look_again()

    def shut(self) -> None:
        """Let nobody in any more.  Idempotent."""
        with self._lock:
            if not self._closing:
                self._at_closing = len(self._inside)
                self._closing = True  # behind it: a Ctrl-C comes before both or behind both

    def end_all(self) -> int:
        """End those who are idle now, the others when their call returns; how many there were when it was shut."""
        self.shut()
        for member in self.members():
            member.end()
        return self._at_closing

    def wait_for_calls(self, deadline: Callable[[], float | None]) -> int:
        """Wait for the calls that are running; how many still are at the *deadline* on the monotonic clock."""
        while True:
            gate = threading.Lock()  # one for each wait: whatever a Ctrl-C leaves behind, nobody else uses it
            gate.acquire()
            with self._lock:
                self._gates.append(gate)
                left = len(self._inside - self._callers)
            limit = deadline()
            pause = -1 if limit is None else min(max(limit - time.monotonic(), 0), threading.TIMEOUT_MAX)
            if not left or not pause:
                return left
            gate.acquire(timeout=pause)

    def force(self) -> None:
        """Close the streams of those whose call is still running."""
        with self._lock:
            busy = self._inside - self._callers
        for member in busy:
            member.cut()
