"""A MessageServer under attack, in small: what peers may do to it.

The sizes of ``HAZARDS`` rows 23, 46 to 53 are those of the programs in ``tests/stress``; here is one of each kind.
``tests/support/wire.py`` says what a frame is, not our codec.
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import bbipc
from pool import MessageClient, MessageServer, Request
from tests.support import peers, wire
from tests.support.attacks import HELLO, Gate, Workers, echo, either_way, served
from tests.support.makers import PATIENCE, Worker
from tests.support.peers import SplittingProxy, sizes
from tests.support.serving import until
from tests.support.wire import BINARY, BLANK, LIMIT, Frame, tagged

# What a header claims (HAZARDS 46).


@either_way
@pytest.mark.parametrize(
    ("length", "refused"),
    [(0, False), (1, False), (LIMIT - 1, False), (LIMIT, True), (2**31, True), (2**32 - 1, True)],
)
def test_a_claim_is_believed_or_refused_from_the_header_alone(
    length: int, refused: bool, workers: Workers, short_dir: Path
) -> None:
    with served(short_dir, workers=workers) as it, it.connect() as peer:
        frame = tagged(Frame(BINARY), 77)
        peer.sendall(frame.header(length, check=None if not length else 0))
        if refused:
            answers = wire.receive_all(peer)
            assert len(answers) == 1
            assert wire.is_failure(answers[0], tag=77)
            assert "MessageTooLargeError" in answers[0].text
        elif length:
            assert it.works()
            until(lambda: it.connections == 1)
        else:
            assert wire.receive(peer) == frame


@either_way
def test_claims_cost_nothing(workers: Workers, short_dir: Path) -> None:
    """100 headers of 5 MiB each hold no memory to speak of, and nobody else waits for them."""
    with served(short_dir, workers=workers) as it, contextlib.ExitStack() as stack:
        for _ in range(100):
            peer = stack.enter_context(it.connect())
            peer.sendall(Frame(BINARY).header(LIMIT - 1, check=0))
        until(lambda: it.connections == 100)
        assert it.works()
        assert it.server.stats().unverified <= 100 * 4096


def test_memory_follows_the_bytes_whatever_their_pieces(short_dir: Path) -> None:
    """64 KiB in pieces of 2 bytes: what waits for its end is counted as what came, and comes out right."""
    data = random.Random(1).randbytes(1 << 16)
    whole = Frame(BINARY, data).encoded()
    with served(short_dir) as it, it.connect() as peer:
        for at in range(0, len(whole), 2):
            peer.sendall(whole[at : at + 2])
        assert wire.receive(peer) == Frame(BINARY, data)


# Who does not read (47), who sends slowly (48), who sends in pieces (49).


@either_way
def test_who_never_reads_is_read_no_further(workers: Workers, short_dir: Path) -> None:
    """200 requests of 10 kB whose replies are 100 kB: few are handled until somebody reads, then all, in order."""
    handled: list[str] = []

    def big(request: Request) -> str:
        handled.append(str(request.value))
        return str(request.value).ljust(100_000)

    with served(short_dir, big, workers=workers, max_message_size=1 << 20) as it, it.connect() as peer:
        sender = Worker(
            lambda: peer.sendall(b"".join(wire.string(str(number).ljust(10_000)).encoded() for number in range(200)))
        )
        until(lambda: it.server.stats().held_for_replies + it.server.stats().held_for_requests > 0)
        with it.connect() as honest:
            honest.sendall(wire.string("honest").encoded())
            assert wire.receive_exactly(honest, 38).endswith(b"honest")
        assert len(handled) < 60, len(handled)  # 2 MiB of replies, and what the kernel holds
        for number in range(200):
            wire.receive_exactly(peer, 32)
            assert wire.receive_exactly(peer, 100_001)[:100_000] == str(number).encode().ljust(100_000)
        sender.outcome()


def test_two_that_never_read_stop_nobody(short_dir: Path) -> None:
    """1,000 requests of each come with one read; whatever that does to them, others are served."""
    with served(short_dir, lambda request: bytes(65536) if request.value == "big" else request.value) as it:
        with it.connect() as one, it.connect() as other:
            for peer in (one, other):
                peer.sendall(wire.string("big").encoded() * 1000)
            until(lambda: it.server.stats().requests >= 300)
            began = time.monotonic()
            for _ in range(20):
                assert it.works()
            assert time.monotonic() - began < 1


def test_a_long_lane_stops_nobody(short_dir: Path) -> None:
    """1,500 untagged requests wait behind one whose handler takes its time."""
    gate = Gate()
    with served(short_dir, gate) as it, it.connect() as peer:
        peer.sendall(wire.string("wait").encoded() + HELLO.encoded() * 1500)
        gate.wait()
        try:
            for _ in range(20):
                assert it.works()
        finally:
            gate.open.set()
        for _ in range(1501):
            assert wire.receive(peer) is not None


@either_way
def test_who_never_reads_is_cut_without_progress(workers: Workers, short_dir: Path) -> None:
    with served(short_dir, lambda request: bytes(1 << 20), workers=workers, stall_timeout=0.3) as it:
        with it.connect() as peer:
            peer.sendall(HELLO.encoded() * 4)
            began = time.monotonic()
            until(lambda: it.server.stats().cut_for_stall == 1)
            assert 0.2 < time.monotonic() - began < 1.5
            until(it.is_empty)


@either_way
def test_slow_senders_are_cut_in_time_and_delay_nobody(workers: Workers, short_dir: Path) -> None:
    """HAZARDS 48 with a deadline of 0.5 s: 50 clients that send a byte now and then."""
    whole = Frame(BINARY, bytes(1000)).encoded()
    latencies = []
    with served(short_dir, workers=workers, header_timeout=0.5) as it, contextlib.ExitStack() as stack:
        slow = [stack.enter_context(it.connect()) for _ in range(50)]
        honest = stack.enter_context(it.connect())
        pace, began = threading.Event(), time.monotonic()
        for at in range(30):
            for peer in slow:
                with contextlib.suppress(OSError):
                    peer.send(whole[at : at + 1])
            latencies.append(time.monotonic())
            honest.sendall(HELLO.encoded())
            assert wire.receive(honest) == HELLO
            latencies[-1] = time.monotonic() - latencies[-1]
            if it.connections == 1:
                break
            pace.wait(0.05)
        assert time.monotonic() - began < 1.5
        assert it.server.stats().cut_for_header == 50
        assert sorted(latencies)[len(latencies) // 2] < 0.05
        assert it.works()


@pytest.mark.parametrize("seed", range(2))
def test_any_pieces_in_both_directions(seed: int, short_dir: Path) -> None:
    """The fault proxy between our client and our server; seed 0 is one byte at a time."""
    dice = random.Random(seed)
    values = [dice.choice(("", "text", "ü" * 30, b"", dice.randbytes(dice.randrange(200)))) for _ in range(60)]
    with served(short_dir) as it:
        size = sizes(seed) if seed else lambda: 1
        with SplittingProxy(short_dir / "proxy", it.path, size), MessageClient(short_dir / "proxy") as client:
            for value in values:
                assert client.send(value, timeout=PATIENCE) == value
            futures = [client.submit(value) for value in values]
            assert [future.result(PATIENCE) for future in futures] == values


# What is not whole (50), and what stands behind it (53).


def test_no_single_flipped_bit_is_let_through(short_dir: Path) -> None:
    seen: list[Request] = []
    with served(short_dir, seen.append) as it:
        whole = wire.string("flip").encoded()
        for bit in range(8 * len(whole)):
            flipped = bytearray(whole)
            flipped[bit // 8] ^= 1 << bit % 8
            with it.connect() as peer:
                peer.sendall(bytes(flipped))
                with contextlib.suppress(OSError):
                    peer.shutdown(socket.SHUT_WR)
                answers = wire.receive_all(peer)
            assert len(answers) <= 1, (bit, answers)
            assert all(frame.flags & wire.FAILED for frame in answers), (bit, answers)
        assert seen == []
        assert it.server.stats().requests == 0


@either_way
def test_nothing_behind_an_error_is_parsed(workers: Workers, short_dir: Path) -> None:
    """What came whole before it is answered first; good frames behind it, in the same piece or later, are not."""
    seen = []
    with served(short_dir, lambda request: seen.append(request.value), workers=workers) as it, it.connect() as peer:
        good = wire.string("good").encoded()
        peer.sendall(good + b"\0" * 32 + wire.string("smuggled").encoded())
        with contextlib.suppress(OSError):
            for _ in range(100):
                peer.sendall(wire.string("smuggled").encoded())
        answers = wire.receive_all(peer)
        assert answers[0] == BLANK
        assert len(answers) == 2
        assert wire.is_failure(answers[1])
    assert seen == ["good"]


@either_way
def test_garbage_disturbs_nobody_else(workers: Workers, short_dir: Path) -> None:
    dice = random.Random(5)
    with served(short_dir, workers=workers) as it, it.connect() as honest:
        for _ in range(50):
            with it.connect() as peer:
                peer.sendall(dice.randbytes(dice.randrange(1, 300)))
                honest.sendall(HELLO.encoded())
                assert wire.receive(honest) == HELLO


# Who leaves (23).


@either_way
@pytest.mark.parametrize("manner", ["close", "reset", "shutdown"])
def test_a_peer_may_vanish_at_any_byte(manner: str, workers: Workers, short_dir: Path) -> None:
    whole = HELLO.encoded() + Frame(BINARY, bytes(20_000)).encoded()
    with served(short_dir, workers=workers) as it:
        for at in [*range(80), 5000, len(whole)]:
            with it.connect() as peer:
                peer.sendall(whole[:at])
                if manner == "shutdown":
                    peer.shutdown(socket.SHUT_RDWR)
        until(it.is_empty)
        assert it.works()


@either_way
def test_peers_may_vanish_while_their_request_is_handled(workers: Workers, short_dir: Path) -> None:
    gate = Gate()
    count = 1 if workers == "inline" else 4
    with served(short_dir, gate, workers=workers) as it:
        for _ in range(count):
            with it.connect() as peer:
                peer.sendall(wire.string("wait").encoded() + HELLO.encoded())
            gate.wait()
        gate.open.set()
        until(it.is_empty)
        assert it.works()


@either_way
def test_peers_may_vanish_in_the_middle_of_a_reply(workers: Workers, short_dir: Path) -> None:
    with served(short_dir, lambda request: bytes(4 << 20), workers=workers) as it:
        for _ in range(5):
            with it.connect() as peer:
                peer.sendall(HELLO.encoded())
                assert peer.recv(1)
        until(it.is_empty)


@pytest.mark.parametrize("family", ["local", "tcp"])
@either_way
def test_who_sends_too_much_is_told_so(workers: Workers, family: str, short_dir: Path) -> None:
    """HAZARDS 23: 6 MiB are on their way when the header is refused; the error message is seen all the same."""
    path = short_dir / "server"
    server: Any = bbipc.make_ipv4_tcp_server("127.0.0.1", 0) if family == "tcp" else bbipc.make_local_server(path)
    data = bytes(1 << 16)
    told = 0
    with MessageServer(server, echo, workers=workers) as served:
        for _ in range(10):
            peer = socket.create_connection(("127.0.0.1", server.port)) if family == "tcp" else peers.connect(path)
            with peer:
                peer.settimeout(PATIENCE)
                with contextlib.suppress(OSError):
                    peer.sendall(Frame(BINARY).header(6 << 20))
                    for _ in range(96):
                        peer.sendall(data)
                with contextlib.suppress(OSError):
                    frame = wire.receive(peer)
                    assert frame is not None
                    assert "MessageTooLargeError" in frame.text
                    told += 1
        until(lambda: served.stats().connections == 0)
    assert told == 10


def test_who_streams_for_ever_is_cut(short_dir: Path) -> None:
    """By the 8 MiB; by the 2 s: in tests/stress."""
    with served(short_dir) as it, it.connect() as peer:
        began = time.monotonic()
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            while True:
                assert time.monotonic() - began < 2 * PATIENCE
                peer.sendall(b"x" * 4096)
        assert time.monotonic() - began < 3
        assert it.works()
