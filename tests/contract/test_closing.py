"""The closing protocol: the same for every kind of socket, every way of waiting, every poller backend.

Hazards 4, 5, 6, 7 and 9 of the field; the races are in ``tests/stress``.
"""

from __future__ import annotations

import contextlib
import os
import socket as plain
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from unittest import mock

import pytest

import bbipc
from bbipc import SocketEvent
from bbipc.sockets.handle import Handle
from tests.contract.states import connecting
from tests.support.makers import PATIENCE, Namespace, Worker, fill, sleeping, wait_until_asleep

PROMPT = 0.1  # seconds within which a close wakes everybody


@contextlib.contextmanager
def listening(namespace: Namespace) -> Iterator[bbipc.Socket]:
    with namespace.make_server() as server:
        yield server


@contextlib.contextmanager
def connected(namespace: Namespace) -> Iterator[bbipc.Socket]:
    with namespace.pair() as (client, _):
        yield client


@contextlib.contextmanager
def full(namespace: Namespace) -> Iterator[bbipc.Socket]:
    with namespace.pair() as (client, _):
        fill(client)
        yield client


SOCKETS = pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (listening, SocketEvent.CONNECTION_AVAILABLE),
        (connecting, SocketEvent.DETERMINED),
        (connected, SocketEvent.DATA_AVAILABLE),
        (connected, SocketEvent.REMOTE_DISCONNECTED),
        (full, SocketEvent.READY_TO_WRITE),
    ],
    ids=["accept", "connect", "read", "end", "write"],
)
Make = Callable[[Namespace], contextlib.AbstractContextManager[bbipc.Socket]]


@pytest.mark.parametrize("shared", [False, True], ids=["own", "passed on"])
@SOCKETS
def test_a_close_wakes_poll_socket_and_poll_sockets(
    namespace: Namespace, make: Make, wanted: SocketEvent, shared: bool
) -> None:
    with make(namespace) as socket, bbipc.make_local_server(namespace.directory / "idle") as bystander:
        if shared:
            socket._share(1)
        rows = [(bystander, SocketEvent.CONNECTION_AVAILABLE), (socket, wanted)]
        waiters = [
            Worker(lambda: bbipc.poll_socket(socket, wanted, None)),
            Worker(lambda: bbipc.poll_socket(socket, wanted, 60)),
            Worker(lambda: bbipc.poll_sockets(rows, None)),
        ]
        for waiter in waiters:
            wait_until_asleep(waiter)
        began = time.monotonic()
        socket.close()
        for waiter in waiters:
            with pytest.raises(bbipc.SocketClosedError) as caught:
                waiter.outcome()
            assert caught.value.socket is socket
        assert time.monotonic() - began < PROMPT


@SOCKETS
def test_a_close_ends_the_wait_of_a_poller_which_drops_the_socket(
    namespace: Namespace, make: Make, wanted: SocketEvent, backend: str
) -> None:
    with make(namespace) as socket, bbipc.make_poller(backend) as poller:
        poller.monitor_socket(socket, wanted)
        waiter = Worker(lambda: poller.wait_for_events(None))
        wait_until_asleep(waiter)
        began = time.monotonic()
        socket.close()
        assert waiter.outcome() == []
        assert time.monotonic() - began < PROMPT
        assert poller.monitored_sockets() == ()
        with pytest.raises(KeyError):
            poller.unmonitor_socket(socket)
        with pytest.raises(bbipc.SocketClosedError):
            poller.monitor_socket(socket, wanted)
        assert poller.wait_for_events(0) == []


