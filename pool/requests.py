"""Request: what a handler is given, and how values become replies.

Law of this file: no I/O, no lock.  A request knows the connection that it came from as somebody who sends replies, and
nothing else of it.  Any thread may call anything.

Exactly one reply.  A request has a *claim*, the one element of a list; taking it (pop) is atomic, on the free-threaded
build too.  Whoever takes it sends the reply: ``respond``, or the server when the handler has returned.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Final, Protocol, TypeAlias

from typing_extensions import Buffer

from bbipc.errors import MessageTooLargeError, ResponseAlreadySentError, ResponseDisabledError
from bbipc.messages.frames import encode_parts
from bbipc.messages.message import (
    BINARY,
    DISCARD,
    FAILED,
    LONG_TEXT,
    NO_RESPONSE,
    STRING,
    TAGGED,
    Message,
    MessageType,
    encoded,
    text_of,
)
from bbipc.sockets.local import PeerCredentials

#: what a response may be made of; ``None``: a blank one, that is no value
Value: TypeAlias = str | Buffer | Message | None
#: a response that comes later
Deferred: TypeAlias = (
    Future[str]
    | Future[bytes]
    | Future[Message]
    | Future[None]
    | Future[str | None]
    | Future[bytes | None]
    # what a client's ``submit`` gives
    | Future[str | bytes | None]
)
#: what a handler may return
Reply: TypeAlias = Value | Deferred
#: who is at the other end: the credentials of a local peer, (host, port) of one over TCP, ``None``: it is not known
Peer: TypeAlias = PeerCredentials | tuple[str, int] | None
#: one reply as it is written: buffers, one behind the other
Entry: TypeAlias = tuple[bytes | memoryview, ...]

#: bytes of the text that tells of a handler's failure, at most
MAX_FAILURE_TEXT: Final = 1024

_BLANK: Final = NO_RESPONSE | DISCARD
_BLANK_ENTRY: Final[Entry] = encode_parts(BINARY, b"", _BLANK, 0)


class Desk(Protocol):
    """Where replies are handed in."""

    peer: Peer

    def respond(self, request: Request, entry: Entry) -> bool:
        """Send *entry*, if nobody has replied to *request* yet."""
        ...

    def entry(self, message: Message, value: Value, type: MessageType | None) -> Entry:  # noqa: A002
        """The reply that gives *value*."""
        ...


class _Elsewhere:
    """The desk of a request that has travelled to another process: it only knows who asked."""

    __slots__ = ("peer",)

    def __init__(self, peer: Peer) -> None:
        self.peer = peer

    def respond(self, request: Request, entry: Entry) -> bool:
        """Never called: a copy is refused before."""
        return False

    def entry(self, message: Message, value: Value, type: MessageType | None) -> Entry:  # noqa: A002
        """Refuse."""
        raise ResponseDisabledError("a copy of a request cannot respond: return the value from the handler")


class Request:
    """One message that a client has sent.

    ``message``: as it was received.  Any thread may call any method at any time.  A request can be pickled; the copy
    knows everything but its connection, and cannot ``respond``.
    """

    __slots__ = ("message", "desk", "claim")

    def __init__(self, message: Message, desk: Desk) -> None:
        self.message = message
        self.desk = desk  # this and the next are not for users
        self.claim = [None]

    @property
    def type(self) -> MessageType:
        """STRING or BINARY; a CLOSE is no handler's business."""
        return self.message[0]

    @property
    def payload(self) -> bytes:
        """The bytes as they came; a STRING's with the NUL at its end, if there was one."""
        return self.message[1]

    @property
    def value(self) -> str | bytes | None:
        """The ``str`` of a STRING (one NUL at its end taken off), the ``bytes`` of a BINARY."""
        kind, payload, _, _ = self.message
        if kind is BINARY:
            return payload
        if kind is STRING:
            return str(payload, "utf-8").removesuffix("\0") if len(payload) <= LONG_TEXT else text_of(payload)
        return None

    @property
    def flags(self) -> int:
        """The flags as they came; bits of :class:`bbipc.messages.MessageFlag`."""
        return self.message[2]

    @property
    def peer(self) -> Peer:
        """Who has sent it: :class:`bbipc.PeerCredentials` of a local peer, (host, port) of one over TCP.

        ``None`` where the system does not tell.
        """
        return self.desk.peer

    @property
    def no_response(self) -> bool:
        """Whether the sender wants no response: what the handler returns is dropped, ``respond`` raises."""
        return bool(self.message[2] & NO_RESPONSE)

    @property
    def responded(self) -> bool:
        """Whether the response was given already."""
        return not self.claim

    def respond(self, value: Value, type: MessageType | None = None) -> None:  # noqa: A002
        """Respond now, and not when the handler returns; what it returns then is dropped.

        *value*: a ``str`` is sent as STRING, a buffer as BINARY, ``None`` as a blank response, a Message's type and
        payload as they are; with *type* as that.  It is sent at once, in the calling thread, as far as the kernel takes
        it; the rest follows.  Never blocks.  A connection that was lost meanwhile is no error.

        :raises ResponseDisabledError: the request wants no response, or this is a copy in another process
        :raises ResponseAlreadySentError: there was a response already
        :raises MessageTooLargeError: longer than the server's limit; another response may be given
        :raises ValueError: a STRING with a NUL in it, or not UTF-8; another response may be given
        :raises TypeError: *value* is nothing that can be sent; another response may be given
        """
        if self.no_response:
            raise ResponseDisabledError("the sender of this request wants no response")
        if self.claim:
            entry = self.desk.entry(self.message, value, type)
            if self.desk.respond(self, entry):
                return
        raise ResponseAlreadySentError("this request was responded to already")

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuilt, (self.message, self.desk.peer)

    def __repr__(self) -> str:
        kind, payload, flags, _ = self.message
        wants = ", no response wanted" if flags & NO_RESPONSE else ", responded" if not self.claim else ""
        return f"<Request {kind.name}, {len(payload)} bytes, from {self.desk.peer!r}{wants}>"


