"""The benchmarks run and tell what they promise.  Never how fast: a test that depends on speed is a coin."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as command
from benchmarks import primitives
from benchmarks.measure import Effort, Row, Target, difference, print_table, rate_ratio, ratio, take_turns

ROOT = Path(__file__).resolve().parent.parent
#: case -> (limit, at least?), as the design promises them
TARGETS = {"read_into": (1.25, False), "write": (1.25, False), "close": (2.0, False), "echo": (0.85, True)}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
    )


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """(the printed table, the JSON) of one quick run."""
    path = tmp_path_factory.mktemp("benchmarks") / "rows.json"
    done = run("primitives", "--quick", "--json", str(path))
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(path.read_text())


def test_every_case_gives_rows(quick: tuple[str, dict[str, Any]]) -> None:
    rows = quick[1]["rows"]
    assert list(dict.fromkeys(row["case"] for row in rows)) == list(primitives.CASES)
    lines = [(row["name"], row["peer_name"]) for row in rows]
    assert len(set(lines)) == len(lines)


def test_every_row_is_beside_a_peer(quick: tuple[str, dict[str, Any]]) -> None:
    for row in quick[1]["rows"]:
        assert row["ours"] > 0, row
        assert row["peer"] > 0, row
        assert row["peer_name"], row
        assert row["verdict_unit"] in {"x", "us", "bytes"}
        assert row["verdict"] > 0 or row["verdict_unit"] == "us", row


def test_targets_are_named(quick: tuple[str, dict[str, Any]]) -> None:
    for row in quick[1]["rows"]:
        if row["case"] in TARGETS and "processor time" not in row["name"]:
            limit, at_least = TARGETS[row["case"]]
            assert row["target"] == {"limit": limit, "at_least": at_least}
        assert row["met"] in ({None} if row["target"] is None else {True, False})
    assert any(row["target"] == {"limit": 1536, "at_least": False} for row in quick[1]["rows"])


def test_it_says_where_the_numbers_come_from(quick: tuple[str, dict[str, Any]]) -> None:
    printed, content = quick
    assert content["quick"] is True
    assert f"python={content['python']} free_threaded={content['free_threaded']}" in printed
    for row in content["rows"]:
        assert row["name"] in printed


@pytest.mark.parametrize("wrong", [["--rounds", "0"], ["--only", "nothing"]])
def test_wrong_arguments_are_refused(wrong: list[str]) -> None:
    assert run("primitives", *wrong).returncode == 2


@pytest.mark.parametrize(("check", "code"), [([], 0), (["--check"], 1)])
def test_check_turns_a_missed_target_into_the_exit_code(
    check: list[str], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missed = Row("a", "a row", "a peer", 3.0, 1.0, "us", 3.0, target=Target(2.0))
    monkeypatch.setattr(primitives, "CASES", {"a": lambda effort: [missed]})
    monkeypatch.setattr(sys, "argv", ["benchmarks", "primitives", *check])
    assert command.main() == code
    assert "MISSED" in capsys.readouterr().out


def test_turns_alternate_and_the_first_two_do_not_count() -> None:
    order: list[str] = []

    def turn(name: str) -> float:
        order.append(name)
        return float(len(order))

    ours, peer = take_turns(lambda: turn("A"), lambda: turn("B"), 3)
    assert order == ["A", "B"] * 5
    assert (ours, peer) == ([5.0, 7.0, 9.0], [6.0, 8.0, 10.0])


def test_verdicts_are_medians_of_pairs() -> None:
    turns = [2e-6, 4e-6, 9e-6], [1e-6, 4e-6, 3e-6]
    assert ratio("c", "n", "p", turns).verdict == pytest.approx(2.0)
    assert difference("c", "n", "p", turns).verdict == pytest.approx(1.0)
    throughput = rate_ratio("c", "n", "p", turns, Target(0.85, at_least=True))
    assert throughput.verdict == pytest.approx(0.5)
    assert throughput.met is False


def test_targets() -> None:
    assert Target(2.0).met_by(2.0)
    assert not Target(2.0).met_by(2.1)
    assert Target(0.85, at_least=True).met_by(0.85)
    assert not Target(0.85, at_least=True).met_by(0.84)
    assert Row("c", "n", "p", 1.0, 1.0, "us", 1.0).met is None


def test_the_table_is_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([Row("c", name, "p", 1.0, 1.0, "us", 1.0) for name in ("short", "a longer name")])
    lines = capsys.readouterr().out.splitlines()
    assert len({line.index("1.00 x") for line in lines[1:]}) == 1


def test_a_part_of_the_rounds_is_never_none() -> None:
    assert Effort(400, quick=False).part(0.25) == 100
    assert Effort(1, quick=True).part(0.25) == 3
