"""FutureStream: a stream whose reads and writes are futures.

Law of this file: no I/O, no lock of its own; the two directions, ``reading.py`` and ``writing.py``, know nothing of
each other, and meet here.  Any thread may call any method at any time, callbacks on the poller thread included: nothing
blocks but leaving a ``with`` block and what ``as_file`` gives.

    caller                        ReadingHalf / WritingHalf               poller thread
    read, write … ──────────────► nobody waits before? try it: done
                                  else queue it, ask for an event ──────► event: serve the queue, settle the futures

What the arguments are to blame for is raised at the call; what the connection is to blame for is in the future.
"""

from __future__ import annotations

from concurrent.futures import Future
from types import TracebackType
from typing import Final, NoReturn, Self

from typing_extensions import Buffer

from bbipc.errors import SocketClosedError
from bbipc.polling.deadline import checked_timeout
from bbipc.sockets import fork
from bbipc.sockets.stream import StreamSocket
from pool.closing import Closing
from pool.futures import finished
from pool.polling_loop import PollingLoop
from pool.reading import ReadingHalf
from pool.stream_file import StreamFile
from pool.stream_reads import Exactly, Until, UpTo
from pool.writing import WritingHalf

#: seconds that leaving a ``with`` block waits for the peer to take what was written
EXIT_TIMEOUT: Final = 5.0


