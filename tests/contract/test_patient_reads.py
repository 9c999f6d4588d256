"""Reads that wait in the kernel: what ends them, and that nothing else on such a stream waits."""

from __future__ import annotations

import signal
import time
from collections import deque

import pytest

import bbipc
from bbipc import RemoteDisconnectedError, SocketClosedError
from bbipc.sockets.stream import CAN_WAIT
from tests.support.alarm import alarms
from tests.support.makers import Namespace, Worker, fill

pytestmark = pytest.mark.skipif(not CAN_WAIT, reason="reads do not wait on this system")


LONG = 0.999999  # seconds


def reader(stream: bbipc.StreamSocket, seconds: float = LONG) -> Worker:
    stream._let_reads_wait(seconds)
    return Worker(lambda: stream._read_patiently(deque(), 100))


def test_it_waits_for_what_comes(namespace: Namespace) -> None:
    with namespace.pair() as (client, accepted):
        kept: deque[bytes] = deque()
        client._let_reads_wait(LONG)
        worker = Worker(lambda: client._read_patiently(kept, 100))
        worker.join(0.02)
        assert worker.is_alive()
        accepted.write(b"here")
        assert worker.outcome() == b"here"
        assert list(kept) == [b"here"]


def test_it_waits_so_long(namespace: Namespace) -> None:
    with namespace.pair() as (client, _):
        for seconds in (0.05, 0.005):
            started = time.monotonic()
            assert reader(client, seconds).outcome() is None
            assert seconds <= time.monotonic() - started < seconds + 1


def test_a_close_in_another_thread_ends_it(namespace: Namespace) -> None:
    """100 rounds, at whatever moment: before the read, in it, or between."""
    for round_ in range(100):
        with namespace.pair() as (client, _):
            worker = reader(client)
            worker.join(0.0001 * (round_ % 10))
            client.close()
            with pytest.raises(SocketClosedError):
                worker.outcome()


def test_the_peers_end_and_a_reset_end_it(namespace: Namespace) -> None:
    with namespace.pair() as (client, accepted):
        worker = reader(client)
        accepted.shutdown_write()
        assert worker.outcome() == b""
    with namespace.stream_and_peer() as (stream, peer):
        worker = reader(stream)
        worker.join(0.01)
        namespace.reset(stream, peer)
        with pytest.raises(RemoteDisconnectedError):
            worker.outcome()


def test_nothing_else_waits_there(namespace: Namespace) -> None:
    """Each read would take a second, and each write would hang."""
    with namespace.pair() as (client, accepted):
        client._let_reads_wait(LONG)
        started = time.monotonic()
        assert client.read() is None
        assert client.read(peek=True) is None
        assert client.read_into(bytearray(4)) is None
        assert client.read_into(bytearray(4), peek=True) is None
        fill(client)
        assert client.write(bytes(1 << 22)) == 0
        assert client.write_vector([bytes(1 << 22)] * 2) == 0
        if isinstance(client, bbipc.LocalStream):
            assert client.send_descriptors([0]) == 0
            assert client.receive_descriptors(1) is None
        assert time.monotonic() - started < LONG / 2
        assert not client.data_available()
        assert not accepted.closed


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no such timer")
def test_a_signal_that_raises_ends_it_and_takes_nothing(namespace: Namespace) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    kept: deque[bytes] = deque()
    with namespace.pair() as (client, accepted):
        client._let_reads_wait(LONG)
        with pytest.raises(KeyboardInterrupt), alarms(interrupt, 0.02):
            client._read_patiently(kept, 100)
        assert not kept
        accepted.write(b"x")
        assert client._read_patiently(kept, 100) == b"x"


def test_a_closed_stream_lets_nothing_wait(namespace: Namespace) -> None:
    with namespace.pair() as (client, _):
        client.close()
        with pytest.raises(SocketClosedError):
            client._let_reads_wait(LONG)
        with pytest.raises(SocketClosedError):
            client._read_patiently(deque(), 1)
