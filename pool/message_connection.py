"""MessageConnection: one client of a MessageServer, from its acceptance to its end.

    Inbox -> handler -> Output

Law of this file: answering, and the end.  Where handlers run is decided in ``message_runners.py``; who runs one has a
*place*, one of *max_in_flight* tokens.  Any thread may ask for the end.  No user code and no I/O under the lock.

The end.  Whoever wants it sets ``ending``: no read begins from then on.  The connection is *concluded* when no token is
missing and nothing waits, by whoever finds that; each who gives a token back looks, so somebody does.  (Looked at in
this order: ``ending``, the reader, the lane, the queue, the turn, the places.  Behind the reader nothing enters the
lane; what was on its way from there to the queue has the turn until it is answered, and that is done with a place;
behind an empty queue nobody who takes a place finds anything.)  Then the last reply goes out, and behind it the stream
is closed: at once, or, where the peer may still be sending, after it was told with a shutdown and read for a while
(*lingering*).  A close with bytes unread is a reset, and may cost the peer that last reply.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bbipc.errors import SocketError
from bbipc.messages.frames import SMALL
from bbipc.messages.message import NO_RESPONSE, TAGGED, Message, MessageType
from bbipc.sockets.stream import StreamSocket
from pool.message_inbox import Inbox
from pool.message_service import Service
from pool.requests import Entry, Peer, Request, Value, failure_entry, reply_entry


class MessageConnection(Inbox):
    """One connection of *service*.  *peer*: who is at the other end."""

    # fmt: off
    __slots__ = (
        "handler", "discards", "_last_entry", "_patient", "_concluded", "_parted", "_gone", "_orphaned", "_close_told",
    )
    # fmt: on

    def __init__(self, service: Service, stream: StreamSocket, peer: Peer, start: Callable[[Any], object]) -> None:
        super().__init__(service, stream, peer, start)
        self.handler = service.handler
        self.discards = False  # what waits is not given to the handler any more
        self._last_entry: Entry | None = None  # sent behind all replies; these five are guarded by the lock
        self._patient = False  # whether to linger
        self._concluded = False  # nothing is in flight any more
        self._parted = False  # all was sent
        self._gone = False  # it is closed
        self._orphaned = False  # nobody waits for its events any more
        self._close_told = False  # the reader's

    # Answering: whoever has a place.

    def entry(self, message: Message, value: Value, type: MessageType | None) -> Entry:  # noqa: A002
        """The reply to *message* that gives *value*."""
        return reply_entry(message, value, type, self.service.limits.max_message_size)

    def respond(self, request: Request, entry: Entry) -> bool:
        """``Request.respond``: any thread."""
        with self._lock:  # see settled()
            try:
                request.claim.pop()
            except IndexError:
                return False
            self._unsent.append(entry)
        self.flush()
        return True

    def failure(self, message: Message, error: BaseException) -> Entry:
        """The handler has raised *error*: tell of it; the reply that tells the peer."""
        self.service.handler_failed(error, self)
        return failure_entry(message[2], message[3], error, self.service.limits.max_message_size)

    def settle(self, request: Request, value: Value) -> Entry | None:
        """The handler has returned *value*: what is to be sent, if anything is."""
        message = request.message
        if message[2] & NO_RESPONSE:
            return None
        try:
            entry = reply_entry(message, value, None, self.service.limits.max_message_size)
        except Exception as error:  # noqa: BLE001 # whatever it is made of
            return self.settle_failed(request, error)
        return entry if self._claim(request) else None

    def settle_failed(self, request: Request, error: BaseException) -> Entry | None:
        """The handler has raised *error*, or its value is none: what is to be sent, if anything is."""
        entry = self.failure(request.message, error)
        return entry if not request.message[2] & NO_RESPONSE and self._claim(request) else None

    def _claim(self, request: Request) -> bool:
        """Whether it is still to be replied to."""
        try:
            request.claim.pop()
        except IndexError:
            with self._lock:  # who has responded has put his reply into the queue, before this place is given back
                return False
        return True

    def answered(self, message: Message) -> None:
        """Its reply is on the way: whoever has the place goes on, and gives it back some time."""
        _, payload, flags, _ = message
        if self._heavy and len(payload) > SMALL:
            self._weigh(-len(payload))
        if not flags & TAGGED:
            self._turn.append(None)
            if self._lane:
                self._advance()

    # The end.

    def end(self) -> None:
        """Read no further; answer what was read, and close.  Idempotent; any thread."""
        self.begin_end(None, patient=False)
        if self.lingering and not self._has_unread():
            self.bury()
        self.conclude()

    def lose(self) -> None:
        """The connection is lost: what was read is handled, nothing is sent."""
        self.begin_end(None, patient=False)
        self.mute = True
        self.blocked = False
        self.stream.close()
        self.flush()
        if self.lingering:
            self.bury()
        self.conclude()

    def cut(self) -> None:
        """Close it now.  What was read and not given to a handler yet is dropped.  Any thread."""
        self.discards = True
        self.lose()

    def discard(self) -> None:
        """Drop what waits.  Where all places are taken, whoever gives one back does it."""
        while self.queue:
            try:
                self.places.pop()
            except IndexError:
                return
            try:
                message = self.queue.popleft()
            except IndexError:
                pass
            else:
                self.service.count("dropped_requests")
                self.answered(message)
            self.places.append(None)

    def stream_closed(self, _error: Exception) -> None:
        """The hook of its monitor: the stream was closed, or whoever waits for it has ended."""
        self._orphaned = True  # first: whoever blocks or lingers from now on sees it, and we see who did before
        if self.stream.closed or self.blocked or self.lingering:
            self.lose()
        else:  # what is in flight is answered, as far as the kernel takes it at once; nobody runs what waits
            self.begin_end(None, patient=False)
            self.discards = True
        self.conclude()

    def begin_end(self, last: Entry | None, *, patient: bool) -> None:
        """See Inbox.  Idempotent; the first *last* counts."""
        with self._lock:
            if self._last_entry is None:
                self._last_entry = last
            self._patient |= patient
            self.ending = self._unusual = True

    def conclude(self) -> None:
        """Go on towards the end, if nothing is in flight any more."""
        if not self.ending:
            return
        self.pass_on()
        if self.part and self.stream.closed:
            self._drop_part()
        if self.discards:
            self.discard()
        if not self._reader or self._lane or self.queue or not self._turn:
            return
        if len(self.places) < self.service.limits.max_in_flight:
            return
        if self._closed_by_peer and not (self._close_told or self._tell_of_close()):
            return
        with self._lock:
            if self._concluded:
                return
            self._concluded = True
            if self._last_entry is not None:
                self._unsent.append(self._last_entry)
        self.flush()

    def _tell_of_close(self) -> bool:
        """Nobody concludes meanwhile: the reader is gone.  False: somebody else has him, and comes here."""
        try:
            self._reader.pop()
        except IndexError:
            return False
        try:
            if not self._close_told:
                self.ask()  # what it still sends would be told again and again, as nobody can take it
                self.service.closed_by_peer(self)
                self._close_told = True
        finally:
            self._reader.append(None)
        return True

    def _drop_part(self) -> None:
        """Nothing completes it any more.  Who has the reader comes here when he has given it back."""
        try:
            self._reader.pop()
        except IndexError:
            return
        try:
            if self.part:
                self._note_part(0)
                self._decoder = self._new_decoder()
        finally:
            self._reader.append(None)

    def flushed(self) -> None:
        """See Output: nothing waits to be sent."""
        if not self._concluded:
            return
        with self._lock:
            if self._parted or self._unsent:
                return
            self._parted = True
        patient = not self.mute and (self._patient or self._has_unread())
        if not (patient and self._begin_to_linger()):
            self.bury()
        if self._closed_by_peer:
            self.service.on_close()

    def stuck(self) -> None:
        """See Output: the kernel has no room."""
        if self._orphaned:
            self.mute, self.blocked = True, False
            return
        self.ask()
        if not self.watched:
            self.service.sweep.watch(self)

    def _has_unread(self) -> bool:
        try:
            return self.stream.data_available()
        except SocketError:
            return False

    def _begin_to_linger(self) -> bool:
        try:
            self.stream.shutdown_write()
        except SocketError:
            return False
        with self._lock:
            self.lingering = True
            self._ask_locked()
        if self._orphaned:  # looked at behind it, see stream_closed()
            return False
        self.service.sweep.watch(self)
        return True

    def bury(self) -> None:
        """Nothing is in flight, and nothing to be sent.  Idempotent."""
        with self._lock:
            gone, self._gone = self._gone, True
        if not gone:
            self.stream.close()
            if self.part:
                self._drop_part()
            self.service.left(self)
