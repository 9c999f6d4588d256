"""Who owns a number, and how one ends: the tombstone, its stand-in where there is no O_PATH, and looking."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import select
import socket
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

import bbipc
from bbipc import SocketClosedError, SocketEvent
from bbipc.readiness import ERROR, EVERYTHING, HUNG_UP, INVALID, READ_HUNG_UP, READABLE, WRITABLE
from bbipc.sockets import handle as handle_module
from bbipc.sockets.handle import CLOSED, Handle, at_end, end, look, make_handle, unread_bytes
from tests.support.makers import PATIENCE, Namespace, Worker, make_namespace, wait_until_asleep

needs_o_path = pytest.mark.skipif(not hasattr(os, "O_PATH"), reason="the tombstone is another one here")

#: what a thread may be about to do when the number under it changes meaning
OPERATIONS: dict[str, Callable[[Handle], object]] = {
    "recv": lambda handle: handle.recv(1),
    "peek": lambda handle: handle.recv(1, socket.MSG_PEEK),
    "recv_into": lambda handle: handle.recv_into(bytearray(1)),
    "recvmsg": lambda handle: handle.recvmsg(1),
    "send": lambda handle: handle.send(b"x"),
    "send nothing": lambda handle: handle.send(b""),
    "sendmsg": lambda handle: handle.sendmsg([b"x"]),
    "accept": lambda handle: handle._accept(),  # type: ignore[attr-defined]
    "listen": lambda handle: handle.listen(1),
    "connect": lambda handle: handle.connect("/nowhere"),
    "shutdown": lambda handle: handle.shutdown(socket.SHUT_RDWR),
    "getsockopt": lambda handle: handle.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR),
    "setsockopt": lambda handle: handle.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    "getsockname": lambda handle: handle.getsockname(),
    "getpeername": lambda handle: handle.getpeername(),
    "unread_bytes": unread_bytes,
}


@contextlib.contextmanager
def handles() -> Iterator[tuple[Handle, socket.socket]]:
    """A connected handle, and its peer as a plain socket.  The handle is the test's to drop."""
    one, peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with peer:
        yield make_handle(socket.AF_UNIX, fileno=one.detach()), peer


