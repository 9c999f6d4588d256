"""StreamServer: accepting connections, the same for TCP and local.

Law of this file: one call takes at most one connection, and never fails for the fault of a peer who has gone already.
"""

from __future__ import annotations

import errno
from typing import Final, Protocol, TypeVar

from bbipc.errors import NoConnectionAvailableError
from bbipc.events import SERVER_EVENTS
from bbipc.readiness import READABLE, server_events
from bbipc.sockets.base import Socket
from bbipc.sockets.handle import CLOSED
from bbipc.sockets.stream import StreamSocket

#: accept(2) hands over errors that belong to a peer which has gone already; its page says to treat them like EAGAIN
_PEER_VANISHED: Final = frozenset(
    getattr(errno, name)
    for name in (
        "ECONNABORTED",
        "ECONNRESET",
        "EHOSTDOWN",
        "EHOSTUNREACH",
        "EINTR",
        "ENETDOWN",
        "ENETUNREACH",
        "ENONET",
        "ENOPROTOOPT",
        "EOPNOTSUPP",
        "EPERM",
        "EPROTO",
        "ETIMEDOUT",
    )
    if hasattr(errno, name)  # not every system has all of them
)
#: how many of them one accept_connection skips before it gives the thread back
_MAX_SKIPPED: Final = 64


S_co = TypeVar("S_co", bound=StreamSocket, covariant=True)


class ServerOf(Protocol[S_co]):
    """For type checkers: a StreamServer whose connections are of one kind."""

    def accept_connection(self) -> S_co:
        """See :class:`StreamServer`."""
        ...


class StreamServer(Socket):
    """A listening socket."""

    __slots__ = ()
    _events_offered = SERVER_EVENTS

    def accept_connection(self) -> StreamSocket:
        """The next connection, connected.  Never blocks.

        :raises NoConnectionAvailableError: nobody waits
        :raises SocketClosedError: the server was closed
        :raises SocketError: EMFILE, ENFILE, ENOMEM: the system is out of something; the peer goes on waiting
        """
        raise AssertionError("every kind of server has its own")

    def connection_available(self) -> bool:
        """Whether a peer waits to be accepted now.  Never blocks.

        :raises SocketClosedError: it was closed
        """
        return bool(self._state()[0])

    def _accept(self) -> tuple[int, object]:
        """The descriptor number of the next connection, and its peer's address as the kernel tells it."""
        for _ in range(_MAX_SKIPPED):
            try:
                # accept(2) as it is: the new number, close-on-exec, and the peer's address.  No frame of ours has the
                # handle: an exception that somebody keeps would keep it, and the number.
                accepted: tuple[int, object] = self._handle._accept()  # type: ignore[attr-defined] # pyright: ignore
                return accepted
            except BlockingIOError:
                break
            except OSError as error:
                if self._handle is CLOSED or error.errno not in _PEER_VANISHED:
                    self._raise_translated(error)
        self._open_handle()
        raise NoConnectionAvailableError(self)

    def _observe(self, flags: int) -> tuple[int, int] | None:
        return None if self._handle is CLOSED else (server_events(flags), SERVER_EVENTS)

    def _interest(self, wanted: int, *, end_has_edge: bool) -> int | None:
        return READABLE
