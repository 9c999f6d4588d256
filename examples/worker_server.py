"""A multithreaded server with live figures: connections are handed to workers; every line comes back in capitals.

python examples/worker_server.py [--local PATH | --host H --port P] [--workers N] [--per connection|readiness]
                                 [--work SECONDS]        Ctrl-C ends it.

With --per connection a worker stays with a connection until its end; with --per readiness for what has just come, so
that thousands of idle connections hold none.  --work lets every request take longer, as a database would.
"""

import argparse
import collections
import shutil
import sys
import threading
import time

import bbipc
from bbipc import SocketEvent
from pool import ConnectionServer, WorkerPool

IDLE = 60.0  # seconds after which a connection that says nothing is closed, where it holds a worker
PATIENCE = 10.0  # seconds for a client to take its answer
STOP = 1.0  # seconds for conversations to end by themselves when the server is stopped
EVERY = 0.5  # seconds from one look at the figures to the next


class Capitals:
    """The handlers, and what they have done; any thread."""

    def __init__(self, work: float) -> None:
        self.work = work
        self.lock = threading.Lock()  # guards the two below
        self.requests = 0
        self.times: collections.deque[float] = collections.deque([0.0], maxlen=10000)  # seconds each

    def converse(self, stream: bbipc.StreamSocket) -> None:
        """For the life of a connection."""
        while bbipc.poll_socket(stream, SocketEvent.DATA_AVAILABLE, IDLE):  # over at the end, too: no data can come
            self.answer(stream)

    def answer(self, stream: bbipc.StreamSocket) -> None:
        """For what has come."""
        began = time.perf_counter()
        data = stream.read()
        if not data:
            return  # the end: the server closes the connection
        time.sleep(self.work)
        rest = memoryview(data.upper())
        while rest := rest[stream.write(rest) :]:
            if not bbipc.poll_socket(stream, SocketEvent.ROOM_TO_WRITE, PATIENCE):
                raise TimeoutError("the client does not take its answer")
        with self.lock:
            self.requests += data.count(b"\n")
            self.times.append(time.perf_counter() - began)

    def figures(self) -> tuple[int, float, float]:
        """Requests so far; half of the latest took less seconds than …, 99 of 100 less than …"""
        with self.lock:
            times = sorted(self.times)
            return self.requests, times[len(times) // 2], times[len(times) * 99 // 100]


def watch(server: ConnectionServer, capitals: Capitals) -> None:
    before, then = 0, time.monotonic()
    while True:
        time.sleep(EVERY)
        stats, pool = server.stats(), server.workers.stats()
        (requests, half, most), now = capitals.figures(), time.monotonic()
        show(
            f"{stats.connections} connections, {(requests - before) / (now - then):,.0f} requests/s",
            f"p50 {half * 1e3:.2f} ms, p99 {most * 1e3:.2f} ms",
            f"{pool.threads} of {pool.max_workers} threads, {pool.queued} calls queued",
            f"{stats.accepted} accepted, {stats.shed + stats.refused} turned away, {stats.handler_errors} errors",
        )
        before, then = requests, now


def show(*figures: str) -> None:
    """One line: redrawn in place on a terminal, and as wide as that at most."""
    if sys.stdout.isatty():
        print(f"\r\x1b[K{'; '.join(figures)[: shutil.get_terminal_size().columns - 1]}", end="", flush=True)
    else:
        print("; ".join(figures), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--local", metavar="PATH")
    parser.add_argument("--host", default=bbipc.IPV4_LOOPBACK)
    parser.add_argument("--port", type=int, default=12345)
    parser.add_argument("--workers", type=int, default=64, metavar="N")
    parser.add_argument("--per", choices=["connection", "readiness"], default="connection")
    parser.add_argument("--work", type=float, default=0, metavar="SECONDS")
    args = parser.parse_args()
    try:
        local = bbipc.make_local_server(args.local, replace_stale=True) if args.local else None
        with (
            local or bbipc.make_ipv4_tcp_server(args.host, args.port) as listening,
            WorkerPool(args.workers) as workers,
        ):
            capitals = Capitals(args.work)
            handler = capitals.converse if args.per == "connection" else capitals.answer
            server = ConnectionServer(listening, handler, workers=workers, per=args.per)
            try:
                server.start()
                print(f"worker server: {listening!r}; Ctrl-C ends it", flush=True)
                watch(server, capitals)
            finally:
                print(f"\nworker server: {server.stop(STOP)}")
    except KeyboardInterrupt:
        pass
    except (OSError, ValueError) as error:
        sys.exit(f"worker server: {error}")
