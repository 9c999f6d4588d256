"""Flow: how much one client of a MessageServer may have on its way, and when nothing more of it is read.

Law of this file: it counts, and tells the monitor what is wanted; it reads nothing, and answers nothing.  The lock is
taken for what is seldom, and nothing is called under it but the monitor.

Holding.  A connection is not read while too much of it is unanswered, unsent, or has not come in full (``holds`` says
why).  That is found by the reader, when there is something to read; whoever removes what is in the way looks at
``holds`` afterwards.  The reader sets ``holds`` first, and then looks once more: one of the two sees the other.

Where few places of the server are free, each lets one of those connections go on that are held for them, and the reply
to what that one has read lets the next one go on.  It may have no use for the place: what is read is no request, or
none may be begun, or it ends.  Then it passes that on (:meth:`Flow.pass_on`), or the others would wait beside a free
place.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import Final

from bbipc.events import EVENTS, ROOM_TO_WRITE, SocketEvent
from bbipc.messages.frames import SMALL, Decoder
from bbipc.messages.message import Message
from bbipc.sockets.locks import make_rlock
from bbipc.sockets.stream import StreamSocket
from pool.message_output import Output
from pool.message_service import Service
from pool.requests import Peer
from pool.worker_pool import Monitoring

#: something to read, or the end
READ: Final = SocketEvent.DATA_AVAILABLE | SocketEvent.REMOTE_DISCONNECTED
#: why a connection is not read just now: bits of ``holds``
_REQUESTS: Final = 1
_REPLIES: Final = 2
_MEMORY: Final = 4
_NAMES: Final = {_REQUESTS: "held_for_requests", _REPLIES: "held_for_replies", _MEMORY: "held_for_memory"}


class Flow(Output):
    """What is on its way in one connection of *service*.  *peer*: who is at the other end."""

    # fmt: off
    __slots__ = (
        "peer", "service", "requests", "counted", "part", "holds", "ending", "lingering", "watched", "unasked",
        "queue", "places", "_decoder", "_monitor", "_reader", "_lane", "_unusual", "_heavy", "_known_part", "_lock",
    )
    # fmt: on

    def __init__(self, service: Service, stream: StreamSocket, peer: Peer) -> None:
        super().__init__(stream)
        self.peer = peer
        self.service = service
        self.requests = 0  # these three are the reader's
        self.part = 0  # bytes of the message that has not come in full
        self._known_part = 0  # what the service knows of it
        self.holds = 0  # these five are guarded by the lock; read without it
        self.ending = False  # no read begins
        self.lingering = False  # what is read is thrown away
        self._unusual = False  # any of these, or blocked
        self._heavy = 0  # bytes of long requests that are not answered yet
        self.watched = False  # the sweep's
        self.unasked = False  # the monitor could not be told; guarded by the lock
        self.counted = False  # the service's
        self.queue: deque[Message] = deque()
        self.places: list[None] = [None] * service.limits.max_in_flight
        self._decoder = self._new_decoder()
        self._monitor: Monitoring | None = None
        self._reader = [None]
        self._lane: deque[Message] = deque()
        self._lock = make_rlock()

    def _new_decoder(self) -> Decoder:
        service = self.service
        return Decoder(max_message_size=service.limits.max_message_size, accept_unsigned=service.accept_unsigned)

    # What a connection adds.

    def end(self) -> None:
        """Read no further; answer what was read, and close."""
        raise AssertionError("every kind of connection has its own")

    def cut(self) -> None:
        """Close it now, whatever is in flight."""
        raise AssertionError("every kind of connection has its own")

    def call_back(self) -> None:
        """Have what waits answered, where handlers run.  Any thread."""
        raise AssertionError("every kind of connection has its own")

    # Reading, and not reading for a while.

    def monitored_by(self, monitor: Monitoring) -> None:
        """*monitor* calls :meth:`on_ready`, perhaps since a moment ago."""
        with self._lock:
            self._monitor = monitor
            if self._unusual:
                self._ask_locked()

    def _may_read(self) -> bool:
        """Whether there is room for what would be read; if not, it is held."""
        why = 0
        if len(self.places) <= self.backlog() or self.service.crowded() or self._heavy > self.service.limits.most_held:
            why = _REQUESTS
        if self.choked():
            why |= _REPLIES
        if self._known_part and not self.service.unverified.may_go_on(self):
            why |= _MEMORY
        if self._known_part and self.service.unverified.favours(self):
            if self.holds:  # since before; who sets it now looks behind that
                self.go_on()
            return True
        if why:
            self._hold(why)
        return not why

    def hold_for_replies(self) -> None:
        """Nothing more is begun, as too much waits to be sent: read nothing either."""
        self._hold(_REPLIES)
        self.pass_on()

    def _hold(self, why: int) -> None:
        with self._lock:
            new = why & ~self.holds
            self.holds |= why
            self._ask_locked()
        for bit, name in _NAMES.items():
            if new & bit:
                self.service.met(name, logging.INFO, "%r is read no further for a while: %s", self.peer, name)
        self.go_on()  # what was in the way may have gone meanwhile, and nobody have looked at ``holds``

    def go_on(self) -> bool:
        """Be read again, if nothing is in the way any more; whether it was held, and is read now.  Any thread."""
        if not self.holds:
            return False
        service = self.service
        crowded = service.crowded()
        with self._lock:
            backlog = self.backlog()
            few = (backlog + self.in_flight()) * 2 <= service.limits.max_in_flight
            # Where nothing waits, one place is enough: replies that come much later would stop it for ever.
            few = few or bool(self.places and not backlog)
            light = self._heavy <= service.limits.most_held
            if few and light and not crowded:
                self.holds &= ~_REQUESTS
            if not self.choked():
                self.holds &= ~_REPLIES
        if self.holds & _MEMORY and service.unverified.may_go_on(self):
            with self._lock:
                self.holds &= ~_MEMORY
        if service.unverified.favours(self):
            with self._lock:
                self.holds = 0
        self.ask()
        if self.holds & _REQUESTS and few and light:
            service.hold(self)
        return not (self.holds or self.ending)  # who ends looks behind that whether somebody is held

    def pass_on(self) -> None:
        """It was let go on, perhaps, and has no use for a place: somebody else may have.  Any thread."""
        if self.service.held:
            self.service.relieve()

    def choked(self) -> bool:
        """Whether so much waits to be sent that no further request is answered."""
        return self.blocked and self.unsent() > self.service.limits.most_unsent

    def ask(self) -> None:
        """Let the monitor know what is to be told now.  Any thread."""
        with self._lock:
            self._ask_locked()

    def _ask_locked(self) -> None:
        reads = self.lingering or not (self.ending or self.holds)
        self._unusual = self.blocked or self.lingering or not reads
        if self._monitor is None:
            return
        wanted = (READ.value if reads else 0) | (ROOM_TO_WRITE if self.blocked else 0)
        self.unasked = False
        try:
            if wanted:
                self._monitor.set_events(EVENTS[wanted])
            else:
                self._monitor.pause()
        except OSError:  # closed; or the system is short of memory, and the sweep asks again
            if not self.stream.closed:
                self.unasked = True
                self.service.sweep.watch(self)

    def _note_part(self, part: int) -> None:
        """So much of a message has come, and not all of it."""
        self.part = part
        counted = part if part > SMALL else 0
        more, self._known_part = counted - self._known_part, counted
        if more:
            self.service.unverified.change(self, more)
        if part and not self.watched:
            self.service.sweep.watch(self)

    def _weigh(self, size: int) -> None:
        with self._lock:
            self._heavy += size

    # How much there is.

    def being_read(self) -> bool:
        """Whether somebody may have read bytes that are not noted yet."""
        return not self._reader

    def missing(self) -> int:
        """How many bytes are missing of the message that has not come in full."""
        return self._decoder.wanted

    def has_to_deliver(self) -> bool:
        """See Sweep."""
        return self.service.unverified.has_to_deliver(self)

    def busy(self) -> bool:
        """Whether requests are in flight, or wait."""
        return bool(self._lane or self.queue or len(self.places) < self.service.limits.max_in_flight)

    def backlog(self) -> int:
        """How many requests wait."""
        return len(self._lane) + len(self.queue)

    def in_flight(self) -> int:
        """How many requests are with the handler."""
        return self.service.limits.max_in_flight - len(self.places)
