"""poll_socket and poll_sockets: arguments, hopeless waits, waits that are woken and go on."""

from __future__ import annotations

import math

import pytest

import bbipc
from bbipc import SocketEvent
from tests.contract.states import closed_all_read, crowd, refused
from tests.support.makers import PATIENCE, Namespace, Worker, accept, fill, sleeping, wait_until_asleep

DATA = SocketEvent.DATA_AVAILABLE
NONE = SocketEvent(0)


def test_arguments_that_make_no_sense() -> None:
    one, other = bbipc.local_stream_pair()
    with one, other:
        for timeout in (-1, -1e-9, math.nan, -math.inf):
            with pytest.raises(ValueError):
                bbipc.poll_socket(one, DATA, timeout)
            with pytest.raises(ValueError):
                bbipc.poll_sockets([(one, DATA)], timeout)
        for events in (NONE, SocketEvent.CONNECTION_AVAILABLE, DATA | SocketEvent.CONNECTION_AVAILABLE):
            with pytest.raises(ValueError):
                bbipc.poll_socket(one, events, 0)
            with pytest.raises(ValueError):
                bbipc.poll_sockets([(other, DATA), (one, events)], 0)
        for no_events in (16, None, "DATA_AVAILABLE"):
            with pytest.raises(TypeError):
                bbipc.poll_socket(one, no_events, 0)  # type: ignore[arg-type]
        for no_socket in (one.fileno(), None, object()):
            with pytest.raises(TypeError):
                bbipc.poll_socket(no_socket, DATA, 0)  # type: ignore[arg-type]
        for no_number in ("1", True, b"", 1j):
            with pytest.raises(TypeError):
                bbipc.poll_socket(one, DATA, no_number)  # type: ignore[arg-type]


def test_no_rows_is_no_wait() -> None:
    assert bbipc.poll_sockets([], None) == []


def test_a_hopeless_wait_ends_at_once(namespace: Namespace) -> None:
    with closed_all_read(namespace) as gone, refused(namespace) as failed:
        assert bbipc.poll_socket(gone, DATA, None) == NONE
        assert bbipc.poll_socket(gone, SocketEvent.READY_TO_WRITE | SocketEvent.CONNECTION_SUCCEEDED, None) == NONE
        assert bbipc.poll_socket(failed, DATA | SocketEvent.REMOTE_DISCONNECTED, None) == NONE
        assert bbipc.poll_sockets([(gone, DATA), (failed, DATA)], None) == [NONE, NONE]


def test_a_wait_becomes_hopeless_while_it_lasts(namespace: Namespace) -> None:
    with namespace.pair() as (client, accepted):
        waiter = Worker(lambda: bbipc.poll_socket(client, DATA, None))
        wait_until_asleep(waiter)
        accepted.shutdown_write()
        assert waiter.outcome() == NONE


def test_one_hopeless_row_does_not_end_the_wait_of_the_others(namespace: Namespace) -> None:
    with closed_all_read(namespace) as gone, namespace.pair() as (client, accepted):
        waiter = Worker(lambda: bbipc.poll_sockets([(gone, DATA), (client, DATA)], None))
        wait_until_asleep(waiter)
        accepted.write(b"x")
        assert waiter.outcome() == [NONE, DATA]


def test_several_rows_of_one_socket_are_answered_one_by_one(namespace: Namespace) -> None:
    ready = SocketEvent.READY_TO_WRITE
    with namespace.pair() as (client, accepted):
        fill(client)
        rows = [(client, DATA), (client, ready), (accepted, ready), (client, DATA | ready)]
        assert bbipc.poll_sockets(rows, 0) == [NONE, NONE, ready, NONE]
        waiter = Worker(lambda: bbipc.poll_sockets([rows[0], rows[1], rows[3]], None))
        wait_until_asleep(waiter)
        accepted.write(b"x")
        assert waiter.outcome() == [DATA, NONE, DATA]


def test_a_wait_that_was_woken_and_goes_on_does_not_spin(namespace: Namespace) -> None:
    """Another thread shuts the stream's sending side down: the wait looks again, and sleeps on (once it span)."""
    with namespace.pair() as (client, _):

        def wait() -> SocketEvent:
            with sleeping(0.02):
                return bbipc.poll_socket(client, DATA, 0.3)

        waiter = Worker(wait)
        wait_until_asleep(waiter)
        client.shutdown_write()
        assert waiter.outcome() == NONE


def test_a_shutdown_ends_a_wait_for_room(namespace: Namespace) -> None:
    with namespace.pair() as (client, _):
        fill(client)
        waiter = Worker(lambda: bbipc.poll_socket(client, SocketEvent.READY_TO_WRITE, None))
        wait_until_asleep(waiter)
        client.shutdown_write()
        assert waiter.outcome() == NONE


def test_a_waiting_connect_is_seen_within_the_callers_timeout(namespace: Namespace) -> None:
    with crowd(namespace) as (stream, server):
        assert bbipc.poll_socket(stream, SocketEvent.DETERMINED, 0.05) == NONE
        waiter = Worker(lambda: bbipc.poll_socket(stream, SocketEvent.CONNECTION_SUCCEEDED, PATIENCE))
        wait_until_asleep(waiter)
        while waiter.is_alive():
            if bbipc.poll_socket(server, SocketEvent.CONNECTION_AVAILABLE, 0.05):
                accept(server).close()
        assert waiter.outcome() in (SocketEvent.CONNECTION_SUCCEEDED, NONE)
        assert stream.determined()


def test_a_closed_row_is_named(namespace: Namespace) -> None:
    with namespace.pair() as (client, accepted):
        accepted.close()
        with pytest.raises(bbipc.SocketClosedError) as caught:
            bbipc.poll_sockets([(client, DATA), (accepted, DATA)], 1)
        assert caught.value.socket is accepted
        assert client._watchers == ()
