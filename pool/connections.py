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

What a call costs: of the 3 us that a worker takes for a small request, 0.06 are spent here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final, Protocol

from bbipc.events import SocketEvent
from bbipc.sockets.stream import StreamSocket
from pool.table import Table

#: what is called with a connection
Handler = Callable[[StreamSocket], object]

_DATA: Final = SocketEvent.DATA_AVAILABLE
_END: Final = SocketEvent.REMOTE_DISCONNECTED


class Home(Protocol):
    """Whoever has connections."""

    def left(self, connection: Connection, /) -> None:
        """It has ended, and its stream is closed."""

    def failed(self, error: BaseException, stream: StreamSocket) -> None:
        """Its handler has raised *error*."""


class Connection:
    """One connection whose handler is called whenever there is something to read."""

    __slots__ = ("stream", "home", "_handler", "_token", "_over")

    def __init__(self, home: Home, stream: StreamSocket, handler: Handler) -> None:
        self.stream = stream
        self.home = home
        self._handler = handler
        self._token = [None]
        self._over = False

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

    def ended(self, _error: Exception) -> None:
        """The hook of its monitor: the stream, or the pool, was closed."""
        self.end()

    def cut(self) -> None:
        """Close its stream, whatever is running.  Any thread."""
        self.stream.close()

    def _bury(self) -> None:
        self.stream.close()
        self.home.left(self)


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
        """A callback of the wait for its first bytes."""
        if future.cancelled() or future.exception() is not None:
            self.end()


_CALLS: Final = frozenset({Connection.call.__code__, Session.call.__code__})


class Connections(Table[Connection]):
    """The table of one server.

    *on_leave*: called, with no lock held, whenever a connection has left.  *on_failure*: when a handler has raised.
    """

    def __init__(
        self, on_leave: Callable[[], object], on_failure: Callable[[BaseException, StreamSocket], object]
    ) -> None:
        super().__init__(on_leave)
        self._on_failure = on_failure

    def failed(self, error: BaseException, stream: StreamSocket) -> None:
        """Its handler has raised *error*."""
        self._on_failure(error, stream)

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
