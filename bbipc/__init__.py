"""bbipc: binary inter-process communication for threaded Python.

Stateless, non-blocking primitives over TCP/IPv4, TCP/IPv6 and local sockets, which any thread may call at any time.
Start with ``docs/primitives.md``; the line that decides what is readable stands in ``readiness.py``.
"""

from bbipc.errors import (
    ChecksumError,
    ConnectionFailedError,
    IncompleteReadError,
    InvalidMessageError,
    MessageError,
    MessageTooLargeError,
    NoConnectionAvailableError,
    NoLocalServerError,
    PollerClosedError,
    QueueFullError,
    RemoteDisconnectedError,
    RemoteHandlerError,
    ResponseAlreadySentError,
    ResponseDisabledError,
    ResponseError,
    SeparatorNotFoundError,
    SocketClosedError,
    SocketError,
    TruncatedMessageError,
    WriteTimeoutError,
)
from bbipc.events import SocketEvent
from bbipc.polling.make import available_backends, make_poller
from bbipc.polling.poller import Poller
from bbipc.polling.wait import poll_socket, poll_sockets
from bbipc.sockets.addresses import (
    IPV4_ANY,
    IPV4_LOOPBACK,
    IPV6_ANY,
    IPV6_LOOPBACK,
    resolve_ipv4_address,
    resolve_ipv6_address,
)
from bbipc.sockets.adopt import adopt_descriptor
from bbipc.sockets.base import Socket
from bbipc.sockets.endpoint import Address, parse_address
from bbipc.sockets.local import (
    LocalServer,
    LocalStream,
    PeerCredentials,
    connect_to_local_server,
    local_stream_pair,
    make_local_server,
)
from bbipc.sockets.server import StreamServer
from bbipc.sockets.stream import StreamSocket
from bbipc.sockets.tcp import (
    IPv4TCPServer,
    IPv4TCPStream,
    IPv6TCPServer,
    IPv6TCPStream,
    connect_to_ipv4_tcp_server,
    connect_to_ipv6_tcp_server,
    make_ipv4_tcp_server,
    make_ipv6_tcp_server,
)

__all__ = [
    "IPV4_ANY",
    "IPV4_LOOPBACK",
    "IPV6_ANY",
    "IPV6_LOOPBACK",
    "Address",
    "ChecksumError",
    "ConnectionFailedError",
    "IPv4TCPServer",
    "IPv4TCPStream",
    "IPv6TCPServer",
    "IPv6TCPStream",
    "IncompleteReadError",
    "InvalidMessageError",
    "LocalServer",
    "LocalStream",
    "MessageError",
    "MessageTooLargeError",
    "NoConnectionAvailableError",
    "NoLocalServerError",
    "PeerCredentials",
    "Poller",
    "PollerClosedError",
    "QueueFullError",
    "RemoteDisconnectedError",
    "RemoteHandlerError",
    "ResponseAlreadySentError",
    "ResponseDisabledError",
    "ResponseError",
    "SeparatorNotFoundError",
    "Socket",
    "SocketClosedError",
    "SocketError",
    "SocketEvent",
    "StreamServer",
    "StreamSocket",
    "TruncatedMessageError",
    "WriteTimeoutError",
    "adopt_descriptor",
    "available_backends",
    "connect_to_ipv4_tcp_server",
    "connect_to_ipv6_tcp_server",
    "connect_to_local_server",
    "local_stream_pair",
    "make_ipv4_tcp_server",
    "make_ipv6_tcp_server",
    "make_local_server",
    "make_poller",
    "parse_address",
    "poll_socket",
    "poll_sockets",
    "resolve_ipv4_address",
    "resolve_ipv6_address",
]
