"""Threads that pause anywhere: nothing is lost, nobody waits for ever, and whoever has nothing to do sleeps.

What is held here is progress: each answer comes while the peer is patient, though every thread of the library sleeps
for 4 to 20 ms at one call or return in 500.
"""

from __future__ import annotations

import random
import threading
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest

import bbipc
from bbipc import SocketClosedError, SocketEvent
from pool import FutureStream, MessageClient, MessageServer, PollerThread, Request, WorkerPool
from tests.support import wire
from tests.support.attacks import served
from tests.support.makers import PATIENCE, Worker
from tests.support.pauses import pausing
from tests.support.serving import READ, until
from tests.support.wire import tagged

seeded = pytest.mark.parametrize("seed", range(2))


@seeded
@pytest.mark.parametrize("kind", ["workers", "inline"])
def test_replies_that_are_read_late(kind: str, seed: int, short_dir: Path) -> None:
    """200 requests at once, with 7 MB of replies: somebody waits for the kernel's room at every moment.

    Where calls were slow and a client did not read, all workers ran his connection's errand round and round: it hung
    in each run.
    """

    def sized(request: Request) -> bytes:
        number = int(str(request.value))
        return bytes([number % 251]) * (number * 997 % 70_000)

    with pausing(seed), WorkerPool(6) as pool:
        workers: Any = pool if kind == "workers" else "inline"
        with served(short_dir, sized, workers=workers) as it, it.connect() as peer:
            peer.sendall(b"".join(tagged(wire.string(str(number)), number).encoded() for number in range(200)))
            left = set(range(200))
            while left:
                _, _, length, number, _, _ = wire.HEADER.unpack(wire.receive_exactly(peer, 32))
                assert wire.receive_exactly(peer, length) == bytes([number % 251]) * length
                left.remove(number)


@seeded
def test_replies_that_come_later(seed: int, short_dir: Path) -> None:
    """Handlers return futures, four places for 100 requests: whoever gives a place back finds what waits for one."""
    futures: list[Future[str]] = []

    def handler(request: Request) -> Future[str]:
        futures.append(Future())
        return futures[-1]

    with pausing(seed), WorkerPool(4) as pool:
        with served(short_dir, handler, workers=pool, max_in_flight=4) as it, it.connect() as peer:
            peer.sendall(b"".join(tagged(wire.string("x"), number).encoded() for number in range(100)))
            for number in range(100):
                until(lambda number=number: len(futures) > number)  # type: ignore[misc]
                assert len(futures) <= number + 4
                futures[number].set_result("done")
            assert {wire.receive(peer).word for _ in range(100)} == set(range(100))  # type: ignore[union-attr]


@seeded
@pytest.mark.parametrize("kind", ["workers", "inline", "executor"])
def test_threads_that_share_a_client(kind: str, seed: int, short_dir: Path) -> None:
    """Six threads, 40 calls each, of both kinds, some cancelled: each gets his own answer, in time."""

    def calls(client: MessageClient, thread: int) -> int:
        chance, answered = random.Random(seed * 10 + thread), 0
        for number in range(40):
            text = f"{thread}/{number}"
            if chance.random() < 0.5:
                assert client.send(text, timeout=PATIENCE) == text
            else:
                future = client.submit(text, timeout=PATIENCE)
                if chance.random() < 0.3:
                    future.cancel()
                try:
                    assert future.result(PATIENCE) == text
                except CancelledError:
                    continue
            answered += 1
        return answered

    with pausing(seed), WorkerPool(3) as pool, ThreadPoolExecutor(3) as executor:
        workers: Any = {"workers": pool, "inline": "inline", "executor": executor}[kind]
        with MessageServer(bbipc.make_local_server(short_dir / "s"), lambda request: request.value, workers=workers):
            with MessageClient(short_dir / "s") as client:
                threads = [Worker(lambda number=number: calls(client, number)) for number in range(6)]  # type: ignore[misc]
                assert sum(int(str(thread.outcome(3 * PATIENCE))) for thread in threads) >= 180
                assert client.stats().in_flight == 0


@seeded
def test_waits_that_end_in_four_ways(seed: int) -> None:
    """120 futures of readiness; each comes true, is cancelled, times out, or has its socket closed; all are settled."""
    with pausing(seed, own=True), PollerThread() as poller:
        pairs = [bbipc.local_stream_pair() for _ in range(120)]
        timeouts = [0.02 if number % 4 == 2 else None for number in range(120)]
        futures = [poller.when(ours, READ, timeout=timeout) for (ours, _), timeout in zip(pairs, timeouts, strict=True)]

        def act(number: int) -> None:
            for (ours, peer), future in list(zip(pairs, futures, strict=True))[number::4]:
                if number == 0:
                    peer.write(b"x")
                elif number == 1:
                    future.cancel()
                elif number == 3:
                    ours.close()

        for thread in [Worker(lambda number=number: act(number)) for number in range(4)]:  # type: ignore[misc]
            thread.outcome()
        assert not wait(futures, PATIENCE).not_done
        for number, future in enumerate(futures):
            if number % 4 == 0:
                assert future.result() & SocketEvent.DATA_AVAILABLE
            elif number % 4 == 1:
                assert future.cancelled()
            else:
                assert isinstance(future.exception(), (TimeoutError, SocketClosedError)[number % 4 - 2])
        for pair in pairs:
            for stream in pair:
                stream.close()


@seeded
@pytest.mark.parametrize("apart", [False, True])
def test_a_monitor_that_is_paused_and_resumed(apart: bool, seed: int) -> None:
    """While 200 bytes come: each is read, and never two calls at once.  *apart*: half of the calls block."""
    read, calling, problems = [0], threading.Lock(), list[str]()
    chance, over = random.Random(seed), threading.Event()
    with pausing(seed), WorkerPool(4) as pool:
        ours, peer = bbipc.local_stream_pair()

        def call(_socket: bbipc.Socket, _events: SocketEvent) -> None:
            if not calling.acquire(blocking=False):
                problems.append("two at once")
                return
            if apart and chance.random() < 0.5:
                over.wait(0.002)
            read[0] += len(ours.read(1) or b"")
            calling.release()

        monitor = pool.monitor(ours, READ, call)

        def change() -> None:
            while not over.wait(0.001):
                monitor.pause()
                monitor.resume()

        changer = Worker(change)
        for _ in range(20):
            peer.write(bytes(10))
        until(lambda: read[0] == 200)
        over.set()
        changer.outcome()
        monitor.cancel()
        assert not problems
        for stream in (ours, peer):
            stream.close()


@seeded
def test_writers_of_one_stream(seed: int) -> None:
    """Four threads write 30 frames each, and somebody reads slowly: none is torn, none is missing."""
    with pausing(seed, own=True), PollerThread() as poller:
        ours, peer = bbipc.local_stream_pair()
        with FutureStream(ours, poller) as writing, FutureStream(peer, poller) as reading:

            def write(writer: int) -> None:
                for number in range(30):
                    writing.write(bytes([writer, number]) + bytes([writer]) * 4000).result(PATIENCE)

            threads = [Worker(lambda writer=writer: write(writer)) for writer in range(4)]  # type: ignore[misc]
            seen: dict[int, int] = dict.fromkeys(range(4), 0)
            for _ in range(120):
                frame = reading.read_exactly(4002).result(PATIENCE)
                assert frame[2:] == bytes([frame[0]]) * 4000
                assert frame[1] == seen[frame[0]]
                seen[frame[0]] += 1
            for thread in threads:
                thread.outcome()
