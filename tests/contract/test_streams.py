"""Reading and writing: the same in every namespace."""

from __future__ import annotations

import errno
import socket

import pytest

import bbipc
from bbipc import SocketEvent
from tests.contract.states import TABLE, connecting, crowd, refused, reset, reset_bytes_unread
from tests.support.makers import PATIENCE, Namespace, accept, drain, fill

DATA = SocketEvent.DATA_AVAILABLE


def test_nothing_there_is_none_and_no_room_is_zero(namespace: Namespace) -> None:
    with namespace.pair() as (client, accepted):
        assert accepted.read() is None
        assert accepted.read_into(bytearray(4)) is None
        fill(client)
        assert client.write(b"no room") == 0
        assert client.write_vector([b"no", b"room"]) == 0


def test_what_is_written_is_read_in_order(namespace: Namespace) -> None:
    with namespace.pair() as (client, accepted):
        assert client.write(b"0123456789", 2, 5) == 3
        assert client.write_vector([b"ab", bytearray(b"cd"), memoryview(b"ef")]) == 6
        assert drain(accepted, 9) == b"234abcdef"


def test_read_into_a_part_leaves_the_rest_alone(namespace: Namespace) -> None:
    with namespace.pair() as (client, accepted):
        client.write(b"xyz")
        bbipc.poll_socket(accepted, DATA, PATIENCE)
        buffer = bytearray(b"........")
        assert accepted.read_into(buffer, 2, 4) == 2
        assert accepted.read_into(buffer, 6) == 1
        assert buffer == b"..xy..z."


def test_peek_leaves_the_bytes(namespace: Namespace) -> None:
    with namespace.pair() as (client, accepted):
        client.write(b"again")
        bbipc.poll_socket(accepted, DATA, PATIENCE)
        buffer = bytearray(5)
        assert accepted.read(peek=True) == b"again"
        assert accepted.read_into(buffer, peek=True) == 5
        assert accepted.read() == bytes(buffer) == b"again"
        assert accepted.read(peek=True) is None


def test_a_large_transfer_arrives_byte_for_byte(namespace: Namespace) -> None:
    data = bytes(range(256)) * 8192
    with namespace.pair() as (client, accepted):
        sent, received = 0, bytearray()
        while len(received) < len(data):
            sent += client.write(data, sent)
            received += accepted.read(30000) or b""
        assert bytes(received) == data


