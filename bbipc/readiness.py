"""What the kernel's flags mean: the one truth table of the package.

Two laws.  This file is pure: no system call, no lock, no socket; numbers in, numbers out.  And no other file turns
flags into events: predicates, ``poll_socket``, ``poll_sockets`` and every poller backend come here.
(``connection.py``, ``tcp.py`` and ``watch.py`` look at flags only to settle a connect, to tell a reset from an end, and
to choose how to wait.)

    the stream is                             CONDITION   standing events       DATA        WRITE       ROOM
    connecting                                CONNECTING  -                     -           -           -
    refused / unreachable                     FAILED      DETERMINED FAILED     -           -           yes
    up                                        UP          DETERMINED SUCCEEDED  if readable if writable if answered
    peer closed, shut or reset, bytes unread  UP          DETERMINED SUCCEEDED  yes         if writable if answered
    peer closed, shut or reset, all read      ENDED       DETERMINED FAILED     -           -           if answered
                                                          DISCONNECTED

Why the kernel's own words are not enough:

- A local peer that closes gives IN|RDHUP|HUP, a TCP peer IN|RDHUP, with or without bytes unread: a hang-up says
  "nothing more will come", never "nothing is left".  So a hang-up asks for the number of unread bytes (FIONREAD), and
  only with none left the stream has ended.
- A connecting TCP stream and an established one with a full send buffer both poll empty: the stage of the connect is
  remembered by the socket and handed in, never guessed from flags.
- OUT stays set after a hang-up: on an ended stream it does not tell whether anybody reads.  It tells that a write would
  not have to wait, and so do HUP and ERR, with which it raises: "answered".  That is ROOM_TO_WRITE.
"""

from __future__ import annotations

import enum
import select
from typing import Final

from bbipc.events import (
    CONNECTION_AVAILABLE,
    CONNECTION_FAILED,
    CONNECTION_SUCCEEDED,
    DATA_AVAILABLE,
    DETERMINED,
    READY_TO_WRITE,
    REMOTE_DISCONNECTED,
    ROOM_TO_WRITE,
    STREAM_EVENTS,
)

# The numbers of this system's poll(2), which on Linux are those of epoll(7), so that there both need no translation.
READABLE: Final = 0x001
WRITABLE: Final = 0x004
ERROR: Final = 0x008
HUNG_UP: Final = 0x010
INVALID: Final = 0x020
READ_HUNG_UP: Final[int] = getattr(select, "POLLRDHUP", 0x2000)  # FreeBSD has another one than Linux, most have none

#: the peer will send nothing more (what it sent may still be unread)
ANY_HANG_UP: Final = READ_HUNG_UP | HUNG_UP | ERROR
#: told by the kernel whatever was asked, for as long as they last
UNASKED: Final = HUNG_UP | ERROR | INVALID
#: a write would take at least one byte, or raise
WRITE_ANSWERED: Final = WRITABLE | HUNG_UP | ERROR
#: all that a look asks for
EVERYTHING: Final = READABLE | WRITABLE | READ_HUNG_UP


class Stage(enum.Enum):
    """How far the connect has come; remembered by the stream, moves only forward."""

    __hash__ = object.__hash__  # Enum's is written in Python: 0.1 us

    CONNECTING = "connecting"
    CONNECTED = "connected"
    FAILED = "failed"


class Condition(enum.Enum):
    """A row of the truth table."""

    __hash__ = object.__hash__

    CONNECTING = "connecting"
    FAILED = "failed"
    UP = "up"
    ENDED = "ended"


#: true for as long as the condition lasts, whatever the buffers hold
STANDING: Final[dict[Condition, int]] = {
    Condition.CONNECTING: 0,
    Condition.FAILED: DETERMINED | CONNECTION_FAILED | ROOM_TO_WRITE,
    Condition.UP: DETERMINED | CONNECTION_SUCCEEDED,
    Condition.ENDED: DETERMINED | CONNECTION_FAILED | REMOTE_DISCONNECTED,
}

#: can be true now or later; a wait for none of these is a wait for nothing
ATTAINABLE: Final[dict[Condition, int]] = {
    Condition.CONNECTING: STREAM_EVENTS,
    Condition.FAILED: STANDING[Condition.FAILED],
    Condition.UP: STREAM_EVENTS,
    Condition.ENDED: STANDING[Condition.ENDED] | ROOM_TO_WRITE,
}


def condition_of(stage: Stage, flags: int, unread: int) -> Condition:
    """The row of the table; *unread* counts only where *flags* tell of a hang-up."""
    if stage is Stage.CONNECTING:
        return Condition.CONNECTING
    if stage is Stage.FAILED:
        return Condition.FAILED
    if flags & ANY_HANG_UP and not unread:
        return Condition.ENDED
    return Condition.UP


def stream_events(condition: Condition, flags: int, unread: int) -> int:
    """All events that are true of a stream in *condition*."""
    events = STANDING[condition]
    if condition is Condition.UP:
        if flags & READABLE or unread:
            events |= DATA_AVAILABLE
        if flags & WRITABLE:
            events |= READY_TO_WRITE
    if flags & WRITE_ANSWERED and condition is not Condition.CONNECTING:
        events |= ROOM_TO_WRITE
    return events


#: the row "up" worked out for every set of flags without a hang-up: (what is true, what can come)
PLAIN: Final = {
    flags: (stream_events(Condition.UP, flags, 0), ATTAINABLE[Condition.UP])
    for flags in (0, READABLE, WRITABLE, READABLE | WRITABLE)
}


def server_events(flags: int) -> int:
    """All events that are true of a listening socket."""
    return CONNECTION_AVAILABLE if flags & READABLE else 0


def stream_interest(stage: Stage, wanted: int, *, end_has_edge: bool) -> int:
    """Which kernel flags to ask for, so that every change which could matter to *wanted* wakes the waiter.

    *end_has_edge*: the kernel call has a flag for the peer's end alone (RDHUP).  select, kqueue and the poll of BSD
    have none: there the end shows as "readable", and a wait for the end alone is woken by data too.
    """
    if stage is Stage.CONNECTING:
        return WRITABLE
    if wanted == ROOM_TO_WRITE:
        # Without RDHUP, which lasts: where the peer has ended and our buffer is full, it would be told without end.
        # Nothing is lost: what a write would do does not depend on it.
        return WRITABLE
    flags = 0
    if wanted & DATA_AVAILABLE:
        flags |= READABLE
    if wanted & (READY_TO_WRITE | ROOM_TO_WRITE):
        flags |= WRITABLE
    if wanted & (REMOTE_DISCONNECTED | CONNECTION_FAILED) and not end_has_edge:
        flags |= READABLE
    # RDHUP also where only DATA or WRITE is wanted: it is told only if asked for, and without it
    # a TCP stream whose peer has closed would pass for readable or writable.
    return flags | READ_HUNG_UP
