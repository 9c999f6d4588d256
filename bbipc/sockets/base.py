"""Socket: the lifetime that all sockets share, and the upper half of the closing protocol.

Law of this file: every method may be called from any thread at any time, and no lock is held across anything that can
wait.  ``_handle`` is read without a lock, used at once and not kept; it is written only under ``_lock``, once, by the
one caller that closes.  Names with one underscore are shared with ``bbipc.polling`` and nobody else.

Closing, step by step, whoever calls it (``handle.py`` tells why):

1. One closer wins: under the lock ``_handle`` becomes CLOSED.  From here on every new call fails.
2. Leave the pollers, before the number changes meaning: a registration that outlives its number cannot be removed
   from epoll and spins.  A poller becomes a watcher under the same lock and with its own in hand, so no registration
   can slip in behind this step: it is either refused, or waited for and removed.
3. Shut the connection down both ways, which wakes whatever is blocked on it.
4. Put the tombstone over the number: the peer sees the end now.
5. Tell the waiters, who raise SocketClosedError.
6. Let go of the handle; the last call in flight frees the number.

Step 3, and the unlinking of a local server's path, act on every holder of the connection.  They happen only in the
process that made the socket, and never once its descriptor was passed on.
"""

from __future__ import annotations

import errno
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import NoReturn, Protocol, Self

from bbipc.errors import SocketClosedError, SocketError
from bbipc.readiness import EVERYTHING
from bbipc.sockets import fork
from bbipc.sockets.handle import CLOSED, Handle, end, look


class Watcher(Protocol):
    """Whoever waits for a socket: told of its end, in the thread that closes it, with no lock held."""

    def socket_closing(self, socket: Socket, handle: Handle) -> None:
        """Step 2: forget *handle*'s number, now."""

    def socket_closed(self, socket: Socket) -> None:
        """Step 5: wake up; never waits."""

    def socket_changed(self, socket: Socket) -> None:
        """What can come of the socket has changed: decide anew."""


