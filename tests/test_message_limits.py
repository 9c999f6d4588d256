"""The limits of a MessageServer: each at its last allowed value and one past it, and what the statistics say of it."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from pool import MessageServer, Request, WorkerPool
from pool.message_limits import LINGER_TIME, Limits
from pool.message_sweep import Sweep
from pool.requests import Peer
from pool.unverified import Unverified
from tests.support import wire
from tests.support.makers import PATIENCE, Namespace, make_namespace
from tests.support.serving import at_end, until
from tests.support.wire import BINARY, Frame, is_failure, receive, receive_all, string, tagged

HELLO = string("hello")
every_runner = pytest.mark.parametrize("kind", ["workers", "inline", "executor"])


@pytest.fixture
def local(short_dir: Path) -> Namespace:
    return make_namespace("local", short_dir)


@contextlib.contextmanager
def served(local: Namespace, kind: str, handler: Any, **options: Any) -> Iterator[tuple[MessageServer, socket.socket]]:
    with contextlib.ExitStack() as stack:
        workers: Any = kind
        if kind != "inline":
            workers = stack.enter_context(WorkerPool(4) if kind == "workers" else ThreadPoolExecutor(4))
        listening = local.make_server()
        server = stack.enter_context(MessageServer(listening, handler, workers=workers, **options))
        yield server, stack.enter_context(local.connect_plainly(listening))


def connect(local: Namespace, server: MessageServer) -> socket.socket:
    return local.connect_plainly(server.servers[0])  # type: ignore[arg-type]


class Later:
    """A handler whose responses come when the test gives them."""

    def __init__(self) -> None:
        self.futures: list[Future[bytes]] = []

    def __call__(self, request: Request) -> Future[bytes]:
        self.futures.append(Future())
        return self.futures[-1]


# How much is in flight.


@every_runner
def test_requests_of_one_connection(local: Namespace, kind: str) -> None:
    """Four may be with the handler; a fifth in the same piece waits, and what comes behind it is not read."""
    later = Later()
    with served(local, kind, later, max_in_flight=4) as (server, peer):
        peer.sendall(b"".join(tagged(HELLO, number).encoded() for number in range(4)))
        until(lambda: len(later.futures) == 4)
        assert server.stats().held_for_requests == 0
        peer.sendall(b"".join(tagged(HELLO, number).encoded() for number in range(4, 6)))
        until(lambda: server.stats().held_for_requests == 1)
        assert (server.stats().in_flight, server.stats().requests) == (4, 4)
        for number in range(6):
            until(lambda number=number: len(later.futures) > number)  # type: ignore[misc]
            later.futures[number].set_result(b"x")
        replies = [receive(peer) for _ in range(6)]  # executors begin the calls in whatever order
        assert {frame.word for frame in replies if frame is not None} == set(range(6))
        assert len(later.futures) == 6


@every_runner
def test_requests_that_come_in_one_piece(local: Namespace, kind: str) -> None:
    later = Later()
    with served(local, kind, later, max_in_flight=4) as (server, peer):
        peer.sendall(b"".join(tagged(HELLO, number).encoded() for number in range(9)))
        until(lambda: len(later.futures) == 4)
        assert (server.stats().in_flight, server.stats().waiting) == (4, 5)
        for number in range(9):
            until(lambda number=number: len(later.futures) > number)  # type: ignore[misc]
            assert server.stats().in_flight <= 4
            later.futures[number].set_result(b"x")
        assert sorted(receive(peer).word for _ in range(9)) == list(range(9))  # type: ignore[union-attr]


@every_runner
def test_untagged_requests_that_wait_count_too(local: Namespace, kind: str) -> None:
    later = Later()
    with served(local, kind, later, max_in_flight=4) as (server, peer):
        peer.sendall(HELLO.encoded() * 4)
        until(lambda: server.stats().waiting == 3)
        peer.sendall(HELLO.encoded())
        until(lambda: server.stats().held_for_requests == 1)
        assert server.stats().requests == 4
        for number in range(5):
            until(lambda number=number: len(later.futures) > number)  # type: ignore[misc]
            later.futures[number].set_result(b"x")
            assert receive(peer) == Frame(BINARY, b"x")


@every_runner
def test_requests_of_all_connections(local: Namespace, kind: str) -> None:
    """Three may be with the handler.  Who has found no place is served when somebody else gives one back."""
    later = Later()
    with served(local, kind, later, max_in_flight_total=3) as (server, one), contextlib.ExitStack() as stack:
        peers = [one, *(stack.enter_context(connect(local, server)) for _ in range(4))]
        for peer in peers[:3]:
            peer.sendall(HELLO.encoded())
        until(lambda: len(later.futures) == 3)
        assert server.stats().held_for_requests == 0
        for peer in peers[3:]:
            peer.sendall(HELLO.encoded() * 2)
        until(lambda: server.stats().held_for_requests == 2)
        assert server.stats().in_flight == 3
        for number in range(7):
            until(lambda number=number: len(later.futures) > number)  # type: ignore[misc]
            assert server.stats().in_flight <= 3
            later.futures[number].set_result(b"x")
        for peer, count in zip(peers, (1, 1, 1, 2, 2), strict=True):
            assert [receive(peer) for _ in range(count)] == [Frame(BINARY, b"x")] * count
        until(lambda: server.stats().in_flight == 0)


@every_runner
def test_a_place_that_nobody_needs_goes_to_who_waits_for_one(local: Namespace, kind: str) -> None:
    """Of two who are held for it the one that is read on has sent no more than the beginning of a request."""
    later = Later()
    with (
        served(local, kind, later, max_in_flight_total=4) as (server, one),
        connect(local, server) as waits,
        connect(local, server) as begins,
    ):
        one.sendall(b"".join(tagged(HELLO, number).encoded() for number in range(4)))
        until(lambda: len(later.futures) == 4)
        waits.sendall(HELLO.encoded())
        until(lambda: server.stats().held_for_requests == 1)
        begins.sendall(HELLO.encoded()[:10])
        until(lambda: server.stats().held_for_requests == 2)
        later.futures[0].set_result(b"x")
        until(lambda: len(later.futures) == 5)
        later.futures[4].set_result(b"y")
        assert receive(waits) == Frame(BINARY, b"y")
        for future in later.futures[1:4]:
            future.set_result(b"z")


@every_runner
def test_many_connections_starve_together_and_all_are_served(local: Namespace, kind: str) -> None:
    """One place for 20 connections that send 30 requests each."""
    with served(local, kind, lambda request: request.value, max_in_flight_total=1) as (server, one):
        with contextlib.ExitStack() as stack:
            peers = [one, *(stack.enter_context(connect(local, server)) for _ in range(19))]
            for peer in peers:
                peer.sendall(tagged(HELLO, 1).encoded() * 30)
            for peer in peers:
                assert [receive(peer) for _ in range(30)] == [tagged(HELLO, 1)] * 30


@every_runner
def test_the_weight_of_requests_that_wait(local: Namespace, kind: str) -> None:
    """Two messages of the largest size may wait for their answers; behind a third nothing is read."""
    later = Later()
    big = tagged(Frame(BINARY, bytes(100_000)), 1)
    with served(local, kind, later, max_message_size=100_000) as (server, peer):
        for count in range(1, 4):
            peer.sendall(big.encoded())
            until(lambda count=count: len(later.futures) == count)  # type: ignore[misc]
        assert server.stats().held_for_requests == 0
        peer.sendall(HELLO.encoded())
        until(lambda: server.stats().held_for_requests == 1)
        later.futures[0].set_result(b"")
        until(lambda: len(later.futures) == 4)
        for future in later.futures[1:]:
            future.set_result(b"")


@every_runner
@pytest.mark.parametrize("flags", [0, wire.TAGGED])
def test_requests_that_were_answered_weigh_nothing(local: Namespace, kind: str, flags: int) -> None:
    big = Frame(BINARY, bytes(50_000), flags).encoded()
    with served(local, kind, lambda request: None, max_message_size=50_000) as (server, peer):
        for _ in range(6):
            peer.sendall(big)
            assert receive(peer) is not None
        assert server.stats().held_for_requests == 0


@every_runner
def test_replies_that_nobody_reads(local: Namespace, kind: str) -> None:
    """Their sender is read no further; what was not answered until then is answered when he reads."""
    size = 1 << 20
    with served(local, kind, lambda request: bytes(size), max_message_size=size) as (server, peer):
        frames = [tagged(HELLO, number) for number in range(20)]
        peer.sendall(b"".join(frame.encoded() for frame in frames[:10]))
        until(lambda: server.stats().waiting > 0 and server.stats().in_flight == 0)
        assert server.stats().waiting >= 5  # two are in the queue, one or two on their way into the kernel
        peer.sendall(b"".join(frame.encoded() for frame in frames[10:]))
        until(lambda: server.stats().held_for_replies == 1)
        with connect(local, server) as other:
            other.sendall(string("x").encoded())
            assert len(wire.receive_exactly(other, size + 32)) == size + 32
        tags = set()
        for _ in frames:
            tags.add(wire.HEADER.unpack(wire.receive_exactly(peer, 32))[3])
            wire.receive_exactly(peer, size)
        assert tags == set(range(20))


@every_runner
def test_replies_that_were_begun_before_anybody_knew(local: Namespace, kind: str) -> None:
    """All in flight may still be answered, and nothing else is: neither is it begun, nor read."""
    later, size = Later(), 100_000
    with served(local, kind, later, max_message_size=size, max_unsent=2 * size, max_in_flight=8) as (server, peer):
        peer.sendall(b"".join(tagged(HELLO, number).encoded() for number in range(12)))
        until(lambda: len(later.futures) == 8 and server.stats().waiting == 4)

        def all_answered() -> bool:
            for future in later.futures[:]:
                if not future.done():
                    future.set_result(bytes(size))
            return server.stats().held_for_replies == 1 and server.stats().in_flight == 0

        until(all_answered)
        begun = len(later.futures)  # while the kernel still took replies there may have been more
        peer.sendall(tagged(HELLO, 12).encoded())
        stats = server.stats()
        assert (stats.requests, stats.in_flight, stats.waiting) == (12, 0, 12 - begun)
        assert 3 * size < stats.unsent <= 2 * size + 8 * (size + 32)
        tags = set()
        for number in range(13):
            until(lambda number=number: len(later.futures) > number)  # type: ignore[misc]
            if not later.futures[number].done():
                later.futures[number].set_result(bytes(size))
            tags.add(wire.HEADER.unpack(wire.receive_exactly(peer, 32))[3])
            wire.receive_exactly(peer, size)
        assert tags == set(range(13))
        until(lambda: server.stats().unsent == 0)


# Time.


def limits(**options: Any) -> Limits:
    defaults: dict[str, Any] = {
        "max_message_size": 1000,
        "max_connections": None,
        "max_in_flight": 4,
        "max_in_flight_total": 4,
        "max_unsent": None,
        "max_unverified": 1000,
        "idle_timeout": None,
        "header_timeout": None,
        "body_timeout": None,
        "min_body_rate": 10,
        "stall_timeout": None,
    }
    return Limits(**{**defaults, **options})


class Client:
    """What a sweep sees of a connection."""

    def __init__(self, **facts: Any) -> None:
        self.peer: Peer = None
        self.unread = False
        self.stream: Any = mock.Mock(data_available=lambda: self.unread, closed=False)
        self.watched = self.counted = self.blocked = self.lingering = False
        self.requests = self.replies = self.sent = self.part = self.holds = 0
        self.is_busy = self.pressed = self.unasked = self.reading = False
        self.in_kernel = 0
        self.stream.read.side_effect = lambda size, peek: bytes(min(self.in_kernel, size))
        vars(self).update(facts)

    def busy(self) -> bool:
        return self.is_busy

    def has_to_deliver(self) -> bool:
        return self.pressed

    def being_read(self) -> bool:
        return self.reading

    def ask(self) -> None:
        raise AssertionError("it could be asked")

    def missing(self) -> int:
        return 100_000

    def cut(self) -> None:
        raise AssertionError("this is for others to do")


class Swept:
    """A sweep whose clock and timer are the test's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, client: Client, **options: Any) -> None:
        self.now = 100.0
        self.cut: list[str] = []
        self.client = client
        monkeypatch.setattr("pool.message_sweep.time", mock.Mock(monotonic=lambda: self.now))
        self.loop = mock.Mock()
        self.sweep = Sweep(limits(**options), lambda _, why: self.cut.append(why))
        self.sweep.begin(self.loop)
        self.sweep.watch(client)

    def after(self, seconds: float) -> list[str]:
        """The rounds of so many seconds; for what the client was cut in them."""
        self.cut.clear()
        for _ in range(round(seconds / 0.25)):
            self.now += 0.25
            self.loop.call_later.call_args.args[1]()
        return self.cut


