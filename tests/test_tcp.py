"""What only TCP has: options, addresses, ports, and the ways in which a connect can end."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections import Counter
from unittest import mock

import pytest

import bbipc
from bbipc import SocketEvent
from bbipc.sockets.handle import Handle
from tests.support.makers import PATIENCE, accept

DETERMINED = SocketEvent.DETERMINED


def server() -> bbipc.IPv4TCPServer:
    return bbipc.make_ipv4_tcp_server(bbipc.IPV4_LOOPBACK, 0)


def connect(port: int) -> bbipc.IPv4TCPStream:
    stream = bbipc.connect_to_ipv4_tcp_server(bbipc.IPV4_LOOPBACK, port)
    assert bbipc.poll_socket(stream, DETERMINED, PATIENCE)
    return stream


def test_both_ends_know_their_addresses() -> None:
    with bbipc.make_ipv4_tcp_server(bbipc.IPV4_ANY, 0) as listening, connect(listening.port) as client:
        assert listening.host_address == "0.0.0.0"
        with listening.accept_connection() as accepted:
            assert accepted.local_host_address == client.remote_host_address == "127.0.0.1"
            assert accepted.local_port == client.remote_port == listening.port
            assert accepted.remote_host_address == client.local_host_address == "127.0.0.1"
            assert accepted.remote_port == client.local_port
        client.close()
        assert client.remote_port == listening.port


def test_ipv6_addresses_are_spelled_in_one_way() -> None:
    with bbipc.make_ipv6_tcp_server("0:0:0::1", 0) as listening:
        assert listening.host_address == "::1"
        with bbipc.connect_to_ipv6_tcp_server("0::0:1", listening.port) as client, accept(listening) as accepted:
            assert client.remote_host_address == "::1"
            assert isinstance(accepted, bbipc.IPv6TCPStream)
            assert "[::1]" in repr(accepted)


def test_ipv6_any_leaves_ipv4_alone() -> None:
    with bbipc.make_ipv6_tcp_server(bbipc.IPV6_ANY, 0) as six:
        with bbipc.make_ipv4_tcp_server(bbipc.IPV4_ANY, six.port) as four:
            assert four.port == six.port


def test_no_delay_is_on_and_both_options_can_be_changed() -> None:
    with server() as listening, connect(listening.port) as client, accept(listening) as accepted:
        assert isinstance(accepted, bbipc.IPv4TCPStream)
        for stream in (client, accepted):
            assert stream.no_delay is True
            assert stream.keep_alive is False
            stream.no_delay = False
            stream.keep_alive = True
            assert stream.no_delay is False
            assert stream.keep_alive is True


def test_a_port_that_is_taken_is_named() -> None:
    with server() as listening:
        with pytest.raises(bbipc.SocketError, match=str(listening.port)) as caught:
            bbipc.make_ipv4_tcp_server(bbipc.IPV4_LOOPBACK, listening.port)
        assert caught.value.errno == errno.EADDRINUSE
        assert isinstance(caught.value.__cause__, OSError)


def test_a_port_can_be_taken_again_at_once() -> None:
    """100 restarts on one port, each with a connection that the server closed first (HAZARDS 17)."""
    with server() as first:
        port = first.port
    for _ in range(100):
        with bbipc.make_ipv4_tcp_server(bbipc.IPV4_LOOPBACK, port) as again, connect(port) as client:
            accept(again).close()
            assert bbipc.poll_socket(client, SocketEvent.REMOTE_DISCONNECTED, PATIENCE)


def test_reuse_port_shares_a_port_between_those_who_ask_for_it() -> None:
    with bbipc.make_ipv4_tcp_server(bbipc.IPV4_LOOPBACK, 0, reuse_port=True) as first:
        with bbipc.make_ipv4_tcp_server(bbipc.IPV4_LOOPBACK, first.port, reuse_port=True) as second:
            got: Counter[bbipc.Socket] = Counter()
            for _ in range(64):
                with connect(first.port):
                    rows = [(one, SocketEvent.CONNECTION_AVAILABLE) for one in (first, second)]
                    events = bbipc.poll_sockets(rows, PATIENCE)
                    for (one, _), found in zip(rows, events, strict=True):
                        if found:
                            one.accept_connection().close()
                            got[one] += 1
            assert set(got) == {first, second}
        with pytest.raises(bbipc.SocketError):
            bbipc.make_ipv4_tcp_server(bbipc.IPV4_LOOPBACK, first.port)


def test_a_local_address_can_be_chosen() -> None:
    with server() as listening:
        with bbipc.connect_to_ipv4_tcp_server(
            bbipc.IPV4_LOOPBACK, listening.port, local_host_address="127.0.0.2"
        ) as client:
            assert client.local_host_address == "127.0.0.2"
            with accept(listening) as accepted:
                assert isinstance(accepted, bbipc.IPv4TCPStream)
                assert accepted.remote_host_address == "127.0.0.2"


def test_a_local_address_that_is_not_ours_is_an_error() -> None:
    with pytest.raises(bbipc.SocketError, match=r"198\.51\.100\.7") as caught:
        bbipc.connect_to_ipv4_tcp_server("127.0.0.1", 9, local_host_address="198.51.100.7")
    assert caught.value.errno == errno.EADDRNOTAVAIL
    with server() as listening, pytest.raises(bbipc.SocketError) as caught:
        bbipc.connect_to_ipv4_tcp_server("127.0.0.1", 9, local_host_address="127.0.0.1", local_port=listening.port)
    assert caught.value.errno == errno.EADDRINUSE


@pytest.mark.parametrize("rounds", [2000])
def test_a_refused_connect_has_one_outcome_with_its_errno(rounds: int) -> None:
    """2,000 refused connects: each is a failed stream with ECONNREFUSED, told again and again (HAZARDS 15)."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]
        for _ in range(rounds):
            with connect(port) as stream:
                assert stream.connection_failed()
                error = stream.connection_error()
                assert isinstance(error, ConnectionRefusedError)
                assert stream.connection_error() is error
                assert not stream.connection_succeeded()