class FutureStream:
    """*stream*, read and written by futures that *poller_thread* settles.

    ``stream``: the StreamSocket, which belongs to this object from now on: reading or writing it directly takes bytes
    out of their order.  *write_limit*: how many bytes of writes that are done may wait here for room in the kernel.
    No call waits for another on the same stream, so a signal handler, or a finalizer, may come in the middle of one.

    Every method that gives a future takes a *timeout* in seconds; 0: at once or not at all, ``None``: no limit.  What
    can be done at once is done in the calling thread, and the future is done when it is returned; where another thread
    is in the middle of the same direction, the poller thread does it.  A future that is waited for fails with
    SocketClosedError when anybody closes the stream, with RemoteDisconnectedError or ConnectionFailedError when the
    connection is gone, with PollerClosedError when *poller_thread* is closed.  Its callbacks run on the poller thread,
    or in the thread that closes or cancels.
    """

    __slots__ = ("stream", "_poller_thread", "_reading", "_writing", "_generation", "__weakref__")

    def __init__(self, stream: StreamSocket, poller_thread: PollingLoop, *, write_limit: int = 65536) -> None:
        if not isinstance(stream, StreamSocket):
            raise TypeError(f"a StreamSocket is required, not {type(stream).__name__}")
        if not isinstance(poller_thread, PollingLoop):
            raise TypeError(f"a PollerThread is required, not {type(poller_thread).__name__}")
        if write_limit < 0:
            raise ValueError(f"write_limit must not be negative: {write_limit}")
        self.stream: Final = stream
        self._poller_thread = poller_thread
        self._reading = ReadingHalf(stream, poller_thread)
        self._writing = WritingHalf(stream, poller_thread, write_limit, Closing(stream, poller_thread, self._reading))
        self._generation = fork.generation

    @property
    def closed(self) -> bool:
        """Whether the stream is closed; while a ``close`` still sends what is queued, or lingers, it is not."""
        return self.stream.closed

    @property
    def pending_bytes(self) -> int:
        """How many bytes wait here for room in the kernel."""
        return self._writing.pending

    def read(self, max_bytes: int = 65536, *, timeout: float | None = None) -> Future[bytes]:
        """The next bytes, at least one and at most *max_bytes*; ``b""``: the end, the peer sends nothing more.

        Reads are served in the order of their calls.  One that is cancelled, or fails with TimeoutError, takes no
        byte: what comes meanwhile goes to the next.

        :raises ValueError: *max_bytes* is less than 1, or a negative or NaN timeout
        :raises TypeError: *max_bytes* is not an int, or a timeout that is not a number
        :raises PollerClosedError: in a forked child
        """
        return self._reading.ask(UpTo(max_bytes), timeout)

    def read_exactly(self, n: int, *, timeout: float | None = None) -> Future[bytes]:
        """The next *n* bytes.  It fails with IncompleteReadError, which has what came, if the stream ends before.

        Memory follows what arrives, not *n*.

        :raises ValueError: *n* is negative, or a negative or NaN timeout
        :raises TypeError: *n* is not an int, or a timeout that is not a number
        :raises PollerClosedError: in a forked child
        """
        return self._reading.ask(Exactly(n), timeout)

    def read_until(self, separator: Buffer, max_bytes: int = 65536, *, timeout: float | None = None) -> Future[bytes]:
        """The next bytes up to *separator* and with it.

        It fails with SeparatorNotFoundError when *max_bytes* came without it, and they stay to be read; with
        IncompleteReadError, which has what came, if the stream ends before.

        :raises ValueError: an empty separator, no room for it in *max_bytes*, or a negative or NaN timeout
        :raises TypeError: *separator* is not bytes-like, *max_bytes* not an int, or a timeout that is not a number
        :raises PollerClosedError: in a forked child
        """
        return self._reading.ask(Until(separator, max_bytes), timeout)

    def write(self, buffer: Buffer, *, timeout: float | None = None) -> Future[int]:
        """Send all of *buffer*; its size in bytes, when at most ``write_limit`` bytes are left to be sent.

        From then on the buffer is the caller's again; before it must not be changed.  Writes are sent whole, in the
        order of their calls, whichever threads they come from.  ``cancel`` takes a write back until its first byte was
        handed to the kernel.

        A write fails with an error that has ``sent``, how many of its bytes the kernel had taken: with
        WriteTimeoutError after *timeout* seconds (with nothing sent, the stream is as good as before; with a part of
        it, nothing can be written any more), with RemoteDisconnectedError or SocketClosedError when the connection is
        gone.  An error that comes when the future was done already fails the next write, flush or close.

        :raises TypeError: not a contiguous buffer, or a timeout that is not a number
        :raises ValueError: a negative or NaN timeout
        :raises PollerClosedError: in a forked child
        """
        return self._writing.write(buffer, timeout)

    def flush(self, *, timeout: float | None = None) -> Future[None]:
        """Wait until all that was written before is with the kernel; fails with WriteTimeoutError, ``unsent``: how
        much is not, and then goes on sending.

        :raises ValueError: a negative or NaN timeout
        :raises TypeError: a timeout that is not a number
        :raises PollerClosedError: in a forked child
        """
        return self._writing.flush(timeout)

    def shutdown_write(self, *, timeout: float | None = None) -> Future[None]:
        """When all that was written before is sent, tell the peer that nothing more will be; reading goes on.

        Later writes fail with SocketError (EPIPE).  A timeout, or ``cancel``, takes it back.  Idempotent.

        :raises ValueError: a negative or NaN timeout
        :raises TypeError: a timeout that is not a number
        :raises PollerClosedError: in a forked child
        """
        return self._writing.shutdown(timeout)

    def close(self, flush: bool = True, *, timeout: float | None = None) -> Future[None]:
        """Send what was written before, then close; ``flush=False``: close now.

        From the call on every write fails with SocketClosedError; reads are served until all is sent, and then fail
        with it.  It is closed whatever happens, and the future tells of bytes that were written and not sent
        (``unsent``): with WriteTimeoutError after *timeout* seconds, with RemoteDisconnectedError if the peer was gone
        first.  It cannot be cancelled.  Idempotent.

        A close with bytes unread is a reset, which may cost the peer what it was sent.  So where there are some, it
        *lingers* when all is sent: the peer is told the end, and what it sends is dropped, until it ends, too; for 2 s,
        8 MiB and the rest of *timeout* at most.  With ``flush=False`` it does not.

        :raises ValueError: a negative or NaN timeout
        :raises TypeError: a timeout that is not a number
        """
        if self._generation != fork.generation:
            checked_timeout(timeout)
            self.stream.close()
            return finished(None)
        return self._writing.close(flush, timeout)

    def as_file(self, timeout: float | None = None) -> StreamFile:
        """This stream as a raw, blocking file, for ``io.BufferedReader``, ``io.BufferedRWPair``, ``pickle.load``.

        *timeout*: seconds that each operation may take.

        :raises ValueError: a negative or NaN timeout
        :raises TypeError: a timeout that is not a number
        """
        return StreamFile(self, self._reading, self._poller_thread, checked_timeout(timeout))

    def __enter__(self) -> Self:
        if self.closed:
            raise SocketClosedError(self.stream)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close: at once after an exception, otherwise when what was written is sent, after 5 s at most.

        What that comes to is raised; on the poller thread, which must not wait, it is not waited for.  Nor is a linger:
        see :meth:`close`.
        """
        self._leave(error is None, EXIT_TIMEOUT)

    def _leave(self, flush: bool, timeout: float | None) -> None:
        """Not for users: close, and wait until all is sent.  The linger goes on without us."""
        if self._generation != fork.generation:
            return self.stream.close()
        done = self._writing.close(flush, timeout, leaves=True)
        if done.done() or not self._poller_thread.is_current():
            done.result()
        return None

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} cannot be pickled or copied")

    def __repr__(self) -> str:
        waiting = f"{self._reading.waiting} reads waiting, {self.pending_bytes} bytes to send"
        return f"<FutureStream of {self.stream!r} {waiting}>"
