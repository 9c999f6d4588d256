"""A stream in every row of the truth table, in every namespace: facts, brought about with plain sockets as peers."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import bbipc
from bbipc import SocketEvent
from tests.support.makers import PATIENCE, Namespace, Server, accept, drain, fill

E = SocketEvent
NONE = SocketEvent(0)
UP = E.DETERMINED | E.CONNECTION_SUCCEEDED
GONE = E.DETERMINED | E.CONNECTION_FAILED | E.REMOTE_DISCONNECTED
WRITE = E.READY_TO_WRITE | E.ROOM_TO_WRITE
EVERY = UP | E.CONNECTION_FAILED | E.DATA_AVAILABLE | WRITE | E.REMOTE_DISCONNECTED

State = Callable[[Namespace], AbstractContextManager[bbipc.StreamSocket]]


@contextlib.contextmanager
def crowd(namespace: Namespace) -> Iterator[tuple[bbipc.StreamSocket, Server]]:
    """A connecting stream, and the server whose backlog is full of others."""
    with contextlib.ExitStack() as stack:
        server = namespace.make_server(backlog=0)
        stack.callback(server.close)
        for _ in range(8):
            stream = stack.enter_context(namespace.connect(server))
            if not bbipc.poll_socket(stream, E.DETERMINED, 0.05):
                yield stream, server
                return
        raise AssertionError("the backlog never filled")


@contextlib.contextmanager
def connecting(namespace: Namespace) -> Iterator[bbipc.StreamSocket]:
    with crowd(namespace) as (stream, _):
        yield stream


@contextlib.contextmanager
def refused(namespace: Namespace) -> Iterator[bbipc.StreamSocket]:
    if namespace.name == "local":  # refused at once it is an exception; a failed stream is one whose server went
        with crowd(namespace) as (stream, server):
            server.close()
            assert bbipc.poll_socket(stream, E.DETERMINED, PATIENCE)
            yield stream
        return
    family = socket.AF_INET if namespace.name == "ipv4" else socket.AF_INET6
    host = bbipc.IPV4_LOOPBACK if namespace.name == "ipv4" else bbipc.IPV6_LOOPBACK
    with socket.socket(family) as holder:  # holds the port, and does not listen
        holder.bind((host, 0))
        connect = bbipc.connect_to_ipv4_tcp_server if namespace.name == "ipv4" else bbipc.connect_to_ipv6_tcp_server
        with connect(host, holder.getsockname()[1]) as stream:
            assert bbipc.poll_socket(stream, E.DETERMINED, PATIENCE)
            yield stream


@contextlib.contextmanager
def idle(namespace: Namespace) -> Iterator[bbipc.StreamSocket]:
    with namespace.stream_and_peer() as (stream, _):
        yield stream


@contextlib.contextmanager
def bytes_unread(namespace: Namespace) -> Iterator[bbipc.StreamSocket]:
    with namespace.stream_and_peer() as (stream, peer):
        peer.sendall(b"unread")
        assert bbipc.poll_socket(stream, E.DATA_AVAILABLE, PATIENCE)
        yield stream


@contextlib.contextmanager
def buffer_full(namespace: Namespace) -> Iterator[bbipc.StreamSocket]:
    with namespace.stream_and_peer() as (stream, _):
        fill(stream)
        yield stream


@contextlib.contextmanager
def closed_bytes_unread(namespace: Namespace) -> Iterator[bbipc.StreamSocket]:
    with namespace.stream_and_peer() as (stream, peer):
        peer.sendall(b"unread")
        peer.close()
        _hung_up(stream)
        yield stream


@contextlib.contextmanager
def closed_all_read(namespace: Namespace) -> Iterator[bbipc.StreamSocket]:
    with namespace.stream_and_peer() as (stream, peer):
        peer.sendall(b"read")
        peer.close()
        _hung_up(stream)
        assert drain(stream, 4) == b"read"
        yield stream


@contextlib.contextmanager
def shut_all_read(namespace: Namespace) -> Iterator[bbipc.StreamSocket]:
    with namespace.stream_and_peer() as (stream, peer):
        peer.sendall(b"read")
        peer.shutdown(socket.SHUT_WR)
        _hung_up(stream)
        assert drain(stream, 4) == b"read"
        yield stream


@contextlib.contextmanager
def half_closed_and_full(namespace: Namespace) -> Iterator[tuple[bbipc.StreamSocket, socket.socket]]:
    """A stream whose peer has shut its sending side, all read, with a full send buffer; and the peer, who may read."""
    with namespace.stream_and_peer() as (stream, peer):
        peer.shutdown(socket.SHUT_WR)
        _hung_up(stream)
        fill(stream)
        yield stream, peer


@contextlib.contextmanager
def shut_all_read_full(namespace: Namespace) -> Iterator[bbipc.StreamSocket]:
    with half_closed_and_full(namespace) as (stream, _):
        yield stream


@contextlib.contextmanager
def shut_bytes_unread_full(namespace: Namespace) -> Iterator[bbipc.StreamSocket]:
    with namespace.stream_and_peer() as (stream, peer):
        peer.sendall(b"unread")
        peer.shutdown(socket.SHUT_WR)
        _hung_up(stream)
        fill(stream)
        yield stream


@contextlib.contextmanager
def own_side_shut(namespace: Namespace) -> Iterator[bbipc.StreamSocket]:
    with namespace.stream_and_peer() as (stream, _):
        stream.shutdown_write()
        yield stream


@contextlib.contextmanager
def own_side_shut_full(namespace: Namespace) -> Iterator[bbipc.StreamSocket]:
    """The local kernel says "not writable" here, for as long as the peer does not read."""
    with namespace.stream_and_peer() as (stream, _):
        fill(stream)
        stream.shutdown_write()
        yield stream


@contextlib.contextmanager
def both_sides_shut(namespace: Namespace) -> Iterator[bbipc.StreamSocket]:
    with namespace.stream_and_peer() as (stream, peer):
        stream.shutdown_write()
        peer.shutdown(socket.SHUT_WR)
        _hung_up(stream)
        yield stream


@contextlib.contextmanager
def reset(namespace: Namespace) -> Iterator[bbipc.StreamSocket]:
    with namespace.stream_and_peer() as (stream, peer):
        namespace.reset(stream, peer)
        _hung_up(stream)
        yield stream


@contextlib.contextmanager
def reset_bytes_unread(namespace: Namespace) -> Iterator[bbipc.StreamSocket]:
    with namespace.stream_and_peer() as (stream, peer):
        peer.sendall(b"unread")
        assert bbipc.poll_socket(stream, E.DATA_AVAILABLE, PATIENCE)
        namespace.reset(stream, peer)
        _hung_up(stream)
        yield stream


def _hung_up(stream: bbipc.StreamSocket) -> None:
    """Wait, with means that are not under test, until the kernel knows of the peer's end."""
    import select

    poll = select.poll()
    poll.register(stream.fileno(), select.POLLRDHUP)
    assert poll.poll(PATIENCE * 1000)