def _rebuilt(message: Message, peer: Peer) -> Request:
    return Request(message, _Elsewhere(peer))


def reply_entry(message: Message, value: Value, type: MessageType | None, limit: int) -> Entry:  # noqa: A002
    """The response to *message* that gives *value*.

    :raises MessageTooLargeError: more than *limit* bytes
    :raises ValueError: a STRING with a NUL in it, or not UTF-8
    :raises TypeError: *value* is nothing that can be sent
    """
    tagged = message[2] & TAGGED
    tag = message[3] if tagged else 0
    if isinstance(value, bytes) and type is None:
        kind, payload = BINARY, value
    elif value is None and type is None:
        return encode_parts(BINARY, b"", _BLANK | TAGGED, tag) if tagged else _BLANK_ENTRY
    elif isinstance(value, Message):
        kind, payload = value.type, value.payload
    else:
        kind, payload = encoded(value, type)
    if len(payload) > limit:
        raise MessageTooLargeError(len(payload), limit)
    return encode_parts(kind, payload, tagged, tag)


def failure_entry(flags: int, tag: int, error: BaseException, limit: int) -> Entry:
    """The response that tells of *error*: its type and text, no traceback; *limit* bytes at most."""
    room = min(MAX_FAILURE_TEXT, limit)
    try:
        text = f"{type(error).__name__}: {error}"
    except BaseException:  # noqa: BLE001 # its __str__ is user code
        text = type(error).__name__
    octets = text[:room].replace("\0", "\\0").encode(errors="backslashreplace")
    payload = octets[: max(room - 1, 0)].decode(errors="ignore").encode() + b"\0"
    tagged = flags & TAGGED
    return encode_parts(STRING, payload[:room], tagged | FAILED, tag if tagged else 0)


def call(handler: Callable[[Request], Reply], request: Request) -> Reply:
    """What an executor is given to do."""
    return handler(request)