@pytest.fixture
def dead_pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A system without O_PATH: a dead socket pair is the tombstone.  Leaves no number behind."""
    kept = dict(handle_module._tombstone)
    monkeypatch.delattr(os, "O_PATH", raising=False)
    monkeypatch.setattr("bbipc.sockets.handle._O_PATH", 0)
    handle_module._tombstone.clear()
    yield
    made = dict(handle_module._tombstone)
    handle_module._tombstone.clear()
    handle_module._tombstone.update(kept)
    for number in made.values():
        os.close(number)


def assert_free(number: int) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        os.fstat(number)


@needs_o_path
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("shut_down", [True, False])
def test_every_operation_on_an_ended_handle_fails_as_on_a_closed_number(operation: str, shut_down: bool) -> None:
    with handles() as (handle, peer):
        peer.sendall(b"unread")
        end(handle, shut_down=shut_down)
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)) as caught:
            OPERATIONS[operation](handle)
        assert caught.value.errno == errno.EBADF


@needs_o_path
@pytest.mark.parametrize("asked", [0, READABLE, WRITABLE, EVERYTHING])
def test_a_look_at_an_ended_handle_tells_invalid(asked: int) -> None:
    with handles() as (handle, peer):
        peer.sendall(b"unread")
        end(handle, shut_down=True)
        assert look(handle, asked) == INVALID


@pytest.mark.parametrize("shut_down", [True, False])
def test_the_peer_sees_the_end_at_once_though_the_handle_is_still_held(shut_down: bool) -> None:
    with handles() as (handle, peer):
        peer.settimeout(PATIENCE)
        end(handle, shut_down=shut_down)
        assert peer.recv(1) == b""
        assert handle.fileno() >= 0


def test_what_the_kernel_had_taken_still_reaches_the_peer() -> None:
    with handles() as (handle, peer):
        peer.settimeout(PATIENCE)
        assert handle.send(b"last words") == 10
        end(handle, shut_down=True)
        assert peer.recv(100) == b"last words"
        assert peer.recv(100) == b""


def test_without_a_shutdown_another_holder_of_the_connection_keeps_it() -> None:
    with handles() as (handle, peer), handle.dup() as holder:
        end(handle, shut_down=False)
        peer.sendall(b"x")
        assert holder.recv(1) == b"x"


def test_with_a_shutdown_every_holder_of_the_connection_sees_the_end() -> None:
    with handles() as (handle, peer), handle.dup() as holder:
        holder.settimeout(PATIENCE)
        end(handle, shut_down=True)
        assert holder.recv(1) == b""
        assert peer.recv(1) == b""


def test_an_ended_number_is_given_to_nobody_while_the_handle_is_held_and_freed_afterwards() -> None:
    with handles() as (handle, _):
        number = handle.fileno()
        end(handle, shut_down=True)
        fresh = [os.dup(0) for _ in range(64)]
        try:
            assert number not in fresh
            assert handle.fileno() == number
        finally:
            for other in fresh:
                os.close(other)
        os.fstat(number)  # taken, by the tombstone
        del handle
        assert_free(number)


def test_a_dropped_handle_frees_its_number_without_any_end() -> None:
    with handles() as (handle, _):
        number = handle.fileno()
        del handle
        assert_free(number)


def test_ending_twice_is_harmless() -> None:
    with handles() as (handle, peer):
        end(handle, shut_down=True)
        end(handle, shut_down=True)
        assert peer.recv(1) == b""


def test_an_end_never_touches_another_number() -> None:
    with handles() as (bystander, other), handles() as (handle, _):
        end(handle, shut_down=True)
        other.sendall(b"x")
        assert bystander.recv(1) == b"x"
        del bystander


def test_a_close_of_a_socket_leaves_its_number_taken_for_as_long_as_a_call_holds_the_handle() -> None:
    one, other = bbipc.local_stream_pair()
    with other:
        in_flight = one._handle
        number = one.fileno()
        one.close()
        os.fstat(number)
        replacement = bbipc.local_stream_pair()
        assert number not in [stream.fileno() for stream in replacement]
        for stream in replacement:
            stream.close()
        del in_flight
        assert_free(number)


def test_closed_stands_for_no_number_and_every_operation_on_it_fails() -> None:
    assert CLOSED.fileno() == -1
    for name, operation in OPERATIONS.items():
        if name in {"connect", "unread_bytes"}:  # CLOSED is of the family AF_INET, and ioctl refuses -1 by itself
            continue
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            operation(CLOSED)


def put_back(number: int) -> None:
    """Let the tombstone have the *number* again that it had: for the other tests nothing has been opened."""
    made = handle_module._tombstone["number"]
    if made != number:
        os.dup2(made, number, inheritable=False)
        os.close(made)
        handle_module._tombstone["number"] = number


@pytest.mark.parametrize("accident", ["closed", "never opened"])
def test_an_end_survives_a_lost_tombstone(accident: str) -> None:
    """A daemon that closes "all" descriptors closes ours, too."""
    lost = handle_module._tombstone["number"]
    os.close(lost)
    if accident == "never opened":
        del handle_module._tombstone["number"]
    with handles() as (handle, peer):
        number = handle.fileno()
        end(handle, shut_down=True)
        assert peer.recv(1) == b""
        os.fstat(handle_module._tombstone["number"])
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            handle.send(b"x")
        del handle
        if number != lost:
            assert_free(number)
    put_back(lost)


@needs_o_path
def test_a_number_that_was_the_tombstones_and_is_a_strangers_now_buries_nothing() -> None:
    """A daemon closed ours, and the number was given to a file of somebody's."""
    stranger, writer = os.pipe()
    number = handle_module._tombstone["number"]
    os.dup2(stranger, number)
    os.write(writer, b"his")
    with handles() as (handle, peer):
        end(handle, shut_down=True)
        assert peer.recv(1) == b""
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            os.read(handle.fileno(), 3)
        del handle
    assert handle_module._tombstone["number"] != number
    assert os.read(number, 3) == b"his"
    for each in number, stranger, writer:
        os.close(each)
    put_back(number)


