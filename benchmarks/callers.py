"""Both ends of calls, each in a process of its own: a server, and a client that calls it when it is told to.

Law of this file: it knows what a side is (``call_peers.py``), and none in particular but by its name.

``python -m benchmarks.callers serve NAME PATH`` is a server; see ``processes.py``.  ``… call NAME PATH THREADS DEPTH
SIZE CALLS`` is a client: it prints a line when it is connected, and then, for every line that it reads, makes CALLS
calls and prints the seconds that one took.  It ends with its stdin.
"""

from __future__ import annotations

import collections
import contextlib
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.call_peers import PEERS, Call, Submit
from benchmarks.measure import Turn
from benchmarks.processes import ROOT, announce, serve

#: seconds for one answer; only a broken server takes them
PATIENCE: Final = 30.0


@dataclass(frozen=True)
class Calls:
    """*threads* that call and wait, each on a connection of its own where the side has it so; or, with a *depth*, one
    thread that keeps so many calls in flight.  *count* calls a turn, of *size* bytes each.
    """

    threads: int
    depth: int
    size: int
    count: int

    def words(self) -> list[str]:
        return [str(number) for number in (self.threads, self.depth, self.size, self.count)]


# In the child.


def side(name: str) -> Any:
    """The side of that name; ours are imported only when they are measured."""
    if name in PEERS:
        return PEERS[name][0]
    from benchmarks.calls_adapters import ADAPTERS  # noqa: PLC0415

    return ADAPTERS[name]


def calling(call: Call, data: bytes, count: int) -> None:
    for _ in range(count):
        call(data)


def in_one_thread(call: Call, calls: Calls) -> Turn:
    data = bytes(calls.size)

    def turn() -> float:
        start = time.perf_counter()
        calling(call, data, calls.count)
        return (time.perf_counter() - start) / calls.count

    return turn


def in_threads(each: list[Call], calls: Calls) -> Turn:
    """The threads are made before the clock runs, and are all let go at once."""
    data, share = bytes(calls.size), calls.count // len(each)

    def turn() -> float:
        gate = threading.Barrier(len(each) + 1)

        def run(call: Call) -> None:
            gate.wait(PATIENCE)
            calling(call, data, share)

        threads = [threading.Thread(target=run, args=(call,), daemon=True) for call in each]
        for thread in threads:
            thread.start()
        gate.wait(PATIENCE)
        start = time.perf_counter()
        for thread in threads:
            thread.join()
        return (time.perf_counter() - start) / (share * len(each))

    return turn


def in_flight(submit: Submit, calls: Calls) -> Turn:
    """Always *depth* calls under way; the oldest is waited for."""
    data = bytes(calls.size)

    def turn() -> float:
        start = time.perf_counter()
        under_way = collections.deque(submit(data) for _ in range(calls.depth))
        for _ in range(calls.count - calls.depth):
            under_way.popleft().result(PATIENCE)
            under_way.append(submit(data))
        while under_way:
            under_way.popleft().result(PATIENCE)
        return (time.perf_counter() - start) / calls.count

    return turn


def make_turn(name: str, path: str, calls: Calls) -> Turn:
    """Connected, and one call made on each connection: whether it answers what it should."""
    if calls.depth:
        submit: Submit = side(name).client_futures(path)
        check(submit(b"ab").result(PATIENCE))
        return in_flight(submit, calls)
    each: list[Call] = [side(name).client(path) for _ in range(calls.threads)]
    for call in each:
        check(call(b"ab"))
    return in_one_thread(each[0], calls) if calls.threads == 1 else in_threads(each, calls)


def check(answer: Any) -> None:
    if bytes(answer) != b"AB":
        raise ValueError(f"not the answer: {answer!r}")


def call_when_told(name: str, path: str, calls: Calls) -> None:
    turn = make_turn(name, path, calls)
    print("connected", flush=True)
    for _ in sys.stdin:
        print(turn(), flush=True)
    os._exit(0)  # whatever threads the libraries have left


# In the parent.


class Caller:
    """A client in a child process."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self._child = child
        self._line()

    def _line(self) -> str:
        assert self._child.stdout is not None
        line = ""
        if select.select([self._child.stdout], [], [], 2 * PATIENCE)[0]:
            line = self._child.stdout.readline()
        if not line:
            raise RuntimeError("a client of the benchmark has given up")
        return line

    def turn(self) -> float:
        assert self._child.stdin is not None
        self._child.stdin.write("\n")
        self._child.stdin.flush()
        return float(self._line())

    @property
    def process(self) -> int:
        return self._child.pid


@contextlib.contextmanager
def caller(name: str, path: str, calls: Calls) -> Iterator[Caller]:
    command = [sys.executable, "-m", "benchmarks.callers", "call", name, path, *calls.words()]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True, bufsize=-1
    ) as child:
        try:
            yield Caller(child)
        finally:
            child.kill()  # a client owes nobody an end, and may hang
            child.wait(10)


def main() -> None:
    what, name, path, *numbers = sys.argv[1:]
    if what == "call":
        call_when_told(name, path, Calls(*map(int, numbers)))
    else:
        answer: Callable[..., None] = side(name).serve
        serve({name: lambda address: answer(address, lambda: announce(0))})


if __name__ == "__main__":
    main()
