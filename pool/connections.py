"""Connections: those of one server, from their acceptance until the server has let go of them.

Law of this file: a connection's calls run on workers; any thread may ask for its end.  No user code runs, and nothing
waits, under the lock of the table.  One caller buries a connection: closes its stream, and takes it out of the table.

Who may bury it, and that exactly one does.  Each connection has a *token*, the one element of a list; taking it (pop)
and giving it back (append) are atomic, on the free-threaded build too, and cost 30 ns where a lock costs 120.

1. A call takes the token, and gives it back when the handler has returned.
2. Whoever wants the connection to end sets ``_over`` first, then tries to take the token.  If he gets it, no call is
   running, none will begin, and the connection is his to bury.
3. If he does not, a call is running.  It gives the token back after he has failed to take it, so it sees ``_over``
   afterwards, and ends the connection in his place (step 2).

Where the client has sent what nobody has read, the connection is not closed yet when it is buried: it lingers, see
``lingering.py``, and is in the table until it is closed.  No worker waits for that.

What a call costs: of the 3 us that a worker takes for a small request, 0.06 are spent here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final, Protocol

from bbipc.errors import SocketClosedError
from bbipc.events import SocketEvent
from bbipc.sockets.stream import StreamSocket
from pool.lingering import close_now, linger_of
from pool.polling_loop import PollingLoop
from pool.stations import SHUT_DOWN
from pool.table import Table

#: what is called with a connection
Handler = Callable[[StreamSocket], object]

_DATA: Final = SocketEvent.DATA_AVAILABLE
_END: Final = SocketEvent.REMOTE_DISCONNECTED


class Home(Protocol):
    """Whoever has connections."""

    @property
    def loop(self) -> PollingLoop | None:
        """Where they linger."""
        ...

    def left(self, connection: Connection, /) -> None:
        """It has ended, and its stream is closed."""

    def failed(self, error: BaseException, stream: StreamSocket) -> None:
        """Its handler has raised *error*."""

    def refused(self, error: BaseException, stream: StreamSocket, /) -> None:
        """It ends, as whoever was to call the handler could not: *error*."""


class Watch(Protocol):
    """Whoever calls the connection, as far as it is seen here: the monitor of a pool."""

    def cancel(self) -> None:
        """Call no more."""


class Connection:
    """One connection whose handler is called whenever there is something to read."""

    __slots__ = ("stream", "home", "_handler", "_token", "_over", "_watch", "_buried")

    def __init__(self, home: Home, stream: StreamSocket, handler: Handler) -> None:
        self.stream = stream
        self.home = home
        self._handler = handler
        self._token = [None]
        self._over = False
        self._watch: Watch | None = None
        self._buried = False

    def watched(self, watch: Watch) -> None:
        """*watch* calls it, perhaps since a moment ago."""
        self._watch = watch
        if self._buried:  # looked at behind it, see _bury()
            self._unwatch()

    def call(self, stream: StreamSocket, events: SocketEvent) -> None:
        """A worker's call: let the handler deal with what has come."""
        try:
            self._token.pop()
        except IndexError:  # it is being buried
            return
        try:
            self._handler(stream)
        except BaseException as error:  # noqa: BLE001 # whatever a handler raises, it ends this connection and no more
            self._over = True
            self.home.failed(error, stream)
        if events is not _DATA and _END in events:
            self._over = True  # the handler has been shown the end, and there is nothing more to come
        self._token.append(None)
        if self._over:
            self.end()

    def end(self) -> bool:
        """End it, at once or when the call that is running has returned; whether it was at once.  Any thread."""
        self._over = True
        try:
            self._token.pop()
        except IndexError:
            return False
        self._bury()
        return True

    def ended(self, error: Exception) -> None:
        """The hook of its monitor: the stream, or the pool, was closed, or its executor has failed."""
        self._note_refusal(error)
        self.end()

    def _note_refusal(self, error: BaseException) -> None:
        """It ends without a call, by *error*.  Its own close is no refusal, nor is the end of its pool."""
        if not (self._over or isinstance(error, SocketClosedError) or SHUT_DOWN in error.args):
            self.home.refused(error, self.stream)

    def cut(self) -> None:
        """Close its stream, whatever is running, and whether it lingers.  Any thread."""
        close_now(self.stream)

    def _bury(self) -> None:
        self._buried = True
        lingers = False
        try:
            lingers = self._linger()
        finally:
            if not lingers:
                close_now(self.stream)
                self._leave()

    def _linger(self) -> bool:
        linger = linger_of(self.stream, self.home.loop)
        if linger is None:
            return False
        self._unwatch()
        linger.then(self._leave)
        if linger.take():
            linger.begin()
        return True

    def _leave(self) -> None:
        """It is closed."""
        self._watch = None
        self.home.left(self)

    def _unwatch(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.cancel()


class Session(Connection):
    """One connection whose handler is called once, for its life."""

    __slots__ = ()

    def call(self, stream: StreamSocket, events: SocketEvent) -> None:
        """A worker's call."""
        try:
            self._token.pop()
        except IndexError:
            return
        try:
            self._handler(stream)
        except BaseException as error:  # noqa: BLE001 # as above
            self.home.failed(error, stream)
        self._bury()

    def waited(self, future: Future[None]) -> None:
        """A callback of the wait for its first bytes, and of the call."""
        error = None if future.cancelled() else future.exception()
        if error is not None:
            self._note_refusal(error)
        if error is not None or future.cancelled():
            self.end()


_CALLS: Final = frozenset({Connection.call.__code__, Session.call.__code__})


class Connections(Table[Connection]):
    """The table of one server.

    *on_leave*: called, with no lock held, whenever a connection has left.  *on_failure*: when a handler has raised.
    *on_refusal*: when it could not be called.
    """

    def __init__(
        self,
        on_leave: Callable[[], object],
        on_failure: Callable[[BaseException, StreamSocket], object],
        on_refusal: Callable[[BaseException, StreamSocket], object],
    ) -> None:
        super().__init__(on_leave)
        self.loop: PollingLoop | None = None
        self._on_failure = on_failure
        self._on_refusal = on_refusal

    def failed(self, error: BaseException, stream: StreamSocket) -> None:
        """Its handler has raised *error*."""
        self._on_failure(error, stream)

    def refused(self, error: BaseException, stream: StreamSocket) -> None:
        """Its handler could not be called."""
        self._on_refusal(error, stream)

    def calling(self) -> Connection | None:
        """The connection in whose call the calling thread is.

        Found by walking the stack: the price is paid by the one who asks, not by every call.
        """
        frame = inspect.currentframe()
        while frame is not None:
            if frame.f_code in _CALLS:
                connection: Connection = frame.f_locals["self"]
                if connection.home is self:
                    return connection
            frame = frame.f_back
        return None
