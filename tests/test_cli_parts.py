"""Parts of the command line that need no process: texts, tallies, tables, and what is shown where."""

from __future__ import annotations

import ast
import random
import re
import sys
import threading
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pool.cli import terminal as terminal_module
from pool.cli.exits import Exit, OutputGoneError, ProblemError
from pool.cli.parser import TextAskedError, parse
from pool.cli.tally import Tally, added_up
from pool.cli.terminal import Terminal
from pool.cli.text import Table, amount, in_columns, plain, reason_of
from tests.support.command_line import Here, bbipc_here, screen_until, terminal

__all__ = ["bbipc_here"]

#: what writes right to left, or hides: a file's name would lie about its end
TRICKS = "\u202e\u2066\u200b\ufeff\u2028\x85\x9b\x7f\ud800"


@given(st.text(st.characters(), max_size=30))
@example(TRICKS)
@settings(database=None, deadline=None)
def test_plain_text_cannot_steer_a_terminal(text: str) -> None:
    shown = plain(text)
    assert shown.isprintable()
    assert not {unicodedata.category(letter) for letter in shown} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    if "\\" not in text and "'" not in text:
        assert ast.literal_eval(f"'{shown}'") == text  # and nothing is lost


def test_plain_text_keeps_what_it_is_told_to() -> None:
    assert plain("a\tb\nc\x1b", keep="\n\t") == "a\tb\nc\\x1b"
    assert plain("Grüße, 世界 🙂") == "Grüße, 世界 🙂"


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1.0 KiB"),
        (5 << 20, "5.0 MiB"),
        (3 << 30, "3.0 GiB"),
        (1 << 50, "1048576.0 GiB"),
    ],
)
def test_an_amount_is_told_for_people(size: int, text: str) -> None:
    assert amount(size) == text


def test_an_error_is_told_in_words() -> None:
    assert reason_of(FileNotFoundError(2, "No such file or directory", "x")) == "No such file or directory"
    assert reason_of(OSError("what")) == "what"
    assert reason_of(ValueError()) == "ValueError"


def test_a_table_stands_in_columns() -> None:
    table = Table(["", "calls"], [("one", "1"), ("another", "1,000")], title="figures")
    assert list(in_columns(table)) == ["figures", "         calls", "one          1", "another  1,000"]


def test_a_tally_tells_the_share_of_times() -> None:
    times = [random.Random(1).expovariate(1000) for _ in range(10000)]
    tallies = [Tally(), Tally(), Tally()]
    for number, seconds in enumerate(times):
        tallies[number % 3].count(seconds, 10, right=number != 77)
    total = added_up(tallies)
    assert (total.answers, total.bytes, total.wrong) == (10000, 100000, 1)
    for share in (0.5, 0.99):
        assert total.milliseconds(share) == pytest.approx(sorted(times)[int(share * 10000)] * 1000, rel=0.1)
    assert added_up([]).milliseconds(0.5) == 0.0


def test_a_tally_takes_any_time() -> None:
    tally = Tally()
    for seconds in (0.0, 1e-9, 1e9):
        tally.count(seconds, 0, right=True)
    assert tally.answers == sum(tally.times) == 3


@pytest.mark.parametrize(("text", "size"), [("0", 0), ("1000", 1000), ("64K", 65536), ("1G", 1 << 30)])
def test_a_size_may_have_a_unit(text: str, size: int) -> None:
    assert parse(["send", "x", "y", "--max-message-size", text]).max_message_size == size


@pytest.mark.parametrize("text", ["", "-1", "K", "1k", "1.5M", "1KB", "5G", "9" * 20, "\u0661"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ProblemError, match=r"is no size|expected one argument") as caught:
        parse(["send", "x", "y", "--max-message-size", text])
    assert caught.value.code is Exit.USAGE


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "1e9", "x", ""])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ProblemError, match=r"is no number of seconds|expected one argument"):
        parse(["send", "x", "y", "--timeout", text])


