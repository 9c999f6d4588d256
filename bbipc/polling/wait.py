"""poll_socket and poll_sockets: wait once, in the calling thread.

Law of this file: no thread, nothing registered that outlives the call, no state between calls.  A wait costs one
system call when something is there already; only one that really waits makes a waker (3 us), through which a close in
another thread ends it also where it may not shut the connection down.  Out of descriptors it looks every 50 ms
instead.
"""

from __future__ import annotations

import select
from collections.abc import Iterable

from bbipc.errors import SocketClosedError
from bbipc.events import EVENTS, SocketEvent
from bbipc.polling.deadline import checked_timeout, deadline_after, milliseconds, time_left
from bbipc.polling.waker import Waker
from bbipc.polling.watch import FIRST_TICK, LONGEST_TICK, Mode, Watch, wanted_bits
from bbipc.readiness import EVERYTHING, READABLE, WRITABLE
from bbipc.sockets import fork
from bbipc.sockets.base import Socket
from bbipc.sockets.handle import POLL_TELLS_END, Handle, look, poll_mask

_Row = tuple[Socket, int]


def poll_socket(socket: Socket, events: SocketEvent, timeout: float | None) -> SocketEvent:
    """Wait until some of *events* are true of *socket*; those that are, empty when the time is up.

    *timeout*: seconds; 0 looks and returns, ``None`` waits without limit.  A wait for events of which none can come
    any more (data from a peer that has gone) ends at once, empty.  Any thread; blocks only the calling one.

    :raises SocketClosedError: it was closed, before or meanwhile, by any thread
    :raises ValueError: no events, events that this socket does not have, a negative or NaN timeout
    :raises TypeError: not a Socket, a SocketEvent, a number
    """
    wanted = wanted_bits(socket, events)
    if not wanted:
        raise ValueError("no events to wait for")
    limit = checked_timeout(timeout)
    found, possible = socket._state()
    found &= wanted
    if found or limit == 0 or not possible & wanted:
        return EVENTS[found]
    return EVENTS[_Wait([(socket, wanted)]).run(limit)[0]]


def glance(socket: Socket, events: SocketEvent) -> SocketEvent | None:
    """Those of *events* that are true now; empty: none can come any more; ``None``: none is, but one may come.

    Any thread; never blocks.

    :raises SocketClosedError: it was closed
    :raises ValueError: no events, or events that this socket does not have
    :raises TypeError: not a Socket, or not a SocketEvent
    """
    wanted = wanted_bits(socket, events)
    if not wanted:
        raise ValueError("no events to wait for")
    found, possible = socket._state()
    return EVENTS[found & wanted] if found & wanted or not possible & wanted else None


def poll_sockets(rows: Iterable[tuple[Socket, SocketEvent]], timeout: float | None) -> list[SocketEvent]:
    """Wait until some event of some row is true; what is true of each row, in their order.

    *timeout*: seconds; 0 looks and returns, ``None`` waits without limit.  All are empty when the time is up, or at
    once when in no row anything can come any more.  Any thread; blocks only the calling one.

    :raises SocketClosedError: one of them (``.socket``) was closed, before or meanwhile, by any thread
    :raises ValueError: a row without events or with events that its socket does not have, a negative or NaN timeout
    :raises TypeError: not Sockets, SocketEvents, a number
    """
    wanted = [(socket, wanted_bits(socket, events)) for socket, events in rows]
    if not all(events for _, events in wanted):
        raise ValueError("a row without events to wait for")
    limit = checked_timeout(timeout)
    states = [socket._state() for socket, _ in wanted]
    found = [state[0] & events for state, (_, events) in zip(states, wanted, strict=True)]
    hopeless = not any(state[1] & events for state, (_, events) in zip(states, wanted, strict=True))
    if not any(found) and limit != 0 and not hopeless:
        found = _Wait(wanted).run(limit)
    return [EVENTS[events] for events in found]


class _Wait:
    """One wait of one thread for some sockets; their Watcher for as long as it lasts."""

    def __init__(self, rows: list[_Row]) -> None:
        self._rows = rows
        self._generation = fork.generation
        self._watches: list[Watch] = []
        self._waker: Waker | None = None
        try:
            self._waker = Waker()
        except OSError:  # out of descriptors: the wait ticks instead, see _until
            pass

    def run(self, limit: float | None) -> list[int]:
        """What came of each row."""
        deadline = deadline_after(limit)
        try:
            for socket, wanted in self._rows:
                watch = Watch(socket, socket._add_watcher(self), wanted)
                watch.begin(end_has_edge=POLL_TELLS_END)
                self._watches.append(watch)
            return self._until(deadline)
        finally:
            for socket, _ in self._rows:
                socket._remove_watcher(self)
            self._waker = None  # this, too: an exception that somebody keeps must not keep numbers
            for watch in self._watches:
                watch.release()

    def _until(self, deadline: float | None) -> list[int]:
        tick = FIRST_TICK
        while True:
            left = time_left(deadline)
            modes = {watch.mode for watch in self._watches}
            pause = 0.0 if Mode.NOW in modes else min(left, tick) if Mode.TICK in modes else left
            if self._waker is None:
                pause = min(pause, LONGEST_TICK)
            told = _kernel_wait(self._watches, self._waker, pause)
            if self._waker is not None and self._waker.number in told:
                self._waker.drain()  # before the looks: a wake that comes after them ends the next pause
            found = [self._look(watch, told) for watch in self._watches]
            if any(found) or not left or all(watch.mode is Mode.NEVER for watch in self._watches):
                return found
            tick = min(tick * 2, LONGEST_TICK)

    def _look(self, watch: Watch, told: dict[int, int]) -> int:
        # What the kernel has just told covers all that is wanted.  Of what it was silent it may not have been asked.
        flags = told.get(watch.number) if watch.mode is Mode.KERNEL else None
        if flags is None:
            flags = look(watch.handle, EVERYTHING)
        state = watch.socket._observe(flags)
        if state is None:
            raise SocketClosedError(watch.socket)
        found = state[0] & watch.awaited
        watch.decide(flags, found, state[1], end_has_edge=POLL_TELLS_END)
        return found

    def socket_closing(self, socket: Socket, handle: Handle) -> None:
        """Nothing is registered under the number."""

    def socket_closed(self, socket: Socket) -> None:
        """Look again: the wait finds the socket closed and raises."""
        waker = self._waker
        if waker is not None and self._generation == fork.generation:  # in a child the waiter is not there
            waker.wake()

    def socket_changed(self, socket: Socket) -> None:
        """Look again."""
        self.socket_closed(socket)


def _kernel_wait(watches: list[Watch], waker: Waker | None, seconds: float) -> dict[int, int]:
    """Sleep until the kernel tells something of the watches in its charge, or the waker is woken; what it told."""
    masks = {} if waker is None else {waker.number: READABLE}
    for watch in watches:
        if watch.mode is Mode.KERNEL:  # a socket may stand in several rows
            masks[watch.number] = masks.get(watch.number, 0) | watch.mask
    if hasattr(select, "poll"):
        poll = select.poll()
        for number, mask in masks.items():
            poll.register(number, poll_mask(mask))
        return dict(poll.poll(milliseconds(seconds)))
    readers = [number for number, mask in masks.items() if mask & READABLE]
    writers = [number for number, mask in masks.items() if mask & WRITABLE]
    select.select(readers, writers, list(masks), seconds)  # Windows: the third set tells of a failed connect
    return {}  # it tells too little: every socket is looked at
