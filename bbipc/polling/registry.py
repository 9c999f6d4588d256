"""Registry: which sockets a poller monitors, for what, and how the kernel is asked for it.

Law of this file: every method may be called by any thread at any time, also while one waits for events, and takes
effect at once.  And an event is reported for the socket that was registered, never for another that was given its
number:

- A registration holds the socket's handle, so its number cannot be anybody else's while it stands.
- Closing a socket removes its registration before its number changes meaning (``socket_closing``).
- A number that leaves the table while a thread waits is a *ghost* until that wait asks the kernel again.  A report
  for a ghost may be of the socket that left or of one that was given its number since, so it is dropped: if it was of
  the new one, the kernel, being level-triggered, makes it again.  (Holding the number back instead would pin as many
  as other threads close while the waiter sleeps.)

Who guards what: all fields belong to ``_lock``; a helper whose name ends in ``_locked`` needs it.  The order is: a
poller's lock, then a socket's, which waits for nothing further.  So a signal handler or a finalizer may close a
socket while its own thread is in here: it gets the socket's lock, and finds this one re-entrant.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import ClassVar

from bbipc.errors import PollerClosedError, SocketClosedError
from bbipc.events import EVENTS, SocketEvent
from bbipc.polling.waker import Waker
from bbipc.polling.watch import FIRST_TICK, UNKNOWN, Mode, Watch, wanted_bits
from bbipc.readiness import ANY_HANG_UP, INVALID, READ_HUNG_UP
from bbipc.sockets import fork
from bbipc.sockets.base import Socket
from bbipc.sockets.handle import POLL_TELLS_END, Handle
from bbipc.sockets.locks import make_rlock

Event = tuple[Socket, SocketEvent]


class Registry(ABC):
    """The registrations of one poller; :class:`Poller` adds the wait."""

    #: the kernel call has a flag for the peer's end alone
    _end_has_edge: ClassVar[bool] = POLL_TELLS_END
    #: a change of the kernel's set takes effect during a wait
    _sees_changes: ClassVar[bool] = False

    def __init__(self) -> None:
        self._lock = make_rlock()
        self._waker = Waker()
        self._watches: dict[int, Watch] = {}
        self._looked: dict[int, Watch] = {}  # those in mode NOW or TICK
        self._answers: dict[tuple[int, int], Event] = {}  # see poller.py
        self._ghosts: set[int] = set()
        self._waiter: object = None  # a token of the call that waits
        self._wakes: deque[None] = deque()  # not empty: the wait is to end.  Needs no lock, see Poller.wake
        #: called when a monitored socket was closed, or what can come of it has changed (connected, shut down): in the
        #: thread that did it, which may be a signal handler and hold any lock.  It must not wait, nor raise
        self.on_change: Callable[[Socket], None] | None = None
        self._closed = False
        self._tick = FIRST_TICK
        self._generation = fork.generation

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
        with self._lock:
            self._check_usable()
            if socket.fileno() in self._watches:
                raise ValueError(f"{socket!r} is monitored already")
            watch = Watch(socket, socket._add_watcher(self), wanted)
            # Into the table before into the kernel: a signal handler that closes the socket in between finds it
            # there.
            self._watches[watch.number] = watch
            try:
                watch.begin(end_has_edge=self._end_has_edge)
                self._enter_mode_locked(watch)
                stands = self._stands_locked(watch)
            except BaseException:
                self._withdraw_locked(watch)
                raise
            if not stands:
                self._withdraw_locked(watch)
                raise SocketClosedError(socket)
            self._nudge_locked(watch)

    def unmonitor_socket(self, socket: Socket) -> None:
        """Report nothing of *socket* any more.  Any thread.

        :raises KeyError: it is not monitored (closing a socket ends its monitoring)
        :raises PollerClosedError: the poller was closed
        """
        self._check_process()
        with self._lock:
            watch = self._watch_of_locked(socket)
            try:
                self._remove_locked(watch)
            except BaseException:  # Ctrl-C in the middle: a step may be taken twice, none may be left out
                self._remove_locked(watch)
                raise
            finally:
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
        :raises OSError: the kernel has no room for it; the same call may be made again
        """
        wanted = wanted_bits(socket, events)
        self._check_process()
        with self._lock:
            watch = self._watch_of_locked(socket)
            before = watch.wanted
            try:
                self._want_locked(watch, wanted)
            except BaseException:  # the kernel has no room, or a Ctrl-C: all or nothing
                self._want_locked(watch, before)
                raise
            if not self._stands_locked(watch):
                raise KeyError(socket)
            self._nudge_locked(watch)

    def monitored_sockets(self) -> tuple[Socket, ...]:
        """All monitored sockets, in the order in which they came.  Any thread.

        :raises PollerClosedError: the poller was closed
        """
        self._check_process()
        with self._lock:
            self._check_usable()
            return tuple([watch.socket for watch in tuple(self._watches.values())])

    # Helpers.

    def _check_process(self) -> None:
        """To be asked before the lock is taken: in a forked child it may be held by a thread that is not there."""
        if self._generation != fork.generation:
            raise PollerClosedError("this poller belongs to the process that forked this one; make another")

    def _check_usable(self) -> None:
        if self._closed:
            raise PollerClosedError("the poller is closed")

    def _watch_of_locked(self, socket: Socket) -> Watch:
        self._check_usable()
        if not isinstance(socket, Socket):
            raise TypeError(f"a Socket is required, not {type(socket).__name__}")
        watch = self._watches.get(socket._handle.fileno())
        if watch is None or watch.socket is not socket:
            raise KeyError(socket)
        return watch

    def _want_locked(self, watch: Watch, wanted: int) -> None:
        self._forget_answers_locked(watch)
        if self._waiter is not None and watch.told and not watch.told & READ_HUNG_UP:
            # A report on the way was made without the flag for the end, and now may be asked about it.
            self._ghosts.add(watch.number)
        watch.want(wanted)
        watch.begin(end_has_edge=self._end_has_edge)
        self._enter_mode_locked(watch)

    def _enter_mode_locked(self, watch: Watch) -> None:
        """The watch is to be waited for as it says: let the kernel know what it has not been told yet."""
        if watch.mode in (Mode.NOW, Mode.TICK):
            if watch.number not in self._looked:
                self._tick = FIRST_TICK
            self._looked[watch.number] = watch
        else:
            self._looked.pop(watch.number, None)
        asked = watch.mask if watch.mode is Mode.KERNEL else 0
        if asked == watch.told:
            return
        # Noted before the call: a signal handler may come right behind it, and remove the watch.
        old, watch.told = watch.told, asked
        try:
            self._tell_kernel(watch.number, old, asked)
        except BaseException as error:
            watch.told = UNKNOWN
            if not (isinstance(error, OSError) and watch.socket.closed):  # closed by a handler, see _stands_locked
                raise

    def _enter_or_tick_locked(self, watch: Watch) -> None:
        """The same where there is nobody to be told that the kernel has no room: look at it in ticks instead."""
        try:
            self._enter_mode_locked(watch)
        except OSError:
            watch.mode = Mode.TICK
            self._looked[watch.number] = watch

    def _stands_locked(self, watch: Watch) -> bool:
        """Whether *watch* still stands after a change; if not, every trace of it is removed.

        The lock keeps other threads out, but not a signal handler of this very thread.  It may close the socket
        between any two lines of a change, and what is written after that would outlive the registration.  And a
        closer in another thread has marked the socket before he comes here: then his work is done for him.
        """
        if self._watches.get(watch.number) is watch and watch.socket._handle is watch.handle:
            return True
        watch.told = watch.mask  # whatever was written after a handler's close is to be taken back
        self._end_wait_locked()
        self._remove_locked(watch)
        return False

    def _end_wait_locked(self) -> None:
        if self._waiter is not None:
            self._wakes.append(None)

    def _withdraw_locked(self, watch: Watch) -> None:
        """Undo a registration."""
        self._erase_locked(watch)
        watch.socket._remove_watcher(self)
        watch.release()

    def _erase_locked(self, watch: Watch) -> None:
        """From the kernel first: a signal handler that closes the socket in between must find what it has to undo."""
        if watch.told:
            with contextlib.suppress(OSError):  # it may have left the kernel's set, or never have come into it
                self._tell_kernel(watch.number, watch.told, 0)
            watch.told = 0
        if self._watches.get(watch.number) is watch:
            del self._watches[watch.number]
        self._looked.pop(watch.number, None)
        self._forget_answers_locked(watch)

    def _remove_locked(self, watch: Watch) -> None:
        if self._waiter is not None:
            self._ghosts.add(watch.number)
        self._erase_locked(watch)
        if self._waiter is not None and (self._wakes or not self._sees_changes):
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

    @abstractmethod
    def _tell_kernel(self, number: int, old: int, new: int) -> None:
        """Watch *number* for the flags *new* (0: not at all) instead of *old* (or UNKNOWN).  Called under the lock."""

    # What the sockets tell.

    def socket_closing(self, socket: Socket, handle: Handle) -> None:
        """Not for users: *socket* is being closed, its number is about to change meaning."""
        if self._generation != fork.generation:  # the kernel's set is the parent's: removing here would remove there
            return
        with self._lock:
            watch = self._watches.get(handle.fileno())
            if watch is not None and watch.socket is socket:
                self._end_wait_locked()
                self._remove_locked(watch)

    def socket_closed(self, socket: Socket) -> None:
        """Not for users: *socket* is closed; the wait was ended when it left."""
        self._pass_on(socket)

    def socket_changed(self, socket: Socket) -> None:
        """Not for users: what can come of *socket* has changed."""
        if self._generation == fork.generation:
            with self._lock:
                watch = self._watches.get(socket._handle.fileno())
                if watch is not None and watch.socket is socket:
                    watch.changes += 1
                    self._forget_answers_locked(watch)
                    watch.begin(end_has_edge=self._end_has_edge)
                    self._enter_or_tick_locked(watch)
                    if self._stands_locked(watch):
                        self._nudge_locked(watch)
            self._pass_on(socket)

    def _pass_on(self, socket: Socket) -> None:
        if self.on_change is not None and self._generation == fork.generation:
            self.on_change(socket)
