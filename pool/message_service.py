"""Service: what all connections of one MessageServer share.

Law of this file: any thread may call anything; no user code runs under a lock.  What is counted for every message is
counted by the connection, without a lock, and added up when somebody asks or when it leaves.

A count that must be exact is a list, whose ``append`` and ``pop`` are atomic where an addition is not: ``places`` has
one element for each further request that may be given to a handler.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from bbipc.errors import MessageError, MessageTooLargeError, SocketError
from bbipc.sockets.local import LocalStream
from bbipc.sockets.locks import make_rlock
from bbipc.sockets.stream import StreamSocket
from bbipc.sockets.tcp import IPv4TCPStream, IPv6TCPStream
from pool import reports
from pool.message_limits import Limits
from pool.message_sweep import Cut, Sweep, Swept, reason_of
from pool.requests import Peer, Reply, Request
from pool.seldom import Seldom
from pool.table import Table
from pool.unverified import Unverified

#: what answers a request
Handler = Callable[[Request], Reply]
#: what is told of errors, and whose connection they concern
ErrorHook = Callable[[BaseException, Peer], object]
#: what is told of a CLOSE, and whose it was
CloseHook = Callable[[Peer], object]

logger = logging.getLogger(__name__)


class Client(Swept, Protocol):
    """A connection, as far as its service knows it."""

    dropped: int
    counted: bool

    def end(self) -> object:
        """End it, when what was read is answered."""

    def cut(self) -> object:
        """Close it now."""

    def unsent(self) -> int:
        """How many bytes of replies wait for the kernel to take them."""
        ...

    def in_flight(self) -> int:
        """How many requests are with the handler."""
        ...

    def backlog(self) -> int:
        """How many requests wait."""
        ...

    def call_back(self) -> object:
        """Have what waits answered, where handlers run."""

    def go_on(self) -> bool:
        """Read again, if nothing is in the way; whether he was held, and is read now."""
        ...


class Service:
    """One server's.  *on_leave*: called when a connection has left.  *on_close*: when a CLOSE was answered, and
    *close_hook*, the user's, when everything before it was.
    """

    def __init__(
        self,
        handler: Handler,
        limits: Limits,
        on_error: ErrorHook | None,
        *,
        on_leave: Callable[[], object],
        on_close: Callable[[], object],
        accept_unsigned: bool,
        close_hook: CloseHook | None = None,
    ) -> None:
        self.handler = handler
        self.limits = limits
        self.accept_unsigned = accept_unsigned
        self.on_close = on_close
        self.table: Table[Client] = Table(on_leave)
        self.unverified: Unverified[Client] = Unverified(limits.max_unverified)
        self.sweep = Sweep(limits, self._cut)
        self.places: list[None] = [None] * limits.max_in_flight_total
        self.starved: dict[Client, None] = {}  # who has found no place
        self.held: dict[Client, None] = {}  # who is not read because there are too many requests
        self._on_error = on_error
        self._close_hook = close_hook
        self._gates: dict[str, Seldom] = {}
        self._lock = make_rlock()
        self._counts: Counter[str] = Counter()  # guarded by the lock

    # Limits that all share.

    def crowded(self) -> bool:
        """Whether nobody is to be read."""
        return not self.places

    def hold(self, client: Client) -> None:
        """*client* is to be told when it is not crowded any more."""
        self.held[client] = None
        self.relieve()

    def relieve(self) -> None:
        """Requests were answered: let those be read who were not because there were too many."""
        free = len(self.places)
        most = len(self.held)
        if free * 2 < self.limits.max_in_flight_total:  # one: the others may be taken by replies that come much later
            most = min(free, most, 1)
        while most and self.places:
            try:
                client, _ = self.held.popitem()
            except KeyError:
                return
            if client.go_on():  # else something else is in his way, or he ends: the next one
                most -= 1

    def feed_starved(self) -> None:
        """There are places, perhaps: whoever has found none may look again.  He passes this on."""
        for client in list(self.starved):
            if self.starved.pop(client, self) is None:
                client.call_back()
                return

    # Counting, and telling.

    def count(self, what: str, number: int = 1) -> None:
        """*what* has happened."""
        with self._lock:
            self._counts[what] += number

    def counts(self) -> Counter[str]:
        """All that has happened so far."""
        with self._lock:
            counts = self._counts.copy()
            for client in self.table.members():
                if not client.counted:
                    _add_up(counts, client)
        return counts

    def left(self, client: Client) -> None:
        """Its connection is closed, and none of its requests is in flight."""
        self.sweep.forget(client)
        self.held.pop(client, None)
        with self._lock:
            _add_up(self._counts, client)
            client.counted = True
        self.table.left(client)

    def handler_failed(self, error: BaseException, client: Client) -> None:
        """Nothing that goes wrong here may reach the work of the connection."""
        self.count("handler_errors")
        facts = {"exc_info": error}
        self._log("handler_errors", logging.ERROR, "%r failed for %r", self.handler, client.peer, **facts)
        self._tell(error, client)

    def protocol_failed(self, error: MessageError, client: Client) -> None:
        """What *client* sent is no message, or not all of one."""
        self.count("protocol_errors")
        if isinstance(error, MessageTooLargeError):
            self.met("too_large", logging.INFO, "%r sent what is refused: %s", client.peer, error)
        else:
            self._log("protocol_errors", logging.DEBUG, "%r sent what is no message: %s", client.peer, error)
        self._tell(error, client)

    def closed_by_peer(self, client: Client) -> None:
        """*client* has sent a CLOSE, and all before it was answered."""
        if self._close_hook is not None:
            self.call_hook(client, self._close_hook, client.peer)

    def met(self, limit: str, level: int, text: str, *facts: object) -> None:
        """Somebody has met the *limit*, a name of what is counted."""
        self.count(limit)
        self._log(limit, level, text, *facts)

    def _cut(self, client: Swept, why: Cut) -> None:
        """The sweep has found that its time is up."""
        reason = reason_of(why, self.limits)
        self.count(f"cut_for_{why}")
        self._log(f"cut_for_{why}", logging.WARNING, "cut %r for %s", client.peer, why, extra={"told": bool(reason)})
        client.cut()
        if reason:
            self._tell(TimeoutError(reason), client)

    def _log(self, kind: str, level: int, text: str, *facts: object, **more: Any) -> None:
        """Of each *kind* once a second at most."""
        gate = self._gates.get(kind) or self._gates.setdefault(kind, Seldom())
        left_out = gate.ask()
        if left_out is not None:
            log = partial(logger.log, **more)
            self._safely(log, level, f"{text} (%d not logged before)", *facts, left_out)

    def _tell(self, error: BaseException, client: Swept) -> None:
        if self._on_error is not None:
            self.call_hook(client, self._on_error, error, client.peer)

    def call_hook(self, client: Swept, hook: Callable[..., object], *facts: object) -> None:
        """Call *hook*, of the user's, on account of *client*: ``message_callers.py`` finds him in this frame."""
        self._safely(hook, *facts)

    def _safely(self, action: Callable[..., object], *args: object) -> None:
        try:
            action(*args)
        except BaseException as problem:  # noqa: BLE001 # a hook's own error, or the log's
            self.count("hook_errors")
            reports.failure(logger, self._counts["hook_errors"], action, "a message server", problem)


def _add_up(counts: Counter[str], client: Client) -> None:
    counts["requests"] += client.requests
    counts["replies"] += client.replies
    counts["dropped_replies"] += client.dropped


def peer_of(stream: StreamSocket) -> Peer:
    """Who is at the other end of *stream*; ``None``: the system does not tell."""
    if isinstance(stream, IPv4TCPStream | IPv6TCPStream):
        return stream.remote_host_address, stream.remote_port
    if isinstance(stream, LocalStream):
        try:
            return stream.peer_credentials()
        except SocketError:
            pass
    return None
