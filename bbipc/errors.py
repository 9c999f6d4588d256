"""Every exception of bbipc, named by who caused it.

    OSError
      SocketError                                   a system call on one of our sockets failed; .socket, errno kept
        SocketClosedError                           you closed it, here or in another thread
        NoConnectionAvailableError (BlockingIOError)  nobody waits to be accepted just now
        ConnectionFailedError (ConnectionError)     the connection never came about
          NoLocalServerError                        nothing listens at .path
        RemoteDisconnectedError (ConnectionError)   the peer went away in the middle of something
    RuntimeError
      PollerClosedError                             you closed the poller, or it was made before a fork

Law of this file: it knows nothing of the rest of the package.  An error is raised with facts and builds its
own text; a system error is translated only in ``sockets/`` and ``polling/``, ``from`` the original, errno kept.
"Nothing now" and "the peer's clean end" are return values, never exceptions.
"""

from __future__ import annotations

import errno
import os
from typing import TypeVar

_E = TypeVar("_E", bound="SocketError")


def _rebuild(kind: type[_E], number: int | None, text: str | None, facts: dict[str, object]) -> _E:
    error = kind.__new__(kind)
    OSError.__init__(error, number, text)
    error.__dict__.update(facts)
    return error


class SocketError(OSError):
    """A system call on a socket failed.

    ``errno`` and ``strerror`` are the system's, ``__cause__`` is the original exception, ``socket`` is the socket
    it happened to (``None`` while there was none yet, and in a copy that travelled through pickle: a socket does
    not travel).  Keeping the exception keeps the socket object, never its descriptor number.
    """

    socket: object = None

    def __init__(self, number: int, text: str | None = None, *, socket: object = None) -> None:
        super().__init__(number, text or os.strerror(number))
        self.socket = socket

    def __reduce__(self) -> tuple[object, ...]:
        facts = {name: value for name, value in self.__dict__.items() if name != "socket"}
        return _rebuild, (type(self), self.errno, self.strerror, facts)


class SocketClosedError(SocketError):
    """The socket was closed by this program, in this thread or in another.  Final: every later call raises it too."""

    def __init__(self, socket: object) -> None:
        super().__init__(errno.EBADF, f"{type(socket).__name__} is closed", socket=socket)


class NoConnectionAvailableError(SocketError, BlockingIOError):
    """No connection waits to be accepted just now; wait for CONNECTION_AVAILABLE and call again."""

    def __init__(self, socket: object) -> None:
        super().__init__(errno.EAGAIN, "no connection is waiting to be accepted", socket=socket)


class ConnectionFailedError(SocketError, ConnectionError):
    """The connection never came about: refused, unreachable, timed out.  Final for that stream: make a new one."""


class NoLocalServerError(ConnectionFailedError):
    """Nothing listens at ``path``: there is no such file, or no server behind it any more."""

    path: str | bytes

    def __init__(self, number: int, path: str | bytes, *, socket: object = None) -> None:
        super().__init__(number, f"no server listens at {path!r}: {os.strerror(number)}", socket=socket)
        self.path = path


class RemoteDisconnectedError(SocketError, ConnectionError):
    """The peer reset the connection, or vanished from it, while something was still to be read or written.

    A peer that closes in good order is no error: reads then return ``0`` or ``b""``.
    """


class PollerClosedError(RuntimeError):
    """The poller was closed, here or in another thread, or it belongs to the process that forked this one."""
