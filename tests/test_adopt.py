"""Descriptors from elsewhere."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

import bbipc
from bbipc import SocketEvent
from tests.support.makers import PATIENCE, Namespace, drain


def test_an_adopted_stream_is_one_of_its_namespace(namespace: Namespace) -> None:
    with namespace.make_server() as server, namespace.connect_plainly(server) as peer:
        assert bbipc.poll_socket(server, SocketEvent.CONNECTION_AVAILABLE, PATIENCE)
        with server.accept_connection() as accepted:
            with bbipc.adopt_descriptor(os.dup(peer.fileno())) as adopted:
                assert type(adopted) is type(accepted)
                assert isinstance(adopted, bbipc.StreamSocket)
                assert not os.get_inheritable(adopted.fileno())
                assert adopted.write(b"hello") == 5
                assert drain(accepted, 5) == b"hello"
                if isinstance(adopted, bbipc.IPv4TCPStream | bbipc.IPv6TCPStream):
                    assert isinstance(server, bbipc.IPv4TCPServer | bbipc.IPv6TCPServer)
                    assert (adopted.local_host_address, adopted.local_port) == peer.getsockname()[:2]
                    assert (adopted.remote_host_address, adopted.remote_port) == (server.host_address, server.port)
            assert not accepted.remote_disconnected()  # its giver holds it still


def test_an_adopted_server_accepts(namespace: Namespace) -> None:
    with namespace.make_server() as server:
        with bbipc.adopt_descriptor(os.dup(server.fileno())) as adopted:
            assert type(adopted) is type(server)
            with namespace.connect_plainly(server):
                assert bbipc.poll_socket(adopted, SocketEvent.CONNECTION_AVAILABLE, PATIENCE)
                adopted.accept_connection().close()
        with namespace.connect(server) as client:  # its close has left the server alone
            assert bbipc.poll_socket(client, SocketEvent.CONNECTION_SUCCEEDED, PATIENCE)


def test_what_cannot_be_adopted_stays_the_callers(short_dir: Path) -> None:
    with socket.socket() as unconnected, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram:
        with open(short_dir / "f", "w") as file:
            for number, reason in (
                (unconnected.fileno(), errno.ENOTCONN),
                (datagram.fileno(), errno.EPROTONOSUPPORT),
                (file.fileno(), errno.ENOTSOCK),
                (987654, errno.EBADF),
            ):
                with pytest.raises(bbipc.SocketError, match=str(number)) as caught:
                    bbipc.adopt_descriptor(number)
                assert caught.value.errno == reason
            file.write("still open")


@pytest.mark.parametrize(
    ("wrong", "error"), [(None, TypeError), ("3", TypeError), (True, TypeError), (-1, ValueError), (2**63, ValueError)]
)
def test_what_is_no_descriptor(wrong: int, error: type[Exception]) -> None:
    """A None once made a socket of its own, and leaked it."""
    with pytest.raises(error):
        bbipc.adopt_descriptor(wrong)
