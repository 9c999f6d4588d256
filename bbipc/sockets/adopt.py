"""A descriptor that came from elsewhere becomes a Socket: from another process, from systemd, from another library.

Law of this file: the only place that asks the kernel what a socket is.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import Final

from bbipc.errors import SocketError
from bbipc.readiness import Stage
from bbipc.sockets.base import Socket
from bbipc.sockets.handle import Handle, make_handle
from bbipc.sockets.local import LocalServer, LocalStream
from bbipc.sockets.tcp import IPv4TCPServer, IPv4TCPStream, IPv6TCPServer, IPv6TCPStream, name_of

_FAMILIES: Final = frozenset(
    getattr(socket, name) for name in ("AF_INET", "AF_INET6", "AF_UNIX") if hasattr(socket, name)
)


def adopt_descriptor(descriptor: int) -> Socket:
    """A Socket for a listening or connected stream socket that this process was given; it owns the number from then on.

    It counts as shared with whoever gave it: ``close`` frees the number and wakes the waiters of this process, and does
    neither shut the connection down nor remove a path.  Any thread; never blocks.

    :raises SocketError: not an open descriptor, no stream socket of a family that bbipc has, or neither connected nor
        listening; the number is still the caller's
    :raises TypeError: not an int
    :raises ValueError: negative, or larger than any number
    """
    if isinstance(descriptor, bool) or not isinstance(descriptor, int):
        raise TypeError(f"a descriptor must be an int, not {type(descriptor).__name__}")
    if not 0 <= descriptor < 2**31:
        raise ValueError(f"{descriptor} is no descriptor number")
    try:
        probe = socket.socket(fileno=descriptor)
    except OSError as error:
        raise SocketError(
            error.errno or errno.EIO, f"cannot adopt descriptor {descriptor}: {error.strerror}"
        ) from error
    try:
        kind = (probe.family, bool(probe.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)))
        if probe.type != socket.SOCK_STREAM or probe.family not in _FAMILIES:
            raise OSError(errno.EPROTONOSUPPORT, os.strerror(errno.EPROTONOSUPPORT))
        peer = None if kind[1] else probe.getpeername()
    except OSError as error:
        raise SocketError(
            error.errno or errno.EIO, f"cannot adopt descriptor {descriptor}: {error.strerror}"
        ) from error
    finally:
        probe.detach()
    handle = make_handle(kind[0], fileno=descriptor)
    os.set_inheritable(descriptor, False)
    adopted = _server(handle) if peer is None else _stream(handle, peer)
    adopted._share(1)
    return adopted


def _server(handle: Handle) -> Socket:
    if handle.family == socket.AF_INET:
        return IPv4TCPServer(handle, name_of(handle))
    if handle.family == socket.AF_INET6:
        return IPv6TCPServer(handle, name_of(handle))
    name = handle.getsockname()
    return LocalServer(handle, name, os.fsencode(name), None)


def _stream(handle: Handle, peer: object) -> Socket:
    if handle.family == socket.AF_UNIX:
        return LocalStream(
            handle, Stage.CONNECTED, handle.getsockname() or (peer if isinstance(peer, str | bytes) else "")
        )
    remote = (str(peer[0]), int(peer[1])) if isinstance(peer, tuple) else ("", 0)
    kind = IPv4TCPStream if handle.family == socket.AF_INET else IPv6TCPStream
    return kind(handle, Stage.CONNECTED, name_of(handle), remote)
