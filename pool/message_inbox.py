"""Inbox: what one client of a MessageServer sends, as far as the queue of its requests.

    bytes -> Decoder -> queue of requests, and a lane for those that have to wait for their turn

Law of this file: reading, the order of requests, and not reading for a while.  ``on_ready`` is never called twice at
once; who reads has the *reader*, a token (the one element of a list, taken with pop and given back with append).  The
lock is taken for what is seldom, and nothing is called under it but the monitor.

Order.  Requests with a tag go into the queue at once.  Of the others one at a time is there, or with the handler:
there is a token for that, the *turn*.  The others wait in the lane.  Only who has taken the turn takes one out of the
lane; it is missing until that one is answered.

Holding.  A connection is not read while too much of it is unanswered, unsent, or has not come in full (``holds`` says
why).  That is found by the reader, when there is something to read; whoever removes what is in the way looks at
``holds`` afterwards.  The reader sets ``holds`` first, and then looks once more: one of the two sees the other.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from bbipc.errors import MessageError, MessageTooLargeError, SocketError
from bbipc.events import EVENTS, ROOM_TO_WRITE, SocketEvent
from bbipc.messages.frames import HEADER_SIZE, SMALL, Decoder
from bbipc.messages.message import CLOSE, DISCARD, NO_RESPONSE, TAGGED, Message
from bbipc.sockets.stream import StreamSocket
from pool.message_limits import LINGER_SIZE
from pool.message_output import Output
from pool.message_service import Service
from pool.requests import Entry, Peer, failure_entry, reply_entry
from pool.worker_pool import Monitoring

#: bytes read at a time, and where the payload of one message is known to be longer
READ_SIZE: Final = (1 << 16) + HEADER_SIZE
LONG_READ_SIZE: Final = (1 << 17) - (1 << 12)  # from 128 KiB on malloc asks the kernel, and gives back, each time
#: something to read, or the end
READ: Final = SocketEvent.DATA_AVAILABLE | SocketEvent.REMOTE_DISCONNECTED
_DATA: Final = SocketEvent.DATA_AVAILABLE
#: why a connection is not read just now: bits of ``holds``
_REQUESTS: Final = 1
_REPLIES: Final = 2
_MEMORY: Final = 4
_NAMES: Final = {_REQUESTS: "held_for_requests", _REPLIES: "held_for_replies", _MEMORY: "held_for_memory"}


class Inbox(Output):
    """The receiving side of one connection of *service*.

    *peer*: who is at the other end.  *start*: called with the connection by whoever has read; has :meth:`run` called
    where handlers run.
    """

    # fmt: off
    __slots__ = (
        "peer", "service", "requests", "part", "holds", "ending", "lingering", "watched", "unasked", "counted",
        "queue", "places", "start", "_common_places", "_decoder", "_monitor", "_reader", "_lane", "_turn", "_unusual",
        "_heavy", "_known_part", "_lock", "_closed_by_peer", "_drained",
    )
    # fmt: on

    def __init__(self, service: Service, stream: StreamSocket, peer: Peer, start: Callable[[Any], object]) -> None:
        super().__init__(stream)
        limits = service.limits
        self.peer = peer
        self.service = service
        self.requests = 0  # these five are the reader's
        self.part = 0  # bytes of the message that has not come in full
        self._known_part = 0  # what the service knows of it
        self._drained = 0
        self._closed_by_peer = False  # with a CLOSE
        self.holds = 0  # these five are guarded by the lock; read without it
        self.ending = False  # no read begins
        self.lingering = False  # what is read is thrown away
        self._unusual = False  # any of these, or blocked
        self._heavy = 0  # bytes of long requests that are not answered yet
        self.watched = False  # the sweep's
        self.unasked = False  # the monitor could not be told; guarded by the lock
        self.counted = False  # the service's
        self.queue: deque[Message] = deque()
        self.places: list[None] = [None] * limits.max_in_flight
        self._common_places = service.places
        self.start = start
        self._decoder = Decoder(max_message_size=limits.max_message_size, accept_unsigned=service.accept_unsigned)
        self._monitor: Monitoring | None = None
        self._reader = [None]
        self._lane: deque[Message] = deque()
        self._turn = [None]
        self._lock = threading.RLock()

    # What a connection adds.

    def begin_end(self, last: Entry | None, *, patient: bool) -> None:
        """Read nothing more; *last*: what is sent behind all replies; *patient*: whether to linger."""
        raise AssertionError("every kind of connection has its own")

    def conclude(self) -> None:
        """Go on towards the end, if nothing is in flight any more."""
        raise AssertionError("every kind of connection has its own")

    def lose(self) -> None:
        """The connection is lost."""
        raise AssertionError("every kind of connection has its own")

    def bury(self) -> None:
        """Nothing is in flight, and nothing to be sent: close it."""
        raise AssertionError("every kind of connection has its own")

    def end(self) -> None:
        """Read no further; answer what was read, and close."""
        raise AssertionError("every kind of connection has its own")

    def cut(self) -> None:
        """Close it now, whatever is in flight."""
        raise AssertionError("every kind of connection has its own")

    def run(self) -> int:
        """Answer what waits in the queue; how many that were."""
        raise AssertionError("every kind of connection has its own")

    def call_back(self) -> None:
        """The same, by any thread."""
        raise AssertionError("every kind of connection has its own")

    # Reading.

    def monitored_by(self, monitor: Monitoring) -> None:
        """*monitor* calls :meth:`on_ready`, perhaps since a moment ago."""
        with self._lock:
            self._monitor = monitor
            if self._unusual:
                self._ask_locked()

    def on_ready(self, stream: StreamSocket, events: SocketEvent) -> None:
        """Its events have come."""
        try:
            self._reader.pop()
        except IndexError:
            return
        try:
            if events is not _DATA or self._unusual:
                self._look_closely(events.value)
            elif (
                len(self.places) > len(self.queue)
                and self._common_places
                and not (self._lane or self._heavy or self._known_part)
            ) or self._may_read():
                self._read()
        finally:
            self._reader.append(None)
        if self.queue:
            self.start(self)
        if self.ending:
            self.conclude()

    def _look_closely(self, events: int) -> None:
        if events & ROOM_TO_WRITE:
            self.blocked = False
            self.flush()
            self.go_on()
            self.ask()
        if events & READ.value:
            if self.lingering:
                self._drain()
            elif self.ending:
                self.ask()
            elif self._may_read():
                self._read()

    def _may_read(self) -> bool:
        """Whether there is room for what would be read; if not, it is held."""
        why = 0
        if len(self.places) <= self.backlog() or self.service.crowded() or self._heavy > self.service.limits.most_held:
            why = _REQUESTS
        if self.choked():
            why |= _REPLIES
        if self._known_part and not self.service.unverified.may_go_on(self):
            why |= _MEMORY
        if why:
            self._hold(why)
        return not why

    def _read(self) -> None:
        try:
            data = self.stream.read(self._read_size() if self.part else READ_SIZE)
        except SocketError:
            return self.lose()
        if data:
            self._take_in(data)
        elif data is not None:
            self._take_end()
        return None

    def _take_in(self, data: bytes) -> None:
        """It was read."""
        messages = self._decoder.feed(data)
        if len(messages) == 1 and not self.part:
            message = messages[0]
            kind, payload, flags, _ = message
            size = len(payload)
            if flags & TAGGED and kind is not CLOSE and size <= SMALL and len(data) == HEADER_SIZE + size:
                self.requests += 1  # the usual thing: one request, and nothing else
                self.queue.append(message)
                return
        self._take(messages)
        part = 0 if self._closed_by_peer else self._decoder.pending
        if part or self.part:
            self._note_part(part)
        if self._decoder.error is not None:
            self._refuse(self._decoder.error)

    def _read_size(self) -> int:
        wanted = self._decoder.wanted
        return READ_SIZE if wanted <= READ_SIZE else min(wanted, LONG_READ_SIZE)

    def _take(self, messages: list[Message]) -> None:
        """They were read."""
        queue = self.queue
        for message in messages:
            kind, payload, flags, _ = message
            self.requests += 1
            if kind is CLOSE and not flags & DISCARD:
                return self._take_close(message)
            if len(payload) > SMALL:
                self._weigh(len(payload))
            if flags & TAGGED:
                queue.append(message)
            else:
                self._line_up(message)

    def _line_up(self, message: Message) -> None:
        """An untagged request: behind those that have come before it."""
        if self._lane:
            self._lane.append(message)
            self._advance()
            return
        try:
            self._turn.pop()
        except IndexError:
            self._lane.append(message)
            self._advance()
        else:
            self.queue.append(message)

    def _advance(self) -> None:
        """Let the next untagged request be answered, if none is just being."""
        while self._lane:
            try:
                self._turn.pop()
            except IndexError:
                return
            if self._lane:
                message = self._lane.popleft()
                self.queue.append(message)
                return
            self._turn.append(None)

    def _take_close(self, message: Message) -> None:
        self._closed_by_peer = True
        entry = None if message[2] & NO_RESPONSE else reply_entry(message, None, None, 0)
        self.begin_end(entry, patient=True)

    def _take_end(self) -> None:
        """The peer sends nothing more.  It may still read."""
        if self.part:
            self._note_part(0)
        try:
            self._decoder.finish()
        except MessageError as error:
            return self._refuse(error)
        self.begin_end(None, patient=False)

    def _refuse(self, error: MessageError) -> None:
        """What has come is no message: nothing behind it is read, and the peer is told why."""
        if self._closed_by_peer:  # it stands behind a CLOSE
            return
        self.service.protocol_failed(error, self)
        tag = error.tag if isinstance(error, MessageTooLargeError) else None
        limit = self.service.limits.max_message_size
        self.begin_end(failure_entry(0 if tag is None else TAGGED, tag or 0, error, limit), patient=True)

    def _drain(self) -> None:
        """Read what nobody wants, so that the peer finds our last reply and not a reset."""
        try:
            data = self.stream.read(READ_SIZE)
        except SocketError:
            data = b""
        self._drained += len(data or b"")
        if data == b"" or self._drained > LINGER_SIZE:
            self.bury()

    # Holding: not being read for a while.

    def _hold(self, why: int) -> None:
        with self._lock:
            new = why & ~self.holds
            self.holds |= why
            self._ask_locked()
        for bit, name in _NAMES.items():
            if new & bit:
                self.service.count(name)
        self.go_on()  # what was in the way may have gone meanwhile, and nobody have looked at ``holds``

    def go_on(self) -> None:
        """Be read again, if nothing is in the way any more.  Any thread."""
        if not self.holds:
            return
        service = self.service
        crowded = service.crowded()
        with self._lock:
            backlog = self.backlog()
            few = (backlog + self.in_flight()) * 2 <= service.limits.max_in_flight
            few = few or not (backlog or not self.places)  # or replies that come much later would stop it for ever
            light = self._heavy <= service.limits.most_held
            if few and light and not crowded:
                self.holds &= ~_REQUESTS
            if not self.choked():
                self.holds &= ~_REPLIES
        if self.holds & _MEMORY and service.unverified.may_go_on(self):
            with self._lock:
                self.holds &= ~_MEMORY
        self.ask()
        if self.holds & _REQUESTS and few and light:
            service.hold(self)

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

    def waiting(self) -> int:
        """See Errand: how much there is for one more worker to do; replies to send are something, too."""
        return len(self.queue) or (1 if self._unsent and not self.blocked else 0)

    def backlog(self) -> int:
        """How many requests wait."""
        return len(self._lane) + len(self.queue)

    def in_flight(self) -> int:
        """How many requests are with the handler."""
        return self.service.limits.max_in_flight - len(self.places)
