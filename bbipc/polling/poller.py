"""Poller: many sockets, monitored by one waiting thread, changed and woken by any other.

Two laws.  One thread waits at a time (a second one is refused: they would steal each other's events); everything else
may be called by any thread at any time, also while one waits, and takes effect at once.  And an event is
reported for the socket that was registered, never for another that was given its number:

- A registration holds the socket's handle, so its number cannot be anybody else's while it stands.
- Closing a socket removes its registration before its number changes meaning (``socket_closing``).
- A registration that ends while a thread waits leaves its handle in ``_limbo`` until that wait has made its batch of
  kernel reports into answers; until then the number in the batch stays taken.

Who guards what: ``_watches``, ``_looked``, ``_answers``, ``_limbo``, ``_waiter``, ``_closed`` and the kernel's set
belong to ``_lock``; a helper whose name ends in ``_locked`` needs it.  The order is: a socket's lock, then a
poller's.  So no socket is asked for anything (it may take its lock) under a poller's.

A wait, and its short cut.  ``_answers`` maps a pair as the kernel reports it, (number, flags), to the pair that is
returned, (socket, events), for flags whose meaning cannot change while the registration stands: no hang-up, connect
decided.  A batch of such is answered by one dictionary look-up each.  Everything else takes the long way: ask the
socket what the flags mean, decide how to go on waiting for it.
"""

from __future__ import annotations

import threading
import time
import warnings
from abc import ABC, abstractmethod
from types import TracebackType
from typing import ClassVar, Self

from bbipc.errors import PollerClosedError
from bbipc.events import EVENTS, SocketEvent
from bbipc.polling.deadline import LONGEST_WAIT, checked_timeout, deadline_after, time_left
from bbipc.polling.waker import RETIRED, Waker
from bbipc.polling.watch import FIRST_TICK, LONGEST_TICK, Mode, Watch, wanted_bits
from bbipc.readiness import ANY_HANG_UP, EVERYTHING, INVALID
from bbipc.sockets import fork
from bbipc.sockets.base import Socket
from bbipc.sockets.handle import POLL_TELLS_END, Handle, look

Event = tuple[Socket, SocketEvent]