@needs_o_path
def test_the_tombstone_is_opened_once_and_survives_the_ends_of_many() -> None:
    number = handle_module._tombstone["number"]
    before = os.fstat(number).st_ino
    for _ in range(50):
        with handles() as (handle, _):
            end(handle, shut_down=True)
            del handle
    assert handle_module._tombstone == {"number": number}
    assert os.fstat(number).st_ino == before


def test_many_first_sockets_open_one_tombstone(dead_pair: None) -> None:
    def first() -> bool:
        for stream in bbipc.local_stream_pair():
            stream.close()
        return True

    workers = [Worker(first) for _ in range(8)]
    assert all(worker.outcome() for worker in workers)
    assert list(handle_module._tombstone) == ["number"]


def test_of_two_first_tombstones_one_is_kept_and_the_other_closed(
    dead_pair: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread prepares one while this one is at it."""
    pair = socket.socketpair
    overtaken: list[int] = []

    def slow_pair() -> tuple[socket.socket, socket.socket]:
        made = pair()
        if not overtaken:
            overtaken.append(-1)
            overtaken.append(int(str(Worker(handle_module._prepare_tombstone).outcome())))
        return made

    monkeypatch.setattr(socket, "socketpair", slow_pair)
    before = set(os.listdir("/proc/self/fd"))
    assert handle_module._prepare_tombstone() == overtaken[1]
    assert set(os.listdir("/proc/self/fd")) - before == {str(overtaken[1])}


# Where there is no O_PATH.


def test_a_dead_pair_ends_the_connection_and_keeps_the_number(dead_pair: None) -> None:
    with handles() as (handle, peer):
        peer.sendall(b"unread")
        number = handle.fileno()
        end(handle, shut_down=True)
        assert look(handle, EVERYTHING) & (READABLE | HUNG_UP | INVALID) == READABLE | HUNG_UP
        assert handle.recv(1) == b""
        with pytest.raises(BrokenPipeError):
            handle.send(b"x", handle_module.NO_SIGNAL)
        os.fstat(number)
        del handle
        assert_free(number)
        peer.settimeout(PATIENCE)
        with pytest.raises(ConnectionResetError):  # it had left bytes unread
            peer.recv(1)


def test_over_a_dead_pair_no_call_in_flight_takes_a_close_for_the_peers_end(dead_pair: None) -> None:
    """A call that had read ``_io`` before the close, and comes to use it after."""
    calls: dict[str, Callable[[bbipc.LocalStream], object]] = {
        "read": lambda stream: stream.read(1),
        "peek": lambda stream: stream.read(1, peek=True),
        "read_into": lambda stream: stream.read_into(bytearray(1)),
        "receive_descriptors": lambda stream: stream.receive_descriptors(1),
        "write": lambda stream: stream.write(b"x"),
        "write_vector": lambda stream: stream.write_vector([b"x"]),
    }
    for call in calls.values():
        one, other = bbipc.local_stream_pair()
        with other:
            in_flight = one._io
            one.close()
            one._io = in_flight
            del in_flight
            with pytest.raises(SocketClosedError):
                call(one)
            one._io = CLOSED


@needs_o_path
def test_over_o_path_no_call_in_flight_takes_a_close_for_the_peers_end() -> None:
    one, other = bbipc.local_stream_pair()
    with other:
        in_flight = one._io
        one.close()
        one._io = in_flight
        del in_flight
        for call in (
            lambda: one.read(1),
            lambda: one.read_into(bytearray(1)),
            lambda: one.write(b"x"),
            lambda: one.write(b""),
            lambda: one.write_vector([]),
        ):
            with pytest.raises(SocketClosedError):
                call()
        one._io = CLOSED


@pytest.mark.parametrize("waits", ["poll_socket", "epoll", "poll", "select"])
def test_over_a_dead_pair_a_close_ends_the_waits_of_other_threads(dead_pair: None, waits: str) -> None:
    one, other = bbipc.local_stream_pair()
    with other:
        if waits == "poll_socket":
            waiter = Worker(lambda: bbipc.poll_socket(one, SocketEvent.DATA_AVAILABLE, PATIENCE))
            wait_until_asleep(waiter)
            one.close()
            with pytest.raises(SocketClosedError):
                waiter.outcome()
        else:
            with bbipc.make_poller(waits) as poller:
                poller.monitor_socket(one, SocketEvent.DATA_AVAILABLE)
                waiter = Worker(lambda: poller.wait_for_events(PATIENCE))
                wait_until_asleep(waiter)
                one.close()
                assert waiter.outcome() == []
                assert poller.monitored_sockets() == ()


def test_over_a_dead_pair_a_closed_server_accepts_nobody(dead_pair: None, namespace: Namespace) -> None:
    with namespace.make_server() as server:
        in_flight = server._handle
        server.close()
        with pytest.raises(OSError):
            in_flight._accept()  # type: ignore[attr-defined]
        assert not look(in_flight, EVERYTHING) & INVALID
        with pytest.raises(SocketClosedError):
            server.accept_connection()


# Numbers are not inherited.


def test_a_started_program_inherits_no_number(namespace: Namespace) -> None:
    with namespace.make_server() as server, namespace.connect(server) as client:
        assert bbipc.poll_socket(server, SocketEvent.CONNECTION_AVAILABLE, PATIENCE)
        with server.accept_connection() as accepted:
            for one in (server, client, accepted):
                assert not os.get_inheritable(one.fileno())
                assert not os.get_blocking(one.fileno())


def test_a_started_program_inherits_neither_tombstone_nor_ended_number() -> None:
    assert not os.get_inheritable(handle_module._tombstone["number"])
    with handles() as (handle, _):
        assert not os.get_inheritable(handle.fileno())
        end(handle, shut_down=True)
        assert not os.get_inheritable(handle.fileno())
        del handle


def test_a_started_program_inherits_no_dead_pair(dead_pair: None) -> None:
    with handles() as (handle, _):
        end(handle, shut_down=True)
        assert not os.get_inheritable(handle_module._tombstone["number"])
        assert not os.get_inheritable(handle.fileno())
        del handle


# Looking and counting.


def test_unread_bytes_counts_what_waits_and_takes_nothing() -> None:
    with handles() as (handle, peer):
        assert unread_bytes(handle) == 0
        peer.sendall(b"x" * 1000)
        assert unread_bytes(handle) == 1000
        assert unread_bytes(handle) == 1000
        assert len(handle.recv(400)) == 400
        assert unread_bytes(handle) == 600
        peer.close()
        assert unread_bytes(handle) == 600
        del handle


def test_unread_bytes_leaves_a_pending_error_where_it_is(short_dir: Path) -> None:
    with make_namespace("ipv4", short_dir).stream_and_peer() as (stream, peer):
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
        poll = select.poll()
        poll.register(stream.fileno(), READ_HUNG_UP)
        assert poll.poll(PATIENCE * 1000)
        assert unread_bytes(stream._handle) == 0
        assert look(stream._handle, EVERYTHING) & ERROR
        assert stream._handle.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET


def test_a_look_at_the_end_takes_no_byte_and_mistakes_nothing_for_it() -> None:
    with handles() as (handle, peer):
        assert at_end(handle) is False
        peer.sendall(b"xy")
        assert at_end(handle) is False
        peer.shutdown(socket.SHUT_WR)
        assert at_end(handle) is False
        assert handle.recv(10) == b"xy"
        assert at_end(handle) is True
        assert at_end(handle) is True
        end(handle, shut_down=True)
        assert at_end(handle) is (not hasattr(os, "O_PATH"))
        del handle


@pytest.mark.parametrize("asked", [0, READABLE, WRITABLE, READABLE | WRITABLE, EVERYTHING])
def test_a_look_tells_what_is_asked_and_true(asked: int) -> None:
    with handles() as (handle, peer):
        assert look(handle, asked) == asked & WRITABLE
        peer.sendall(b"x")
        assert look(handle, asked) == asked & (READABLE | WRITABLE)
        peer.shutdown(socket.SHUT_WR)
        assert look(handle, asked) == asked & EVERYTHING
        peer.close()
        assert look(handle, asked) == asked & EVERYTHING | HUNG_UP
        del handle


def test_a_look_never_waits() -> None:
    with handles() as (handle, _):
        assert Worker(partial(look, handle, READABLE)).outcome() == 0
        del handle


@pytest.mark.parametrize("asked", [READABLE, WRITABLE, READABLE | WRITABLE])
def test_without_a_poll_select_does_the_looking(monkeypatch: pytest.MonkeyPatch, asked: int) -> None:
    with handles() as (handle, peer):
        monkeypatch.delattr(select, "poll")
        assert look(handle, asked) == asked & WRITABLE
        peer.sendall(b"x")
        assert look(handle, asked) == asked & (READABLE | WRITABLE)
        monkeypatch.undo()
        del handle


def test_a_handle_is_never_blocking(namespace: Namespace) -> None:
    with namespace.pair() as (client, accepted):
        for stream in (client, accepted):
            assert Worker(lambda stream=stream: stream.read(1)).outcome() is None  # type: ignore[misc]


def test_a_socket_that_could_not_be_made_leaves_the_number_to_its_owner() -> None:
    number = os.open("/", os.O_RDONLY)
    try:
        with pytest.raises(OSError):
            make_handle(-1, fileno=number)
        os.fstat(number)
    finally:
        os.close(number)


@contextlib.contextmanager
def not_one_descriptor_left() -> Iterator[None]:
    """As in a process that has reached its limit.  The limit goes down to what is open: nothing is plugged for long."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Not lower: dup2 refuses a number above the limit, also for closing a socket that has it.
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 1, hard))
    plugs: list[int] = []
    try:
        plugs += plug_holes()
        yield
    finally:
        for plug in plugs:
            os.close(plug)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_close_works_with_not_one_descriptor_left() -> None:
    one, other = bbipc.local_stream_pair()
    with other:
        number = one.fileno()
        with not_one_descriptor_left():
            one.close()
            assert_free(number)
        assert other.remote_disconnected()


