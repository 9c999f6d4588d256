"""A thread that asks sleeps in the read itself, for a while, where nothing wakes it: what becomes of the others."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from bbipc import SocketClosedError, SocketError
from bbipc.messages import Message
from bbipc.sockets.stream import CAN_WAIT, StreamSocket
from pool import MessageClient, conversation
from pool.conversation import TICK, Conversation
from tests.support.alarm import alarms
from tests.support.makers import PATIENCE, Worker
from tests.support.messaging import Peer, ScriptedServer, echo
from tests.support.serving import until

pytestmark = pytest.mark.skipif(not CAN_WAIT, reason="reads do not wait on this system")
#: more than the kernel takes at once
LARGE = bytes(1 << 20)
#: seconds within which whoever listens has looked around: 100 times what he may take
SOON = 100 * TICK


class Held:
    """A server that holds back what says "wait" until it is let go, and a request behind that.

    *reads*: whether it reads on meanwhile.
    """

    def __init__(self, path: Path, *, reads: bool = True) -> None:
        self.go = threading.Event()
        self.holding = threading.Event()
        self._reads = reads
        self.server = ScriptedServer(self.script, path)

    def script(self, peer: Peer) -> None:
        held: list[Message] = []
        while (request := peer.receive()) is not None:
            if request.payload.startswith(b"wait"):
                held.append(request)
                self.holding.set()
                if not self._reads:
                    assert self.go.wait(PATIENCE)
                continue
            peer.answer(request)
            while held and self.go.is_set():
                peer.answer(held.pop())


@contextlib.contextmanager
def listening(path: Path, *, reads: bool = True) -> Iterator[tuple[Held, MessageClient, Conversation, Worker]]:
    """A thread that waits for an answer, and reads a client's only connection."""
    held = Held(path, reads=reads)
    with held.server, MessageClient(path) as client:
        client.send(b"x")
        current = client._connections.current
        assert current is not None
        worker = Worker(lambda: client.send(b"wait"))
        assert held.holding.wait(PATIENCE)
        until(lambda: bool(current._role))
        yield held, client, current, worker


def test_answers_that_come_soon_need_no_poll(short_dir: Path) -> None:
    with ScriptedServer(echo, short_dir / "s"), MessageClient(short_dir / "s") as client:
        client.send(b"x")
        current = client._connections.current
        assert current is not None

        def wait(seconds: float | None) -> bool:
            assert seconds == 0.0  # a look whether the peer is still there
            return False

        with mock.patch.object(current, "_vigil", mock.Mock(wait=wait)):
            for timeout in (None, PATIENCE):
                worker = Worker(lambda timeout=timeout: client.send(b"y", timeout=timeout))  # type: ignore[misc]
                assert worker.outcome() == b"Y"
            assert client.send(b"y") == b"Y"


def test_it_reads_for_the_others(short_dir: Path) -> None:
    """Threads that ask, and that wait for futures; the poller thread leaves it to him."""
    with listening(short_dir / "s") as (held, client, _, worker):
        assert client.send(b"a", timeout=PATIENCE) == b"A"
        futures = [client.submit(b"b") for _ in range(10)]
        assert [future.result(PATIENCE) for future in futures] == [b"B"] * 10
        called = threading.Event()
        client.submit(b"c").add_done_callback(lambda _: called.set())
        assert called.wait(PATIENCE)
        held.go.set()
        assert client.send(b"d", timeout=PATIENCE) == b"D"
        assert worker.outcome() == b"WAIT"


@pytest.mark.parametrize("how", ["send", "submit", "tell"])
def test_what_the_kernel_has_no_room_for_leaves_soon(short_dir: Path, how: str) -> None:
    """The answer that he listens for comes behind it."""
    with listening(short_dir / "s", reads=False) as (held, client, current, worker):

        def other() -> object:
            if how == "submit":
                return client.submit(LARGE).result(PATIENCE)
            return client.send(LARGE, timeout=PATIENCE, no_response=how == "tell")

        second = Worker(other)
        until(lambda: current.outgoing.stuck)
        held.go.set()
        assert second.outcome(SOON) == (None if how == "tell" else LARGE)
        assert client.send(b"x", timeout=PATIENCE) == b"X"
        assert worker.outcome() == b"WAIT"
        assert not current.outgoing.queue


def test_a_close_ends_it_at_once(short_dir: Path) -> None:
    """20 rounds, in the middle of a read that would wait for long."""
    for round_ in range(20):
        path = short_dir / f"s{round_}"
        with (
            mock.patch.object(conversation, "TICK", 0.9),
            listening(path) as (_, client, current, worker),
        ):
            until(lambda: current._waits)
            worker.join(0.001)
            started = time.monotonic()
            client.close()
            with pytest.raises(SocketClosedError):
                worker.outcome()
            assert time.monotonic() - started < 0.5


