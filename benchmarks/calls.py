"""Calls by messages beside other means of calling another process, and a server of messages under many connections.

Law of this file: a server is a process of its own on one core, its client another on another core; all pairs of a shape
are there at once and take turns.  The processor time that a call costs each of the two stands beside the throughput: it
depends less on what else the machine does.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import struct
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from bbipc.messages import Message, encode
from benchmarks.call_peers import PEERS
from benchmarks.callers import Calls, caller
from benchmarks.load import connected, counting, load
from benchmarks.measure import Effort, Row, Target, Turn, pinned, rate_ratio, ratio, take_all_turns
from benchmarks.processes import note, room_for_files, running

#: ours: (title, side of calls_adapters.py)
OURS: Final = {
    "send": "bbipc",
    "send, inline server": "bbipc_inline",
    "send, spinning": "bbipc_spin",
    "send, one client for all": "bbipc_shared",
    "submit": "bbipc",
    "submit, inline server": "bbipc_inline",
}
#: what is compared with in every shape that has it
BASE: Final = "multiprocessing"
RAW: Final = "raw sockets"


@dataclass(frozen=True)
class Shape:
    """The *titles* beside *base*; *alone*: of them, those that call in one thread and wait, whatever the shape is."""

    title: str
    calls: Calls
    titles: tuple[str, ...]
    base: str
    targets: tuple[tuple[str, str, Target], ...]
    alone: tuple[str, ...] = ()

    def calls_of(self, title: str) -> Calls:
        return Calls(1, 0, self.calls.size, self.calls.count) if title in self.alone else self.calls


def at_least(limit: float) -> Target:
    return Target(limit, at_least=True)


_SYNCHRONOUS: Final = (RAW, BASE, "asyncio streams", "pyzmq", "pynng", "rpyc")
_LEVEL: Final = (("send", BASE, at_least(0.95)), ("send, spinning", BASE, at_least(0.95)))
SHAPES: Final = (
    Shape(
        "1 thread 64B",
        Calls(1, 0, 64, 1000),
        ("send", "send, inline server", "send, spinning", *_SYNCHRONOUS),
        BASE,
        _LEVEL,
    ),
    Shape(
        "8 threads 64B",
        Calls(8, 0, 64, 4000),
        ("send", "send, inline server", "send, one client for all", *_SYNCHRONOUS),
        BASE,
        _LEVEL,
    ),
    Shape(
        "1 thread 64KiB",
        Calls(1, 0, 1 << 16, 400),
        ("send", "send, inline server", "send, spinning", *_SYNCHRONOUS),
        BASE,
        _LEVEL,
    ),
    Shape(
        "64 in flight 64B",
        Calls(1, 64, 64, 4000),
        ("submit", "submit, inline server", "send", RAW, "executor over multiprocessing", "pyzmq"),
        RAW,
        (("submit", "pyzmq", at_least(1.0)), ("submit", "send", at_least(3.0))),
        alone=("send",),
    ),
)


@dataclass(frozen=True)
class Taken:
    """What one pair took: seconds a call, and processor time a call of the server and of the client, of every turn."""

    seconds: list[float]
    served: list[float]
    called: list[float]


def side_of(title: str) -> str:
    return OURS.get(title, title)


@functools.cache
def missing(title: str) -> bool:
    """Whether this interpreter cannot run it; then that is said, once."""
    needs = PEERS[title][1] if title in PEERS else "pool.message_server"
    if importlib.util.find_spec(needs) is not None:
        return False
    note(f"without {title}: there is no {needs}")
    return True


def present(titles: Sequence[str]) -> list[str]:
    return [title for title in titles if not missing(title)]


def measured(shape: Shape, effort: Effort) -> dict[str, Taken]:
    """All pairs of the shape, turn and turn about."""
    results: dict[str, Taken] = {}
    turns: list[Turn] = []
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="bbipc-"))
        for number, title in enumerate(present(shape.titles)):
            calls, path = shape.calls_of(title), f"{directory}/{number}"
            if effort.quick:
                calls = Calls(calls.threads, calls.depth, calls.size, calls.count // 5)
            with pinned(0):
                server, _ = stack.enter_context(running("benchmarks.callers", "serve", side_of(title), path))
            with pinned(1):
                client = stack.enter_context(caller(side_of(title), path, calls))
            taken = results[title] = Taken([], [], [])
            turn = counting(client.turn, client.process, calls.count, taken.called)
            turns.append(counting(turn, server, calls.count, taken.served))
        for taken, seconds in zip(results.values(), take_all_turns(turns, effort.part(0.15)), strict=True):
            taken.seconds.extend(seconds)
    return results


def compare(shape: Shape, effort: Effort) -> list[Row]:
    """Every pair beside the base, then what a call costs its two processes, then the verdicts."""
    taken = measured(shape, effort)
    base, rows = taken[shape.base], []
    others = {title: own for title, own in taken.items() if title != shape.base}
    for title, own in others.items():
        rows.append(rate_ratio(shape.title, f"{shape.title}, {title}", shape.base, (own.seconds, base.seconds)))
    for title, own in others.items():
        if own.served:
            for whose, ours, theirs in (("server", own.served, base.served), ("client", own.called, base.called)):
                name = f"{shape.title}, {title}: {whose}'s processor time"
                rows.append(ratio(shape.title, name, shape.base, (ours[2:], theirs[2:])))
    for title, peer, target in shape.targets:
        if title in taken and peer in taken:
            name = f"{shape.title}, {title}: the target"
            rows.append(rate_ratio(shape.title, name, peer, (taken[title].seconds, taken[peer].seconds), target))
    return rows


# Many connections.


@dataclass(frozen=True)
class Crowd:
    """*connections* with one request of 64 bytes each under way, *sweeps* times a turn."""

    title: str
    connections: int
    sweeps: int


CROWDS: Final = (Crowd("50 connections 64B", 50, 8), Crowd("1000 connections 64B", 1000, 3))
_PAYLOAD: Final = bytes(64)
#: title -> (side, one request as it travels)
CROWD_SERVERS: Final = {
    RAW: (RAW, struct.pack("<I", 64) + _PAYLOAD),
    BASE: (BASE, struct.pack("!i", 64) + _PAYLOAD),
    "asyncio streams": ("asyncio streams", struct.pack("<I", 64) + _PAYLOAD),
    "MessageServer": ("bbipc", encode(Message.binary(_PAYLOAD))),
    "MessageServer, inline": ("bbipc_inline", encode(Message.binary(_PAYLOAD))),
}


def crowd(shape: Crowd, effort: Effort) -> list[Row]:
    """The load of ``servers.py``, whose messages are requests here; every server beside a thread a connection."""
    titles = [title for title in CROWD_SERVERS if not missing(title)]
    count = min(shape.connections, room_for_files(shape.connections * len(titles)) // len(titles))
    sweeps = 2 if effort.quick else shape.sweeps
    spent: list[list[float]] = [[] for _ in titles]
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="bbipc-"))
        turns = []
        for number, (title, own) in enumerate(zip(titles, spent, strict=True)):
            side, message = CROWD_SERVERS[title]
            with pinned(0):
                server, where = stack.enter_context(
                    running("benchmarks.callers", "serve", side, f"{directory}/{number}")
                )
            connections = [stack.enter_context(sock) for sock in connected(where, count)]
            turns.append(counting(load(connections, sweeps, message=message), server, count * sweeps, own))
        with pinned(1):
            taken = take_all_turns(turns, effort.part(0.15))
    rows = []
    for title, seconds, own in zip(titles[1:], taken[1:], spent[1:], strict=True):
        rows.append(rate_ratio(shape.title, f"{shape.title}, {title}", RAW, (seconds, taken[0])))
        if own:
            name = f"{shape.title}, {title}: processor time"
            rows.append(ratio(shape.title, name, RAW, (own[2:], spent[0][2:])))
    return rows


def _case(shape: Shape) -> Callable[[Effort], list[Row]]:
    return lambda effort: compare(shape, effort)


def _crowd_case(shape: Crowd) -> Callable[[Effort], list[Row]]:
    return lambda effort: crowd(shape, effort)


#: every case by its name; each gives its rows
CASES: Final[dict[str, Callable[[Effort], list[Row]]]] = {
    **{shape.title.replace(" ", "-"): _case(shape) for shape in SHAPES},
    **{shape.title.replace(" ", "-"): _crowd_case(shape) for shape in CROWDS},
}
