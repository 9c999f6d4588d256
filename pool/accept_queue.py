"""AcceptQueue: several who wait for the next connection of one server, one connection each.

Law of this file: see ``socket_queue.py``.  They are served in the order of their calls.  A future is claimed before
its connection is accepted, so one that was cancelled never swallows a connection; and it is claimed only while a
connection is there, so cancelling works until then.  (Where another process takes that connection first, the future
goes on waiting, claimed: it cannot be cancelled any more, but its time may still run out.)
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Final

from bbipc.errors import NoConnectionAvailableError
from bbipc.events import SocketEvent
from bbipc.sockets.server import StreamServer
from bbipc.sockets.stream import StreamSocket
from pool.afterwards import Afterwards
from pool.futures import GuardedFuture
from pool.polling_loop import PollingLoop
from pool.socket_queue import SocketQueue
from pool.timers import Timer

#: connections accepted for one server before the poller thread turns to the next socket
TURN: Final = 64


class Waiting:
    """One who waits."""

    __slots__ = ("future", "timer", "claimed", "__weakref__")

    def __init__(self) -> None:
        self.future: Future[StreamSocket] = GuardedFuture()
        self.timer: Timer | None = None
        self.claimed = False

    def claim(self) -> bool:
        """Whether he still wants it."""
        self.claimed = self.claimed or self.future.set_running_or_notify_cancel()
        return self.claimed


class AcceptQueue(SocketQueue):
    """Who waits for *server*.  *on_end*: called when the server, or the poller thread, is closed."""

    def __init__(self, server: StreamServer, loop: PollingLoop, on_end: Callable[[StreamServer], object]) -> None:
        super().__init__(server, loop, SocketEvent.CONNECTION_AVAILABLE)
        self._server = server
        self._on_end = on_end
        self._queue: OrderedDict[Waiting, None] = OrderedDict()

    def ask(self, limit: float | None) -> Future[StreamSocket]:
        """The future of one connection."""
        waiting = Waiting()
        self._do(lambda after: self._ask_alone(waiting, limit, after), waiting.future)
        return waiting.future

    def end(self, error: Exception) -> None:
        """The server, or the poller thread, is closed."""

        def step(after: Afterwards) -> None:
            self._monitor, self._armed = None, False
            while self._queue:
                self._fail_alone(next(iter(self._queue)), error, after)
            after.add(self._on_end, self._server)

        self._do(step)

    def _ask_alone(self, waiting: Waiting, limit: float | None, after: Afterwards) -> None:
        self._queue[waiting] = None
        try:
            if len(self._queue) == 1:
                self._accept_alone(after)
            if waiting not in self._queue:
                return
            if limit == 0:
                raise _late(0)
            self._arm_alone()
            if limit is not None:
                waiting.timer = self._loop.start_timer(limit, partial(self._expire, weakref.ref(waiting), limit))
            waiting.future.add_done_callback(partial(self._done, weakref.ref(waiting)))
        except (OSError, RuntimeError) as error:
            self._fail_alone(waiting, error, after)
            if self._monitor is None:  # nobody would tell of the server's end
                after.add(self._on_end, self._server)
        except BaseException:  # Ctrl-C: somebody of whom nobody knows would swallow a connection
            self._queue.pop(waiting, None)
            raise

    def _turn_alone(self, after: Afterwards) -> None:
        if self._queue:
            self._accept_alone(after)
        else:
            self._pause_alone()

    def _accept_alone(self, after: Afterwards) -> None:
        """Serve those for whom there is a connection, TURN at most."""
        for _ in range(TURN):
            if not self._queue:
                return
            head = next(iter(self._queue))
            try:
                if not self._server.connection_available():
                    return
                if head.claim():
                    after.add(head.future.set_result, self._server.accept_connection())
                self._remove_alone(head, after)
            except NoConnectionAvailableError:
                return
            except OSError as error:
                self._fail_alone(head, error, after)

    def _remove_alone(self, waiting: Waiting, after: Afterwards) -> None:
        del self._queue[waiting]
        if waiting.timer is not None:
            after.add(waiting.timer.cancel)

    def _fail_alone(self, waiting: Waiting, error: Exception, after: Afterwards) -> None:
        self._remove_alone(waiting, after)
        if waiting.claim():
            after.add(waiting.future.set_exception, error)

    def _expire(self, reference: weakref.ref[Waiting], limit: float) -> None:
        waiting = reference()

        def step(after: Afterwards) -> None:
            if waiting is not None and waiting in self._queue:
                self._fail_alone(waiting, _late(limit), after)

        self._do(step)

    def _done(self, reference: weakref.ref[Waiting], future: Future[StreamSocket]) -> None:
        """A callback of the future: if it was cancelled, take it out and let its waiters know."""
        waiting = reference()
        if waiting is None or not future.cancelled():
            return

        def step(after: Afterwards) -> None:
            if waiting in self._queue:
                self._remove_alone(waiting, after)
                after.add(future.set_running_or_notify_cancel)

        self._do(step)


def _late(limit: float) -> TimeoutError:
    return TimeoutError(f"no connection came within {limit:g} s")
