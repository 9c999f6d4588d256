"""SocketEvent: what can be asked of a socket, and what a poll answers.

Law of this file: names and numbers only.  Inside the package events are plain ints (arithmetic on ``enum.Flag``
costs about a microsecond); ``EVENTS`` turns an int into the member at the face, ``bits`` a member into an int.
"""

from __future__ import annotations

import enum
from typing import Final


class SocketEvent(enum.Flag):
    """A set of states of a socket; each member has the predicate of the same name on the socket itself."""

    #: server: a peer waits to be accepted
    CONNECTION_AVAILABLE = 1
    #: stream: the outcome of the connect is known, whatever it is
    DETERMINED = 2
    #: stream: connected, and the peer has not gone
    CONNECTION_SUCCEEDED = 4
    #: stream: never connected, or the peer has gone and all that it sent was read
    CONNECTION_FAILED = 8
    #: stream: bytes to read
    DATA_AVAILABLE = 16
    #: stream: a write will take at least one byte
    READY_TO_WRITE = 32
    #: stream: the peer closed, reset or shut its sending side, and all that it sent was read
    REMOTE_DISCONNECTED = 64
    #: stream: a write will take at least one byte, or raise: what keeps a write waiting is over
    ROOM_TO_WRITE = 128


CONNECTION_AVAILABLE: Final = 1
DETERMINED: Final = 2
CONNECTION_SUCCEEDED: Final = 4
CONNECTION_FAILED: Final = 8
DATA_AVAILABLE: Final = 16
READY_TO_WRITE: Final = 32
REMOTE_DISCONNECTED: Final = 64
ROOM_TO_WRITE: Final = 128

SERVER_EVENTS: Final = CONNECTION_AVAILABLE
STREAM_EVENTS: Final = (
    DETERMINED
    | CONNECTION_SUCCEEDED
    | CONNECTION_FAILED
    | DATA_AVAILABLE
    | READY_TO_WRITE
    | REMOTE_DISCONNECTED
    | ROOM_TO_WRITE
)

#: every combination by its number: ``EVENTS[DATA_AVAILABLE | READY_TO_WRITE]``
EVENTS: Final = tuple(SocketEvent(number) for number in range(256))


def bits(events: SocketEvent) -> int:
    """The int of *events*.

    :raises TypeError: *events* is not a SocketEvent (a bare int would be a mask of somebody else's numbering)
    """
    if not isinstance(events, SocketEvent):
        raise TypeError(f"events must be a SocketEvent, not {type(events).__name__}")
    return events._value_  # .value is a property written in Python: 0.07 us
