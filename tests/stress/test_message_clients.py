"""Many threads on one client: every reply reaches its call or nobody (HAZARDS 45).

The full size is run by hand: ``python -m tests.stress.late_replies`` (20,000 calls).
"""

from __future__ import annotations

import random
import threading
from concurrent.futures import wait
from functools import partial
from pathlib import Path
from unittest import mock

import pytest

from bbipc import RemoteDisconnectedError, SocketClosedError
from pool import MessageClient, connecting
from tests.stress.close_race import switch_interval
from tests.stress.late_replies import LateReplies, planted
from tests.support.makers import PATIENCE, Worker
from tests.support.messaging import Peer, ScriptedServer, echo, echo_once, requests_of


@pytest.mark.parametrize("interval", [1e-6, 5e-3], ids=["1e-6", "default"])
def test_no_reply_reaches_another_call(short_dir: Path, interval: float) -> None:
    """1,600 calls of 8 threads, a fifth cancelled, a fifth timed out, tags wrapping at 2**32."""
    race = LateReplies()
    with switch_interval(interval):
        race.run(1600, short_dir)
    assert +race.faults == {}
    assert sum(race.outcomes.values()) == 1600
    assert race.outcomes["timed out"] > 200
    assert race.outcomes["cancelled"] > 200
    assert race.late > 200


def test_the_bug_is_found_when_it_is_planted(short_dir: Path) -> None:
    race = LateReplies()
    with planted():
        race.run(400, short_dir)
    assert race.faults["mismatch"] > 0


def test_nobody_is_left_asleep_when_the_connection_dies(short_dir: Path) -> None:
    """6 threads call, the server hangs up behind every 20th request: each call ends, the next one connects."""

    def hang_up_now_and_then(peer: Peer) -> None:
        for count, request in enumerate(requests_of(peer)):
            if count == 20:
                return
            peer.answer(request)

    def call(number: int) -> int:
        lost = 0
        for index in range(60):
            payload = f"{number}.{index}x".encode()
            try:
                reply = client.submit(payload).result(PATIENCE) if index % 3 else client.send(payload, timeout=PATIENCE)
            except RemoteDisconnectedError:
                lost += 1
            else:
                assert reply == payload.upper()
        return lost

    with ScriptedServer(hang_up_now_and_then, short_dir / "s") as server, MessageClient(short_dir / "s") as client:
        workers = [Worker(partial(call, number)) for number in range(6)]
        for worker in workers:
            worker.outcome()
        assert server.connections > 5
        assert client.stats().in_flight == 0


def test_a_close_ends_all_that_wait(short_dir: Path) -> None:
    """20 rounds: 4 threads ask and submit while another one closes."""

    def silent(peer: Peer) -> None:
        for request in requests_of(peer):
            if request.payload != b"wait":
                peer.answer(request)

    def call(client: MessageClient, *, future: bool) -> None:
        while True:
            try:
                if future:
                    client.submit(b"wait").result(PATIENCE)
                else:
                    client.send(b"wait" if random.random() < 0.1 else b"go", timeout=PATIENCE)
            except SocketClosedError:
                return

    with ScriptedServer(silent, short_dir / "s"):
        for _ in range(20):
            client = MessageClient(short_dir / "s")
            client.send(b"go")
            workers = [Worker(partial(call, client, future=number % 2 == 0)) for number in range(4)]
            client.close()
            for worker in workers:
                worker.outcome()


def test_threads_against_a_server_that_takes_one_message_a_connection(short_dir: Path) -> None:
    """As the original; from the first call on."""
    gate = threading.Barrier(6)

    def call(number: int) -> None:
        gate.wait(PATIENCE)
        for index in range(20):
            payload = f"{number}.{index}x".encode()
            assert client.send(payload, timeout=PATIENCE) == payload.upper()

    with (
        mock.patch.object(connecting, "MANNERS", 1.0),  # a busy machine may take its time for the first reply
        ScriptedServer(echo_once, short_dir / "s", one_at_a_time=True),
        MessageClient(short_dir / "s") as client,
    ):
        for worker in [Worker(partial(call, number)) for number in range(6)]:
            worker.outcome()


def test_callbacks_results_and_waits_mixed(short_dir: Path) -> None:
    """4 threads, 100 futures each: every callback is called once."""
    called: list[object] = []

    def call(number: int) -> None:
        chance = random.Random(number)
        for _ in range(20):
            futures = [client.submit(b"x") for _ in range(5)]
            for future in futures:
                if chance.random() < 0.5:
                    future.add_done_callback(called.append)
            if chance.random() < 0.5:
                assert wait(futures, PATIENCE).not_done == set()
            assert [future.result(PATIENCE) for future in futures] == [b"X"] * 5
            for future in futures:
                future.add_done_callback(called.append)

    with ScriptedServer(echo, short_dir / "s"), MessageClient(short_dir / "s") as client, switch_interval(1e-5):
        for worker in [Worker(partial(call, number)) for number in range(4)]:
            worker.outcome()
        # Those that were added before the reply are called on the poller thread.
        client.submit(b"last").result(PATIENCE)
    assert len(called) >= 400
