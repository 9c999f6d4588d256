"""``bbipc demo`` and ``bbipc bench`` as a user runs them: several processes, of which none is left behind."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import pytest

from pool import MessageClient
from pool.cli.children import Child
from pool.cli.demo import Options, Show
from pool.cli.demo_clients import Caller
from pool.cli.exits import ProblemError
from pool.cli.tally import Tally
from tests.support.command_line import (
    WITHOUT_RICH,
    Here,
    bbipc_here,
    ended,
    line_of,
    one_line,
    run,
    screen_until,
    started,
    terminal,
)
from tests.support.makers import PATIENCE

__all__ = ["bbipc_here"]

QUICK = ["demo", "--seconds", "0.4", "--threads", "4"]
LONG = ["demo", "--seconds", "600", "--threads", "2"]
TOTALS = re.compile(
    rb"clients: ([\d,]+) answers, [\d,]+ a second, .*; round trip p50 \d+\.\d\d ms, p99 \d+\.\d\d ms; 0 wrong\n"
    rb"server:  [12] connections, ([\d,]+) requests, ([\d,]+) replies, 0 errors\n"
)


def check_totals(out: bytes) -> None:
    found = TOTALS.search(out.replace(b"\r\n", b"\n"))
    assert found, out
    answers, requests, replies = found.groups()
    assert answers == requests == replies != b"0"


def test_it_ends_by_itself_and_tells_its_totals() -> None:
    code, out, err = run(*QUICK, "--tcp", "--workers", "2")
    assert (code, err) == (0, "")
    first, second, figures, *_ = out.decode().splitlines()
    assert re.fullmatch(r"a server in process \d+ listens on ipv4:127\.0\.0\.1:\d+", first)
    assert second == "8 threads in 2 processes, 2 connections: calling it for 0.4 s; Ctrl-C ends it"
    assert re.match(r"[1-9][\d,]* answers, ", figures)
    check_totals(out)


def test_figures_are_a_table_on_a_terminal() -> None:
    with terminal() as (screen, theirs), started(*QUICK, stdout=theirs) as process:
        shown = screen_until(screen, b" errors")
        assert ended(process)[::2] == (0, "")
    assert re.search(rb"\x1b\[1A.*all clients +[1-9][\d,]* .*\x1b\[1A", shown, re.DOTALL)  # drawn in its own place
    assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l")  # the cursor is there again
    check_totals(shown)


def children_of(process: subprocess.Popen[bytes]) -> list[int]:
    return [int(word) for word in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


@pytest.fixture
def ends() -> Iterator[Any]:
    """Waits for the ends of processes that are not our children."""
    with ExitStack() as stack:
        watched: list[int] = []

        def watch(number: int) -> None:
            watched.append(os.pidfd_open(number))
            stack.callback(os.close, watched[-1])

        def all_ended() -> bool:
            return all(select.select([descriptor], [], [], PATIENCE)[0] for descriptor in watched)

        yield watch, all_ended


def calling(process: subprocess.Popen[bytes]) -> list[int]:
    """Wait until the clients call; the children: the server, and two clients."""
    while " answers, " not in (line := line_of(process)):
        assert line, ended(process)
    found = children_of(process)
    assert len(found) == 3
    return found


def test_ctrl_c_ends_it_earlier_with_its_totals_and_without_rich(ends: Any) -> None:
    watch, all_ended = ends
    with terminal() as (screen, theirs), started(*LONG, command=WITHOUT_RICH, stdout=theirs) as process:
        shown = screen_until(screen, b" answers, ")
        for number in children_of(process):
            watch(number)
        process.send_signal(signal.SIGINT)
        shown += screen_until(screen, b" errors")
        assert ended(process)[::2] == (130, "")
        assert all_ended()
    assert b"\x1b" not in shown
    check_totals(shown)


def test_sigterm_ends_it_with_its_totals_too_and_an_exit_code_of_its_own(ends: Any) -> None:
    watch, all_ended = ends
    with started(*LONG) as process:
        for number in calling(process):
            watch(number)
        process.send_signal(signal.SIGTERM)
        code, out, err = ended(process)
        assert (code, err) == (128 + signal.SIGTERM, "")
        assert all_ended()
    check_totals(out)


def test_when_it_is_killed_its_children_end(ends: Any) -> None:
    watch, all_ended = ends
    with started(*LONG) as process:
        for number in calling(process):
            watch(number)
        process.kill()
        assert ended(process)[2] == ""
        assert all_ended()


def test_when_a_process_dies_it_is_told_in_one_line(ends: Any) -> None:
    watch, all_ended = ends
    with started(*LONG) as process:
        for number in (found := calling(process)):
            watch(number)
        os.kill(found[1], signal.SIGKILL)
        code, _, err = ended(process)
        assert all_ended()
    assert "client 1 ended with exit code -9" in one_line((code, b"", err), 1)


# Wrong answers.


class Liar:
    """A client whose server gives every third answer wrong."""

    def __init__(self, caller: list[Caller]) -> None:
        self.caller = caller
        self.sent = 0

    def send(self, question: str | bytes, *, timeout: float) -> str | bytes:
        self.sent += 1
        if self.sent == 9:
            self.caller[0].end = 0.0
        if self.sent % 3 == 0:
            return "wrong"
        return question.upper() if isinstance(question, str) else question[::-1]


def test_a_wrong_answer_is_seen_and_makes_it_fail() -> None:
    callers: list[Caller] = []
    callers.append(Caller("x", cast(MessageClient, Liar(callers)), float("inf")))
    callers[0].call()
    tally = callers[0].tally
    assert (tally.answers, tally.wrong) == (9, 3)
    show = Show(Options(seconds=1, processes=1, threads=1, workers=None, tcp=False), cast(Child, None))
    with pytest.raises(ProblemError, match="there was no answer at all"):
        show.check(in_full=True)
    with pytest.raises(ProblemError, match="did not end in time"):
        show.check(in_full=False)
    show.tallies[cast(Child, 1)] = tally
    with pytest.raises(ProblemError, match="3 of 9 answers were wrong"):
        show.check(in_full=True)
    show.tallies[cast(Child, 1)] = Tally(answers=9)
    with pytest.raises(ProblemError, match="did not end in time"):
        show.check(in_full=True)
    show.over = True
    show.check(in_full=True)


# The measurement.


def test_bench_tells_figures_and_ratios() -> None:
    code, out, err = run("bench", "--seconds", "0.5", "--size", "100")
    assert (code, err) == (0, "")
    title, head, *rows = out.decode().splitlines()
    assert title == "100 bytes there and back"
    assert head.split() == ["calls/s", "MB/s", "x", "mp.connection", "x", "sockets"]
    figures = {row[:26].strip(): row[26:].split() for row in rows[:5]}
    assert list(figures)[3:] == ["multiprocessing.connection", "plain sockets"]
    for rate, _, *ratios in figures.values():
        assert int(rate.replace(",", "")) > 0
        assert all(float(ratio) > 0 for ratio in ratios)
    assert figures["multiprocessing.connection"][2] == figures["plain sockets"][3] == "1.00"


def test_bench_refuses_sizes_that_it_cannot_send(bbipc_here: Here) -> None:
    for size in ("0", "5M"):
        assert "--size is 1 byte to 4.0 MiB" in one_line(bbipc_here("bench", "--size", size), 2)
