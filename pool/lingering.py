"""Lingering: a close that costs the peer nothing of what it was sent, though some of what it sent is unread.

Law of this file: the last step of a close, and no other.  A close with bytes unread is a reset: TCP drops what it has
not sent yet, and a local peer finds an error in place of the end.  So whoever closes gently asks :func:`linger_of`.
Where nothing is unread, he closes.  Otherwise the peer is told that nothing more comes, and the poller thread reads and
drops what it sends, until its end; for LINGER_TIME seconds, and LINGER_SIZE bytes, at most.  No thread waits for that.

There is one Linger for a stream, whoever wants to close it: a FutureStream, and behind it the server whose handler used
that.  Who *takes* it begins it.  It ends with the peer's end or an error, when its time or its patience is up, when
anybody closes the stream, and with the poller thread; and every end is a close.

It is for a stream that this process has made and holds alone: what another holder of the connection is to read must not
be dropped, nor his sending be shut down.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from bbipc.errors import SocketError
from bbipc.events import SocketEvent
from bbipc.sockets import fork
from bbipc.sockets.base import Socket
from bbipc.sockets.stream import StreamSocket
from pool import lifecycle, message_limits
from pool.afterwards import Afterwards
from pool.polling_loop import PollingLoop
from pool.timers import Timer

#: seconds, and bytes: see message_limits.py
LINGER_TIME: Final = message_limits.LINGER_TIME
LINGER_SIZE: Final = message_limits.LINGER_SIZE
#: bytes taken from the kernel before the poller thread turns to the next stream
TURN: Final = 64 * 1024
_READ: Final = SocketEvent.DATA_AVAILABLE | SocketEvent.REMOTE_DISCONNECTED

#: those that have not ended; setdefault() lets exactly one of several closers win
_all: Final[dict[StreamSocket, Linger]] = {}


def linger_of(stream: StreamSocket, loop: PollingLoop | None) -> Linger | None:
    """What *stream*, of which nobody wants to read any more, is closed by; ``None``: by its own ``close``.

    Any thread, signal handlers and finalizers included: it takes no lock but the stream's.
    """
    if loop is None or loop.closed or stream.closed or lifecycle.exiting() or not stream._acts_for_all():
        return None
    found = _all.get(stream)
    if found is None and _has_unread(stream):
        found = _all.setdefault(stream, Linger(stream, loop))
    return found


def close_now(stream: StreamSocket) -> None:
    """Close *stream*, whether it lingers or not.  Idempotent; any thread."""
    stream.close()
    linger = _all.get(stream)
    if linger is not None:
        linger.end()


def _has_unread(stream: StreamSocket) -> bool:
    try:
        return stream.data_available()
    except SocketError:
        return False


class Linger:
    """The last moments of *stream*, on the poller thread of *loop*.  Any thread."""

    __slots__ = ("_stream", "_loop", "_token", "_waiting", "_timers", "_drained", "_over", "_generation")

    def __init__(self, stream: StreamSocket, loop: PollingLoop) -> None:
        self._stream = stream
        self._loop = loop
        self._token = [None]  # taken by who begins it
        self._waiting: dict[Callable[[], object], None] = {}
        self._timers: list[Timer] = []
        self._drained = 0
        self._over = False
        self._generation = fork.generation

    def take(self) -> bool:
        """Whether the caller is the one who has to :meth:`begin` it; the others find it begun."""
        try:
            self._token.pop()
        except IndexError:
            return False
        return True

    def begin(self) -> None:
        """Tell the peer, and read what it sends.  Not inside of signal handlers."""
        try:
            self._stream.shutdown_write()
            self.limit(LINGER_TIME)
            self._loop.monitor(self._stream, _READ, self._drain, on_close=self._closed)
        except (OSError, RuntimeError):  # closed meanwhile, as the poller thread may be; or the system has no room
            self.end()
        except BaseException:  # a Ctrl-C: nobody else would ever end it
            self.end()
            raise

    def limit(self, seconds: float) -> None:
        """It lasts for *seconds* from now at most."""
        try:
            timer = self._loop.start_timer(seconds, self.end)
        except (OSError, RuntimeError):
            return self.end()
        self._timers.append(timer)
        if self._over:  # looked at behind it, see _end()
            timer.cancel()
        return None

    def then(self, fn: Callable[[], object]) -> None:
        """Call *fn* when the stream is closed; where a Ctrl-C comes in between, perhaps twice."""
        self._waiting[fn] = None
        if self._over:  # as above
            self._tell()

    def end(self) -> None:
        """Close the stream now.  Idempotent."""
        if self._generation != fork.generation:  # whoever is told is in the other process, as the timers' lock may be
            _all.pop(self._stream, None)
            return self._stream.close()
        try:
            self._end()
        except BaseException:  # Ctrl-C in the middle: a step may be taken twice, none may be left out
            self._end()
            raise
        return None

    def _end(self) -> None:
        self._over = True
        self._stream.close()
        _all.pop(self._stream, None)
        for timer in self._timers.copy():
            timer.cancel()
        self._tell()

    def _tell(self) -> None:
        after = Afterwards()
        waiting = list(self._waiting)
        for fn in waiting:
            after.add(fn)
        try:
            after.do()
        finally:
            for fn in waiting:
                self._waiting.pop(fn, None)

    # The poller thread.

    def _drain(self, _socket: Socket, _events: SocketEvent) -> None:
        try:
            data = self._stream.read(TURN)
        except SocketError:
            data = b""
        self._drained += len(data or b"")
        if data == b"" or self._drained > LINGER_SIZE:
            self.end()

    def _closed(self, _error: Exception) -> None:
        """The stream, or the poller thread, was closed."""
        self.end()