def test_two_hundred_waiters_are_all_awake_within_a_second(namespace: Namespace) -> None:
    """40 sockets with 5 waiters each (HAZARDS 4: 200 waiters; p99 below 100 ms, none left after 1 s)."""
    with contextlib.ExitStack() as stack:
        servers = [namespace.make_server() for _ in range(40)]
        for server in servers:
            stack.callback(server.close)
        woken: list[float] = []

        def wait(server: bbipc.Socket) -> None:
            with pytest.raises(bbipc.SocketClosedError):
                bbipc.poll_socket(server, SocketEvent.CONNECTION_AVAILABLE, None)
            woken.append(time.monotonic())

        waiters = [Worker(partial(wait, server)) for server in servers for _ in range(5)]
        for waiter in waiters:
            wait_until_asleep(waiter)
        began = time.monotonic()
        for server in servers:
            server.close()
        for waiter in waiters:
            waiter.outcome(1)
        assert sorted(woken)[197] - began < 10 * PROMPT  # all 200 run on two cores: a second in all


def test_use_after_close_raises_from_every_method_for_ever(namespace: Namespace) -> None:
    with namespace.make_server() as server, namespace.pair() as (client, accepted):
        calls: list[Callable[[], object]] = [
            client.fileno,
            client.determined,
            client.connection_succeeded,
            client.connection_failed,
            client.connection_error,
            client.data_available,
            client.ready_to_write,
            client.room_to_write,
            client.remote_disconnected,
            client.read,
            client.shutdown_write,
            client.__enter__,
            lambda: client.read_into(bytearray(1)),
            lambda: client.read_into(bytearray()),
            lambda: client.read(0),
            lambda: client.write(b"x"),
            lambda: client.write(b""),
            lambda: client.write_vector([b"x"]),
            lambda: client.write_vector([]),
            lambda: bbipc.poll_socket(client, SocketEvent.DATA_AVAILABLE, 0),
            lambda: bbipc.poll_sockets([(client, SocketEvent.DATA_AVAILABLE)], 0),
            server.fileno,
            server.connection_available,
            server.accept_connection,
            lambda: bbipc.poll_socket(server, SocketEvent.CONNECTION_AVAILABLE, 0),
        ]
        if isinstance(client, bbipc.LocalStream):
            local = client
            calls += [
                local.peer_credentials,
                lambda: local.receive_descriptors(1),
                lambda: local.send_descriptors([accepted]),
                lambda: accepted.send_descriptors([local]) if isinstance(accepted, bbipc.LocalStream) else None,
            ]
        if isinstance(client, bbipc.IPv4TCPStream | bbipc.IPv6TCPStream):
            stream = client
            calls += [lambda: stream.no_delay, lambda: stream.keep_alive, lambda: setattr(stream, "no_delay", True)]
        client.close()
        server.close()
        for _ in range(2):
            for call in calls:
                with pytest.raises(bbipc.SocketClosedError):
                    call()
        assert client.closed
        client.close()
        assert "closed" in repr(client)
        assert "closed" in repr(server)


def test_the_peer_sees_the_end_at_once_while_calls_still_hold_the_handle(namespace: Namespace) -> None:
    with namespace.pair() as (client, accepted):
        held = client._handle
        client.close()
        assert bbipc.poll_socket(accepted, SocketEvent.REMOTE_DISCONNECTED, PATIENCE)
        assert accepted.read() == b""
        with pytest.raises(OSError, match="Bad file descriptor"):
            held.recv(1)


@pytest.mark.parametrize("peek", [False, True])
def test_a_zero_that_stands_for_our_own_close_is_no_end(namespace: Namespace, peek: bool) -> None:
    """1. A read is on its way.  2. Another thread closes, and has shut the connection down.  3. The read gets 0."""
    with namespace.pair() as (client, _):
        on_its_way, shut = threading.Event(), threading.Event()
        recv, dup2 = Handle.recv, os.dup2

        def late_recv(handle: Handle, *args: int) -> bytes:
            on_its_way.set()
            assert shut.wait(PATIENCE)
            return recv(handle, *args)

        def stopped_dup2(source: int, target: int, inheritable: bool = True) -> int:
            shut.set()
            with pytest.raises(bbipc.SocketClosedError):
                reader.outcome()
            return dup2(source, target, inheritable)

        with mock.patch.object(Handle, "recv", late_recv), mock.patch("os.dup2", stopped_dup2):
            reader = Worker(lambda: client.read(10, peek=peek))
            assert on_its_way.wait(PATIENCE)
            client.close()