class Socket:
    """What all sockets have: one descriptor, an idempotent close, a with-statement.

    Any thread may call any method at any time.  After ``close`` every method but ``close``, ``closed`` and ``repr``
    raises :class:`SocketClosedError`, for ever; plain attributes (addresses, path) stay readable.
    """

    __slots__ = ("_handle", "_lock", "_watchers", "_generation", "_forks", "_shared", "__weakref__")

    #: the events that this kind of socket has
    _events_offered: int = 0

    def __init__(self, handle: Handle) -> None:
        self._lock = fork.lock_for(handle.fileno())
        self._watchers: tuple[Watcher, ...] = ()  # guarded by _lock
        self._generation = fork.generation
        self._forks = fork.forks
        self._shared = 0  # how often the descriptor was passed on; guarded by _lock
        # Last: __del__ warns only where this is set, so not of a socket whose making a Ctrl-C has ended.
        self._handle = handle

    @property
    def closed(self) -> bool:
        """Whether somebody closed it.  No system call."""
        return self._handle is CLOSED

    def fileno(self) -> int:
        """The descriptor number, for other libraries.

        It means this socket only for as long as the caller keeps the socket open: the calls of bbipc are safe
        against a close in another thread, a bare number is not.

        :raises SocketClosedError: it was closed
        """
        return self._open_handle().fileno()

    def close(self) -> None:
        """Close it, from any thread, any number of times; exactly one caller does the work, the others return at
        once.

        Threads that wait for this socket raise SocketClosedError within milliseconds, pollers drop it, the peer sees
        the end now.  What the kernel had taken from ``write`` is still sent.  Never blocks; only a local server may
        wait, for at most 1 s, while another program holds the lock on its path's directory.
        """
        handle = CLOSED
        try:
            with self._lock:
                # Read and write with no call in between: there a signal handler could run, in this very thread and so
                # past the lock, close the socket itself, and make this call a second closer.
                handle, self._handle = self._handle, CLOSED
        finally:
            if handle is not CLOSED:
                try:
                    self._end(handle)
                except BaseException:  # Ctrl-C in the middle: a step may be taken twice, none may be left out
                    self._end(handle)
                    raise

    def _end(self, handle: Handle) -> None:
        """Steps 2 to 5.  No watcher is added any more."""
        self._mark_closed()
        try:
            for watcher in self._watchers:
                watcher.socket_closing(self, handle)
            self._before_end()
        finally:
            try:
                end(handle, shut_down=self._acts_for_all())
            finally:
                for watcher in self._watchers:
                    watcher.socket_closed(self)
        self._watchers = ()

    def _mark_closed(self) -> None:
        """The handle is gone: let go of what else holds it."""

    def _before_end(self) -> None:
        """What a kind of socket has to give back while its connection still stands; no lock is held."""

    def _acts_for_all(self) -> bool:
        """Whether this process made the socket and holds it alone, as far as it can know."""
        return self._shared == 0 and self._generation == fork.generation

    def _open_handle(self) -> Handle:
        """The handle, to be used at once and not kept."""
        handle = self._handle
        if handle is CLOSED:
            raise SocketClosedError(self)
        return handle

    def _raise_translated(self, error: OSError) -> NoReturn:
        """*error* came out of a system call on the handle: EBADF means a tombstone, so a close in another thread."""
        if self._handle is CLOSED:
            raise SocketClosedError(self) from None
        raise SocketError(error.errno or errno.EIO, error.strerror, socket=self) from error

    def _observe(self, flags: int) -> tuple[int, int] | None:
        """Turn the kernel's *flags* into (the events that are true, the events that can still come).

        None where the socket was closed meanwhile.  It does not raise, and hands no handle around: an exception that
        somebody keeps would keep its frames, their handle, and with it the number.
        """
        raise AssertionError("every kind of socket has its own")

    def _interest(self, wanted: int, *, end_has_edge: bool) -> int | None:
        """The kernel's flags to wait for, or None where no flag tells: look again after a while."""
        raise AssertionError("every kind of socket has its own")

    def _standing(self) -> int:
        """The events that are true whatever the kernel's flags say, as far as is known without asking it."""
        return 0

    def _state(self) -> tuple[int, int]:
        """(the events that are true now, the events that can still come): one system call, or two at a hang-up."""
        state = self._observe(look(self._open_handle(), EVERYTHING))
        if state is None:
            raise SocketClosedError(self)
        return state

    def _may_be_shared(self) -> bool:
        """Whether another process may hold the connection, too."""
        return self._shared != 0 or self._forks != fork.forks

    def _share(self, times: int) -> None:
        """The descriptor is passed on (1), or was not after all (-1)."""
        with self._lock:
            self._shared += times

    def _add_watcher(self, watcher: Watcher) -> Handle:
        """From here on a close tells *watcher*; the handle is kept by the watcher until it leaves."""
        with self._lock:
            handle = self._open_handle()
            self._watchers += (watcher,)
        return handle

    def _remove_watcher(self, watcher: Watcher) -> None:
        with self._lock:
            watchers = list(self._watchers)
            if watcher in watchers:
                watchers.remove(watcher)
                self._watchers = tuple(watchers)

    def __enter__(self) -> Self:
        self._open_handle()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self, warn: Callable[..., None] = warnings.warn, closed: Handle = CLOSED) -> None:
        # Dropping the handle frees the number.  No lock: this may run inside any other call of this thread, and at the
        # exit of the interpreter, when the module's names are gone.
        if getattr(self, "_handle", closed) is not closed:
            warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)

    def __repr__(self) -> str:
        handle = self._handle
        state = "closed" if handle is CLOSED else f"fd={handle.fileno()} {self._describe()}"
        return f"<{type(self).__name__} {state}>"

    def _describe(self) -> str:
        """For repr: no system call, never raises."""
        return ""

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} cannot be pickled; pass its descriptor with send_descriptors()")
