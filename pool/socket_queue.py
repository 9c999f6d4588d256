"""SocketQueue: what waits for one socket, in its order: the reads of a stream, its writes, the accepts of a server.

Law of this file: any thread may come in, at any time, and none ever waits for another.  So there is no lock.  One call
at a time is *at work*.  Whoever finds nobody at work, and nothing handed in, is at work himself; the others hand in
what they want (a *step*) and go, and the poller thread does it, in the order in which it came.  Futures are settled
when nobody is at work (``Afterwards``).

Why no lock.  A signal handler, or a finalizer that the collector runs, may come in the middle of any other call of its
thread, and use the stream.  If it waited for a lock:

1. The main thread is inside a future's condition (in ``result``, say); its handler waits for the queue's lock.
2. The poller thread has that lock, and waits for the condition, to claim the future.

Nor could the lock be let past its own thread: the handler would find bytes that the kernel has taken and nobody has
counted yet.

How one call is at work.  ``_at_work[0]`` is its token.  ``dict.setdefault`` lets exactly one of several win, with or
without a GIL.  The ``finally`` that takes the token away begins before the token can be there, and makes no call in
which a Ctrl-C could come.  Whoever hands in wakes the poller thread *behind* that; if it finds somebody at work it goes
away, and he looks for what was handed in *behind* taking his token away, and wakes it again.

Circles.  A future keeps its callbacks when it is done.  So a callback, and a timer, holds what waits by a weak
reference: it is alive as long as it is in the queue, and then the future, with its bytes, is freed at once, not by the
collector.

Waiting.  One monitor a queue, made when something has to wait for the first time.  Each change of it costs a system
call and 2 us, so it stays as it is until an event comes that nobody asks for.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final, ParamSpec, TypeVar

from bbipc.errors import PollerClosedError, SocketError
from bbipc.events import SocketEvent
from bbipc.polling.deadline import checked_timeout
from bbipc.sockets import fork
from bbipc.sockets.base import Socket
from pool.afterwards import Afterwards
from pool.futures import fail
from pool.parties import Monitor
from pool.polling_loop import PollingLoop

P = ParamSpec("P")
T = TypeVar("T")
Step = Callable[[Afterwards], object]

#: steps that the poller thread does for one queue before it turns to the next
TURN: Final = 64


class SocketQueue:
    """A queue at *socket*, served when one of *events* is true of it.

    Fields belong to the call that is at work; a helper whose name ends in ``_alone`` is called by it.
    """

    def __init__(self, socket: Socket, loop: PollingLoop, events: SocketEvent) -> None:
        self._socket = socket
        self._loop = loop
        self._events = events
        self._at_work: dict[int, object] = {}
        self._inbox: deque[tuple[Step, Future[Any] | None]] = deque()
        self._monitor: Monitor | None = None
        self._armed = False
        self._generation = fork.generation

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._socket!r}>"

    def _limit(self, timeout: float | None) -> float | None:
        """*timeout* in seconds, ``None``: none.

        :raises TypeError: a timeout that is not a number
        :raises ValueError: a negative or NaN timeout
        :raises PollerClosedError: in a forked child, where a thread that is not there may be at work
        """
        if self._generation != fork.generation:
            raise PollerClosedError("this belongs to the process that forked this one")
        return None if timeout is None else checked_timeout(timeout)

    def _try(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """What *call* gives; ``None``: somebody else is at work, or comes first, and it was not called."""
        token, at_work = object(), self._at_work
        try:
            if self._inbox or at_work.setdefault(0, token) is not token:
                return None
            return call(*args, **kwargs)
        finally:
            try:
                if at_work[0] is token:
                    del at_work[0]
            except KeyError:
                pass
            if self._inbox:
                self._wake()

    def _do(self, step: Step, future: Future[Any] | None = None) -> None:
        """Do *step*, and what it leaves to be done afterwards; or let the poller thread, if somebody is at work.

        *future*: fails if *step* is ended in its middle.
        """
        after = Afterwards()
        try:
            if not self._try(_done, step, after):
                self._hand_in(step, future)
        finally:
            after.do()

    def _hand_in(self, step: Step, future: Future[Any] | None = None) -> None:
        """Let the poller thread do *step*."""
        self._inbox.append((step, future))
        self._wake()

    def _wake(self) -> None:
        """Let the poller thread do what was handed in; if it is closed, do it here."""
        try:
            self._loop.start_timer(0, self._work, self._work)  # closed meanwhile, it does that all the same
        except (OSError, RuntimeError):  # there is none, and perhaps the system has no thread for one
            self._work()

    def _work(self) -> None:
        """Do what was handed in, unless somebody is at work: he wakes the poller thread when he goes."""
        after = Afterwards()
        token: object = object()
        at_work, inbox = self._at_work, self._inbox
        try:
            if at_work.setdefault(0, token) is not token:
                return
            for _ in range(TURN):
                if not inbox:
                    break
                step, future = inbox[0]
                del inbox[0]
                try:
                    step(after)
                except BaseException:
                    if future is not None:
                        after.add(self._abandon, future)
                    raise
        finally:
            try:
                if at_work[0] is token:
                    del at_work[0]
                    token = None
            except KeyError:
                pass
            try:
                after.do()
            finally:
                if inbox and token is None:
                    self._wake()

    def _abandon(self, future: Future[Any]) -> None:
        """What *future* stands for was interrupted in its middle."""
        error = SocketError(errno.EINTR, "an interrupt ended this in its middle", socket=self._socket)
        if future.running():
            future.set_exception(error)
        elif not future.done():
            fail(future, error)

    def _arm_alone(self) -> None:
        """Let the poller thread tell of events.

        :raises SocketClosedError, PollerClosedError: it cannot any more
        :raises OSError, RuntimeError: the system has no room for the registration, or no thread
        """
        if self._armed:
            return
        if self._monitor is None:
            self._monitor = self._loop.monitor(self._socket, self._events, self._on_event, on_close=self.end)
        else:
            self._monitor.resume()
        self._armed = True

    def _pause_alone(self) -> None:
        """Nobody asks for events."""
        if self._armed and self._monitor is not None:
            self._armed = False
            self._monitor.pause()

    def _on_event(self, socket: Socket, events: SocketEvent) -> None:
        """The poller thread tells; if somebody is at work, it will tell again."""
        after = Afterwards()
        try:
            self._try(self._turn_alone, after)
        finally:
            after.do()

    # What a queue supplies.

    def _turn_alone(self, after: Afterwards) -> None:
        """Do what can be done now, within bounds."""
        raise AssertionError("every queue has its own")

    def end(self, error: Exception) -> None:
        """The socket, or the poller thread, is closed."""
        raise AssertionError("every queue has its own")


def _done(step: Step, after: Afterwards) -> bool:
    step(after)
    return True
