"""Standby: the poller thread's part in a conversation.

Law of this file: where calls are outstanding and no thread waits for any, the poller thread reads.  It has a monitor,
and takes the reader's role for one look at a time.  Where it finds the role taken it pauses, which costs a system call.
So it does not go on whenever the role is free for a moment (between two replies that one thread waits for), but when
nobody has read for some ``PATIENCE``: while it is paused and calls are outstanding, a timer looks after that.

Callbacks of futures are called on the poller thread, behind giving the role back; if there is none any more, by whoever
comes to that, behind it as well.  One timer a conversation looks after the futures whose time is up.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Final

from bbipc.events import SocketEvent
from bbipc.messages.frames import Decoder
from bbipc.sockets.base import Socket
from bbipc.sockets.stream import StreamSocket
from pool.calls import AnyCall, CallFuture, Role, Waiter, get_ident, main_thread
from pool.parties import Monitor
from pool.pending import IN_ORDER, Distrust
from pool.polling_loop import PollingLoop
from pool.replies import Reading, monotonic

#: seconds in which nobody has read, before the poller thread does
PATIENCE: Final = 0.002
#: reads at most of what a peer has said to whom nothing can be written: more than a kernel keeps, unless it talks on
HEARD_OUT: Final = 128

_READ: Final = SocketEvent.DATA_AVAILABLE | SocketEvent.REMOTE_DISCONNECTED
_READ_AND_WRITE: Final = _READ | SocketEvent.ROOM_TO_WRITE


class Standby(Reading):
    """Reading, with somebody who does it where nobody waits.

    *poller_thread*: gives the poller thread, at first need.
    """

    def __init__(
        self,
        stream: StreamSocket,
        decoder: Decoder,
        registry: dict[Reading, None],
        poller_thread: Callable[[], PollingLoop],
        *,
        first_tag: int = 0,
        spin: float = 0.0,
        alone: bool = False,
    ) -> None:
        self._poller_thread = poller_thread
        self._monitor: Monitor | None = None
        self._monitors: dict[int, Monitor] = {}  # the one
        self._mine = Role()
        self._armed = False
        self._kept: deque[bytes] = deque()  # what was just read, until it is dealt with
        self._main = main_thread().ident
        self._roomy = False  # the monitor asks for room to write, too
        self._watched = False
        self._reads = self._reads_seen = 0  # how often a thread has waited for a future
        self._reader_seen: Waiter | Role | None = None
        self._sweep_at: float | None = None
        self._sweeps: dict[float, Future[None]] = {}  # timers, each at its deadline
        self._called_back: deque[CallFuture] = deque()
        self._left_over = False  # callbacks are left to whoever reads: there is no poller thread
        super().__init__(stream, decoder, registry, first_tag=first_tag, spin=spin, alone=alone)

    # Any thread.

    def attend_to(self, future: CallFuture, timeout: float | None) -> None:
        """Read, or sleep while somebody else does, until *future* is over or *timeout* seconds have passed.

        Or its own time, of which the poller thread tells too late where it is in a callback.
        """
        waiter = Waiter()
        future.join(waiter)
        try:
            until, own = None if timeout is None else monotonic() + timeout, future.deadline
            last = own is not None and (until is None or own <= until)
            if last:
                until = own
            if until is not None and until <= monotonic():
                self.look(0.0)  # whoever polls is the one who reads; and what has come in time counts
            if not self.attend(waiter, until) and last:
                self._time_out(future)
        finally:
            self._reads += 1
            future.leave(waiter)

    def give_up(self, call: AnyCall) -> None:
        """Nobody wants the reply to *call* any more."""
        if self.outgoing.queue:
            self._take_back(call)
        if self.pending.remove(call):
            self._given_up()
        self._nudge()

    def call_back(self, future: CallFuture) -> None:
        """Have *future*'s callbacks called on the poller thread."""
        self._called_back.append(future)
        if self._role.get(0) is not self._mine:  # else he calls them when he has given it back
            self._call_back_soon()

    def _call_back_soon(self) -> None:
        try:
            soon = self._poller_thread().call_later(0, self._call_back)
        except (OSError, RuntimeError):
            self._call_back_here()
        else:
            soon.add_done_callback(self._not_called_back)

    def _call_back_here(self) -> None:
        """There is no poller thread any more."""
        reader = self._role.get(0)
        if reader is None or reader.thread != get_ident():
            self._call_back()
        else:  # no code of a user runs in the role
            self._left_over = True
            self.retire()  # behind which nobody leaves without a look at what is left to do

    def _leave(self, waiter: Waiter) -> None:
        super()._leave(waiter)
        if self._left_over:
            self._call_back()

    def _take_back(self, owner: object) -> None:
        """Let *owner*'s request not leave any more; what stood behind it may."""
        self.outgoing.drop(owner)
        if self.outgoing.error is not None:
            self._hear_out()
        elif self.outgoing.stuck:  # that was more than the kernel has room for: whoever reads is to wait for it, too
            self._wake_reader()
            self._attend()
        elif self._tellers:
            self._wake_reader()
        if self._crowd:
            self._tell_of_room()

    def _time_out(self, future: CallFuture) -> None:
        """Its time is up."""
        self.give_up(future)
        future.fail(TimeoutError("no reply came in time"))
        self._nudge()

    def _hear_out(self) -> None:
        """Nothing can be written any more: what the peer has said before is dealt out, then it is the end."""
        waiter = Waiter()
        try:
            if self._role.setdefault(0, waiter) is waiter:
                self._take_all_in()
            elif (vigil := self._vigil) is not None:
                vigil.wake()  # whoever reads, or is about to: he that had the role may have left it since
        finally:
            self._leave(waiter)

    def _take_all_in(self) -> None:
        for _ in range(HEARD_OUT):  # in a frame of its own, too
            if not self._take_in():
                return
        self.end(self.outgoing.error or ConnectionAbortedError(errno.ECONNABORTED, "it said too much"))

    def _given_up(self) -> None:
        """A reply may come that nobody waits for."""
        if self.pending.style == IN_ORDER:
            self.end(Distrust("a call to a peer that ignores tags was given up"))
        else:
            self._one_less()

    def _attend(self) -> None:
        if self.reason is not None or self._role:
            return
        if self.outgoing.error is not None and not self._end_guard:
            self._hear_out()  # whoever read before had looked already when somebody could not write, and was to do that
        elif self._monitor is None or self.outgoing.stuck:
            self._arm()
        elif not self._armed and not self._watched:
            self._watch_later()

    def _arm(self) -> None:
        """Let the poller thread read from now on."""
        while True:
            self._roomy = roomy = self.outgoing.stuck
            self._armed = True
            try:
                self._ask_for(_READ_AND_WRITE if roomy else _READ)
            except (OSError, RuntimeError) as error:
                return self.end(error)
            # Another thread may have asked for something else meanwhile, and nobody knows who was heard last.
            if self.reason is not None or (self._roomy is roomy and (roomy or not self.outgoing.stuck)):
                return None

    def _ask_for(self, events: SocketEvent) -> None:
        if self._monitor is None:
            made = self._poller_thread().monitor(self._stream, events, self._on_event, on_close=self.end)
            self._monitor = kept = self._monitors.setdefault(0, made)
            if kept is made:
                return
            made.cancel()  # several came to that at once: a second one would never be paused
        self._monitor.set_events(events)

    def _watch_later(self) -> None:
        self._watched = True
        self._call_later(PATIENCE, self._watch)

    def _sweep_later(self, deadline: float) -> None:
        self._sweep_at = deadline
        if deadline not in self._sweeps:
            timer = self._call_later(max(deadline - monotonic(), 0.0), partial(self._sweep, deadline))
            if timer is not None:
                self._sweeps[deadline] = timer
                if self.reason is not None:  # whoever ended this may have looked before it was in the table
                    timer.cancel()
                if timer.done():  # it ran before it was in the table, so it could not take itself out
                    self._sweeps.pop(deadline, None)

    def _call_later(self, delay: float, action: Callable[[], None]) -> Future[None] | None:
        try:
            return self._poller_thread().call_later(delay, action)
        except (OSError, RuntimeError) as error:
            self.end(error)
            return None

    def _end(self, reason: Exception) -> None:
        super()._end(reason)
        for deadline in list(self._sweeps):
            timer = self._sweeps.pop(deadline, None)
            if timer is not None:  # which would keep this until then
                timer.cancel()

    # The poller thread.

    def _watch(self) -> None:
        """A while has passed: has nobody read?"""
        self._watched = False
        if not self.table or self.reason is not None or self._armed:
            return
        reader = self._role.get(0)
        if reader is not None or self._reads != self._reads_seen:
            self._reads_seen = self._reads
            if reader is None or reader is not self._reader_seen:  # the same one for long: he passes on when he leaves
                self._watch_later()
        else:
            self._arm()
        self._reader_seen = reader

    def _sweep(self, deadline: float) -> None:
        """Let those fail whose time is up."""
        self._sweeps.pop(deadline, None)
        self._sweep_at = None
        now, following = monotonic(), None
        for call in list(self.table.values()):
            if not isinstance(call, CallFuture) or (until := call.deadline) is None:
                continue
            if until <= now:
                self._time_out(call)
            elif following is None or until < following:
                following = until
        if following is not None:
            self._sweep_later(following)

    def _on_event(self, socket: Socket, events: SocketEvent) -> None:
        """Something has come."""
        role, mine = self._role, self._mine
        mine.thread = get_ident()
        if role.setdefault(0, mine) is not mine:
            if self._monitor is not None:
                self._monitor.pause()
            self._armed = False  # behind the pause: whoever arms it says so first, and does it afterwards
            if not role:
                self._pass_on()
            return
        try:
            self._turn()
        finally:
            del role[0]
            if self._sleepers:
                self._pass_on()
            elif self.outgoing.error is not None or (self.outgoing.stuck and not self._roomy):  # since he has looked
                self._attend()
            self._call_back()

    def _turn(self) -> None:
        if self._vigil is None and self._connected(0) is None:
            return
        if self.outgoing.stuck:
            self._flush()
        if self._roomy and not self.outgoing.stuck:
            self._arm()
        self._take_in()

    def _not_called_back(self, soon: Future[None]) -> None:
        """The poller thread was closed before it came to that."""
        if soon.cancelled() or soon.exception() is not None:
            self._call_back_here()

    def _call_back(self) -> None:
        while True:
            try:
                future = self._called_back.popleft()
            except IndexError:
                return
            try:
                future.call_back()
            except BaseException:  # SystemExit, say: it ends what this thread is doing, and not what others wait for
                if self._called_back:
                    self._call_back_soon()
                raise
