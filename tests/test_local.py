"""What only local streams have: the peer's credentials, descriptor passing, pairs."""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
import textwrap
from pathlib import Path
from unittest import mock

import pytest

import bbipc
from bbipc import SocketEvent
from bbipc.sockets import local
from bbipc.sockets.local import credentials_of_xucred
from tests.contract.states import connecting
from tests.support.makers import PATIENCE, Namespace, drain, fill, make_namespace

DATA = SocketEvent.DATA_AVAILABLE


def test_the_peers_credentials_are_those_of_its_process(short_dir: Path) -> None:
    with bbipc.make_local_server(short_dir / "s") as server, bbipc.connect_to_local_server(server.path) as client:
        with server.accept_connection() as accepted:
            for stream in (client, accepted):
                assert stream.peer_credentials() == (os.getpid(), os.geteuid(), os.getegid())
            assert accepted.peer_credentials().uid == os.geteuid()


def test_credentials_before_the_connection_stands(short_dir: Path) -> None:
    with connecting(make_namespace("local", short_dir)) as stream:
        assert isinstance(stream, bbipc.LocalStream)
        with pytest.raises(bbipc.SocketError) as caught:
            stream.peer_credentials()
        assert caught.value.errno == errno.ENOTCONN


def test_xucred_of_macos_and_freebsd() -> None:
    macos = struct.pack("=IIh2x16I", 0, 501, 2, 20, 12, *[0] * 14)
    freebsd = struct.pack("=IIh2x16I", 0, 1001, 1, 1001, *[0] * 15) + struct.pack("=q", 4711)
    assert credentials_of_xucred(macos, 99) == (99, 501, 20)
    assert credentials_of_xucred(freebsd, 0) == (0, 1001, 1001)
    assert credentials_of_xucred(struct.pack("=IIh2x16I", 0, 5, 0, *[0] * 16), 0).gid == -1


def test_a_passed_descriptor_is_the_same_open_file(short_dir: Path) -> None:
    one, other = bbipc.local_stream_pair()
    (short_dir / "f").write_text("content")
    with one, other:
        with open(short_dir / "f") as file:
            assert one.send_descriptors([file.fileno()], b"here") == 4
        received = other.receive_descriptors(4)
        assert received is not None
        data, numbers = received
        assert data == b"here"
        assert len(numbers) == 1
        assert not os.get_inheritable(numbers[0])
        with os.fdopen(numbers[0]) as again:
            assert again.read() == "content"


def test_a_stream_that_was_passed_on_lives_on_when_its_sender_closes(short_dir: Path) -> None:
    one, other = bbipc.local_stream_pair()
    near, far = bbipc.local_stream_pair()
    with one, other, far:
        assert one.send_descriptors([near]) == 1
        near.close()
        received = other.receive_descriptors(1)
        assert received is not None
        with bbipc.adopt_descriptor(received[1][0]) as adopted:
            assert isinstance(adopted, bbipc.LocalStream)
            assert not far.remote_disconnected()
            far.write(b"to the new holder")
            assert adopted.read() == b"to the new holder"
            assert adopted.write(b"thanks") == 6
        assert drain(far, 6) == b"thanks"
        assert bbipc.poll_socket(far, SocketEvent.REMOTE_DISCONNECTED, PATIENCE)


def test_a_server_that_was_passed_on_keeps_its_path(short_dir: Path) -> None:
    one, other = bbipc.local_stream_pair()
    server = bbipc.make_local_server(short_dir / "s")
    with one, other:
        assert one.send_descriptors([server]) == 1
        server.close()
        received = other.receive_descriptors(1)
        assert received is not None
        with bbipc.adopt_descriptor(received[1][0]) as adopted:
            assert isinstance(adopted, bbipc.LocalServer)
            with bbipc.connect_to_local_server(short_dir / "s") as client:
                assert client.connection_succeeded()
                adopted.accept_connection().close()
        assert (short_dir / "s").is_socket()


def test_what_was_not_passed_after_all_is_not_shared(short_dir: Path) -> None:
    one, other = bbipc.local_stream_pair()
    near, far = bbipc.local_stream_pair()
    with one, other, near, far:
        fill(one)
        assert one.send_descriptors([near]) == 0
        assert near._shared == 0
        far.close()
        with pytest.raises(bbipc.SocketClosedError) as caught:
            one.send_descriptors([near, far])
        assert caught.value.socket is far
        assert near._shared == 0
        assert far._shared == 0
        other.close()
        with pytest.raises(bbipc.RemoteDisconnectedError):
            one.send_descriptors([near])
        assert near._shared == 0


def test_descriptors_in_a_plain_read_are_thrown_away() -> None:
    """HAZARDS 27: 500 descriptors sent into a reader who does not ask for them: none stays open."""
    one, other = bbipc.local_stream_pair()
    with one, other:
        numbers = len(os.listdir("/proc/self/fd"))
        for _ in range(50):
            assert one.send_descriptors([one] * 10) == 1
            assert other.read() == b"\0"
        assert len(os.listdir("/proc/self/fd")) == numbers


