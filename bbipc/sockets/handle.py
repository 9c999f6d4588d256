"""Who owns a descriptor number, and how one ends: the lower half of the closing protocol.

Law of this file: a descriptor number never outlives its meaning.  ``Handle`` is the only owner of a number, and the
number is freed by ``Handle.__del__`` alone, that is when the last call in flight has let go (and by ``spare.py``, whose
handle nobody else has ever had).  Everything here may be called from any thread; nothing here takes a lock.

Why not ``socket.close``: CPython reads the number just before the system call, without a lock and after letting go
of the GIL.  A close in that gap frees the number, another thread's connect is given it, and the call reads
somebody else's bytes (python/cpython#121544, "unfixable" there; 5 of 8,731 closes on 3.11 with default settings).

So a close puts a *tombstone* over the number with ``dup2``: the connection ends at once, the number stays taken, and
a call that is about to use it finds a file on which every operation fails as on a closed number.

    tombstone              recv / send        accept, shutdown, getsockopt    poll
    O_PATH "/" (Linux)     EBADF              EBADF                           NVAL
    dead socket pair       b"" / EPIPE        EINVAL                          ready + HUP

With the second one a read could see a false end of stream; that is why reading looks at "closed" again before it
says "end".  Where a socket is no file descriptor (Windows) there is no tombstone: the connection is shut down, and
the number is freed when the last call has let go, which is as safe and only less prompt.
"""

from __future__ import annotations

import array
import os
import select
import socket
import sys
from typing import Final

from bbipc.readiness import ERROR, HUNG_UP, INVALID, READ_HUNG_UP, READABLE, WRITABLE

if sys.platform != "win32":
    import fcntl
    import termios

#: poll(2) has a flag for the peer's end alone: Linux, and no BSD
POLL_TELLS_END: Final = hasattr(select, "POLLRDHUP")
#: a write to a vanished peer is an error, never a SIGPIPE that kills a program which set SIG_DFL
NO_SIGNAL: Final[int] = getattr(socket, "MSG_NOSIGNAL", 0)
#: read or write what can be at once, also where the file waits (see StreamSocket._let_reads_wait); not on Windows
AT_ONCE: Final[int] = getattr(socket, "MSG_DONTWAIT", 0)
#: Linux
_O_PATH: Final[int] = getattr(os, "O_PATH", 0)


class Handle(socket.socket):
    """A non-blocking socket that owns its number until nobody holds the handle any more.

    Never close it: replace its file with :func:`end` and drop it.
    """

    __slots__ = ()
    # A method written in C, so that the finalizer has no frame of Python's.  In one a Ctrl-C could come: it would be
    # lost, and the number with it.  (Nor is it socket.close: its count of makefile()s is not there if __init__ failed.)
    __del__ = socket.SocketType.close

    def __init__(self, family: int, kind: int, proto: int = 0, fileno: int | None = None) -> None:
        super().__init__(family, kind, proto, fileno)
        self.setblocking(False)
        if sys.platform == "darwin":
            self.setsockopt(socket.SOL_SOCKET, socket.SO_NOSIGPIPE, 1)


def _closed_handle() -> Handle:
    handle = Handle(socket.AF_INET, socket.SOCK_STREAM)
    handle.close()
    return handle


#: stands in the place of a handle that is gone: every operation on it fails with EBADF and touches nothing
CLOSED: Final = _closed_handle()


#: the file that is put over the numbers of closed sockets, opened with the first socket and kept for good;
#: a dict because its setdefault() lets exactly one of several first threads win
_tombstone: Final[dict[str, int]] = {}


def _prepare_tombstone() -> int:
    """Open it, so that no lack of descriptors can stop a later close."""
    if hasattr(os, "O_PATH"):
        number = os.open("/", os.O_PATH | os.O_CLOEXEC)
    else:
        pair, peer = socket.socketpair()
        peer.close()
        number = pair.detach()
    kept = _tombstone.setdefault("number", number)
    if kept != number:
        os.close(number)
    return kept


def make_handle(family: int, kind: int = socket.SOCK_STREAM, proto: int = 0, fileno: int | None = None) -> Handle:
    """A new handle, or one for the socket *fileno*, which it owns from then on.

    :raises OSError: the kernel gave none; *fileno* is then still the caller's
    """
    if not _tombstone and sys.platform != "win32":
        _prepare_tombstone()
    return Handle(family, kind, proto, fileno)


def end(handle: Handle, *, shut_down: bool) -> None:
    """End the connection now, whoever is using it; the number is freed later, by the last user of *handle*.

    *shut_down*: also wake whatever is blocked on the connection, in other processes too.  Only for the maker of the
    socket: it acts on every holder of the connection.
    """
    if shut_down:
        try:
            handle.shutdown(socket.SHUT_RDWR)
        except OSError:  # ENOTCONN: never connected, or gone already; there is nothing to wake
            pass
    number = handle.fileno()
    if sys.platform == "win32" or number < 0:  # below 0: garbage of one cycle, and the handle was finalized first
        return
    try:
        tombstone = _tombstone["number"]
        if _O_PATH and not fcntl.fcntl(tombstone, fcntl.F_GETFL) & _O_PATH:
            raise OSError  # somebody closed it, and somebody else has been given its number: 0.2 us to know
        os.dup2(tombstone, number, inheritable=False)
    except (OSError, KeyError):  # somebody closed the tombstone (a daemon that closes "all" descriptors)
        _tombstone.clear()
        os.dup2(_prepare_tombstone(), number, inheritable=False)


def unread_bytes(handle: Handle) -> int:
    """How many bytes wait to be read.  Unlike a peek and SO_ERROR it leaves a pending error where it is.

    :raises OSError: EBADF, the handle was ended
    """
    if sys.platform == "win32":
        return len(handle.recv(1, socket.MSG_PEEK))
    count = array.array("i", [0])
    fcntl.ioctl(handle.fileno(), termios.FIONREAD, count)
    return count[0]


def at_end(handle: Handle) -> bool:
    """Whether a read would say "end": for the kernels whose poll has no flag for it."""
    try:
        return not handle.recv(1, socket.MSG_PEEK)
    except OSError:  # nothing to read; or an error, which poll tells with a flag of its own
        return False


def look(handle: Handle, asked: int) -> int:
    """The kernel's flags of this moment, in the numbers of ``readiness``; INVALID under a tombstone.

    A fresh poll object costs 0.5 us with its system call, as much as a cached one of this thread (measured on 3.11 to
    3.14), and cannot be met half-used by a signal handler.
    """
    if not hasattr(select, "poll"):
        return _look_by_select(handle, asked)
    number = handle.fileno()
    if number < 0:  # CLOSED, in the place of a handle that was let go
        return INVALID
    poll = select.poll()
    poll.register(number, asked if POLL_TELLS_END else poll_mask(asked))
    ready = poll.poll(0)
    return ready[0][1] if ready else 0


def poll_mask(asked: int) -> int:
    """*asked* without the flag that poll may not know."""
    return asked if POLL_TELLS_END else asked & ~READ_HUNG_UP


def _look_by_select(handle: Handle, asked: int) -> int:
    """Windows: a failed connect shows in the third set only."""
    watched = [handle]
    readable, writable, failed = select.select(
        watched if asked & READABLE else [], watched if asked & WRITABLE else [], watched, 0
    )
    return (READABLE if readable else 0) | (WRITABLE if writable else 0) | (ERROR | HUNG_UP if failed else 0)