def test_an_unreachable_peer_is_a_failed_stream() -> None:
    """There is no route that fails in this sandbox for sure: the kernel's answer is put in its place."""
    with mock.patch.object(Handle, "connect_ex", return_value=errno.ENETUNREACH):
        with bbipc.connect_to_ipv4_tcp_server("127.0.0.9", 9) as stream:
            error = stream.connection_error()
            assert error is not None
            assert error.errno == errno.ENETUNREACH
            assert stream.determined()
            with pytest.raises(bbipc.ConnectionFailedError, match="unreachable"):
                stream.read()


def test_an_error_that_comes_later_is_kept_from_its_only_telling() -> None:
    """The connect is under way when it fails: SO_ERROR is asked exactly once."""
    original = Handle.getsockopt
    asked = []

    def getsockopt(handle: Handle, level: int, name: int, *rest: int) -> int | bytes:
        if name == socket.SO_ERROR:
            asked.append(handle.fileno())
            return errno.ETIMEDOUT if len(asked) == 1 else 0
        return original(handle, level, name, *rest)

    with server() as listening, mock.patch.object(Handle, "getsockopt", getsockopt):
        stream = bbipc.connect_to_ipv4_tcp_server(bbipc.IPV4_LOOPBACK, listening.port)
        with stream:
            assert bbipc.poll_socket(stream, DETERMINED, PATIENCE)
            for _ in range(3):
                assert stream.connection_failed()
                assert isinstance(stream.connection_error(), TimeoutError)
            assert len(asked) == 1


def test_a_connection_that_met_itself_is_a_failed_one() -> None:
    """Bound to the port that it connects to, a TCP socket meets itself (HAZARDS 14)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with bbipc.connect_to_ipv4_tcp_server(
        bbipc.IPV4_LOOPBACK, port, local_host_address=bbipc.IPV4_LOOPBACK, local_port=port
    ) as stream:
        assert bbipc.poll_socket(stream, DETERMINED, PATIENCE) == DETERMINED
        assert stream.connection_failed()
        error = stream.connection_error()
        assert error is not None
        assert error.errno == errno.ECONNREFUSED
        assert "itself" in str(error)
        with pytest.raises(bbipc.ConnectionFailedError):
            stream.write(b"hello me")


def test_a_connection_that_met_itself_through_another_name_is_a_failed_one_too() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with bbipc.connect_to_ipv4_tcp_server(bbipc.IPV4_ANY, port, local_port=port) as stream:
        assert bbipc.poll_socket(stream, DETERMINED, PATIENCE) == DETERMINED
        assert stream.connection_failed()


def test_dialling_a_dead_port_in_the_ephemeral_range_never_succeeds() -> None:
    """20,000 dials to one even dead port: about one in 15,000 meets itself, and none is told as a success."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1] & ~1
    succeeded = 0
    for _ in range(20_000):
        stream = bbipc.connect_to_ipv4_tcp_server(bbipc.IPV4_LOOPBACK, port)
        bbipc.poll_socket(stream, DETERMINED, PATIENCE)
        if stream.connection_succeeded():  # somebody else may listen there by now: then it is not ourselves
            succeeded += (stream.local_port, stream.local_host_address) == (port, bbipc.IPV4_LOOPBACK)
        stream.close()
    assert succeeded == 0


