"""MessageServer: messages are read, and a handler is called for each request.

    listening sockets      accepting.py             on the poller thread
          |  a stream
          v
    table of connections   table.py                 at most max_connections
          |  readiness
          v
    requests               message_inbox.py         what all share: message_service.py
          |
          v
    handler(request)       message_serving.py       on workers, on the poller thread, on any executor
          |
          v
    replies                message_output.py

Law of this file: the face.  Any thread may call anything; ``stop`` and ``serve_forever`` wait, nothing else does.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Sequence
from concurrent.futures import Executor
from types import TracebackType
from typing import Final, Literal, NoReturn, Self

from bbipc.errors import PollerClosedError
from bbipc.messages.frames import MAX_MESSAGE_SIZE
from bbipc.polling.deadline import checked_timeout
from bbipc.sockets import fork
from bbipc.sockets.local import LocalServer, PeerCredentials
from bbipc.sockets.server import StreamServer
from bbipc.sockets.stream import StreamSocket
from pool import lifecycle
from pool.accepting import Accepting
from pool.message_callers import callers
from pool.message_limits import COUNTED, Limits, MessageServerStats
from pool.message_runners import LoopRunner, Runner, WorkerRunner
from pool.message_service import CloseHook, ErrorHook, Handler, Service, peer_of
from pool.stopping import GRACE, Stopping, StopReport
from pool.worker_pool import WorkerPool

#: seconds for what is in flight when a server is stopped
STOP_TIMEOUT: Final = 10.0

logger = logging.getLogger(__name__)


class MessageServer:
    """Calls *handler* for every request that comes in on the connections of *server*: one listening socket, or several.
    It owns them, and closes them when it stops.

    ``handler(request)`` returns the response: ``str`` (sent as STRING), a buffer (BINARY), a ``bbipc.messages.Message``
    (its type and payload), ``None`` (a blank response, which says that there is no value); or a
    ``concurrent.futures.Future`` of one of these, which takes no worker while it is waited for.  What it raises goes to
    the client as the type and the text of the error, never more; to the log, with its traceback, once a second at most;
    and to ``on_error(error, peer)``.  A value that cannot be sent counts as raised.

    A connection carries any number of messages.  Requests with a tag run side by side, and are answered in any order;
    requests without one are answered one at a time, in their order.  A request with DISCARD is not given to the
    handler.  A CLOSE is answered behind everything before it, and ends its connection; with *stop_on_close* it stops
    the server.  What is no message ends its connection, after the requests before it were answered and one response has
    said what is wrong.

    ``on_error(error, peer)`` is told what handlers raise, of what is no message (the :class:`bbipc.MessageError`; also
    where a connection ends or is lost inside of one), and of connections that are cut for a limit (a TimeoutError that
    names it; not of idle ones).  ``on_close(peer)`` is told of each CLOSE, when the requests before it were answered.
    Both are called on any thread, and should be quick; what they raise is logged; both may :meth:`stop` the server.

    *workers*, where handlers run.  ``None``: on a WorkerPool of the server's own.  A WorkerPool: on its workers, left
    alone when the server stops; where handlers block, give one with as many workers as there are to be calls at once.
    ``"inline"``: on the poller thread, the fastest way for handlers that never block.  Any other Executor (and a
    WorkerPool with an *executor*): handler and requests are submitted to it; where it runs them in other processes both
    are pickled, and ``respond`` is not to be had there.

    Limits; ``stats()`` counts what each of them did.  *max_message_size*: bytes of a payload, of requests and replies.
    *max_connections*: the others wait in the kernel's backlog; ``None``: any number.  *max_in_flight*,
    *max_in_flight_total*: requests of a connection, and of all, that are with the handler at once; with so many read
    and not answered nothing more is read.  *max_unsent*: bytes of replies that the peer does not take, and of requests
    that are not answered yet, beyond which a connection is read no further, ``None``: 2 * *max_message_size*.  While
    one more reply might pass it no further request is begun; those that are with handlers may still be answered.
    *max_unverified*: bytes of messages that have not come in full, of all connections; with more, one after the other
    is read, and who does not deliver meanwhile is cut.

    Timeouts in seconds, ``None``: none; a connection past one is cut.  *idle_timeout*: without any request.
    *header_timeout*: from the first byte of a message to the end of its header.  *body_timeout* and *min_body_rate*:
    in each *body_timeout* seconds of a payload so many bytes a second have to come.  *stall_timeout*: the peer takes
    nothing of the replies that wait.

    *allowed_uids*: users who may connect, told by the kernel; others are closed at once; local sockets only.
    *accept_unsigned*: take messages without a checksum.

    ``servers``: the listening sockets.  ``workers``: as given, or the server's own pool.  Any thread may call anything.

    :raises ValueError: no listening socket, a limit that makes no sense, *allowed_uids* for a TCP socket
    :raises TypeError: not a StreamServer, *workers* is none of these
    """

    def __init__(
        self,
        server: StreamServer | Sequence[StreamServer],
        handler: Handler,
        *,
        workers: WorkerPool | Executor | Literal["inline"] | None = None,
        on_error: ErrorHook | None = None,
        on_close: CloseHook | None = None,
        max_message_size: int = MAX_MESSAGE_SIZE,
        max_connections: int | None = 1024,
        max_in_flight: int = 64,
        max_in_flight_total: int = 1024,
        max_unsent: int | None = None,
        max_unverified: int = 64 << 20,
        idle_timeout: float | None = None,
        header_timeout: float | None = 10.0,
        body_timeout: float | None = 5.0,
        min_body_rate: int = 1024,
        stall_timeout: float | None = 30.0,
        allowed_uids: Collection[int] | None = None,
        accept_unsigned: bool = False,
        stop_on_close: bool = False,
    ) -> None:
        self.servers = _servers(server, local=allowed_uids is not None)
        limits = Limits(
            max_message_size=max_message_size,
            max_connections=max_connections,
            max_in_flight=max_in_flight,
            max_in_flight_total=max_in_flight_total,
            max_unsent=max_unsent,
            max_unverified=max_unverified,
            idle_timeout=idle_timeout,
            header_timeout=header_timeout,
            body_timeout=body_timeout,
            min_body_rate=min_body_rate,
            stall_timeout=stall_timeout,
        )
        if not (workers is None or workers == "inline" or isinstance(workers, Executor)):
            raise TypeError(f'workers must be a WorkerPool, an Executor or "inline", not {type(workers).__name__}')
        self._owns_workers = workers is None
        self.workers: WorkerPool | Executor | Literal["inline"] = WorkerPool() if workers is None else workers
        self._limits = limits
        self._uids = None if allowed_uids is None else frozenset(allowed_uids)
        self._stop_on_close = stop_on_close
        self._service = Service(
            handler,
            limits,
            on_error,
            on_leave=self._on_leave,
            on_close=self._on_close,
            accept_unsigned=accept_unsigned,
            close_hook=on_close,
        )
        self._stopping = Stopping(self._service.table, self._close_doors, self._finish)
        self._lock = threading.RLock()  # guards what follows
        self._stopped = False
        self._accepting: Accepting | None = None
        self._runner: Runner | None = None
        self._generation = fork.generation

    def start(self) -> None:
        """Begin to accept.  Idempotent; never waits.

        :raises RuntimeError: it was stopped; its pool was shut down; it belongs to the process that forked this one
        :raises SocketClosedError: one of its listening sockets is closed
        :raises OSError: the kernel has no room for it
        """
        self._check_process()
        with self._lock:
            if self._stopped:
                raise RuntimeError("the server was stopped; make another")
            if self._accepting is not None:
                return
            runner = self._make_runner()
            accepting = Accepting(
                self.servers,
                runner.loop,
                self._take,
                inside=self._service.table.__len__,
                limit=self._limits.max_connections,
                on_end=self._cannot_go_on,
                on_full=self._on_full,
            )
            self._service.sweep.begin(runner.loop)
            self._runner, self._accepting = runner, accepting
            try:
                accepting.open()
            except BaseException:
                self._runner = self._accepting = None
                if not isinstance(runner, WorkerRunner):
                    runner.shutdown(None)
                raise
        lifecycle.stop_at_exit(self)

    def serve_forever(self, *, stop_timeout: float | None = STOP_TIMEOUT) -> StopReport:
        """Start, and wait until somebody stops the server; a Ctrl-C stops it, too (*stop_timeout*: see :meth:`stop`).

        :raises RuntimeError, SocketClosedError, OSError: see :meth:`start`
        """
        checked_timeout(stop_timeout)
        try:
            self._stopping.serve_until_end(self.start)
        except KeyboardInterrupt:
            pass
        return self.stop(stop_timeout)

    def stop(self, timeout: float | None = STOP_TIMEOUT) -> StopReport:
        """Accept nobody and read nothing any more, answer what was read, and close all connections.

        Connections with nothing to answer are closed at once.  The others have *timeout* seconds (``None``: as long as
        they like) for their handlers to return and their peers to take the replies; then they are closed, what no
        handler has begun is dropped, and handlers have half a second more before they are left behind: see
        :class:`StopReport`.  It returns a few seconds after that at the latest.

        Idempotent, and from several threads at once: all wait for the same end, and are given the same report; an
        earlier deadline counts for all.  A handler or a hook may call it: its own response still goes out, but its
        connection is not waited for, and what else waits there may be dropped.  On the poller thread, which the
        handlers may need, it only begins, and reports what is known so far.

        :raises ValueError: a negative or NaN timeout
        """
        limit = checked_timeout(timeout)
        if self._generation != fork.generation:
            return StopReport()
        with self._lock:
            self._stopped = True
        on_poller_thread = self._runner is not None and self._runner.loop.is_current()
        only_begin = on_poller_thread or self._stopping.is_current()  # a hook may be called there, too
        inside = set() if only_begin else callers(self._service)
        for connection in inside:
            self._service.table.excuse(connection)
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
        """Whether somebody has begun to stop it: for handlers that take long."""
        return self._stopped

    def stats(self) -> MessageServerStats:
        """What it is doing now.  Never waits; the numbers are of moments that lie close together."""
        accepting, counts = self._accepting, self._service.counts()
        members = self._service.table.members()
        return MessageServerStats(
            connections=len(members),
            in_flight=sum(member.in_flight() for member in members),
            waiting=sum(member.backlog() for member in members),
            unverified=self._service.unverified.total,
            unsent=sum(member.unsent() for member in members),
            paused=accepting is not None and accepting.paused,
            accepted=0 if accepting is None else accepting.accepted,
            shed=0 if accepting is None else accepting.shed,
            refused=0 if accepting is None else accepting.refused,
            **{name: counts[name] for name in COUNTED},
        )

    # The poller thread: a connection has come.

    def _take(self, stream: StreamSocket) -> None:
        peer = peer_of(stream)
        if self._uids is not None and not (isinstance(peer, PeerCredentials) and peer.uid in self._uids):
            self._service.met("refused_uids", logging.WARNING, "%r is not among allowed_uids", peer)
            stream.close()
            return
        assert self._runner is not None
        connection = self._runner.connect(self._service, stream, peer)
        if not self._service.table.add(connection):
            raise PollerClosedError("the server is being stopped")
        if self._limits.idle_timeout is not None:
            self._service.sweep.watch(connection)
        try:
            self._runner.monitor(connection)
        except (OSError, RuntimeError):
            connection.cut()
            raise

    # Whichever thread.

    def _on_leave(self) -> None:
        if self._accepting is not None:
            self._accepting.left()

    def _on_full(self) -> None:
        text = "%d connections, as many as max_connections allows: nobody is accepted until one leaves"
        self._service.met("held_for_connections", logging.WARNING, text, self._limits.max_connections)

    def _on_close(self) -> None:
        """A client has said CLOSE, and was answered."""
        if self._stop_on_close:
            with self._lock:
                self._stopped = True
            self._stopping.begin(STOP_TIMEOUT, wait=False)

    def _cannot_go_on(self, error: Exception) -> None:
        """The poller thread is closed, behind our back: nobody can be accepted any more, so this is the end."""
        if not (self._stopped or lifecycle.exiting()):
            logger.error("%r stops: %s", self, error)
            with self._lock:
                self._stopped = True
            self._stopping.begin(GRACE, wait=False)

    def _make_runner(self) -> Runner:
        workers = self.workers
        if isinstance(workers, WorkerPool) and workers._executor is None:
            return WorkerRunner(workers, own=self._owns_workers)
        return LoopRunner(None if isinstance(workers, str) else workers)

    def _close_doors(self) -> None:
        self._service.table.shut()
        if self._accepting is not None:
            self._accepting.close()
        for server in self.servers:
            server.close()

    def _finish(self) -> None:
        """The end of the end, on its thread."""
        self._let_go(None)

    def _let_go(self, timeout: float | None) -> None:
        runner = self._runner
        if runner is not None:
            runner.shutdown(timeout)
        elif self._owns_workers and isinstance(self.workers, WorkerPool):
            self.workers.shutdown(wait=timeout is not None, timeout=timeout)

    def _check_process(self) -> None:
        if self._generation != fork.generation:
            raise RuntimeError("this server belongs to the process that forked this one; make another")

    # At the exit of the interpreter; see lifecycle.py.

    def stop_soon(self) -> None:
        """Not for users: the interpreter exits."""
        if self._generation == fork.generation:
            self._stopped = True
            self._close_doors()
            self._service.table.end_all()

    def wait_until(self, deadline: float) -> None:
        """Not for users."""
        if self._generation == fork.generation:
            self._service.table.wait_for_calls(lambda: deadline)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a MessageServer can be neither copied nor pickled")

    def __repr__(self) -> str:
        state = "stopped" if self._stopped else "not started" if self._accepting is None else "serving"
        return f"<MessageServer {state}, {len(self._service.table)} connections, at {self.servers!r}>"


def _servers(server: StreamServer | Sequence[StreamServer], *, local: bool) -> tuple[StreamServer, ...]:
    servers = (server,) if isinstance(server, StreamServer) else tuple(server)
    if not servers:
        raise ValueError("a server needs at least one listening socket")
    for each in servers:
        if not isinstance(each, StreamServer):
            raise TypeError(f"a StreamServer is required, not {type(each).__name__}")
        if local and not isinstance(each, LocalServer):
            raise ValueError(f"nobody knows the user at the other end of a connection to {each!r}: no allowed_uids")
    return servers
