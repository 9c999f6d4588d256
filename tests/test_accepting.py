"""Accepting, and what it is made of: the spare number, and the gate that keeps the log dry."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self
from unittest import mock

import pytest

import bbipc
from bbipc import PollerClosedError, SocketClosedError, SocketError, StreamSocket
from bbipc.sockets.handle import make_handle
from bbipc.sockets.spare import SpareNumber
from pool.accepting import FEW, PAUSE, SOON, TURN, Accepting
from pool.polling_loop import PollingLoop
from pool.seldom import Seldom
from tests.support.makers import PATIENCE, Namespace, Server, Worker, make_namespace
from tests.support.serving import at_end, until

OUT_OF_NUMBERS = (errno.EMFILE, errno.ENFILE)
OUT_OF_MEMORY = (errno.ENOBUFS, errno.ENOMEM)
#: accept(2): of a peer that has gone already
VANISHED = (
    errno.ECONNABORTED,
    errno.EPROTO,
    errno.EINTR,
    errno.EPERM,
    errno.ENETDOWN,
    errno.ENOPROTOOPT,
    errno.EHOSTDOWN,
    errno.ENONET,
    errno.EHOSTUNREACH,
    errno.EOPNOTSUPP,
    errno.ENETUNREACH,
)


@pytest.fixture
def loop() -> Iterator[PollingLoop]:
    with PollingLoop() as loop:
        yield loop


@pytest.fixture
def ipv4(short_dir: Path) -> Namespace:
    return make_namespace("ipv4", short_dir)


class Doors:
    """An Accepting with *servers*, and the connections that it took."""

    def __init__(self, loop: PollingLoop, *servers: Server, limit: int | None = None, opens: bool = True) -> None:
        self.opens = opens
        self.taken: list[StreamSocket] = []
        self.threads: set[bool] = set()
        self.loop = loop
        self.ended: list[Exception] = []
        self.servers = servers
        self.backlog = 0  # sockets that are ready, and wait for workers
        self.accepting = Accepting(
            servers,
            loop,
            self.take,
            inside=self.taken.__len__,
            limit=limit,
            on_end=self.ended.append,
            backlog=lambda: self.backlog,
        )

    def take(self, stream: StreamSocket) -> None:
        self.threads.add(self.loop.is_current())
        self.taken.append(stream)

    def lose(self, count: int = 1) -> None:
        for _ in range(count):
            self.taken.pop(0).close()
            self.accepting.left()

    def __enter__(self) -> Self:
        if self.opens:
            self.accepting.open()
        return self

    def __exit__(self, *_error: object) -> None:
        self.accepting.close()
        for socket_ in (*self.servers, *self.taken):
            socket_.close()


class Failing:
    """accept_connection, with some errors before; a call on it is counted."""

    def __init__(self, server: Server, *numbers: int) -> None:
        self.left = list(numbers)
        self.calls = 0
        self._accept = type(server).accept_connection

    def accept(self, server: Any) -> StreamSocket:
        self.calls += 1
        if self.left:
            raise SocketError(self.left.pop(0), socket=server)
        return self._accept(server)


@contextlib.contextmanager
def failing(server: Server, *numbers: int) -> Iterator[Failing]:
    failing = Failing(server, *numbers)
    with mock.patch.object(type(server), "accept_connection", autospec=True, side_effect=failing.accept):
        yield failing


@contextlib.contextmanager
def all_numbers_taken() -> Iterator[Callable[[], None]]:
    """This process has no free descriptor number; what is given frees one."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(int(name) for name in os.listdir("/proc/self/fd")) + 40, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                held.append(os.dup(2))
        yield lambda: os.close(held.pop())
    finally:
        for number in held:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def open_numbers() -> int:
    return len(os.listdir("/proc/self/fd"))


# Accepting.


def test_connections_are_taken_as_they_come(namespace: Namespace, loop: PollingLoop) -> None:
    server = namespace.make_server()
    with Doors(loop, server) as doors, contextlib.ExitStack() as stack:
        for count in range(5):
            stack.enter_context(namespace.connect_plainly(server))
            until(lambda count=count: len(doors.taken) == count + 1)  # type: ignore[misc]
        assert doors.accepting.accepted == 5
    assert doors.threads == {True}