def test_a_peer_that_vanished_before_it_was_accepted_disturbs_nobody() -> None:
    """500 connects with RST among 500 good ones: accept never raises for them, all good ones are served."""
    with bbipc.make_ipv4_tcp_server(bbipc.IPV4_LOOPBACK, 0, backlog=64) as listening:
        served = 0
        for _ in range(500):
            bad = socket.create_connection(("127.0.0.1", listening.port))
            bad.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            bad.close()
            with connect(listening.port) as good:
                good.write(b"x")
                with accept(listening) as vanished, accept(listening) as accepted:
                    with pytest.raises(bbipc.RemoteDisconnectedError):
                        vanished.read()
                    bbipc.poll_socket(accepted, SocketEvent.DATA_AVAILABLE, PATIENCE)
                    served += accepted.read() == b"x"
        assert served == 500


@pytest.mark.parametrize("name", ["ECONNABORTED", "EPROTO", "EPERM", "ENETDOWN", "EHOSTUNREACH"])
def test_an_accept_error_of_the_peers_making_is_skipped(name: str) -> None:
    number = getattr(errno, name)
    original = Handle._accept  # type: ignore[attr-defined]
    with server() as listening, connect(listening.port):
        failures = [OSError(number, name)] * 3

        def _accept(handle: Handle) -> tuple[int, object]:
            if failures:
                raise failures.pop()
            number, address = original(handle)
            return number, address

        with mock.patch.object(Handle, "_accept", _accept):
            listening.accept_connection().close()
            failures += [OSError(number, name)] * 100  # bounded: it gives the thread back
            with pytest.raises(bbipc.NoConnectionAvailableError):
                listening.accept_connection()


@pytest.mark.parametrize("name", ["EMFILE", "ENFILE", "ENOMEM"])
def test_an_accept_error_of_our_own_is_told(name: str) -> None:
    number = getattr(errno, name)
    with server() as listening, mock.patch.object(Handle, "_accept", side_effect=OSError(number, name)):
        with pytest.raises(bbipc.SocketError) as caught:
            listening.accept_connection()
        assert caught.value.errno == number
        assert caught.value.socket is listening


def test_ten_thousand_refused_connects_and_bad_binds_leak_nothing() -> None:
    """10,000 refused connects, 10,000 bad binds: the number of descriptors stays (issue, "Bad input")."""
    with server() as listening, socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]
        numbers = len(os.listdir("/proc/self/fd"))
        for _ in range(10_000):
            bbipc.connect_to_ipv4_tcp_server(bbipc.IPV4_LOOPBACK, port).close()
        for _ in range(10_000):
            with pytest.raises(bbipc.SocketError):
                bbipc.make_ipv4_tcp_server(bbipc.IPV4_LOOPBACK, listening.port)
        assert len(os.listdir("/proc/self/fd")) == numbers


@pytest.mark.parametrize("call", ["setblocking", "setsockopt", "bind", "listen", "getsockname"])
@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOBUFS, errno.EACCES])
def test_no_failing_system_call_leaks(call: str, number: int) -> None:
    """Each call of the constructors fails in turn (HAZARDS 8)."""
    numbers = len(os.listdir("/proc/self/fd"))

    def fail(*args: object) -> None:  # an exception of its own each time: one that is kept would keep its frames
        raise OSError(number, os.strerror(number))

    told: list[int | None] = []
    with mock.patch.object(Handle, call, side_effect=fail):
        for _ in range(3):
            for make in (
                lambda: bbipc.make_ipv4_tcp_server(bbipc.IPV4_LOOPBACK, 0),
                lambda: bbipc.make_ipv6_tcp_server(bbipc.IPV6_LOOPBACK, 0),
                lambda: bbipc.connect_to_ipv4_tcp_server(bbipc.IPV4_LOOPBACK, 9, local_port=0),
            ):
                try:
                    make().close()  # where the call is none of its own
                except OSError as error:
                    told.append(error.errno)
    assert len(os.listdir("/proc/self/fd")) == numbers
    assert set(told) == {number}


@pytest.mark.parametrize("backlog", [-1, 2**31, "5", 1.5, True, None])
def test_impossible_backlogs(backlog: int) -> None:
    with pytest.raises((ValueError, TypeError)):
        bbipc.make_ipv4_tcp_server(bbipc.IPV4_LOOPBACK, 0, backlog=backlog)
