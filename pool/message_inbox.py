"""Inbox: what one client of a MessageServer sends, as far as the queue of its requests.

    bytes -> Decoder -> queue of requests, and a lane for those that have to wait for their turn

Law of this file: reading, and the order of requests.  ``take`` is never called twice at once; who reads has the
*reader*, a token (the one element of a list, taken with pop and given back with append).  How much may be read, and
when nothing is for a while, stands in ``message_flow.py``.

Order.  Requests with a tag go into the queue at once.  Of the others one at a time is there, or with the handler:
there is a token for that, the *turn*.  The others wait in the lane.  Only who has taken the turn takes one out of the
lane; it is missing until that one is answered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from bbipc.errors import MessageError, MessageTooLargeError, SocketClosedError, SocketError
from bbipc.events import ROOM_TO_WRITE, SocketEvent
from bbipc.messages.frames import HEADER_SIZE, SMALL
from bbipc.messages.message import CLOSE, DISCARD, NO_RESPONSE, TAGGED, Message
from bbipc.sockets.stream import StreamSocket
from pool.message_flow import READ, Flow
from pool.message_limits import LINGER_SIZE
from pool.message_service import Service
from pool.requests import Entry, Peer, failure_entry, reply_entry

#: bytes read at a time, and where the payload of one message is known to be longer
READ_SIZE: Final = (1 << 16) + HEADER_SIZE
LONG_READ_SIZE: Final = (1 << 17) - (1 << 12)  # from 128 KiB on malloc asks the kernel, and gives back, each time
_DATA: Final = SocketEvent.DATA_AVAILABLE


class Inbox(Flow):
    """The receiving side of one connection of *service*.

    *peer*: who is at the other end.  *start*: called with the connection by whoever has read; has :meth:`run` called
    where handlers run.
    """

    __slots__ = ("start", "_common_places", "_turn", "_closed_by_peer", "_drained")

    def __init__(self, service: Service, stream: StreamSocket, peer: Peer, start: Callable[[Any], object]) -> None:
        super().__init__(service, stream, peer)
        self._drained = 0  # this and the next are the reader's
        self._closed_by_peer = False  # with a CLOSE
        self._common_places = service.places
        self.start = start
        self._turn = [None]

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

    def run(self) -> int:
        """Answer what waits in the queue; how many that were."""
        raise AssertionError("every kind of connection has its own")

    # Reading.

    def on_ready(self, stream: StreamSocket, events: SocketEvent) -> None:
        """Its events have come: read, and have what was read answered."""
        self.take(events)
        if self.queue:
            self.start(self)

    def take(self, events: SocketEvent) -> None:
        """Its events have come: read, or write; what was read waits in the queue."""
        try:
            self._reader.pop()
        except IndexError:  # somebody tells of the end: that must not keep the replies
            if events.value & ROOM_TO_WRITE:
                self._go_on_writing()
            return
        try:
            if events is not _DATA or self._unusual:
                wanted = self._look_closely(events.value)
            else:
                room = len(self.places) > len(self.queue) and self._common_places
                wanted = (room and not (self._lane or self._heavy or self._known_part)) or self._may_read()
            if wanted:
                try:
                    data = self.stream.read(self._read_size() if self.part else READ_SIZE)
                except SocketError as error:
                    self._take_loss(error)
                else:
                    if data:
                        self._take_in(data)
                    elif data is not None:
                        self._take_end()
        finally:
            self._reader.append(None)
        if self.service.held and not self.queue:
            self.pass_on()
        if self.ending:
            self.conclude()

    def _look_closely(self, events: int) -> bool:
        """Do what the usual reader need not; whether to read as well."""
        if events & ROOM_TO_WRITE:
            self._go_on_writing()
        if not events & READ.value:
            return False
        if self.lingering:
            self._drain()
        elif self.ending:
            self.ask()
        else:
            return self._may_read()
        return False

    def _go_on_writing(self) -> None:
        self.blocked = False
        self.flush()
        self.go_on()
        self.ask()

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
        if wanted > READ_SIZE:
            return min(wanted, LONG_READ_SIZE)
        return wanted if self.service.unverified.favours(self) else READ_SIZE  # perhaps nothing else is to be read

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

    def _take_loss(self, loss: SocketError) -> None:
        """There is nothing to be read any more.  Did the peer do that in the middle of a message, it is told."""
        self.lose()
        if not self.part or isinstance(loss, SocketClosedError):
            return
        try:
            self._decoder.finish()
        except MessageError as error:
            error.__cause__ = loss.with_traceback(None)
            self.service.protocol_failed(error, self)

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
