"""Poller: many sockets, monitored by one waiting thread, changed and woken by any other.

Law of this file: one thread waits at a time, a second one is refused (they would steal each other's events);
everything else may be called by any thread at any time.  ``registry.py`` tells why an event never reaches the wrong
socket.

A wait, and its short cut.  ``_answers`` maps a pair as the kernel reports it, (number, flags), to the pair that is
returned, (socket, events), for flags whose meaning cannot change while the registration stands: no hang-up, connect
decided.  A batch of such is answered by one dictionary look-up each.  Everything else takes the long way: ask the
socket what the flags mean, decide how to go on waiting for it.
"""

from __future__ import annotations

import time
import warnings
from abc import abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import ClassVar, NoReturn, Self

from bbipc.events import EVENTS, SocketEvent
from bbipc.polling.deadline import LONGEST_WAIT, checked_timeout, deadline_after, time_left
from bbipc.polling.registry import Event, Registry
from bbipc.polling.waker import RETIRED
from bbipc.polling.watch import LONGEST_TICK, Mode, Watch
from bbipc.readiness import EVERYTHING, READABLE
from bbipc.sockets import fork
from bbipc.sockets.base import Socket
from bbipc.sockets.handle import look


class Poller(Registry):
    """Monitors sockets; made by :func:`bbipc.make_poller`.

    ``backend``: the name of the kernel call behind it.  All behave alike, but for two things: select takes no
    descriptor above 1,023 on Unix, and its wait for ROOM_TO_WRITE alone is not ended by a local peer that shuts both
    its sides with our bytes unread, only when that peer reads or closes.  Level-triggered: what is true is reported at
    every wait, until it is dealt with.
    """

    backend: ClassVar[str]

    @property
    def closed(self) -> bool:
        """Whether somebody closed it."""
        return self._closed

    def wait_for_events(self, timeout: float | None) -> list[Event]:
        """Wait until a monitored socket has one of its events; those that have.

        *timeout*: seconds; 0 looks and returns, ``None`` waits without limit.  An empty list means that nothing
        happened, not that the time is up: a ``wake``, and the close of a monitored socket, end the wait too.  A
        stream of which nothing that was asked for can come any more (data from a peer that has gone) is silent.  One
        thread at a time.

        :raises PollerClosedError: the poller was closed, before or meanwhile
        :raises RuntimeError: another thread is waiting
        :raises ValueError: a negative or NaN timeout
        """
        limit = checked_timeout(timeout)
        self._check_process()
        token = object()
        try:
            with self._lock:
                self._check_usable()
                if self._waiter is not None:
                    raise RuntimeError("another thread is waiting for the events of this poller")
                self._waiter = token
                self._ghosts.clear()
                shortcut = not self._looked and (limit is None or limit <= LONGEST_WAIT)
            deadline = deadline_after(limit)
            if not shortcut:
                return self._wait_until(deadline)
            pairs = self._kernel_wait(limit)
            answers = self._answers
            try:
                return [answers[pair] for pair in pairs] if pairs else self._wait_until(deadline)
            except KeyError:
                return self._wait_until(deadline, pairs)
        finally:
            if self._waiter is token:
                self._waiter = None  # first of all, with no call before it: a Ctrl-C could come in one
                if self._closed:
                    self._retire_waker()

    def wake(self) -> None:
        """End the wait of the thread that waits, or else the next one.  Any thread; never blocks, is never lost.

        It takes no lock, so finalizers and signal handlers may call it, too.

        :raises PollerClosedError: the poller was closed
        """
        self._check_process()
        self._check_usable()
        # First the word, then the descriptor: a waiter who drains the one looks at the other afterwards.  Words that
        # nobody has taken yet count as one: the wait which takes them ends after this call began.
        if not self._wakes:
            self._wakes.append(None)
        self._waker.wake()

    def close(self) -> None:
        """Close it, from any thread, any number of times; a thread that waits raises PollerClosedError.

        The sockets stay open.  In a forked child it lets go of the child's copies and touches nothing of the
        parent's.
        """
        if self._generation != fork.generation:  # its lock may be held for ever, by a thread that is not here
            self._closed = True
            self._watches, self._looked, self._answers = {}, {}, {}
            self._release_kernel()
            return
        if self._closed:
            return
        try:
            self._shut()
        except BaseException:  # Ctrl-C in the middle: a step may be taken twice, none may be left out
            self._shut()
            raise

    def _shut(self) -> None:
        with self._lock:
            self._closed = True
            if self._waiter is not None:  # epoll forgets a closed descriptor: it must stay until he has seen the wake
                self._waker.wake()
            else:
                self._waker = RETIRED
            for watch in tuple(self._watches.values()):
                watch.socket._remove_watcher(self)
                self._watches.pop(watch.number, None)
            self._looked.clear()
            self._answers.clear()
            self._release_kernel()

    def _retire_waker(self) -> None:
        """The poller is closed: its waker goes when nobody waits for it any more."""
        with self._lock:
            if self._waiter is None:
                self._waker = RETIRED

    # The short and the long way of a wait.

    def _wait_until(self, deadline: float | None, pairs: list[tuple[int, int]] | None = None) -> list[Event]:
        """The long way, until something is found, *deadline* has come or somebody asks for an end; *pairs*: the first
        reports of the kernel, if it was asked already.
        """
        next_look = 0.0
        while True:
            left = time_left(deadline)
            pause = self._pause(next_look)
            if pairs is None:
                self._lay_ghosts()
                pairs = self._kernel_wait(min(left, pause))
            found = self._collect(pairs)
            pairs = None
            if self._looked and (not pause or time.monotonic() >= next_look):
                found |= self._look_again()
                next_look = time.monotonic() + self._tick
                self._tick = min(self._tick * 2, LONGEST_TICK)
            self._check_usable()
            # A wake from here on is one of a wait that is about to end, or else seen by the next round.
            if self._take_wake() or found or not left:
                return list(found.items())

    def _pause(self, next_look: float) -> float:
        """How long the kernel may be waited for, with regard to sockets that have to be looked at; 0: look now."""
        with self._lock:
            if not self._looked:
                return LONGEST_WAIT
            if any(watch.mode is Mode.NOW for watch in tuple(self._looked.values())):
                return 0.0
        return max(next_look - time.monotonic(), 0.0)

    def _take_wake(self) -> bool:
        """Whether somebody asked for an end of the wait."""
        if not self._wakes:
            return False
        self._wakes.clear()  # only behind the look: what is appended between the two must be seen by the next one
        return True

    def _collect(self, pairs: list[tuple[int, int]]) -> dict[Socket, SocketEvent]:
        """What a batch of kernel reports means."""
        found: dict[Socket, SocketEvent] = {}
        if (self._waker.number, READABLE) in pairs:
            self._waker.drain()
        with self._lock:  # together: whose number it is, and whether it was another's when the kernel was asked
            told = [
                (self._watches[number], flags, self._answers.get((number, flags)))
                for number, flags in pairs
                if number in self._watches and number not in self._ghosts
            ]
        for watch, flags, answer in told:
            if answer is not None:
                found[answer[0]] = answer[1]
            else:
                events = self._judge(watch, flags)
                if events:
                    found[watch.socket] = EVENTS[events]
        return found

    def _lay_ghosts(self) -> None:
        """The kernel is about to be asked again: its next batch knows nothing of numbers that have left before."""
        if self._ghosts:
            with self._lock:
                self._ghosts.clear()

    def _look_again(self) -> dict[Socket, SocketEvent]:
        """Ask the sockets that the kernel does not watch."""
        with self._lock:
            looked = list(self._looked.values())
        found = [(watch.socket, self._judge(watch, look(watch.handle, EVERYTHING))) for watch in looked]
        return {socket: EVENTS[events] for socket, events in found if events}

    def _judge(self, watch: Watch, flags: int) -> int:
        """What *flags* mean for *watch*, and how to go on with it."""
        changes = watch.changes
        state = watch.socket._observe(flags)
        if state is None:  # closed meanwhile; its closer removes it
            return 0
        with self._lock:
            if self._watches.get(watch.number) is not watch or watch.number in self._ghosts:
                return 0
            awaited = watch.awaited
            found = state[0] & awaited
            watch.decide(flags, found, state[1], end_has_edge=self._end_has_edge)
            self._enter_or_tick_locked(watch)
            if watch.awaited != awaited:  # the kernel is asked for less: the same flags no longer mean the same
                self._forget_answers_locked(watch)
            elif found and watch.mode is Mode.KERNEL and watch.changes == changes:
                self._keep_answer_locked(watch, flags, found)
            return found if self._stands_locked(watch) else 0

    # What a backend supplies.

    @abstractmethod
    def _kernel_wait(self, seconds: float | None) -> list[tuple[int, int]]:
        """(number, flags) of what is ready, the waker included, after at most *seconds*.  Called without the lock."""

    @abstractmethod
    def _release_kernel(self) -> None:
        """Let go of the kernel's object; a call in flight holds it until it returns."""

    def __enter__(self) -> Self:
        self._check_process()
        self._check_usable()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self, warn: Callable[..., None] = warnings.warn) -> None:
        if not getattr(self, "_closed", True):
            warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} cannot be pickled or copied")

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self._watches)} sockets"
        return f"<{type(self).__name__} {state}>"
