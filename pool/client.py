"""MessageClient: requests to one server, from any number of threads, over one connection.

    send     the calling thread writes the request and reads its own reply; while it is alone, no other has a part in it
    submit   the calling thread writes the request, a future is for whom it concerns

Law of this file: the face.  It turns values into messages and back, and timeouts into moments; any thread may call
anything.
"""

from __future__ import annotations

import enum
import time
import warnings
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Final, NoReturn, Self

from bbipc.messages.frames import MAX_MESSAGE_SIZE, Decoder
from bbipc.messages.message import DISCARD, FAILED, Message, MessageType
from bbipc.polling.deadline import checked_timeout
from bbipc.sockets import fork
from bbipc.sockets.endpoint import Address, AddressLike, parse_address
from pool.arguments import checked_count, checked_kind
from pool.calls import Reply, Unsent, Value, outgoing, value_of
from pool.connecting import ClientConnections, Lender, Terms
from pool.conversation import Conversation
from pool.poller_thread import PollerThread

#: seconds after which a connection is looked at before it is used again
IDLE: Final = 0.001
_BINARY: Final = int(MessageType.BINARY)  # the number: an enum's member is slower to look at
_NO_VALUE: Final = FAILED | DISCARD

monotonic: Final = time.monotonic


class _Default(enum.Enum):
    """What stands for the client's own timeout."""

    DEFAULT = 0

    def __repr__(self) -> str:
        return "DEFAULT"


DEFAULT: Final = _Default.DEFAULT


@dataclass(frozen=True)
class MessageClientStats:
    """What a client does just now.

    ``connected``: whether there is a connection; ``connections``: how many there have been.  ``in_flight``: requests
    that wait for a reply.  ``unsent``: bytes that have not left.  ``late``: replies that came for nobody, because the
    call was cancelled or its time was up.
    """

    connected: bool
    connections: int
    in_flight: int
    unsent: int
    late: int


