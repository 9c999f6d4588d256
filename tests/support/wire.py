"""Frames made and read without any help of bbipc: what a reply ought to be, said by somebody else.

The checksum goes bit by bit, straight from its definition: slow, and right for a reason of its own.
"""

from __future__ import annotations

import socket
import struct
from typing import Final, NamedTuple

STRING: Final = 0
BINARY: Final = 1
CLOSE: Final = 2

NO_RESPONSE: Final = 1
DISCARD: Final = 2
UNSIGNED: Final = 4
FAILED: Final = 8
TAGGED: Final = 16

MAGIC: Final = 0xBEEFBEEFABAD1DEA
LIMIT: Final = 5 * 1024 * 1024  # a payload is shorter than this
HEADER: Final = struct.Struct("<IIIIQQ")
_REFLECTED: Final = int(f"{0xAD93D23594C935A9:064b}"[::-1], 2)


def crc64(data: bytes, crc: int = 0) -> int:
    """CRC-64/REDIS of *data*, behind *crc*."""
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ _REFLECTED if crc & 1 else crc >> 1
    return crc


_TABLE: Final = tuple(crc64(bytes([byte])) for byte in range(256))


def quick_crc64(data: bytes, crc: int = 0) -> int:
    """The same by a table, for payloads of some size."""
    table = _TABLE
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 255]
    return crc


class Frame(NamedTuple):
    """One message as it stands on the wire."""

    type: int
    payload: bytes = b""
    flags: int = 0
    word: int = 0  # the reserved one

    def header(self, length: int | None = None, *, magic: int = MAGIC, check: int | None = None) -> bytes:
        """The first 32 bytes; what is named is put there, right or wrong."""
        if length is None:
            length = len(self.payload)
        if check is None and self.flags & UNSIGNED:
            check = MAGIC
        if check is None:
            check = quick_crc64(HEADER.pack(self.type, self.flags, length, self.word, magic, MAGIC) + self.payload)
        return HEADER.pack(self.type, self.flags, length, self.word, magic, check)

    def encoded(self) -> bytes:
        return self.header() + self.payload

    @property
    def text(self) -> str:
        """What a STRING says."""
        assert self.type == STRING, self
        assert self.payload.endswith(b"\0"), self
        return self.payload[:-1].decode()


#: what is answered where the handler gave nothing
BLANK: Final = Frame(BINARY, b"", NO_RESPONSE | DISCARD)


def string(text: str, flags: int = 0, tag: int = 0) -> Frame:
    return Frame(STRING, text.encode() + b"\0", flags, tag)


def tagged(frame: Frame, tag: int) -> Frame:
    return frame._replace(flags=frame.flags | TAGGED, word=tag)


def untagged(frame: Frame) -> Frame:
    """*frame* as who knows nothing of tags would have sent it."""
    return frame._replace(flags=frame.flags & ~TAGGED, word=0) if frame.flags & TAGGED else frame


def decoded(data: bytes) -> Frame:
    """The one frame that *data* is."""
    kind, flags, length, word, magic, check = HEADER.unpack_from(data)
    frame = Frame(kind, data[32:], flags, word)
    assert len(frame.payload) == length, f"{length} bytes are announced, {len(frame.payload)} came"
    assert magic == MAGIC
    if not flags & UNSIGNED:
        assert check == int.from_bytes(frame.header()[24:], "little"), f"bad checksum: {frame.type, length, flags}"
    return frame


def receive_exactly(peer: socket.socket, count: int) -> bytes:
    """*count* bytes; fewer at the end of the stream."""
    data = bytearray()
    while len(data) < count and (part := peer.recv(count - len(data))):
        data += part
    return bytes(data)


def receive(peer: socket.socket) -> Frame | None:
    """The next frame; ``None`` is the end."""
    header = receive_exactly(peer, 32)
    if not header:
        return None
    assert len(header) == 32, f"the peer ended inside a header: {header.hex()}"
    length = HEADER.unpack(header)[2]
    assert length < LIMIT
    return decoded(header + receive_exactly(peer, length))


def receive_all(peer: socket.socket) -> list[Frame]:
    """Every frame until the end; a reset is one, too."""
    found = []
    try:
        while (frame := receive(peer)) is not None:
            found.append(frame)
    except ConnectionResetError:
        pass
    return found


def is_failure(frame: Frame, tag: int | None = None) -> bool:
    """Whether *frame* says that something failed, in words; to nobody in particular, or to *tag*."""
    flags = FAILED if tag is None else FAILED | TAGGED
    return frame.flags == flags and frame.word == (tag or 0) and len(frame.text) > 0
