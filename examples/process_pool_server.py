"""A server whose handlers compute in other processes, all cores at once: how many primes are there below a number?

python examples/process_pool_server.py ADDRESS [--processes N]        Ctrl-C ends it
bbipc send ADDRESS 100000                                              asks it

ADDRESS: a path, abstract:NAME, ipv4:HOST:PORT or ipv6:[HOST]:PORT.

A process that dies takes the calls with it that the pool had: they fail by name, and the next calls have a new pool.
"""

import argparse
import concurrent.futures
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from typing import ParamSpec, TypeVar

from bbipc import Address, parse_address
from pool import MessageServer, Request

P = ParamSpec("P")
T = TypeVar("T")
MOST = 5_000_000  # a sieve of so many bytes


def answer(request: Request) -> str:
    """In one of the processes; so it is a function of a module, which they can import."""
    limit = int(str(request.value))
    if limit > MOST:
        raise ValueError(f"{limit} is too much: {MOST} at most")
    return f"{primes_below(limit)} primes below {limit}, counted by process {os.getpid()}"


def primes_below(limit: int) -> int:
    sieve = bytearray([1]) * max(limit, 2)
    sieve[:2] = bytes(2)
    for number in range(2, int(limit**0.5) + 1):
        if sieve[number]:
            sieve[number * number :: number] = bytes(len(range(number * number, len(sieve), number)))
    return sum(sieve[: max(limit, 0)])


def leave_ctrl_c() -> None:
    """In each of the processes: in a terminal they get it, too, but it is for the server."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class Renewed(concurrent.futures.Executor):
    """A ProcessPoolExecutor that has lost a process takes nothing any more.  This one makes another then."""

    def __init__(self, processes: int | None) -> None:
        self._processes = processes
        self._lock = threading.Lock()  # guards the pool
        self._pool = self._make()

    def _make(self) -> concurrent.futures.ProcessPoolExecutor:
        # "spawn": a fork of a process with threads, as a server is, may deadlock.
        context = multiprocessing.get_context("spawn")
        return concurrent.futures.ProcessPoolExecutor(self._processes, context, initializer=leave_ctrl_c)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> concurrent.futures.Future[T]:
        """Any thread."""
        with self._lock:
            try:
                return self._pool.submit(fn, *args, **kwargs)
            except BrokenProcessPool:
                self._pool = self._make()
                return self._pool.submit(fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the pool that there is now."""
        self._pool.shutdown(wait, cancel_futures=cancel_futures)


def serve(address: Address, processes: int | None) -> None:
    listening = address.listen(replace_stale=True)
    with (
        listening,
        Renewed(processes) as executor,
        MessageServer(listening, answer, workers=executor) as server,
    ):
        print(f"process pool server: listening on {Address.of(listening)}; Ctrl-C ends it", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", metavar="ADDRESS")
    parser.add_argument("--processes", type=int, metavar="N", help="as many as there are processors")
    args = parser.parse_args()
    try:
        serve(parse_address(args.address), args.processes)
    except KeyboardInterrupt:  # before the server waited for it
        pass
    except (OSError, ValueError) as error:
        sys.exit(f"process pool server: {error}")
    print("process pool server: bye")
