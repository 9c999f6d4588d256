"""The examples of messages as a user runs them: real processes, and what they say to each other."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import bbipc
from pool import MessageClient
from tests.support.makers import PATIENCE
from tests.support.programs import EXAMPLES, ended, one_line, serving_at, start

PROGRAMS = ["key_value_server.py", "file_transfer.py", "job_queue.py"]
CHUNK = 256 * 1024  # examples/file_transfer.py's
MIB = 1024 * 1024
ANYWHERE = "ipv4:127.0.0.1:0"


def run(program: str, *words: str) -> tuple[int, str, str]:
    with start(program, *words) as process:
        return ended(process)


def run_on_a_terminal(program: str, *words: str) -> tuple[int, str]:
    """(exit code, what was on it)"""
    ours, theirs = os.openpty()
    try:
        with start(program, *words, stdout=theirs) as process:
            process.communicate(timeout=6 * PATIENCE)
            return process.returncode, os.read(ours, 65536).decode()
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_tells_how_to_call_it(program: str) -> None:
    code, out, err = run(program, "--help")
    assert (code, err) == (0, "")
    assert f"python examples/{program} ADDRESS" in out


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("key_value_server.py", ["keys"]),
        ("file_transfer.py", ["send", __file__]),
        ("job_queue.py", ["run", "10"]),
    ],
)
def test_a_missing_server_is_told_in_one_line(program: str, words: list[str], short_dir: Path) -> None:
    code, out, err = run(program, str(short_dir / "nobody"), *words)
    assert "no server listens at" in one_line(code, out, err)


# The key-value store.


def test_values_are_set_and_got_and_deleted(short_dir: Path) -> None:
    program = "key_value_server.py"
    with serving_at(program, str(short_dir / "socket")) as server:
        assert run(program, server.address, "set", "colour", "grün") == (0, "", "")
        assert run(program, server.address, "get", "colour") == (0, "grün", "")
        with MessageClient(server.address, timeout=PATIENCE) as client:
            assert client.send("keys") == "colour"
            client.send(b"blob\0" + bytes(range(256)))
            assert client.send("get blob") == bytes(range(256))
            assert client.send("keys") == "blob\ncolour"
            client.send("delete colour")
            assert client.send("get colour") is None
            with pytest.raises(bbipc.RemoteHandlerError, match="no question 'what'"):
                client.send("what is this")
            # a value from stdin
            words = [sys.executable, str(EXAMPLES / program), server.address, "set", "big", "-"]
            subprocess.run(words, input=b"x" * 1_000_000, check=True, timeout=PATIENCE)
            assert client.send("get big") == b"x" * 1_000_000
        assert "there is no 'colour'" in one_line(*run(program, server.address, "get", "colour"))
        assert server.interrupt() == (0, "key-value server: bye\n", "")


def test_a_store_that_is_full_says_so(short_dir: Path) -> None:
    with (
        serving_at("key_value_server.py", str(short_dir / "socket")) as server,
        MessageClient(server.address, timeout=PATIENCE) as client,
    ):
        value = bytes(4 * MIB)
        for number in range(15):
            client.send(b"%02d\0" % number + value)
        client.send(b"00\0" + value)  # in place of the old one
        with pytest.raises(bbipc.RemoteHandlerError, match="the store is full"):
            client.send(b"15\0" + value)
        client.send("delete 03")
        client.send(b"15\0" + value)


# Files.


@pytest.fixture
def file(short_dir: Path) -> Path:
    """20 chunks and a bit, none like another."""
    path = short_dir / "file"
    path.write_bytes(b"".join(hashlib.sha256(b"%d" % number).digest() * 8192 for number in range(20)) + b"tail")
    return path


def part_of(file: Path, directory: Path) -> Path:
    return directory / f".{hashlib.sha256(file.read_bytes()).hexdigest()}.part"


def test_files_arrive_whole(file: Path, short_dir: Path) -> None:
    empty = short_dir / "empty"
    empty.write_bytes(b"")
    with serving_at("file_transfer.py", ANYWHERE, "receive", str(short_dir / "here")) as server:
        code, out, err = run("file_transfer.py", server.address, "send", str(file), str(empty))
        assert (code, err) == (0, "")
        assert re.fullmatch(r"file: 5\.0 of 5\.0 MiB, [\d,]+ MiB/s\nempty: 0\.0 of 0\.0 MiB, 0 MiB/s\n", out)
        assert {path.name: path.read_bytes() for path in (short_dir / "here").iterdir()} == {
            "file": file.read_bytes(),
            "empty": b"",
        }
        again = run("file_transfer.py", server.address, "send", str(file))
        assert again[0] == 1
        assert "FileExistsError" in again[2]
        code, out, err = server.interrupt()
        assert (code, out, err) == (0, "file receiver: file\nfile receiver: empty\nfile receiver: bye\n", "")


def test_an_interrupted_transfer_goes_on_where_it_was(file: Path, short_dir: Path) -> None:
    here = short_dir / "here"
    here.mkdir()
    # 12 chunks have come, and the fifth of the eight latest is missing: they are written in any order.
    begun = bytearray(file.read_bytes()[: 12 * CHUNK])
    begun[8 * CHUNK : 9 * CHUNK] = bytes(CHUNK)
    part_of(file, here).write_bytes(begun)
    with serving_at("file_transfer.py", str(short_dir / "socket"), "receive", str(here)) as server:
        code, screen = run_on_a_terminal("file_transfer.py", server.address, "send", str(file))
    assert code == 0
    assert screen.startswith("file: 1.0 MiB are there already\r\n")
    assert re.fullmatch(r"file: 5\.0 of 5\.0 MiB, [\d,]+ MiB/s\r\n", screen.split("\r\x1b[K")[-1])  # in place
    assert (here / "file").read_bytes() == file.read_bytes()


def test_what_arrives_wrong_is_dropped_and_the_next_try_begins_anew(file: Path, short_dir: Path) -> None:
    here = short_dir / "here"
    here.mkdir()
    part_of(file, here).write_bytes(bytes(12 * CHUNK))
    with serving_at("file_transfer.py", str(short_dir / "socket"), "receive", str(here)) as server:
        code, _, err = run("file_transfer.py", server.address, "send", str(file))
        assert (code, err.count("\n")) == (1, 1)
        assert "file did not arrive as it was sent" in err
        assert not list(here.iterdir())
        assert run("file_transfer.py", server.address, "send", str(file))[0] == 0
    assert (here / "file").read_bytes() == file.read_bytes()


def test_no_name_leads_out_of_the_directory(file: Path, short_dir: Path) -> None:
    here, digest = short_dir / "here", hashlib.sha256(b"").hexdigest()
    with serving_at("file_transfer.py", str(short_dir / "socket"), "receive", str(here)) as server:
        with MessageClient(server.address, timeout=PATIENCE) as client:
            client.send(f"begin {digest}")
            for name in ("../out", "/out", ".hidden", "..", ""):
                with pytest.raises(bbipc.RemoteHandlerError):
                    client.send(f"finish {digest} {name}")
            with pytest.raises(bbipc.RemoteHandlerError, match="no digest"):
                client.send("begin ../../out")
    assert [path.name for path in here.iterdir()] == [f".{digest}.part"]


def test_what_arrives_is_for_its_receiver_alone_and_goes_through_no_link(short_dir: Path) -> None:
    here, precious = short_dir / "here", short_dir / "precious"
    precious.write_bytes(b"precious")
    digests = [hashlib.sha256(text).hexdigest() for text in (b"one", b"other")]
    with serving_at("file_transfer.py", str(short_dir / "socket"), "receive", str(here)) as server:
        (here / f".{digests[0]}.part").symlink_to(precious)
        (here / f".{digests[1]}.part").symlink_to(short_dir / "new")
        with MessageClient(server.address, timeout=PATIENCE) as client:
            for digest in digests:
                with pytest.raises(bbipc.RemoteHandlerError, match="OSError"):
                    client.send(f"begin {digest}")
            empty = hashlib.sha256(b"").hexdigest()
            assert client.send(f"begin {empty}") == "0"
    assert (here / f".{empty}.part").stat().st_mode & 0o777 == 0o600
    assert precious.read_bytes() == b"precious"
    assert not (short_dir / "new").exists()


# Jobs.


def test_results_come_as_they_are_done() -> None:
    with serving_at("job_queue.py", ANYWHERE, "serve") as server:
        code, out, err = run("job_queue.py", server.address, "run", "100", "1000", "10", "2")
        assert (code, err) == (0, "")
        assert sorted(out.splitlines()) == ["1000: 168", "100: 25", "10: 4", "2: 0"]
        assert server.interrupt() == (0, "job queue: bye\n", "")


ENDLESS = str(10**12)


def assert_it_goes_on(address: str) -> None:
    """Its thread is free again."""
    with MessageClient(address, timeout=PATIENCE) as client:
        assert client.send("run another 10") == "4"


def test_jobs_that_take_too_long_are_cancelled_and_others_are_not(short_dir: Path) -> None:
    with serving_at("job_queue.py", str(short_dir / "socket"), "serve", "--jobs", "2") as server:
        code, out, err = run("job_queue.py", server.address, "run", "10", ENDLESS, "--patience", "0.3")
        assert (code, err) == (0, "")
        lines = [line for line in out.splitlines() if not line.startswith("under way")]
        assert lines == ["10: 4", f"{ENDLESS}: JobCancelledError: at 0 %"]
        # Two hold the threads, and the third begins only if one of them is free again before it is cancelled, too.
        code, out, err = run("job_queue.py", server.address, "run", ENDLESS, ENDLESS, ENDLESS, "--patience", "0.3")
        assert (code, err) == (0, "")
        ran, waited = out.count(f"{ENDLESS}: JobCancelledError: at 0 %"), out.count(f"{ENDLESS}: CancelledError")
        assert (ran, waited) in {(2, 1), (3, 0)}
        assert_it_goes_on(server.address)


def test_ctrl_c_cancels_the_jobs(short_dir: Path) -> None:
    with serving_at("job_queue.py", str(short_dir / "socket"), "serve", "--jobs", "1") as server:
        with start("job_queue.py", server.address, "run", ENDLESS) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"under way: 0 %\n"
            process.send_signal(signal.SIGINT)
            code, out, err = ended(process)
        assert (code, err) == (0, "")
        assert out.endswith("job queue: cancelled\n")
        assert_it_goes_on(server.address)


def test_a_server_that_is_stopped_ends_its_jobs_and_says_so(short_dir: Path) -> None:
    with serving_at("job_queue.py", str(short_dir / "socket"), "serve") as server:
        with start("job_queue.py", server.address, "run", ENDLESS) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"under way: 0 %\n"
            assert server.interrupt() == (0, "job queue: bye\n", "")
            code, out, err = ended(process)
        assert (code, err) == (0, "")
        assert out.splitlines()[-1] == f"{ENDLESS}: JobCancelledError: at 0 %"


def test_a_server_that_is_lost_is_told_for_each_job(short_dir: Path) -> None:
    with serving_at("job_queue.py", str(short_dir / "socket"), "serve", "--jobs", "1") as server:
        with start("job_queue.py", server.address, "run", ENDLESS, "20") as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"under way: 0 % 0 %\n"
            server.process.kill()
            code, out, err = ended(process)
        assert (code, err) == (0, "")
        lost = sorted(line.partition(":")[0] for line in out.splitlines() if "connection lost" in line)
        assert lost == [ENDLESS, "20"]
