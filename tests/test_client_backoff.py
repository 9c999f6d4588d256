"""MessageClient: how long it waits between connections that come to nothing; on a clock that only its waits move."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest

import bbipc
from bbipc import RemoteDisconnectedError
from pool import MessageClient, connecting, replies
from pool.calls import Waiter
from pool.connecting import FIRST_PAUSE, LONGEST_PAUSE
from pool.turn import Turn
from tests.support.messaging import Peer, ScriptedServer
from tests.support.serving import until

#: what is waited before the third connection, the fourth, and so on
PAUSES = [FIRST_PAUSE * 2**number for number in range(5)] + [LONGEST_PAUSE] * 3


class Clock:
    """Goes on when somebody waits between two connections, and notes how long he does."""

    def __init__(self) -> None:
        self.now = time.monotonic()
        self.pauses: list[float] = []

    def __call__(self) -> float:
        return self.now

    def pause(self, waiter: Waiter, until: float, go_on: Callable[[], bool]) -> None:
        assert go_on()
        self.pauses.append(until - self.now)
        self.now = until


@pytest.fixture(name="clock")
def a_clock() -> Iterator[Clock]:
    clock = Clock()
    with (
        mock.patch.object(connecting, "monotonic", clock),
        mock.patch.object(replies, "monotonic", clock),
        mock.patch.object(Turn, "pause", staticmethod(clock.pause)),
    ):
        yield clock


def call_in_vain(client: MessageClient, clock: Clock, pauses: int) -> None:
    """Until so many pauses were made."""
    for _ in range(pauses + 2):
        if len(clock.pauses) >= pauses:
            break
        with pytest.raises(OSError):  # whichever: it is lost, or not made
            client.send(b"x")


def test_the_pauses_double_and_do_not_grow_past_a_second() -> None:
    assert pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0]) == PAUSES


def test_a_server_that_hangs_up_at_once_is_connected_to_more_and_more_seldom(short_dir: Path, clock: Clock) -> None:
    with ScriptedServer(lambda peer: None, short_dir / "s") as server, MessageClient(short_dir / "s") as client:
        call_in_vain(client, clock, len(PAUSES))
        assert clock.pauses[: len(PAUSES)] == pytest.approx(PAUSES)
        assert client.stats().connections == len(clock.pauses) + 2
        until(lambda: server.connections == len(clock.pauses) + 2)


@pytest.mark.parametrize("kind", ["local", "ipv4"])
def test_where_nobody_listens_it_is_tried_more_and_more_seldom(short_dir: Path, clock: Clock, kind: str) -> None:
    """A local connect fails at once, that of TCP later, behind the first request."""
    with bbipc.make_ipv4_tcp_server(bbipc.IPV4_LOOPBACK, 0) as gone:
        nobody = (gone.host_address, gone.port)
    with MessageClient(short_dir / "s" if kind == "local" else nobody) as client:
        call_in_vain(client, clock, len(PAUSES))
        assert clock.pauses == pytest.approx(PAUSES)


def test_an_answer_makes_it_begin_anew(short_dir: Path, clock: Clock) -> None:
    """The fifth connection is the one that works, once."""

    def seldom(peer: Peer) -> None:
        if peer.number == 5:
            request = peer.receive()
            assert request is not None
            peer.answer(request)

    with ScriptedServer(seldom, short_dir / "s") as server, MessageClient(short_dir / "s") as client:
        for _ in range(5):
            try:
                assert client.send(b"x") == b"X"
                break
            except RemoteDisconnectedError:
                pass
        assert clock.pauses == pytest.approx(PAUSES[:3])
        until(lambda: server.ended == 5)
        call_in_vain(client, clock, 6)
        assert clock.pauses[3:6] == pytest.approx(PAUSES[:3])


def test_a_peer_that_takes_one_message_a_connection_and_answers_none_is_not_in_vain(
    short_dir: Path, clock: Clock
) -> None:
    """Each connection ends without an answer, and did what it was for; nor does that excuse those that did not."""

    def take_one(peer: Peer) -> None:
        request = peer.receive()
        if request is not None and request.payload == b"asked":
            peer.answer(request)

    with ScriptedServer(take_one, short_dir / "s") as server, MessageClient(short_dir / "s") as client:
        for number in range(1, 9):
            client.send(b"told", no_response=True)
            until(lambda: server.ended == number)  # noqa: B023
        assert client.send(b"asked") == b"ASKED"
        assert clock.pauses == []
        assert server.connections == 9


def test_a_time_that_is_up_ends_a_pause(short_dir: Path, clock: Clock) -> None:
    with MessageClient(short_dir / "s") as client:
        call_in_vain(client, clock, 4)
        with mock.patch.object(clock, "now", clock.now):
            begun = clock.now
            with pytest.raises(TimeoutError, match="no connection in time"):
                client._connections.usable(1, begun + 0.25)
            assert clock.pauses[4:] == [0.25]
        with pytest.raises(TimeoutError, match="no connection in time"):
            client.submit(b"x", timeout=0.0)  # itself, and not its future
