"""Interests: who waits for which socket, and for what.

Law of this file: no thread, no user code, no future.  Any thread may call anything.  The lock of the table is taken
before a poller's, and that before a socket's; nothing is called under it but the poller.

A poller monitors a socket once, for one set of events.  Here several *parties* may wait for the same socket: one-shot
waits, and monitors.  The poller is asked for the union of what they want.  A party that has been taken out of the
table is told nothing any more, and exactly one caller takes it out: he settles what it stands for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Final

from bbipc.errors import PollerClosedError, SocketClosedError
from bbipc.events import EVENTS, SocketEvent
from bbipc.polling.poller import Poller
from bbipc.sockets import fork
from bbipc.sockets.base import Socket
from bbipc.sockets.locks import make_rlock

#: what is called with a socket and the events that have come
Callback = Callable[[Socket, SocketEvent], object]


#: the poller does not monitor the socket; nobody knows whether it does
ABSENT: Final = -1
UNKNOWN: Final = -2


class Party:
    """One who waits for a socket.

    ``wanted``: bits of the events that it waits for now, 0: none; guarded by the lock of the table.  ``direct``: called
    with the events as they are where this is the only party of its socket; ``None``: call :meth:`tell`.
    """

    __slots__ = ("wanted", "direct")

    def __init__(self, wanted: int, direct: Callback | None = None) -> None:
        self.wanted = wanted
        self.direct = direct

    def tell(self, socket: Socket, events: int) -> None:
        """Some of ``wanted`` have come.  Called on the poller thread, with no lock held."""
        raise AssertionError("every kind of party has its own")

    def end(self, error: Exception) -> None:
        """Nothing will come any more: the socket, or the poller, is closed.  Called by who has taken it out."""
        raise AssertionError("every kind of party has its own")


class Interest:
    """All parties of one socket."""

    __slots__ = ("socket", "parties", "asked")

    def __init__(self, socket: Socket) -> None:
        self.socket = socket
        self.parties: tuple[Party, ...] = ()
        self.asked = ABSENT  # what the poller was asked for


class Interests:
    """The table of one poller thread.

    ``direct``: sockets with one party, a monitor that is not paused, and its callback: the short cut of the poller
    thread, which reads it without the lock.  Whatever is changed for a socket takes it out of there; it comes back with
    :meth:`refresh`, before the next wait.  So the short cut is right for all events of a batch, however many callbacks
    and other threads change something while it is dealt out.
    """

    def __init__(self) -> None:
        self.lock = make_rlock()
        self.poller: Poller | None = None  # written once, before anybody joins
        self.direct: dict[Socket, Callback] = {}
        self.changed: set[Socket] = set()
        self._table: dict[Socket, Interest] = {}
        self._generation = fork.generation

    def __len__(self) -> int:
        return len(self._table)

    def parties_of(self, socket: Socket | None) -> tuple[Party, ...]:
        """Who waits for *socket* just now."""
        interest = self._table.get(socket) if socket is not None else None
        return () if interest is None else interest.parties

    def refresh(self) -> None:
        """The poller thread is about to wait: what comes of that was asked for as the table is now."""
        with self.lock:
            while self.changed:
                socket = self.changed.pop()
                parties = self.parties_of(socket)
                if len(parties) == 1 and parties[0].wanted and parties[0].direct is not None and not socket.closed:
                    self.direct[socket] = parties[0].direct

    def join(self, socket: Socket, party: Party) -> None:
        """From here on *party* is told.

        :raises SocketClosedError: the socket was closed
        :raises PollerClosedError: the poller was closed
        :raises OSError: the kernel has no room for it
        """
        with self.lock:
            try:
                interest = self._table.get(socket)
                if interest is None:
                    interest = self._table[socket] = Interest(socket)
                interest.parties += (party,)
                self._arm_locked(interest)
            except KeyError:  # it has left the poller: it was closed
                self.leave(socket, party)
                raise SocketClosedError(socket) from None
            except BaseException:
                self.leave(socket, party)
                raise

    def leave(self, socket: Socket, party: Party) -> bool:
        """*party* is to be told nothing more; False: it was out of the table already.

        It leaves whatever the kernel says: if it cannot be asked for less, it is asked for too much, and what comes is
        not dealt out.
        """
        if self._generation != fork.generation:  # its lock may be held for ever, by a thread that is not here
            return False
        with self.lock:
            interest = self._table.get(socket)
            if interest is None or party not in interest.parties:
                return False
            self.direct.pop(socket, None)  # first of all: whatever interrupts this, nobody is called any more
            interest.parties = _without(interest.parties, party)
            try:
                self._arm_as_possible_locked(interest)
            except BaseException:  # Ctrl-C in the middle: a step may be taken twice, none may be left out
                self._arm_as_possible_locked(interest)
                raise
            return True

    def arm_anew(self, socket: Socket) -> None:
        """Events of *socket* were told that nobody wants: let the poller know once more.

        A Ctrl-C between what the table says and what the poller was told can leave the two apart, and so can a kernel
        that has no room.  Nobody would notice but the poller thread, which would be told again and again.
        """
        with self.lock:
            interest = self._table.get(socket)
            if interest is None:
                interest = Interest(socket)
            interest.asked = UNKNOWN
            self._arm_as_possible_locked(interest)

    def change(self, socket: Socket, party: Party, wanted: int) -> None:
        """*party* waits for other events from now on; nothing happens if it is out of the table."""
        if self._generation != fork.generation:
            return
        with self.lock:
            interest = self._table.get(socket)
            if interest is None or party not in interest.parties:
                return
            before, party.wanted = party.wanted, wanted
            try:
                self._arm_locked(interest)
            except (KeyError, SocketClosedError, PollerClosedError):
                pass  # closed: the parties are told by the closer
            except BaseException:
                party.wanted = before
                raise

    def take(self, socket: Socket) -> tuple[Party, ...]:
        """Take out all who wait for *socket*."""
        with self.lock:
            self.direct.pop(socket, None)
            self.changed.discard(socket)
            interest = self._table.pop(socket, None)
            if interest is None:
                return ()
            parties, interest.parties = interest.parties, ()
            return parties

    def take_all(self) -> list[Party]:
        """Take out everybody."""
        with self.lock:
            return [party for socket in list(self._table) for party in self.take(socket)]

    def _arm_as_possible_locked(self, interest: Interest) -> None:
        # KeyError, SocketClosedError: the socket was closed, and has left the poller; the closer tells its parties.
        with contextlib.suppress(KeyError, OSError, PollerClosedError):
            self._arm_locked(interest)

    def _arm_locked(self, interest: Interest) -> None:
        """Let the poller, and the short cut, know what is wanted of a socket now.

        :raises KeyError: the socket was closed, and has left the poller
        """
        socket = interest.socket
        while True:
            parties = interest.parties
            wanted = _union(parties)
            self.direct.pop(socket, None)
            self.changed.add(socket)
            if parties or interest.asked != ABSENT:
                self._ask_poller_locked(interest, wanted)
            if interest.parties is parties and _union(parties) == wanted:  # else a signal handler has been here
                break
        if not parties:
            self._table.pop(socket, None)
            self.changed.discard(socket)  # nothing is kept of a socket that nobody waits for

    def _ask_poller_locked(self, interest: Interest, wanted: int) -> None:
        assert self.poller is not None, "the thread has not been started"
        socket, asked = interest.socket, interest.asked
        if asked == (wanted if interest.parties else ABSENT):
            return
        interest.asked = UNKNOWN  # a Ctrl-C may come before or after the poller has done it
        try:
            if not interest.parties:
                self.poller.unmonitor_socket(socket)
            else:
                self._ask_for_locked(socket, wanted, known=asked != ABSENT, unsure=asked == UNKNOWN)
        except (OSError, PollerClosedError):
            interest.asked = asked  # the poller does all of it or nothing
            raise
        except KeyError:  # it has left the poller: it was closed
            interest.asked = asked if interest.parties else ABSENT
            if interest.parties:
                raise
        else:
            interest.asked = wanted if interest.parties else ABSENT

    def _ask_for_locked(self, socket: Socket, wanted: int, *, known: bool, unsure: bool) -> None:
        """*known*: the poller has *socket* already; *unsure*: perhaps it has not."""
        assert self.poller is not None, "the thread has not been started"
        if known:
            try:
                return self.poller.set_monitored_events(socket, EVENTS[wanted])
            except KeyError:
                if not unsure:
                    raise
        try:
            self.poller.monitor_socket(socket, EVENTS[wanted])
        except ValueError:  # a signal handler has been here
            self.poller.set_monitored_events(socket, EVENTS[wanted])


def _union(parties: tuple[Party, ...]) -> int:
    wanted = 0
    for party in parties:
        wanted |= party.wanted
    return wanted


# Not in the frame that holds the lock: on CPython 3.12 and 3.13 a Ctrl-C at the jump back of a ``while``, or where the
# filter of a loop or a comprehension says no, is raised past the frame's own handlers, ``with`` among them (that jump
# has no entry in their table).
def _without(parties: tuple[Party, ...], party: Party) -> tuple[Party, ...]:
    return tuple([other for other in parties if other is not party])
