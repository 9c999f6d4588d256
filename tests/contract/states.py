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
EVERY = UP | E.CONNECTION_FAILED | E.DATA_AVAILABLE | E.READY_TO_WRITE | E.REMOTE_DISCONNECTED

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
    "refused": (refused, E.DETERMINED | E.CONNECTION_FAILED),
    "up, idle": (idle, UP | E.READY_TO_WRITE),
    "up, bytes unread": (bytes_unread, UP | E.DATA_AVAILABLE | E.READY_TO_WRITE),
    "up, send buffer full": (buffer_full, UP),
    "peer closed, bytes unread": (closed_bytes_unread, UP | E.DATA_AVAILABLE | E.READY_TO_WRITE),
    "peer closed, all read": (closed_all_read, GONE),
    "peer shut its sending, all read": (shut_all_read, GONE),
    "reset": (reset, GONE),
    "reset, bytes unread": (reset_bytes_unread, UP | E.DATA_AVAILABLE | E.READY_TO_WRITE),
}


@contextlib.contextmanager
def server_with_caller(namespace: Namespace) -> Iterator[bbipc.StreamServer]:
    with namespace.make_server() as server, namespace.connect_plainly(server):
        assert bbipc.poll_socket(server, E.CONNECTION_AVAILABLE, PATIENCE)
        yield server


__all__ = ["EVERY", "GONE", "NONE", "TABLE", "UP", "accept", "crowd", "server_with_caller"]
