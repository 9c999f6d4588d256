"""Dispatch: what the poller has told is dealt out to who waits for it.

Law of this file: everything runs on the poller thread, with no lock held.  It is where user code is called, so it is
where nothing that user code raises gets any further, and where it is seen how long user code takes.
"""

from __future__ import annotations

import itertools
import logging
import operator
import time
from collections.abc import Callable, Iterator
from typing import Final

from bbipc.errors import SocketClosedError
from bbipc.events import SocketEvent
from bbipc.sockets.base import Socket
from pool import reports
from pool.interests import Interests, Party
from pool.parties import Monitor, Wait

#: seconds that user code may take on the poller thread before it is reported: everybody else waits meanwhile
SLOW: Final = 0.1

#: a monitor was reported to be slow: together with others, of which it may have been another one; alone
AMONG_OTHERS: Final = 1
ALONE: Final = 2

#: so many turns are timed one by one after a slow one, and so many callbacks named for it
TIMED_TURNS: Final = 1000
MOST_NAMED: Final = 5

logger = logging.getLogger(__name__)

#: what a poller's wait gives
Batch = list[tuple[Socket, SocketEvent]]


class Dispatcher:
    """Deals out to the parties of *table*; *where*: the thread, for the log."""

    def __init__(self, table: Interests, where: str) -> None:
        self._table = table
        self._where = where
        self._timed_turns = 0  # so many are still to be timed one by one

    def serve(self, batch: Batch) -> None:
        """Deal out *batch*, which was waited for since the last refresh of the table."""
        if self._timed_turns:
            self._timed_turns -= 1
            for event in batch:
                self._serve_by_the_clock([event])
        else:
            self._serve_by_the_clock(batch)

    def _serve_by_the_clock(self, batch: Batch) -> None:
        started = time.monotonic()
        self._serve(batch)
        spent = time.monotonic() - started
        if spent > SLOW and batch:  # without events it was the processor that was elsewhere
            self.guarded(self._report_slow, batch, spent)

    def _serve(self, batch: Batch) -> None:
        events = iter(batch)
        while True:
            try:
                return self._serve_all(events)
            except BaseException as error:  # noqa: BLE001 # whatever user code raises, it ends nothing
                socket = batch[len(batch) - operator.length_hint(events) - 1][0]
                self._report_failure(next(iter(self._table.parties_of(socket)), None), error)

    def _serve_all(self, events: Iterator[tuple[Socket, SocketEvent]]) -> None:
        direct = self._table.direct
        for socket, found in events:
            callback = direct.get(socket)
            if callback is not None:
                callback(socket, found)
            else:
                self._deal_out(socket, found.value)

    def _deal_out(self, socket: Socket, events: int) -> None:
        """The long way: several parties, or a wait, or events that were told before something was changed."""
        wanted = False
        for party in self._table.parties_of(socket):
            found = events & party.wanted
            if found and not socket.closed and party in self._table.parties_of(socket):
                wanted = True
                self.guarded(party.tell, socket, found, party=party)
        if not wanted and not socket.closed:
            self._table.arm_anew(socket)

    def look_at(self, socket: Socket) -> None:
        """*socket* was closed, or shut, or connected."""
        if socket.closed:
            for party in self._table.take(socket):
                self.clocked(party.end, SocketClosedError(socket))
            return
        for party in self._table.parties_of(socket):
            if isinstance(party, Wait):
                self.clocked(party.look_again)

    def guarded(self, action: Callable[..., object], *args: object, party: Party | None = None) -> None:
        """User code may be behind *action*."""
        try:
            action(*args)
        except BaseException as error:  # noqa: BLE001 # as in _serve
            self._report_failure(party, error, _behind(action))

    def clocked(self, action: Callable[..., object], *args: object) -> None:
        """The same, and it is seen how long it takes: for a timer, a close, and whatever else comes seldom."""
        started = time.monotonic()
        self.guarded(action, *args)
        spent = time.monotonic() - started
        if spent > SLOW:
            reports.slowness(logger, _behind(action), self._where, spent)

    def _report_slow(self, batch: Batch, spent: float) -> None:
        """Everybody else has waited meanwhile.  A clock a callback would cost 3 % of a small echo, so of several it is
        not known who it was.  They are named once, unless one of them is known to be slow, and the next turns are timed
        one by one: there each monitor is named once more, alone.
        """
        self._timed_turns = TIMED_TURNS
        monitors = [[one for one in self._table.parties_of(socket) if isinstance(one, Monitor)] for socket, _ in batch]
        suspicion = ALONE if len(batch) == 1 else AMONG_OTHERS
        known = [min((monitor.suspicion for monitor in of_one), default=0) for of_one in monitors]
        if max(known) == ALONE or min(known) >= suspicion:
            return
        suspects: dict[int, Callable[..., object]] = {}  # by id(): a callback need not be hashable
        for monitor in itertools.chain(*monitors):
            monitor.suspicion = max(suspicion, monitor.suspicion)
            suspects[id(monitor.callback)] = monitor.callback
        named: list[object] = [*suspects.values()] or [socket for socket, _ in batch]
        reports.slowness(logger, named[:MOST_NAMED], self._where, spent, one_of=suspicion == AMONG_OTHERS)

    def _report_failure(self, party: Party | None, error: BaseException, what: object = "a callback") -> None:
        if isinstance(party, Monitor):
            party.failures += 1
            reports.failure(logger, party.failures, party.callback, self._where, error)
        else:
            reports.failure(logger, 1, what, self._where, error)


def _behind(action: Callable[..., object]) -> object:
    """What a user knows of *action*."""
    inner = getattr(action, "func", action)  # of a partial
    owner: object = getattr(inner, "__self__", inner)
    return owner.on_close or owner if isinstance(owner, Monitor) else owner
