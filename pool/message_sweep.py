"""Sweep: the deadlines of a server's connections, looked after by one timer.

Law of this file: it runs on the poller thread, reads plain facts of the connections, and decides; it sends and closes
nothing itself.  Any thread may have a connection watched.

No timer a message.  A connection is *watched* while it has something that may take too long: a message that has not
come in full, replies that the kernel has no room for, a peer that was told to go (or any time, with *idle_timeout*).
While somebody is watched the timer comes round every ``interval``, at most a quarter of the shortest deadline.  A
deadline counts from the first time that it is seen to run, so nobody is cut too early.

While the memory for incomplete messages is full (``unverified.py``), who has a part in it is cut as soon as he does not
deliver; what waits in the kernel counts as delivered, as he may not be read just then.

Nobody is cut for our own slowness.  The clock goes on by two intervals at most, however late the timer comes; the time
does not count in which a connection is not read; and a connection with unread bytes is looked at again, not cut.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from typing import Final, Literal, Protocol, TypeAlias

from bbipc.errors import PollerClosedError, SocketError
from bbipc.messages.frames import HEADER_SIZE
from bbipc.sockets.stream import StreamSocket
from pool import reports
from pool.message_limits import LINGER_TIME, Limits
from pool.polling_loop import PollingLoop
from pool.requests import Peer

#: seconds between two rounds, at most
LONGEST_INTERVAL: Final = 0.25
#: for which of its deadlines a connection is cut
Cut: TypeAlias = Literal["header", "body", "idle", "stall", "memory", "lingering"]
#: while the memory for incomplete messages is full, who has a part in it has to deliver so many bytes in that time
PRESSING: Final = 8192
PRESSING_TIME: Final = 0.5

logger = logging.getLogger(__name__)


class Swept(Protocol):
    """A connection, as far as it is seen here."""

    stream: StreamSocket
    peer: Peer
    watched: bool
    counted: bool
    requests: int
    replies: int
    sent: int
    part: int
    blocked: bool
    lingering: bool
    holds: int
    unasked: bool

    def ask(self) -> object:
        """Tell the monitor once more what is wanted, as it could not be told."""

    def being_read(self) -> bool:
        """Whether somebody may have read bytes that ``part`` does not count yet."""
        ...

    def busy(self) -> bool:
        """Whether requests are in flight, or wait."""
        ...

    def has_to_deliver(self) -> bool:
        """Whether the memory for incomplete messages is full, and it has a part in that."""
        ...

    def missing(self) -> int:
        """How many bytes are missing of the message that has not come in full."""
        ...

    def cut(self) -> object:
        """Close it now."""


class _Unchanged:
    """For how long something has been what it is."""

    __slots__ = ("_what", "_since")

    def __init__(self) -> None:
        self._what: object = None
        self._since = 0.0

    def seconds(self, what: object, now: float) -> float:
        """*what* it is at the time *now*; ``None``: nothing that counts."""
        if what is None or what != self._what:
            self._what, self._since = what, now
        return now - self._since

    def restart(self, now: float) -> None:
        """Let the time begin anew."""
        self._since = now


class _Watch:
    """What is remembered of one connection from round to round."""

    __slots__ = ("header", "body", "idle", "stall", "lingering", "pressed", "base", "pressed_base")

    def __init__(self) -> None:
        self.header = _Unchanged()
        self.body = _Unchanged()
        self.idle = _Unchanged()
        self.stall = _Unchanged()
        self.lingering = _Unchanged()
        self.pressed = _Unchanged()
        self.base = 0  # bytes of the body when its time began
        self.pressed_base = 0  # the same of the time while it is pressed


class Sweep:
    """The sweep of one server.  *cut*: called for a connection that took too long."""

    def __init__(self, limits: Limits, cut: Callable[[Swept, Cut], object]) -> None:
        self.interval = min([LONGEST_INTERVAL, *(seconds / 4 for seconds in limits.timeouts())])
        self._limits = limits
        self._cut = cut
        self._loop: PollingLoop | None = None
        self._watched: dict[Swept, _Watch] = {}
        self._resting = [None]  # taken by who starts the timer
        self._clock = 0.0  # these two are the poller thread's, or belong to who starts the timer
        self._last = 0.0

    def begin(self, loop: PollingLoop) -> None:
        """From here on connections may be watched, on the thread of *loop*."""
        self._loop = loop

    def watch(self, client: Swept) -> None:
        """*client* has something that may take too long.  Any thread."""
        client.watched = True
        self._watched.setdefault(client, _Watch())
        self._start()

    def forget(self, client: Swept) -> None:
        """*client* is closed."""
        self._watched.pop(client, None)

    def _start(self) -> None:
        try:
            self._resting.pop()
        except IndexError:
            return
        try:
            self._last = time.monotonic()
            self._again()
        except BaseException:  # a Ctrl-C, or no memory: the next one starts it
            self._resting.append(None)
            raise

    def _again(self) -> None:
        assert self._loop is not None, "the server has not been started"
        with contextlib.suppress(PollerClosedError):  # the server ends
            self._loop.call_later(self.interval, self._round)

    # The poller thread.

    def _round(self) -> None:
        try:
            now = time.monotonic()
            self._clock += min(now - self._last, 2 * self.interval)
            self._last = now
            for client, watch in list(self._watched.items()):
                self._look(client, watch)
        except BaseException as error:  # noqa: BLE001 # a future nobody looks at would swallow it
            reports.failure(logger, 1, self._round, "the poller thread", error)
        finally:
            if self._watched:
                self._again()
            else:
                self._resting.append(None)
                if self._watched:  # since a moment ago
                    self._start()

    def _look(self, client: Swept, watch: _Watch) -> None:
        if not self._has_something(client):
            client.watched = False
            self._watched.pop(client, None)
            if self._has_something(client):  # since a moment ago; its thread may have seen it watched
                self.watch(client)
            return
        if client.unasked:
            client.ask()
        why = self._judge(client, watch, self._clock)
        if why is not None:
            self._cut(client, why)

    def _has_something(self, client: Swept) -> bool:
        something = client.part or client.blocked or client.lingering or client.unasked
        something = something or self._limits.idle_timeout is not None
        return bool(something) and not (client.counted or client.stream.closed)

    def _judge(self, client: Swept, watch: _Watch, now: float) -> Cut | None:
        """For what it is to be cut, if for anything."""
        limits = self._limits
        if watch.lingering.seconds(client.lingering or None, now) >= LINGER_TIME:
            return "lingering"
        if _is_over(watch.stall.seconds(client.sent if client.blocked else None, now), limits.stall_timeout):
            return "stall"
        if client.part and _is_pressed_and_still(client, watch, now):
            return "memory"
        part = 0 if client.holds else client.part
        header = client.requests if 0 < part < HEADER_SIZE else None
        if _is_over(watch.header.seconds(header, now), limits.header_timeout) and _has_read_all(client):
            return "header"
        if self._body_is_slow(client, watch, part, now) and _has_read_all(client):
            return "body"
        quiet = not (client.part or client.blocked or client.holds or client.busy())
        idle = (client.requests, client.replies) if quiet else None
        if _is_over(watch.idle.seconds(idle, now), limits.idle_timeout) and _has_read_all(client):
            return "idle"
        return None

    def _body_is_slow(self, client: Swept, watch: _Watch, part: int, now: float) -> bool:
        """Whether too little of the payload has come since its time began; it begins anew when enough has."""
        limits = self._limits
        spent = watch.body.seconds(client.requests if part >= HEADER_SIZE else None, now)
        if not spent:
            watch.base = part
        if not (spent and _is_over(spent, limits.body_timeout)):
            return False
        if part - watch.base < limits.min_body_rate * spent:
            return True
        watch.base = part
        watch.body.restart(now)
        return False


def reason_of(cut: Cut, limits: Limits) -> str | None:
    """What a hook is told of it; ``None``: nothing, because nothing was lost with the connection."""
    return {
        "header": f"header_timeout: a header was not complete after {limits.header_timeout} s",
        "body": f"body_timeout: less than {limits.min_body_rate} bytes/s of a payload in {limits.body_timeout} s",
        "stall": f"stall_timeout: nothing of the replies was taken for {limits.stall_timeout} s",
        "memory": f"max_unverified: an unfinished message did not go on while there were {limits.max_unverified} bytes",
    }.get(cut)


def _is_over(spent: float, limit: float | None) -> bool:
    return limit is not None and spent >= limit


def _is_pressed_and_still(client: Swept, watch: _Watch, now: float) -> bool:
    """Whether it ought to deliver, and does not."""
    spent = watch.pressed.seconds(client.has_to_deliver() or None, now)
    if not spent:
        watch.pressed_base = client.part
    if spent < PRESSING_TIME:
        return False
    try:
        unread = client.stream.read(PRESSING, peek=True) or b""
    except SocketError:
        return True
    if client.being_read() or not client.has_to_deliver():  # what was read before the peek may not be noted
        return False
    part = client.part
    come = part - watch.pressed_base  # negative: it is another message
    if come >= 0 and come + len(unread) < min(PRESSING, client.missing()):
        return True
    watch.pressed_base = part
    watch.pressed.restart(now)
    return False


def _has_read_all(client: Swept) -> bool:
    """Whether it is the peer who is slow, and not we."""
    try:
        return not client.stream.data_available()
    except SocketError:
        return True
