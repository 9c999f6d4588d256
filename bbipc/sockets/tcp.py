"""TCP over IPv4 and IPv6: servers and streams.

Law of this file: addresses are numeric, and a connect returns at once.  A peer that cannot be reached is a *failed
stream*, never an exception; an exception means that nothing was tried: a bad argument, no descriptors, a local address
that is not ours.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
from typing import Final, Generic, TypeVar

from bbipc.errors import SocketError
from bbipc.readiness import ERROR, HUNG_UP, WRITABLE, Stage
from bbipc.sockets.addresses import IPV4_ANY, IPV6_ANY, backlog_size, numeric_address, port_number
from bbipc.sockets.handle import Handle, look, make_handle
from bbipc.sockets.server import StreamServer
from bbipc.sockets.stream import StreamSocket

#: the kernel goes on connecting (EWOULDBLOCK: Windows' word for it)
_UNDER_WAY: Final = frozenset({errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EINTR})
#: connected, and lost again before anybody looked: tcp_reset() in the kernel uses these for nothing else
_CONNECTED_AND_RESET: Final = frozenset({errno.ECONNRESET, errno.EPIPE})

_Address = tuple[str, int]


class TCPStream(StreamSocket):
    """A TCP connection; see :class:`IPv4TCPStream` and :class:`IPv6TCPStream`."""

    __slots__ = ("local_host_address", "local_port", "remote_host_address", "remote_port")
    _family: socket.AddressFamily

    def __init__(
        self, handle: Handle, stage: Stage, local: _Address, remote: _Address, error: OSError | None = None
    ) -> None:
        self.local_host_address, self.local_port = local[0], local[1]
        self.remote_host_address, self.remote_port = remote[0], remote[1]
        super().__init__(handle, stage, error)

    @property
    def no_delay(self) -> bool:
        """Whether small writes go out at once (TCP_NODELAY).  On from the start; setting it is one system call.

        :raises SocketClosedError: it was closed
        """
        return self._option(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    @no_delay.setter
    def no_delay(self, value: bool) -> None:
        self._set_option(socket.IPPROTO_TCP, socket.TCP_NODELAY, value)

    @property
    def keep_alive(self) -> bool:
        """Whether the kernel probes a silent peer (SO_KEEPALIVE; every two hours unless the system says otherwise).

        :raises SocketClosedError: it was closed
        """
        return self._option(socket.SOL_SOCKET, socket.SO_KEEPALIVE)

    @keep_alive.setter
    def keep_alive(self, value: bool) -> None:
        self._set_option(socket.SOL_SOCKET, socket.SO_KEEPALIVE, value)

    def _option(self, level: int, name: int) -> bool:
        try:
            return bool(self._handle.getsockopt(level, name))
        except OSError as error:
            self._raise_translated(error)

    def _set_option(self, level: int, name: int, value: bool) -> None:
        try:
            self._handle.setsockopt(level, name, bool(value))
        except OSError as error:
            self._raise_translated(error)

    def _decide(self, flags: int) -> None:
        if not flags & (WRITABLE | ERROR | HUNG_UP):
            return
        number = self._handle.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number in _CONNECTED_AND_RESET:
            self._pipe_broken = number == errno.EPIPE
            self._settle(Stage.CONNECTED, None if self._pipe_broken else OSError(number, os.strerror(number)))
        elif number:
            self._settle(Stage.FAILED, OSError(number, os.strerror(number)))
        elif is_self_connected(self._handle):
            self._settle(Stage.FAILED, _self_connect())
        elif self._has_peer():
            self._settle(Stage.CONNECTED)
        elif flags & HUNG_UP:
            self._settle(Stage.FAILED, OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN)))

    def _has_peer(self) -> bool:
        try:
            self._handle.getpeername()
        except OSError:
            return False
        return True

    def _reset_in_doubt(self) -> bool:
        """A recv gave 0, and no error is kept: was it a FIN, or the silence after a reset?

        How a reset turns into silence, with a reader R and a writer W on one stream:

        1. The peer's RST arrives: the kernel notes ECONNRESET and shuts both directions.
        2. W's send is told ECONNRESET, which takes the note away.
        3. R's recv finds nothing to read and no note: 0, as after a FIN.
        4. W keeps the error: too late for R.

        The kernel still tells the two apart.  After a FIN our direction is open: no HUP.  HUP together with ERR means
        that the note is still there and recv preferred 0 to it: the FIN came first.  HUP without ERR is either of our
        own making (we shut our side too, or another process did that holds the connection), or step 3.  If W was told
        EPIPE, the FIN had come before the RST.
        """
        if not self._sending or self._pipe_broken or self._may_be_shared():
            return False
        return look(self._handle, 0) & (HUNG_UP | ERROR) == HUNG_UP

    def _peer_text(self) -> str:
        return f"{self.remote_host_address} port {self.remote_port}"

    def _describe(self) -> str:
        local, remote = (
            f"{host}:{port}" if self._family is socket.AF_INET else f"[{host}]:{port}"
            for host, port in (
                (self.local_host_address, self.local_port),
                (self.remote_host_address, self.remote_port),
            )
        )
        return f"{self._stage.value} local={local} peer={remote}"


class IPv4TCPStream(TCPStream):
    """A TCP connection over IPv4.

    ``local_host_address``, ``local_port``, ``remote_host_address``, ``remote_port``: str and int, readable for ever.
    """

    __slots__ = ()
    _family = socket.AF_INET


class IPv6TCPStream(TCPStream):
    """A TCP connection over IPv6.

    ``local_host_address``, ``local_port``, ``remote_host_address``, ``remote_port``: str and int, readable for ever.
    """

    __slots__ = ()
    _family = socket.AF_INET6


_S = TypeVar("_S", bound=TCPStream)


class TCPServer(StreamServer, Generic[_S]):
    """A listening TCP socket; see :class:`IPv4TCPServer` and :class:`IPv6TCPServer`."""

    __slots__ = ("host_address", "port")
    _stream_kind: type[_S]

    def __init__(self, handle: Handle, address: _Address) -> None:
        self.host_address, self.port = address
        super().__init__(handle)

    def accept_connection(self) -> _S:
        """The next connection, connected, with ``no_delay`` on.  Never blocks.

        A peer that vanished while it waited is skipped.

        :raises NoConnectionAvailableError: nobody waits
        :raises SocketClosedError: the server was closed
        :raises SocketError: EMFILE, ENFILE, ENOMEM: the system is out of something; the peer goes on waiting
        """
        number, peer = self._accept()
        handle = make_handle(self._stream_kind._family, fileno=number)
        remote = (str(peer[0]), int(peer[1])) if isinstance(peer, tuple) else ("", 0)
        local = (self.host_address, self.port)
        with contextlib.suppress(OSError):  # macOS, BSD: EINVAL once the peer has reset it; reading will tell
            handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.host_address in (IPV4_ANY, IPV6_ANY):  # which of our addresses the peer has called
                local = name_of(handle)
        return self._stream_kind(handle, Stage.CONNECTED, local, remote)

    def _describe(self) -> str:
        return f"listening on {self.host_address} port {self.port}"


class IPv4TCPServer(TCPServer[IPv4TCPStream]):
    """A TCP server on IPv4.  ``host_address``, ``port``: where it listens, readable for ever."""

    __slots__ = ()
    _stream_kind = IPv4TCPStream


class IPv6TCPServer(TCPServer[IPv6TCPStream]):
    """A TCP server on IPv6, and on IPv6 only.  ``host_address``, ``port``: where it listens, readable for ever."""

    __slots__ = ()
    _stream_kind = IPv6TCPStream


def make_ipv4_tcp_server(
    host_address: str, port: int, *, reuse_address: bool = True, reuse_port: bool = False, backlog: int = 128
) -> IPv4TCPServer:
    """A server that listens on *host_address* (numeric; ``IPV4_ANY`` for all) and *port* (0: the kernel picks one).

    *reuse_address*: do not wait for the old connections of an earlier server on this port to fade away.
    *reuse_port*: share the port with other servers that ask for it too; the kernel spreads the connections.
    *backlog*: how many connections may wait to be accepted.  Never blocks; any thread.

    :raises ValueError: not a numeric address, or a number out of range
    :raises TypeError: a port that is no int
    :raises SocketError: the kernel refused (EADDRINUSE, EACCES, EADDRNOTAVAIL, EMFILE …)
    """
    return IPv4TCPServer(*_listen(socket.AF_INET, host_address, port, reuse_address, reuse_port, backlog))


def make_ipv6_tcp_server(
    host_address: str, port: int, *, reuse_address: bool = True, reuse_port: bool = False, backlog: int = 128
) -> IPv6TCPServer:
    """The same as :func:`make_ipv4_tcp_server` over IPv6.  ``IPV6_ANY`` does not take IPv4 connections (IPV6_V6ONLY).

    :raises ValueError: not a numeric address, or a number out of range
    :raises TypeError: a port that is no int
    :raises SocketError: the kernel refused
    """
    return IPv6TCPServer(*_listen(socket.AF_INET6, host_address, port, reuse_address, reuse_port, backlog))


def connect_to_ipv4_tcp_server(
    host_address: str, port: int, *, local_host_address: str | None = None, local_port: int = 0
) -> IPv4TCPStream:
    """Begin to connect; the stream is *connecting*, and tells the outcome by ``determined`` and the rest.

    Refused, unreachable, timed out, or connected to itself: a failed stream with ``connection_error()``.
    *local_host_address*, *local_port*: where to connect from.  Never blocks; any thread.

    :raises ValueError: not a numeric address, or a port that is not in 1 to 65535
    :raises TypeError: a port that is no int
    :raises SocketError: the local address cannot be had, or there are no descriptors left
    """
    return _connect(IPv4TCPStream, host_address, port, local_host_address, local_port)


def connect_to_ipv6_tcp_server(
    host_address: str, port: int, *, local_host_address: str | None = None, local_port: int = 0
) -> IPv6TCPStream:
    """The same as :func:`connect_to_ipv4_tcp_server` over IPv6.

    :raises ValueError: not a numeric address, or a port that is not in 1 to 65535
    :raises TypeError: a port that is no int
    :raises SocketError: the local address cannot be had, or there are no descriptors left
    """
    return _connect(IPv6TCPStream, host_address, port, local_host_address, local_port)


def name_of(handle: Handle) -> _Address:
    """Where the socket of *handle* is bound."""
    name = handle.getsockname()
    return str(name[0]), int(name[1])


def is_self_connected(handle: Handle) -> bool:
    """Whether both ends are one socket.  Compared as the kernel has it: a connect to 0.0.0.0 goes to 127.0.0.1."""
    try:
        return bool(handle.getpeername() == handle.getsockname())
    except OSError:
        return False


def _self_connect() -> OSError:
    """A connect to a free port of our own machine may be given that very port as its source, and meets itself."""
    return OSError(errno.ECONNREFUSED, "nobody listens there: the connection met itself")


def _listen(
    family: socket.AddressFamily, host_address: str, port: int, reuse_address: bool, reuse_port: bool, backlog: int
) -> tuple[Handle, _Address]:
    address = (numeric_address(family, host_address), port_number(port))
    backlog_size(backlog)
    try:
        handle = make_handle(family)
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)  # its connections inherit it
        if family is socket.AF_INET6:
            handle.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if sys.platform == "win32":  # SO_REUSEADDR lets anybody steal the port there
            handle.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, not reuse_address)
        else:
            handle.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, bool(reuse_address))
            if reuse_port:
                handle.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        handle.bind(address)
        handle.listen(backlog)
        return handle, name_of(handle)
    except OSError as error:
        reason = f"cannot listen on {address[0]} port {address[1]}: {error.strerror}"
        raise SocketError(error.errno or errno.EIO, reason) from error


def _connect(kind: type[_S], host_address: str, port: int, local_host_address: str | None, local_port: int) -> _S:
    family = kind._family
    remote = (numeric_address(family, host_address), port_number(port, lowest=1))
    any_address = IPV4_ANY if family is socket.AF_INET else IPV6_ANY
    local = (
        numeric_address(
            family, any_address if local_host_address is None else local_host_address, "local_host_address"
        ),
        port_number(local_port, name="local_port"),
    )
    try:
        handle = make_handle(family)
        handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A peer's urgent byte stays in its place: out of line, FIONREAD would stop counting in front of it.
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        if local_host_address is not None or local_port:
            handle.bind(local)
        number = handle.connect_ex(remote)
        name = name_of(handle)
    except OSError as error:
        reason = f"cannot connect from {local[0]} port {local[1]}: {error.strerror}"
        raise SocketError(error.errno or errno.EIO, reason) from error
    if number in _UNDER_WAY:
        return kind(handle, Stage.CONNECTING, name, remote)
    if number:
        return kind(handle, Stage.FAILED, name, remote, OSError(number, os.strerror(number)))
    if is_self_connected(handle):
        return kind(handle, Stage.FAILED, name, remote, _self_connect())
    return kind(handle, Stage.CONNECTED, name, remote)
