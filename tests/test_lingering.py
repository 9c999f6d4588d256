"""Lingering: whoever closes with bytes unread costs the peer nothing of what it was sent, and nobody waits for that."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

import bbipc
from bbipc import SocketClosedError, SocketEvent, StreamSocket
from pool import lingering
from pool.future_stream import FutureStream
from pool.lingering import Linger, linger_of
from pool.poller_thread import PollerThread
from pool.server import ConnectionServer
from pool.stopping import StopReport
from pool.stream_reads import UpTo
from pool.worker_pool import WorkerPool
from tests.support.forking import FORKS
from tests.support.makers import PATIENCE, Namespace, Worker, make_namespace
from tests.support.serving import ask, at_end, until

LONG = 60.0  # seconds that no test waits for
ANSWER = b"E" * 300_000


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    assert not lingering._all


@pytest.fixture
def poller_thread() -> Iterator[PollerThread]:
    with PollerThread() as thread:
        yield thread


@pytest.fixture
def local(short_dir: Path) -> Namespace:
    return make_namespace("local", short_dir)


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing ends because of the time."""
    monkeypatch.setattr(lingering, "LINGER_TIME", LONG)


def everything(peer: socket.socket) -> int:
    """How many bytes come until the clean end; raises where that is a reset."""
    count = 0
    while data := peer.recv(65536):
        count += len(data)
    return count


def let_come(stream: StreamSocket) -> None:
    assert bbipc.poll_socket(stream, SocketEvent.DATA_AVAILABLE, PATIENCE)


class Scene:
    """A FutureStream, and its peer, which has sent what nobody reads."""

    def __init__(self, stream: StreamSocket, peer: socket.socket, loop: PollerThread) -> None:
        self.stream = FutureStream(stream, loop)
        self.peer = peer
        self.loop = loop
        peer.sendall(b"unread")
        let_come(stream)

    def linger(self) -> Future[None]:
        """Its close, which has begun to linger."""
        done = self.stream.close()
        self.wait_for_linger()
        return done

    def wait_for_linger(self) -> None:
        assert self.peer.recv(1) == b""  # told that nothing more comes
        assert not self.stream.closed


@pytest.fixture
def scene(namespace: Namespace, poller_thread: PollerThread, patience: None) -> Iterator[Scene]:
    with namespace.stream_and_peer() as (stream, peer):
        yield Scene(stream, peer, poller_thread)


# A FutureStream's close.


def test_all_that_was_sent_arrives_though_input_is_unread(namespace: Namespace, poller_thread: PollerThread) -> None:
    with namespace.stream_and_peer() as (ours, peer):
        stream = FutureStream(ours, poller_thread)
        peer.sendall(b"request\nmore")
        assert stream.read_until(b"\n").result(PATIENCE) == b"request\n"
        peer.sendall(b"trailing")
        let_come(ours)
        written = stream.write(bytes(3_000_000))
        closed = stream.close(timeout=PATIENCE)
        reader = Worker(lambda: everything(peer))
        assert reader.outcome() == 3_000_000
        assert written.result(PATIENCE) == 3_000_000
        assert not closed.done()  # until the peer has ended, too
        peer.close()
        assert closed.result(PATIENCE) is None
        assert ours.closed


def test_a_close_with_nothing_unread_does_not_linger(namespace: Namespace, poller_thread: PollerThread) -> None:
    with namespace.stream_and_peer() as (ours, peer):
        stream = FutureStream(ours, poller_thread)
        assert stream.write(b"answer").done()
        assert stream.close().done()
        assert ours.closed
        assert everything(peer) == 6


def test_what_still_comes_is_dropped_until_the_peers_end(scene: Scene) -> None:
    done = scene.linger()
    for _ in range(10):
        scene.peer.sendall(bytes(50_000))
    assert not done.done()
    scene.peer.shutdown(socket.SHUT_WR)
    assert done.result(PATIENCE) is None
    assert scene.stream.closed


