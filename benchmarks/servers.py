"""Echo servers of pool beside the other ways of writing one, thousands of idle connections, and latency.

Law of this file: a server is a process of its own on one core, the load comes from another core, and all servers of a
shape run at once and take turns: one that has no turn sleeps in the kernel and costs nothing.  The processor time of a
server a request stands beside its throughput, because it does not depend on the load generator.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import select
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.idle import idle
from benchmarks.latency import latency
from benchmarks.load import connected, counting, load
from benchmarks.measure import Effort, Row, Target, pinned, rate_ratio, ratio, take_all_turns
from benchmarks.processes import note, room_for_files, running


@dataclass(frozen=True)
class Server:
    """One way of writing a server.  *needs*: the module without which there is none."""

    title: str
    module: str
    name: str
    needs: str


@dataclass(frozen=True)
class Shape:
    """*connections*, each with *depth* messages of *size* bytes in flight, *sweeps* times a turn: a few ms, and more
    where so many sockets must be warm again before the numbers mean something.
    """

    title: str
    kind: str
    connections: int
    size: int
    depth: int
    sweeps: int


BASE: Final = "epoll by hand"
SERVERS: Final = (
    Server("callbacks", "benchmarks.ours", "callbacks", "pool.poller_thread"),
    Server("workers", "benchmarks.ours", "workers", "pool.worker_pool"),
    Server("ConnectionServer", "benchmarks.ours", "server", "pool.server"),
    Server(BASE, "benchmarks.peers", "epoll", "select"),
    Server("thread per connection", "benchmarks.peers", "threads", "threading"),
    Server("epoll + ThreadPoolExecutor", "benchmarks.peers", "executor", "select"),
    Server("asyncio protocol", "benchmarks.peers", "asyncio", "asyncio"),
    Server("uvloop protocol", "benchmarks.peers", "uvloop", "uvloop"),
)
SHAPES: Final = (
    Shape("tcp 1x64B", "tcp", 1, 64, 1, 40),
    Shape("tcp 50x64B", "tcp", 50, 64, 1, 8),
    Shape("tcp 1000x64B", "tcp", 1000, 64, 1, 10),
    Shape("local 50x64B", "local", 50, 64, 1, 12),
    Shape("local 50x64B deep 16", "local", 50, 64, 16, 12),
    Shape("local 8x64KiB", "local", 8, 1 << 16, 1, 20),
)
#: (ours, peer, how many times its throughput), in the shapes with MANY connections and more
TARGETS: Final = (
    ("callbacks", "asyncio protocol", Target(1.0, at_least=True)),
    ("callbacks", "uvloop protocol", Target(1.0, at_least=True)),
    ("workers", "thread per connection", Target(1.0, at_least=True)),
    ("workers", "epoll + ThreadPoolExecutor", Target(2.0, at_least=True)),
)
MANY: Final = 50


@dataclass(frozen=True)
class Taken:
    """What one server took: seconds a request, and processor time of its own, of every turn."""

    seconds: list[float]
    spent: list[float]


@functools.cache
def present() -> list[Server]:
    """The servers that this interpreter can run; what is missing is said."""
    missing = [server for server in SERVERS if importlib.util.find_spec(server.needs) is None]
    for server in missing:
        note(f"without {server.title}: there is no {server.needs}")
    return [server for server in SERVERS if server not in missing]


def measured(shape: Shape, servers: Sequence[Server], effort: Effort) -> dict[str, Taken]:
    """All *servers*, turn and turn about."""
    count = min(shape.connections, room_for_files(shape.connections * len(servers)) // len(servers))
    if count < shape.connections:
        note(f"{count} connections in place of {shape.connections}: no more files may be open")
    sweeps = 2 if effort.quick else shape.sweeps
    messages = count * shape.depth * sweeps
    spent: list[list[float]] = [[] for _ in servers]
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="bbipc-"))
        turns = []
        for server, own in zip(servers, spent, strict=True):
            address = "tcp" if shape.kind == "tcp" else f"{directory}/{server.name}"
            with pinned(0):
                process, where = stack.enter_context(running(server.module, server.name, address))
            connections = [stack.enter_context(sock) for sock in connected(where, count)]
            turn = load(connections, sweeps, size=shape.size, depth=shape.depth)
            turns.append(counting(turn, process, messages, own))
        with pinned(1):
            taken = take_all_turns(turns, effort.part(0.1 if count > 100 else 1.0))
    return {server.title: Taken(*both) for server, *both in zip(servers, taken, spent, strict=True)}


def compare(shape: Shape, effort: Effort) -> list[Row]:
    """Every server beside the hand-written loop, then the verdicts."""
    if not hasattr(select, "epoll"):
        note("without epoll there is no hand-written loop to compare with")
        return []
    taken = measured(shape, present(), effort)
    rows = []
    for title, own in taken.items():
        if title != BASE:
            pair = own.seconds, taken[BASE].seconds
            rows.append(rate_ratio(shape.title, f"{shape.title}, {title}", BASE, pair))
    for title, own in taken.items():
        if title != BASE and own.spent:
            name = f"{shape.title}, {title}: processor time"
            rows.append(ratio(shape.title, name, BASE, (own.spent[2:], taken[BASE].spent[2:])))
    for title, peer, target in TARGETS:
        if shape.connections >= MANY and title in taken and peer in taken:
            pair = taken[title].seconds, taken[peer].seconds
            rows.append(rate_ratio(shape.title, f"{shape.title}, {title}", peer, pair, target))
    return rows


def _case(shape: Shape) -> Callable[[Effort], list[Row]]:
    return lambda effort: compare(shape, effort)


#: every case by its name; each gives its rows
CASES: Final[dict[str, Callable[[Effort], list[Row]]]] = {
    **{shape.title.replace(" ", "-"): _case(shape) for shape in SHAPES},
    "idle": idle,
    "latency": latency,
}
