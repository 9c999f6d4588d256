"""Messages and threads that meet where they should not: closes, deferred replies, forks, turns."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import sys
import threading
import time
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import bbipc
from bbipc import ResponseAlreadySentError, SocketEvent, StreamSocket
from bbipc.messages import Message, MessageStream
from pool import MessageClient, Request, WorkerPool
from tests.support import wire
from tests.support.attacks import HELLO, Workers, echo, either_way, served, switch_interval
from tests.support.makers import PATIENCE, Worker
from tests.support.peers import requests, serving
from tests.support.serving import until
from tests.support.wire import BINARY, Frame, tagged

# Replies that come from elsewhere, later, or never.


@either_way
def test_a_request_kept_for_later_cannot_respond_any_more(workers: Workers, short_dir: Path) -> None:
    kept: list[Request] = []
    with served(short_dir, lambda request: kept.append(request), workers=workers) as it:  # noqa: PLW0108
        with it.connect() as peer:
            peer.sendall(HELLO.encoded())
            assert wire.receive(peer) == wire.BLANK
            with pytest.raises(ResponseAlreadySentError):
                kept[0].respond("late")
        until(it.is_empty)
        with pytest.raises(ResponseAlreadySentError):
            kept[0].respond("too late")


@either_way
def test_replies_that_come_from_elsewhere_in_any_order(workers: Workers, short_dir: Path) -> None:
    """Handlers return futures, settled by other threads: results, errors, cancellations, and peers that have gone."""
    waiting: list[tuple[Request, Future[Any]]] = []
    lock = threading.Lock()
    dice = random.Random(8)

    def later(request: Request) -> Future[Any]:
        future: Future[Any] = Future()
        with lock:
            waiting.append((request, future))
        return future

    def settle() -> bool:
        with lock:
            if not waiting:
                return False
            request, future = waiting.pop(dice.randrange(len(waiting)))
        text = str(request.value)
        if text.endswith("1"):
            future.set_exception(LookupError("no"))
        elif text.endswith("2"):
            future.cancel()
        elif text.endswith("3"):
            request.respond("early")
            future.set_result("dropped")
        else:
            future.set_result(text)
        return True

    ending = threading.Event()
    with switch_interval(1e-5), served(short_dir, later, workers=workers) as it:
        settlers = [Worker(lambda: _until_set(ending, settle)) for _ in range(2)]
        for leaving in range(10):
            with it.connect() as peer:
                frames = [tagged(wire.string(f"{tag}"), tag) for tag in range(40)]
                peer.sendall(b"".join(frame.encoded() for frame in frames))
                if leaving % 3 == 0:
                    continue
                found = {}
                for _ in frames:
                    frame = wire.receive(peer)
                    assert frame is not None
                    found[frame.word] = frame
                for tag in range(40):
                    end = tag % 10
                    if end in {1, 2}:
                        assert wire.is_failure(found[tag], tag)
                    else:
                        assert found[tag].text == ("early" if end == 3 else f"{tag}")
    ending.set()  # behind the server's end: requests of those who left may come late
    for settler in settlers:
        settler.outcome()


def test_nothing_comes_between_the_halves_of_a_reply(short_dir: Path) -> None:
    """While a large one is with the kernel, which takes a part of it, another request of the connection is answered."""
    write, halved, answered, small = StreamSocket.write_vector, threading.Event(), threading.Event(), threading.Event()

    def interrupted(stream: StreamSocket, buffers: Any) -> int:
        count = write(stream, buffers)
        if not halved.is_set():
            halved.set()
            assert answered.wait(PATIENCE)
        return count

    def handler(request: Request) -> bytes | None:
        if request.value == "large":
            return b"l" * 2_000_000
        small.set()
        assert halved.wait(PATIENCE)
        request.respond(b"small")
        answered.set()
        return None

    with mock.patch.object(StreamSocket, "write_vector", interrupted):
        with WorkerPool(4) as workers, served(short_dir, handler, workers=workers) as it, it.connect() as peer:
            peer.sendall(tagged(wire.string("small"), 1).encoded())
            assert small.wait(PATIENCE)
            peer.sendall(tagged(wire.string("large"), 2).encoded())
            assert wire.receive_exactly(peer, 32)[:4] == (1).to_bytes(4, "little")
            assert wire.receive_exactly(peer, 2_000_000) == b"l" * 2_000_000
            assert wire.receive(peer) == tagged(Frame(BINARY, b"small"), 1)


def _until_set(ending: threading.Event, step: Any) -> None:
    while not ending.is_set():
        if not step():
            ending.wait(0.0005)


def test_stop_with_a_reply_that_never_comes(short_dir: Path) -> None:
    never: Future[str] = Future()
    with served(short_dir, lambda request: never) as it, it.connect() as peer:
        peer.sendall(HELLO.encoded())
        until(lambda: it.server.stats().in_flight == 1)
        began = time.monotonic()
        report = it.server.stop(0.1)
        assert time.monotonic() - began < 2
        assert report.forced + report.abandoned == 1
        never.set_result("at last")


# Clients that are closed, or forked, in the middle.


def test_close_races_calls(short_dir: Path) -> None:
    """20 clients closed under the calls of 4 threads: every call settles."""
    dice = random.Random(2)

    def call(client: MessageClient, start: threading.Barrier) -> str:
        start.wait(PATIENCE)
        futures: list[Future[Any]] = []
        try:
            while True:
                futures.append(client.submit("future"))
                assert client.send("call") == "call"
        except (OSError, RuntimeError):
            pass
        for future in futures:
            error = future.exception(PATIENCE)
            assert error is None or isinstance(error, (OSError, RuntimeError))
        return "settled"

    with switch_interval(1e-6), served(short_dir) as it:
        for _ in range(20):
            client, start = MessageClient(it.path), threading.Barrier(5)
            callers = [Worker(partial(call, client, start)) for _ in range(4)]
            start.wait(PATIENCE)
            threading.Event().wait(dice.random() * 0.005)
            client.close()
            assert [caller.outcome() for caller in callers] == ["settled"] * 4


@pytest.mark.filterwarnings("ignore:This process")
def test_a_forked_child_leaves_the_client_alone(short_dir: Path) -> None:
    with served(short_dir) as it, MessageClient(it.path, timeout=PATIENCE) as client:
        assert client.send("before") == "before"
        pending = client.submit("pending")
        child = os.fork()
        if not child:
            code = 9
            try:
                client.send("from the child")
            except RuntimeError:
                code = 7
            except BaseException:
                code = 8
            with contextlib.suppress(BaseException):
                client.close()
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert pending.result(PATIENCE) == "pending"
        assert client.send("after") == "after"


def test_a_callback_may_call_send_submit_and_close(short_dir: Path) -> None:
    outcomes: list[Any] = []

    def again(client: MessageClient, future: Future[Any]) -> None:
        outcomes.append(future.result())
        outcomes.append(client.submit("submitted").result(PATIENCE))
        outcomes.append(client.send("sent"))
        client.close()
        outcomes.append("closed")

    with served(short_dir) as it:
        client = MessageClient(it.path, timeout=PATIENCE)
        client.submit("first").add_done_callback(partial(again, client))
        until(lambda: len(outcomes) == 4)
        assert outcomes == ["first", "submitted", "sent", "closed"]


# MessageStream: closes and pieces.


def test_a_message_stream_closed_under_its_threads(short_dir: Path) -> None:
    """Senders and receivers are told, and nothing foreign is read from the number's next owner."""
    with switch_interval(1e-6):
        for _ in range(30):
            one, other = bbipc.local_stream_pair()
            left, right = MessageStream(one), MessageStream(other)
            start = threading.Barrier(4)

            def send(stream: MessageStream = left, start: threading.Barrier = start) -> None:
                start.wait(PATIENCE)
                while True:
                    stream.send(Message.string("mine"))

            def receive(stream: MessageStream = right, start: threading.Barrier = start) -> None:
                start.wait(PATIENCE)
                while not stream.ended:
                    message = stream.receive()
                    assert message is None or message.value == "mine"

            users = [Worker(send), Worker(receive), Worker(receive)]
            start.wait(PATIENCE)
            one.close()
            other.close()
            foreign, its_peer = bbipc.local_stream_pair()  # is given the freed numbers, if they are
            its_peer.write(b"a secret that is no message of theirs")
            for user in users:
                with contextlib.suppress(OSError):
                    user.outcome()
            foreign.close()
            its_peer.close()


