"""MessageClient: connecting and connecting anew, peers of every kind, limits, its end."""

from __future__ import annotations

import asyncio
import copy
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, as_completed, wait
from functools import partial
from pathlib import Path

import pytest

import bbipc
from bbipc import (
    InvalidMessageError,
    MessageTooLargeError,
    NoLocalServerError,
    PollerClosedError,
    QueueFullError,
    RemoteDisconnectedError,
    RemoteHandlerError,
    SocketClosedError,
)
from bbipc.messages import Message, MessageType
from pool import MessageClient, PollerThread
from pool import connecting as connecting_module
from tests.support.makers import PATIENCE, Worker
from tests.support.messaging import (
    FAILED,
    Peer,
    ScriptedServer,
    echo,
    echo_in_order,
    echo_once,
    requests_of,
)
from tests.support.serving import until
from tests.test_fork import in_child

MakeClient = Callable[..., MessageClient]


@pytest.fixture(name="path")
def a_path(short_dir: Path) -> Path:
    return short_dir / "s"


@pytest.fixture(name="client")
def a_client(path: Path) -> Iterator[MessageClient]:
    with MessageClient(path, timeout=PATIENCE) as client:
        yield client


def silent(peer: Peer) -> None:
    """Answers nothing but "go", and that at once."""
    for request in requests_of(peer):
        if request.payload == b"go":
            peer.answer(request)


class Backwards:
    """Holds its answers back, and gives them last come, first served, when it is asked to."""

    def __init__(self, count: int, *, plainly: bool = False) -> None:
        self.count = count
        self.plainly = plainly

    def __call__(self, peer: Peer) -> None:
        held: list[Message] = []
        for request in requests_of(peer):
            held.append(request)
            if len(held) == self.count:
                for one in held if self.plainly else held[::-1]:
                    (peer.answer_plainly if self.plainly else peer.answer)(one)
                held.clear()


# Arguments.


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ({"timeout": -1}, ValueError),
        ({"timeout": "1"}, TypeError),
        ({"max_in_flight": 0}, ValueError),
        ({"max_message_size": -1}, ValueError),
        ({"spin": -1}, ValueError),
    ],
)
def test_what_is_no_limit_is_refused(path: Path, words: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error):
        MessageClient(path, **words)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        MessageClient(7)  # type: ignore[arg-type]


def test_what_cannot_be_sent_is_refused_before_anything_is(path: Path) -> None:
    with ScriptedServer(echo, path) as server, MessageClient(path, max_message_size=10) as client:
        for value, error in [("a\0b", ValueError), (7, TypeError), (b"x" * 11, MessageTooLargeError)]:
            with pytest.raises(error):
                client.send(value)  # type: ignore[arg-type]
            with pytest.raises(error):
                client.submit(value)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="timeout"):
            client.send(b"x", timeout=-1)
        assert server.connections == 0
        assert client.send(b"x" * 10) == b"X" * 10
        with pytest.raises(MessageTooLargeError):
            client.send(b"x" * 11)


def test_it_shows_itself_and_does_not_travel(path: Path) -> None:
    client = MessageClient(path)
    assert repr(client) == f"<MessageClient not connected, {f'local:{path}'!r}>"
    assert client.address == bbipc.parse_address(path)
    with ScriptedServer(echo, path):
        client.send(b"x")
        assert repr(client) == f"<MessageClient connected, {f'local:{path}'!r}>"
        assert not client.closed
        client.close()
    assert repr(client) == f"<MessageClient closed, {f'local:{path}'!r}>"
    assert client.closed
    for travel in (pickle.dumps, copy.copy):
        with pytest.raises(TypeError, match="cannot be pickled or copied"):
            travel(client)


# The lone way.


def test_while_it_asks_alone_it_has_no_thread(path: Path, client: MessageClient) -> None:
    with ScriptedServer(echo, path):
        client.send(b"x")
        threads = set(threading.enumerate())
        for _ in range(100):
            assert client.send(b"x") == b"X"
        assert set(threading.enumerate()) == threads


