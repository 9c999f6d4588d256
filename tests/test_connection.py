"""What is known of a connection when several threads find it out at once: no one may mislead another."""

from __future__ import annotations

import os
import socket
import threading
from unittest import mock

import pytest

import bbipc
from bbipc import SocketEvent
from bbipc.sockets import base
from bbipc.sockets.connection import Connection
from bbipc.sockets.handle import Handle, look
from tests.contract.states import crowd, refused, reset
from tests.support.makers import PATIENCE, Namespace, Server, Worker, accept, fill, sleeping, wait_until_asleep

DATA = SocketEvent.DATA_AVAILABLE


def accept_all(server: Server) -> None:
    while server.connection_available():
        server.accept_connection().close()


@pytest.mark.parametrize("wanted", [DATA, SocketEvent.DETERMINED, DATA | SocketEvent.READY_TO_WRITE])
def test_a_stream_that_settles_outside_its_poller_is_waited_for_anew(backend: str, wanted: SocketEvent) -> None:
    """Monitored while connecting; a write settles the connect and fills the buffer: "writable" never comes again."""
    with bbipc.make_ipv4_tcp_server(bbipc.IPV4_LOOPBACK, 0) as server, bbipc.make_poller(backend) as poller:
        with bbipc.connect_to_ipv4_tcp_server(bbipc.IPV4_LOOPBACK, server.port) as stream:
            poller.monitor_socket(stream, wanted)
            with accept(server) as accepted:
                assert bbipc.poll_socket(stream, SocketEvent.CONNECTION_SUCCEEDED, PATIENCE)
                fill(stream)
                accepted.write(b"x")
                assert bbipc.poll_socket(stream, DATA, PATIENCE)
                expected = wanted & (DATA | SocketEvent.DETERMINED)
                assert poller.wait_for_events(PATIENCE) == [(stream, expected)]


@pytest.mark.parametrize("through", ["predicate", "poller"])
def test_a_look_at_an_unconnected_local_stream_is_no_look_at_a_connected_one(
    namespace: Namespace, through: str
) -> None:
    """1. A look: unconnected, so the kernel says "hung up".  2. Another thread connects it.  3. It has not ended."""
    if namespace.name != "local":
        pytest.skip("only an unconnected local socket polls as hung up")
    with crowd(namespace) as (stream, server):

        def connect() -> None:
            accept_all(server)
            assert stream.determined()

        def late_look(handle: Handle, asked: int) -> int:
            flags = look(handle, asked)
            with mock.patch.object(base, "look", look):
                Worker(connect).outcome()
            return flags

        if through == "predicate":
            with mock.patch.object(base, "look", late_look):
                assert not stream.remote_disconnected()
            return
        with bbipc.make_poller() as poller:
            poller.monitor_socket(stream, SocketEvent.REMOTE_DISCONNECTED | SocketEvent.READY_TO_WRITE)
            with mock.patch("bbipc.polling.poller.look", late_look):
                assert poller.wait_for_events(PATIENCE) == [(stream, SocketEvent.READY_TO_WRITE)]


def test_a_read_waits_for_whoever_is_just_told_of_the_reset(namespace: Namespace) -> None:
    """1. A predicate takes the error from the kernel.  2. A read gets 0.  3. The predicate keeps the error."""
    taken, go = threading.Event(), threading.Event()
    keep = Connection._keep

    def slow_keep(stream: Connection, error: OSError) -> None:
        if not taken.is_set():
            taken.set()
            assert go.wait(PATIENCE)
        keep(stream, error)

    with reset(namespace) as stream, mock.patch.object(Connection, "_keep", slow_keep):
        predicate = Worker(stream.connection_error)
        assert taken.wait(PATIENCE)
        reader = Worker(stream.read)
        reader.join(0.05)
        go.set()
        assert isinstance(predicate.outcome(), ConnectionResetError)
        with pytest.raises(bbipc.RemoteDisconnectedError):
            reader.outcome()


@pytest.mark.parametrize("looked", [False, True])
def test_a_look_does_not_turn_a_clean_end_into_an_error(looked: bool) -> None:
    """The peer answers and closes; a late write of ours is met with a reset.  The end came first, and stays clean."""
    with bbipc.make_ipv4_tcp_server(bbipc.IPV4_LOOPBACK, 0) as server:
        peer = socket.create_connection((server.host_address, server.port))
        with accept(server) as stream:
            peer.sendall(b"answer")
            peer.close()
            assert bbipc.poll_socket(stream, DATA, PATIENCE)
            stream.write(b"late")
            assert bbipc.poll_socket(stream, DATA, PATIENCE)
            assert stream.read() == b"answer"
            if looked:
                assert stream.remote_disconnected()
            assert stream.read() == b""
            assert stream.read() == b""


def test_a_stream_whose_sending_is_shut_does_not_tick(backend: str) -> None:
    """Monitored for data and room, after shutdown_write: the kernel's edge for data is enough, no look in between."""
    one, other = bbipc.local_stream_pair()
    with one, other, bbipc.make_poller(backend) as poller:
        poller.monitor_socket(one, DATA | SocketEvent.READY_TO_WRITE)
        one.shutdown_write()
        assert poller.wait_for_events(0) == []
        with mock.patch("bbipc.polling.poller.look", side_effect=AssertionError("it ticks")):
            assert poller.wait_for_events(0.1) == []
        other.write(b"x")
        assert poller.wait_for_events(PATIENCE) == [(one, DATA)]