def test_a_turn_is_bounded(ipv4: Namespace, loop: PollingLoop) -> None:
    """100 wait; after TURN of them, the loop's other sockets have their turn."""
    server = ipv4.make_server(backlog=200)
    seen: list[int] = []
    hold, held = threading.Event(), threading.Event()
    one, other = bbipc.local_stream_pair()

    def look(stream: bbipc.Socket, _events: object) -> None:
        seen.append(len(doors.taken))
        if len(doors.taken) == 100:
            monitor.cancel()

    def block() -> None:
        held.set()
        assert hold.wait(PATIENCE)

    with Doors(loop, server, opens=False) as doors, contextlib.ExitStack() as stack, one, other:
        for _ in range(100):
            stack.enter_context(ipv4.connect_plainly(server))
        other.write(b"x")
        loop.call_later(0, block)
        assert held.wait(PATIENCE)
        with mock.patch("pool.accepting.TURN_TIME", 60):
            doors.accepting.open()
            monitor = loop.monitor(one, bbipc.SocketEvent.DATA_AVAILABLE, look)
            hold.set()
            until(lambda: not monitor.active)
    assert set(seen) <= {0, TURN, 100}
    assert TURN in seen


def test_a_turn_is_bounded_in_time(ipv4: Namespace, loop: PollingLoop) -> None:
    """With a clock that goes by a second a look, each turn accepts one."""
    server = ipv4.make_server()
    clock = mock.patch("pool.accepting.time.monotonic", side_effect=itertools.count())
    with Doors(loop, server, opens=False) as doors, contextlib.ExitStack() as stack, clock:
        for _ in range(3):
            stack.enter_context(ipv4.connect_plainly(server))
        for count in (1, 2, 3):
            doors.accepting._turn(server, server, bbipc.SocketEvent.CONNECTION_AVAILABLE)
            assert len(doors.taken) == count


def test_behind_workers_who_lag_few_are_let_in_at_a_time(ipv4: Namespace, loop: PollingLoop) -> None:
    """Those that are inside come first; and nobody is left outside for good."""
    server = ipv4.make_server(backlog=64)
    with Doors(loop, server, opens=False) as doors, contextlib.ExitStack() as stack:
        doors.backlog = TURN
        with mock.patch.object(Accepting, "_shut_for", autospec=True) as shut_for:
            for _ in range(3 * FEW):
                stack.enter_context(ipv4.connect_plainly(server))
            doors.accepting._spare.take()
            doors.accepting._turn(server, server, bbipc.SocketEvent.CONNECTION_AVAILABLE)
        shut_for.assert_called_once_with(doors.accepting, SOON)
        assert len(doors.taken) == FEW
        doors.accepting.open()
        until(lambda: len(doors.taken) == 3 * FEW)
        doors.backlog = TURN - 1
        for _ in range(2 * FEW):
            stack.enter_context(ipv4.connect_plainly(server))
        until(lambda: len(doors.taken) == 5 * FEW)
        until(lambda: not doors.accepting.paused)


def test_full_doors_are_shut_and_open_again(namespace: Namespace, loop: PollingLoop) -> None:
    """At the limit, one past it; 30 rounds."""
    servers = [namespace.make_server(), namespace.make_server()]
    with Doors(loop, *servers, limit=2) as doors, contextlib.ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(namespace.connect_plainly(servers[0]))
        until(lambda: doors.accepting.paused)
        assert len(doors.taken) == 2
        for round_ in range(30):
            stack.enter_context(namespace.connect_plainly(servers[round_ % 2]))
            assert len(doors.taken) == 2
            doors.lose()
            until(lambda: len(doors.taken) == 2)
        assert doors.accepting.accepted == 32


def test_that_the_doors_are_full_is_seen_though_the_turn_was_over(ipv4: Namespace, loop: PollingLoop) -> None:
    with mock.patch("pool.accepting.TURN_TIME", -1.0), Doors(loop, ipv4.make_server(), limit=1) as doors:
        with ipv4.connect_plainly(doors.servers[0]):
            until(lambda: doors.accepting.paused)