def test_a_header_has_its_time_from_the_first_look(monkeypatch: pytest.MonkeyPatch) -> None:
    it = Swept(monkeypatch, Client(part=1), header_timeout=2.0)
    assert it.after(2) == []
    assert it.after(0.25) == ["header"]


def test_each_header_has_a_time_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    it = Swept(monkeypatch, Client(part=31), header_timeout=2.0)
    for _ in range(3):
        assert it.after(2) == []
        it.client.requests += 1
    it.client.part = 32  # the header is there
    assert it.after(10) == []


def test_who_is_not_read_cannot_be_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    it = Swept(monkeypatch, Client(part=31, holds=1), header_timeout=2.0, body_timeout=2.0, idle_timeout=2.0)
    assert it.after(5) == []
    it.client.part = 40
    assert it.after(5) == []
    it.client.holds = 0
    assert it.after(2) == []
    assert it.after(0.25) == ["body"]


def test_who_has_bytes_unread_is_not_cut_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    it = Swept(monkeypatch, Client(part=31, unread=True), header_timeout=2.0)
    assert it.after(5) == []
    it.client.unread = False
    assert it.after(0.25) == ["header"]


def test_a_timer_that_comes_late_cuts_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    it = Swept(monkeypatch, Client(part=31), header_timeout=2.0)
    assert it.after(1) == []
    it.now += 60
    assert it.after(0.25) == []
    assert it.after(0.25) == []


