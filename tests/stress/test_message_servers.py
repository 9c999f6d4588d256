"""HAZARDS 46, 47, 48 and 51 in sizes that fit; ``python -m tests.stress.message_limits`` has the full ones."""

from __future__ import annotations

import contextlib
import random
import resource
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bbipc import ResponseAlreadySentError
from bbipc.messages import Decoder, Message, MessageFlag, MessageType, encode
from pool import MessageServer, Request, WorkerPool
from tests.support.makers import PATIENCE, Namespace, Worker, make_namespace
from tests.support.serving import until

MIB = 1 << 20
TAGGED = MessageFlag.TAGGED
NO_RESPONSE = MessageFlag.NO_RESPONSE
HELLO = encode(Message.string("hello"))


@pytest.fixture
def local(short_dir: Path) -> Namespace:
    return make_namespace("local", short_dir)


@contextlib.contextmanager
def served(local: Namespace, handler: Any, **options: Any) -> Iterator[MessageServer]:
    with MessageServer(local.make_server(backlog=512), handler, **options) as server:
        yield server


def connect(local: Namespace, server: MessageServer) -> socket.socket:
    return local.connect_plainly(server.servers[0])  # type: ignore[arg-type]


def read(peer: socket.socket, count: int) -> list[Message]:
    """The next *count* messages; fewer at the end."""
    decoder, messages = Decoder(), list[Message]()
    while len(messages) < count and (data := peer.recv(1 << 16)):
        messages += decoder.feed(data)
    return messages


