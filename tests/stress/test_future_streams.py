"""Hazards 20, 21, 22, 24, 35 and 42 of the field, on streams whose reads and writes are futures.

Each race states its rounds.  The bug that each is for was planted once, and seen (see ``docs/design-notes.md``).
"""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from functools import partial

import pytest

import bbipc
from bbipc import RemoteDisconnectedError, SocketClosedError, WriteTimeoutError
from pool.future_stream import FutureStream
from pool.poller_thread import PollerThread
from tests.support.alarm import alarms
from tests.support.makers import PATIENCE, Namespace, Worker

HEADER = struct.Struct("<BIII")  # writer, number, size of the rest, CRC of the rest


@pytest.fixture
def poller_thread() -> Iterator[PollerThread]:
    with PollerThread() as thread:
        yield thread


@contextlib.contextmanager
def narrow(
    namespace: Namespace, poller_thread: PollerThread, size: int = 4096
) -> Iterator[tuple[FutureStream, socket.socket]]:
    """A stream with a small send buffer, and its peer."""
    with namespace.stream_and_peer() as (stream, peer):
        stream._handle.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
        yield FutureStream(stream, poller_thread), peer


def frame(writer: int, number: int, rest: bytes) -> bytes:
    return HEADER.pack(writer, number, len(rest), zlib.crc32(rest)) + rest