def test_leaving_a_with_block_waits_for_what_was_sent_and_not_for_the_linger(scene: Scene) -> None:
    with scene.stream as stream:
        stream.write(b"x" * 1000).result(PATIENCE)
    assert not stream.closed
    assert everything(scene.peer) == 1000
    scene.peer.close()
    until(lambda: stream.closed)


def test_nor_does_the_close_of_a_file(scene: Scene) -> None:
    with scene.stream.as_file(timeout=PATIENCE) as file:
        file.write(b"x" * 1000)
    assert everything(scene.peer) == 1000
    assert not scene.stream.closed
    scene.peer.close()
    until(lambda: scene.stream.closed)


def test_reads_end_when_the_linger_begins(scene: Scene) -> None:
    """Or they would share the bytes with it, and get what has holes."""
    assert scene.stream.read().result(PATIENCE) == b"unread"
    early = scene.stream.read_exactly(100)
    held = scene.stream.write(bytes(8_000_000))
    done = scene.stream.close()
    let_come_in = Worker(lambda: scene.peer.sendall(b"z" * 200))
    assert early.result(PATIENCE) == b"z" * 100  # as long as something is to be sent
    let_come_in.outcome()
    waiting = scene.stream.read_exactly(101)
    assert everything(scene.peer) == held.result(PATIENCE) == 8_000_000
    # Whether the second hundred was read into the queue or is unread in the kernel: nobody gets a part of it.
    assert isinstance(waiting.exception(PATIENCE), SocketClosedError)
    if not done.done():
        assert isinstance(scene.stream.read(1).exception(PATIENCE), SocketClosedError)
        assert isinstance(scene.stream.write(b"1").exception(PATIENCE), SocketClosedError)
    scene.peer.close()
    assert done.result(PATIENCE) is None


def test_no_read_is_served_in_a_linger(scene: Scene) -> None:
    done = scene.linger()
    scene.peer.sendall(b"late")
    assert isinstance(scene.stream.read().exception(PATIENCE), SocketClosedError)
    assert isinstance(scene.stream.read_exactly(4).exception(PATIENCE), SocketClosedError)
    handed_in = scene.stream._reading._ask_by_another(UpTo(1), None)  # as where somebody else is at work
    assert isinstance(handed_in.exception(PATIENCE), SocketClosedError)
    scene.peer.close()
    assert done.result(PATIENCE) is None


def test_a_peer_that_sends_for_ever_is_cut_when_the_time_is_up(
    namespace: Namespace, poller_thread: PollerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lingering, "LINGER_TIME", 0.2)
    monkeypatch.setattr(lingering, "LINGER_SIZE", 1 << 60)
    with namespace.stream_and_peer() as (ours, peer):
        scene = Scene(ours, peer, poller_thread)
        began = time.monotonic()
        sender = Worker(lambda: _send_for_ever(peer))
        assert scene.stream.close().result(PATIENCE) is None
        assert 0.2 <= time.monotonic() - began < 2
        assert ours.closed
        assert isinstance(sender.outcome(), OSError)


def test_a_peer_that_sends_for_ever_is_cut_after_so_many_bytes(
    namespace: Namespace, poller_thread: PollerThread, patience: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lingering, "LINGER_SIZE", 1 << 20)
    with namespace.stream_and_peer() as (ours, peer):
        scene = Scene(ours, peer, poller_thread)
        sender = Worker(lambda: _send_for_ever(peer))
        assert scene.stream.close().result(PATIENCE) is None
        assert isinstance(sender.outcome(), OSError)


def test_the_limits_are_those_of_the_hazard() -> None:
    """HAZARDS 23."""
    assert (lingering.LINGER_TIME, lingering.LINGER_SIZE) == (2.0, 8 << 20)


def _send_for_ever(peer: socket.socket) -> object:
    while True:
        try:
            peer.sendall(bytes(1 << 16))
        except OSError as error:
            return error


