"""``bbipc bench``: how many calls a second, beside the interpreter's own multiprocessing.connection and sockets.

Law of this file: all are measured in turns, a short slice each, over and over, so that what disturbs the machine
disturbs all of them; a ratio is the median of the rounds' ratios.  The servers share one process (``bench_server.py``),
the clients this one.  The others check nothing; ours checks every byte both ways.
"""

from __future__ import annotations

import contextlib
import socket
import statistics
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing.connection import Client
from pathlib import Path
from time import monotonic, perf_counter
from typing import Final

from pool import MessageClient
from pool.cli.bench_server import LENGTH, receive
from pool.cli.children import Children
from pool.cli.exits import Exit, ProblemError
from pool.cli.terminal import Terminal
from pool.cli.text import Table, amount

_SIZES: Final = (64, 65536)
_ROUNDS: Final = 7
_IN_FLIGHT: Final = 64
_LARGEST: Final = 1 << 22

#: so many calls; what the last one gave
Calls = Callable[[int], bytes | str | None]

OURS: Final = "bbipc, handler on a worker"
INLINE: Final = "bbipc, handler inline"
PIPELINED: Final = f"bbipc, {_IN_FLIGHT} in flight"
MULTIPROCESSING: Final = "multiprocessing.connection"
PLAIN: Final = "plain sockets"

_NOTES: Final = (
    "One thread calls over a local socket, and waits for each answer but where it says so.",
    "x: so many times as many calls as multiprocessing.connection, as plain sockets make;",
    "the median of rounds in turn. They check nothing, bbipc checks every byte both ways.",
)


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    seconds: float
    size: int | None


def run(options: Options, terminal: Terminal) -> Exit:
    """Measure, and print the figures."""
    sizes = _SIZES if options.size is None else (options.size,)
    if not all(0 < size <= _LARGEST for size in sizes):
        raise ProblemError(Exit.USAGE, f"--size is 1 byte to {amount(_LARGEST)}")
    with tempfile.TemporaryDirectory(prefix="bbipc-") as directory, Children() as children:
        children.first_word(children.start("the server", "pool.cli.bench_server", directory))
        for size in sizes:
            with _sides(Path(directory), bytes(range(256)) * (size // 256) + bytes(size % 256)) as sides:
                terminal.table(_table(size, _measure(sides, options.seconds / len(sizes))))
    for line in _NOTES:
        terminal.line(line)
    return Exit.OK


@contextlib.contextmanager
def _sides(directory: Path, message: bytes) -> Iterator[dict[str, Calls]]:
    with (
        MessageClient(directory / "workers") as ours,
        MessageClient(directory / "inline") as inline,
        Client(str(directory / "multiprocessing")) as connection,
        socket.socket(socket.AF_UNIX) as plain,
    ):
        plain.connect(str(directory / "plain"))

        def send(client: MessageClient, count: int) -> bytes | str | None:
            answer = None
            for _ in range(count):
                answer = client.send(message)
            return answer

        def submit(count: int) -> bytes | str | None:
            waiting: list[Future[str | bytes | None]] = []
            for number in range(count):
                if len(waiting) < _IN_FLIGHT:
                    waiting.append(inline.submit(message))
                else:
                    place = number % _IN_FLIGHT
                    waiting[place].result()
                    waiting[place] = inline.submit(message)
            return [each.result() for each in waiting][-1]

        def send_bytes(count: int) -> bytes:
            answer = b""
            for _ in range(count):
                connection.send_bytes(message)
                answer = connection.recv_bytes()
            return answer

        def send_plainly(count: int) -> bytes:
            answer = b""
            for _ in range(count):
                plain.sendall(LENGTH.pack(len(message)) + message)
                answer = receive(plain)
            return answer

        sides: dict[str, Calls] = {
            OURS: lambda count: send(ours, count),
            INLINE: lambda count: send(inline, count),
            PIPELINED: submit,
            MULTIPROCESSING: send_bytes,
            PLAIN: send_plainly,
        }
        for name, calls in sides.items():
            if calls(1) != message:
                raise ProblemError(Exit.FAILED, f"{name} gave a wrong answer")
        yield sides


def _measure(sides: dict[str, Calls], seconds: float) -> dict[str, list[float]]:
    """Calls a second of each side, round by round."""
    slice_ = seconds / _ROUNDS / len(sides)
    rates: dict[str, list[float]] = {name: [] for name in sides}
    counts = dict.fromkeys(sides, _IN_FLIGHT)
    end = monotonic() + seconds
    while not rates[PLAIN] or monotonic() < end:
        for name, calls in sides.items():
            count = counts[name]
            began = perf_counter()
            calls(count)
            rate = count / (perf_counter() - began)
            rates[name].append(rate)
            counts[name] = max(int(rate * slice_), _IN_FLIGHT)
    return rates


def _table(size: int, rates: dict[str, list[float]]) -> Table:
    rows = [
        (
            name,
            f"{statistics.median(own):,.0f}",
            f"{statistics.median(own) * size / 1e6:,.1f}",
            *(_ratio(own, rates[peer]) for peer in (MULTIPROCESSING, PLAIN)),
        )
        for name, own in rates.items()
    ]
    columns = ("", "calls/s", "MB/s", "x mp.connection", "x sockets")
    return Table(columns, list(rows), title=f"{amount(size)} there and back")


def _ratio(own: list[float], others: list[float]) -> str:
    return f"{statistics.median(one / other for one, other in zip(own, others, strict=True)):.2f}"