def test_more_descriptors_than_asked_for_are_closed_again() -> None:
    one, other = bbipc.local_stream_pair()
    with one, other:
        numbers = len(os.listdir("/proc/self/fd"))
        one.send_descriptors([one] * 9)
        with pytest.raises(bbipc.SocketError) as caught:
            other.receive_descriptors(1)
        assert caught.value.errno == errno.EMSGSIZE
        assert len(os.listdir("/proc/self/fd")) == numbers


def test_receiving_nothing_and_the_end() -> None:
    one, other = bbipc.local_stream_pair()
    with one, other:
        assert other.receive_descriptors(1) is None
        one.write(b"bytes alone")
        assert other.receive_descriptors(1, 5) == (b"bytes", [])
        one.close()
        assert other.receive_descriptors(1) == (b" alone", [])
        assert other.receive_descriptors(1) == (b"", [])


def test_impossible_descriptors() -> None:
    one, other = bbipc.local_stream_pair()
    with one, other:
        for call in (
            lambda: one.send_descriptors([]),
            lambda: one.send_descriptors([0] * 254),
            lambda: one.send_descriptors([0], b""),
            lambda: other.receive_descriptors(0),
            lambda: other.receive_descriptors(254),
            lambda: other.receive_descriptors(1, 0),
        ):
            with pytest.raises(ValueError):
                call()
        with pytest.raises(bbipc.SocketError) as caught:
            one.send_descriptors([987654])
        assert caught.value.errno == errno.EBADF
        assert one.write(b"still fine") == 10


def test_descriptors_on_a_connecting_stream_wait(short_dir: Path) -> None:
    with connecting(make_namespace("local", short_dir)) as stream:
        assert isinstance(stream, bbipc.LocalStream)
        assert stream.send_descriptors([0]) == 0
        assert stream.receive_descriptors(1) is None


def test_a_system_without_local_sockets_says_so(monkeypatch: pytest.MonkeyPatch, short_dir: Path) -> None:
    monkeypatch.setattr(local, "_FAMILY", None)
    for call in (
        bbipc.local_stream_pair,
        lambda: bbipc.make_local_server(short_dir / "s"),
        lambda: bbipc.connect_to_local_server(short_dir / "s"),
    ):
        with pytest.raises(bbipc.SocketError) as caught:
            call()
        assert caught.value.errno == errno.EAFNOSUPPORT


def test_a_pair_under_a_descriptor_limit_leaks_nothing(short_dir: Path) -> None:
    """Every constructor fails with EMFILE in turn, and nothing stays open."""
    program = """
        import errno, os, resource, bbipc
        server = bbipc.make_local_server("s")
        tcp = bbipc.make_ipv4_tcp_server(bbipc.IPV4_LOOPBACK, 0)
        waiting = [bbipc.connect_to_local_server("s"), bbipc.connect_to_ipv4_tcp_server(bbipc.IPV4_LOOPBACK, tcp.port)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        held = []
        while True:
            try: held.append(os.dup(0))
            except OSError: break
        calls = [
            bbipc.local_stream_pair, bbipc.make_poller, server.accept_connection, tcp.accept_connection,
            lambda: bbipc.make_local_server("t"), lambda: bbipc.connect_to_local_server("s"),
            lambda: bbipc.make_ipv4_tcp_server(bbipc.IPV4_LOOPBACK, 0),
            lambda: bbipc.connect_to_ipv4_tcp_server(bbipc.IPV4_LOOPBACK, tcp.port),
        ]
        for spare in range(3):
            for call in calls:
                before = held[:]
                made = None
                for _ in range(200):
                    try: made = call()
                    except bbipc.SocketError as error:
                        assert error.errno == errno.EMFILE, error
                        continue
                    for part in made if isinstance(made, tuple) else (made,): part.close()
                    part = made = None
                    if call in calls[2:4]: break
            try:
                probe = [os.dup(0) for _ in range(spare)]
            except OSError: raise SystemExit(f"leaked with {spare} spare")
            for number in probe: os.close(number)
            os.close(held.pop())
        wait = bbipc.poll_socket(waiting[0], bbipc.SocketEvent.DATA_AVAILABLE, 0.01)
        for number in held: os.close(number)
        for thing in (*waiting, server, tcp): thing.close()
        print("fine")
    """
    import subprocess

    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(program)]
    done = subprocess.run(command, cwd=short_dir, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "fine\n", done.stderr


def test_a_wait_without_a_descriptor_to_spare_still_ends(namespace: Namespace) -> None:
    """Out of descriptors there is no waker: the wait looks every 50 ms, and a close is still seen."""
    from tests.support.makers import Worker, wait_until_asleep

    with namespace.pair() as (client, accepted):
        client._share(1)  # so that the close does not wake the waiter by its shutdown
        with mock.patch("bbipc.polling.wait.Waker", side_effect=OSError(errno.EMFILE, "none left")):
            waiter = Worker(lambda: bbipc.poll_socket(client, DATA, None))
            wait_until_asleep(waiter)
            client.close()
            with pytest.raises(bbipc.SocketClosedError):
                waiter.outcome(1)
        assert socket.AF_UNIX
        accepted.close()
