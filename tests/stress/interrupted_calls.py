"""The calls of the layers above a polling loop that ``interrupts.py`` interrupts: streams, connections, pools, servers.

Each case has something that is still to come (a peer that reads, a connection, bytes), and its check lets it come
about: only then does the poller thread meet what the interrupt has left behind.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Final

import bbipc
from bbipc import SocketEvent
from pool.future_stream import FutureStream
from pool.message_server import MessageServer
from pool.poller_thread import PollerThread
from pool.server import ConnectionServer
from pool.stopping import StopReport
from pool.worker_pool import Monitoring, WorkerPool
from tests.support.serving import until

DATA = SocketEvent.DATA_AVAILABLE
END = SocketEvent.REMOTE_DISCONNECTED
PING = 0.5  # seconds within which everybody has to answer
FIRST, SECOND, MARK = b"a" * 400_000, b"b" * 5_000, b"the end"

_paths = itertools.count()
Calls = dict[str, Callable[[], object]]


def nothing(*args: object) -> None:
    """A callback, and a handler."""


def ping(poller_thread: PollerThread) -> None:
    """The poller thread does whatever it is asked for."""
    assert poller_thread.call_later(0, lambda: 7).result(PING) == 7
    one, other = bbipc.local_stream_pair()
    with one, other:
        future = poller_thread.when(one, DATA)
        other.write(b"x")
        assert future.result(PING) == DATA


class AboveCase(ABC):
    """One call of *calls*, of something that is in use.  A case whose interrupt is not judged is ended by ``drop``."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.poller_thread = PollerThread()
        self.poller_thread.call_later(0, nothing).result(PING)
        self.one, self.other = bbipc.local_stream_pair()
        self.rest = contextlib.ExitStack()

    @abstractmethod
    def call(self) -> Callable[[], object]:
        """What is to be interrupted."""

    def check(self) -> None:
        """Called in another thread behind the interrupt: what was to come comes, and all is in order."""
        self.come_about()
        ping(self.poller_thread)
        self.poller_thread.close(PING)
        assert self.poller_thread._thread is not None
        assert not self.poller_thread._thread.is_alive(), "the thread does not end"

    @abstractmethod
    def come_about(self) -> None:
        """What was to come comes."""

    def drop(self) -> None:
        """The call got through."""
        self.poller_thread.close(PING)

    def end(self) -> None:
        """Behind the check."""
        self.rest.close()
        self.one.close()
        self.other.close()


class Writing(AboveCase):
    """A stream with more to be sent than the kernel takes; then its peer reads."""

    NAMES = (
        "write",
        "write with a timeout",
        "write, and its time is up",
        "flush",
        "flush with a timeout",
        "flush, and its time is up",
        "shutdown_write",
        "close of a stream",
        "close of a stream with a timeout",
    )

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.stream = FutureStream(self.one, self.poller_thread, write_limit=1000)
        self.first = self.stream.write(FIRST, timeout=60)
        assert not self.first.done()

    def call(self) -> Callable[[], object]:
        stream = self.stream
        calls: Calls = {
            "write": lambda: stream.write(SECOND),
            "write with a timeout": lambda: stream.write(SECOND, timeout=60),
            "write, and its time is up": lambda: stream.write(SECOND, timeout=0.001),
            "flush": lambda: stream.flush(),  # noqa: PLW0108
            "flush with a timeout": lambda: stream.flush(timeout=60),
            "flush, and its time is up": lambda: stream.flush(timeout=0.001),
            "shutdown_write": lambda: stream.shutdown_write(),  # noqa: PLW0108
            "close of a stream": lambda: stream.close(),  # noqa: PLW0108
            "close of a stream with a timeout": lambda: stream.close(timeout=60),
        }
        return calls[self.name]

    def come_about(self) -> None:
        """The peer gets the first write, then the other one or nothing of it, then what is written now, unless that is
        refused; and the stream can be closed."""
        mark = self.stream.write(MARK, timeout=PING)
        received = bytearray()
        while bbipc.poll_socket(self.other, DATA | END, PING) and (part := self.other.read()):
            received += part
            if received.endswith(MARK) or (mark.done() and mark.exception() and len(received) == len(FIRST)):
                break
        told = mark.exception(PING)
        if told is not None and not isinstance(told, bbipc.SocketError):
            raise told
        whole = [FIRST, FIRST + SECOND]
        assert bytes(received) in ([each + MARK for each in whole] if told is None else whole), (told, len(received))
        futures: list[Future[int] | Future[None]] = [self.first, self.stream.flush()]
        assert not any(future.exception(PING) and told is None for future in futures)
        self.stream.close().exception(PING)
        assert self.one.closed