def receive(peer: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = peer.recv(count - len(data))
        if not part:
            break
        data += part
    return bytes(data)


def read_frames(peer: socket.socket) -> dict[int, list[int]]:
    """Writer -> the numbers of its frames, until the end; every CRC is checked."""
    found: dict[int, list[int]] = {}
    while head := receive(peer, HEADER.size):
        writer, number, size, crc = HEADER.unpack(head)
        assert size <= 1 << 20, "this is no header"
        assert zlib.crc32(receive(peer, size)) == crc
        found.setdefault(writer, []).append(number)
    return found


def test_frames_of_eight_threads_do_not_interleave(namespace: Namespace, poller_thread: PollerThread) -> None:
    """8 threads x 60 frames of 1 B to 1 MB, a third of them big; half of the threads have three writes under way.

    Nobody waits for more than 2 s, and the frames of each thread come in its order.
    """
    frames = 60
    size = 4096 if namespace.name == "local" else 65536  # with less, TCP crawls at 2 MB/s
    longest = [0.0] * 8

    def write(stream: FutureStream, writer: int) -> None:
        rng = random.Random(writer)
        pending: list[Future[int]] = []
        for number in range(frames):
            length = rng.choice([rng.randint(1, 64), rng.randint(1, 20000), int(2 ** rng.uniform(12, 20))])
            started = time.monotonic()
            future = stream.write(frame(writer, number, bytes([writer + 1]) * length))
            if writer % 2:
                future.result(PATIENCE)
                longest[writer] = max(longest[writer], time.monotonic() - started)
            else:
                pending.append(future)
                if len(pending) > 3:
                    pending.pop(0).result(PATIENCE)
        for future in pending:
            future.result(PATIENCE)

    with narrow(namespace, poller_thread, size) as (stream, peer):
        reader = Worker(lambda: read_frames(peer))
        writers = [Worker(partial(write, stream, writer)) for writer in range(8)]
        for one in writers:
            one.outcome(60)
        stream.close().result(PATIENCE)
        assert reader.outcome() == {writer: list(range(frames)) for writer in range(8)}
    assert max(longest) < 2


def test_a_handler_that_writes_in_the_middle_of_a_write_breaks_no_frame(
    namespace: Namespace, poller_thread: PollerThread
) -> None:
    """2,000 frames of the main thread, a signal handler's every 0.3 ms."""
    poller_thread.call_later(0, int).result(PATIENCE)  # it is not to be started by the handler
    with narrow(namespace, poller_thread) as (stream, peer):
        reader = Worker(lambda: read_frames(peer))
        handled: list[Future[int]] = []
        numbers = itertools.count()  # a handler may itself be interrupted by the next signal

        def handler() -> None:
            handled.append(stream.write(frame(1, next(numbers), b"handler" * 20)))

        with alarms(handler, 0.0003):
            for number in range(2000):
                stream.write(frame(0, number, b"main" * (number % 500))).result(PATIENCE)
        for future in handled:
            future.result(PATIENCE)
        stream.close().result(PATIENCE)
        found = reader.outcome()
        assert isinstance(found, dict)
        assert found[0] == list(range(2000))
        assert sorted(found[1]) == list(range(len(handled)))
        assert len(handled) > 20


def test_a_write_that_ends_early_tells_exactly_how_much_went(namespace: Namespace, poller_thread: PollerThread) -> None:
    """60 connections whose reader stalls at random: the counts of all writes are what the peer received."""
    rng = random.Random(5)
    outcomes = set()
    for _ in range(60):
        with narrow(namespace, poller_thread, rng.choice([4096, 65536])) as (stream, peer):
            data = rng.randbytes(rng.randint(1, 1 << 20))
            stream.write(b"head").result(PATIENCE)
            limit = rng.choice([0, 0.001, 0.01])
            reader = Worker(partial(receive, peer, rng.randint(1, 300000)))
            future = stream.write(data, timeout=limit)
            error = future.exception(PATIENCE)
            sent = len(data) if error is None else getattr(error, "sent", None)
            assert error is None or isinstance(error, WriteTimeoutError)
            assert sent is not None
            outcomes.add(0 if not sent else 2 if error is None else 1)
            after = stream.write(b"tail")
            closing = stream.close()
            received = reader.outcome()
            assert isinstance(received, bytes)
            received += receive(peer, 1 << 30)
            closing.result(PATIENCE)
            if 0 < sent < len(data):
                assert getattr(after.exception(PATIENCE), "sent", None) == 0
                assert received == b"head" + data[:sent]
            else:
                assert after.result(PATIENCE) == 4
                assert received == b"head" + data[:sent] + b"tail"
    assert len(outcomes) > 1


def test_a_peer_that_vanishes_never_got_more_than_was_told(namespace: Namespace, poller_thread: PollerThread) -> None:
    """60 connections, reset after some bytes: the peer has read no more than ``sent``; every future is settled."""
    rng = random.Random(6)
    lost = 0
    for _ in range(60):
        with narrow(namespace, poller_thread) as (stream, peer):
            data = bytes(range(256)) * 12000
            futures = [stream.write(data) for _ in range(3)]
            received = len(receive(peer, rng.randint(1, 200000)))
            peer.close()
            errors = [future.exception(PATIENCE) for future in futures]
            assert all(error is None or isinstance(error, RemoteDisconnectedError) for error in errors)
            counts = [len(data) if error is None else int(getattr(error, "sent", -1)) for error in errors]
            lost += counts[2] == 0
            assert received <= sum(counts)
            assert counts == sorted(counts, reverse=True)
            with contextlib.suppress(RemoteDisconnectedError):  # if promised bytes are lost
                stream.close().result(PATIENCE)
    assert lost > 10


def test_the_answer_to_a_half_closed_peer_is_complete(namespace: Namespace, poller_thread: PollerThread) -> None:
    """100 connections; the answer is larger than the buffers, and written after the peer's end was read."""
    answer = bytes(range(256)) * 400
    with namespace.make_server() as server:
        for _ in range(100):
            waiting = poller_thread.accept(server)
            with namespace.connect_plainly(server) as peer, waiting.result(PATIENCE) as accepted:
                accepted._handle.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
                stream = FutureStream(accepted, poller_thread, write_limit=1000)
                peer.sendall(b"question")
                peer.shutdown(socket.SHUT_WR)
                assert stream.read_exactly(8).result(PATIENCE) == b"question"
                assert stream.read().result(PATIENCE) == b""
                writing, closing = stream.write(answer), stream.close()
                assert receive(peer, 1 << 30) == answer
                assert (writing.result(PATIENCE), closing.result(PATIENCE)) == (len(answer), None)


def numbers(count: int) -> bytes:
    return b"".join(struct.pack("<I", number) for number in range(count))


def test_reads_that_are_cancelled_at_any_moment_lose_no_byte(namespace: Namespace, poller_thread: PollerThread) -> None:
    """5,000 rounds: the bytes of six waiting reads come in pieces while some of them are cancelled, or time out."""
    rng = random.Random(7)
    data = numbers(500_000)
    received = bytearray()
    given_up = 0

    def ask(stream: FutureStream) -> Future[bytes]:
        timeout = rng.choice([None, None, None, 0.0002])
        kind = rng.randrange(3)
        if kind == 0:
            return stream.read(rng.randint(1, 60), timeout=timeout)
        if kind == 1:
            return stream.read_exactly(rng.randint(1, 60), timeout=timeout)
        return stream.read_until(b"\0\0", 60, timeout=timeout)

    def collect(future: Future[bytes]) -> int:
        try:
            received.extend(future.result(PATIENCE))
        except (CancelledError, TimeoutError, bbipc.SeparatorNotFoundError) as reason:
            return not isinstance(reason, bbipc.SeparatorNotFoundError)
        return 0

    with namespace.stream_and_peer() as (one, peer):
        stream = FutureStream(one, poller_thread)
        view = memoryview(data)
        waiting: list[Future[bytes]] = []
        for _ in range(5000):
            while len(waiting) < 6:
                waiting.append(ask(stream))
            if len(data) - len(view) - len(received) < 2000:
                view = view[peer.send(view[: rng.randint(1, 100)]) :]
            if rng.random() < 0.5:
                rng.choice(waiting).cancel()
            while waiting and (waiting[0].done() or waiting[0].running()):  # running: it is just being settled
                given_up += collect(waiting.pop(0))
        peer.shutdown(socket.SHUT_WR)
        for future in waiting:
            with contextlib.suppress(bbipc.IncompleteReadError):
                if isinstance(error := future.exception(PATIENCE) if not future.cancelled() else None, EOFError):
                    received.extend(getattr(error, "partial", b""))
                collect(future)
        while rest := stream.read().result(PATIENCE):
            received.extend(rest)
        assert received == data[: len(data) - len(view)]
        assert given_up > 10


def test_writes_that_are_cancelled_at_any_moment_go_whole_or_not_at_all(
    namespace: Namespace, poller_thread: PollerThread
) -> None:
    """1,500 writes, about a third of them cancelled; what arrives is exactly the others, in order."""
    rng = random.Random(9)
    with narrow(namespace, poller_thread) as (_stream, peer):
        stream = FutureStream(_stream.stream, poller_thread, write_limit=2000)
        reader = Worker(lambda: read_frames(peer))
        futures = []
        for number in range(1500):
            size = rng.choice([rng.randint(1, 1000), rng.randint(1, 40000)])
            futures.append(stream.write(frame(0, number, bytes(size))))
            if rng.random() < 0.7:
                rng.choice(futures[-8:]).cancel()
            if number % 16 == 0:
                with contextlib.suppress(CancelledError):
                    rng.choice(futures[-8:]).result(PATIENCE)
        stream.close().result(PATIENCE)
        kept = [number for number, future in enumerate(futures) if not future.cancelled()]
        assert reader.outcome() == {0: kept}
        assert len(futures) - len(kept) > 50


def test_each_of_four_readers_is_given_whole_records_once(namespace: Namespace, poller_thread: PollerThread) -> None:
    """4 threads, 4,000 records of 100 bytes; no record is torn, doubled or lost."""
    records = 4000
    with namespace.stream_and_peer() as (one, peer):
        stream = FutureStream(one, poller_thread)

        def read() -> list[int]:
            found: list[int] = []
            while True:
                try:
                    data = stream.read_exactly(100).result(PATIENCE)
                except bbipc.IncompleteReadError as error:
                    return [*found, -len(error.partial)] if error.partial else found
                assert data == data[:4] * 25
                found.append(struct.unpack("<I", data[:4])[0])

        readers = [Worker(read) for _ in range(4)]
        for number in range(0, records, 10):
            peer.sendall(b"".join(struct.pack("<I", number + more) * 25 for more in range(10)))
        peer.shutdown(socket.SHUT_WR)
        found: list[list[int]] = [reader.outcome(30) for reader in readers]  # type: ignore[misc]
        assert sorted(number for part in found for number in part) == list(range(records))
        for part in found:
            assert part == sorted(part)


@pytest.mark.parametrize("close", ["stream", "flush", "socket", "poller thread"])
def test_a_close_at_any_moment_settles_everything(namespace: Namespace, close: str) -> None:
    """25 rounds of 4 threads that read, write, flush and cancel while a fifth closes."""
    rng = random.Random(10)
    for _ in range(25):
        with PollerThread() as poller_thread, namespace.stream_and_peer() as (one, _):
            stream = FutureStream(one, poller_thread, write_limit=100)
            barrier = threading.Barrier(5)

            def use(
                seed: int, stream: FutureStream = stream, barrier: threading.Barrier = barrier
            ) -> list[Future[object]]:
                own = random.Random(seed)
                futures: list[Future[object]] = []
                barrier.wait(PATIENCE)
                for _ in range(60):
                    futures += [stream.read(), stream.write(bytes(own.randint(1, 50000))), stream.flush()]  # type: ignore[list-item]
                    own.choice(futures).cancel()
                return futures

            users = [Worker(partial(use, seed)) for seed in range(4)]
            barrier.wait(PATIENCE)
            for _ in range(rng.randrange(2000)):
                pass
            if close == "stream":
                stream.close(flush=False).result(PATIENCE)
            elif close == "flush":
                stream.close(timeout=0.001).exception(PATIENCE)
            elif close == "socket":
                one.close()
            else:
                poller_thread.close()
            futures = [future for user in users for future in user.outcome()]  # type: ignore[attr-defined]
            for future in futures:
                if not future.cancelled():
                    error = future.exception(PATIENCE)
                    allowed = (SocketClosedError, bbipc.PollerClosedError, CancelledError)
                    assert error is None or isinstance(error, allowed), error
            one.close()