def test_it_reads_in_a_short_spin(path: Path) -> None:
    with ScriptedServer(echo, path), MessageClient(path, spin=0.001) as client:
        for _ in range(50):
            assert client.send(b"x", timeout=PATIENCE) == b"X"
        with pytest.raises(TimeoutError):
            client.send(b"x" * 5_000_000, timeout=0)


def test_a_close_is_the_last_request_of_its_connection(path: Path, client: MessageClient) -> None:
    """What was sent behind it would be lost; what was sent before is answered."""

    def obedient(peer: Peer) -> None:
        for request in requests_of(peer):
            peer.answer(request)
            if request.type is MessageType.CLOSE:
                return

    with ScriptedServer(obedient, path) as server:
        for _ in range(5):
            before = client.submit(b"x")
            assert client.send(None) is None
            assert client.send(b"y") == b"Y"
            assert client.submit(None).result(PATIENCE) is None
            client.send(None, no_response=True)
            assert before.result(PATIENCE) == b"X"
        until(lambda: server.ended == server.connections)


# Time that runs out, calls that are given up.


def test_a_reply_that_is_late_reaches_nobody(path: Path, client: MessageClient) -> None:
    with ScriptedServer(Backwards(2), path):
        with pytest.raises(TimeoutError):
            client.send(b"one", timeout=0.01)
        assert client.send(b"two") == b"TWO"
        futures = [client.submit(b"three"), client.submit(b"four")]
        assert [future.result(PATIENCE) for future in futures] == [b"THREE", b"FOUR"]
        assert client.stats().late == 1
        assert client.stats().connections == 1


def test_a_future_runs_out_of_time_although_nobody_asks(path: Path, client: MessageClient) -> None:
    with ScriptedServer(silent, path):
        futures = [client.submit(b"x", timeout=timeout) for timeout in (0.03, 0.01, 0.02, None)]
        assert wait(futures[:3], PATIENCE).not_done == set()
        for future in futures[:3]:
            with pytest.raises(TimeoutError):
                future.result()
        assert not futures[3].done()
        until(lambda: client.stats().in_flight == 1)
        assert client.send(b"go") == b"GO"


def test_a_timeout_of_result_leaves_the_call(path: Path, client: MessageClient) -> None:
    with ScriptedServer(Backwards(2), path):
        future = client.submit(b"one")
        with pytest.raises(TimeoutError):
            future.result(0.01)
        with pytest.raises(TimeoutError):
            future.exception(0)
        assert client.send(b"two") == b"TWO"
        assert future.result(PATIENCE) == b"ONE"
        assert future.exception(0) is None


def test_a_cancel_wakes_who_waits_for_the_result(path: Path, client: MessageClient) -> None:
    with ScriptedServer(silent, path):
        future = client.submit(b"x")
        workers = [Worker(lambda: future.result(PATIENCE)) for _ in range(2)]
        assert future.cancel()
        assert future.cancel()
        for worker in workers:
            with pytest.raises(CancelledError):
                worker.outcome()
        assert wait([future], PATIENCE).not_done == set()
        assert client.stats().in_flight == 0
        assert client.send(b"go") == b"GO"


@pytest.mark.parametrize("way", ["timeout", "cancel", "timeout of a future"])
def test_a_peer_that_ignores_tags_is_not_trusted_after_a_call_was_given_up(
    path: Path, client: MessageClient, way: str
) -> None:
    """Its reply, whenever it comes, would be taken for the next one's."""

    def slow(peer: Peer) -> None:
        if peer.number == 2:
            return echo_in_order(peer)
        for request in requests_of(peer):
            if request.payload != b"slow":
                peer.answer_plainly(request)
        return None

    with ScriptedServer(slow, path) as server:
        assert client.send(b"one") == b"ONE"
        if way == "cancel":
            assert client.submit(b"slow").cancel()
        else:
            with pytest.raises(TimeoutError):
                if way == "timeout":
                    client.send(b"slow", timeout=0.01)
                else:
                    client.submit(b"slow", timeout=0.01).result(PATIENCE)
        until(lambda: not client.stats().connected)
        assert client.send(b"two") == b"TWO"
        assert server.connections == 2