class Reading(AboveCase):
    """A stream; then its peer writes, and somebody else connects."""

    NAMES = (
        "read",
        "read with a timeout",
        "read, and its time is up",
        "read_exactly",
    )

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.stream = FutureStream(self.one, self.poller_thread)

    def call(self) -> Callable[[], object]:
        stream = self.stream
        calls: Calls = {
            "read": lambda: stream.read(),  # noqa: PLW0108
            "read with a timeout": lambda: stream.read(timeout=60),
            "read, and its time is up": lambda: stream.read(timeout=0.001),
            "read_exactly": lambda: stream.read_exactly(1),
        }
        return calls[self.name]

    def come_about(self) -> None:
        """The byte goes to the interrupted read, whose future nobody has, or to the next one; or it is told that bytes
        may be missing."""
        self.other.write(b"x")
        future = self.stream.read(1)
        if wait([future], 0.02).not_done:
            self.other.write(b"y")
        told = future.exception(PING)
        if told is None:
            assert future.result() in {b"x", b"y"}
        elif not isinstance(told, bbipc.SocketError):
            raise told


class Connecting(AboveCase):
    """A server; then somebody connects, or is accepted."""

    NAMES = (
        "accept",
        "accept with a timeout",
        "accept, and its time is up",
        "connect",
        "connect where the backlog is full",
    )

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.path = f"\0bbipc-interrupts-{os.getpid()}-{next(_paths)}"
        self.server = self.rest.enter_context(bbipc.make_local_server(self.path, backlog=1))
        self.waiting = 0
        self.future: Future[FutureStream] | None = None
        if name == "connect where the backlog is full":
            for _ in range(3):
                self.rest.enter_context(bbipc.connect_to_local_server(self.path))

    def call(self) -> Callable[[], object]:
        def connect() -> None:
            self.future = self.poller_thread.connect_local(self.path, timeout=60)

        calls: Calls = {
            "accept": lambda: self.poller_thread.accept(self.server),
            "accept with a timeout": lambda: self.poller_thread.accept(self.server, timeout=60),
            "accept, and its time is up": lambda: self.poller_thread.accept(self.server, timeout=0.001),
            "connect": lambda: connect(),  # noqa: PLW0108
            "connect where the backlog is full": lambda: connect(),  # noqa: PLW0108
        }
        return calls[self.name]

    def come_about(self) -> None:
        """Each who connects is served: by the interrupted accept, whose future nobody has, or by the next one."""
        for _ in range(4):  # those who are there, and the one who was interrupted, if he is
            with contextlib.suppress(bbipc.NoConnectionAvailableError):
                self.rest.enter_context(self.server.accept_connection())
        future = self.poller_thread.accept(self.server)
        while not future.done():
            self.rest.enter_context(self.poller_thread.connect_local(self.path).result(PING))
            wait([future], 0.02)
            self.waiting += 1
            assert self.waiting < 4, "a connection is given to nobody"
        self.rest.enter_context(future.result())
        if self.future is not None:
            self.rest.enter_context(self.future.result(PING))


