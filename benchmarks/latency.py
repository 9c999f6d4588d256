"""How long it takes from readiness to a future, and from a future to whoever waits for it; beside asyncio.

Law of this file: both threads of a pair are in this process, on one core, and the other one sleeps when a trip begins:
what is measured is one wake-up and what is done on the way.  The sides take turns, trip by trip.

    readiness to callback   the peer writes -> the callback of monitor() runs (asyncio: add_reader)
    readiness to future     the peer writes -> a callback of when()'s future runs (asyncio: sock_recv is awaited)
    readiness to waiter     the peer (here the poller thread itself) writes -> the thread in result() goes on
    future to waiter        work on the other thread is done -> the thread in result() goes on
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import statistics
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Any, Final

import bbipc
from bbipc import SocketEvent
from benchmarks.measure import Effort, Row, pinned, take_turns
from pool import PollerThread, WorkerPool

#: one trip: the seconds that it took
Trip = Callable[[], float]

DATA: Final = SocketEvent.DATA_AVAILABLE
TRIPS_A_ROUND: Final = 10
PERCENTILES: Final = (50, 99)


class Signal:
    """A thread tells another that something has happened, and when."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()
        self._at = 0.0

    def tell(self, *_: object) -> None:
        self._at = perf_counter()
        self._lock.release()

    def wait(self) -> float:
        self._lock.acquire()
        return self._at


# Ours.


@contextlib.contextmanager
def our_thread() -> Iterator[tuple[PollerThread, bbipc.StreamSocket, bbipc.StreamSocket]]:
    one, other = bbipc.local_stream_pair()
    with one, other, PollerThread() as poller_thread:
        yield poller_thread, one, other


@contextlib.contextmanager
def our_callback() -> Iterator[Trip]:
    with our_thread() as (poller_thread, stream, peer):
        signal = Signal()

        def ready(_stream: object, _events: SocketEvent) -> None:
            signal.tell()
            stream.read(1)

        def trip() -> float:
            start = perf_counter()
            peer.write(b"x")
            return signal.wait() - start

        poller_thread.monitor(stream, DATA, ready)
        yield trip


@contextlib.contextmanager
def our_future() -> Iterator[Trip]:
    with our_thread() as (poller_thread, stream, peer):
        signal = Signal()

        def trip() -> float:
            poller_thread.when(stream, DATA).add_done_callback(signal.tell)
            start = perf_counter()
            peer.write(b"x")
            taken = signal.wait() - start
            stream.read(1)
            return taken

        yield trip


@contextlib.contextmanager
def our_waiter() -> Iterator[Trip]:
    with our_thread() as (poller_thread, stream, peer):

        def write() -> float:
            start = perf_counter()
            peer.write(b"x")
            return start

        def trip() -> float:
            future = poller_thread.when(stream, DATA)
            start = poller_thread.call_later(0.0, write)
            future.result()
            taken = perf_counter() - start.result()
            stream.read(1)
            return taken

        yield trip


@contextlib.contextmanager
def our_result() -> Iterator[Trip]:
    with PollerThread() as poller_thread:

        def trip() -> float:
            done = poller_thread.call_later(0.0, perf_counter).result()
            return perf_counter() - done

        yield trip


@contextlib.contextmanager
def our_worker() -> Iterator[Trip]:
    with WorkerPool(1) as pool:

        def trip() -> float:
            done = pool.submit(perf_counter).result()
            return perf_counter() - done

        yield trip


# asyncio's.


@contextlib.contextmanager
def loop_thread() -> Iterator[tuple[asyncio.AbstractEventLoop, socket.socket, socket.socket]]:
    """A loop on a thread of its own, and a pair of connected sockets."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    one, other = socket.socketpair()
    one.setblocking(False)
    try:
        with one, other:
            yield loop, one, other
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def run_on(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run_coroutine_threadsafe(work, loop).result()


@contextlib.contextmanager
def loop_callback() -> Iterator[Trip]:
    with loop_thread() as (loop, sock, peer):
        signal = Signal()

        def ready() -> None:
            signal.tell()
            sock.recv(1)

        async def change(function: Callable[..., object], *arguments: object) -> None:
            function(*arguments)

        def trip() -> float:
            start = perf_counter()
            peer.send(b"x")
            return signal.wait() - start

        run_on(loop, change(loop.add_reader, sock, ready))
        yield trip
        run_on(loop, change(loop.remove_reader, sock))


@contextlib.contextmanager
def loop_future() -> Iterator[Trip]:
    with loop_thread() as (loop, sock, peer):
        signal = Signal()

        async def receive() -> None:
            while await loop.sock_recv(sock, 1):
                signal.tell()

        def trip() -> float:
            start = perf_counter()
            peer.send(b"x")
            return signal.wait() - start

        reading = asyncio.run_coroutine_threadsafe(receive(), loop)
        yield trip
        peer.close()
        reading.result()


@contextlib.contextmanager
def loop_waiter() -> Iterator[Trip]:
    with loop_thread() as (loop, sock, peer):

        async def write() -> float:
            start = perf_counter()
            peer.send(b"x")
            return start

        def trip() -> float:
            future = asyncio.run_coroutine_threadsafe(loop.sock_recv(sock, 1), loop)
            start = asyncio.run_coroutine_threadsafe(write(), loop)
            future.result()
            return perf_counter() - start.result()

        yield trip


@contextlib.contextmanager
def loop_result() -> Iterator[Trip]:
    with loop_thread() as (loop, _, _):

        async def work() -> float:
            return perf_counter()

        def trip() -> float:
            done: float = run_on(loop, work())
            return perf_counter() - done

        yield trip


@contextlib.contextmanager
def executor_result() -> Iterator[Trip]:
    with ThreadPoolExecutor(1) as executor:

        def trip() -> float:
            done = executor.submit(perf_counter).result()
            return perf_counter() - done

        yield trip


# The comparison.

Side = Callable[[], contextlib.AbstractContextManager[Trip]]
PAIRS: Final[tuple[tuple[str, Side, str, Side], ...]] = (
    ("readiness to callback", our_callback, "asyncio add_reader", loop_callback),
    ("readiness to future", our_future, "asyncio sock_recv", loop_future),
    ("readiness to waiter", our_waiter, "asyncio run_coroutine_threadsafe", loop_waiter),
    ("future to waiter, PollerThread", our_result, "asyncio run_coroutine_threadsafe", loop_result),
    ("future to waiter, WorkerPool", our_worker, "ThreadPoolExecutor", executor_result),
)


def percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def latency(effort: Effort) -> list[Row]:
    rows = []
    with pinned(0):
        for title, our_side, peer_name, peer_side in PAIRS:
            with our_side() as our_trip, peer_side() as peer_trip:
                ours, peer = take_turns(our_trip, peer_trip, TRIPS_A_ROUND * effort.rounds)
            for percent in PERCENTILES:
                one, other = percentile(ours, percent), percentile(peer, percent)
                what = f"{title}, p{percent}"
                rows.append(Row("latency", what, peer_name, 1e6 * one, 1e6 * other, "us", one / other))
    return rows
