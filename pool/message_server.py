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

Law of this file: what such a server is, and what it is told of its connections.  How it begins and ends stands in
``server_face.py``.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from concurrent.futures import Executor
from typing import Literal

from bbipc.errors import PollerClosedError
from bbipc.messages.frames import MAX_MESSAGE_SIZE
from bbipc.sockets.local import LocalServer, PeerCredentials
from bbipc.sockets.server import StreamServer
from bbipc.sockets.stream import StreamSocket
from pool.accepting import Accepting
from pool.arguments import checked_callable, checked_count, checked_hook
from pool.message_callers import callers, settles_futures
from pool.message_limits import COUNTED, Limits, MessageServerStats
from pool.message_runners import LoopRunner, Runner, WorkerRunner
from pool.message_service import Client, CloseHook, ErrorHook, Handler, Service, peer_of
from pool.server_face import MAX_CONNECTIONS, STOP_TIMEOUT, ServerFace, listening_sockets
from pool.stopping import StopReport
from pool.worker_pool import WorkerPool

logger = logging.getLogger(__name__)


class MessageServer(ServerFace[Client]):
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
    :raises TypeError: not a StreamServer, *workers* is none of these, a handler or hook that is no callable, a limit
        or uid that is no number
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
        max_connections: int | None = MAX_CONNECTIONS,
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
        servers = listening_sockets(server)
        if allowed_uids is not None:
            _check_local(servers)
            for uid in allowed_uids:
                checked_count("a uid of allowed_uids", uid, least=0)
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
        checked_callable("handler", handler)
        checked_hook("on_error", on_error)
        checked_hook("on_close", on_close)
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
        super().__init__(servers, self._service.table)
        self._runner: Runner | None = None  # guarded by the lock

    def stop(self, timeout: float | None = STOP_TIMEOUT) -> StopReport:
        """Accept nobody and read nothing any more, answer what was read, and close all connections.

        Connections with nothing to answer are closed at once.  The others have *timeout* seconds (``None``: as long as
        they like) for their handlers to return and their peers to take the replies; then they are closed, what no
        handler has begun is dropped, and handlers have half a second more before they are left behind: see
        :class:`StopReport`.  It returns a few seconds after that at the latest.

        Idempotent, and from several threads at once: all wait for the same end, and are given the same report; an
        earlier deadline counts for all.  A handler or a hook may call it: its own response still goes out, but its
        connection is not waited for, and what else waits there may be dropped.  On the poller thread, which the
        handlers may need, and in a hook called by whoever settles the future of a reply, it only begins, and reports
        what is known so far.

        :raises ValueError: a negative or NaN timeout
        """
        return super().stop(timeout)

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

    # See ServerFace.

    def _begin_locked(self) -> None:
        runner = self._make_runner()
        accepting = Accepting(
            self.servers,
            runner.loop,
            self._take,
            inside=self._service.table.__len__,
            limit=self._limits.max_connections,
            on_end=self._cannot_go_on,
            on_full=self._on_full,
            backlog=runner.backlog,
        )
        self._service.sweep.begin(runner.loop)
        self._runner, self._loop, self._accepting = runner, runner.loop, accepting
        try:
            accepting.open()
        except BaseException:
            self._runner = self._loop = self._accepting = None
            if not isinstance(runner, WorkerRunner):
                runner.shutdown(None)
            raise

    def _make_runner(self) -> Runner:
        workers = self.workers
        if isinstance(workers, WorkerPool) and workers._executor is None:
            return WorkerRunner(workers, own=self._owns_workers)
        return LoopRunner(None if isinstance(workers, str) else workers)

    def _needs_the_caller(self) -> bool:
        return settles_futures()

    def _callers(self) -> Collection[Client]:
        return callers(self._service)

    def _let_go(self, timeout: float | None) -> None:
        runner = self._runner
        if runner is not None:
            runner.shutdown(timeout)
        elif self._owns_workers and isinstance(self.workers, WorkerPool):
            self.workers.shutdown(wait=timeout is not None, timeout=timeout)

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

    def _on_full(self) -> None:
        text = "%d connections, as many as max_connections allows: nobody is accepted until one leaves"
        self._service.met("held_for_connections", logging.WARNING, text, self._limits.max_connections)

    def _on_close(self) -> None:
        """A client has said CLOSE, and was answered."""
        if self._stop_on_close:
            self._stop_by_itself(STOP_TIMEOUT)


def _check_local(servers: tuple[StreamServer, ...]) -> None:
    for each in servers:
        if not isinstance(each, LocalServer):
            raise ValueError(f"nobody knows the user at the other end of a connection to {each!r}: no allowed_uids")
