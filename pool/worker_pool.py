"""WorkerPool: threads for whatever has to be called, and for whatever becomes ready.

Law of this file: the face.  ``crew.py`` owns the threads, ``leader.py`` decides who waits for sockets, ``borrowed.py``
does it for an executor of somebody else's.  Any thread may call anything; ``submit`` may wait for a place in the queue
where there is a limit, ``shutdown`` for the threads, and nothing else waits.
"""

from __future__ import annotations

import itertools
import os
import weakref
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Final, NoReturn, ParamSpec, Protocol, TypeVar, TypeVarTuple, cast

from bbipc.errors import QueueFullError
from bbipc.events import SocketEvent
from bbipc.polling.deadline import checked_timeout, deadline_after, time_left
from bbipc.sockets import fork
from bbipc.sockets.base import Socket
from bbipc.sockets.locks import make_rlock
from pool.arguments import checked_callable, checked_count, checked_hook, checked_kind
from pool.borrowed import BorrowedMonitor
from pool.crew import Crew
from pool.futures import GuardedFuture, chain, fail
from pool.interests import Callback
from pool.leader import Leadership
from pool.parties import CloseHook
from pool.poller_thread import PollerThread
from pool.stations import SHUT_DOWN, Station, Stations
from pool.tasks import Errand, Task

P = ParamSpec("P")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")
S = TypeVar("S", bound=Socket)

_counter: Final = itertools.count()
#: as ThreadPoolExecutor: from 3.13 on those that this process may use
_cpu_count: Final[Callable[[], int | None]] = getattr(os, "process_cpu_count", os.cpu_count)


class Monitoring(Protocol):
    """What :meth:`WorkerPool.monitor` gives: to cancel, pause or change the monitoring.  Any thread."""

    @property
    def active(self) -> bool:
        """Whether calls may still begin: neither cancelled, nor the socket or the pool closed."""
        ...

    def cancel(self) -> None:
        """End it; idempotent.  A call may still be running."""

    def pause(self) -> None:
        """Begin no call until :meth:`resume`; one may still be running.  Idempotent."""

    def resume(self) -> None:
        """Go on after :meth:`pause`; what is true by now is told.  Idempotent; nothing once it has ended."""

    def set_events(self, events: SocketEvent) -> None:
        """Call for *events* from now on, and go on if it was paused."""


@dataclass(frozen=True)
class PoolStats:
    """What a pool is doing at one moment.

    ``max_workers``, ``threads`` (started so far), ``idle`` (of them: neither calling nor waiting for sockets),
    ``queued`` (submitted calls that no worker has taken yet), ``monitored`` (sockets).
    """

    max_workers: int
    threads: int
    idle: int
    queued: int
    monitored: int


