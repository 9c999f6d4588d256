"""Measuring turn and turn about, and the rows and the table that come of it.

Law of this file: it knows nothing of sockets.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

#: one turn: does something many times, gives the seconds (or whatever the unit is) that one time took
Turn = Callable[[], float]


@dataclass(frozen=True)
class Target:
    """What a verdict has to be: at most, or at least, *limit*."""

    limit: float
    at_least: bool = False

    def met_by(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.limit:g}"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    ``ours`` and ``peer`` are medians in ``unit``; ``verdict`` is the median of what each pair of turns came to, in
    ``verdict_unit``: "x" for a ratio, else the unit of a difference.
    """

    case: str
    name: str
    peer_name: str
    ours: float
    peer: float
    unit: str
    verdict: float
    verdict_unit: str = "x"
    target: Target | None = None

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None: there is none."""
        return None if self.target is None else self.target.met_by(self.verdict)

    def as_json(self) -> dict[str, Any]:
        target = None if self.target is None else asdict(self.target)
        return asdict(self) | {"target": target, "met": self.met}


@dataclass(frozen=True)
class Effort:
    """How much to measure.  *rounds*: turns of each side in the cases that have cheap turns; others take a part."""

    rounds: int
    quick: bool

    def part(self, share: float, least: int = 3) -> int:
        """A *share* of the rounds, for turns that cost more."""
        return max(least, int(self.rounds * share))


def take_turns(ours: Turn, peer: Turn, rounds: int) -> tuple[list[float], list[float]]:
    """A B A B …, after two turns each that do not count."""
    taken = take_all_turns((ours, peer), rounds)
    return taken[0], taken[1]


def take_all_turns(turns: Sequence[Turn], rounds: int) -> list[list[float]]:
    """A B C A B C …, after two turns each that do not count; what each side took."""
    for warm_up in (*turns, *turns):
        warm_up()
    taken = [[turn() for turn in turns] for _ in range(rounds)]
    return [list(side) for side in zip(*taken, strict=True)]


def ratio(
    case: str, name: str, peer_name: str, turns: tuple[list[float], list[float]], target: Target | None = None
) -> Row:
    """How many times the peer's time ours takes; turns in seconds."""
    ours, peer = turns
    verdict = statistics.median(one / other for one, other in zip(ours, peer, strict=True))
    return Row(case, name, peer_name, *_micros(ours, peer), "us", verdict, "x", target)


def rate_ratio(
    case: str, name: str, peer_name: str, turns: tuple[list[float], list[float]], target: Target | None = None
) -> Row:
    """How many times the peer's throughput ours is; turns in seconds a request, shown as requests a second."""
    ours, peer = turns
    verdict = statistics.median(other / one for one, other in zip(ours, peer, strict=True))
    rates = 1 / statistics.median(ours), 1 / statistics.median(peer)
    return Row(case, name, peer_name, *rates, "req/s", verdict, "x", target)


def difference(
    case: str, name: str, peer_name: str, turns: tuple[list[float], list[float]], target: Target | None = None
) -> Row:
    """How many microseconds more than the peer ours takes; turns in seconds."""
    ours, peer = turns
    verdict = 1e6 * statistics.median(one - other for one, other in zip(ours, peer, strict=True))
    return Row(case, name, peer_name, *_micros(ours, peer), "us", verdict, "us", target)


def _micros(ours: list[float], peer: list[float]) -> tuple[float, float]:
    return 1e6 * statistics.median(ours), 1e6 * statistics.median(peer)


@contextlib.contextmanager
def pinned(core: int) -> Iterator[None]:
    """Keep this thread, and the threads and processes that it starts meanwhile, on one of the cores that it may use.

    *core* counts those; where there are fewer, or the system has no such call, nothing happens.
    """
    if sys.platform != "linux":
        yield
        return
    before = os.sched_getaffinity(0)
    cores = sorted(before)
    os.sched_setaffinity(0, {cores[core % len(cores)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def print_table(rows: Sequence[Row]) -> None:
    """The rows, aligned; a missed target is marked."""
    head = ("what", "ours", "peer", "", "verdict", "target", "", "beside")
    lines = [head, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        left = line[0].ljust(widths[0])
        numbers = "  ".join(cell.rjust(width) for cell, width in zip(line[1:6], widths[1:6], strict=True))
        print(f"{left}  {numbers}  {line[6].ljust(widths[6])}  {line[7]}".rstrip())


def _cells(row: Row) -> tuple[str, ...]:
    mark = {None: "", True: "ok", False: "MISSED"}[row.met]
    target = "" if row.target is None else str(row.target)
    verdict = f"{row.verdict:.2f} {row.verdict_unit}" if row.verdict < 100 else f"{row.verdict:.0f} {row.verdict_unit}"
    return row.name, _number(row.ours), _number(row.peer), row.unit, verdict, target, mark, row.peer_name


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3f}"