def test_options_may_stand_anywhere() -> None:
    for words in (["-b", "x", "y"], ["x", "-b", "y"], ["x", "y", "-b"]):
        options = parse(["send", *words])
        assert (str(options.address), options.text, options.binary) == ("local:x", "y", True)
    assert parse(["send", "x", "--", "-y"]).text == "-y"


@pytest.mark.parametrize("command", ["serve", "send", "demo", "bench"])
def test_the_guide_names_every_option(command: str) -> None:
    with pytest.raises(TextAskedError) as asked:
        parse([command, "--help"])
    guide = (Path(__file__).parent.parent / "docs/command-line.md").read_text()
    _, _, section = guide.partition(f"\n## bbipc {command}\n")
    options = set(re.findall(r"--[a-z][a-z-]+", str(asked.value))) - {"--help"}
    assert options - set(re.findall(r"--[a-z][a-z-]+", section.partition("\n## ")[0])) == set()


# The streams.


def test_nothing_is_drawn_where_there_is_no_terminal(
    capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal_module, "_PATIENCE", 0.0)
    with Terminal().progress() as meter:
        meter("sending", 1, 2)
    assert capfdbinary.readouterr() == (b"", b"")


def test_figures_are_lines_where_there_is_no_terminal(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    with Terminal().live() as show:
        for number in range(5):
            show(Table(["x"]), f"line {number}")  # one a second: the others come too soon
    assert capfdbinary.readouterr() == (b"line 0\n", b"")


@pytest.fixture
def drawn() -> Iterator[tuple[int, Terminal]]:
    """A terminal's other end, and what writes on it."""
    with terminal() as (screen, theirs):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(terminal_module, "_STDERR", theirs)
            patch.setenv("TERM", "xterm")
            yield screen, Terminal()


def test_a_plain_progress_is_written_again_and_removed(
    drawn: tuple[int, Terminal], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal_module, "_PATIENCE", 0.0)
    monkeypatch.setattr(terminal_module, "_REDRAW", 0.0)
    monkeypatch.setitem(sys.modules, "pool.cli.fancy", None)
    monkeypatch.delattr("pool.cli.fancy", raising=False)
    screen, drawing = drawn
    with drawing.progress() as meter:
        meter("sending", 1024, 4096)
        meter("receiving", 4096, 4096)
    assert screen_until(screen, b"\r\x1b[K", 3) == (
        b"\r\x1b[Ksending 1.0 KiB of 4.0 KiB (25 %)\r\x1b[Kreceiving 4.0 KiB of 4.0 KiB (100 %)\r\x1b[K"
    )


def test_a_quick_transfer_draws_nothing(drawn: tuple[int, Terminal]) -> None:
    screen, drawing = drawn
    with drawing.progress() as meter:
        meter("sending", 1, 2)
    drawing.draw("end")
    assert screen_until(screen, b"end") == b"end"


def test_a_terminal_that_cannot_draw_is_none(drawn: tuple[int, Terminal], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal_module, "_STDOUT", terminal_module._STDERR)
    assert Terminal().draws_out
    for term in ("dumb", None):
        monkeypatch.setenv("TERM", term) if term else monkeypatch.delenv("TERM")
        assert not Terminal().draws_out


def test_a_line_nobody_reads_is_told_by_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> int:
        raise BrokenPipeError

    monkeypatch.setattr("os.write", gone)
    with pytest.raises(OutputGoneError):
        Terminal().line("x")
    Terminal().error("x")


# What nobody can catch.


def test_errors_that_nobody_catches_are_one_line_too(
    bbipc_here: Here, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    class Bad:
        def __del__(self) -> None:
            raise KeyboardInterrupt if silent else ValueError("in a finalizer")

    def work() -> None:
        raise ValueError("in a thread")

    bbipc_here("--version")  # it sets the hooks, as a program of its own may
    silent = True
    Bad()
    silent = False
    Bad()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    lines = capfdbinary.readouterr().err.decode().splitlines()
    assert [line[: line.index(" (")] for line in lines] == [
        "bbipc: this is a bug: ValueError: in a finalizer",
        "bbipc: this is a bug: ValueError: in a thread",
    ]