def test_who_leaves_while_the_doors_are_being_shut_opens_them(ipv4: Namespace, loop: PollingLoop) -> None:
    """1. They count the connections, and find that they are full.  2. One leaves.  3. They are shut: for ever?"""
    server = ipv4.make_server()
    leaving: list[Worker] = []
    with Doors(loop, server, limit=1) as doors, contextlib.ExitStack() as stack:
        count = doors.accepting._inside

        def count_and_lose() -> int:
            inside = count()
            if inside and not leaving:
                leaving.append(Worker(doors.lose))
                leaving[0].join(0.1)  # it has to wait until they are shut
            return inside

        doors.accepting._inside = count_and_lose
        for _ in range(2):
            stack.enter_context(ipv4.connect_plainly(server))
        until(lambda: doors.accepting.accepted == 2)
        leaving[0].outcome()


def test_closed_doors_take_nobody(namespace: Namespace, loop: PollingLoop) -> None:
    server = namespace.make_server()
    with Doors(loop, server) as doors:
        doors.accepting.close()
        doors.accepting.close()
        with namespace.connect_plainly(server):
            loop.call_later(0.01, int).result(PATIENCE)
            assert not doors.taken


@pytest.mark.parametrize("number", VANISHED, ids=errno.errorcode.__getitem__)
def test_a_peer_that_has_gone_is_skipped(ipv4: Namespace, loop: PollingLoop, number: int) -> None:
    """HAZARDS 11: each errno of accept(2) that is a peer's, 100 times."""
    server = ipv4.make_server()
    handle = type(server._handle)
    accept, errors = handle._accept, [number] * 100  # type: ignore[attr-defined]

    def fail(self: object) -> object:
        if errors:
            raise OSError(errors.pop(), "injected")
        return accept(self)

    with mock.patch.object(handle, "_accept", fail, create=True), Doors(loop, server) as doors:
        with ipv4.connect_plainly(server):
            until(lambda: len(doors.taken) == 1)
    assert not errors
    assert doors.accepting.shed == 0


@pytest.mark.parametrize("number", OUT_OF_NUMBERS, ids=errno.errorcode.__getitem__)
def test_out_of_descriptors_who_waits_is_turned_away(
    namespace: Namespace, loop: PollingLoop, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    server = namespace.make_server()
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(namespace.connect_plainly(server)) for _ in range(30)]
        with failing(server, number), Doors(loop, server) as doors:
            begin = time.monotonic()
            assert all(at_end(peer) for peer in peers)
            assert time.monotonic() - begin < 1
            until(lambda: doors.accepting.shed == 30)
            next_one = stack.enter_context(namespace.connect_plainly(server))
            next_one.sendall(b"x")
            until(lambda: len(doors.taken) == 1)
            assert time.monotonic() - begin < PAUSE + 1
    assert doors.accepting.accepted == 1
    assert "30 turned away" in caplog.text