def test_room_is_there_as_soon_as_a_write_no_longer_waits(namespace: Namespace) -> None:
    """Through the life of a stream: connecting, up, full, shut, ended."""
    room = SocketEvent.ROOM_TO_WRITE
    with crowd(namespace) as (connecting, server):
        assert not connecting.room_to_write()
        assert connecting.write(b"x") == 0
        accept_all(server)
        assert bbipc.poll_socket(connecting, room, PATIENCE) == room
    with namespace.pair() as (one, other):
        assert one.room_to_write()
        fill(one)
        assert not one.room_to_write()
        other.shutdown_write()
        assert bbipc.poll_socket(one, SocketEvent.REMOTE_DISCONNECTED, PATIENCE)
        assert not one.room_to_write()
        one.shutdown_write()
        assert one.room_to_write()
        with pytest.raises(bbipc.SocketError):
            one.write(b"x")


def test_a_failed_connect_has_room_for_the_error(namespace: Namespace, backend: str) -> None:
    room = SocketEvent.ROOM_TO_WRITE
    with refused(namespace) as stream, bbipc.make_poller(backend) as poller:
        assert stream.room_to_write()
        assert bbipc.poll_socket(stream, room, None) == room
        poller.monitor_socket(stream, room)
        assert poller.wait_for_events(PATIENCE) == [(stream, room)]
        with pytest.raises(bbipc.ConnectionFailedError):
            stream.write(b"x")


@pytest.mark.parametrize("through", ["poll_socket", "poller"])
def test_a_shutdown_of_ones_own_ends_a_wait_for_room(namespace: Namespace, backend: str, through: str) -> None:
    """A write would raise from now on.  The kernel of a local stream with a full buffer says nothing of it."""
    room = SocketEvent.ROOM_TO_WRITE
    with namespace.pair() as (client, _), bbipc.make_poller(backend) as poller:
        fill(client)
        if through == "poller":
            poller.monitor_socket(client, room)
            waiter = Worker(lambda: poller.wait_for_events(None))
        else:
            waiter = Worker(lambda: [(client, bbipc.poll_socket(client, room, None))])
        wait_until_asleep(waiter)
        client.shutdown_write()
        assert waiter.outcome() == [(client, room)]


@pytest.mark.parametrize("rest", ["unread", "all read"])
def test_a_local_peer_that_shuts_both_its_sides_ends_a_wait_for_room(backend: str, rest: str) -> None:
    """The kernel says "hung up" and not "writable" while our bytes lie unread; select has no word for that."""
    room = SocketEvent.ROOM_TO_WRITE
    one, other = bbipc.local_stream_pair()
    with one, other, bbipc.make_poller(backend) as poller:
        fill(one)
        if rest == "unread":
            other.write(b"x")
        socket.socket.shutdown(other._handle, socket.SHUT_RDWR)
        assert one.room_to_write()
        assert bbipc.poll_socket(one, room, None) == room
        poller.monitor_socket(one, room)
        assert poller.wait_for_events(0) == ([] if backend == "select" else [(one, room)])
        with pytest.raises(bbipc.RemoteDisconnectedError):
            one.write(b"x")


def test_the_connect_is_settled_once(namespace: Namespace) -> None:
    """200 rounds of 4 threads that all ask for the outcome: all are told the same."""
    with namespace.make_server(backlog=256) as server:
        for _ in range(200):
            with namespace.connect(server) as stream, accept(server):
                askers = [Worker(lambda: bbipc.poll_socket(stream, SocketEvent.DETERMINED, PATIENCE)) for _ in range(4)]
                assert {asker.outcome() for asker in askers} == {SocketEvent.DETERMINED}
                assert stream.connection_succeeded()


def test_urgent_data_is_data(backend: str) -> None:
    """A peer's urgent byte stays in its place, hides nothing, and spins no poller."""
    with bbipc.make_ipv4_tcp_server(bbipc.IPV4_LOOPBACK, 0) as server:
        with socket.create_connection((server.host_address, server.port)) as peer, accept(server) as stream:
            with bbipc.make_poller(backend) as poller:
                poller.monitor_socket(stream, SocketEvent.REMOTE_DISCONNECTED)
                peer.send(b"!", socket.MSG_OOB)
                with sleeping(0.02):
                    assert poller.wait_for_events(0.2) == []
                peer.sendall(b"hello")
                peer.close()
                poller.set_monitored_events(stream, DATA | SocketEvent.REMOTE_DISCONNECTED)
                received = b""
                while len(received) < 6:
                    assert poller.wait_for_events(PATIENCE) == [(stream, DATA)]
                    received += stream.read() or b""
                assert received == b"!hello"
                assert poller.wait_for_events(PATIENCE) == [(stream, SocketEvent.REMOTE_DISCONNECTED)]


def test_an_end_by_another_holder_is_no_reset() -> None:
    """An adopted stream whose other holder has shut the sending side: the peer's close is a clean end."""
    with bbipc.make_ipv4_tcp_server(bbipc.IPV4_LOOPBACK, 0) as server:
        with socket.create_connection((server.host_address, server.port)) as peer, accept(server) as stream:
            with bbipc.adopt_descriptor(os.dup(stream.fileno())) as adopted:
                assert isinstance(adopted, bbipc.StreamSocket)
                stream.shutdown_write()
                peer.sendall(b"bye")
                peer.close()
                assert bbipc.poll_socket(adopted, DATA, PATIENCE)
                assert adopted.read() == b"bye"
                assert adopted.read() == b""
