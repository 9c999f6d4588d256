"""Messages as bytes: the header of 32 bytes, the checksum, and the Decoder that finds messages in a stream of bytes.

Law of this file: sans-I/O and total.  No system call, no lock, no clock.  Whatever the bytes are, messages or a
MessageError come out, and the same whatever pieces they come in.  Memory follows the bytes that have come: nothing
is allocated for what a header claims.  The functions may be called from any thread; a Decoder belongs to one
stream, and to one thread at a time.

    0       4       8       12      16              24               32
    | type  | flags | length| tag   | magic         | checksum       | payload …         little-endian

The checksum is the CRC-64/REDIS of all of it, with the magic in the checksum's own place.  An UNSIGNED message has
the magic there, and no checksum.
"""

from __future__ import annotations

import copy
import struct
from collections.abc import Callable
from typing import Final, TypeAlias

from typing_extensions import Buffer

from bbipc.errors import (
    ChecksumError,
    InvalidMessageError,
    MessageError,
    MessageTooLargeError,
    TruncatedMessageError,
)
from bbipc.messages.message import LONG_TEXT, MAX_WORD, TAGGED, UNSIGNED, Message, MessageType, check_text
from bbipc.sockets.buffers import octets

_crc64: Callable[..., int]
try:
    import anycrc  # type: ignore[import-untyped]
except ModuleNotFoundError:
    raise
except ImportError:  # an interpreter inside a process, as InterpreterPoolExecutor makes them, may not load it
    from bbipc.messages.crc64 import crc64 as _crc64
else:
    _crc64 = anycrc.Model("CRC64-REDIS").calc

MAX_MESSAGE_SIZE: Final = 5 * 1024 * 1024 - 1
HEADER_SIZE: Final = 32
#: the bytes of the header that stand before the checksum
CHECKED: Final = 24
MAGIC: Final = 0xBEEFBEEFABAD1DEA
#: up to here copying a payload is cheaper than a second call (of the checksum, of the kernel's vector)
SMALL: Final = 4096

#: pieces of a payload smaller than this are put together: an object and its place cost 41 bytes, and what a large read
#: was given little for may keep a page of memory for itself
_SCRAP: Final = 16384
#: how much of them is put together (to let one grow to the end would move it again and again)
_HEAP: Final = 65536

_TYPES: Final = tuple(MessageType)
_MAGIC_OCTETS: Final = MAGIC.to_bytes(8, "little")
_STRING: Final = int(MessageType.STRING)
_LAST_TYPE: Final = int(max(MessageType))
_HeaderFields: TypeAlias = tuple[int, int, int, int, int, int]
_HEADER: Final = struct.Struct("<IIIIQQ")
_pack: Final = _HEADER.pack
_unpack_from: Final = _HEADER.unpack_from
_make: Final = tuple.__new__


def encode(message: Message) -> bytes:
    """*message* as bytes, header and payload.

    :raises MessageTooLargeError: the length of its payload does not fit into 32 bits
    """
    return encode_header(message) + message.payload


def encode_header(message: Message) -> bytes:
    """The 32 bytes that go before the payload of *message*; the checksum in them covers the payload too.

    For vectored writes of large payloads.

    :raises MessageTooLargeError: the length of its payload does not fit into 32 bits
    """
    kind, payload, flags, tag = message
    size = len(payload)
    if size > MAX_WORD:
        raise MessageTooLargeError(size, MAX_WORD)
    check = MAGIC if flags & UNSIGNED else _checksum(kind, payload, flags, tag)
    return _pack(kind, flags, size, tag, MAGIC, check)


def encode_parts(type: int, payload: bytes, flags: int, tag: int) -> tuple[bytes, ...]:  # noqa: A002
    """A message as buffers to be written one behind the other: one if it is small, else its header and *payload*.

    For hot paths: nothing is looked at, and a number that does not fit is an error of the struct module.
    """
    size = len(payload)
    if size > SMALL:
        check = MAGIC if flags & UNSIGNED else _checksum(type, payload, flags, tag)
        return _pack(type, flags, size, tag, MAGIC, check), payload
    check = MAGIC if flags & UNSIGNED else _crc64(_pack(type, flags, size, tag, MAGIC, MAGIC) + payload)
    return (_pack(type, flags, size, tag, MAGIC, check) + payload,)