@pytest.mark.parametrize("number", [*OUT_OF_MEMORY, errno.EINVAL], ids=errno.errorcode.__getitem__)
def test_out_of_memory_who_waits_goes_on_waiting(
    namespace: Namespace, loop: PollingLoop, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Three times; then all of them are accepted."""
    server = namespace.make_server()
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(namespace.connect_plainly(server))
        with failing(server, *[number] * 3) as accept, Doors(loop, server) as doors:
            begin = time.monotonic()
            until(lambda: doors.accepting.paused)
            until(lambda: len(doors.taken) == 3)
            assert time.monotonic() - begin >= 3 * PAUSE
            until(lambda: not doors.accepting.paused)
            assert accept.calls <= 3 + 3 + 3  # none, but for the last of a turn, that was not asked for
    assert doors.accepting.shed == 0
    assert 1 <= len(caplog.records) <= 2


@pytest.mark.parametrize(("spare", "pause"), [(True, PAUSE), (False, SOON)], ids=["spare", "stolen"])
def test_a_starving_server_does_not_spin(ipv4: Namespace, loop: PollingLoop, spare: bool, pause: float) -> None:
    """For 0.5 s, with a spare number, and without one: others have taken it.  Each turn is a try and a pause."""
    server = ipv4.make_server()
    held = mock.patch.object(SpareNumber, "held", spare)
    take = mock.patch.object(SpareNumber, "take", return_value=spare)
    with failing(server, *[errno.ENOMEM] * 1000) as accept, held, take as tries:
        with ipv4.connect_plainly(server), Doors(loop, server):
            spent = loop.call_later(0, time.thread_time).result(PATIENCE)
            spent = loop.call_later(0.5, time.thread_time).result(PATIENCE) - spent
    assert 0 < max(accept.calls, tries.call_count) < 2 * 0.5 / pause + 3
    assert spent < 0.05 * 0.5 * 3  # 5 %, and some for a machine that is busy


def test_nobody_is_let_in_without_a_spare_number(ipv4: Namespace, loop: PollingLoop) -> None:
    """He would be given the number that was stolen, and the next ones would wait for ever."""
    server = ipv4.make_server()
    stolen = threading.Event()
    stolen.set()
    take = SpareNumber.take
    with mock.patch.object(SpareNumber, "take", lambda self: not stolen.is_set() and take(self)):
        with Doors(loop, server) as doors, ipv4.connect_plainly(server):
            until(lambda: doors.accepting.paused)
            loop.call_later(3 * SOON, int).result(PATIENCE)
            assert not doors.taken
            stolen.clear()
            until(lambda: len(doors.taken) == 1)


@pytest.mark.parametrize("error", [RuntimeError("no worker"), OSError(errno.ENOSPC, "x")], ids=["worker", "kernel"])
def test_who_is_not_taken_is_closed(
    namespace: Namespace, loop: PollingLoop, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    server = namespace.make_server()
    with Doors(loop, server) as doors:
        doors.accepting._take = mock.Mock(side_effect=error)
        for count in (1, 2):
            with namespace.connect_plainly(server) as peer:
                assert at_end(peer)
            until(lambda count=count: doors.accepting.refused == count)  # type: ignore[misc]
    assert doors.accepting.accepted == 0
    assert len(caplog.records) == 1


def test_doors_that_the_kernel_will_not_open_are_tried_again(ipv4: Namespace, loop: PollingLoop) -> None:
    """epoll has no room to take a monitor back."""
    server = ipv4.make_server()
    with Doors(loop, server, limit=1) as doors, contextlib.ExitStack() as stack:
        stack.enter_context(ipv4.connect_plainly(server))
        until(lambda: doors.accepting.paused)
        stack.enter_context(ipv4.connect_plainly(server))
        monitor = doors.accepting._monitors[0]
        with mock.patch.object(type(monitor), "resume", side_effect=[OSError(errno.ENOSPC, "x")] * 2) as resume:
            doors.lose()
            until(lambda: resume.call_count == 2)
        until(lambda: len(doors.taken) == 1)


def test_the_end_of_the_loop_is_told(ipv4: Namespace) -> None:
    server = ipv4.make_server()
    loop = PollingLoop()
    with Doors(loop, server, ipv4.make_server()) as doors:
        server.close()
        loop.call_later(0, int).result(PATIENCE)
        assert not doors.ended
        loop.close()
        until(lambda: len(doors.ended) == 1)
    assert isinstance(doors.ended[0], PollerClosedError)


def test_what_cannot_be_opened_leaves_nothing(ipv4: Namespace, loop: PollingLoop) -> None:
    closed = ipv4.make_server()
    closed.close()
    before = open_numbers()
    with ipv4.make_server() as server:
        doors = Doors(loop, server, closed)
        with pytest.raises(SocketClosedError):
            doors.accepting.open()
        assert open_numbers() <= before + 3  # the server's; the loop's poller
        assert "0 sockets" in repr(loop)
    assert not doors.accepting._spare.held


# The spare number.


def test_a_spare_number_is_one_number() -> None:
    spare = SpareNumber()
    before = open_numbers()
    assert not spare.held
    assert spare.take()
    assert spare.take()
    assert spare.held
    assert open_numbers() == before + 1
    spare.close()
    spare.close()
    assert open_numbers() == before
    assert not spare.take()
    assert not spare.held
    assert open_numbers() == before


def test_without_a_number_there_is_no_spare_one() -> None:
    spare = SpareNumber()
    with all_numbers_taken() as free_one:
        assert not spare.take()
        free_one()
        assert spare.take()
    spare.close()


def test_peers_are_turned_away_with_no_number_but_the_spare_one(namespace: Namespace) -> None:
    """A real shortage: as many as asked for, all that wait, none; and the number is ours at the end."""
    with namespace.make_server() as server, contextlib.ExitStack() as stack:
        peers = [stack.enter_context(namespace.connect_plainly(server)) for _ in range(5)]
        spare = SpareNumber()
        spare.take()
        with all_numbers_taken():
            with pytest.raises(SocketError):
                server.accept_connection()
            assert spare.turn_away(server, 2) == 2
            assert [at_end(peer) for peer in peers[:2]] == [True] * 2
            assert spare.held
            with pytest.raises(SocketError):  # not a moment was it free
                server.accept_connection()
            assert spare.turn_away(server, 10) == 3
            assert spare.turn_away(server, 10) == 0
            assert spare.held
            assert all(at_end(peer) for peer in peers)
        spare.close()


def test_the_number_of_who_was_turned_away_is_kept(ipv4: Namespace) -> None:
    """It is not freed and looked for again: somebody else would be faster."""
    with ipv4.make_server() as server, contextlib.ExitStack() as stack:
        peers = [stack.enter_context(ipv4.connect_plainly(server)) for _ in range(3)]
        spare = SpareNumber()
        spare.take()
        with mock.patch("bbipc.sockets.spare.make_handle", side_effect=OSError(errno.EMFILE, "x")):
            assert spare.turn_away(server, 10) == 3
            assert all(at_end(peer) for peer in peers)
            assert spare.held
        spare.close()


def test_a_number_that_is_stolen_is_looked_for_again(ipv4: Namespace) -> None:
    """Between its release and the accept, somebody else takes it."""
    stolen: list[int] = []
    with ipv4.make_server() as server, ipv4.connect_plainly(server) as peer:
        spare = SpareNumber()
        spare.take()
        accept = bbipc.IPv4TCPServer.accept_connection

        def slow_accept(server: bbipc.IPv4TCPServer) -> StreamSocket:
            if not stolen:
                stolen.append(os.dup(2))
            return accept(server)

        with all_numbers_taken() as free_one, mock.patch.object(bbipc.IPv4TCPServer, "accept_connection", slow_accept):
            assert spare.turn_away(server, 10) == 0
            assert not spare.held
            assert spare.turn_away(server, 10) == 0
            os.close(stolen[0])
            assert spare.turn_away(server, 10) == 1
            assert at_end(peer)
            assert spare.held
            free_one()
        spare.close()


def test_nobody_waits_or_the_server_is_closed(ipv4: Namespace) -> None:
    spare = SpareNumber()
    with ipv4.make_server() as server:
        assert spare.turn_away(server, 5) == 0
        assert spare.held
    assert spare.turn_away(server, 5) == 0
    assert spare.held
    spare.close()
    assert spare.turn_away(server, 5) == 0


def test_a_spare_number_has_a_file_of_its_own_where_it_can(ipv4: Namespace) -> None:
    """Where it is files that the system is out of (ENFILE), a tombstone would be of no use."""
    with ipv4.make_server() as server, ipv4.connect_plainly(server):
        spare = SpareNumber()
        assert spare.turn_away(server, 1) == 1
        assert spare._handle is not None
        assert "socket" not in os.readlink(f"/proc/self/fd/{spare._handle.fileno()}")
        before = open_numbers()
        assert spare.take()
        assert "socket" in os.readlink(f"/proc/self/fd/{spare._handle.fileno()}")
        assert open_numbers() == before
        spare.close()


def test_a_spare_number_that_is_closed_meanwhile_keeps_nothing() -> None:
    spare = SpareNumber()
    before = open_numbers()
    spare.close()
    spare._keep(make_handle(socket.AF_INET), has_file=True)
    assert open_numbers() == before
    assert not spare.held


# Seldom.


def test_once_a_second_at_most_and_nobody_is_forgotten() -> None:
    now = [0.0]
    seldom = Seldom(clock=lambda: now[0])
    assert [seldom.ask() for _ in range(4)] == [0, None, None, None]
    now[0] = 0.999
    assert seldom.ask() is None
    now[0] = 1.0
    assert [seldom.ask(), seldom.ask()] == [4, None]
    now[0] = 60
    assert [seldom.ask(), seldom.ask()] == [1, None]


def test_of_many_threads_one_is_let_through() -> None:
    """8 threads, 200 rounds."""
    now = [0.0]
    seldom = Seldom(clock=lambda: now[0])
    barrier = threading.Barrier(8)
    through = []

    def ask() -> None:
        for _ in range(200):
            barrier.wait(PATIENCE)
            answer = seldom.ask()
            if answer is not None:
                through.append(answer)
            if barrier.wait(PATIENCE) == 0:
                now[0] += 1

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(through) == 200
    assert sum(through) == 199 * 7