def test_a_message_stream_reads_byte_by_byte(short_dir: Path) -> None:
    values: list[Any] = ["", "text", b"", b"\0", None, "ü" * 100]

    def talk(peer: socket.socket) -> None:
        for frame in requests(peer):
            for byte in frame.encoded():
                peer.sendall(bytes([byte]))

    with serving(short_dir / "server", talk), bbipc.connect_to_local_server(short_dir / "server") as stream:
        messages = MessageStream(stream)
        for value in values:
            assert messages.send(Message.of(value))
            found = None
            while found is None:
                bbipc.poll_socket(stream, SocketEvent.DATA_AVAILABLE, PATIENCE)
                found = messages.receive()
            assert found.value == value


# Turns (a greedy peer starves nobody).


@either_way
def test_a_greedy_peer_starves_nobody(workers: Workers, short_dir: Path) -> None:
    """4 peers with 5,000 requests each in the pipe; somebody else's small ones are answered between them."""
    with served(short_dir, workers=workers) as it, contextlib.ExitStack() as stack:
        greedy = [stack.enter_context(it.connect()) for _ in range(4)]
        whole = tagged(Frame(BINARY, bytes(64)), 1).encoded()
        ending = threading.Event()

        def pour(peer: socket.socket) -> None:
            peer.sendall(whole * 5000)

        def take(peer: socket.socket) -> int:
            return len(wire.receive_exactly(peer, len(whole) * 5000))

        honest = stack.enter_context(it.connect())
        honest.sendall(HELLO.encoded())
        assert wire.receive(honest) == HELLO
        times = []
        taking = [Worker(partial(take, peer)) for peer in greedy]
        pouring = [Worker(partial(pour, peer)) for peer in greedy]
        while any(taker.is_alive() for taker in taking):
            began = time.monotonic()
            honest.sendall(HELLO.encoded())
            assert wire.receive(honest) == HELLO
            times.append(time.monotonic() - began)
        ending.set()
        for worker in pouring:
            worker.outcome()
        assert [taker.outcome() for taker in taking] == [len(whole) * 5000] * 4
        assert not times or sorted(times)[len(times) // 2] < 0.2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="whose uid it is, as Linux tells")
def test_strangers_are_turned_away(short_dir: Path) -> None:
    with served(short_dir, echo, allowed_uids={os.getuid() + 1}) as it:
        with it.connect() as peer:
            with contextlib.suppress(OSError):
                peer.sendall(HELLO.encoded())
            assert wire.receive_all(peer) == []
        until(lambda: it.server.stats().refused_uids == 1)