def test_a_body_has_to_keep_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """10 bytes a second, looked at every two seconds."""
    it = Swept(monkeypatch, Client(part=32), body_timeout=2.0)
    it.after(0.25)
    for _ in range(5):
        it.client.part += 20
        assert it.after(2) == []
    it.client.part += 19
    assert it.after(2) == ["body"]


def test_each_body_has_a_time_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    it = Swept(monkeypatch, Client(part=500), body_timeout=2.0)
    for _ in range(3):
        assert it.after(2) == []
        it.client.requests += 1


def test_who_is_just_being_read_is_not_cut_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker has taken the rest from the kernel and has not noted it yet; or has noted it behind the peek."""
    it = Swept(monkeypatch, Client(part=65_536, pressed=True, reading=True))
    assert it.after(2) == []
    it.client.reading = False

    def noted(size: int, peek: bool) -> bytes:
        it.client.part, it.client.pressed = 0, False
        return b""

    it.client.stream.read.side_effect = noted
    assert it.after(1) == []


def test_a_closed_connection_is_cut_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its requests are in flight; there is nobody to wait for."""
    it = Swept(monkeypatch, Client(part=1), header_timeout=2.0)
    it.client.stream.closed = True
    assert it.after(5) == []


def test_a_monitor_that_could_not_be_told_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    it = Swept(monkeypatch, client := Client(unasked=True))
    asked: list[float] = []

    def ask() -> None:
        asked.append(it.now)
        client.unasked = len(asked) < 3

    monkeypatch.setattr(client, "ask", ask)
    assert it.after(0.75) == []
    assert len(asked) == 3
    assert it.after(0.5) == []
    assert not it.sweep._watched


