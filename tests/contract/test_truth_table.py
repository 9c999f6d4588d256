"""The truth table, row by row: the same in every namespace, through predicates, one-shot waits and every poller."""

from __future__ import annotations

import functools
import socket
import time
from collections.abc import Callable
from unittest import mock

import pytest

import bbipc
from bbipc import SocketEvent
from bbipc.polling import wait
from tests.contract.states import EVERY, NONE, TABLE, State, half_closed_and_full, server_with_caller
from tests.support.makers import PATIENCE, Namespace, Worker, sleeping, wait_until_asleep

ROWS = pytest.mark.parametrize(("state", "expected"), TABLE.values(), ids=TABLE.keys())
SINGLE = list(EVERY)


@ROWS
def test_predicates(namespace: Namespace, state: State, expected: SocketEvent) -> None:
    with state(namespace) as stream:
        told = NONE
        for event in SINGLE:
            assert event.name is not None
            if getattr(stream, event.name.lower())():
                told |= event
        assert told == expected


@ROWS
def test_predicates_again_after_the_error_was_asked_for(
    namespace: Namespace, state: State, expected: SocketEvent
) -> None:
    with state(namespace) as stream:
        first = stream.connection_error()
        assert stream.connection_error() is first
        assert bbipc.poll_socket(stream, EVERY, 0) == expected


@ROWS
def test_poll_socket(namespace: Namespace, state: State, expected: SocketEvent) -> None:
    with state(namespace) as stream:
        assert bbipc.poll_socket(stream, EVERY, 0) == expected
        for event in SINGLE:
            assert bbipc.poll_socket(stream, event, 0) == event & expected


@ROWS
def test_poll_sockets(namespace: Namespace, state: State, expected: SocketEvent) -> None:
    with state(namespace) as stream:
        rows = [(stream, event) for event in SINGLE]
        assert bbipc.poll_sockets(rows, 0) == [event & expected for event in SINGLE]


@ROWS
def test_poller(namespace: Namespace, state: State, expected: SocketEvent, backend: str) -> None:
    with state(namespace) as stream, bbipc.make_poller(backend) as poller:
        poller.monitor_socket(stream, EVERY)
        for _ in range(3):  # level-triggered: what is true stays true
            assert poller.wait_for_events(0) == ([(stream, expected)] if expected else [])


@ROWS
def test_poller_asked_for_one_event(namespace: Namespace, state: State, expected: SocketEvent, backend: str) -> None:
    with state(namespace) as stream, bbipc.make_poller(backend) as poller:
        poller.monitor_socket(stream, SocketEvent(0))
        for event in SINGLE:
            poller.set_monitored_events(stream, event)
            found = event & expected
            for _ in range(2):
                assert poller.wait_for_events(PATIENCE if found else 0) == ([(stream, found)] if found else [])


@ROWS
def test_a_silent_wait_does_not_spin(namespace: Namespace, state: State, expected: SocketEvent, backend: str) -> None:
    """Asked for what is not true now, a poller sleeps: less than 5 % of the wait is spent computing."""
    absent = EVERY & ~expected
    with state(namespace) as stream, bbipc.make_poller(backend) as poller:
        poller.monitor_socket(stream, absent)
        assert poller.wait_for_events(0) == []
        seconds = 0.2
        with sleeping(seconds * 0.05):
            wall = time.monotonic()
            assert poller.wait_for_events(seconds) == []
            assert time.monotonic() - wall >= seconds * 0.99


ROOM = SocketEvent.ROOM_TO_WRITE
#: room alone, and together with what a peer that has ended leaves no hope of
ROOM_AND_MORE = pytest.mark.parametrize(
    "wanted",
    [ROOM, ROOM | SocketEvent.DATA_AVAILABLE, ROOM | SocketEvent.READY_TO_WRITE | SocketEvent.CONNECTION_SUCCEEDED],
    ids=["alone", "or data", "or up"],
)


def let_read(peer: socket.socket, waiter: Worker) -> None:
    """The peer reads until *waiter* is woken."""
    peer.setblocking(False)
    while waiter.is_alive():
        try:
            peer.recv(1 << 20)
        except BlockingIOError:
            waiter.join(0.001)


