"""The truth table, row by row: the same in every namespace, through predicates, one-shot waits and every poller."""

from __future__ import annotations

import time

import pytest

import bbipc
from bbipc import SocketEvent
from tests.contract.states import EVERY, NONE, TABLE, State, server_with_caller
from tests.support.makers import PATIENCE, Namespace

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
        wall, cpu = time.monotonic(), time.thread_time()
        assert poller.wait_for_events(seconds) == []
        assert time.monotonic() - wall >= seconds * 0.99
        assert time.thread_time() - cpu < seconds * 0.05


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
