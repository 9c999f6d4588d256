"""ServerFace: how a server begins and ends, whatever it serves.

Law of this file: any thread may call anything; ``stop`` and ``serve_forever`` wait, nothing else does.  What is served,
and where, is the server's own; the steps of its end stand in ``stopping.py``.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable
from types import TracebackType
from typing import Final, Generic, NoReturn, Self, TypeVar

from bbipc.polling.deadline import checked_timeout
from bbipc.sockets import fork
from bbipc.sockets.locks import make_rlock
from bbipc.sockets.server import StreamServer
from pool import lifecycle
from pool.accepting import Accepting
from pool.polling_loop import PollingLoop
from pool.stopping import GRACE, Stopping, StopReport
from pool.table import Member, Table

#: connections of a server at once, unless it is given another number
MAX_CONNECTIONS: Final = 1024
#: seconds for what is running when a server is stopped
STOP_TIMEOUT: Final = 10.0

M = TypeVar("M", bound=Member)

logger = logging.getLogger(__name__)


class ServerFace(ABC, Generic[M]):
    """A server at the listening sockets *servers*, whose connections are in *table*.

    ``servers``: the listening sockets, which it owns.
    """

    def __init__(self, servers: tuple[StreamServer, ...], table: Table[M]) -> None:
        self.servers = servers
        self._table = table
        self._stopping = Stopping(table, self._close_doors, self._finish)
        self._lock = make_rlock()  # guards what follows
        self._stopped = False
        self._accepting: Accepting | None = None
        self._loop: PollingLoop | None = None
        self._generation = fork.generation

    # What every server has of its own.

    @abstractmethod
    def _begin_locked(self) -> None:
        """Make ``_loop`` and ``_accepting``, and open that; if it cannot be, leave things as they were."""

    @abstractmethod
    def _callers(self) -> Collection[M]:
        """The connections for which the calling thread is in user code: nobody waits for these."""

    @abstractmethod
    def _let_go(self, timeout: float | None) -> None:
        """Of what is the server's own; *timeout*: how long to wait for that, ``None``: not at all."""

    def _needs_the_caller(self) -> bool:
        """Whether what is running may need the calling thread, which is not to wait for it then."""
        return False

    # Users.

    def start(self) -> None:
        """Begin to accept.  Idempotent; never waits.

        :raises RuntimeError: it was stopped; its pool was shut down; it belongs to the process that forked this one
        :raises SocketClosedError: one of its listening sockets is closed
        :raises OSError: the kernel has no room for it
        """
        if self._generation != fork.generation:
            raise RuntimeError("this server belongs to the process that forked this one; make another")
        with self._lock:
            if self._stopped:
                raise RuntimeError("the server was stopped; make another")
            if self._accepting is not None:
                return
            self._begin_locked()
        lifecycle.stop_at_exit(self)

    def serve_forever(self, *, stop_timeout: float | None = STOP_TIMEOUT) -> StopReport:
        """Start, and wait until somebody stops the server; a Ctrl-C stops it, too (*stop_timeout*: see :meth:`stop`).

        :raises RuntimeError, SocketClosedError, OSError: see :meth:`start`
        """
        checked_timeout(stop_timeout, "stop_timeout")
        try:
            self._stopping.serve_until_end(self.start)
        except KeyboardInterrupt:
            pass
        return self.stop(stop_timeout)

    def stop(self, timeout: float | None = STOP_TIMEOUT) -> StopReport:
        """Accept nobody any more, and let what is running end.

        Idempotent, and from several threads at once: all wait for the same end, and are given the same report; an
        earlier deadline counts for all.  On the poller thread, which handlers may need, it only begins.

        :raises ValueError: a negative or NaN timeout
        """
        limit = checked_timeout(timeout)
        if self._generation != fork.generation:
            return StopReport()
        with self._lock:
            self._stopped = True
        on_poller_thread = self._loop is not None and self._loop.is_current()
        # A hook may be called by the thread that ends the server, too.
        only_begin = on_poller_thread or self._stopping.is_current() or self._needs_the_caller()
        inside = () if only_begin else self._callers()
        for connection in inside:
            self._table.excuse(connection)
        self._close_doors()
        self._stopping.begin(limit, wait=not only_begin)
        if only_begin:
            return self._stopping.report
        report = self._stopping.wait()
        if not inside:
            self._let_go(GRACE)
        return report

    @property
    def stopping(self) -> bool:
        """Whether somebody has begun to stop it: for handlers that take long, or ask between two requests."""
        return self._stopped

    # Whichever thread.

    def _stop_by_itself(self, limit: float) -> None:
        """Nobody waits for it.  Whoever is inside now is counted, though he may be about to leave."""
        with self._lock:
            self._stopped = True
        self._table.shut()
        self._stopping.begin(limit, wait=False)

    def _on_leave(self) -> None:
        """A connection has left the table."""
        if self._accepting is not None:
            self._accepting.left()

    def _cannot_go_on(self, error: Exception) -> None:
        """The poller thread is closed, behind our back: nobody can be accepted any more, so this is the end."""
        if not (self._stopped or lifecycle.exiting()):
            logger.error("%r stops: %s", self, error)
            self._stop_by_itself(GRACE)

    def _close_doors(self) -> None:
        self._table.shut()
        if self._accepting is not None:
            self._accepting.close()
        for server in self.servers:
            server.close()

    def _finish(self) -> None:
        """The end of the end, on its thread."""
        self._let_go(None)

    # At the exit of the interpreter; see lifecycle.py.

    def stop_soon(self) -> None:
        """Not for users: the interpreter exits."""
        if self._generation == fork.generation:
            self._stopped = True
            self._close_doors()
            self._table.end_all()

    def wait_until(self, deadline: float) -> None:
        """Not for users: the interpreter exits."""
        if self._generation == fork.generation:
            self._table.wait_for_calls(lambda: deadline)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} can be neither copied nor pickled")

    def __repr__(self) -> str:
        state = "stopped" if self._stopped else "not started" if self._accepting is None else "serving"
        return f"<{type(self).__name__} {state}, {len(self._table)} connections, at {self.servers!r}>"


def listening_sockets(server: object) -> tuple[StreamServer, ...]:
    """*server*: one, or several.

    :raises ValueError: none
    :raises TypeError: not a StreamServer
    """
    if isinstance(server, StreamServer):
        return (server,)
    if not isinstance(server, Iterable):
        raise TypeError(f"server must be a StreamServer, or several, not {type(server).__name__}")
    servers = tuple(server)
    if not servers:
        raise ValueError("a server needs at least one listening socket")
    for each in servers:
        if not isinstance(each, StreamServer):
            raise TypeError(f"a StreamServer is required, not {type(each).__name__}")
    return servers
