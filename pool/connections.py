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

import contextlib
import inspect
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final, Protocol

from bbipc.events import SocketEvent
from bbipc.sockets import fork
from bbipc.sockets.stream import StreamSocket

#: what is called with a connection
Handler = Callable[[StreamSocket], object]

_DATA: Final = SocketEvent.DATA_AVAILABLE
_END: Final = SocketEvent.REMOTE_DISCONNECTED


class Home(Protocol):
    """Whoever has connections."""

    def left(self, connection: Connection) -> None:
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


class Connections:
    """The table of one server.

    *on_leave*: called, with no lock held, whenever a connection has left.  *on_failure*: when a handler has raised.
    """

    def __init__(
        self, on_leave: Callable[[], object], on_failure: Callable[[BaseException, StreamSocket], object]
    ) -> None:
        self._on_leave = on_leave
        self._on_failure = on_failure
        self._lock = threading.RLock()
        self._inside: set[Connection] = set()  # these five are guarded by the lock
        self._callers: set[Connection] = set()  # their handlers wait for us: we do not wait for them
        self._closing = False
        self._at_closing = 0
        self._gates: list[threading.Lock] = []  # of those in wait_for_calls; let go of when there is something new
        self._generation = fork.generation

    def __len__(self) -> int:
        return len(self._inside)

    def add(self, connection: Connection) -> bool:
        """One more; False: nobody is let in any more."""
        with self._lock:
            if self._closing:
                return False
            self._inside.add(connection)
            return True

    def left(self, connection: Connection) -> None:
        """It has ended."""
        if self._generation != fork.generation:  # a handler has forked, and this is the child
            return
        with self._lock:
            self._inside.discard(connection)
            self.look_again()
        self._on_leave()

    def failed(self, error: BaseException, stream: StreamSocket) -> None:
        """Its handler has raised *error*."""
        self._on_failure(error, stream)

    def look_again(self) -> None:
        """Let those in :meth:`wait_for_calls` look at everything anew."""
        with self._lock:
            for gate in self._gates:
                with contextlib.suppress(RuntimeError):  # released, by somebody whom a Ctrl-C has stopped
                    gate.release()
            self._gates.clear()

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

    # Ending.

    def excuse(self, connection: Connection) -> None:
        """Do not wait for its call: it waits for us."""
        with self._lock:
            self._callers.add(connection)
        self.look_again()

    def shut(self) -> None:
        """Let nobody in any more.  Idempotent."""
        with self._lock:
            if not self._closing:
                self._closing = True
                self._at_closing = len(self._inside)

    def end_all(self) -> int:
        """End those who are idle now, the others when their call returns; how many there were when it was shut."""
        self.shut()
        with self._lock:
            inside = list(self._inside)
        for connection in inside:
            connection.end()
        return self._at_closing

    def wait_for_calls(self, deadline: Callable[[], float | None]) -> int:
        """Wait for the calls that are running; how many still are at the *deadline* on the monotonic clock."""
        while True:
            gate = threading.Lock()  # one for each wait: whatever a Ctrl-C leaves behind, nobody else uses it
            gate.acquire()
            with self._lock:
                self._gates.append(gate)
                left = len(self._inside - self._callers)
            limit = deadline()
            pause = -1 if limit is None else min(max(limit - time.monotonic(), 0), threading.TIMEOUT_MAX)
            if not left or not pause:
                return left
            gate.acquire(timeout=pause)

    def force(self) -> None:
        """Close the streams of those whose call is still running."""
        with self._lock:
            busy = self._inside - self._callers
        for connection in busy:
            connection.stream.close()