@pytest.mark.parametrize("size", [0, 1, 65536, 200000])
def test_bytes_that_came_with_the_hang_up_are_read_first(namespace: Namespace, size: int, backend: str) -> None:
    """HAZARDS 18: a peer that sends and closes at once loses nothing, and its end is told once all is read."""
    with namespace.stream_and_peer() as (stream, peer), bbipc.make_poller(backend) as poller:
        poller.monitor_socket(stream, DATA | SocketEvent.REMOTE_DISCONNECTED)
        peer.setblocking(False)
        data = bytes(range(251)) * (size // 251 + 1)
        sent = peer.send(data[:size]) if size else 0
        peer.close()
        received = bytearray()
        while True:
            ((_, events),) = poller.wait_for_events(PATIENCE)
            if SocketEvent.REMOTE_DISCONNECTED in events:
                break
            received += stream.read(50000) or b""
        assert bytes(received) == data[:sent]
        assert stream.read() == b""
        assert stream.read_into(bytearray(1)) == 0
        assert stream.connection_error() is None


def test_the_answer_reaches_a_peer_that_shut_its_sending(namespace: Namespace) -> None:
    with namespace.pair() as (client, accepted):
        client.write(b"request")
        client.shutdown_write()
        client.shutdown_write()
        assert drain(accepted, 100) == b"request"
        assert accepted.remote_disconnected()
        assert accepted.write(b"answer") == 6
        assert drain(client, 6) == b"answer"


def test_after_shutdown_write_the_stream_is_never_ready_to_write(namespace: Namespace, backend: str) -> None:
    ready = SocketEvent.READY_TO_WRITE
    with namespace.pair() as (client, _), bbipc.make_poller(backend) as poller:
        poller.monitor_socket(client, ready)
        assert poller.wait_for_events(PATIENCE) == [(client, ready)]
        client.shutdown_write()
        assert poller.wait_for_events(0) == []
        assert not client.ready_to_write()
        assert bbipc.poll_socket(client, ready, None) == SocketEvent(0)
        with pytest.raises(bbipc.SocketError) as caught:
            client.write(b"late")
        assert caught.value.errno == errno.EPIPE
        assert not isinstance(caught.value, bbipc.RemoteDisconnectedError)
        assert client.write(b"") == 0


def test_a_connecting_stream_reads_none_and_writes_zero(namespace: Namespace) -> None:
    with connecting(namespace) as stream:
        assert stream.read() is None
        assert stream.read_into(bytearray(1)) is None
        assert stream.write(b"early") == 0
        assert stream.write_vector([b"early"]) == 0
        assert not stream.determined()
        assert stream.connection_error() is None
        with pytest.raises(bbipc.SocketError) as caught:
            stream.shutdown_write()
        assert caught.value.errno == errno.ENOTCONN


def test_a_failed_stream_raises_with_the_cause_again_and_again(namespace: Namespace) -> None:
    with refused(namespace) as stream:
        cause = stream.connection_error()
        assert cause is not None
        assert cause.errno == errno.ECONNREFUSED or (namespace.name == "local" and cause.errno == errno.ENOENT)
        for _ in range(2):
            for call in (stream.read, lambda: stream.write(b"x"), lambda: stream.read_into(bytearray(1))):
                with pytest.raises(bbipc.ConnectionFailedError) as caught:
                    call()
                assert caught.value.errno == cause.errno
                assert caught.value.__cause__ is cause
                assert caught.value.socket is stream
        assert stream.write(b"") == 0
        with pytest.raises(bbipc.ConnectionFailedError):
            stream.shutdown_write()


@pytest.mark.parametrize("asked_first", [False, True], ids=["read", "predicate"])
def test_a_reset_is_told_by_every_read(namespace: Namespace, asked_first: bool) -> None:
    """The kernel tells of a reset once; whoever is told first, every later read raises."""
    with reset(namespace) as stream:
        if asked_first:
            assert stream.remote_disconnected()
        for _ in range(3):
            with pytest.raises(bbipc.RemoteDisconnectedError) as caught:
                stream.read()
            assert caught.value.errno == errno.ECONNRESET
        with pytest.raises(bbipc.RemoteDisconnectedError):
            stream.read_into(bytearray(1))
        error = stream.connection_error()
        assert error is not None
        assert error.errno == errno.ECONNRESET


def test_what_had_come_before_the_reset_is_read_first(namespace: Namespace) -> None:
    with reset_bytes_unread(namespace) as stream:
        assert stream.connection_error() is None or stream.data_available()
        assert stream.read(3) == b"unr"
        assert stream.read(100) == b"ead"
        with pytest.raises(bbipc.RemoteDisconnectedError):
            stream.read()


def test_a_reset_that_a_write_was_told_of_is_told_by_reads_too(namespace: Namespace) -> None:
    with reset(namespace) as stream:
        with pytest.raises(bbipc.RemoteDisconnectedError):
            stream.write(b"x")
        with pytest.raises(bbipc.RemoteDisconnectedError):
            stream.read()


def test_a_zero_that_stands_for_a_reset_somebody_is_just_told_of_is_no_end(namespace: Namespace) -> None:
    """The race in ``_reset_in_doubt``, steps 2 and 3, with the writer stopped for good before step 4."""
    if namespace.name == "local":
        pytest.skip("a local send is not told of the reset, so it cannot take the note away")
    with reset(namespace) as stream:
        with socket.socket(fileno=stream.fileno()) as writer:
            with pytest.raises(ConnectionResetError):
                writer.send(b"x", socket.MSG_NOSIGNAL)
            writer.detach()
        for _ in range(2):
            with pytest.raises(bbipc.RemoteDisconnectedError):
                stream.read()


def test_an_end_in_good_order_stays_one_after_a_write_into_the_void(namespace: Namespace) -> None:
    with namespace.stream_and_peer() as (stream, peer):
        peer.sendall(b"bye")
        peer.close()
        bbipc.poll_socket(stream, DATA, PATIENCE)
        with pytest.raises(bbipc.RemoteDisconnectedError):
            while True:  # over TCP the first write is answered with RST, the next is told
                stream.write(b"too late")
        assert drain(stream, 3) == b"bye"
        assert stream.read() == b""
        assert stream.read() == b""


@pytest.mark.parametrize("name", TABLE)
def test_writing_nothing_touches_nothing(namespace: Namespace, name: str) -> None:
    state, expected = TABLE[name]
    with state(namespace) as stream:
        assert stream.write(b"") == 0
        assert stream.write(b"abc", 3) == 0
        assert stream.write_vector([]) == 0
        assert stream.write_vector([b"", b""]) == 0
        assert bbipc.poll_socket(stream, expected or DATA, 0) == expected


def test_a_read_into_no_bytes_is_refused_and_takes_nothing(namespace: Namespace) -> None:
    with namespace.pair() as (client, accepted):
        client.write(b"kept")
        bbipc.poll_socket(accepted, DATA, PATIENCE)
        for call in (
            lambda: accepted.read_into(bytearray()),
            lambda: accepted.read_into(bytearray(4), 4),
            lambda: accepted.read_into(bytearray(4), 2, 2),
            lambda: accepted.read(0),
            lambda: accepted.read(-1),
            lambda: accepted.read_into(bytearray(4), 0, 5),
            lambda: accepted.read_into(bytearray(4), -1),
        ):
            with pytest.raises(ValueError):
                call()
        assert accepted.read() == b"kept"


def test_a_huge_read_takes_what_is_there(namespace: Namespace) -> None:
    with namespace.pair() as (client, accepted):
        client.write(b"little")
        bbipc.poll_socket(accepted, DATA, PATIENCE)
        assert accepted.read(2**31 - 1) == b"little"


def test_a_connect_that_waited_comes_about_when_the_server_accepts(namespace: Namespace) -> None:
    with crowd(namespace) as (stream, server):
        accepted = []
        while not stream.determined():
            accepted.append(accept(server))
            bbipc.poll_socket(stream, SocketEvent.DETERMINED, 3)
        assert stream.connection_succeeded()
        assert stream.write(b"at last") == 7
        for other in accepted:
            other.close()
