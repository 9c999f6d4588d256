"""A server whose workers stay with busy clients, over TCP and local connections; see ``pool/dialogue.py``.

That a dialogue begins is up to the machine: requests have to come within TICK of each other.  So clients go on until
one has begun, and TICK is long enough for a machine that does other things as well.
"""

from __future__ import annotations

import contextlib
import gc
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import SupportsIndex
from unittest import mock

import pytest

from bbipc.sockets.stream import CAN_WAIT
from pool import MessageServer, Request, StopReport, WorkerPool
from pool.message_serving import WorkerConnection
from tests.support import wire
from tests.support.makers import PATIENCE, Namespace, Worker
from tests.support.serving import at_end, until
from tests.support.wire import Frame, receive, tagged
from tests.test_stopping import child

pytestmark = pytest.mark.skipif(not CAN_WAIT, reason="reads can wait on Linux only")


class Heard:
    """How often listening gave something, and for whom."""

    def __init__(self) -> None:
        self.by: list[WorkerConnection] = []
        self.vain = 0


@pytest.fixture
def heard() -> Iterator[Heard]:
    counts = Heard()
    original = WorkerConnection.listen

    def listen(connection: WorkerConnection, seconds: float) -> bool:
        came = original(connection, seconds)
        if came:
            counts.by.append(connection)
        else:
            counts.vain += 1
        return came

    with mock.patch.object(WorkerConnection, "listen", listen), mock.patch("pool.dialogue.TICK", 0.1):
        yield counts


def upper(request: Request) -> bytes:
    assert isinstance(request.value, bytes)
    return request.value.upper()


Handler = Callable[[Request], bytes | Future[bytes]]


@contextlib.contextmanager
def serving(
    namespace: Namespace, handler: Handler = upper, workers: int = 6
) -> Iterator[tuple[MessageServer, Callable[[], socket.socket], WorkerPool]]:
    listening = namespace.make_server()
    with (
        WorkerPool(workers) as pool,
        contextlib.ExitStack() as peers,
        MessageServer(listening, handler, workers=pool) as server,
    ):
        yield server, lambda: peers.enter_context(namespace.connect_plainly(listening)), pool
        server.stop(PATIENCE)
    assert server.stats().connections == 0


def ask(peer: socket.socket, payload: bytes, tag: int = 0) -> None:
    peer.sendall(tagged(Frame(wire.BINARY, payload), tag).encoded())
    assert receive(peer) == tagged(Frame(wire.BINARY, payload.upper()), tag)


def chat(peer: socket.socket, heard: Heard, times: int = 50) -> None:
    """Ask until a worker has stayed, and heard so many requests more."""
    count, tag, deadline = len(heard.by), 0, time.monotonic() + PATIENCE
    while len(heard.by) < count + times:
        assert time.monotonic() < deadline, "nobody stays"
        ask(peer, b"abc", tag)
        tag += 1


@pytest.mark.parametrize("size", [0, 1, 4096, 1 << 16, 300_000])
def test_a_lone_client_is_listened_to(namespace: Namespace, heard: Heard, size: int) -> None:
    with serving(namespace) as (_, connect, _):
        peer = connect()
        chat(peer, heard)
        for tag in range(20):
            ask(peer, b"a" * size, tag)
        chat(peer, heard)


def test_it_ends_when_the_client_says_nothing(namespace: Namespace, heard: Heard) -> None:
    with serving(namespace) as (_, connect, pool):
        peer = connect()
        chat(peer, heard)
        vain = heard.vain
        until(lambda: heard.vain > vain)
        until(lambda: not pool._leadership._dialogues.standing)
        ask(peer, b"still there")


def test_a_message_in_pieces(namespace: Namespace, heard: Heard) -> None:
    with serving(namespace) as (_, connect, _):
        peer = connect()
        chat(peer, heard)
        frame = tagged(Frame(wire.BINARY, b"x" * 70_000), 5).encoded()
        for at in range(0, len(frame), 7000):
            peer.sendall(frame[at : at + 7000])
        assert receive(peer) == tagged(Frame(wire.BINARY, b"X" * 70_000), 5)
        chat(peer, heard)


