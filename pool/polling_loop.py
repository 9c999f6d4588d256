"""PollingLoop: one thread that waits for everybody.

    any thread      when, monitor, call_later, cancel, close
                      |  under the lock: the table of interests, and with it the poller's set
                      v
    poller thread   wait -> (socket, events) -> whoever waits for that socket -> callback, or a future's result
                    then: timers that are due, sockets that were closed; and again

Law of this file:

- One thread, started at first use, a daemon.  Callbacks, and the callbacks of futures that it settles, run on it, with
  no lock held.  Nothing that they raise ends it.
- A registration takes effect at once: it is made by the calling thread, in the kernel, while this one waits.
- Whoever takes a wait out of the table settles its future; the others (cancel, timeout, close, readiness) find it
  gone.  So exactly one wins, and what was cancelled or has timed out has left nothing registered.
- A close of a socket is told in the closing thread, which may be inside a signal handler or hold any lock.  There it
  is only written down, without a lock, and the poller thread is woken to deal with it.
- After a fork the child's copy refuses everything and touches nothing that the parent shares.

Who guards what: ``_closing``, ``_thread`` and ``_poller`` belong to the lock of the table of interests, and are read
without it: what matters is read again by whoever is woken.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Final, NoReturn, Self, TypeVar, TypeVarTuple, cast

from bbipc.errors import PollerClosedError
from bbipc.events import SocketEvent
from bbipc.polling.deadline import checked_timeout
from bbipc.polling.make import make_poller
from bbipc.polling.poller import Poller
from bbipc.polling.wait import glance
from bbipc.polling.watch import wanted_bits
from bbipc.sockets import fork
from bbipc.sockets.base import Socket
from pool import lifecycle
from pool.arguments import checked_callable, checked_hook, checked_kind
from pool.dispatch import Dispatcher
from pool.futures import GuardedFuture, fail, failed, finished, settle
from pool.interests import Callback, Interests, Party
from pool.parties import Call, CloseHook, Monitor, Wait
from pool.timers import Timer, Timers

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
S = TypeVar("S", bound=Socket)

#: seconds that a closer waits for the lock of the table where the thread has not ended in time
PATIENCE: Final = 1.0


class PollingLoop:
    """The thread, its waits, monitors and timers; :class:`pool.PollerThread` adds connecting and accepting.

    *poller*: the one to wait with, owned and closed by the loop from then on; ``None``: the best there is, made at
    first use.  *name*: the thread's.  Any thread may call any method at any time.
    """

    def __init__(self, poller: Poller | None = None, *, name: str | None = None) -> None:
        if poller is not None:
            checked_kind("poller", poller, Poller)
        self._poller = poller
        self._name = name or "bbipc-poller"
        self._where = f"the poller thread {self._name!r}"
        self._thread: threading.Thread | None = None
        self._interests = Interests()
        self._lock = self._interests.lock
        self._dispatcher = Dispatcher(self._interests, self._where)
        self._changed_sockets: deque[Socket] = deque()
        self._timers = Timers()
        self._closing = False
        self._generation = fork.generation

    @property
    def name(self) -> str:
        """The name of the thread."""
        return self._name

    @property
    def closed(self) -> bool:
        """Whether somebody closed it."""
        return self._closing

    def is_current(self) -> bool:
        """Whether the calling thread is the poller thread: who waits for a future there waits for himself."""
        thread = self._thread
        mine = thread is not None and thread.ident == threading.get_ident()
        return mine and self._generation == fork.generation

    def when(self, socket: Socket, events: SocketEvent, *, timeout: float | None = None) -> Future[SocketEvent]:
        """A future of those of *events* that come first.

        Its result is empty if none of them can come any more (data from a peer that has gone).  It fails with
        SocketClosedError when anybody closes the socket, with TimeoutError after *timeout* seconds, with
        PollerClosedError when this is closed; ``cancel`` takes it back.  What is true already is found in the calling
        thread, and the future is done at once.  Any thread; never blocks.

        :raises ValueError: no events, events that this socket does not have, a negative or NaN timeout
        :raises TypeError: not a Socket, a SocketEvent, a number
        :raises SocketClosedError: it was closed before
        :raises PollerClosedError: this was closed before
        :raises OSError: the kernel has no room for it
        """
        self._check_open()
        limit = checked_timeout(timeout)
        found = glance(socket, events)
        if found is not None:
            return finished(found)
        if limit == 0:
            return failed(TimeoutError(f"{events!r} of {socket!r} has not come"))
        future: Future[SocketEvent] = GuardedFuture()
        wait = Wait(self._interests, self._timers, socket, events.value, future)
        # Before anybody else knows the future: a Ctrl-C in here could leave it locked, and whoever settles it waiting.
        future.add_done_callback(wait.future_done)
        self._join(socket, wait)
        if limit is not None:
            wait.limit(self.start_timer(limit, wait.time_out))
        return future

    def settle_when(
        self, future: Future[SocketEvent], socket: Socket, events: SocketEvent, timeout: float | None
    ) -> None:
        """Not for users: the same for a *future* that has its callbacks already.

        Whoever adds a callback behind :meth:`when` enters the lock of a future that the poller thread knows, and a
        Ctrl-C there leaves it locked for ever: the poller thread would wait for it.
        """
        self._check_open()
        limit = checked_timeout(timeout)
        found = glance(socket, events)
        if found is not None:
            settle(future, found)
        elif limit == 0:
            fail(future, TimeoutError(f"{events!r} of {socket!r} has not come"))
        else:
            wait = Wait(self._interests, self._timers, socket, events.value, future)
            future.add_done_callback(wait.future_done)
            self._join(socket, wait)
            if limit is not None:
                wait.limit(self.start_timer(limit, wait.time_out))

    def monitor(
        self,
        socket: S,
        events: SocketEvent,
        callback: Callable[[S, SocketEvent], object],
        *,
        on_close: CloseHook | None = None,
    ) -> Monitor:
        """Call ``callback(socket, events)`` on the poller thread whenever some of *events* are true of *socket*.

        Until the monitor is cancelled or the socket closed; again and again while they are true, so the callback has
        to deal with what it is told: to read, and at the end (ask for ``DATA_AVAILABLE | REMOTE_DISCONNECTED``) to
        close or to cancel.  It must not block; what it raises is logged.  *on_close*: called once, on the poller
        thread, with SocketClosedError when the socket, with PollerClosedError when this is closed; not after a
        cancel.  Any thread; never blocks.

        :raises ValueError: events that this socket does not have
        :raises TypeError: not a Socket, a SocketEvent, a callable
        :raises SocketClosedError: it was closed before
        :raises PollerClosedError: this was closed before
        :raises OSError: the kernel has no room for it
        """
        wanted = wanted_bits(socket, events)
        checked_callable("callback", callback)
        checked_hook("on_close", on_close)
        monitor = Monitor(self._interests, socket, wanted, cast(Callback, callback), on_close)
        self._join(socket, monitor)
        return monitor

    def call_later(self, delay: float, fn: Callable[[*Ts], T], *args: *Ts) -> Future[T]:
        """Call ``fn(*args)`` on the poller thread after *delay* seconds; the future of what it gives.

        ``cancel`` takes it back until it begins; what it raises goes to the future, which fails with
        PollerClosedError when this is closed before.  Any thread; never blocks.

        :raises ValueError: a negative, infinite or NaN delay
        :raises TypeError: not a number, or not a callable
        :raises PollerClosedError: this was closed
        """
        limit = checked_timeout(delay, "delay")
        checked_callable("fn", fn)
        if limit is None:
            raise ValueError(f"delay must be a finite number of seconds, not {delay!r}")
        future: Future[T] = GuardedFuture()
        call = Call(self._timers, future, fn, args)
        future.add_done_callback(call.future_done)
        call.timer = self.start_timer(limit, call.run, lambda: call.end(self._closed_error()))
        return future

    def close(self, timeout: float | None = 5.0) -> None:
        """Stop the thread, and close the poller; idempotent, any thread, callbacks included.

        Outstanding futures fail with PollerClosedError.  It waits for a callback that is running, *timeout* seconds
        at most; the sockets stay open.

        :raises ValueError: a negative or NaN timeout
        """
        limit = checked_timeout(timeout)
        try:
            self.stop_soon()
        except BaseException:  # Ctrl-C in the middle: a step may be taken twice, none may be left out
            self.stop_soon()
            raise
        finally:
            if not self.is_current() and not self._join_thread(limit):
                self._finish(PATIENCE)

    def stop_soon(self) -> None:
        """Not for users: let the thread end after what it does just now."""
        # Without a lock, as it may be called by a finalizer or a signal handler, which are inside of any.  Whoever
        # registers something under the lock has seen this mark, or is found by _finish, which takes the lock.
        self._closing = True
        if self._generation == fork.generation:
            self._wake()

    def wait_until(self, deadline: float) -> None:
        """Not for users: wait for the thread, until *deadline* on the monotonic clock."""
        if not self.is_current():
            self._join_thread(max(deadline - time.monotonic(), 0.0))

    def _join_thread(self, limit: float | None) -> bool:
        """Wait for the thread; whether it has ended, and so has settled what waited."""
        thread = self._thread
        if thread is None or self._generation != fork.generation:
            return False
        if not thread.is_alive():
            # Wait until another thread that is just starting it has done so; in a signal handler of that very thread
            # the lock is re-entrant.
            with self._lock:
                pass
        if thread.is_alive():
            thread.join(None if limit is None else min(limit, threading.TIMEOUT_MAX))
        return not thread.is_alive()

    # Whichever thread.

    def _closed_error(self) -> PollerClosedError:
        return PollerClosedError(f"the poller thread {self._name!r} is closed")

    def _check_open(self) -> None:
        if self._generation != fork.generation:
            raise PollerClosedError("this poller thread belongs to the process that forked this one; make another")
        if self._closing or lifecycle.exiting():
            raise self._closed_error()

    def _start(self) -> None:
        """The thread runs from here on.

        :raises PollerClosedError: it has been closed
        :raises RuntimeError: the system has no thread for it
        """
        self._check_open()
        if self._thread is not None:
            return
        with self._lock:
            self._check_open()
            self._make_poller_locked()
            thread = threading.Thread(target=self._run, args=(self._poller,), name=self._name, daemon=True)
            lifecycle.stop_at_exit(self)
            if self._thread is None:  # nor has a signal handler started one since
                self._thread = thread
            try:
                if self._thread is thread:
                    thread.start()
            except BaseException:  # whether it has begun or not, it is not wanted any more: see _run
                self._thread = None
                raise

    def _make_poller_locked(self) -> None:
        # A signal handler may use the loop in the middle of any call, and make one himself.  Between a look and what is
        # done about it there is no call.
        made = make_poller() if self._poller is None else None
        if self._poller is None:
            self._poller, made = made, None
        if made is not None:
            made.close()
        assert self._poller is not None
        self._poller.on_change = self._socket_changed
        self._interests.poller = self._poller

    def _join(self, socket: Socket, party: Party) -> None:
        self._start()
        with self._lock:  # whoever closes this takes the parties out after he has set the mark
            self._check_open()
            self._interests.join(socket, party)

    def start_timer(self, delay: float, action: Callable[[], None], drop: Callable[[], None] | None = None) -> Timer:
        """Not for users: *action* on the poller thread after *delay* seconds; *drop* instead if this is closed before.

        Without a future: no Ctrl-C can leave one locked.  Any thread.

        :raises PollerClosedError: this was closed
        """
        self._start()
        with self._lock:
            self._check_open()
            timer, earlier = self._timers.add(delay, action, drop)
        if earlier:  # on the poller thread, too: a finalizer may run in it on its way into the wait
            self._wake()
        return timer

    def _wake(self) -> None:
        if self._poller is not None:
            with contextlib.suppress(PollerClosedError):
                self._poller.wake()

    def _socket_changed(self, socket: Socket) -> None:
        """The poller's hook: perhaps in a signal handler, so nothing here takes a lock."""
        if socket.closed:  # not even the rest of a batch that is being dealt out
            self._interests.direct.pop(socket, None)
        self._changed_sockets.append(socket)
        self._wake()  # the poller thread itself, too: a finalizer may run in it on its way into the wait

    # The poller thread.

    def _run(self, poller: Poller) -> None:
        with self._lock:  # whoever starts us has it until he is done; a Ctrl-C may have made him give us up
            if self._thread is not threading.current_thread():
                return
        try:
            while not self._closing:
                self._turn(poller)
        except PollerClosedError:  # somebody closed it behind our back: there is nothing to wait with
            pass
        finally:
            self._closing = True
            self._finish()

    def _turn(self, poller: Poller) -> None:
        """Wait once, and deal with what came of it."""
        deadline = None if self._timers.idle() else self._timers.next_deadline()
        pause = None if deadline is None else max(deadline - time.monotonic(), 0.0)
        if self._interests.changed:
            self._interests.refresh()
        batch = poller.wait_for_events(pause)
        self._dispatcher.serve(batch)
        while self._changed_sockets:
            self._dispatcher.look_at(self._changed_sockets.popleft())
        if deadline is not None:
            for action in self._timers.due():
                self._dispatcher.clocked(action)

    def _finish(self, patience: float = -1) -> None:
        """Nothing comes any more: settle what waits, close the poller.  By whoever comes first, the thread or a closer
        that does not wait for it any more.

        *patience*: seconds for the lock, -1: any number.  A closer may be a signal handler that holds a poller's lock
        below us, for which the thread waits with ours in its hand; then all is left to the thread.
        """
        if self._generation == fork.generation:
            if not self._lock.acquire(timeout=patience):
                return
            try:
                parties = self._interests.take_all()
                drops = self._timers.clear()
            finally:
                self._lock.release()
            for party in parties:
                self._dispatcher.guarded(party.end, self._closed_error())
            for drop in drops:
                self._dispatcher.guarded(drop)
        if self._poller is not None:
            self._poller.close()

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} cannot be pickled or copied")

    def __repr__(self) -> str:
        if self._generation != fork.generation:
            return f"<{type(self).__name__} {self._name!r} of another process>"
        state = "closed" if self._closing else f"{len(self._interests)} sockets, {len(self._timers)} timers"
        return f"<{type(self).__name__} {self._name!r} {state}>"
