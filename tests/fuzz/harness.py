"""What must be true of a Decoder for any bytes at all: one function, which a fuzzer calls and the suite replays.

An input is two things: four bytes that say how, and the stream.  Random bytes hardly ever have the magic and never a
checksum, so nothing behind them would be reached; the first byte says what is put right before the stream is read.

    byte 0      bits: 1 accept unsigned, 2 a limit of 64 bytes, and repair 4 the magic, 8 the length, 16 the type,
                32 the checksum; 64 what counts as small is small enough for the inputs of a fuzzer
    byte 1-3    how long the pieces are in which the stream is fed, in turn; all 0: in one piece
    the rest    the stream
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

from bbipc import ChecksumError, InvalidMessageError, MessageError, MessageTooLargeError, TruncatedMessageError
from bbipc.messages import MAX_MESSAGE_SIZE, Decoder, Message, encode, frames
from tests.support import wire

ACCEPT_UNSIGNED, SMALL_LIMIT, MAGIC, LENGTH, TYPE, CHECKSUM, SHRUNK = 1, 2, 4, 8, 16, 32, 64
HEADER = wire.HEADER.size


class Verdict(NamedTuple):
    """What became of a stream."""

    frames: list[wire.Frame]
    error: type[MessageError] | None
    text: str
    pending: int


def run(data: bytes) -> Verdict:
    """Decode the stream of *data* in pieces, at once, and by the reference, and compare.

    :raises AssertionError: they do not agree, or something is not as promised
    """
    options, sizes = (data[0] if data else 0), data[1:4]
    stream = repaired(data[4:], options)
    limit = 64 if options & SMALL_LIMIT else MAX_MESSAGE_SIZE
    accept_unsigned = bool(options & ACCEPT_UNSIGNED)
    with shrunk() if options & SHRUNK else contextlib.nullcontext():
        apart = verdict(pieces(stream, sizes), limit, accept_unsigned=accept_unsigned)
        together = verdict(iter([stream]), limit, accept_unsigned=accept_unsigned)
    assert apart == together
    expected, error, pending = reference(stream, limit, accept_unsigned=accept_unsigned)
    assert (together.frames, together.error, together.pending) == (expected, error, pending)
    read = b"".join(encode(Message(*frame)) for frame in expected)  # type: ignore[arg-type]
    assert stream.startswith(read)
    assert error or len(stream) == len(read) + pending
    return together


@contextlib.contextmanager
def shrunk() -> Iterator[None]:
    """The sizes from which on a decoder goes another way, made so small that short inputs take every way."""
    names = {"SMALL": 40, "_SCRAP": 12, "_HEAP": 30}
    before = {name: getattr(frames, name) for name in names}
    vars(frames).update(names)
    try:
        yield
    finally:
        vars(frames).update(before)


def verdict(feed: Iterator[bytes], limit: int, *, accept_unsigned: bool) -> Verdict:
    decoder = Decoder(max_message_size=limit, accept_unsigned=accept_unsigned)
    found: list[Message] = []
    for piece in feed:
        wanted = decoder.wanted
        new = decoder.feed(piece)
        assert not new or len(piece) >= wanted
        found += new
        if decoder.error is not None:
            break
    pending, error = decoder.pending, decoder.error
    ended = end(decoder)
    if isinstance(ended, TruncatedMessageError):
        assert error is None
        assert ended.have == pending < ended.need
    else:
        assert (type(ended), str(ended), pending) == (type(error), str(error), 0)
    for message in found:
        assert isinstance(message.value, str | bytes | None)
    return Verdict([wire.Frame(*message) for message in found], type(error) if error else None, str(error), pending)


def end(decoder: Decoder) -> MessageError | None:
    try:
        decoder.finish()
    except MessageError as error:
        return error
    return None


def reference(
    stream: bytes, limit: int, *, accept_unsigned: bool
) -> tuple[list[wire.Frame], type[MessageError] | None, int]:
    """The same as it would be written by somebody who has all the bytes and all the time."""
    found: list[wire.Frame] = []
    while len(stream) >= HEADER:
        kind, flags, length, word, magic, check = wire.HEADER.unpack(stream[:HEADER])
        unsigned = flags & wire.UNSIGNED
        if magic != wire.MAGIC or kind > wire.CLOSE:
            return found, InvalidMessageError, 0
        if length > limit:
            return found, MessageTooLargeError, 0
        if unsigned and not (accept_unsigned and check == wire.MAGIC):
            return found, InvalidMessageError, 0
        if len(stream) < HEADER + length:
            break
        frame = wire.Frame(kind, stream[HEADER : HEADER + length], flags, word)
        if frame.header() != stream[:HEADER]:
            return found, ChecksumError, 0
        try:
            frame.payload.decode() if kind == wire.STRING else None
        except UnicodeDecodeError:
            return found, InvalidMessageError, 0
        found.append(frame)
        stream = stream[HEADER + length :]
    return found, None, len(stream)


def pieces(stream: bytes, sizes: bytes) -> Iterator[bytes]:
    if not any(sizes):
        yield stream
        return
    at = turn = 0
    while at < len(stream):
        size = sizes[turn % len(sizes)]
        yield stream[at : at + size]
        at, turn = at + size, turn + 1


def repaired(stream: bytes, options: int) -> bytes:
    """*stream* with what *options* say put right in every header of it."""
    done = b""
    while len(stream) >= HEADER:
        kind, flags, length, word, magic, check = wire.HEADER.unpack(stream[:HEADER])
        room = len(stream) - HEADER
        length = length % (room + 1) if options & LENGTH else length
        kind = kind % 3 if options & TYPE else kind
        magic = wire.MAGIC if options & MAGIC else magic
        frame = wire.Frame(kind, stream[HEADER : HEADER + length], flags, word)
        right = options & CHECKSUM and length <= room
        done += frame.header(length, magic=magic, check=None if right else check) + frame.payload
        stream = stream[HEADER + length :]
    return done + stream