class WorkerPool(Executor):
    """A thread pool that also waits for sockets.

    *max_workers*: threads at most, started when they are needed; ``None``: as many as ThreadPoolExecutor takes.
    *poller_thread*: for ``when`` and for timeouts; ``None``: one of its own, at first need.  *executor*: makes all the
    calls in its place, and stays its owner's: ``shutdown`` leaves it alone.  *thread_name_prefix*, *initializer* and
    *initargs* as for ThreadPoolExecutor.  *queue_limit*: how many submitted calls may wait for a worker, ``None``: any
    number; past it ``submit`` waits *queue_timeout* seconds (``None``: for as long as it takes) and raises.  A call
    that was cancelled in the queue keeps its place until a worker comes across it.  *spin*: for so many seconds behind
    each call the worker that waits for sockets looks at them again and again before it sleeps; 20 to 50 us save a
    wake-up where the next request comes at once, and cost the processor that time.

    A call that waits for another call of the same pool may wait for ever, when all workers do that: give such calls
    a pool of their own.  Any thread may call any method at any time.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        poller_thread: PollerThread | None = None,
        executor: Executor | None = None,
        thread_name_prefix: str = "",
        initializer: Callable[..., object] | None = None,
        initargs: tuple[object, ...] = (),
        queue_limit: int | None = None,
        queue_timeout: float | None = None,
        spin: float = 0.0,
    ) -> None:
        if executor is not None and (max_workers, initializer, queue_limit) != (None, None, None):
            raise ValueError("the threads and the queue of an executor are its owner's to choose")
        if max_workers is None:
            max_workers = min(32, (_cpu_count() or 1) + 4)
        if isinstance(max_workers, int) and max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")  # as ThreadPoolExecutor says it
        checked_count("max_workers", max_workers)
        checked_hook("initializer", initializer)
        if queue_limit is not None:
            checked_count("queue_limit", queue_limit)
        if executor is not None:
            checked_kind("executor", executor, Executor, "an Executor")
        if poller_thread is not None:
            checked_kind("poller_thread", poller_thread, PollerThread)
        self._queue_limit = queue_limit
        self._queue_timeout = checked_timeout(queue_timeout, "queue_timeout")
        self._executor = executor
        self._poller_thread = poller_thread
        self._owns_poller_thread = poller_thread is None
        self._lock = make_rlock()  # guards the two above
        self._crew = Crew(
            max_workers,
            name=thread_name_prefix or f"WorkerPool-{next(_counter)}",
            limit=queue_limit,
            initialize=None if initializer is None else lambda: initializer(*initargs),
        )
        self._stations = Stations()
        #: who has which socket, or had it last; guarded by the lock, which is taken before theirs
        self._borrowed: weakref.WeakValueDictionary[Socket, BorrowedMonitor] = weakref.WeakValueDictionary()
        self._leadership = Leadership(self._crew, self._stations, checked_timeout(spin, "spin") or 0.0)
        self._crew.duty = self._leadership
        #: Not for users: have an errand run on a worker, next of all where a worker's own call asks; see leader.py.
        #: What is left when the pool is shut down is not run.
        self.follow_up: Final[Callable[[Errand], None]] = self._leadership.follow_up
        #: Not for users: how many sockets are ready, and wait for their calls.
        self.backlog: Final[Callable[[], int]] = self._leadership.backlog
        self._generation = fork.generation
        # By these names CPython's own tests of executors look at one.
        self._max_workers = max_workers
        self._threads = self._crew.threads

    @property
    def poller_thread(self) -> PollerThread:
        """The poller thread that goes with the pool; its own one is made now, if it was not needed before.

        :raises RuntimeError: the pool was shut down
        """
        with self._lock:
            if self._poller_thread is None:
                self._check_open()
                self._poller_thread = PollerThread(name=f"{self._crew.name}-poller")
            return self._poller_thread

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Call ``fn(*args, **kwargs)`` on a worker; the future of what it gives.

        :raises RuntimeError: the pool was shut down, or belongs to the process that forked this one, or the
            interpreter exits
        :raises QueueFullError: the queue was full for too long; or the caller is a worker of this pool, all the others
            wait for a place as well, and nobody would be left to make one
        :raises BrokenThreadPool: the initializer has failed
        """
        self._check_open()
        if self._executor is not None:
            return self._executor.submit(fn, *args, **kwargs)
        future: Future[T] = GuardedFuture()
        if not self._crew.put(Task(future, lambda: fn(*args, **kwargs)), self._queue_timeout):
            assert self._queue_limit is not None
            raise QueueFullError(self._queue_limit)
        return future

    def when(
        self,
        socket: S,
        events: SocketEvent,
        fn: Callable[[S, SocketEvent, *Ts], T],
        *args: *Ts,
        timeout: float | None = None,
    ) -> Future[T]:
        """Call ``fn(socket, events, *args)`` on a worker when some of *events* are true; the future of what it gives.

        No thread waits meanwhile.  The future fails as that of :meth:`PollerThread.when` does when they do not come
        (*timeout* in seconds); ``cancel`` takes it back until *fn* begins, or with an *executor* until it has the call.
        What has become ready is called for even where the queue is full.

        :raises ValueError: no events, events that this socket does not have, a negative or NaN timeout
        :raises TypeError: not a Socket, a SocketEvent, a callable, a number
        :raises SocketClosedError: it was closed before
        :raises RuntimeError: the pool was shut down
        """
        self._check_open()
        checked_callable("fn", fn)
        future: Future[T] = GuardedFuture()
        ready: Future[SocketEvent] = GuardedFuture()

        def has_come(ready: Future[SocketEvent]) -> None:
            if ready.cancelled():
                return
            error = ready.exception()
            if error is None:
                self._hand_over(future, fn, socket, ready.result(), *args)
            else:
                fail(future, error)

        def is_done(future: Future[T]) -> None:
            if future.cancelled() and ready.cancel():
                future.set_running_or_notify_cancel()

        ready.add_done_callback(has_come)
        future.add_done_callback(is_done)
        self.poller_thread.settle_when(ready, socket, events, timeout)
        return future

    def monitor(
        self,
        socket: S,
        events: SocketEvent,
        fn: Callable[[S, SocketEvent], object],
        *,
        on_close: CloseHook | None = None,
    ) -> Monitoring:
        """Call ``fn(socket, events)`` on a worker whenever some of *events* are true of *socket*.

        Until the monitor is cancelled or the socket closed; never twice at once for one socket, and again and again
        while they are true.  Idle sockets hold no thread.  *fn* may block: it holds its worker then, and nobody else
        waits for it, as long as there are workers left.  What it raises is logged.  *on_close*: called once, with
        SocketClosedError on a worker when the socket was closed, with RuntimeError when the pool was shut down, with an
        *executor*'s own error when that cannot make the call; not after a cancel.  A pool monitors a socket once.

        :raises ValueError: it is monitored already, or does not have one of *events*
        :raises TypeError: not a Socket, a SocketEvent, a callable
        :raises SocketClosedError: it was closed before
        :raises RuntimeError: the pool was shut down
        :raises OSError: the kernel has no room for it
        """
        self._check_open()
        checked_callable("fn", fn)
        checked_hook("on_close", on_close)
        call = cast(Callback, fn)
        if self._executor is not None:
            borrowed = BorrowedMonitor(self.poller_thread, self, self._executor, socket, call, on_close)
            with self._lock:
                self._crew.check()
                holder = self._borrowed.get(socket)
                if holder is not None:
                    holder.give_way(borrowed)
                self._borrowed[socket] = borrowed
            return borrowed.begin(events)
        station = Station(self._stations, self, socket, call, on_close)
        try:
            self._stations.add(station, events)
            if self._crew.duty.wanted():
                self._crew.nudge()
        except BaseException:  # a Ctrl-C; or there is no thread to be had
            station.cancel()
            raise
        return station

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False, timeout: float | None = None) -> None:
        """Take nothing new, end all monitors, and let the threads end when the queue is empty.  Idempotent.

        *wait*: for them, but not for the calling one, and for *timeout* seconds at most (``None``: for as long as it
        takes).  *cancel_futures*: cancel what is queued.  ``stats().threads`` tells how many are left.  The pool's own
        poller thread is closed at once: what waits for it fails with PollerClosedError.  What an *executor* was given
        is neither waited for nor cancelled.  Any thread, a worker of the pool included.

        :raises ValueError: a negative or NaN timeout
        """
        deadline = deadline_after(checked_timeout(timeout))
        if self._generation != fork.generation:
            self._crew.ending = True
            self._stations.close()
            return
        self._end_stations()
        self._crew.end()
        with self._lock:
            borrowed = list(self._borrowed.values())
        for monitor in borrowed:
            monitor.end(RuntimeError(SHUT_DOWN))
        if cancel_futures:
            self._crew.cancel_all()
        with self._lock:
            poller_thread = self._poller_thread if self._owns_poller_thread else None
        if poller_thread is not None:
            poller_thread.close(None if deadline is None and wait else time_left(deadline) if wait else 0)
        if wait:
            self._crew.join(None if deadline is None else time_left(deadline))

    def _end_stations(self) -> None:
        """End all monitors; what is to be called then is called on workers, as it may block."""
        self._leadership.end(self._end_apart)

    def _end_apart(self, station: Station) -> None:
        if station.on_close is None:
            return
        try:
            self._crew.put(Task(GuardedFuture(), station.end, obligatory=True), None, urgent=True)
        except RuntimeError:  # there are no workers any more
            station.end()

    def stats(self) -> PoolStats:
        """What it is doing now.  Never waits; the numbers are of moments that lie close together."""
        crew = self._crew
        threads = sum(thread.is_alive() for thread in crew.threads.copy())
        return PoolStats(crew.max_workers, threads, min(crew.idle(), threads), len(crew.tasks), len(self._stations))

    def _check_open(self) -> None:
        self._crew.check()

    def _hand_over(
        self, future: Future[T], fn: Callable[..., T], socket: Socket, events: SocketEvent, *args: object
    ) -> None:
        """What was waited for has come: let *fn* be called for *future*."""
        try:
            if self._executor is None:
                return self._put_urgently(Task(future, lambda: fn(socket, events, *args)))
            if future.set_running_or_notify_cancel():
                chain(self._executor.submit(fn, socket, events, *args), future)
        except BaseException as error:  # shut down meanwhile, or an executor that takes nothing
            if not isinstance(error, Exception) and not self.poller_thread.is_current():
                raise  # a Ctrl-C in :meth:`when` itself: nobody has the future, but perhaps a worker
            if future.running():
                future.set_exception(error)
            else:
                fail(future, error)

    def _put_urgently(self, task: Task[T]) -> None:
        try:
            self._crew.put(task, None, urgent=True)
        except RuntimeError as error:  # shut down meanwhile; whoever has cancelled it has settled it
            task.give_up(error)

    def __del__(self) -> None:
        # Nobody can submit anything any more.  No lock: this may run inside any other call of this thread.
        crew: Crew | None = getattr(self, "_crew", None)
        if crew is None:
            return
        if not crew.ending:
            crew.abandon()
            self._stations.wake()
        if not crew.threads and self._stations.poller is not None:
            self._stations.poller.close()
        if self._owns_poller_thread and self._poller_thread is not None:
            self._poller_thread.stop_soon()

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} cannot be pickled or copied")

    def __repr__(self) -> str:
        state = "shut down" if self._crew.ending else f"{len(self._threads)} of {self._max_workers} threads"
        return f"<WorkerPool {self._crew.name!r} {state}>"