class Poller(ABC):
    """Monitors sockets; made by :func:`bbipc.make_poller`.

    ``backend``: the name of the kernel call behind it.  All backends behave alike.  Level-triggered: what is true is
    reported at every wait, until it is dealt with.
    """

    backend: ClassVar[str]
    #: the kernel call has a flag for the peer's end alone
    _end_has_edge: ClassVar[bool] = POLL_TELLS_END
    #: a change of the kernel's set takes effect during a wait
    _sees_changes: ClassVar[bool] = False

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._waker = Waker()
        self._watches: dict[int, Watch] = {}
        self._looked: dict[int, Watch] = {}  # those in mode NOW or TICK
        self._answers: dict[tuple[int, int], Event] = {}
        self._limbo: list[Handle] = []
        self._waiter: object = None  # a token of the call that waits
        self._woken = False
        self._closed = False
        self._tick = FIRST_TICK
        self._generation = fork.generation

    @property
    def closed(self) -> bool:
        """Whether somebody closed it."""
        return self._closed

    def monitor_socket(self, socket: Socket, events: SocketEvent) -> None:
        """Report *events* of *socket* from now on; no events at all: keep it, report nothing.

        Any thread, also while another waits: it takes effect at once.  Closing the socket ends it.

        :raises ValueError: it is monitored already, or it does not have one of the events
        :raises SocketClosedError: the socket was closed
        :raises PollerClosedError: the poller was closed
        :raises TypeError: not a Socket, or not a SocketEvent
        :raises OSError: the kernel has no room for it
        """
        wanted = wanted_bits(socket, events)
        self._check_process()
        with socket._lock, self._lock:
            self._check_usable()
            if socket.fileno() in self._watches:
                raise ValueError(f"{socket!r} is monitored already")
            watch = Watch(socket, socket._add_watcher(self), wanted)
            # Into the table before into the kernel: a signal handler that closes the socket in between finds it
            # there.
            self._watches[watch.number] = watch
            try:
                watch.begin(end_has_edge=self._end_has_edge)
                self._enter_mode_locked(watch, Mode.NEVER, 0)
            except BaseException:
                self._watches.pop(watch.number, None)
                watch.release()
                socket._remove_watcher(self)
                raise
            self._nudge_locked(watch)

    def unmonitor_socket(self, socket: Socket) -> None:
        """Report nothing of *socket* any more.  Any thread.

        :raises KeyError: it is not monitored (closing a socket ends its monitoring)
        :raises PollerClosedError: the poller was closed
        """
        self._check_process()
        with socket._lock, self._lock:
            self._remove_locked(self._watch_of_locked(socket))
            socket._remove_watcher(self)

    def monitored_events(self, socket: Socket) -> SocketEvent:
        """What is reported of *socket*.  Any thread.

        :raises KeyError: it is not monitored
        :raises PollerClosedError: the poller was closed
        """
        self._check_process()
        with self._lock:
            return EVENTS[self._watch_of_locked(socket).wanted]

    def set_monitored_events(self, socket: Socket, events: SocketEvent) -> None:
        """Report *events* of *socket* instead; a socket that had fallen silent (see :meth:`wait_for_events`) is tried
        anew.

        Any thread, also while another waits: it takes effect at once.

        :raises KeyError: it is not monitored
        :raises ValueError: it does not have one of the events
        :raises PollerClosedError: the poller was closed
        :raises TypeError: not a Socket, or not a SocketEvent
        """
        wanted = wanted_bits(socket, events)
        self._check_process()
        with self._lock:
            watch = self._watch_of_locked(socket)
            self._forget_answers_locked(watch)
            mode, mask = watch.mode, watch.mask
            watch.wanted = wanted
            watch.begin(end_has_edge=self._end_has_edge)
            self._enter_mode_locked(watch, mode, mask)
            self._nudge_locked(watch)

    def monitored_sockets(self) -> tuple[Socket, ...]:
        """All monitored sockets, in the order in which they came.  Any thread.

        :raises PollerClosedError: the poller was closed
        """
        self._check_process()
        with self._lock:
            self._check_usable()
            return tuple(watch.socket for watch in self._watches.values())

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
                self._leave_wait()

    def wake(self) -> None:
        """End the wait of the thread that waits, or else the next one.  Any thread; never blocks, is never lost.

        :raises PollerClosedError: the poller was closed
        """
        self._check_process()
        with self._lock:
            self._check_usable()
            self._woken = True
            self._waker.wake()

    def close(self) -> None:
        """Close it, from any thread, any number of times; a thread that waits raises PollerClosedError.

        The sockets stay open.  In a forked child it lets go of the child's copies and touches nothing of the
        parent's.
        """
        if self._generation != fork.generation:  # its lock may be held for ever, by a thread that is not here
            self._closed = True
            self._release_kernel()
            return
        with self._lock:
            if self._closed:
                return
            self._closed = True
            watches = list(self._watches.values())
            for gone in (self._watches, self._looked, self._answers):
                gone.clear()
            if self._waiter is None:
                self._waker = RETIRED
            else:  # epoll forgets a closed descriptor: its number must stay until the waiter has seen the wake
                self._waker.wake()
            self._release_kernel()
        for watch in watches:
            watch.socket._remove_watcher(self)

    def _leave_wait(self) -> None:
        """Give up what was kept for the wait.  Whoever comes later finds no waiter and gives it up himself."""
        if self._limbo:
            with self._lock:
                released, self._limbo = self._limbo, []
            del released
        if self._closed:
            self._waker = RETIRED

    # The short and the long way of a wait.

    def _wait_until(self, deadline: float | None, pairs: list[tuple[int, int]] | None = None) -> list[Event]:
        """The long way, until something is found, *deadline* has come or somebody asks for an end; *pairs*: the first
        reports of the kernel, if it was asked already.
        """
        next_look = 0.0
        while True:
            left = time_left(deadline)
            if pairs is None:
                pairs = self._kernel_wait(min(left, self._pause(next_look)))
            found = self._collect(pairs)
            pairs = None
            if self._looked and time.monotonic() >= next_look:
                found |= self._look_again()
                next_look = time.monotonic() + self._tick
                self._tick = min(self._tick * 2, LONGEST_TICK)
            self._check_usable()
            # A wake from here on is one of a wait that is about to end, or else seen by the next round.
            if self._take_wake() or found or not left:
                return list(found.items())

    def _pause(self, next_look: float) -> float:
        """How long the kernel may be waited for, with regard to the sockets that have to be looked at."""
        with self._lock:
            if not self._looked:
                return LONGEST_WAIT
            if any(watch.mode is Mode.NOW for watch in self._looked.values()):
                return 0.0
        return max(next_look - time.monotonic(), 0.0)

    def _take_wake(self) -> bool:
        """Whether somebody asked for an end of the wait."""
        with self._lock:
            woken, self._woken = self._woken, False
            return woken

    def _collect(self, pairs: list[tuple[int, int]]) -> dict[Socket, SocketEvent]:
        """What a batch of kernel reports means."""
        found: dict[Socket, SocketEvent] = {}
        for number, flags in pairs:
            if number == self._waker.number:
                self._waker.drain()
                continue
            answer = self._answers.get((number, flags))
            watch = self._watches.get(number)
            if answer is not None:
                found[answer[0]] = answer[1]
            elif watch is not None:
                events = self._judge(watch, flags)
                if events:
                    found[watch.socket] = EVENTS[events]
        return found

    def _look_again(self) -> dict[Socket, SocketEvent]:
        """Ask the sockets that the kernel does not watch."""
        with self._lock:
            looked = list(self._looked.values())
        found = [(watch.socket, self._judge(watch, look(watch.handle, EVERYTHING))) for watch in looked]
        return {socket: EVENTS[events] for socket, events in found if events}

    def _judge(self, watch: Watch, flags: int) -> int:
        """What *flags* mean for *watch*, and how to go on with it."""
        state = watch.socket._observe(flags)
        if state is None:  # closed meanwhile; its closer removes it
            return 0
        with self._lock:
            if self._watches.get(watch.number) is not watch:
                return 0
            found = state[0] & watch.wanted
            mode, mask = watch.mode, watch.mask
            watch.decide(flags, found, state[1], end_has_edge=self._end_has_edge)
            if (watch.mode, watch.mask) != (mode, mask):
                self._enter_mode_locked(watch, mode, mask)
            elif found and watch.mode is Mode.KERNEL:
                self._keep_answer_locked(watch, flags, found)
            return found

    # Helpers that need the lock.

    def _check_process(self) -> None:
        """To be asked before the lock is taken: in a forked child it may be held by a thread that is not there."""
        if self._generation != fork.generation:
            raise PollerClosedError("this poller belongs to the process that forked this one; make another")

    def _check_usable(self) -> None:
        if self._closed:
            raise PollerClosedError("the poller is closed")

    def _watch_of_locked(self, socket: Socket) -> Watch:
        self._check_usable()
        watch = self._watches.get(socket._handle.fileno())
        if watch is None or watch.socket is not socket:
            raise KeyError(socket)
        return watch

    def _enter_mode_locked(self, watch: Watch, old_mode: Mode, old_mask: int) -> None:
        """The watch is to be waited for in another way than before: tell the kernel, and the thread that waits."""
        asked = watch.mask if watch.mode is Mode.KERNEL else 0
        self._tell_kernel(watch.number, old_mask if old_mode is Mode.KERNEL else 0, asked)
        if watch.mode in (Mode.NOW, Mode.TICK):
            if watch.mode is not old_mode:
                self._tick = FIRST_TICK
            self._looked[watch.number] = watch
        else:
            self._looked.pop(watch.number, None)

    def _remove_locked(self, watch: Watch) -> None:
        del self._watches[watch.number]
        self._looked.pop(watch.number, None)
        self._forget_answers_locked(watch)
        if watch.mode is Mode.KERNEL:
            self._tell_kernel(watch.number, watch.mask, 0)
        # Before the look at _waiter: a wait that ends just now either sees the handle in limbo, or is seen to have
        # ended.
        self._limbo.append(watch.handle)
        if self._waiter is None:
            self._limbo.clear()
        else:
            self._waker.wake()

    def _keep_answer_locked(self, watch: Watch, flags: int, found: int) -> None:
        if POLL_TELLS_END and not flags & (ANY_HANG_UP | INVALID) and flags not in watch.answers:
            self._answers[watch.number, flags] = (watch.socket, EVENTS[found])
            watch.answers += (flags,)

    def _forget_answers_locked(self, watch: Watch) -> None:
        for flags in watch.answers:
            self._answers.pop((watch.number, flags), None)
        watch.answers = ()

    def _nudge_locked(self, watch: Watch) -> None:
        """Make the thread that waits see what has changed, where its kernel call does not see it by itself."""
        if self._waiter is not None and not (self._sees_changes and watch.mode in (Mode.KERNEL, Mode.NEVER)):
            self._waker.wake()

    # What a backend supplies.

    @abstractmethod
    def _tell_kernel(self, number: int, old: int, new: int) -> None:
        """Watch *number* for the flags *new* instead of *old*; 0: not at all.  Called under the lock."""

    @abstractmethod
    def _kernel_wait(self, seconds: float | None) -> list[tuple[int, int]]:
        """(number, flags) of what is ready, the waker included, after at most *seconds*.  Called without the lock."""

    @abstractmethod
    def _release_kernel(self) -> None:
        """Let go of the kernel's object; a call in flight holds it until it returns."""

    # What the sockets tell.

    def socket_closing(self, socket: Socket, handle: Handle) -> None:
        """Not for users: *socket* is being closed, its number is about to change meaning."""
        if self._generation != fork.generation:  # the kernel's set is the parent's: removing here would remove there
            return
        with self._lock:
            watch = self._watches.get(handle.fileno())
            if watch is not None and watch.socket is socket:
                self._woken = self._woken or self._waiter is not None
                self._remove_locked(watch)

    def socket_closed(self, socket: Socket) -> None:
        """Not for users: *socket* is closed; the wait was ended when it left."""

    def socket_changed(self, socket: Socket) -> None:
        """Not for users: what can come of *socket* has changed."""
        if self._generation == fork.generation:
            with self._lock:
                watch = self._watches.get(socket._handle.fileno())
                if watch is not None and watch.socket is socket:
                    self._forget_answers_locked(watch)

    def __enter__(self) -> Self:
        self._check_process()
        self._check_usable()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self._watches)} sockets"
        return f"<{type(self).__name__} {state}>"
