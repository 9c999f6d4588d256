"""Message: a typed value as it travels, and what its type, flags and tag mean.

Law of this file: values only.  It knows neither header nor checksum (``frames.py``) and no socket, holds no state,
and may be called from any thread.  Flags are plain ints inside (arithmetic on ``enum.IntFlag`` costs a microsecond);
a bit that is unknown here is kept and means nothing.
"""

from __future__ import annotations

import codecs
import enum
import io
from typing import Final, NamedTuple, Self

from typing_extensions import Buffer

from bbipc.sockets.buffers import octets


class MessageType(enum.IntEnum):
    """What a payload is."""

    #: UTF-8 text, with one NUL behind it that is no part of it
    STRING = 0
    #: bytes
    BINARY = 1
    #: asks the receiver to stop; a payload is allowed
    CLOSE = 2


class MessageFlag(enum.IntFlag):
    """What else is to be known of a message."""

    #: the sender of this request wants no response
    NO_RESPONSE = 1
    #: a request: not for the handler.  A response: there is no value
    DISCARD = 2
    #: there is no checksum; a receiver refuses it unless it said otherwise
    UNSIGNED = 4
    #: a response: the handler failed, the payload says with what
    FAILED = 8
    #: the tag means something: a response carries the tag of its request
    TAGGED = 16


STRING: Final = MessageType.STRING
BINARY: Final = MessageType.BINARY
CLOSE: Final = MessageType.CLOSE

NO_RESPONSE: Final = 1
DISCARD: Final = 2
UNSIGNED: Final = 4
FAILED: Final = 8
TAGGED: Final = 16

_KNOWN: Final = NO_RESPONSE | DISCARD | UNSIGNED | FAILED | TAGGED

#: flags, tag and the length of a payload have 32 bits on the wire
MAX_WORD: Final = (1 << 32) - 1
#: bytes of a text that may be copied once more, as that is quicker; longer ones are looked at in such pieces
LONG_TEXT: Final = 1 << 16


class _Fields(NamedTuple):
    type: MessageType
    payload: bytes
    flags: int
    tag: int


class Message(_Fields):
    """One message: ``type``, ``payload`` (bytes as on the wire), ``flags`` and ``tag``.

    It cannot be changed; it can be compared, hashed, copied, pickled, and unpacked into its four fields.  ``tag`` is
    the header's reserved word as it came, and means something only with TAGGED in ``flags``.

    :raises ValueError: *type* is none, *flags* or *tag* does not fit into 32 bits, a STRING's payload is not UTF-8
    :raises TypeError: *payload* is no buffer, *flags* or *tag* no int
    """

    __slots__ = ()

    def __new__(cls, type: MessageType, payload: Buffer, flags: int = 0, tag: int = 0) -> Self:  # noqa: A002, D102
        kind = MessageType(type)
        content = _octets(payload)
        if kind is STRING and not content.isascii():
            check_text(content)
        return super().__new__(cls, kind, content, _word("flags", flags), _word("tag", tag))

    @classmethod
    def string(cls, text: str, flags: int = 0, tag: int = 0) -> Self:
        """*text* as a STRING, with the NUL that readers written in C need.

        :raises ValueError: a NUL is in *text* (such readers would end there), or it cannot be encoded
        """
        return cls(STRING, _terminated(text), flags, tag)

    @classmethod
    def binary(cls, buffer: Buffer, flags: int = 0, tag: int = 0) -> Self:
        """A copy of *buffer* as BINARY (``bytes`` are not copied).

        :raises TypeError: no contiguous buffer
        """
        return cls(BINARY, buffer, flags, tag)

    @classmethod
    def close(cls, flags: int = 0, tag: int = 0) -> Self:
        """A CLOSE without a payload."""
        return cls(CLOSE, b"", flags, tag)

    @classmethod
    def of(
        cls,
        value: str | Buffer | Message | None,
        type: MessageType | None = None,  # noqa: A002
        flags: int = 0,
        tag: int = 0,
    ) -> Self:
        """*value* as a message: ``str`` as STRING, buffer as BINARY, ``None`` as CLOSE; a Message's type and payload.

        With *type* the value is sent as that: a ``str`` as BINARY or CLOSE is its UTF-8, a buffer as STRING is text.

        :raises ValueError: a STRING with a NUL in it, or not UTF-8
        :raises TypeError: *value* is neither ``str`` nor buffer nor Message nor ``None``
        """
        if isinstance(value, Message):
            kind, payload = value.type, value.payload
        else:
            kind, payload = encoded(value, type)
        return cls(kind, payload, flags, tag)

    @property
    def value(self) -> str | bytes | None:
        """The ``str`` of a STRING (one trailing NUL taken off), the ``bytes`` of a BINARY, ``None`` for a CLOSE."""
        kind, payload, _, _ = self
        if kind is BINARY:
            return payload
        if kind is STRING:
            return str(payload, "utf-8").removesuffix("\0") if len(payload) <= LONG_TEXT else text_of(payload)
        return None

    def __repr__(self) -> str:
        flags = f", flags={_shown(self.flags)}" if self.flags else ""
        tag = f", tag={self.tag}" if self.flags & TAGGED else ""
        return f"<Message {self.type.name}, {len(self.payload)} bytes{flags}{tag}>"

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Message):
            return tuple.__eq__(self, other)
        return False if isinstance(other, tuple) else NotImplemented  # the tuple's own comparison would say True

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return tuple.__hash__(self)