def test_a_reply_without_a_tag_to_a_call_that_was_given_up_ends_the_connection(
    path: Path, client: MessageClient
) -> None:
    """Nobody knew yet what kind of peer it is; the second call must not get the first one's reply."""

    def first(peer: Peer) -> None:
        for request in requests_of(peer):
            if request.payload == b"two":
                peer.answer_plainly(request, b"that of one")
                peer.answer_plainly(request, b"that of two")

    with ScriptedServer(first, path):
        with pytest.raises(TimeoutError):
            client.send(b"one", timeout=0.01)
        with pytest.raises(RemoteDisconnectedError, match="given up"):
            client.send(b"two")


def test_replies_in_order_belong_to_the_requests_in_their_order(path: Path, client: MessageClient) -> None:
    with ScriptedServer(Backwards(50, plainly=True), path):
        futures = [client.submit(b"x%d" % index) for index in range(50)]
        assert [future.result(PATIENCE) for future in futures] == [b"X%d" % index for index in range(50)]


def test_replies_that_nobody_has_asked_for_are_dropped(path: Path, client: MessageClient) -> None:
    def talkative(peer: Peer) -> None:
        for request in requests_of(peer):
            peer.answer(request)
            peer.answer(request, b"twice")
            peer.send(Message(MessageType.BINARY, b"to nobody", 16, 0xFFFFFFFF))

    with ScriptedServer(talkative, path):
        for index in range(20):
            assert client.send(b"x%d" % index) == b"X%d" % index
        until(lambda: client.send(b"x") == b"X" and client.stats().late >= 40)


# Connecting anew.


