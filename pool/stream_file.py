"""StreamFile: a FutureStream as a blocking file, for everything that reads and writes files.

Law of this file: it blocks the calling thread, so it refuses to work on the poller thread, which would wait for itself.
Like every raw file it is for one reader and one writer at a time; ``io.BufferedReader`` and its kin have a lock.

A Ctrl-C may end a wait in here, not what was waited for.  A read that goes on keeps its place, and the next one takes
its bytes; so the request is noted before it is made.  A write that cannot be taken back goes on, too; but then the
caller does not know what became of it, and whoever buffers would send the same bytes again.  So nothing more is written
after that.

Nothing is lost in here, but whoever gathers bytes above us drops them when we raise: ``io.BufferedReader`` does so, for
a timeout and for a Ctrl-C, in CPython 3.11 to 3.14, and its next line would lack its beginning.  It reads with
``readinto`` and ``readall``.  So these two refuse after that, as those of ``socket.SocketIO`` do after a timeout;
``read`` with a size, which nobody calls who gathers, may be tried again.  (A Ctrl-C in the very instruction in which
Python enters ``readinto`` is seen by nobody here.)
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Final

from typing_extensions import Buffer

from bbipc.errors import PollerClosedError, SocketError
from bbipc.sockets.buffers import octets
from pool.polling_loop import PollingLoop
from pool.reading import ReadingHalf
from pool.stream_reads import UpTo

if TYPE_CHECKING:
    from pool.future_stream import FutureStream

#: seconds that a close without a timeout waits for the peer to take what was written
CLOSE_TIMEOUT: Final = 5.0


class StreamFile(io.RawIOBase):
    """Made by :meth:`FutureStream.as_file`; ``timeout``: seconds that each operation may take, ``None``: no limit.

    For one reader and one writer at a time: two reads at once may be given the same bytes.

    A read at the peer's end gives nothing, like the end of a file.  An operation that takes too long raises
    TimeoutError.  After a timeout, or a Ctrl-C, in a read of an ``io.BufferedReader`` around the file every further one
    raises OSError, as bytes may be missing; so do ``readinto`` and ``readall`` here.  ``read(n)`` here may be tried
    again, and loses nothing.

    ``close`` closes the stream, when what was written is sent or after 5 s, if there is no timeout.  Dropping the file
    without a close leaves the stream open; dropping a buffered file around it closes it.
    """

    def __init__(self, stream: FutureStream, reading: ReadingHalf, loop: PollingLoop, timeout: float | None) -> None:
        super().__init__()
        self._stream = stream
        self._reading = reading
        self._loop = loop
        self.timeout = timeout
        self._request: UpTo | None = None  # left behind by a Ctrl-C
        self._left = b""  # what it had brought, and did not fit
        self._in_doubt = False
        self._broken_off = False

    def readable(self) -> bool:
        """Yes."""
        return True

    def writable(self) -> bool:
        """Yes."""
        return True

    def fileno(self) -> int:
        """The descriptor number of the stream; see :meth:`bbipc.Socket.fileno`.

        :raises SocketClosedError: the stream was closed
        """
        return self._stream.stream.fileno()

    def readinto(self, buffer: Buffer, /) -> int:
        """Read into *buffer*, at least one byte; how many came, 0: the end.

        :raises TimeoutError: nothing came in time
        :raises OSError: that, or a Ctrl-C, has ended a ``readinto`` or ``readall`` before
        :raises SocketError: the stream was closed, or the connection lost
        :raises RuntimeError: this is the poller thread
        """
        try:
            with octets(buffer) as view:
                self._may_break_off()
                data = self.read(len(view))
                count = len(data)
                view[:count] = data
        except (SocketError, PollerClosedError):  # it is over: nothing comes any more
            self._broken_off = False
            raise
        self._broken_off = False
        return count

    def readall(self) -> bytes:
        """All until the peer's end.

        :raises TimeoutError: for too long nothing came; what came before is lost
        :raises OSError, SocketError, RuntimeError: as of :meth:`readinto`
        """
        self._may_break_off()
        try:
            data = super().readall()
        except (SocketError, PollerClosedError):
            self._broken_off = False
            raise
        self._broken_off = False
        return data

    def read(self, size: int | None = -1, /) -> bytes:
        """At least one byte, at most *size*; ``b""``: the end.  Negative or ``None``: see :meth:`readall`.

        After a timeout, or a Ctrl-C, the next one is given what comes: no byte is lost.

        :raises TimeoutError: nothing came in time
        :raises SocketError: the stream was closed, or the connection lost
        :raises RuntimeError: this is the poller thread
        """
        if size is None or size < 0:
            return self.readall()
        self._check()
        if not size:
            return b""
        if not self._left:
            self._fetch(size)
        data, self._left = self._left[:size], self._left[size:]
        return data

    def write(self, buffer: Buffer, /) -> int:
        """Write all of *buffer*; its size in bytes.

        :raises WriteTimeoutError: it could not be done in time; ``sent`` bytes of it are under way
        :raises SocketError: the stream was closed, or the connection lost
        :raises RuntimeError: this is the poller thread
        """
        self._check()
        if self._in_doubt:
            raise OSError("a write was interrupted and went on: what is written now might be there twice")
        with octets(buffer) as view:  # a copy: after a Ctrl-C the caller's buffer must be his again
            future = self._stream.write(view.tobytes(), timeout=self.timeout)
        try:
            return future.result()
        except BaseException:
            self._in_doubt = not future.cancel() and not future.done()
            raise

    def close(self) -> None:
        """Close the stream when all that was written is sent; idempotent.  On the poller thread it does not wait.

        :raises WriteTimeoutError: the time was up, ``unsent`` bytes are lost
        :raises SocketError: the connection was lost, with ``unsent`` bytes
        """
        if self.closed:
            return
        try:
            super().close()
        finally:
            if not getattr(self, "_finalizing", False):  # what CPython notes on a file that is being dropped
                self._stream._leave(True, CLOSE_TIMEOUT if self.timeout is None else self.timeout)

    def _may_break_off(self) -> None:
        """A read begins for somebody who drops what he has gathered if it raises.  ``_broken_off`` is set until it has
        not: a Ctrl-C may come anywhere.
        """
        if self._broken_off and not self.closed:
            raise OSError("a timeout or an interrupt has broken a read off: what comes next may have a gap before it")
        self._broken_off = True

    def _fetch(self, max_bytes: int) -> None:
        request = self._request = self._request or UpTo(max_bytes)
        future = request.future or self._reading.ask(request, self.timeout)
        try:
            data = future.result()
        except BaseException as error:
            if future.done() and future.exception() is error:
                self._request = None
            raise
        self._left, self._request = data, None

    def _check(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")
        if self._loop.is_current():
            raise RuntimeError("a file blocks, and the poller thread must not: use the FutureStream itself here")

    def __repr__(self) -> str:
        return f"<StreamFile {'closed' if self.closed else f'of {self._stream!r}'}>"