@contextlib.contextmanager
def chatting(peer: socket.socket) -> Iterator[None]:
    """Somebody chats all the time."""
    enough = threading.Event()

    def talk() -> None:
        tag = 0
        while not enough.is_set():
            ask(peer, b"abc", tag)
            tag += 1

    talker = Worker(talk)
    try:
        yield
    finally:
        enough.set()
        talker.outcome()


def test_others_are_served_beside_it(namespace: Namespace, heard: Heard) -> None:
    with serving(namespace) as (_, connect, _):
        first = connect()
        chat(first, heard)
        with chatting(first):
            others = [connect() for _ in range(5)]
            for other in others * 20:
                ask(other, b"me, too")


def test_many_who_chat_are_all_served(namespace: Namespace) -> None:
    with serving(namespace) as (_, connect, _), contextlib.ExitStack() as talking:
        for _ in range(5):
            talking.enter_context(chatting(connect()))
        for tag, other in enumerate([connect() for _ in range(5)] * 20):
            ask(other, b"me, too", tag)


@pytest.mark.parametrize("workers", [3, 6])
def test_workers_that_are_all_wanted_elsewhere_do_not_stay(namespace: Namespace, heard: Heard, workers: int) -> None:
    """All but one work on tasks: he leads, and others are served."""
    release = threading.Event()
    with serving(namespace, workers=workers) as (_, connect, pool):
        first = connect()
        chat(first, heard)
        with chatting(first):
            tasks = [pool.submit(release.wait, PATIENCE) for _ in range(workers - 1)]
            other = connect()
            for tag in range(50):
                ask(other, b"me, too", tag)
            quick = pool.submit(int)
            release.set()
            assert all(task.result(PATIENCE) for task in tasks)
            assert quick.result(PATIENCE) == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_too_few_workers_never_stay(namespace: Namespace, heard: Heard, workers: int) -> None:
    with serving(namespace, workers=workers) as (_, connect, _):
        peer = connect()
        for tag in range(200):
            ask(peer, b"abc", tag)
    assert not heard.by