def test_a_connection_that_ended_with_nothing_in_flight_is_replaced(path: Path, client: MessageClient) -> None:
    def three(peer: Peer) -> None:
        for _ in range(3):
            request = peer.receive()
            if request is not None:
                peer.answer(request)

    with ScriptedServer(three, path) as server:
        for count in range(12):
            if count and count % 3 == 0:
                until(partial(at_end, server, count // 3))
            assert client.send(b"x") == b"X"
        assert server.connections == 4


def at_end(server: ScriptedServer, number: int) -> bool:
    """Whether the server has closed its connection *number*."""
    return server.ended >= number


def test_a_client_that_does_not_connect_anew_says_why_each_time(path: Path) -> None:
    with ScriptedServer(echo_once, path), MessageClient(path, reconnect=False, timeout=PATIENCE) as client:
        with pytest.raises(RemoteDisconnectedError):
            for _ in range(3):
                client.send(b"x")
                until(lambda: not client.stats().connected or client.send(b"x") == b"X")
        for _ in range(2):
            with pytest.raises(RemoteDisconnectedError):
                client.send(b"x")


def test_many_who_call_connect_once(path: Path, client: MessageClient) -> None:
    gate = threading.Barrier(8)

    def call() -> None:
        gate.wait(PATIENCE)
        for _ in range(10):
            assert client.send(b"x") == b"X"

    with ScriptedServer(echo, path) as server:
        for worker in [Worker(call) for _ in range(8)]:
            worker.outcome()
        assert server.connections == 1


def test_connecting_in_vain_slows_down_and_then_works_at_once(path: Path, client: MessageClient) -> None:
    started = time.monotonic()
    for _ in range(4):
        with pytest.raises(NoLocalServerError):
            client.send(b"x")
    assert time.monotonic() - started >= connecting_module.FIRST_PAUSE * 2.5
    with pytest.raises(TimeoutError):
        client.send(b"x", timeout=0.001)
    with ScriptedServer(echo, path):
        assert client.send(b"x") == b"X"
        assert client.send(b"x") == b"X"


def test_every_call_fails_when_the_connection_is_lost(path: Path, client: MessageClient) -> None:
    go = threading.Event()

    def vanish(peer: Peer) -> None:
        for _ in range(4):
            peer.receive()
        assert go.wait(PATIENCE)

    with ScriptedServer(vanish, path):
        worker = Worker(lambda: client.send(b"x"))
        futures = [client.submit(b"x") for _ in range(3)]
        go.set()
        assert wait(futures, PATIENCE).not_done == set()
        errors = [future.exception() for future in futures]
        assert all(isinstance(error, RemoteDisconnectedError) and error.__cause__ for error in errors)
        assert len({id(error) for error in errors}) == 3
        with pytest.raises(RemoteDisconnectedError):
            worker.outcome()


@pytest.mark.parametrize(
    ("reply", "error"),
    [  # garbage, a length of 2 GiB, a part of a header
        (b"garbage, and a header's length of it at least", InvalidMessageError),
        (
            b"\0\0\0\0\0\0\0\0\xff\xff\xff\x7f\0\0\0\0\xea\x1d\xad\xab\xef\xbe\xef\xbe" + bytes(8),
            MessageTooLargeError,
        ),
        (bytes(8) + b"\x01\0\0\0", RemoteDisconnectedError),
    ],
    ids=["garbage", "too large", "truncated"],
)
def test_what_is_no_reply_ends_the_connection_and_says_so(
    path: Path, client: MessageClient, reply: bytes, error: type[Exception]
) -> None:
    def babble(peer: Peer) -> None:
        if peer.number > 2:
            return echo(peer)
        peer.receive()
        peer.connection.sendall(reply)
        return None

    with ScriptedServer(babble, path):
        with pytest.raises(error):
            client.send(b"x")
        with pytest.raises(error):
            client.submit(b"x").result(PATIENCE)
        assert client.send(b"x") == b"X"


def test_a_failure_of_the_connection_is_told_to_who_is_concerned(path: Path, client: MessageClient) -> None:
    """A server that closes because of what it was sent says so without a tag."""

    def complain(peer: Peer) -> None:
        requests = [peer.receive() for _ in range(3)]
        assert requests[0] is not None
        peer.answer(requests[0])
        peer.send(Message(MessageType.STRING, b"InvalidMessageError: no\0", FAILED))

    with ScriptedServer(complain, path):
        first, *others = [client.submit(b"x") for _ in range(3)]
        assert first.result(PATIENCE) == b"X"
        for future in others:
            with pytest.raises(RemoteDisconnectedError, match="InvalidMessageError: no") as caught:
                future.result(PATIENCE)
            assert isinstance(caught.value.__cause__, RemoteHandlerError)


# Futures.


def test_futures_are_those_of_the_standard_library(path: Path, client: MessageClient) -> None:
    async def ask() -> object:
        return await asyncio.wrap_future(client.submit(b"loop"))

    with ScriptedServer(Backwards(1), path):
        futures = {client.submit(b"x%d" % index) for index in range(10)}
        assert wait(futures, PATIENCE).not_done == set()
        assert {future.result(0) for future in as_completed(futures, 0)} == {b"X%d" % index for index in range(10)}
        client.send(b"a reader who goes away")
        assert wait([client.submit(b"x")], PATIENCE).not_done == set()
        assert asyncio.run(ask()) == b"LOOP"


def test_callbacks_are_called_on_the_poller_thread_and_may_call(path: Path) -> None:
    told: list[tuple[str, object]] = []
    done = threading.Event()

    def called(future: Future[object]) -> None:
        told.append((threading.current_thread().name, future.result()))
        told.append(("sent", client.send(b"nested")))
        told.append(("submitted", client.submit(b"nested too").result(PATIENCE)))
        done.set()

    with (
        ScriptedServer(echo, path),
        PollerThread(name="shared") as poller_thread,
        MessageClient(path, timeout=PATIENCE, poller_thread=poller_thread) as client,
    ):
        for reader_waits in (False, True):
            told.clear()
            done.clear()
            future = client.submit(b"x")
            future.add_done_callback(called)  # type: ignore[arg-type]
            if reader_waits:
                assert future.result(PATIENCE) == b"X"
            assert done.wait(PATIENCE)
            if told[0][0] == "shared":
                assert told == [("shared", b"X"), ("sent", b"NESTED"), ("submitted", b"NESTED TOO")]


def test_a_callback_may_close_the_client(path: Path) -> None:
    closed = threading.Event()

    def close(future: Future[object]) -> None:
        client.close()
        closed.set()

    client = MessageClient(path)
    with ScriptedServer(silent, path):
        waiting = client.submit(b"x")
        client.submit(b"go").add_done_callback(close)  # type: ignore[arg-type]
        assert closed.wait(PATIENCE)
        with pytest.raises(SocketClosedError, match="MessageClient is closed"):
            waiting.result(PATIENCE)


def test_submit_waits_while_too_many_are_in_flight(path: Path) -> None:
    gate = threading.Semaphore(0)

    def gated(peer: Peer) -> None:
        for request in requests_of(peer):
            if request.payload != b"go":
                assert gate.acquire(timeout=PATIENCE)
            peer.answer(request)

    with ScriptedServer(gated, path), MessageClient(path, max_in_flight=3) as client:
        assert client.send(b"go") == b"GO"
        futures = [client.submit(b"x%d" % index) for index in range(3)]
        with pytest.raises(QueueFullError):
            client.submit(b"x", timeout=0.01)
        worker = Worker(lambda: client.submit(b"x3").result(PATIENCE))
        refused = Future[object]()

        def called(future: Future[object]) -> None:
            try:
                for _ in range(4):
                    client.submit(b"x")
            except QueueFullError as error:
                refused.set_result(error.limit)
            finally:
                for _ in range(20):
                    gate.release()

        futures[0].add_done_callback(called)  # type: ignore[arg-type]
        gate.release()
        assert refused.result(PATIENCE) == 3
        assert worker.outcome() == b"X3"


def test_unsent_bytes_are_bounded(path: Path) -> None:
    go = threading.Event()

    def deaf(peer: Peer) -> None:
        request = peer.receive()
        assert request is not None
        peer.answer(request)
        assert go.wait(PATIENCE)
        echo(peer)

    with ScriptedServer(deaf, path), MessageClient(path, max_message_size=300_000) as client:
        client.send(b"x")
        futures = [client.submit(bytes(300_000))]
        while client.stats().unsent < 2 * 300_000:
            futures.append(client.submit(bytes(300_000)))
            assert len(futures) < 10
        with pytest.raises(QueueFullError):
            client.submit(bytes(300_000), timeout=0.01)
        assert 300_000 <= client.stats().unsent <= 900_100
        go.set()
        assert wait(futures, PATIENCE).not_done == set()
        until(lambda: client.stats().unsent == 0)


# Its end.


def test_a_close_in_another_thread_ends_all_calls(path: Path) -> None:
    with ScriptedServer(silent, path):
        client = MessageClient(path)
        client.send(b"go")
        workers = [Worker(lambda: client.send(b"x")) for _ in range(3)]
        future = client.submit(b"x")
        until(lambda: client.stats().in_flight == 4)
        client.close()
        for worker in workers:
            with pytest.raises(SocketClosedError):
                worker.outcome()
        for ended in (future.result, lambda: client.send(b"x"), lambda: client.submit(b"x")):
            with pytest.raises(SocketClosedError):
                ended()
        client.close()


def test_a_close_wakes_who_waits_to_connect_again(path: Path) -> None:
    client = MessageClient(path)
    for _ in range(2):
        with pytest.raises(NoLocalServerError):
            client.send(b"x")
    client._connections._not_before += PATIENCE
    worker = Worker(lambda: client.send(b"x"))
    until(lambda: bool(client._connections._turn._sleepers))
    client.close()
    with pytest.raises(SocketClosedError):
        worker.outcome(PATIENCE / 2)


def test_with_a_closed_poller_thread_send_works_and_submit_does_not(path: Path) -> None:
    poller_thread = PollerThread()
    with ScriptedServer(echo, path), MessageClient(path, poller_thread=poller_thread, timeout=PATIENCE) as client:
        assert client.submit(b"x").result(PATIENCE) == b"X"
        poller_thread.close()
        with pytest.raises(PollerClosedError):
            client.submit(b"x").result(PATIENCE)
        assert client.send(b"x") == b"X"


@pytest.mark.parametrize("shared", [False, True])
def test_a_close_waits_for_a_callback_unless_the_poller_thread_is_shared(path: Path, shared: bool) -> None:
    entered, go = threading.Event(), threading.Event()

    def call_back(future: Future[object]) -> None:
        entered.set()
        assert go.wait(PATIENCE)

    with ScriptedServer(echo, path), PollerThread() as poller_thread:
        client = MessageClient(path, poller_thread=poller_thread if shared else None)
        until(lambda: client.submit(b"x").result(PATIENCE) == b"X")
        client._lender.get().call_later(0, call_back, Future())
        assert entered.wait(PATIENCE)
        closer = Worker(client.close)
        if shared:
            closer.outcome()
            assert not poller_thread.closed
            go.set()
        else:
            until(lambda: client._lender.get().closed)
            assert closer.is_alive()
            go.set()
            closer.outcome()


def test_submit_itself_says_what_became_of_the_connection(path: Path) -> None:
    """Where no other one is made: it was lost before, or what had come over it was no message."""

    def talk(peer: Peer) -> None:
        peer.receive()
        if peer.number == 2:
            peer.connection.sendall(b"garbage, and a header's length of it at least")

    errors: list[type[Exception]] = [RemoteDisconnectedError, InvalidMessageError]
    with ScriptedServer(talk, path):
        for error in errors:
            with MessageClient(path, reconnect=False, timeout=PATIENCE) as client:
                with pytest.raises(error):
                    client.send(b"x")
                for _ in range(2):
                    with pytest.raises(error):
                        client.submit(b"x")


def test_one_that_nobody_closed_warns(path: Path) -> None:
    with ScriptedServer(echo, path):
        client = MessageClient(path)
        client.submit(b"x").result(PATIENCE)
        with pytest.warns(ResourceWarning, match="unclosed <MessageClient"):
            del client


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings(r"ignore:.*use of fork\(\) may lead to deadlocks:DeprecationWarning")
def test_a_forked_child_is_told_that_it_is_not_its_client(path: Path, client: MessageClient) -> None:
    def refused() -> list[str]:
        told = []
        for call in (lambda: client.send(b"x"), lambda: client.submit(b"x"), lambda: future.result(0)):
            try:
                call()
            except (RuntimeError, TimeoutError) as error:
                told.append(type(error).__name__)
        client.close()
        return told

    with ScriptedServer(silent, path):
        client.send(b"go")
        future = client.submit(b"x")
        assert in_child(refused) == ["RuntimeError", "RuntimeError", "TimeoutError"]
        assert client.send(b"go") == b"GO"


EXIT = """
import sys, threading
from pool import MessageClient
client = MessageClient(sys.argv[1])
print(client.send(b"go"))
future = client.submit(b"x")
future.add_done_callback(print)
thread = threading.Thread(target=client.send, args=(b"x",), daemon=True)
thread.start()
"""


def test_the_interpreter_exits_with_calls_outstanding(path: Path) -> None:
    with ScriptedServer(silent, path):
        done = subprocess.run(
            [sys.executable, "-c", EXIT, str(path)], capture_output=True, text=True, check=False, timeout=60
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("b'GO'\n")