class MessageClient:
    """Sends messages to the server at *address*, and gets its replies.

    *address*: a path, ``(host, port)``, or text: ``local:PATH``, ``ipv4:HOST:PORT``, ``ipv6:[HOST]:PORT``.  It connects
    at the first call.  *timeout*: seconds for a call that names none; ``None``: no limit.  *max_message_size*: bytes of
    a request, and of a reply that is accepted.  *reconnect*: connect anew when a connection has ended.
    *max_in_flight*: futures that are outstanding; past it ``submit`` waits.  Threads that look at the same moment may
    pass it, each by one.  *accept_unsigned*: take replies without a checksum.  *spin*: seconds in which a waiting
    thread tries to read before it sleeps: quicker by a wake-up, for a processor that does nothing else.
    *poller_thread*: one to share; without it the client has its own, which starts at the first ``submit``.

    Any thread may call any method at any time.  After ``close`` every call raises SocketClosedError.

    :raises ValueError: no address, a negative or NaN timeout, a limit below 1
    :raises TypeError: an argument of a wrong type
    """

    def __init__(
        self,
        address: AddressLike,
        *,
        timeout: float | None = None,
        max_message_size: int = MAX_MESSAGE_SIZE,
        reconnect: bool = True,
        max_in_flight: int = 1024,
        accept_unsigned: bool = False,
        spin: float = 0.0,
        poller_thread: PollerThread | None = None,
    ) -> None:
        Decoder(max_message_size=max_message_size)  # raises for what is no limit
        checked_count("max_in_flight", max_in_flight)
        if poller_thread is not None:
            checked_kind("poller_thread", poller_thread, PollerThread)
        self._address = parse_address(address)
        self._timeout = checked_timeout(timeout)
        self._limit = max_message_size
        self._max_in_flight = max_in_flight
        self._lender = Lender(poller_thread)
        terms = Terms(max_message_size, accept_unsigned, reconnect, max_in_flight, checked_timeout(spin, "spin") or 0.0)
        self._connections = ClientConnections(self._address, terms, self._lender, self)
        self._generation = fork.generation

    @property
    def address(self) -> Address:
        """Where the server is."""
        return self._address

    @property
    def closed(self) -> bool:
        """Whether somebody closed it."""
        return self._connections.closed

    def send(
        self,
        value: Value,
        type: MessageType | None = None,  # noqa: A002
        *,
        timeout: float | _Default | None = DEFAULT,
        no_response: bool = False,
    ) -> Reply:
        """Send *value*, wait for the reply, and give its value; ``None``: there is none.

        ``str`` is sent as STRING, a buffer as BINARY, ``None`` as CLOSE, unless *type* says otherwise.  *timeout*:
        seconds for all of it, connecting too; ``None``: no limit.  *no_response*: let the server answer nothing, and
        return when the kernel has taken the message; a later request may overtake it.  Blocks the calling thread,
        whichever it is.

        :raises TimeoutError: the reply has not come in time; it may have been handled
        :raises RemoteHandlerError: the server's handler failed; the text says with what
        :raises RemoteDisconnectedError: the connection ended before the reply had come
        :raises ConnectionFailedError: nobody could be connected to (NoLocalServerError: nothing listens on the path)
        :raises MessageTooLargeError: *value*, or the reply, is larger than ``max_message_size``
        :raises MessageError: what came is no message
        :raises SocketClosedError: the client was closed
        :raises ValueError: a text with a NUL in it, a negative or NaN timeout
        :raises TypeError: nothing that can be sent
        :raises RuntimeError: in a forked child
        """
        if isinstance(value, bytes) and type is None:
            kind, payload = _BINARY, value
        else:
            kind, payload = outgoing(value, type)
        limit = self._timeout if timeout is DEFAULT else checked_timeout(timeout)
        deadline = None if limit is None else monotonic() + limit
        if no_response:
            self._tell(kind, payload, deadline)
            return None
        conversation, reply = self._connections.current, None
        if (
            conversation is not None
            and conversation.at_hand
            and (conversation.table or monotonic() - conversation.used < IDLE)
            and len(payload) <= self._limit
            and self._generation == fork.generation
        ):
            try:
                reply = conversation.ask(kind, payload, deadline)
            except Unsent:
                pass
        if reply is None:
            reply = self._ask(kind, payload, deadline)
        if reply[0] == _BINARY and not reply[2] & _NO_VALUE:
            return reply[1]
        return value_of(reply)

    def submit(
        self,
        value: Value,
        type: MessageType | None = None,  # noqa: A002
        *,
        timeout: float | _Default | None = DEFAULT,
    ) -> Future[Reply]:
        """Send *value*; the future of the reply's value, which fails as :meth:`send` raises.

        The request is written in the calling thread, as far as the kernel takes it.  ``cancel`` gives the call up until
        the reply has come.  Callbacks are called on the poller thread; there, and anywhere, ``result`` may be called:
        it reads the connection itself.  Waits while ``max_in_flight`` futures are outstanding, or much is unsent.

        :raises QueueFullError: there was no room in time; or at once, on the poller thread
        :raises TimeoutError: no connection was to be had in time
        :raises RemoteDisconnectedError: the connection ended before anything of the request had left
        :raises MessageError: the same, and what had come over it was no message; with ``reconnect=False``
        :raises MessageTooLargeError: *value* is larger than ``max_message_size``
        :raises ConnectionFailedError: nobody can be connected to
        :raises SocketClosedError: the client was closed
        :raises PollerClosedError: the poller thread was closed
        :raises ValueError: a text with a NUL in it, a negative or NaN timeout
        :raises TypeError: nothing that can be sent
        :raises RuntimeError: in a forked child
        """
        if isinstance(value, bytes) and type is None:
            kind, payload = _BINARY, value
        else:
            kind, payload = outgoing(value, type)
        limit = self._timeout if timeout is DEFAULT else checked_timeout(timeout)
        deadline = None if limit is None else monotonic() + limit
        conversation = self._connections.current
        if (
            conversation is not None
            and conversation.at_hand
            and 0 < len(conversation.table) < self._max_in_flight
            and not conversation.outgoing.queue
            and len(payload) <= self._limit
            and self._generation == fork.generation
        ):
            try:
                return conversation.post(kind, payload, deadline)
            except Unsent:
                pass
        return self._connections.carry_out(
            lambda conversation: conversation.post(kind, payload, deadline),
            lambda: self._connections.roomy(len(payload), deadline),
        )

    def stats(self) -> MessageClientStats:
        """Figures of this moment."""
        connections = self._connections
        standing = list(connections.standing)
        return MessageClientStats(
            connected=any(one.open for one in standing),
            connections=connections.made,
            in_flight=sum(len(one.table) for one in standing),
            unsent=sum(one.outgoing.unsent() for one in standing),
            late=connections.late + sum(one.pending.late for one in standing),
        )

    def close(self) -> None:
        """End it; what is outstanding fails with SocketClosedError.  Idempotent, any thread, callbacks included.

        May wait for a callback that is running, 6 seconds at most; not with a shared *poller_thread*.
        """
        self._connections.close()
        if self._generation == fork.generation:
            self._lender.close()

    def _ask(self, kind: int, payload: bytes, deadline: float | None) -> Message:
        """The long way."""
        return self._connections.carry_out(
            lambda conversation: conversation.ask(kind, payload, deadline),
            lambda: self._connections.usable(len(payload), deadline),
        )

    def _tell(self, kind: int, payload: bytes, deadline: float | None) -> None:
        def tell(conversation: Conversation) -> None:
            conversation.tell(kind, payload, deadline)
            conversation.used = 0.0

        self._connections.carry_out(tell, lambda: self._connections.usable(len(payload), deadline, answered=False))

    def __enter__(self) -> Self:
        self._connections.check()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        connections: ClientConnections | None = getattr(self, "_connections", None)
        if connections is None or connections.closed or self._generation != fork.generation:
            return
        if connections.standing:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
        self._lender.stop_soon()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a MessageClient cannot be pickled or copied: it belongs to its process")

    def __repr__(self) -> str:
        conversation = self._connections.current
        state = "connected" if conversation is not None and conversation.open else "not connected"
        return f"<MessageClient {'closed' if self.closed else state}, {str(self._address)!r}>"


def send_quick(
    address: AddressLike,
    value: Value,
    type: MessageType | None = None,  # noqa: A002
    *,
    timeout: float | None = None,
) -> Reply:
    """Connect to *address*, send *value*, and give the reply's value; then close.  Raises what ``send`` raises.

    *timeout*: seconds for all of it; ``None``: no limit.  Blocks the calling thread.
    """
    with MessageClient(address) as client:
        return client.send(value, type, timeout=timeout)
