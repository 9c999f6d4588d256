"""Connection: how far a connection has come, what is true of it, and which error ended it.

Law of this file: whoever is told something that the kernel tells only once keeps it.  A pending error (a refused
connect, a reset) is told to whichever call comes first; it goes to ``_error``, and everybody after him is told from
there.  So an error never comes out of a predicate, and no predicate can hide one from a read.

Who guards what: ``_stage``, ``_error``, ``_io``, ``_sending`` and ``_pipe_broken`` are read without a lock and
written under ``_lock``.  ``_io`` is what reads and writes go through: the handle while the stream is connected, and
CLOSED before, so that the common path need not ask for the stage: CLOSED answers EBADF, and the slow path finds out
why.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import Final

from bbipc.events import (
    CONNECTION_FAILED,
    CONNECTION_SUCCEEDED,
    DATA_AVAILABLE,
    READY_TO_WRITE,
    REMOTE_DISCONNECTED,
    ROOM_TO_WRITE,
    STREAM_EVENTS,
)
from bbipc.readiness import (
    ANY_HANG_UP,
    ATTAINABLE,
    ERROR,
    EVERYTHING,
    HUNG_UP,
    INVALID,
    PLAIN,
    READ_HUNG_UP,
    READABLE,
    STANDING,
    WRITABLE,
    Condition,
    Stage,
    condition_of,
    stream_events,
    stream_interest,
)
from bbipc.sockets.base import Socket, Watcher
from bbipc.sockets.handle import CLOSED, POLL_TELLS_END, Handle, at_end, look, unread_bytes

#: on 3.11 the way to a member through its class costs 50 ns
_CONNECTED: Final = Stage.CONNECTED
_CONNECTING: Final = Stage.CONNECTING


class Connection(Socket):
    """What is known of a connection; :class:`StreamSocket` adds reading and writing."""

    __slots__ = ("_io", "_stage", "_error", "_sending", "_pipe_broken")
    _events_offered = STREAM_EVENTS
    #: poll tells when the connect is decided; where it does not, a waiter has to try again now and then
    _connect_has_edge = True

    def __init__(self, handle: Handle, stage: Stage, error: OSError | None = None) -> None:
        self._stage = stage
        self._error = error
        self._io = handle if stage is Stage.CONNECTED else CLOSED
        self._sending = True
        self._pipe_broken = False
        super().__init__(handle)

    # Predicates: each is one look at the kernel, two system calls at a hang-up.

    def determined(self) -> bool:
        """Whether the connect has come to an end, good or bad.  Once true, always true.

        :raises SocketClosedError: it was closed
        """
        self._open_handle()
        if self._stage is Stage.CONNECTING:
            self._state()
        return self._stage is not Stage.CONNECTING

    def connection_succeeded(self) -> bool:
        """Whether it is connected and the peer is still there, or has left bytes to read.

        :raises SocketClosedError: it was closed
        """
        return bool(self._state()[0] & CONNECTION_SUCCEEDED)

    def connection_failed(self) -> bool:
        """Whether the connect failed, or the peer is gone and all that it sent was read.

        :raises SocketClosedError: it was closed
        """
        return bool(self._state()[0] & CONNECTION_FAILED)

    def connection_error(self) -> OSError | None:
        """Why the connect failed, or the connection was reset; ``None`` where neither happened.  Never raises it.

        :raises SocketClosedError: it was closed
        """
        self._state()
        return self._error

    def data_available(self) -> bool:
        """Whether a read would give at least one byte; also after the peer's hang-up, until all is read.

        :raises SocketClosedError: it was closed
        """
        return bool(self._state()[0] & DATA_AVAILABLE)

    def ready_to_write(self) -> bool:
        """Whether a write would take at least one byte, and the peer has not ended.

        :raises SocketClosedError: it was closed
        """
        return bool(self._state()[0] & READY_TO_WRITE)

    def room_to_write(self) -> bool:
        """Whether a write would take at least one byte, or raise at once: what keeps a write waiting is over.

        Unlike :meth:`ready_to_write` it is also true after the peer's end, after one's own ``shutdown_write`` and
        after a failed connect.  It is false while connecting, and while the kernel has no room.

        :raises SocketClosedError: it was closed
        """
        return bool(self._state()[0] & ROOM_TO_WRITE)

    def remote_disconnected(self) -> bool:
        """Whether the peer closed, reset or shut its sending side, and all that it sent was read.

        After a mere ``shutdown_write`` of the peer ``write`` still works.

        :raises SocketClosedError: it was closed
        """
        return bool(self._state()[0] & REMOTE_DISCONNECTED)

    def _mark_closed(self) -> None:
        self._io = CLOSED

    def _settle(self, stage: Stage, error: OSError | None = None) -> None:
        """The connect is decided.  The caller holds the lock, and the socket is open."""
        if self._stage is not Stage.CONNECTING:  # a signal handler has asked a predicate meanwhile
            return
        self._error = error
        if stage is Stage.CONNECTED:
            self._io = self._handle
        self._stage = stage

    def _keep(self, error: OSError) -> None:
        """Keep what the kernel tells only once; the first error stays.

        A copy: the original's traceback holds the frames of a caller, and his buffers.
        """
        with self._lock:
            if self._error is None:
                self._error = OSError(error.errno, error.strerror)

    # What the pollers ask.

    def _observe(self, flags: int) -> tuple[int, int] | None:
        handle = self._handle
        if handle is CLOSED or flags & INVALID:
            return None
        if self._stage is _CONNECTED and self._sending and POLL_TELLS_END:
            plain = PLAIN.get(flags)
            if plain is not None:
                return plain
        if self._stage is Stage.CONNECTING:
            flags = self._flags_after_connect(handle, flags)
        stage = self._stage  # read once: another thread may move it on, and these flags belong to this stage
        unread = 0
        if stage is Stage.CONNECTED and flags & ANY_HANG_UP:
            # Once more: an unconnected local socket polls as hung up, and another thread may have connected it since.
            flags = look(handle, EVERYTHING)
            if flags & INVALID:
                return None
        if not POLL_TELLS_END:
            flags = _flags_with_end(handle, flags)
        if stage is Stage.CONNECTED and flags & ANY_HANG_UP:
            try:
                unread = unread_bytes(handle)
            except OSError:  # EBADF: closed meanwhile
                return None
        condition = condition_of(stage, flags, unread)
        if condition is Condition.ENDED and flags & ERROR:
            self._keep_pending_error()
        events, possible = stream_events(condition, flags, unread), ATTAINABLE[condition]
        if not self._sending:  # a write raises EPIPE, which no flag tells of a local stream whose buffer is full
            return events & ~READY_TO_WRITE | ROOM_TO_WRITE, possible & ~READY_TO_WRITE
        return events, possible

    def _flags_after_connect(self, handle: Handle, flags: int) -> int:
        self._advance(flags)
        # The flags at hand were those of a stream that was not connected yet.
        return look(handle, EVERYTHING) if self._stage is Stage.CONNECTED else flags

    def _keep_pending_error(self) -> None:
        with self._lock:
            if self._handle is not CLOSED:
                number = self._handle.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if number == errno.EPIPE:  # the peer had ended in good order before it answered our write with a reset
                    self._pipe_broken = True
                elif number:
                    self._keep(OSError(number, os.strerror(number)))

    def _advance(self, flags: int) -> None:
        """Find out whether the connect is decided.  If so, whoever waits has to wait for other flags from now on."""
        with self._lock:
            if self._handle is CLOSED or self._stage is not Stage.CONNECTING:
                return
            self._decide(flags)
            settled = self._stage is not _CONNECTING
            watchers: tuple[Watcher, ...] = self._watchers if settled else ()
        for watcher in watchers:
            watcher.socket_changed(self)

    def _decide(self, flags: int) -> None:
        """Settle the connect if it is decided.  The caller holds the lock, and the socket is open."""
        raise AssertionError("every kind of stream has its own")

    def _interest(self, wanted: int, *, end_has_edge: bool) -> int | None:
        if self._stage is Stage.CONNECTING and not self._connect_has_edge:
            return None
        if not self._sending:  # it will not come; and asked for, "writable" would be told without end
            wanted &= ~READY_TO_WRITE
        return stream_interest(self._stage, wanted, end_has_edge=end_has_edge)

    def _standing(self) -> int:
        if self._stage is Stage.CONNECTED:
            return STANDING[Condition.UP] if self._sending else STANDING[Condition.UP] | ROOM_TO_WRITE
        return STANDING[Condition.FAILED] if self._stage is Stage.FAILED else 0

    def _peer_text(self) -> str:
        return "peer"

    def _describe(self) -> str:
        return self._stage.value


def _flags_with_end(handle: Handle, flags: int) -> int:
    """*flags* with the peer's end in them, where poll has no flag for it.

    macOS tells that end as HUP, and then keeps silent of room.  Asked for room alone it speaks of our direction only.
    """
    if flags & HUNG_UP:
        flags = flags & ~HUNG_UP | READ_HUNG_UP | look(handle, WRITABLE)
    if flags & (READABLE | WRITABLE) and at_end(handle):
        flags |= READ_HUNG_UP
    return flags
