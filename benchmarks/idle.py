"""Thousands of connections that are open and silent: the memory of each, and what they take from the few busy ones.

Law of this file: the server is a process of its own, and the connections are made by this one, so that neither needs
more than one descriptor for each.  Two of the same server run side by side: one has the idle ones, and both have the
busy ones, which are what is measured, turn and turn about.
"""

from __future__ import annotations

import contextlib
import importlib.util
import select
import sys
import tempfile
import time
from typing import Final

from benchmarks.load import connected, load
from benchmarks.measure import Effort, Row, Target, pinned, rate_ratio, take_turns
from benchmarks.processes import note, resident_bytes, room_for_files, running

IDLE: Final = 10_000
QUICK_IDLE: Final = 300
BUSY: Final = 50
#: the busy ones keep this much of their throughput
TARGET: Final = Target(0.95, at_least=True)
#: what runs -> (module, name of the server, what it needs)
OURS: Final = {
    "ConnectionServer": ("benchmarks.ours", "server", "pool.server"),
    "PollerThread.monitor": ("benchmarks.ours", "callbacks", "pool.poller_thread"),
}
_SWEEPS: Final = 12


def memory(module: str, name: str, count: int, directory: str) -> float:
    """Resident bytes a connection of a server that has *count* of them, each of which has been used once."""
    with running(module, name, f"{directory}/m") as (process, where), contextlib.ExitStack() as stack:
        warm = [stack.enter_context(sock) for sock in connected(where, BUSY)]
        load(warm, 3)()
        before = resident_bytes(process)
        idle_ones = [stack.enter_context(sock) for sock in connected(where, count)]
        load(idle_ones, 1)()
        return (resident_bytes(process) - before) / count


def throughput(module: str, name: str, count: int, directory: str, effort: Effort) -> tuple[list[float], list[float]]:
    """Seconds a request of the busy ones: beside *count* idle ones, and beside none."""
    with contextlib.ExitStack() as stack:
        turns = []
        for idle_ones in (count, 0):
            with pinned(0):
                _, where = stack.enter_context(running(module, name, f"{directory}/{idle_ones}"))
            silent = [stack.enter_context(sock) for sock in connected(where, idle_ones)]
            if silent:
                load(silent, 1)()
            turns.append(load([stack.enter_context(sock) for sock in connected(where, BUSY)], _SWEEPS))
        time.sleep(0.1)
        with pinned(1):
            return take_turns(turns[0], turns[1], effort.rounds)


def idle(effort: Effort) -> list[Row]:
    if not hasattr(select, "epoll"):
        return []
    wanted = QUICK_IDLE if effort.quick else IDLE
    count = min(wanted, room_for_files(wanted + 2 * BUSY) - 2 * BUSY)
    if count < wanted:
        note(f"{count} idle connections in place of {wanted}: no more files may be open")
    rows = []
    with tempfile.TemporaryDirectory(prefix="bbipc-") as directory:
        peer = memory("benchmarks.peers", "epoll", count, directory) if sys.platform == "linux" else 0.0
        for title, (module, name, needs) in OURS.items():
            if importlib.util.find_spec(needs) is None:
                note(f"without {title}: there is no {needs}")
                continue
            turns = throughput(module, name, count, directory, effort)
            what = f"{BUSY} busy beside {count} idle, {title}"
            rows.append(rate_ratio("idle", what, "beside none", turns, TARGET))
            if sys.platform == "linux":
                ours = memory(module, name, count, directory)
                what = f"idle connection, {title}"
                rows.append(Row("idle", what, "epoll by hand", ours, peer, "bytes", ours, "bytes"))
    return rows