def test_a_lack_of_descriptors_is_an_error_and_no_noise(short_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """An unraisable error of a half-made handle would fail this test, too: warnings are errors here."""
    with bbipc.make_local_server(short_dir / "s") as server:
        for call in (
            lambda: bbipc.make_ipv4_tcp_server(bbipc.IPV4_LOOPBACK, 0),
            lambda: bbipc.make_ipv6_tcp_server(bbipc.IPV6_LOOPBACK, 0),
            lambda: bbipc.connect_to_ipv4_tcp_server(bbipc.IPV4_LOOPBACK, 1),
            lambda: bbipc.connect_to_ipv6_tcp_server(bbipc.IPV6_LOOPBACK, 1),
            lambda: bbipc.make_local_server(short_dir / "another"),
            lambda: bbipc.connect_to_local_server(server.path),
            bbipc.local_stream_pair,
            bbipc.make_poller,
        ):
            with not_one_descriptor_left(), pytest.raises(bbipc.SocketError) as caught:
                call()
            assert caught.value.errno == errno.EMFILE
            del caught
    assert capfd.readouterr() == ("", "")


def plug_holes() -> list[int]:
    """Open descriptors until there is none left."""
    plugs = []
    with contextlib.suppress(OSError):
        while True:
            plugs.append(os.dup(0))
    with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
        os.dup(0)
    return plugs