def test_its_own_timeout_ends_a_close_that_lingers(scene: Scene) -> None:
    began = time.monotonic()
    done = scene.stream.close(timeout=0.1)
    assert not done.done()
    assert done.result(PATIENCE) is None
    assert 0.1 <= time.monotonic() - began < 2
    assert scene.stream.closed


def test_the_shortest_timeout_of_several_closes_counts(scene: Scene) -> None:
    first = scene.linger()
    second = scene.stream.close(timeout=LONG)
    assert scene.stream.close(timeout=0.1).result(PATIENCE) is None
    assert (first.result(PATIENCE), second.result(PATIENCE)) == (None, None)
    assert scene.stream.closed


def test_a_close_without_time_does_not_linger(scene: Scene) -> None:
    assert scene.stream.close(timeout=0).done()
    assert scene.stream.closed


@pytest.mark.parametrize("how", ["flush=False", "timeout=0", "of the stream"])
def test_a_close_that_does_not_linger_ends_a_linger(scene: Scene, how: str) -> None:
    done = scene.linger()
    if how == "of the stream":
        scene.stream.stream.close()
    else:
        closed = scene.stream.close(flush=False) if how == "flush=False" else scene.stream.close(timeout=0)
        assert closed.result(0) is None
    assert scene.stream.closed
    assert done.result(PATIENCE) is None


def test_a_linger_ends_with_its_poller_thread(scene: Scene) -> None:
    done = scene.linger()
    scene.loop.close()
    assert done.result(PATIENCE) is None
    assert scene.stream.closed
    assert scene.stream.close().done()


def test_a_close_behind_the_end_of_the_poller_thread_closes(scene: Scene) -> None:
    scene.loop.close()
    assert scene.stream.close().result(0) is None
    assert scene.stream.closed


def test_a_close_from_a_callback_of_the_poller_thread(scene: Scene) -> None:
    done = scene.loop.call_later(0, scene.stream.close).result(PATIENCE)
    scene.wait_for_linger()
    scene.peer.close()
    assert done.result(PATIENCE) is None


def test_a_stream_that_somebody_else_holds_is_neither_read_nor_shut_down(poller_thread: PollerThread) -> None:
    """It was passed on, with what had come, which is for the other holder."""
    ours, theirs = bbipc.local_stream_pair()
    with theirs:
        theirs.write(b"for the other process")
        number = os.dup(ours.fileno())
        ours._share(1)
        assert FutureStream(ours, poller_thread).close().result(0) is None
        with bbipc.adopt_descriptor(number) as other:
            assert isinstance(other, StreamSocket)
            assert other.read() == b"for the other process"
            other.write(b"answer")
            assert theirs.read() == b"answer"