def test_what_was_written_before_the_close_arrives(namespace: Namespace) -> None:
    with namespace.pair() as (client, accepted):
        count = client.write(b"last words" * 1000)
        client.close()
        received = bytearray()
        while len(received) < count:
            bbipc.poll_socket(accepted, SocketEvent.DATA_AVAILABLE, PATIENCE)
            received += accepted.read() or b""
        assert accepted.read() == b""


def test_a_close_with_a_full_buffer_does_not_block(namespace: Namespace) -> None:
    with namespace.pair() as (client, _):
        fill(client)
        began = time.monotonic()
        client.close()
        assert time.monotonic() - began < 0.5


def test_kept_exceptions_keep_no_numbers(namespace: Namespace) -> None:
    """1,000 closes with the sockets and 2,000 exceptions kept: every number is free again (HAZARDS 6)."""
    kept: list[object] = []
    with namespace.make_server() as server:
        numbers = len(os.listdir("/proc/self/fd"))
        for _ in range(1000):
            client = namespace.connect(server)
            assert bbipc.poll_socket(server, SocketEvent.CONNECTION_AVAILABLE, PATIENCE)
            accepted = server.accept_connection()
            with bbipc.make_poller("poll") as poller:
                poller.monitor_socket(client, SocketEvent.DATA_AVAILABLE)
                with pytest.raises(ValueError) as twice:
                    poller.monitor_socket(client, SocketEvent.DATA_AVAILABLE)
            client.close()
            accepted.close()
            with pytest.raises(bbipc.SocketClosedError) as closed:
                client.read()
            with pytest.raises(bbipc.SocketClosedError) as waited:
                bbipc.poll_socket(accepted, SocketEvent.DATA_AVAILABLE, 1)
            kept += [client, accepted, twice.value, closed.value, waited.value]
        assert len(os.listdir("/proc/self/fd")) == numbers
    assert len(kept) == 5000


def test_an_exception_of_a_waiter_keeps_no_number(namespace: Namespace) -> None:
    with namespace.pair() as (client, _):
        numbers = len(os.listdir("/proc/self/fd"))
        waiter = Worker(lambda: bbipc.poll_socket(client, SocketEvent.DATA_AVAILABLE, None))
        wait_until_asleep(waiter)
        client.close()
        with pytest.raises(bbipc.SocketClosedError) as caught:
            waiter.outcome()
        assert caught.value.__traceback__ is not None
        assert len(os.listdir("/proc/self/fd")) == numbers - 1


def test_opening_and_closing_keeps_the_number_of_descriptors(namespace: Namespace) -> None:
    """2,000 servers, and 2,000 connections of two ends each (HAZARDS 7)."""
    numbers = len(os.listdir("/proc/self/fd"))
    for _ in range(2000):
        with namespace.make_server() as server:
            assert not server.closed
    with namespace.make_server() as server:
        for _ in range(2000):
            client = namespace.connect(server)
            assert bbipc.poll_socket(server, SocketEvent.CONNECTION_AVAILABLE, PATIENCE)
            server.accept_connection().close()
            client.close()
    assert len(os.listdir("/proc/self/fd")) == numbers


def test_a_duplicate_of_the_descriptor_neither_spins_a_poller_nor_keeps_the_connection(
    namespace: Namespace, backend: str
) -> None:
    """HAZARDS 3: with a duplicate alive, a registration that outlived its number would report for ever."""
    with namespace.pair() as (client, accepted), bbipc.make_poller(backend) as poller:
        poller.monitor_socket(client, SocketEvent.DATA_AVAILABLE)
        duplicate = os.dup(client.fileno())
        try:
            client.close()
            accepted.close()
            with sleeping(0.01):
                assert poller.wait_for_events(0.2) == []
        finally:
            os.close(duplicate)