#: the truth table of the design, row by row
TABLE: dict[str, tuple[State, SocketEvent]] = {
    "connecting": (connecting, NONE),
    "refused": (refused, E.DETERMINED | E.CONNECTION_FAILED | E.ROOM_TO_WRITE),
    "up, idle": (idle, UP | WRITE),
    "up, bytes unread": (bytes_unread, UP | E.DATA_AVAILABLE | WRITE),
    "up, send buffer full": (buffer_full, UP),
    "up, own side shut": (own_side_shut, UP | E.ROOM_TO_WRITE),
    "up, own side shut, send buffer full": (own_side_shut_full, UP | E.ROOM_TO_WRITE),
    "peer closed, bytes unread": (closed_bytes_unread, UP | E.DATA_AVAILABLE | WRITE),
    "peer closed, all read": (closed_all_read, GONE | E.ROOM_TO_WRITE),
    "peer shut its sending, all read": (shut_all_read, GONE | E.ROOM_TO_WRITE),
    "peer shut its sending, all read, send buffer full": (shut_all_read_full, GONE),
    "peer shut its sending, bytes unread, send buffer full": (shut_bytes_unread_full, UP | E.DATA_AVAILABLE),
    "both shut their sending, all read": (both_sides_shut, GONE | E.ROOM_TO_WRITE),
    "reset": (reset, GONE | E.ROOM_TO_WRITE),
    "reset, bytes unread": (reset_bytes_unread, UP | E.DATA_AVAILABLE | WRITE),
}


@contextlib.contextmanager
def server_with_caller(namespace: Namespace) -> Iterator[bbipc.StreamServer]:
    with namespace.make_server() as server, namespace.connect_plainly(server):
        assert bbipc.poll_socket(server, E.CONNECTION_AVAILABLE, PATIENCE)
        yield server


__all__ = [
    "EVERY",
    "GONE",
    "NONE",
    "TABLE",
    "UP",
    "accept",
    "crowd",
    "half_closed_and_full",
    "server_with_caller",
]