def resident() -> int:
    """Bytes of memory that this process has just now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


class Honest:
    """Somebody who asks all the while, and what he has waited for an answer."""

    def __init__(self, local: Namespace, server: MessageServer) -> None:
        self._ends = threading.Event()
        self._peer = connect(local, server)
        self._waits: list[float] = []
        self._worker = Worker(self._run)

    def _run(self) -> None:
        with self._peer as peer:
            while not self._ends.is_set() or len(self._waits) < 20:
                began = time.perf_counter()
                peer.sendall(HELLO)
                assert read(peer, 1)[0].value == "hello"
                self._waits.append(time.perf_counter() - began)

    def p99(self) -> float:
        self._ends.set()
        self._worker.outcome()
        return sorted(self._waits)[len(self._waits) * 99 // 100]


def test_claims_cost_nothing(local: Namespace) -> None:
    """46: 300 clients with the largest length and no body; an honest one beside them."""
    claim = encode(Message.binary(bytes(5 * MIB - 1)))[:32]
    with served(local, lambda request: request.value) as server, contextlib.ExitStack() as stack:
        before = resident()
        for _ in range(300):
            stack.enter_context(connect(local, server)).sendall(claim)
        until(lambda: server.stats().connections == 300)
        with connect(local, server) as honest:
            honest.sendall(HELLO)
            assert read(honest, 1)[0].value == "hello"
        assert resident() - before < 21 * MIB


def test_who_never_reads_holds_little_and_nobody_up(local: Namespace) -> None:
    """47: 20 clients that ask for 64 KiB again and again and read nothing."""
    big = bytes(64 << 10)
    ask = encode(Message.binary(b"big")) * 400
    with served(
        local, lambda request: big if request.value == b"big" else request.value, max_message_size=MIB
    ) as server:
        before = resident()
        with contextlib.ExitStack() as stack:
            greedy = [stack.enter_context(connect(local, server)) for _ in range(20)]
            for peer in greedy:
                peer.sendall(ask)
            until(lambda: server.stats().waiting > 20 * 300)
            honest = Honest(local, server)
            for peer in greedy:
                peer.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    peer.sendall(ask * 10)
            until(lambda: server.stats().held_for_replies + server.stats().held_for_requests >= 20)
            assert honest.p99() < 0.5
            assert resident() - before < 20 * 3 * MIB


def test_slow_senders_are_cut_and_delay_nobody(local: Namespace) -> None:
    """48: 200 clients that send a byte now and then."""
    with served(local, lambda request: request.value, header_timeout=0.5) as server:
        with contextlib.ExitStack() as stack:
            slow = [stack.enter_context(connect(local, server)) for _ in range(200)]
            until(lambda: server.stats().connections == 200)
            honest = Honest(local, server)
            began = time.monotonic()
            for number in range(31):
                for peer in slow:
                    with contextlib.suppress(OSError):
                        peer.send(HELLO[number : number + 1])
                if server.stats().cut_for_header == 200:
                    break
                threading.Event().wait(0.1)  # the pace of slow senders
            until(lambda: server.stats().connections == 1)
            assert time.monotonic() - began < 0.5 + 1 + 2  # two more where others need the processor
            assert honest.p99() < 0.5
            assert server.stats().cut_for_header == 200


# 51: one reply exactly, whatever the handler does.

BEHAVIOURS = ["value", "blank", "raise", "bad", "respond", "respond raise", "respond twice", "later", "later raise"]


def behave(request: Request) -> Any:
    what = str(request.value)
    if "respond" in what and not request.no_response:
        request.respond(what)
        if "twice" in what:
            with pytest.raises(ResponseAlreadySentError):
                request.respond(what)
    if "later" in what:
        future: Future[str] = Future()
        threading.Thread(target=settle, args=(future, what)).start()
        return future
    if "raise" in what:
        raise LookupError(what)
    if "bad" in what:
        return object()
    return None if "blank" in what else what


def settle(future: Future[str], what: str) -> None:
    if "raise" in what:
        future.set_exception(LookupError(what))
    else:
        future.set_result(what)


def expected(what: str) -> str | None:
    """Blank is ``None``; "!" a failure."""
    if "respond" in what:
        return what
    if "raise" in what or "bad" in what:
        return "!"
    return None if "blank" in what else what


def said(reply: Message) -> str | bytes | None:
    if reply.flags & MessageFlag.FAILED:
        return "!"
    return None if reply.flags & MessageFlag.DISCARD else reply.value


def converse(local: Namespace, server: MessageServer, seed: int, count: int) -> None:
    """*count* requests at once; each with its reply, the untagged ones in order."""
    dice = random.Random(seed)
    in_order, by_tag, data = list[str](), dict[int, str](), bytearray()
    for number in range(count):
        what = dice.choice(BEHAVIOURS)
        silent, tag = dice.random() < 0.2, dice.random() < 0.5
        flags = (NO_RESPONSE if silent else 0) | (TAGGED if tag else 0)
        data += encode(Message.string(f"{what} {number}", int(flags), number if tag else 0))
        if not silent and tag:
            by_tag[number] = f"{what} {number}"
        elif not silent:
            in_order.append(f"{what} {number}")
    with connect(local, server) as peer:
        sender = Worker(lambda: peer.sendall(data))
        for reply in read(peer, len(in_order) + len(by_tag)):
            what = by_tag.pop(reply.tag) if reply.flags & TAGGED else in_order.pop(0)
            assert said(reply) == expected(what)
        assert (in_order, by_tag) == ([], {})
        sender.outcome()
        peer.sendall(encode(Message(MessageType.CLOSE, b"")))
        (last,) = read(peer, 2)
        assert said(last) is None


@pytest.mark.parametrize("kind", ["workers", "inline", "executor"])
def test_one_reply_each_whatever_handlers_do(local: Namespace, kind: str) -> None:
    """5,000 requests over 10 connections of 5 threads, on each runner."""
    with contextlib.ExitStack() as stack:
        workers: Any = kind
        if kind != "inline":
            workers = stack.enter_context(WorkerPool(4) if kind == "workers" else ThreadPoolExecutor(4))
        server = stack.enter_context(served(local, behave, workers=workers, max_in_flight=8, max_in_flight_total=20))
        clients = stack.enter_context(ThreadPoolExecutor(5))
        list(clients.map(lambda seed: converse(local, server, seed, 500), range(10), timeout=6 * PATIENCE))
        until(lambda: server.stats().connections == 0)
        stats = server.stats()
        assert (stats.in_flight, stats.waiting, stats.dropped_replies, stats.protocol_errors) == (0, 0, 0, 0)
        assert stats.requests == 5_010


@pytest.mark.parametrize("kind", ["workers", "inline", "executor"])
def test_nothing_is_left_of_who_leaves_at_any_moment(local: Namespace, kind: str) -> None:
    """300 connections of 4 threads, closed in the middle of whatever: all places are there again."""
    with contextlib.ExitStack() as stack:
        workers: Any = kind
        if kind != "inline":
            workers = stack.enter_context(WorkerPool(4) if kind == "workers" else ThreadPoolExecutor(4))
        handler = lambda request: bytes(len(request.payload) * 50)  # noqa: E731
        server = stack.enter_context(served(local, handler, workers=workers, max_in_flight_total=4))

        def visit(seed: int) -> None:
            dice = random.Random(seed)
            with connect(local, server) as peer:
                for _ in range(dice.randrange(4)):
                    frame = encode(Message.binary(bytes(dice.choice([1, 100, 10_000])), TAGGED, seed))
                    peer.sendall(frame * dice.randrange(1, 5))
                    if dice.random() < 0.5:
                        peer.recv(dice.choice([1, 1000, 100_000]))
                if dice.random() < 0.3:
                    peer.sendall(HELLO[: dice.randrange(32)])

        clients = stack.enter_context(ThreadPoolExecutor(4))
        list(clients.map(visit, range(300), timeout=6 * PATIENCE))
        until(lambda: server.stats().connections == 0)
        stats = server.stats()
        assert (stats.in_flight, stats.waiting, stats.unverified) == (0, 0, 0)
        with connect(local, server) as peer:
            peer.sendall(HELLO)
            assert len(read(peer, 1)) == 1
        until(lambda: len(server._service.places) == 4)