def _checksum(kind: int, payload: bytes, flags: int, tag: int) -> int:
    return _crc64(payload, _crc64(_pack(kind, flags, len(payload), tag, MAGIC, MAGIC)))


class Decoder:
    """Finds the messages in the bytes of one stream, whatever pieces they come in.

    *max_message_size*: the longest payload allowed, in bytes.  *accept_unsigned*: take messages that carry no
    checksum; without it they are refused.

    After the first error the decoder is finished: ``error`` is that error (``None`` before), and nothing behind it is
    ever read.  Not to be used by two threads at once.

    :raises ValueError: *max_message_size* is negative, or does not fit into 32 bits
    """

    __slots__ = ("error", "_limit", "_unsigned", "_head", "_fields", "_pieces", "_missing", "_inside")

    def __init__(self, *, max_message_size: int = MAX_MESSAGE_SIZE, accept_unsigned: bool = False) -> None:
        if not 0 <= max_message_size <= MAX_WORD:
            raise ValueError(f"max_message_size must be 0 to {MAX_WORD}, not {max_message_size}")
        self._limit = max_message_size
        self._unsigned = accept_unsigned
        self.error: MessageError | None = None
        self._inside = False
        self._reset()

    def feed(self, buffer: Buffer) -> list[Message]:
        """The messages that *buffer* completes, in order.

        If an error comes behind some of them, or behind none, they are returned, and ``error`` is set.  ``bytes`` are
        kept by reference where a long payload comes in pieces; another buffer is copied, and may be used again.

        :raises MessageError: there was an error in an earlier call; of the same kind
        :raises TypeError: no contiguous buffer
        """
        if self.error is not None:
            self.check()
        if type(buffer) is bytes:
            data = buffer
        else:
            view = octets(buffer)
            if len(view) > _HEAP:
                return self._feed_in_parts(view)
            data = bytes(view)
        messages: list[Message] = []
        try:
            at = self._resume(data, messages) if self._inside else 0
            size = len(data)
            while size - at >= HEADER_SIZE:
                kind, flags, length, tag, magic, check = _unpack_from(data, at)
                if magic != MAGIC or kind > _LAST_TYPE or length > self._limit or flags & UNSIGNED:
                    self._judge(kind, flags, length, tag, magic, check)
                start = at + HEADER_SIZE
                end = start + length
                if end > size:
                    return self._begin((kind, flags, length, tag, magic, check), data, start, messages)
                payload = data[start:end]
                if length > SMALL or _crc64(data[at : at + CHECKED] + _MAGIC_OCTETS + payload) != check:
                    messages.append(_verified(kind, flags, tag, check, payload))
                elif kind == _STRING and not payload.isascii():
                    messages.append(_checked_text(flags, tag, payload))
                else:
                    messages.append(_make(Message, (_TYPES[kind], payload, flags, tag)))
                at = end
            if at < size:
                self._inside, self._head = True, data[at:]
        except MessageError as error:
            self._end(error)
        return messages

    def _feed_in_parts(self, view: memoryview) -> list[Message]:
        """*view* may change: it is copied so that a long payload is a piece of its own, which then stays as it is."""
        messages: list[Message] = []
        at, size = 0, len(view)
        while at < size and self.error is None:
            wanted = self.wanted
            if not self._inside and size - at >= HEADER_SIZE:
                length = _unpack_from(view, at)[2]
                wanted += length if length <= SMALL else 0
            messages += self.feed(bytes(view[at : at + wanted]))
            at += wanted
        return messages

    def check(self) -> None:
        """Raise what ended this decoder, if anything did.

        :raises MessageError: nothing more can be read from this stream
        """
        if self.error is not None:
            raise copy.copy(self.error)  # an exception that is raised again and again collects tracebacks

    @property
    def pending(self) -> int:
        """How many bytes of an incomplete message are held; 0 between messages."""
        fields = self._fields
        return len(self._head) if fields is None else HEADER_SIZE + fields[2] - self._missing

    @property
    def wanted(self) -> int:
        """How many bytes are missing, as far as is known: of the payload, or of the next header.  0 after an error."""
        if self.error is not None:
            return 0
        return HEADER_SIZE - len(self._head) if self._fields is None else self._missing

    def finish(self) -> None:
        """Say that the stream has ended.

        :raises TruncatedMessageError: it ended inside a message
        :raises MessageError: there was an error before
        """
        if self._inside:
            need = HEADER_SIZE if self._fields is None else HEADER_SIZE + self._fields[2]
            self._end(TruncatedMessageError(self.pending, need))
        self.check()

    # Between two calls inside a message: the bytes of its header, or the header's fields and pieces of the payload.

    def _reset(self) -> None:
        self._inside = False
        self._head = b""
        self._fields: _HeaderFields | None = None
        self._pieces: list[bytes | bytearray | memoryview] = []
        self._missing = 0

    def _end(self, error: MessageError) -> None:
        self._reset()
        self.error = error.with_traceback(None)  # its frames hold the peer's bytes

    def _judge(self, kind: int, flags: int, length: int, tag: int, magic: int, check: int) -> None:
        """Say what is wrong with a header, if anything is."""
        if magic != MAGIC:
            raise InvalidMessageError("no message begins here")
        if kind > _LAST_TYPE:
            raise InvalidMessageError(f"there is no message of type {kind}")
        if length > self._limit:
            raise MessageTooLargeError(length, self._limit, tag=tag if flags & TAGGED else None)
        if flags & UNSIGNED and (not self._unsigned or check != MAGIC):
            raise InvalidMessageError("a message without a checksum is not accepted here")

    def _begin(self, fields: _HeaderFields, data: bytes, start: int, before: list[Message]) -> list[Message]:
        """The payload of *fields* begins at *start*, and does not end in *data*.  Gives back *before*."""
        self._inside, self._fields, self._missing = True, fields, fields[2]
        self._keep(data, start)
        return before

    def _resume(self, data: bytes, messages: list[Message]) -> int:
        """Go on with the message that is incomplete; how many bytes of *data* belong to it."""
        at, size, fields = 0, len(data), self._fields
        if fields is None:
            at = HEADER_SIZE - len(self._head)
            self._head += data[:at]
            if size < at:
                return size
            fields = self._fields = _unpack_from(self._head)
            self._judge(*fields)
            self._missing = fields[2]
        end = at + self._missing
        if end > size:
            self._keep(data, at)
            return size
        kind, flags, _, tag, _, check = fields
        self._pieces.append(memoryview(data)[at:end] if SMALL < end - at < size else data[at:end])
        payload = b"".join(self._pieces)
        self._reset()
        messages.append(_verified(kind, flags, tag, check, payload))
        return end

    def _keep(self, data: bytes, start: int) -> None:
        """All from *start* on belongs to the payload: kept by reference where *data* is little else."""
        whole = len(data)
        size = whole - start
        self._missing -= size
        if size >= _SCRAP:
            by_reference = start and size * 2 >= whole
            self._pieces.append(memoryview(data)[start:] if by_reference else data[start:])
        elif size:
            last = self._pieces[-1] if self._pieces else None
            if isinstance(last, bytearray) and len(last) < _HEAP:
                last += data[start:]
            else:
                self._pieces.append(bytearray(data[start:]))


def _verified(kind: int, flags: int, tag: int, check: int, payload: bytes) -> Message:
    """The message, if it is the one that was sent."""
    if not flags & UNSIGNED and _checksum(kind, payload, flags, tag) != check:
        raise ChecksumError(len(payload))
    if kind == _STRING and not payload.isascii():
        return _checked_text(flags, tag, payload)
    return _make(Message, (_TYPES[kind], payload, flags, tag))


def _checked_text(flags: int, tag: int, payload: bytes) -> Message:
    try:
        str(payload, "utf-8") if len(payload) <= LONG_TEXT else check_text(payload)
    except UnicodeDecodeError:  # it holds the bytes, and would travel along as the context of ours
        pass
    else:
        return _make(Message, (MessageType.STRING, payload, flags, tag))
    raise InvalidMessageError(f"a STRING of {len(payload)} bytes is not UTF-8")
