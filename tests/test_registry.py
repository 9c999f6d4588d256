"""Registrations that fail half-way, and whom a socket tells."""

from __future__ import annotations

import errno
from unittest import mock

import pytest

import bbipc
from bbipc import SocketEvent
from bbipc.polling.epoll import EpollPoller
from tests.support.makers import Namespace

DATA = SocketEvent.DATA_AVAILABLE


def test_a_registration_that_the_kernel_refuses_leaves_nothing_behind(namespace: Namespace) -> None:
    with namespace.pair() as (client, accepted), bbipc.make_poller("epoll") as poller:
        with mock.patch.object(EpollPoller, "_tell_kernel", side_effect=OSError(errno.ENOSPC, "no room")):
            with pytest.raises(OSError, match="no room"):
                poller.monitor_socket(client, DATA)
        assert poller.monitored_sockets() == ()
        assert client._watchers == ()
        poller.monitor_socket(client, DATA)
        accepted.write(b"x")
        assert poller.wait_for_events(5) == [(client, DATA)]


def test_a_socket_knows_its_watchers_only_while_they_watch() -> None:
    one, other = bbipc.local_stream_pair()
    with one, other:
        with bbipc.make_poller() as first, bbipc.make_poller() as second:
            first.monitor_socket(one, DATA)
            second.monitor_socket(one, DATA)
            assert list(one._watchers) == [first, second]
            first.unmonitor_socket(one)
            assert list(one._watchers) == [second]
        assert not one._watchers
        bbipc.poll_socket(one, DATA, 0.001)
        bbipc.poll_sockets([(one, DATA), (other, DATA), (one, DATA)], 0.001)
        assert not one._watchers + other._watchers


def test_an_unmonitored_socket_can_be_monitored_again(backend: str) -> None:
    one, other = bbipc.local_stream_pair()
    with one, other, bbipc.make_poller(backend) as poller:
        other.write(b"x")
        for _ in range(3):
            poller.monitor_socket(one, DATA)
            assert poller.wait_for_events(0) == [(one, DATA)]
            poller.unmonitor_socket(one)
            assert poller.wait_for_events(0) == []


def test_a_socket_is_monitored_by_identity_not_by_number(backend: str) -> None:
    one, other = bbipc.local_stream_pair()
    with other, bbipc.make_poller(backend) as poller:
        poller.monitor_socket(one, DATA)
        number = one.fileno()
        one.close()
        again, peer = bbipc.local_stream_pair()
        with again, peer:
            assert number in {again.fileno(), peer.fileno()}
            for stream in (one, again, peer):
                with pytest.raises(KeyError):
                    poller.monitored_events(stream)
            poller.monitor_socket(again, DATA)
            poller.monitor_socket(peer, DATA)
            assert set(poller.monitored_sockets()) == {again, peer}


def test_a_change_that_the_kernel_refuses_is_undone_and_can_be_made_again() -> None:
    one, other = bbipc.local_stream_pair()
    with one, other, bbipc.make_poller("epoll") as poller:
        poller.monitor_socket(one, SocketEvent(0))
        with mock.patch.object(EpollPoller, "_register", side_effect=OSError(errno.ENOSPC, "no room")):
            with pytest.raises(OSError, match="no room"):
                poller.set_monitored_events(one, DATA)
        assert poller.monitored_events(one) == SocketEvent(0)
        other.write(b"x")
        assert poller.wait_for_events(0) == []
        poller.set_monitored_events(one, DATA)
        assert poller.wait_for_events(0) == [(one, DATA)]


def test_what_is_no_socket_is_a_type_error() -> None:
    with bbipc.make_poller() as poller:
        for call in (poller.unmonitor_socket, poller.monitored_events):
            for wrong in (3, None, "socket"):
                with pytest.raises(TypeError):
                    call(wrong)  # type: ignore[arg-type]
