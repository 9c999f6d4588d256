"""CRC-64/REDIS in Python, for interpreters that cannot load the one in C: a thousand times slower, and the same.

Law of this file: pure.  Nobody but ``frames.py`` uses it, and only where there is nothing better.  Handlers in an
interpreter of their own get their requests through it, and little else is made or read there.
"""

from __future__ import annotations

from typing import Final

from typing_extensions import Buffer

from bbipc.sockets.buffers import octets

_REFLECTED: Final = 0x95AC9329AC4BC9B5  # the polynomial 0xAD93D23594C935A9, its bits the other way round


def _entry(octet: int) -> int:
    for _ in range(8):
        octet = octet >> 1 ^ (_REFLECTED if octet & 1 else 0)
    return octet


_TABLE: Final = tuple(map(_entry, range(256)))


def crc64(data: Buffer, before: int = 0) -> int:
    """The checksum of *data*; behind what has the checksum *before*."""
    check = before
    for octet in octets(data):
        check = check >> 8 ^ _TABLE[(check ^ octet) & 255]
    return check