def encoded(value: str | Buffer | None, kind: MessageType | None = None) -> tuple[MessageType, bytes]:
    """The type and the payload of *value*, as :meth:`Message.of` finds them, without a Message being made.

    :raises ValueError: a STRING with a NUL in it, or not UTF-8; *kind* is no type
    :raises TypeError: *value* is neither ``str`` nor buffer nor ``None``
    """
    if kind is None:
        kind = STRING if isinstance(value, str) else CLOSE if value is None else BINARY
    else:
        kind = MessageType(kind)
    if isinstance(value, str):
        return kind, _terminated(value) if kind is STRING else value.encode()
    payload = b"" if value is None else _octets(value)
    if kind is not STRING:
        return kind, payload
    check_text(payload)
    whole = 0 <= payload.find(0) == len(payload) - 1
    return kind, payload if whole else _terminated(payload.removesuffix(b"\0"))


def _octets(buffer: Buffer) -> bytes:
    if type(buffer) is bytes:
        return buffer
    try:
        view = memoryview(buffer)
    except TypeError:
        what = "a str, a bytes-like object, a Message or None"
        raise TypeError(f"a message is made of {what}, not of {type(buffer).__name__}") from None
    return bytes(octets(view))


def _terminated(text: str | bytes) -> bytes:
    payload = text.encode() if isinstance(text, str) else text
    if b"\0" in payload:
        raise ValueError(f"a NUL in a text of {len(payload)} bytes: readers written in C would end there")
    if len(payload) <= LONG_TEXT:
        return payload + b"\0"
    room = io.BytesIO(payload)  # it grows where it is, if nobody else has it
    del payload
    room.seek(0, io.SEEK_END)
    room.write(b"\0")
    return room.getvalue()


def check_text(payload: bytes) -> None:
    """Say that *payload* is UTF-8; of a long one no second copy is made for that.

    :raises UnicodeDecodeError: it is not
    """
    if len(payload) > LONG_TEXT:
        decoder = codecs.getincrementaldecoder("utf-8")()
        view = memoryview(payload)
        try:
            for at in range(0, len(view), LONG_TEXT):
                decoder.decode(view[at : at + LONG_TEXT])
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:  # in a piece: said below of the whole
            pass
        else:
            return
    str(payload, "utf-8")


def text_of(payload: bytes) -> str:
    """The text of a STRING's *payload*, a long one: one NUL at its end is no part of it."""
    return str(memoryview(payload)[:-1] if payload.endswith(b"\0") else payload, "utf-8")


def _word(name: str, number: int) -> int:
    if not isinstance(number, int):
        raise TypeError(f"{name} must be an int, not {type(number).__name__}")
    if not 0 <= number <= MAX_WORD:
        raise ValueError(f"{name} must be 0 to {MAX_WORD}, not {number}")
    return int(number)


def _shown(flags: int) -> str:
    known = [flag.name or "" for flag in MessageFlag if flags & flag]
    rest = flags & ~_KNOWN
    return "|".join([*known, hex(rest)] if rest else known)