class Blocks:
    """A handler that blocks where it is asked to."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.release = threading.Event()

    def __call__(self, request: Request) -> bytes:
        if request.value == b"block":
            self.entered.set()
            assert self.release.wait(PATIENCE)
        return upper(request)


def test_a_handler_that_blocks_keeps_nobody_waiting(namespace: Namespace, heard: Heard) -> None:
    """Not the other requests of its client either, whether they came with it or later.  20 rounds."""
    handler = Blocks()
    with serving(namespace, handler) as (_, connect, _):
        peer = connect()
        for _ in range(20):
            chat(peer, heard)
            frames = [tagged(Frame(wire.BINARY, payload), tag) for tag, payload in enumerate([b"block", b"with it"])]
            peer.sendall(b"".join(frame.encoded() for frame in frames))
            assert handler.entered.wait(PATIENCE)
            assert receive(peer) == tagged(Frame(wire.BINARY, b"WITH IT"), 1)
            ask(peer, b"later", 2)
            handler.release.set()
            assert receive(peer) == tagged(Frame(wire.BINARY, b"BLOCK"), 0)
            handler.entered.clear()
            handler.release.clear()


def test_a_stop_ends_it_soon(namespace: Namespace, heard: Heard) -> None:
    with serving(namespace) as (server, connect, _):
        peer = connect()
        chat(peer, heard)
        assert server.stop(PATIENCE) == StopReport(drained=1)
        assert at_end(peer)


def test_a_client_who_leaves_leaves_nothing(namespace: Namespace, heard: Heard) -> None:
    """20 rounds; half of them leave with a reset."""
    with serving(namespace) as (server, connect, pool):
        for number in range(20):
            peer = connect()
            chat(peer, heard)
            if number % 2:
                peer.sendall(tagged(Frame(wire.BINARY, b"x"), 1).encoded() * 3)
            peer.close()
            until(lambda: server.stats().connections == 0)
        until(lambda: not pool._leadership._dialogues.standing)


def test_a_reply_that_finds_no_room_leaves_when_there_is(namespace: Namespace, heard: Heard) -> None:
    """From the handler, and from a thread that has the reply while a worker listens."""
    large = b"L" * 5_000_000
    later: list[Future[bytes]] = []

    def handler(request: Request) -> bytes | Future[bytes]:
        if request.value == b"large":
            return large
        if request.value == b"later":
            later.append(Future())
            return later[0]
        return upper(request)

    def listens() -> bool:
        return not heard.by[-1]._reader

    def check(peer: socket.socket) -> None:
        until(lambda: heard.by[-1].blocked)
        reply = receive(peer)
        assert reply is not None
        assert reply.payload == large
        chat(peer, heard)

    with serving(namespace, handler) as (_, connect, pool):
        peer = connect()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)  # or TCP's would grow until all has room
        chat(peer, heard)
        peer.sendall(tagged(Frame(wire.BINARY, b"large"), 1).encoded())
        check(peer)
        while True:
            later.clear()
            before = heard.vain
            peer.sendall(tagged(Frame(wire.BINARY, b"later"), 1).encoded())
            # A worker who was without a processor for a millisecond does not stay: then it is tried again.
            until(lambda: bool(later) and (listens() or not pool._leadership._dialogues.standing))
            if listens() or heard.vain > before:
                break
            later[0].set_result(b"again")
            assert receive(peer) is not None
            chat(peer, heard)
        later[0].set_result(large)
        check(peer)


class Surprising(list[None]):
    """A reader's token: when a listener has taken it, something is done once."""

    def __init__(self, connection: WorkerConnection) -> None:
        super().__init__(connection._reader)
        connection._reader = self
        self.surprise: Callable[[], object] | None = None
        self.fired = threading.Event()

    def pop(self, index: SupportsIndex = -1) -> None:
        super().pop(index)
        if self.surprise is not None and sys._getframe(1).f_code.co_name == "listen":
            surprise, self.surprise = self.surprise, None
            self.fired.set()
            surprise()


def test_a_stop_between_two_readings(namespace: Namespace, heard: Heard) -> None:
    """1. a listener takes the reader; 2. a stop ends the connection, and leaves the rest to who has the reader;
    3. the listener finds that it is ending, and is the one who concludes."""
    with serving(namespace) as (server, connect, _):
        peer = connect()
        chat(peer, heard)
        connection = heard.by[-1]
        until(lambda: bool(connection._reader))
        reader = Surprising(connection)
        stopping: list[Worker] = []
        listening: list[threading.Thread] = []

        original, looked = WorkerConnection.conclude, threading.Event()

        def conclude(connection: WorkerConnection) -> None:
            original(connection)
            if connection.ending and threading.current_thread() not in listening:
                looked.set()

        def stop() -> None:
            listening.append(threading.current_thread())
            stopping.append(Worker(lambda: server.stop(PATIENCE)))
            assert looked.wait(PATIENCE)

        reader.surprise = stop
        with mock.patch.object(WorkerConnection, "conclude", conclude):
            while not reader.fired.wait(0.05):  # what is sent later would not be read, and the server linger
                ask(peer, b"abc")
            assert looked.wait(PATIENCE)
        until(lambda: bool(stopping))
        assert stopping[0].outcome() == StopReport(drained=1)