class Pooling(AboveCase):
    """A pool, and a socket; then that becomes ready."""

    NAMES = (
        "submit",
        "when of a pool",
        "when of a pool with a timeout",
        "when of a pool, and its time is up",
        "when of a pool, and it is there",
        "monitor of a pool",
        "cancel of a pool's monitor",
        "pause of a pool's monitor",
        "resume of a pool's monitor",
    )

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.pool = WorkerPool(2, poller_thread=self.poller_thread)
        self.pool.submit(nothing).result(PING)
        self.called = 0
        self.monitor: Monitoring | None = None
        if "of a pool's monitor" in name:
            self.monitor = self.pool.monitor(self.one, DATA, self._take)
        if name == "resume of a pool's monitor":
            assert self.monitor is not None
            self.monitor.pause()

    def _take(self, stream: object, events: object) -> None:
        self.called += 1
        self.one.read()

    def call(self) -> Callable[[], object]:
        pool, one = self.pool, self.one
        monitor: Monitoring = self.monitor  # type: ignore[assignment]
        calls: Calls = {
            "submit": lambda: pool.submit(nothing),
            "when of a pool": lambda: pool.when(one, DATA, self._take),
            "when of a pool with a timeout": lambda: pool.when(one, DATA, self._take, timeout=60),
            "when of a pool, and its time is up": lambda: pool.when(one, DATA, self._take, timeout=0.001),
            "when of a pool, and it is there": lambda: pool.when(one, SocketEvent.READY_TO_WRITE, self._take),
            "monitor of a pool": lambda: pool.monitor(one, DATA, self._take),
            "cancel of a pool's monitor": lambda: monitor.cancel(),  # noqa: PLW0108
            "pause of a pool's monitor": lambda: monitor.pause(),  # noqa: PLW0108
            "resume of a pool's monitor": lambda: monitor.resume(),  # noqa: PLW0108
        }
        return calls[self.name]

    def come_about(self) -> None:
        """It is called for what comes once, or not at all, and the workers work."""
        self.other.write(b"x")
        assert self.pool.submit(lambda: 7).result(PING) == 7
        one, other = bbipc.local_stream_pair()
        with one, other:
            future = self.pool.when(one, DATA, lambda stream, events: 7)
            other.write(b"x")
            assert future.result(PING) == 7
        ping(self.poller_thread)
        assert self.called <= 1
        self.pool.shutdown(timeout=PING)
        assert self.pool.stats().threads == 0, "a worker does not end"

    def drop(self) -> None:
        self.pool.shutdown(timeout=PING)
        super().drop()


class Serving(AboveCase):
    """A server with a client; then it is stopped."""

    NAMES = (
        "start of a server",
        "stop of a server",
        "start of a message server",
        "stop of a message server",
    )

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.pool = WorkerPool(2, poller_thread=self.poller_thread)
        self.pool.submit(nothing).result(PING)
        listening = bbipc.make_local_server(f"\0bbipc-interrupts-{os.getpid()}-{next(_paths)}")
        self.path = listening.path
        self.messages = "message server" in name
        self.server: ConnectionServer | MessageServer
        if self.messages:
            self.server = MessageServer(listening, nothing, workers=self.pool)
        else:
            self.server = ConnectionServer(listening, self._answer, per="readiness", workers=self.pool)
        self.client: socket.socket | None = None
        if name.startswith("stop"):
            self.server.start()
            self.client = self._connect()

    @staticmethod
    def _answer(stream: bbipc.StreamSocket) -> None:
        data = stream.read()
        if data:
            stream.write(data)

    def _connect(self) -> socket.socket:
        """A client that is inside: one who was answered, or has only connected, where answers are messages."""
        client = self.rest.enter_context(socket.socket(socket.AF_UNIX))
        client.settimeout(PING)
        client.connect(os.fsencode(self.path))
        if self.messages:
            until(lambda: self.server.stats().connections == 1)
        else:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
        return client

    def call(self) -> Callable[[], object]:
        server = self.server
        if self.name.startswith("stop"):
            return lambda: server.stop(0.1)
        return lambda: server.start()  # noqa: PLW0108

    def come_about(self) -> None:
        """It serves, and can be stopped."""
        if self.client is None:
            self.server.start()
            self.client = self._connect()
        report = self.server.stop(0.1)
        assert report == StopReport(drained=1), report
        assert self.client.recv(1) == b"", "the connection is served for ever"
        assert self.server.stats().connections == 0
        assert self.server._stopping.wait_for_end(0), "who waits for the end waits for ever"
        assert self.pool.submit(lambda: 7).result(PING) == 7
        ping(self.poller_thread)
        self.pool.shutdown(timeout=PING)

    def drop(self) -> None:
        self.server.stop(0)
        self.pool.shutdown(timeout=PING)
        super().drop()


KINDS: Final = (Writing, Reading, Connecting, Pooling, Serving)
#: who makes the case of a call
CASES: Final[dict[str, Callable[[str], AboveCase]]] = {name: kind for kind in KINDS for name in kind.NAMES}
#: all calls; those of a polling loop are in ``interrupts.py``
NAMES: Final = {
    "PollingLoop": (
        "when",
        "when with a timeout",
        "when, and it is there",
        "monitor",
        "monitor beside another",
        "cancel",
        "cancel of one of two",
        "pause",
        "resume",
        "set_events",
        "call_later",
        "call_later, and it is due",
        "close of a socket",
        "first use",
        "close",
        "repr",
    ),
    **{kind.__name__: kind.NAMES for kind in KINDS},
}