@ROOM_AND_MORE
@pytest.mark.parametrize("end", ["reads", "closes"])
def test_room_is_told_when_a_peer_that_has_ended_reads_or_closes(
    namespace: Namespace, backend: str, wanted: SocketEvent, end: str
) -> None:
    with half_closed_and_full(namespace) as (stream, peer), bbipc.make_poller(backend) as poller:
        poller.monitor_socket(stream, wanted)
        assert poller.wait_for_events(0) == []
        waiter = Worker(lambda: poller.wait_for_events(PATIENCE))
        wait_until_asleep(waiter)
        if end == "reads":
            let_read(peer, waiter)
        else:
            peer.close()
        assert waiter.outcome() == [(stream, ROOM)]
        for _ in range(3):
            assert poller.wait_for_events(PATIENCE) == [(stream, ROOM)]
        assert stream.room_to_write()
        if end == "reads":
            assert stream.write(b"room") == 4
        else:
            with pytest.raises(bbipc.RemoteDisconnectedError):
                stream.write(b"late")


@ROOM_AND_MORE
@pytest.mark.parametrize("end", ["reads", "closes"])
def test_a_wait_of_one_call_for_room_is_ended_by_a_peer_that_has_ended(
    namespace: Namespace, wanted: SocketEvent, end: str
) -> None:
    waits: list[Callable[[bbipc.StreamSocket], object]] = [
        lambda stream: bbipc.poll_socket(stream, wanted, PATIENCE),
        lambda stream: bbipc.poll_sockets([(stream, wanted), (stream, SocketEvent.DATA_AVAILABLE)], PATIENCE)[0],
    ]
    for call in waits:
        with half_closed_and_full(namespace) as (stream, peer):
            waiter = Worker(functools.partial(call, stream))
            wait_until_asleep(waiter)
            if end == "reads":
                let_read(peer, waiter)
            else:
                peer.close()
            assert waiter.outcome() == ROOM


@ROOM_AND_MORE
def test_a_wait_for_room_neither_spins_nor_ticks(namespace: Namespace, backend: str, wanted: SocketEvent) -> None:
    """The peer has ended, our buffer is full: one question to the kernel, and it has nothing to say."""
    with half_closed_and_full(namespace) as (stream, _), bbipc.make_poller(backend) as poller:
        poller.monitor_socket(stream, wanted)
        assert poller.wait_for_events(0) == []
        asked: list[float | None] = []
        original = poller._kernel_wait

        def ask(seconds: float | None) -> list[tuple[int, int]]:
            asked.append(seconds)
            return original(seconds)

        with mock.patch.object(poller, "_kernel_wait", ask):
            with sleeping(0.01):
                assert poller.wait_for_events(0.2) == []
        assert 1 <= len(asked) <= 2, asked


@ROOM_AND_MORE
def test_a_wait_of_one_call_for_room_neither_spins_nor_ticks(namespace: Namespace, wanted: SocketEvent) -> None:
    with half_closed_and_full(namespace) as (stream, _):
        with mock.patch.object(wait, "_kernel_wait", wraps=wait._kernel_wait) as kernel_wait:
            with sleeping(0.01):
                assert bbipc.poll_socket(stream, wanted, 0.2) == NONE
        assert kernel_wait.call_count <= 3


def test_a_server_with_a_caller(namespace: Namespace, backend: str) -> None:
    wanted = SocketEvent.CONNECTION_AVAILABLE
    with server_with_caller(namespace) as server, bbipc.make_poller(backend) as poller:
        assert server.connection_available()
        assert bbipc.poll_socket(server, wanted, 0) == wanted
        assert bbipc.poll_sockets([(server, wanted)], 0) == [wanted]
        poller.monitor_socket(server, wanted)
        assert poller.wait_for_events(0) == [(server, wanted)]
        server.accept_connection().close()
        assert not server.connection_available()
        assert bbipc.poll_socket(server, wanted, 0) == NONE
        assert poller.wait_for_events(0) == []
        with pytest.raises(bbipc.NoConnectionAvailableError):
            server.accept_connection()
