"""Watch: one socket that is waited for, and how it has to be waited for.

Law of this file: no system call of its own, no lock.  Pollers and one-shot waits decide here, so that they agree.

A level-triggered kernel reports a hang-up whatever was asked, and again and again.  So a socket is in the kernel's
set only while each report is worth something:

    KERNEL  in the kernel's set, for the flags in ``mask``
    NOW     something that was asked for is true and stays true (DETERMINED of a connected stream): no need to wait
    TICK    something may still come, but the kernel has no edge for it: look again after 1 to 50 ms.  A local connect
            whose server's backlog is full; a hung-up stream with unread bytes that somebody else drains; and, on
            kernels without a flag for the end alone, unread bytes on a stream that is asked for its end alone
    NEVER   nothing that was asked for can come any more, or nothing was asked for

What a stream has lost the hope of, it never gets back.  So what was asked for shrinks to what is *awaited*, and the
kernel is asked for that alone: room on a stream whose peer has ended, without the end that it would tell for ever.
"""

from __future__ import annotations

import enum
from typing import Final

from bbipc.events import SocketEvent, bits
from bbipc.readiness import UNASKED
from bbipc.sockets.base import Socket
from bbipc.sockets.handle import CLOSED, Handle

UNKNOWN: Final = -1
FIRST_TICK: Final = 0.001
LONGEST_TICK: Final = 0.05


class Mode(enum.Enum):
    """How to wait; see the head of this file."""

    __hash__ = object.__hash__  # Enum's is written in Python: 0.1 us

    KERNEL = "kernel"
    NOW = "now"
    TICK = "tick"
    NEVER = "never"


def wanted_bits(socket: Socket, events: SocketEvent) -> int:
    """*events* as an int, if *socket* has them.

    :raises TypeError: not a Socket, or not a SocketEvent
    :raises ValueError: an event that this kind of socket does not have
    """
    if not isinstance(socket, Socket):
        raise TypeError(f"a Socket is required, not {type(socket).__name__}")
    wanted = bits(events)
    if wanted & ~socket._events_offered:
        foreign = SocketEvent(wanted & ~socket._events_offered)
        raise ValueError(f"a {type(socket).__name__} does not have {foreign!r}")
    return wanted


class Watch:
    """A socket, the handle it had (held, so that its number stays its own), and what is wanted of it."""

    __slots__ = ("socket", "handle", "number", "wanted", "awaited", "mode", "mask", "told", "answers", "changes")

    def __init__(self, socket: Socket, handle: Handle, wanted: int) -> None:
        self.socket = socket
        self.handle = handle
        self.number = handle.fileno()
        self.wanted = wanted
        #: what of it may still come, as far as the reports have told
        self.awaited = wanted
        self.mode = Mode.NEVER
        self.mask = 0
        #: the flags that the kernel has been told to watch; 0: it is not in the kernel's set; UNKNOWN: an exception
        #: came out of the telling, before or after the kernel had done it
        self.told = 0
        #: the kernel's flags for which a poller keeps a ready answer
        self.answers: tuple[int, ...] = ()
        #: how often the socket has told that something about it changed
        self.changes = 0

    def want(self, wanted: int) -> None:
        """Something else is wanted: ``begin`` anew."""
        self.wanted = self.awaited = wanted

    def release(self) -> None:
        """Let go of the handle: a frame that an exception keeps must not keep a number."""
        self.handle = CLOSED

    def begin(self, *, end_has_edge: bool) -> None:
        """Decide how to wait without asking the kernel: a report that is worth nothing will correct it."""
        mask = self.socket._interest(self.awaited, end_has_edge=end_has_edge)
        self.mask = mask or 0
        if not self.awaited:
            self.mode = Mode.NEVER
        elif self.awaited & self.socket._standing():
            self.mode = Mode.NOW
        else:
            self.mode = Mode.TICK if mask is None else Mode.KERNEL

    def decide(self, flags: int, found: int, possible: int, *, end_has_edge: bool) -> None:
        """Decide how to go on, after *flags* came to *found* of what is awaited and *possible* may still come."""
        self.awaited &= possible
        self.begin(end_has_edge=end_has_edge)
        if self.mode is Mode.KERNEL and not found and flags & (self.mask | UNASKED):
            self.mode = Mode.TICK  # the kernel would say the same again at once