def test_who_is_pressed_has_to_deliver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read or not: what waits in the kernel counts."""
    it = Swept(monkeypatch, Client(part=100, pressed=True))
    for _ in range(3):
        assert it.after(0.5) == []
        it.client.part += 8192
    it.client.holds = 4
    it.client.in_kernel = 8192
    assert it.after(5) == []
    it.client.in_kernel = 8191
    assert set(it.after(0.75)) == {"memory"}


def test_who_takes_no_replies_stalls(monkeypatch: pytest.MonkeyPatch) -> None:
    it = Swept(monkeypatch, Client(blocked=True, is_busy=True), stall_timeout=2.0)
    for _ in range(3):
        assert it.after(2) == []
        it.client.sent += 1
    assert it.after(2.25) == ["stall"]


def test_who_says_nothing_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    it = Swept(monkeypatch, Client(), idle_timeout=2.0)
    for change in ({"requests": 1}, {"is_busy": True}, {"is_busy": False, "replies": 1}):
        assert it.after(2) == []
        vars(it.client).update(change)
    assert it.after(2) == []
    assert it.after(0.25) == ["idle"]


def test_who_lingers_is_not_read_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    it = Swept(monkeypatch, Client(lingering=True))
    assert it.after(LINGER_TIME) == []
    assert it.after(0.25) == ["lingering"]


def test_the_timer_rests_while_there_is_nothing_to_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    it = Swept(monkeypatch, Client(part=5))
    assert it.client.watched
    it.client.part = 0
    it.after(0.25)
    calls = it.loop.call_later.call_count
    assert not it.client.watched
    it.client.part = 5
    it.sweep.watch(it.client)
    assert it.loop.call_later.call_count == calls + 1
    it.client.counted = True  # it has left meanwhile
    it.after(0.25)
    assert it.loop.call_later.call_count == calls + 1


def test_the_interval_follows_the_shortest_deadline() -> None:
    assert Sweep(limits(), mock.Mock()).interval == 0.25
    assert Sweep(limits(stall_timeout=0.4, idle_timeout=9), mock.Mock()).interval == 0.1


@pytest.mark.parametrize("kind", ["workers", "inline"])
def test_deadlines_at_work(local: Namespace, kind: str) -> None:
    """All of them on one server; honest clients, idle for longer than that, are left alone."""
    options = {"header_timeout": 0.2, "body_timeout": 0.2, "stall_timeout": 0.2, "min_body_rate": 1000}
    with (
        served(local, kind, lambda request: bytes(1 << 20), **options) as (server, honest),
        contextlib.ExitStack() as st,
    ):
        header, body, stall = (st.enter_context(connect(local, server)) for _ in range(3))
        header.sendall(HELLO.encoded()[:31])
        body.sendall(Frame(BINARY, bytes(1000)).header() + bytes(100))
        stall.sendall(HELLO.encoded() * 3)
        assert at_end(header)
        assert at_end(body)
        until(lambda: server.stats().connections == 1)
        stats = server.stats()
        assert (stats.cut_for_header, stats.cut_for_body, stats.cut_for_stall) == (1, 1, 1)
        assert stats.dropped_replies == 3
        honest.sendall(HELLO.encoded())
        assert len(wire.receive_exactly(honest, 1 << 20)) == 1 << 20


def test_an_idle_connection_is_closed_if_that_is_wanted(local: Namespace) -> None:
    gate = threading.Event()

    def handler(request: Request) -> None:
        assert gate.wait(PATIENCE)

    with served(local, "workers", handler, idle_timeout=0.1) as (server, peer), connect(local, server) as busy:
        busy.sendall(HELLO.encoded())
        assert at_end(peer)
        assert server.stats().cut_for_idle == 1
        assert server.stats().in_flight == 1
        gate.set()
        assert receive(busy) == wire.BLANK
        assert at_end(busy)


# The end of a connection that went wrong.


def test_who_goes_on_sending_finds_the_reason(local: Namespace) -> None:
    """A message that is refused from its header: its body is read and thrown away, and the reply is found behind it."""
    with served(local, "workers", lambda request: None, max_message_size=1000) as (server, peer):
        peer.sendall(Frame(BINARY, b"").header(5_000_000, check=0))
        with contextlib.suppress(BrokenPipeError):
            peer.sendall(bytes(5_000_000))
        peer.shutdown(socket.SHUT_WR)
        (failure,) = receive_all(peer)
        assert is_failure(failure)
        until(lambda: server.stats().connections == 0)
        assert server.stats().cut_for_lingering == 0


def test_who_goes_on_for_ever_is_cut(local: Namespace) -> None:
    with served(local, "workers", lambda request: None) as (server, peer):
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            for _ in range(1000):
                peer.sendall(bytes(1 << 16))
        until(lambda: server.stats().connections == 0)
        assert server.stats().protocol_errors == 1


# Memory of what has not come in full.


class Holder:
    def __init__(self, missing: int = 0) -> None:
        self.told = 0
        self._missing = missing

    def go_on(self) -> None:
        self.told += 1

    def missing(self) -> int:
        return self._missing


def test_up_to_the_limit_everybody_is_read() -> None:
    unverified: Unverified[Holder] = Unverified(100)
    one, other = Holder(), Holder()
    unverified.change(one, 60)
    unverified.change(other, 40)
    assert unverified.may_go_on(one)
    assert unverified.may_go_on(other)
    assert not unverified.has_to_deliver(one)


def test_who_is_gone_is_no_favourite_of_those_who_wait() -> None:
    """He was to go on, and was cut before he did."""
    unverified: Unverified[Holder] = Unverified(100)
    gone, first, second = Holder(), Holder(), Holder()
    for holder in (gone, first, second):
        unverified.change(holder, 60)
    unverified.change(gone, -60)
    assert unverified.may_go_on(gone)
    assert not unverified.has_to_deliver(gone)
    assert [unverified.may_go_on(holder) for holder in (first, second)] == [True, False]


def test_past_the_limit_one_is_read_and_behind_him_who_has_the_least_to_go() -> None:
    unverified: Unverified[Holder] = Unverified(100)
    first, far, near, stranger = Holder(9), Holder(8), Holder(7), Holder()
    holders = [first, far, near]
    for holder in holders:
        unverified.change(holder, 60)
    assert [unverified.may_go_on(holder) for holder in holders] == [True, False, False]
    assert [unverified.has_to_deliver(holder) for holder in [*holders, stranger]] == [True, True, True, False]
    unverified.change(first, -60)  # 120 are left
    assert [holder.told for holder in holders] == [0, 0, 1]
    assert [unverified.may_go_on(holder) for holder in holders[1:]] == [False, True]
    unverified.change(near, -60)
    assert far.told == 1
    assert not unverified.has_to_deliver(far)
    assert unverified.total == 60


def test_who_leaves_while_he_is_held_is_not_waited_for() -> None:
    unverified: Unverified[Holder] = Unverified(100)
    holders = [Holder(number) for number in range(3)]
    for holder in holders:
        unverified.change(holder, 60)
        unverified.may_go_on(holder)
    unverified.change(holders[1], -60)
    unverified.change(holders[0], -60)
    assert [holder.told for holder in holders] == [0, 0, 1]


@pytest.mark.parametrize("kind", ["workers", "inline"])
def test_large_messages_come_through_one_after_the_other(local: Namespace, kind: str) -> None:
    """Six clients send 400 kB each where 500 kB may be on the way: all are answered, some have waited."""
    frame = Frame(BINARY, bytes(400_000))
    with served(local, kind, lambda request: len(request.payload).to_bytes(4, "big"), max_unverified=500_000) as (
        server,
        one,
    ):
        with contextlib.ExitStack() as stack:
            peers = [one, *(stack.enter_context(connect(local, server)) for _ in range(5))]
            data = frame.encoded()
            for peer in peers:
                peer.sendall(data[:90_000])
            until(lambda: server.stats().unverified == 540_000)
            with ThreadPoolExecutor(6) as senders:
                list(senders.map(lambda peer: peer.sendall(data[90_000:]), peers))
                for peer in peers:
                    assert receive(peer) == Frame(BINARY, (400_000).to_bytes(4, "big"))
            assert server.stats().held_for_memory > 0
            assert server.stats().unverified == 0


def test_who_sits_on_the_memory_of_all_is_cut(local: Namespace) -> None:
    """Eight hold 720 kB where 500 kB may be on the way, and drip; what others send comes through behind them."""
    frame = Frame(BINARY, bytes(100_000))
    with served(local, "workers", lambda request: None, max_unverified=500_000) as (server, honest):
        with contextlib.ExitStack() as stack:
            hoarders = [stack.enter_context(connect(local, server)) for _ in range(8)]
            for peer in hoarders:
                peer.sendall(Frame(BINARY).header(4_000_000, check=0) + bytes(90_000))
            until(lambda: server.stats().unverified > 500_000)
            honest.sendall(frame.encoded())
            assert receive(honest) == wire.BLANK
            until(lambda: server.stats().unverified <= 500_000)
            assert 0 < server.stats().cut_for_memory <= 8


@every_runner
@pytest.mark.parametrize("goes_on", [True, False])
def test_who_waits_for_memory_does_not_wait_for_a_handler(local: Namespace, kind: str, goes_on: bool) -> None:
    """Who is to deliver has as many requests under way as he may: he is read on all the same, or cut."""
    later = Later()

    def handler(request: Request) -> Any:
        return later(request) if request.value == "later" else b"ok"

    data = tagged(Frame(BINARY, bytes(300_000)), 2).encoded()
    options = {"max_in_flight": 1, "max_unverified": 50_000}
    with served(local, kind, handler, **options) as (server, busy), connect(local, server) as other:
        busy.sendall(tagged(string("later"), 1).encoded() + data[:150_000])
        until(lambda: server.stats().unverified == 150_000)
        with ThreadPoolExecutor(1) as sender:
            sending = sender.submit(other.sendall, data)
            if goes_on:
                until(lambda: server.stats().held_for_memory == 1)
                busy.sendall(data[150_000:] + tagged(HELLO, 3).encoded())
            assert receive(other) == tagged(Frame(BINARY, b"ok"), 2)
            sending.result(PATIENCE)
        assert server.stats().cut_for_memory == (0 if goes_on else 1)
        assert not later.futures[0].done()
        if goes_on:
            until(lambda: server.stats().held_for_requests > 0)
            assert (server.stats().requests, server.stats().unverified) == (3, 0)
        later.futures[0].set_result(b"x")
        if goes_on:
            assert [receive(busy) for _ in range(3)] == [
                tagged(Frame(BINARY, reply), tag) for tag, reply in ((1, b"x"), (2, b"ok"), (3, b"ok"))
            ]
        else:
            assert at_end(busy)


def test_who_is_favoured() -> None:
    """One at a time, until his message is complete; also where there is memory again meanwhile."""
    unverified: Unverified[Holder] = Unverified(100)
    first, second = Holder(), Holder()
    unverified.change(first, 60)
    assert unverified.may_go_on(first)
    assert not unverified.favours(first)
    unverified.change(second, 60)
    assert [unverified.may_go_on(second), unverified.may_go_on(first)] == [True, False]
    assert [unverified.favours(second), unverified.favours(first)] == [True, False]
    unverified.change(first, -60)
    assert unverified.favours(second)
    unverified.change(second, -60)
    assert not unverified.favours(second)