@pytest.mark.parametrize("where", ["linger_of", "take", "limit", "leave", "then"])
def test_a_ctrl_c_in_the_middle_leaves_a_closed_stream(
    local: Namespace, poller_thread: PollerThread, patience: None, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    with local.stream_and_peer() as (ours, peer):
        scene = Scene(ours, peer, poller_thread)

        def interrupt(*arguments: object) -> None:
            raise KeyboardInterrupt

        if where == "linger_of":
            made = lingering._all.setdefault(ours, Linger(ours, poller_thread))  # just before it is known to the caller
            told: list[int] = []
            made.then(lambda: told.append(1))
            monkeypatch.setattr("pool.closing.linger_of", interrupt)
        else:
            owner = scene.stream._reading if where == "leave" else Linger
            monkeypatch.setattr(owner, where, interrupt)
        with pytest.raises(KeyboardInterrupt):
            scene.stream.close(timeout=LONG)
        assert ours.closed
        assert not lingering._all
        if where == "linger_of":
            assert told == [1]


# A Linger.


def test_whoever_comes_late_is_told_at_once(local: Namespace, poller_thread: PollerThread) -> None:
    with local.stream_and_peer() as (ours, peer):
        peer.sendall(b"unread")
        linger = linger_of(ours, poller_thread)
        assert linger is not None
        assert linger_of(ours, poller_thread) is linger
        assert [linger.take(), linger.take()] == [True, False]
        linger.end()
        told: list[str] = []
        linger.then(lambda: told.append("closed"))
        linger.limit(LONG)
        linger.begin()
        assert told == ["closed"]
        assert linger_of(ours, poller_thread) is None


@pytest.mark.parametrize("error", [OSError, RuntimeError, KeyboardInterrupt])
def test_a_linger_that_cannot_begin_is_a_close(
    local: Namespace, poller_thread: PollerThread, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **more: object) -> None:
        raise error

    monkeypatch.setattr(poller_thread, "monitor", refuse)
    with local.stream_and_peer() as (ours, peer):
        peer.sendall(b"unread")
        linger = linger_of(ours, poller_thread)
        assert linger is not None
        told: list[str] = []
        linger.then(lambda: told.append("closed"))
        if error is KeyboardInterrupt:
            with pytest.raises(KeyboardInterrupt):
                linger.begin()
        else:
            linger.begin()
        assert (told, ours.closed) == (["closed"], True)


def test_a_ctrl_c_in_its_end_leaves_nobody_untold(
    local: Namespace, poller_thread: PollerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    with local.stream_and_peer() as (ours, peer):
        peer.sendall(b"unread")
        linger = linger_of(ours, poller_thread)
        assert linger is not None
        told: list[str] = []

        def interrupted() -> None:
            told.append("first")
            raise KeyboardInterrupt

        linger.then(interrupted)
        linger.then(lambda: told.append("second"))
        with pytest.raises(KeyboardInterrupt):
            linger.end()
        assert told == ["first", "second"]
        assert ours.closed


# A server.


def stingy(server: list[ConnectionServer]) -> Callable[[StreamSocket], None]:
    """A handler that reads little of the request, and answers at length."""

    def handler(stream: StreamSocket) -> None:
        with FutureStream(stream, server[0].workers.poller_thread) as futures:
            assert len(futures.read(100).result(PATIENCE)) == 100
            futures.write(ANSWER).result(PATIENCE)

    return handler


def test_a_handler_that_reads_little_answers_in_full(namespace: Namespace) -> None:
    it: list[ConnectionServer] = []
    server = namespace.make_server()
    with ConnectionServer(server, stingy(it)) as served:
        it.append(served)
        for _ in range(20):
            with namespace.connect_plainly(server) as peer:
                peer.sendall(bytes(5000))
                assert everything(peer) == len(ANSWER)
        until(lambda: served.stats().connections == 0)
        assert served.stats().handler_errors == 0


@pytest.mark.parametrize("per", ["connection", "readiness"])
def test_so_does_one_that_writes_by_itself_and_raises(namespace: Namespace, per: str) -> None:
    sizes: list[int] = []

    def handler(stream: StreamSocket) -> None:
        stream.read(100)
        sizes.append(stream.write(ANSWER))
        raise ValueError("enough")

    server = namespace.make_server()
    with ConnectionServer(server, handler, per="connection" if per == "connection" else "readiness") as served:
        for count in range(5):
            with namespace.connect_plainly(server) as peer:
                peer.sendall(bytes(5000))
                assert everything(peer) == sizes[count] > 10_000
                peer.sendall(bytes(5000))  # and goes on: nobody is called for that
        until(lambda: served.stats().connections == 0)
        assert served.stats().handler_errors == len(sizes) == 5


def test_a_linger_holds_no_worker_and_a_place(namespace: Namespace, patience: None) -> None:
    """One worker, two connections at most: the second client is answered while the first lingers, the third waits."""
    it: list[ConnectionServer] = []
    server = namespace.make_server()
    with (
        WorkerPool(1) as workers,
        ConnectionServer(server, stingy(it), workers=workers, max_connections=2) as served,
        namespace.connect_plainly(server) as first,
        namespace.connect_plainly(server) as second,
        namespace.connect_plainly(server) as third,
    ):
        it.append(served)
        for peer in (first, second):
            peer.sendall(bytes(5000))
            assert everything(peer) == len(ANSWER)
        third.sendall(bytes(5000))
        until(lambda: served.stats().paused)
        assert (served.stats().connections, served.stats().accepted) == (2, 2)
        first.close()
        assert everything(third) == len(ANSWER)
        assert served.stats().accepted == 3
        second.close()
        third.close()
        until(lambda: served.stats().connections == 0)


def test_a_linger_that_ends_in_time_counts_as_drained(namespace: Namespace, patience: None) -> None:
    it: list[ConnectionServer] = []
    server = namespace.make_server()
    with ConnectionServer(server, stingy(it)) as served, namespace.connect_plainly(server) as peer:
        it.append(served)
        peer.sendall(bytes(5000))
        assert everything(peer) == len(ANSWER)
        stopping = Worker(lambda: served.stop(PATIENCE))
        until(lambda: served._table._closing)  # he has counted who is inside
        assert served.stats().connections == 1
        peer.close()
        assert stopping.outcome() == StopReport(drained=1)


def test_a_linger_that_lasts_longer_than_a_stop_is_cut(namespace: Namespace, patience: None) -> None:
    it: list[ConnectionServer] = []
    server = namespace.make_server()
    with ConnectionServer(server, stingy(it)) as served, namespace.connect_plainly(server) as peer:
        it.append(served)
        peer.sendall(bytes(5000))
        assert everything(peer) == len(ANSWER)
        blocked = threading.Lock()
        blocked.acquire()
        served.workers.poller_thread.call_later(0, blocked.acquire)  # a cut needs no poller thread
        began = time.monotonic()
        try:
            assert served.stop(0.1) == StopReport(forced=1)
            assert time.monotonic() - began < 2
        finally:
            blocked.release()


def test_whoever_lingers_is_called_no_more(local: Namespace, patience: None) -> None:
    """The worker's monitor is at an end, though the stream is not."""
    calls: list[int] = []

    def handler(stream: StreamSocket) -> None:
        stream.read(1)
        calls.append(1)
        raise ValueError("enough")

    server = local.make_server()
    with (
        ConnectionServer(server, handler, per="readiness", max_connections=1) as served,
        local.connect_plainly(server) as peer,
    ):
        peer.sendall(b"two")
        assert at_end(peer)
        assert served.workers.stats().monitored == 0
        assert served.stats().connections == 1
        peer.sendall(b"more")
        peer.close()
        until(lambda: served.stats().connections == 0)
        assert calls == [1]


def test_a_monitor_that_is_known_late_is_cancelled_all_the_same(local: Namespace, patience: None) -> None:
    """1. The monitor calls.  2. The handler raises: it lingers.  3. Whoever has made the monitor gets it."""
    raised = threading.Event()

    class Late(WorkerPool):
        def monitor(self, *arguments, **more):  # type: ignore[no-untyped-def]
            made = super().monitor(*arguments, **more)
            assert raised.wait(PATIENCE)
            until(lambda: bool(lingering._all))
            return made

    def handler(stream: StreamSocket) -> None:
        raised.set()
        raise ValueError("enough")

    server = local.make_server()
    with (
        Late(2) as workers,
        ConnectionServer(server, handler, per="readiness", workers=workers) as served,
        local.connect_plainly(server) as peer,
    ):
        peer.sendall(b"two")
        assert at_end(peer)
        until(lambda: workers.stats().monitored == 0)
        assert served.stats().connections == 1
        peer.close()
        until(lambda: served.stats().connections == 0)


def test_answers_that_are_queued_at_the_clients_end_are_flushed_before_it(namespace: Namespace) -> None:
    """As docs/servers.md tells those to do who write by a FutureStream per readiness."""
    kept: dict[StreamSocket, FutureStream] = {}

    def handler(stream: StreamSocket) -> None:
        if stream not in kept:
            kept[stream] = FutureStream(stream, served.workers.poller_thread)
        data = stream.read()
        if data:
            kept[stream].write(ANSWER)
        elif data == b"":
            kept.pop(stream).flush(timeout=PATIENCE).result()

    server = namespace.make_server()
    with (
        ConnectionServer(server, handler, per="readiness") as served,
        namespace.connect_plainly(server) as peer,
    ):
        peer.sendall(b"q")
        peer.shutdown(socket.SHUT_WR)
        assert everything(peer) == len(ANSWER)


# Exit and fork.


EXITS = {
    "stream": """
        other, mine = bbipc.local_stream_pair()
        other.write(b"unread")
        done = pool.FutureStream(mine, pool.PollerThread()).close()
    """,
    "server": """
        def handler(stream):
            stream.read(1)
        server = pool.ConnectionServer(bbipc.make_ipv4_tcp_server(bbipc.IPV4_LOOPBACK, 0), handler)
        server.start()
        other = bbipc.connect_to_ipv4_tcp_server(bbipc.IPV4_LOOPBACK, server.servers[0].port)
        assert bbipc.poll_socket(other, bbipc.SocketEvent.DETERMINED, 10)
        other.write(b"unread")
    """,
    "closed at the exit": """
        other, mine = bbipc.local_stream_pair()
        stream = pool.FutureStream(mine, pool.PollerThread())
        assert stream.write(b"x").done() and other.read()
        late = lambda: stream.close().result(0)
    """,
}


@pytest.mark.parametrize("kind", EXITS)
def test_the_interpreter_does_not_wait_for_a_linger(kind: str) -> None:
    """What is printed: whether it lingers when the exit begins; and the exit is quick."""
    begin = """
        import atexit, time
        late = int
        atexit.register(lambda: late())  # behind what pool does at the exit
        import bbipc, pool
        from pool import lingering
    """
    wait = "assert bbipc.poll_socket(other, bbipc.SocketEvent.REMOTE_DISCONNECTED, 10)"
    if kind == "closed at the exit":
        wait = "other.write(b'unread')"
    report = "print(len(lingering._all), time.time(), flush=True)"
    program = "\n".join([textwrap.dedent(begin), textwrap.dedent(EXITS[kind]), wait, report])
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    ended = time.time()
    assert (done.returncode, done.stderr) == (0, "")
    lingers, began = done.stdout.split()
    assert int(lingers) == (kind != "closed at the exit")
    assert ended - float(began) < 1.5


def test_a_ctrl_c_while_somebody_waits_for_it_changes_nothing(scene: Scene) -> None:
    done = scene.linger()
    with interrupted_after(0.1), pytest.raises(KeyboardInterrupt):
        done.result(PATIENCE)
    assert not done.done()
    scene.peer.sendall(b"still read")
    scene.peer.close()
    assert done.result(PATIENCE) is None


@contextlib.contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    """A Ctrl-C then."""
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@FORKS[0]
@FORKS[1]
@pytest.mark.parametrize("how", ["close", "with", "cut"])
def test_a_forked_child_closes_its_copy_and_the_parents_lingers_on(scene: Scene, how: str) -> None:
    done = scene.linger()
    child = os.fork()
    if not child:
        try:
            if how == "close":
                scene.stream.close().result(0)
            elif how == "with":
                scene.stream._leave(True, 1.0)
            else:
                lingering.close_now(scene.stream.stream)
            os._exit(0 if scene.stream.closed else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not done.done()
    scene.peer.sendall(b"still read")
    scene.peer.close()
    assert done.result(PATIENCE) is None


def test_an_echo_is_not_delayed(namespace: Namespace) -> None:
    """The way of every day: all is read, and the close is at once."""

    def handler(stream: StreamSocket) -> None:
        with FutureStream(stream, served.workers.poller_thread) as futures:
            futures.write(futures.read().result(PATIENCE))

    server = namespace.make_server()
    with ConnectionServer(server, handler) as served:
        for _ in range(5):
            with namespace.connect_plainly(server) as peer:
                assert ask(peer) == b"hello"
                assert at_end(peer)
                until(lambda: served.stats().connections == 0)