def inheritable() -> set[int]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing's own
            if os.get_inheritable(int(name)):
                found.add(int(name))
    return found


#: what whoever started the tests has left open for every child of his children; looked at before any socket of ours
STRANGERS = inheritable()


def test_descriptors_are_not_inherited(namespace: Namespace, backend: str) -> None:
    """40 children of 4 threads, during churn: each has its three and nothing else (HAZARDS 9)."""
    stop = threading.Event()
    program = "import os; print(*sorted(os.listdir('/proc/self/fd'), key=int))"

    def churn() -> None:
        while not stop.is_set():
            with namespace.pair(), bbipc.make_poller(backend):
                pass

    def spawn() -> list[str]:
        command = [sys.executable, "-S", "-c", program]
        return [
            subprocess.run(command, capture_output=True, text=True, check=True, close_fds=False).stdout
            for _ in range(10)
        ]

    own = {0, 1, 2} | STRANGERS
    listing = next(number for number in range(len(own) + 1) if number not in own)
    expected = " ".join(map(str, sorted(own | {listing}))) + "\n"
    churner = Worker(churn)
    try:
        for spawner in [Worker(spawn) for _ in range(4)]:
            assert set(spawner.outcome(60)) == {expected}  # type: ignore[call-overload]
    finally:
        stop.set()
        churner.outcome()


def test_an_unclosed_socket_warns_and_frees_its_number() -> None:
    numbers = len(os.listdir("/proc/self/fd"))
    one, other = bbipc.local_stream_pair()
    other.close()
    with pytest.warns(ResourceWarning, match="unclosed <LocalStream"):
        del one
    assert len(os.listdir("/proc/self/fd")) == numbers


def test_a_forked_childs_close_harms_nobody(namespace: Namespace, backend: str) -> None:
    with (
        namespace.make_server() as server,
        namespace.pair() as (client, accepted),
        bbipc.make_poller(backend) as poller,
    ):
        poller.monitor_socket(client, SocketEvent.DATA_AVAILABLE)
        reader, writer = plain.socketpair()
        with reader, writer:
            child = os.fork()
            if child == 0:  # report through the pair; nothing of pytest may run here
                outcome = b"?"
                try:
                    outcome = _in_child(server, client, accepted, poller)
                finally:
                    writer.send(outcome)
                    os._exit(0)
            reader.settimeout(PATIENCE)
            assert reader.recv(100) == b"ok"
            assert os.waitpid(child, 0)[1] == 0
        accepted.write(b"alive")
        assert poller.wait_for_events(PATIENCE) == [(client, SocketEvent.DATA_AVAILABLE)]
        assert client.read() == b"alive"
        with namespace.connect(server) as another:
            assert bbipc.poll_socket(another, SocketEvent.CONNECTION_SUCCEEDED, PATIENCE)


def _in_child(
    server: bbipc.Socket, client: bbipc.StreamSocket, accepted: bbipc.StreamSocket, poller: bbipc.Poller
) -> bytes:
    for call in (
        lambda: poller.wait_for_events(0),
        poller.wake,
        poller.monitored_sockets,
        lambda: poller.unmonitor_socket(client),
    ):
        try:
            call()
        except bbipc.PollerClosedError:
            continue
        return b"the parent's poller worked in the child"
    waiter = Worker(lambda: bbipc.poll_socket(accepted, SocketEvent.DATA_AVAILABLE, None))
    wait_until_asleep(waiter)
    for socket in (server, client, accepted):
        socket.close()
    try:
        waiter.outcome()
    except bbipc.SocketClosedError:
        poller.close()
        return b"ok"
    return b"the child's waiter was not woken"
