"""Runners: where the handlers of a MessageServer run.

    workers     the worker that has read runs the handlers (pool/leader.py): nothing is handed over between threads
    inline      the poller thread reads, and runs them
    executor    the poller thread reads, somebody else's executor runs them

Law of this file: it makes connections of the right kind (``message_serving.py``), has them monitored, and lets go of
what is the server's own.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from typing import Protocol

from bbipc.sockets.stream import StreamSocket
from pool.later import Later
from pool.message_connection import MessageConnection
from pool.message_flow import READ
from pool.message_service import Service
from pool.message_serving import ExecutorConnection, InlineConnection, WorkerConnection
from pool.poller_thread import PollerThread
from pool.polling_loop import PollingLoop
from pool.requests import Peer
from pool.stations import Station
from pool.worker_pool import WorkerPool


class Runner(Protocol):
    """Where handlers run.

    ``loop``: the thread that accepts, and looks after deadlines.  ``backlog``: how many connections are ready, and wait
    for other threads.
    """

    loop: PollingLoop
    backlog: Callable[[], int]

    def connect(self, service: Service, stream: StreamSocket, peer: Peer) -> MessageConnection:
        """A connection whose handlers run there."""
        ...

    def monitor(self, connection: MessageConnection) -> None:
        """Begin to read it.

        :raises OSError, RuntimeError: it cannot be
        """

    def shutdown(self, timeout: float | None) -> None:
        """Let go of what is the runner's own, and wait so long for it; ``None``: do not wait."""


class WorkerRunner:
    """Handlers run on *workers*; *own*: they are the server's."""

    def __init__(self, workers: WorkerPool, *, own: bool) -> None:
        self._workers = workers
        self._own = own
        self.loop: PollingLoop = workers.poller_thread
        self.backlog: Callable[[], int] = workers.backlog

    def connect(self, service: Service, stream: StreamSocket, peer: Peer) -> MessageConnection:
        """See Runner."""
        return WorkerConnection(service, stream, peer, self._workers)

    def monitor(self, connection: MessageConnection) -> None:
        """See Runner."""
        monitor = self._workers.monitor(connection.stream, READ, connection.on_ready, on_close=connection.stream_closed)
        if isinstance(monitor, Station) and isinstance(connection, WorkerConnection):
            monitor.listener = connection
        connection.monitored_by(monitor)

    def shutdown(self, timeout: float | None) -> None:
        """See Runner."""
        if self._own:
            self._workers.shutdown(wait=timeout is not None, timeout=timeout)


class LoopRunner:
    """Handlers run on a poller thread of the server's own, or, where there is one, on *executor*."""

    def __init__(self, executor: Executor | None) -> None:
        self._executor = executor
        self.loop: PollingLoop = PollerThread(name="bbipc-messages")
        self.backlog: Callable[[], int] = int
        self._later = Later(self.loop)

    def connect(self, service: Service, stream: StreamSocket, peer: Peer) -> MessageConnection:
        """See Runner."""
        if self._executor is None:
            return InlineConnection(service, stream, peer, self._later)
        return ExecutorConnection(service, stream, peer, self._executor, self._later)

    def monitor(self, connection: MessageConnection) -> None:
        """See Runner."""
        monitor = self.loop.monitor(connection.stream, READ, connection.on_ready, on_close=connection.stream_closed)
        connection.monitored_by(monitor)

    def shutdown(self, timeout: float | None) -> None:
        """See Runner."""
        self.loop.close(0 if timeout is None else timeout)
