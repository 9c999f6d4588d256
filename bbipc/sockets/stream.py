"""StreamSocket: reading and writing, the same for TCP and local.

Law of this file: one call, one system call on one descriptor, no loop, and no lock on the way that succeeds.  Nothing
public here blocks; ``_read_patiently`` waits, and says so.  Every method may be called from any thread at any time.
The first lines of a method are the hot path (1.15 times the bare system call's own method); what an error means is
found out after it happened.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections import deque
from collections.abc import Iterable
from typing import Final

from typing_extensions import Buffer

from bbipc.errors import ConnectionFailedError, RemoteDisconnectedError, SocketClosedError, SocketError
from bbipc.readiness import Stage
from bbipc.sockets.buffers import octets, window, writable_window
from bbipc.sockets.connection import Connection
from bbipc.sockets.handle import AT_ONCE, CLOSED, NO_SIGNAL

#: the connection is gone; anything else (no memory, say) is an error of this one call
_DISCONNECTED: Final = frozenset(
    {
        errno.EPIPE,
        errno.ECONNRESET,
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ETIMEDOUT,
        errno.ENETRESET,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.EHOSTUNREACH,
        errno.ENOTCONN,
    }
)
#: recv allocates what it is asked for before it knows what is there: memory follows what arrives, not what is asked
MAX_READ: Final = 1 << 20
#: not on Windows
_HAS_SENDMSG: Final = hasattr(socket.socket, "sendmsg")
#: Linux and the BSDs refuse a longer vector
_MAX_VECTOR: Final = 1024
_READ_FLAGS: Final = AT_ONCE
_PEEK_FLAGS: Final = AT_ONCE | socket.MSG_PEEK
_WRITE_FLAGS: Final = AT_ONCE | NO_SIGNAL
#: struct timeval of 64 bits
_TIMEVAL: Final = struct.Struct("@ll")
#: whether a read may wait in the kernel.  Only where a close in another thread is known to end it
CAN_WAIT: Final = sys.platform == "linux" and sys.maxsize > 1 << 32


class StreamSocket(Connection):
    """One end of a connection.

    Nothing public here blocks.  A read gives ``None`` (or a write 0) when there is nothing to do now: wait with
    :func:`bbipc.poll_socket` or a poller, or hand the stream to :mod:`pool`.  Two threads that read, or two that
    write, each get whole calls, in whatever order they come.
    """

    __slots__ = ()

    def read_into(self, buffer: Buffer, start: int = 0, end: int | None = None, *, peek: bool = False) -> int | None:
        """Read into bytes *start* to *end* of *buffer*; how many came.

        ``None``: nothing there now (also while connecting).  ``0``: the end, the peer sends nothing more.  With
        *peek* the bytes stay to be read again.

        :raises SocketClosedError: it was closed
        :raises ConnectionFailedError: it never was connected
        :raises RemoteDisconnectedError: the peer reset the connection, and all that had come was read
        :raises TypeError: not a writable contiguous buffer
        :raises ValueError: the bounds are outside the buffer, or hold no byte at all
        """
        if end is not None or start != 0:
            buffer = writable_window(buffer, start, end)
        try:
            count = self._io.recv_into(buffer, 0, _PEEK_FLAGS if peek else _READ_FLAGS)
        except BlockingIOError:
            return None
        except OSError as error:
            if not self._may_read_again(error):
                return None
            return self.read_into(buffer, peek=peek)
        except BufferError as error:
            raise TypeError(str(error)) from None
        if count:
            return count
        if not octets(buffer).nbytes:
            self._open_handle()
            raise ValueError("a read into no bytes would look like the end of the stream")
        self._check_end()
        return 0

    def read(self, max_bytes: int = 65536, *, peek: bool = False) -> bytes | None:
        """Read up to *max_bytes* bytes (at most 1 MiB a call).

        ``None``: nothing there now (also while connecting).  ``b""``: the end, the peer sends nothing more.

        :raises SocketClosedError: it was closed
        :raises ConnectionFailedError: it never was connected
        :raises RemoteDisconnectedError: the peer reset the connection, and all that had come was read
        :raises ValueError: *max_bytes* is less than 1
        """
        if not 0 < max_bytes <= MAX_READ:
            if max_bytes <= 0:
                self._open_handle()
                raise ValueError(f"max_bytes must be at least 1, not {max_bytes}")
            max_bytes = MAX_READ
        try:
            data = self._io.recv(max_bytes, _PEEK_FLAGS if peek else _READ_FLAGS)
        except BlockingIOError:
            return None
        except OSError as error:
            if not self._may_read_again(error):
                return None
            return self.read(max_bytes, peek=peek)
        if not data:
            self._check_end()
        return data

    def write(self, buffer: Buffer, start: int = 0, end: int | None = None) -> int:
        """Write bytes *start* to *end* of *buffer*; how many the kernel took, 0 when it has no room now.

        It never loops: the rest is the caller's to write later.  Writing nothing touches nothing and gives 0.

        :raises SocketClosedError: it was closed
        :raises ConnectionFailedError: it never was connected
        :raises RemoteDisconnectedError: the peer is gone
        :raises SocketError: EPIPE, after ``shutdown_write``
        :raises TypeError: not a contiguous buffer
        :raises ValueError: the bounds are outside the buffer
        """
        if end is not None or start != 0:
            buffer = window(buffer, start, end)
        try:
            return self._io.send(buffer, _WRITE_FLAGS)
        except BlockingIOError:
            return 0
        except OSError as error:
            if not self._may_write_again(error, octets(buffer).nbytes):
                return 0
            return self.write(buffer)
        except BufferError as error:
            raise TypeError(str(error)) from None

    def write_vector(self, buffers: Iterable[Buffer]) -> int:
        """Write several buffers as one, in one system call; how many bytes the kernel took of them together.

        At most 1,024 of them are looked at a call.  Otherwise as ``write``.

        :raises SocketClosedError: it was closed
        :raises ConnectionFailedError: it never was connected
        :raises RemoteDisconnectedError: the peer is gone
        :raises SocketError: EPIPE, after ``shutdown_write``
        :raises TypeError: not all are contiguous buffers
        """
        vector = list(buffers)[:_MAX_VECTOR]
        if not _HAS_SENDMSG:
            return self.write(b"".join(octets(buffer) for buffer in vector))
        try:
            return self._io.sendmsg(vector, (), _WRITE_FLAGS)
        except BlockingIOError:
            return 0
        except OSError as error:
            if not self._may_write_again(error, sum(octets(buffer).nbytes for buffer in vector)):
                return 0
            return self.write_vector(vector)
        except BufferError as error:
            raise TypeError(str(error)) from None

    def shutdown_write(self) -> None:
        """Tell the peer that nothing more will be sent; reading goes on.  Idempotent.

        :raises SocketClosedError: it was closed
        :raises SocketError: ENOTCONN, it is still connecting
        :raises ConnectionFailedError: it never was connected
        """
        if self._stage is Stage.CONNECTING:
            self._state()
        with self._lock:
            self._open_handle()
            if self._stage is Stage.CONNECTING:
                raise SocketError(errno.ENOTCONN, "still connecting: nothing can be shut down yet", socket=self)
            if self._stage is Stage.FAILED:
                raise self._failure()
            first, self._sending = self._sending, False
            watchers = self._watchers
            if first:
                try:
                    self._handle.shutdown(socket.SHUT_WR)
                except OSError as error:
                    if error.errno != errno.ENOTCONN:  # ENOTCONN: the peer has reset it, there is no side to shut
                        raise SocketError(error.errno or errno.EIO, error.strerror, socket=self) from error
        for watcher in watchers:
            watcher.socket_changed(self)

    # Not for users: a read that waits.  All others say AT_ONCE, and do not.

    def _let_reads_wait(self, seconds: float) -> None:
        """From now on :meth:`_read_patiently` waits, for so long at most (less than 1).  Connected streams only.

        :raises SocketClosedError: it was closed
        :raises SocketError: the system refuses
        """
        handle = self._open_handle()
        try:
            handle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEVAL.pack(0, int(seconds * 1e6)))
            os.set_blocking(handle.fileno(), True)  # the file's flag; Python's own, that polls first, stays
        except OSError as error:
            self._raise_translated(error)

    def _read_patiently(self, kept: deque[bytes], max_bytes: int) -> bytes | None:
        """As :meth:`read`, but waits.  ``None``: the time is up; each signal that Python handles lets it begin anew.

        Sleeping in the read itself costs less than half of a poll and a read.  What was read is in *kept*, too: put
        there by the same call of C that has read it, so that behind a Ctrl-C it is known whether something was.
        """
        try:
            kept.extend(map(self._io.recv, (max_bytes,)))
        except BlockingIOError:
            return None
        except OSError as error:
            self._may_read_again(error)  # it raises: the stream is connected
            return None
        if not kept[-1]:
            self._check_end()
        return kept[-1]

    # Why a call did not work.

    def _may_read_again(self, error: OSError) -> bool:
        """After a failed recv: True: connected meanwhile, read again.  False: still connecting.  Else it raises."""
        if self._handle is CLOSED:
            raise SocketClosedError(self) from None
        if error.errno == errno.EBADF:
            return self._connected_meanwhile()
        if error.errno in _DISCONNECTED:
            self._keep(error)
            raise self._disconnected() from error
        self._raise_translated(error)

    def _may_write_again(self, error: OSError, size: int) -> bool:
        """After a failed send of *size* bytes: True: connected meanwhile.  False: nothing is taken.  Else raises."""
        if self._handle is CLOSED:
            raise SocketClosedError(self) from None
        if error.errno == errno.EBADF:
            return bool(size) and self._connected_meanwhile()
        if error.errno in _DISCONNECTED:
            return self._write_refused(error, size)
        self._raise_translated(error)

    def _write_refused(self, error: OSError, size: int) -> bool:
        if error.errno != errno.EPIPE:
            self._keep(error)
        elif self._sending:
            # The peer had gone in good order before we wrote: no reader is to be told of an error.
            with self._lock:
                self._pipe_broken = True
        if not size:
            return False
        if error.errno == errno.EPIPE and not self._sending:
            raise SocketError(errno.EPIPE, "this side's sending was shut down", socket=self) from error
        raise RemoteDisconnectedError(error.errno or 0, self._lost(error), socket=self) from error

    def _connected_meanwhile(self) -> bool:
        """What to make of I/O on a stream that was not connected: raises if it failed or was closed."""
        self._state()
        if self._stage is Stage.FAILED:
            raise self._failure() from self._error
        return self._stage is Stage.CONNECTED

    def _failure(self) -> ConnectionFailedError:
        error = self._error or OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        return ConnectionFailedError(error.errno or 0, f"{self._peer_text()}: {error.strerror}", socket=self)

    def _disconnected(self) -> RemoteDisconnectedError:
        error = self._error or ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        return RemoteDisconnectedError(error.errno or 0, self._lost(error), socket=self)

    def _lost(self, error: OSError) -> str:
        return f"connection with {self._peer_text()} lost: {error.strerror}"

    def _check_end(self) -> None:
        """A recv gave 0 bytes: return if that is the peer's clean end, raise what it is otherwise.

        Two things look like an end and are none.  A close in another thread: its shutdown makes recv give 0.  And a
        reset whose error another thread was told: after that the kernel gives 0.
        """
        self._open_handle()
        with self._lock:  # who takes the error from the kernel in a look keeps it under the same lock
            if self._error is None and self._reset_in_doubt():
                self._keep(ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)))
        if self._error is not None:
            raise self._disconnected() from self._error
        # The look above may itself have met the tombstone of a close that began after the first line.
        self._open_handle()

    def _reset_in_doubt(self) -> bool:
        """Whether the kernel's 0 may stand for a reset that somebody else is just being told of."""
        return False
