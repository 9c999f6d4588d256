"""MessageClient: what a reader of its source found; each of these failed, or hung, on the code before."""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import bbipc
from bbipc import QueueFullError, RemoteDisconnectedError
from bbipc.messages import Message
from pool import MessageClient
from pool.calls import Call
from pool.conversation import Conversation
from pool.parties import Monitor
from pool.polling_loop import PollingLoop
from tests.support.makers import PATIENCE, Worker
from tests.support.messaging import Peer, ScriptedServer, echo, echo_in_order, echo_once, requests_of
from tests.support.serving import until


@pytest.fixture(name="path")
def a_path(short_dir: Path) -> Path:
    return short_dir / "s"


@pytest.fixture(name="full")
def a_server_that_accepts_nobody(path: Path) -> Iterator[Path]:
    """Its backlog is full, so a connect is never decided."""
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as first:
        server.bind(str(path))
        server.listen(0)
        first.connect(str(path))
        yield path


def mute(peer: Peer) -> None:
    """Answers nothing."""
    for _ in requests_of(peer):
        pass


def test_callbacks_are_called_when_another_thread_closes_the_client(path: Path) -> None:
    for _ in range(20):
        with ScriptedServer(mute, path):
            client = MessageClient(path)
            called = threading.Event()
            future = client.submit(b"x")
            future.add_done_callback(lambda _, called=called: called.set())  # type: ignore[misc]
            client.close()
            assert called.wait(PATIENCE)
        path.unlink()


def test_a_timeout_ends_the_wait_for_a_connect_that_is_not_decided(full: Path) -> None:
    with MessageClient(full) as client:
        future = client.submit(b"x", timeout=0.1)
        with pytest.raises(TimeoutError):
            future.result()


def test_a_cancel_ends_the_wait_for_a_connect_that_is_not_decided(full: Path) -> None:
    with MessageClient(full) as client:
        future = client.submit(b"x")
        waiting = Worker(future.result)
        until(lambda: bool(future._sleepers) or future.done())  # type: ignore[attr-defined]
        begin = time.monotonic()
        assert future.cancel()
        with pytest.raises(CancelledError):
            waiting.outcome()
        assert time.monotonic() - begin < PATIENCE / 2


def test_connections_of_their_own_end_when_their_calls_are_given_up(path: Path) -> None:
    """The peer takes one message a connection; from the third connection on it answers nothing."""

    def once_then_mute(peer: Peer) -> None:
        if peer.number <= 2:
            echo_once(peer)
        else:
            mute(peer)

    with ScriptedServer(once_then_mute, path), MessageClient(path, max_in_flight=2) as client:
        assert client.send(b"a") == b"A"
        assert client.send(b"b") == b"B"
        for _ in range(4):
            with pytest.raises(TimeoutError):
                client.send(b"c", timeout=0.01)
        assert not client._connections.standing
        futures = [client.submit(b"d"), client.submit(b"e")]
        before = client.stats().connections
        with pytest.raises(QueueFullError):
            client.submit(b"f", timeout=0.05)
        assert client.stats().connections == before  # nothing is connected to wait for room
        for future in futures:
            assert future.cancel()
        until(lambda: not client._connections.standing)


def test_the_answer_to_what_wants_none_is_nobody_elses(path: Path) -> None:
    """A peer of the original's kind answers whatever comes, and late."""
    told = threading.Event()

    def answers_all(peer: Peer) -> None:
        for request in requests_of(peer):
            if request.payload == b"told":
                assert told.wait(PATIENCE)
            peer.answer_plainly(request)

    with ScriptedServer(answers_all, path), MessageClient(path, timeout=PATIENCE) as client:
        client.send(b"told", no_response=True)
        asked = Worker(lambda: client.send(b"asked"))
        until(lambda: client.stats().in_flight == 1 or not asked.is_alive())
        told.set()
        assert asked.outcome() == b"ASKED"


def test_timers_of_deadlines_do_not_gather(path: Path) -> None:
    with ScriptedServer(mute, path), MessageClient(path) as client:
        far = client.submit(b"x", timeout=3600)
        for _ in range(20):
            with pytest.raises(TimeoutError):
                client.submit(b"y", timeout=0.001).result()
        timers = client._lender.get()._timers
        until(lambda: len(timers) <= 3)
        assert far.cancel()


