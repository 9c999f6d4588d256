"""The benchmarks run and tell what they promise.  Never how fast: a test that depends on speed is a coin."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as command
from benchmarks import calls, primitives, servers
from benchmarks.calls_adapters import ADAPTERS, the_client
from benchmarks.latency import percentile
from benchmarks.load import connected, load
from benchmarks.measure import (
    Effort,
    Row,
    Target,
    difference,
    print_table,
    rate_ratio,
    ratio,
    take_all_turns,
    take_turns,
)
from benchmarks.processes import room_for_files, running

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


@pytest.mark.parametrize("name", ["primitives", "servers", "calls"])
@pytest.mark.parametrize("wrong", [["--rounds", "0"], ["--only", "nothing"]])
def test_wrong_arguments_are_refused(name: str, wrong: list[str]) -> None:
    assert run(name, *wrong).returncode == 2


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


# python -m benchmarks servers


@pytest.fixture(scope="module")
def quick_servers(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """(the printed table and what was said beside it, the JSON) of one quick run."""
    path = tmp_path_factory.mktemp("benchmarks") / "servers.json"
    done = run("servers", "--quick", "--json", str(path))
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr, json.loads(path.read_text())


def test_every_shape_has_every_server_beside_the_loop_by_hand(quick_servers: tuple[str, dict[str, Any]]) -> None:
    printed, content = quick_servers
    titles = {server.title for server in servers.present()} - {servers.BASE}
    for shape in servers.SHAPES:
        beside = {row["name"] for row in content["rows"] if row["peer_name"] == servers.BASE}
        assert {f"{shape.title}, {title}" for title in titles} <= beside
        if sys.platform == "linux":
            assert {f"{shape.title}, {title}: processor time" for title in titles} <= beside
    for server in servers.SERVERS:
        if server not in servers.present():
            assert f"without {server.title}: there is no {server.needs}" in printed


def test_servers_rows_are_printed_and_make_sense(quick_servers: tuple[str, dict[str, Any]]) -> None:
    printed, content = quick_servers
    lines = [(row["name"], row["peer_name"]) for row in content["rows"]]
    assert len(set(lines)) == len(lines)
    for row in content["rows"]:
        assert row["name"] in printed
        assert row["ours"] > 0 or row["unit"] == "bytes", row
        assert row["peer"] > 0 or row["unit"] == "bytes", row


def test_servers_targets_are_named(quick_servers: tuple[str, dict[str, Any]]) -> None:
    rows = {(row["name"], row["peer_name"]): row for row in quick_servers[1]["rows"]}
    titles = {server.title for server in servers.present()}
    for shape in servers.SHAPES:
        for title, peer, target in servers.TARGETS:
            row = rows.get((f"{shape.title}, {title}", peer))
            assert (row is not None) == (shape.connections >= 50 and {title, peer} <= titles)
            if row is not None:
                assert row["target"] == {"limit": target.limit, "at_least": True}
    beside_none = [row for row in rows.values() if row["peer_name"] == "beside none"]
    assert [row["target"] for row in beside_none] == [{"limit": 0.95, "at_least": True}] * len(beside_none)
    assert beside_none


def test_latency_has_two_percentiles_of_each_way(quick_servers: tuple[str, dict[str, Any]]) -> None:
    names = [row["name"] for row in quick_servers[1]["rows"] if row["case"] == "latency"]
    assert [name.removesuffix("p50") + "p99" for name in names[::2]] == names[1::2]
    assert len(names) == 10


# python -m benchmarks calls


#: of calls, one of each kind: every pair is two processes
SHAPES = [shape for shape in calls.SHAPES if shape.title in {"1 thread 64B", "64 in flight 64B"}]
CROWD = calls.CROWDS[0]


@pytest.fixture(scope="module")
def quick_calls(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """(the printed table and what was said beside it, the JSON) of one quick run."""
    path = tmp_path_factory.mktemp("benchmarks") / "calls.json"
    cases = [title.replace(" ", "-") for title in (*(shape.title for shape in SHAPES), CROWD.title)]
    done = run("calls", "--quick", "--json", str(path), "--only", *cases)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr, json.loads(path.read_text())


def test_every_way_to_call_stands_beside_the_base(quick_calls: tuple[str, dict[str, Any]]) -> None:
    printed, content = quick_calls
    names = {(row["name"], row["peer_name"]) for row in content["rows"]}
    for shape in SHAPES:
        for title in shape.titles:
            if calls.missing(title):
                assert f"without {title}: there is no" in printed
            elif title != shape.base:
                assert (f"{shape.title}, {title}", shape.base) in names
    for title in calls.CROWD_SERVERS:
        assert title == calls.RAW or (f"{CROWD.title}, {title}", calls.RAW) in names
    for row in content["rows"]:
        assert row["name"] in printed
        assert row["ours"] > 0, row
        assert row["peer"] > 0, row


def test_the_targets_of_calls_are_named(quick_calls: tuple[str, dict[str, Any]]) -> None:
    rows = [row for row in quick_calls[1]["rows"] if row["target"] is not None]
    for shape in SHAPES:
        named = [(row["peer_name"], row["target"]["limit"]) for row in rows if row["case"] == shape.title]
        there = [
            (peer, target.limit)
            for title, peer, target in shape.targets
            if title in shape.titles and not calls.missing(peer)
        ]
        assert named == there
    assert all(row["target"]["at_least"] for row in rows)
    assert len(rows) >= 2


@pytest.mark.parametrize("name", ADAPTERS)
def test_our_sides_answer_as_the_others_do(name: str, tmp_path: Path) -> None:
    side, path = ADAPTERS[name], str(tmp_path / "s")
    with running("benchmarks.callers", "serve", name, path):
        call: Any = side.client(path)
        assert call(b"ab") == b"AB"
        call.__self__.close()
        submit: Any = side.client_futures(path)
        assert submit(b"ab").result(10) == b"AB"
        submit.__self__.close()
        the_client.cache_clear()


def test_all_turns_alternate_and_the_first_two_do_not_count() -> None:
    order: list[str] = []

    def turn(name: str) -> float:
        order.append(name)
        return float(len(order))

    taken = take_all_turns([lambda: turn("A"), lambda: turn("B"), lambda: turn("C")], 2)
    assert order == ["A", "B", "C"] * 4
    assert taken == [[7.0, 10.0], [8.0, 11.0], [9.0, 12.0]]


def test_percentiles() -> None:
    values = [float(number) for number in range(101)]
    assert (percentile(values, 50), percentile(values, 99)) == (50.0, 99.0)


@contextlib.contextmanager
def echoing(path: Path, *, answers: int) -> Iterator[list[int]]:
    """A server that answers *answers* times on each of three connections and closes them; what it received."""
    received: list[int] = []
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def serve() -> None:
            connections = [server.accept()[0] for _ in range(3)]
            for _ in range(answers):
                for connection in connections:
                    received.append(len(data := connection.recv(4096)))
                    connection.sendall(data)
            for connection in connections:
                connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        yield received
        thread.join()


def test_the_load_keeps_its_depth_in_flight_and_counts_every_message(tmp_path: Path) -> None:
    with echoing(tmp_path / "s", answers=4) as received:
        connections = connected(str(tmp_path / "s"), 3)
        assert load(connections, 4, size=64, depth=2)() > 0
    assert received == [128] * 12
    for sock in connections:
        sock.close()


def test_the_load_says_when_a_server_gives_up(tmp_path: Path) -> None:
    with echoing(tmp_path / "s", answers=3):
        connections = connected(str(tmp_path / "s"), 3)
        with pytest.raises(OSError):
            load(connections, 4)()
    for sock in connections:
        sock.close()


@pytest.mark.parametrize("address", ["tcp", "local"])
def test_a_server_runs_for_as_long_as_it_is_wanted(address: str, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with running("benchmarks.peers", "threads", "tcp" if address == "tcp" else str(path)) as (_, where):
        (sock,) = connected(where, 1)
        with sock:
            sock.sendall(b"x")
            assert sock.recv(1) == b"x"
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(1) == b""
    assert not path.exists()
    with pytest.raises(OSError):
        connected(where, 1)


def test_a_server_that_does_not_start_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="'nothing'"):
        with running("benchmarks.peers", "nothing", "tcp"):
            pass
    assert "KeyError" in capfd.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit")
def test_no_more_files_are_promised_than_the_limit_allows() -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] == resource.RLIM_INFINITY:
        pytest.skip("no limit")
    try:
        assert room_for_files(10) == 10
        assert room_for_files(10 * before[1]) == before[1] - 100
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