def test_an_error_of_somebodys_write_ends_it_soon(short_dir: Path) -> None:
    """The peer reads no more, and says nothing more."""
    peers: list[Peer] = []
    stay = threading.Event()

    def script(peer: Peer) -> None:
        while (request := peer.receive()) is not None:
            if request.payload == b"wait":
                peers.append(peer)
                stay.wait(PATIENCE)
                return
            peer.answer(request)

    with ScriptedServer(script, short_dir / "s"), MessageClient(short_dir / "s", reconnect=False) as client:
        client.send(b"x")
        worker = Worker(lambda: client.send(b"wait"))
        until(lambda: bool(peers))
        peers[0].connection.shutdown(socket.SHUT_RD)
        with pytest.raises(SocketError):
            client.send(b"y", timeout=PATIENCE)
        with pytest.raises(SocketError):
            worker.outcome(SOON)
        stay.set()


@pytest.mark.parametrize("timeout", [TICK, 3 * TICK, 0.3])
def test_it_gives_up_in_time_and_not_before(short_dir: Path, timeout: float) -> None:
    """In the main thread, and in another one."""
    with listening(short_dir / "s") as (_, client, _, _), MessageClient(short_dir / "s") as own:
        own.send(b"x")
        for one in (own, client):

            def call(one: MessageClient = one) -> float:
                started = time.monotonic()
                with pytest.raises(TimeoutError):
                    one.send(b"wait", timeout=timeout)
                return time.monotonic() - started

            for seconds in (call(), Worker(call).outcome()):
                assert isinstance(seconds, float)
                assert timeout <= seconds < timeout + 0.5
        client.close()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no such timer")
def test_signals_that_keep_coming_do_not_put_off_a_deadline(short_dir: Path) -> None:
    """Each lets a sleep in the kernel's read begin anew."""
    held, heard = Held(short_dir / "s"), list[None]()
    with held.server, MessageClient(short_dir / "s") as client:
        client.send(b"x")
        started = time.monotonic()
        with alarms(lambda: heard.append(None), TICK / 4), pytest.raises(TimeoutError):
            client.send(b"wait", timeout=0.2)
        assert time.monotonic() - started < 2
        assert len(heard) > 4


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no such timer")
def test_ctrl_c_gives_up_the_call_and_nothing_else(short_dir: Path) -> None:
    """20 times, in the read; the connection stays."""

    def interrupt() -> None:
        if any(frame.name == "_read_patiently" for frame in traceback.extract_stack()):  # he may not have got so far
            raise KeyboardInterrupt

    held = Held(short_dir / "s")
    with held.server, MessageClient(short_dir / "s") as client, mock.patch.object(conversation, "TICK", 0.9):
        client.send(b"x")
        for _ in range(20):
            with pytest.raises(KeyboardInterrupt), alarms(interrupt, 0.01):
                client.send(b"wait")
            assert client.send(b"y") == b"Y"
        assert client._connections.made == 1


def test_ctrl_c_before_the_file_waits_leaves_nobody_believe_that_it_does(short_dir: Path) -> None:
    original = StreamSocket._let_reads_wait
    with ScriptedServer(echo, short_dir / "s"), MessageClient(short_dir / "s") as client:
        client.submit(b"x").result(PATIENCE)
        current = client._connections.current
        assert current is not None
        with mock.patch.object(StreamSocket, "_let_reads_wait", side_effect=KeyboardInterrupt):
            with pytest.raises(KeyboardInterrupt):
                until(lambda: client.send(b"x") != b"X")
        assert not current._waits
        with mock.patch.object(StreamSocket, "_let_reads_wait", autospec=True, side_effect=original) as made:
            until(lambda: client.send(b"y") == b"Y" and made.called)  # the poller thread may have read up to now
            assert [client.send(b"y") for _ in range(3)] == [b"Y"] * 3
        assert made.call_count == 1
        assert client._connections.made == 1


def test_threads_that_take_turns_at_listening(short_dir: Path) -> None:
    """8 threads, 100 to 300 calls each, with limits and without; every second thread has large ones."""

    def call(number: int) -> None:
        payload = b"x" * (200_000 if number % 2 else 10)
        for index in range(300 if number % 4 else 100):
            timeout = PATIENCE if index % 3 else None
            assert client.send(payload, timeout=timeout) == payload.upper()

    with ScriptedServer(echo, short_dir / "s"), MessageClient(short_dir / "s") as client:
        assert client.send(b"x") == b"X"
        for worker in [Worker(lambda number=number: call(number)) for number in range(8)]:  # type: ignore[misc]
            worker.outcome(60)
        assert client._connections.made == 1


def test_a_future_that_gets_stuck_while_the_poller_thread_reads_leaves(short_dir: Path) -> None:
    """He had looked for what is to be written before, and nobody else waits."""
    held, called = Held(short_dir / "s", reads=False), threading.Event()
    with held.server, MessageClient(short_dir / "s") as client:
        client.send(b"x")
        current = client._connections.current
        assert current is not None
        original = current._take_in

        def slowly(*args: object) -> bool:
            told = original(*args)  # type: ignore[arg-type]
            if not called.is_set() and not current.outgoing.stuck:
                client.submit(b"wait")
                client.submit(LARGE).add_done_callback(lambda _: called.set())
                assert current.outgoing.stuck
                held.go.set()
            return told

        with mock.patch.object(current, "_take_in", slowly):
            client.submit(b"y").add_done_callback(lambda _: None)
            assert called.wait(SOON)