def test_room_is_told_of_when_a_call_is_over(path: Path) -> None:
    """Who submits lies down when the reply to the only call allowed was read, and that call is not off the table."""
    take_in, submitting = Conversation._take_in, list[Worker]()

    def slowly(conversation: Conversation, call: Call | None = None, kept: deque[bytes] | None = None) -> bool:
        told = take_in(conversation, call, kept)
        if call is not None and call.over and not submitting:
            submitting.append(Worker(lambda: client.submit(b"c").result(PATIENCE)))
            until(lambda: bool(conversation._sleepers))
        return told

    with ScriptedServer(echo, path), MessageClient(path, max_in_flight=1, timeout=PATIENCE) as client:
        assert client.send(b"a") == b"A"  # the peer is known
        with mock.patch.object(Conversation, "_take_in", slowly):
            assert client.send(b"b") == b"B"
            assert submitting[0].outcome() == b"C"


def test_an_end_behind_a_late_reply_is_seen_by_the_next_call() -> None:
    """Over TCP, where a write to a peer that has closed is taken all the same."""
    go, gone = threading.Event(), threading.Event()

    def late_then_gone(peer: Peer) -> None:
        if peer.number > 1:
            return echo(peer)
        request = peer.receive()
        assert isinstance(request, Message)
        peer.answer(request)
        late = peer.receive()
        assert isinstance(late, Message)
        assert go.wait(PATIENCE)
        peer.answer(late)
        peer.hang_up()
        gone.set()
        return None

    with (
        bbipc.make_ipv4_tcp_server(bbipc.IPV4_LOOPBACK, 0) as server,
        ScriptedServer(late_then_gone, server),
        MessageClient((server.host_address, server.port), timeout=PATIENCE) as client,
    ):
        assert client.send(b"a") == b"A"
        with pytest.raises(TimeoutError):
            client.send(b"b", timeout=0.01)
        go.set()
        assert gone.wait(PATIENCE)
        conversation = client._connections.current
        assert conversation is not None
        conversation.used = 0.0  # it has been idle
        assert client.send(b"c") == b"C"
        assert client.stats().connections == 2


def test_a_peer_that_answers_in_order_is_told_and_asked_in_turn(path: Path) -> None:
    with ScriptedServer(echo_in_order, path), MessageClient(path, timeout=PATIENCE) as client:
        for _ in range(10):
            client.send(b"told", no_response=True)
            assert client.send(b"asked") == b"ASKED"


def test_a_call_goes_elsewhere_though_nobody_has_read_of_the_end_yet(path: Path) -> None:
    """The thread that reads has no processor just then.  Calls that left nothing failed, each within microseconds: some
    260 of 360 on a loaded machine.
    """
    hung_up = threading.Event()

    def answer_one(peer: Peer) -> None:
        for count, request in enumerate(requests_of(peer)):
            if count and peer.number == 1:
                peer.hang_up()
                hung_up.set()
                return
            peer.answer(request)

    await_reply, reads, go = Conversation._await_reply, threading.Event(), threading.Event()

    def read_late(conversation: Conversation, call: Call, deadline: float | None) -> None:
        if isinstance(threading.current_thread(), Worker):
            assert conversation._role.setdefault(0, call) is call
            reads.set()
            assert go.wait(PATIENCE)
        await_reply(conversation, call, deadline)

    with ScriptedServer(answer_one, path), MessageClient(path, timeout=PATIENCE) as client:
        assert client.send(b"x") == b"X"
        with mock.patch.object(Conversation, "_await_reply", read_late):
            late = Worker(lambda: client.send(b"y"))
            assert reads.wait(PATIENCE)
            assert hung_up.wait(PATIENCE)
            replies = [client.send(b"z"), client.submit(b"z").result(PATIENCE)]
            go.set()
            with pytest.raises(RemoteDisconnectedError):
                late.outcome()
    assert replies == [b"Z", b"Z"]


def test_threads_that_come_at_once_make_the_poller_thread_read_once(path: Path) -> None:
    """A second monitor was nobody's, and so never paused: where three threads and more shared a client, its poller
    thread spun beside them for good, and calls were made at a fifth of their pace.
    """
    both = threading.Barrier(2)
    monitor = PollingLoop.monitor

    def late(loop: PollingLoop, *args: Any, **kwargs: Any) -> Monitor:
        both.wait(PATIENCE)
        return monitor(loop, *args, **kwargs)

    with ScriptedServer(echo, path), MessageClient(path, timeout=PATIENCE) as client:
        assert client.send(b"x") == b"X"
        conversation = client._connections.current
        assert conversation is not None
        with mock.patch.object(PollingLoop, "monitor", late):
            for worker in [Worker(conversation._arm), Worker(conversation._arm)]:
                worker.outcome()
        loop = client._lender.get()
        parties = loop._interests.parties_of(conversation._stream)
        assert parties == (conversation._monitor,)
        assert client.submit(b"y").result(PATIENCE) == b"Y"
