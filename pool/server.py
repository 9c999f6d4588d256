"""ConnectionServer: connections are accepted, and a handler is called for them on workers.

    listening sockets      accepting.py     on the poller thread
          |  a stream
          v
    table of connections   connections.py   at most max_connections
          |  monitor / when
          v
    handler(stream)        on a worker      the stream is closed by the server, whatever happens

Law of this file: what such a server is, and who is told what of its connections.  How it begins and ends stands in
``server_face.py``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeVar, cast

from bbipc.errors import PollerClosedError, RemoteDisconnectedError, SocketClosedError
from bbipc.events import SocketEvent
from bbipc.sockets.server import ServerOf
from bbipc.sockets.stream import StreamSocket
from pool import lifecycle, reports
from pool.accepting import Accepting
from pool.arguments import checked_callable, checked_count, checked_hook, checked_kind
from pool.connections import Connection, Connections, Handler, Session
from pool.interests import Callback
from pool.seldom import Seldom
from pool.server_face import MAX_CONNECTIONS, STOP_TIMEOUT, ServerFace, listening_sockets
from pool.stopping import StopReport
from pool.worker_pool import WorkerPool

S = TypeVar("S", bound=StreamSocket)
#: what is told of a handler's error
ErrorHook = Callable[[BaseException, StreamSocket], object]

#: something to read, or the end: data alone never tells of that
_READ: Final = SocketEvent.DATA_AVAILABLE | SocketEvent.REMOTE_DISCONNECTED

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServerStats:
    """What a server is doing at one moment, and what it has done so far.

    ``connections`` (now), ``accepted`` (so far), ``shed`` (turned away for want of descriptors), ``refused`` (closed
    without a call, because the workers took nothing any more), ``handler_errors``, ``disconnected`` (handlers that
    were ended by their connection's loss), ``paused`` (whether nobody is accepted just now).
    """

    connections: int
    accepted: int
    shed: int
    refused: int
    handler_errors: int
    disconnected: int
    paused: bool


class ConnectionServer(ServerFace[Connection]):
    """Calls *handler* on a worker for the connections of *server*: one listening socket, or several.

    The server owns its listening sockets, and closes them when it stops.

    *per* ``"connection"``: ``handler(stream)`` is called once, when the first bytes have come, or the end; with
    *speaks_first* at once.  It holds its worker for as long as it likes; a client that says nothing holds none.
    *per* ``"readiness"``: ``handler(stream)`` is called whenever there is something to read, or the end (``read`` gives
    ``b""``); never twice at once for one connection.  It should read what is there and return; between its calls the
    connection holds no worker.

    The stream is closed by the server: when the handler has returned (``"connection"``), when it has returned from the
    call for the peer's end (``"readiness"``), and whenever it raises.  A handler may also close it.  Where it was
    passed on to another process, that lets go of this process's hold and leaves the connection alone.  Where the client
    has sent what nobody has read, it is told the end first, and read for 2 s and 8 MiB at most, so that it gets the
    answer and not a reset; no worker waits for that, and it counts as a connection meanwhile.

    What a handler raises is logged, with its traceback, once a second at most, and goes to ``on_error(error, stream)``,
    on the same worker, before the stream is closed.  So does the error for which *workers* cannot call it at all (an
    executor that was shut down), on any thread.  Not so the loss of this very connection (RemoteDisconnectedError,
    SocketClosedError of its stream): that is logged as DEBUG.

    *workers*: where handlers run; left alone when the server stops.  ``None``: a pool of the server's own.  Where
    handlers block, give a pool with as many workers as there are to be calls at once.  *max_connections*: with so many,
    others wait in the kernel's backlog until one leaves; ``None``: no limit.

    ``servers``: the listening sockets.  ``workers``: the pool.  Any thread may call any method at any time.

    :raises ValueError: no listening socket, a limit below 1, *speaks_first* with ``per="readiness"``
    :raises TypeError: not a StreamServer, a WorkerPool, a callable
    """

    def __init__(
        self,
        server: ServerOf[S] | Sequence[ServerOf[S]],
        handler: Callable[[S], object],
        *,
        workers: WorkerPool | None = None,
        max_connections: int | None = MAX_CONNECTIONS,
        per: Literal["connection", "readiness"] = "connection",
        speaks_first: bool = False,
        on_error: Callable[[BaseException, S], object] | None = None,
    ) -> None:
        servers = listening_sockets(server)
        if per not in ("connection", "readiness"):
            raise ValueError(f'per must be "connection" or "readiness", not {per!r}')
        if speaks_first and per == "readiness":
            raise ValueError('who is called when there is something to read cannot speak first; per="connection" can')
        if max_connections is not None:
            checked_count("max_connections", max_connections)
        if workers is not None:
            checked_kind("workers", workers, WorkerPool, "a WorkerPool (WorkerPool(executor=…) has any Executor call)")
        checked_callable("handler", handler)
        checked_hook("on_error", on_error)
        self.workers = WorkerPool() if workers is None else workers
        self._owns_workers = workers is None
        self._handler = cast(Handler, handler)
        self._limit = max_connections
        self._take = self._take_session if per == "connection" else self._take_connection
        self._first = SocketEvent.DETERMINED if speaks_first else _READ
        self._on_error = cast("ErrorHook | None", on_error)
        self._errors = Seldom()
        self._warnings = Seldom()
        self._connections = Connections(self._on_leave, self._failed, self._refused)
        super().__init__(servers, self._connections)
        self._handler_errors = 0  # these four are guarded by the lock
        self._disconnected = 0
        self._refusals = 0
        self._hook_errors = 0

    def stop(self, timeout: float | None = STOP_TIMEOUT) -> StopReport:
        """Accept nobody any more, let the calls that are running return, and close all connections.

        Idle connections are closed at once.  Calls, and clients that are still read (see above), have *timeout* seconds
        to end (``None``: as long as they like), half a second more when their streams have been closed, and then are
        left behind: see :class:`StopReport`.  It returns a few seconds after that at the latest.

        Idempotent, and from several threads at once: all wait for the same end, and are given the same report; an
        earlier deadline counts for all.  A handler may call it, and is not waited for.  On the poller thread, which the
        handlers may need, it only begins, and reports what is known so far.

        :raises ValueError: a negative or NaN timeout
        """
        return super().stop(timeout)

    def stats(self) -> ServerStats:
        """What it is doing now.  Never waits; the numbers are of moments that lie close together."""
        accepting = self._accepting
        return ServerStats(
            connections=len(self._connections),
            accepted=0 if accepting is None else accepting.accepted,
            shed=0 if accepting is None else accepting.shed,
            refused=self._refusals + (0 if accepting is None else accepting.refused),
            handler_errors=self._handler_errors,
            disconnected=self._disconnected,
            paused=accepting is not None and accepting.paused,
        )

    # See ServerFace.

    def _begin_locked(self) -> None:
        self._loop = self._connections.loop = self.workers.poller_thread
        self._accepting = Accepting(
            self.servers,
            self._loop,
            self._take,
            inside=self._connections.__len__,
            limit=self._limit,
            on_end=self._cannot_go_on,
            backlog=self.workers.backlog,
        )
        try:
            self._accepting.open()
        except BaseException:
            self._accepting = None
            raise

    def _callers(self) -> list[Connection]:
        caller = self._connections.calling()
        return [] if caller is None else [caller]

    def _let_go(self, timeout: float | None) -> None:
        if self._owns_workers:
            self.workers.shutdown(wait=timeout is not None, timeout=timeout)

    # The poller thread: a connection has come.

    def _take_connection(self, stream: StreamSocket) -> None:
        connection = Connection(self._connections, stream, self._handler)
        self._let_in(connection)
        try:
            watch = self.workers.monitor(stream, _READ, cast(Callback, connection.call), on_close=connection.ended)
        except (OSError, RuntimeError):
            connection.end()
            raise
        connection.watched(watch)

    def _take_session(self, stream: StreamSocket) -> None:
        session = Session(self._connections, stream, self._handler)
        self._let_in(session)
        try:
            wait = self.workers.when(stream, self._first, session.call)
        except (OSError, RuntimeError):
            session.end()
            raise
        wait.add_done_callback(session.waited)

    def _let_in(self, connection: Connection) -> None:
        if not self._connections.add(connection):
            raise PollerClosedError("the server is being stopped")

    # Whichever thread.

    def _failed(self, error: BaseException, stream: StreamSocket) -> None:
        """A handler has raised."""
        self._guard(self._tell, error, stream)

    def _refused(self, error: BaseException, stream: StreamSocket) -> None:
        """The handler could not be called: the workers take nothing any more, or cannot take this."""
        if not (self._stopped or lifecycle.exiting() or isinstance(error, PollerClosedError)):
            self._guard(self._tell_refusal, error, stream)

    def _guard(
        self, tell: Callable[[BaseException, StreamSocket], object], error: BaseException, stream: StreamSocket
    ) -> None:
        """Nothing that goes wrong in here may reach the connection's own work."""
        try:
            tell(error, stream)
        except BaseException as problem:  # noqa: BLE001 # a hook's own error, or the log's
            with self._lock:
                self._hook_errors += 1
            reports.failure(logger, self._hook_errors, self._on_error or logger, "a worker", problem)

    def _tell_refusal(self, error: BaseException, stream: StreamSocket) -> None:
        with self._lock:
            self._refusals += 1
        left_out = self._warnings.ask()
        if left_out is not None:
            text = "%r was refused, as the workers take no call: %r (%d warnings left out before this)"
            logger.warning(text, stream, error, left_out)
        if self._on_error is not None:
            self._on_error(error, stream)

    def _tell(self, error: BaseException, stream: StreamSocket) -> None:
        if isinstance(error, RemoteDisconnectedError | SocketClosedError) and error.socket is stream:
            with self._lock:
                self._disconnected += 1
            logger.debug("the connection of %r was lost: %s", self._handler, error)
            return
        with self._lock:
            self._handler_errors += 1
        left_out = self._errors.ask()
        if left_out is not None:
            logger.error("%r failed for %r (%d not logged before)", self._handler, stream, left_out, exc_info=error)
        if self._on_error is not None:
            self._on_error(error, stream)
