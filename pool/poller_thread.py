"""PollerThread: the thread that waits for everybody, with connecting and accepting as futures.

Law of this file: it makes nothing wait but futures.  A stream that is not handed over is closed: a connect that fails,
times out or is cancelled leaves no descriptor behind.  Host names are not resolved, since that blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import TypeVar, cast

from bbipc.errors import ConnectionFailedError, NoConnectionAvailableError, PollerClosedError
from bbipc.events import SocketEvent
from bbipc.polling.deadline import checked_timeout
from bbipc.polling.poller import Poller
from bbipc.sockets.local import Path, connect_to_local_server
from bbipc.sockets.locks import make_rlock
from bbipc.sockets.server import ServerOf, StreamServer
from bbipc.sockets.stream import StreamSocket
from bbipc.sockets.tcp import connect_to_ipv4_tcp_server, connect_to_ipv6_tcp_server
from pool.accept_queue import AcceptQueue
from pool.future_stream import FutureStream
from pool.futures import GuardedFuture, failed, finished
from pool.polling_loop import PollingLoop

S = TypeVar("S", bound=StreamSocket)


class PollerThread(PollingLoop):
    """One thread that turns the readiness of sockets into futures and callbacks.

    It starts at first use and ends at ``close``, at the end of a ``with`` block, or with the interpreter.  *poller*:
    the one to wait with, owned from then on.  *name*: the thread's.  Any thread may call any method at any time.
    """

    def __init__(self, poller: Poller | None = None, *, name: str | None = None) -> None:
        super().__init__(poller, name=name)
        self._accepts: dict[StreamServer, AcceptQueue] = {}  # guarded by _accepts_lock
        self._accepts_lock = make_rlock()

    def connect_ipv4(
        self,
        host_address: str,
        port: int,
        *,
        local_host_address: str | None = None,
        local_port: int = 0,
        timeout: float | None = None,
    ) -> Future[FutureStream]:
        """Connect over TCP/IPv4 to *host_address* (numeric) and *port*; the connected stream.

        The future fails with ConnectionFailedError when it is refused or nobody can be reached, with TimeoutError after
        *timeout* seconds, with SocketError when there are no descriptors left.  ``cancel`` gives it up.

        :raises ValueError: not a numeric address (``resolve_ipv4_address`` makes one of a host name), a number out of
            range, or a negative or NaN timeout
        :raises TypeError: a port that is not an int, or a timeout that is not a number
        :raises PollerClosedError: this is closed
        """
        begin = partial(
            connect_to_ipv4_tcp_server,
            host_address,
            port,
            local_host_address=local_host_address,
            local_port=local_port,
        )
        return self._connect(begin, f"{host_address} port {port}", timeout)

    def connect_ipv6(
        self,
        host_address: str,
        port: int,
        *,
        local_host_address: str | None = None,
        local_port: int = 0,
        timeout: float | None = None,
    ) -> Future[FutureStream]:
        """The same as :meth:`connect_ipv4` over IPv6.

        :raises ValueError: not a numeric address, a number out of range, or a negative or NaN timeout
        :raises TypeError: a port that is not an int, or a timeout that is not a number
        :raises PollerClosedError: this is closed
        """
        begin = partial(
            connect_to_ipv6_tcp_server,
            host_address,
            port,
            local_host_address=local_host_address,
            local_port=local_port,
        )
        return self._connect(begin, f"{host_address} port {port}", timeout)

    def connect_local(self, path: Path, *, timeout: float | None = None) -> Future[FutureStream]:
        """Connect to the local server on *path*; the connected stream.

        While the server's backlog is full it is tried again, until *timeout*.  The future fails with NoLocalServerError
        when nothing listens there, otherwise as that of :meth:`connect_ipv4`.

        :raises ValueError: an empty, too long or NUL-holding path, or a negative or NaN timeout
        :raises TypeError: *path* is not a path, or a timeout that is not a number
        :raises PollerClosedError: this is closed
        """
        return self._connect(partial(connect_to_local_server, path), f"{path!r}", timeout)

    def accept(self, server: ServerOf[S], *, timeout: float | None = None) -> Future[S]:
        """The next connection of *server*.

        Several who wait are given one connection each, in the order of their calls; one that was cancelled takes none.
        The future fails with TimeoutError after *timeout* seconds, with SocketClosedError when anybody closes the
        server, with SocketError (EMFILE …) when the system is out of something; the peer then goes on waiting.

        :raises ValueError: a negative or NaN timeout
        :raises TypeError: not a server, or a timeout that is not a number
        :raises PollerClosedError: this is closed
        """
        listening: object = server  # by two names: what it is, and for type checkers whose connections it has
        if not isinstance(listening, StreamServer):
            raise TypeError(f"a StreamServer is required, not {type(server).__name__}")
        self._check_open()
        limit = checked_timeout(timeout)
        if listening not in self._accepts:  # nobody waits, or has waited
            try:
                return finished(server.accept_connection())
            except NoConnectionAvailableError:
                pass
            except OSError as error:
                return failed(error)
        with self._accepts_lock:
            queue = self._accepts.get(listening)
            if queue is None:
                queue = self._accepts[listening] = AcceptQueue(listening, self, self._forget_server)
        return cast("Future[S]", queue.ask(limit))

    def _forget_server(self, server: StreamServer) -> None:
        with self._accepts_lock:
            self._accepts.pop(server, None)

    def _connect(self, begin: Callable[[], StreamSocket], where: str, timeout: float | None) -> Future[FutureStream]:
        self._check_open()
        limit = checked_timeout(timeout)
        try:
            stream = begin()
        except OSError as error:
            return failed(error)
        future: Future[FutureStream] = GuardedFuture()
        determined: Future[SocketEvent] = GuardedFuture()
        try:
            future.add_done_callback(partial(_give_up, determined))
            determined.add_done_callback(partial(self._determined, future, stream, f"{where} within {limit} s"))
            self.settle_when(determined, stream, SocketEvent.DETERMINED, limit)
        except OSError as error:
            stream.close()
            return failed(error)
        except BaseException:
            stream.close()
            raise
        return future

    def _determined(
        self, future: Future[FutureStream], stream: StreamSocket, aim: str, determined: Future[SocketEvent]
    ) -> None:
        """A callback of the wait for the outcome."""
        error = _why_not(stream, aim, determined)
        if not future.set_running_or_notify_cancel():
            stream.close()
        elif error is not None:
            stream.close()
            future.set_exception(error)
        else:
            future.set_result(FutureStream(stream, self))


def _why_not(stream: StreamSocket, aim: str, determined: Future[SocketEvent]) -> BaseException | None:
    """Why *stream* is not connected; ``None``: it is, or was."""
    try:
        determined.result(0)
    except TimeoutError:
        return TimeoutError(f"no connection to {aim}")
    except (OSError, PollerClosedError, CancelledError) as error:
        return error
    try:
        stream.read(1, peek=True)  # which raises for a failed connect, with its cause
    except ConnectionFailedError as error:
        return error
    except OSError:  # a reset since: whoever reads it is told
        pass
    return None


def _give_up(determined: Future[SocketEvent], future: Future[FutureStream]) -> None:
    """A callback of the future: nobody has use for the connection any more; ``_determined`` closes it."""
    if future.cancelled():
        determined.cancel()