def test_a_reply_that_comes_between_two_readings_ends_what_a_close_has_begun(namespace: Namespace) -> None:
    """1. a CLOSE was read behind a request whose reply comes later; 2. a listener takes the reader; 3. the reply comes,
    and who has sent it finds no reader; 4. the listener finds that it is ending, and concludes."""
    replies: list[Future[bytes]] = []

    def handler(request: Request) -> bytes | Future[bytes]:
        if request.value == b"later":
            replies.append(Future())
            return replies[-1]
        return upper(request)

    with serving(namespace, handler) as (server, connect, _):
        peer = connect()
        ask(peer, b"abc")
        (connection,) = server._service.table.members()
        assert isinstance(connection, WorkerConnection)
        reader = Surprising(connection)

        def reply() -> None:
            Worker(lambda: replies[0].set_result(b"LATER")).outcome()

        reader.surprise = reply
        later, close = tagged(Frame(wire.BINARY, b"later"), 7), tagged(Frame(wire.CLOSE), 8)
        peer.sendall(later.encoded() + close.encoded())
        until(lambda: connection.ending and bool(replies))
        if reader.surprise is not None:  # nobody has begun to listen: this is what a dialogue does next
            assert not connection.listen(0.004)
        assert receive(peer) == tagged(Frame(wire.BINARY, b"LATER"), 7)
        reply_to_close = receive(peer)
        assert reply_to_close is not None
        assert reply_to_close.word == 8
        assert at_end(peer)


def test_who_sits_on_the_memory_of_all_gets_no_worker(namespace: Namespace, heard: Heard) -> None:
    """He is in nobody's read when the sweep looks, and is cut."""
    listening = namespace.make_server()
    with (
        WorkerPool(6) as pool,
        MessageServer(listening, upper, workers=pool, max_unverified=1 << 17, body_timeout=PATIENCE) as server,
        namespace.connect_plainly(listening) as peer,
    ):
        frame = Frame(wire.BINARY, b"x" * (1 << 20))
        peer.sendall(frame.header(check=1) + frame.payload[: 1 << 18])
        pace = threading.Event()
        with pytest.raises(OSError):  # broken pipe, or reset
            for at in range(10_000):
                peer.sendall(frame.payload[at : at + 8])
                pace.wait(0.0025)
        until(lambda: server.stats().connections == 0)
        assert server.stats().cut_for_memory == 1


def left_by_its_last_client(
    namespace: Namespace, heard: Heard
) -> tuple[weakref.ref[WorkerPool], set[threading.Thread]]:
    listening = namespace.make_server()
    pool = WorkerPool(6)
    with MessageServer(listening, upper, workers=pool) as server:
        peer = namespace.connect_plainly(listening)
        chat(peer, heard)
        until(lambda: not pool._leadership._dialogues.standing)
        peer.close()
        until(lambda: server.stats().connections == 0)
    heard.by.clear()
    return weakref.ref(pool), pool._threads


def test_a_pool_that_nobody_holds_any_more_ends(namespace: Namespace, heard: Heard) -> None:
    """Also if the last that its leader was told of was the end of a client with whom a worker might have stayed."""
    pool, threads = left_by_its_last_client(namespace, heard)
    until(lambda: bool(gc.collect() >= 0 and pool() is None))
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()


EXIT = """
    import sys, threading, warnings, bbipc
    from pool import MessageClient, MessageServer, WorkerPool
    warnings.simplefilter("ignore", ResourceWarning)  # the client is in the middle of it
    def handler(request):
        if request.value == "block":
            entered.set()
            threading.Event().wait()
        return request.value
    entered, pool = threading.Event(), WorkerPool(6)
    server = MessageServer(bbipc.make_local_server(sys.argv[1]), handler, workers=pool)
    server.start()
    client = MessageClient(sys.argv[1])
    while not pool._leadership._dialogues.standing:
        client.send("hello")
    if "busy" in sys.argv:
        client.submit("block")
        entered.wait()
    elif "stop" in sys.argv:
        server.stop(0)
"""


@pytest.mark.parametrize("ending", ["idle", "busy", "stop"])
def test_the_interpreter_exits_in_one(short_dir: Path, ending: str) -> None:
    """HAZARDS 38: in less than 2 s, code 0, nothing on stderr, and the path is gone."""
    path = short_dir / "s"
    begin = time.monotonic()
    with child(EXIT, str(path), ending) as process:
        out, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, errors) == (0, "", "")
    assert time.monotonic() - begin < 4  # with the start of an interpreter on a busy machine
    assert not path.exists()
