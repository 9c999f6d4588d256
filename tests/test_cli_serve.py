"""``bbipc serve`` as a user runs it; clients are ``bbipc send``, or sockets that know nothing of it."""

from __future__ import annotations

import os
import re
import select
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bbipc.messages import Message, MessageFlag, encode
from pool.cli import replies
from tests.support.command_line import (
    BBIPC,
    Here,
    bbipc_here,
    ended,
    interrupted,
    line_of,
    one_line,
    receive,
    serving,
    started,
)
from tests.support.makers import PATIENCE, Worker

__all__ = ["bbipc_here"]

SUMMARY = re.compile(
    rb"(?P<total>[\d,]+) messages?( \((?P<kinds>.*)\))?, (?P<size>.*), (?P<errors>\d+) errors?, "
    rb"(?P<connections>\d+) connections?, \d+\.\d s(; (?P<cut>\d+) cut short)?\n"
)


@pytest.fixture
def path(short_dir: Path) -> str:
    return str(short_dir / "server")


def summary(out: bytes) -> dict[str, str]:
    match = SUMMARY.fullmatch(out)
    assert match, out
    return {name: (value or b"").decode() for name, value in match.groupdict().items()}


def python(program: str) -> str:
    """A command that runs *program*."""
    return shlex.join([sys.executable, "-S", "-c", program])


# What it answers, and what it prints.


def test_messages_come_back_and_are_printed(path: str, bbipc_here: Here) -> None:
    with serving(path) as (server, address):
        assert address == f"local:{path}"
        peer = f"pid {os.getpid()}, uid {os.getuid()}"
        assert bbipc_here("send", path, "Grüße") == (0, "Grüße\n".encode(), "")
        assert line_of(server) == f"<- STRING (7 bytes, {peer}): Grüße"
        assert bbipc_here("send", path, "a\x1b[2Jb\n<- STRING: not one") == (0, b"a\x1b[2Jb\n<- STRING: not one\n", "")
        assert line_of(server) == f"<- STRING (25 bytes, {peer}): a\\x1b[2Jb\\n<- STRING: not one"
        assert bbipc_here("send", path, "-b", "\x00\x01" * 50000)[:2] == (0, b"\x00\x01" * 50000)
        assert line_of(server) == f"<- BINARY (100,000 bytes, {peer}): {'00 01 ' * 12}…"
        assert bbipc_here("send", path, "x" * 1000, "--no-response") == (0, b"", "")
        assert line_of(server) == f"<- STRING (1,000 bytes, {peer}): {'x' * 400} …"
        assert bbipc_here("send", path, "--close") == (0, b"", "")
        assert line_of(server) == f"<- CLOSE ({peer})"
        code, out, err = interrupted(server)
    assert (code, err) == (0, "")
    assert summary(out) == {
        "total": "5",
        "kinds": "3 STRING, 1 BINARY, 1 CLOSE",
        "size": "98.7 KiB",
        "errors": "0",
        "connections": "5",
        "cut": "",
    }
    assert not Path(path).exists()


def test_capitals(path: str, bbipc_here: Here) -> None:
    with serving(path, "--reply", "upper", "--quiet") as (server, _):
        assert bbipc_here("send", path, "Grüße") == (0, "GRÜSSE\n".encode(), "")
        assert bbipc_here("send", path, "-b", "abc\x00\udcff")[:2] == (0, b"ABC\x00\xff")
        assert summary(interrupted(server)[1])["kinds"] == "1 STRING, 1 BINARY"


def test_no_value_and_a_number_of_messages(path: str, bbipc_here: Here) -> None:
    with serving(path, "--reply", "none", "--messages", "2") as (server, _):
        for _ in range(2):
            assert bbipc_here("send", path, "x") == (0, b"", "")
            assert line_of(server).startswith("<- STRING")
        code, out, err = ended(server)
    assert (code, err) == (0, "")
    assert summary(out)["total"] == "2"


#: a command that does what the message says
OBEY = "import sys, os, time; exec(sys.stdin.read())"


def test_a_command_answers(path: str, bbipc_here: Here) -> None:
    words = ["--command-timeout", "5", "--max-message-size", "1000", "--quiet"]
    with serving(path, "--reply", python(OBEY), *words) as (server, _):
        for program, answer in {
            "print('Grüße')": "Grüße\n".encode(),
            "": b"\n",
            "os.write(1, b'a\\0b\\xff')": b"a\0b\xff",
            "print(os.getpgid(0) == os.getpid(), sys.argv)": b"True ['-c']\n",
            "os.write(1, b'x' * 999)": b"x" * 999 + b"\n",
        }.items():
            assert bbipc_here("send", path, program)[:2] == (0, answer)
        for program, told in {
            "sys.exit(3)": "CommandFailedError: .* failed with exit code 3$",
            "os.kill(os.getpid(), 9)": "CommandFailedError: .* failed with signal 9$",
            "os.write(1, b'x' * 1001)": "CommandFailedError: .* wrote more than 1000 bytes$",
            "x" * 1000: "MessageTooLargeError: a message of 1001 bytes, where at most 1000 are allowed$",
        }.items():
            assert re.search(told, one_line(bbipc_here("send", path, program), 6))
        code, out, err = interrupted(server)
    assert (code, summary(out)["errors"], err.count("\n")) == (0, "4", 4)
    assert err.startswith(f"bbipc serve: pid {os.getpid()}, uid {os.getuid()}: CommandFailedError: ")


def test_a_command_takes_bytes_and_time_and_speaks_to_the_operator(path: str, bbipc_here: Here) -> None:
    """It need not read what it is given; however long it would sleep, its time is up."""
    program = "import os, time; os.write(2, b'for the operator\\n'); os.write(1, b'\\0'); time.sleep(600)"
    with serving(path, "--reply", python(program), "--quiet", "--command-timeout", "0.3") as (server, _):
        assert "took longer than 0.3 s" in one_line(bbipc_here("send", path, "-b", "x" * (1 << 20)), 6)
        code, _, err = interrupted(server)
    assert (code, err.splitlines()[0]) == (0, "for the operator")


def test_how_a_command_ended_is_known_where_a_parent_ignores_its_children(path: str, bbipc_here: Here) -> None:
    """Whoever ignores SIGCHLD, as some supervisors do, has us ignore it too: the kernel reaps, and tells nobody."""
    program = (
        "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    )
    ignoring = [sys.executable, "-c", program, *BBIPC]
    with started("serve", path, "--reply", python("raise SystemExit(7)"), "--quiet", command=ignoring) as server:
        line_of(server)
        assert "failed with exit code 7" in one_line(bbipc_here("send", path, "x"), 6)
        assert interrupted(server)[0] == 0


@pytest.mark.parametrize("in_time", [False, True])
def test_what_a_command_has_left_running_is_killed(in_time: bool, short_dir: Path) -> None:
    """With the answer still open, which takes too long, or when all has gone well."""
    life, gate = short_dir / "life", short_dir / "gate"
    os.mkfifo(life)
    os.mkfifo(gate)
    rest = f"{'exec >/dev/null; ' * in_time}exec 3>{life}; echo >{gate}; exec sleep 600"
    command = replies.Command(
        shlex.join(["sh", "-c", f"({rest}) & read _ <{gate}; echo hi"]), timeout=PATIENCE if in_time else 1.0, limit=99
    )
    alive = os.open(life, os.O_RDONLY | os.O_NONBLOCK)
    try:
        if in_time:
            assert command._run(b"") == b"hi\n"
        else:
            with pytest.raises(replies.CommandFailedError, match="took longer than"):
                command._run(b"")
        assert select.select([alive], [], [], PATIENCE)[0]
        assert os.read(alive, 1) == b""  # nobody has it open any more
    finally:
        os.close(alive)


def test_a_command_that_ends_its_output_before_it_ends_has_its_time_and_no_more(short_dir: Path) -> None:
    """Its exit is waited for, and counts."""
    words = ["sh", "-c", f"exec >&-; read _ <{short_dir / 'gate'}; exit 3"]
    os.mkfifo(short_dir / "gate")
    command = replies.Command(shlex.join(words), timeout=PATIENCE, limit=99)
    running = Worker(lambda: command._run(b""))
    with open(short_dir / "gate", "w"):  # the command is there; whoever has started it may still be about to note so
        with command._lock:
            assert len(command._running) == 1
    with pytest.raises(replies.CommandFailedError, match="sh failed with exit code 3"):
        running.outcome()
    slow = replies.Command(shlex.join(words), timeout=0.1, limit=99)
    with pytest.raises(replies.CommandFailedError, match=r"took longer than 0\.1 s"):
        slow._run(b"")
    assert not slow._running


def test_tcp_with_a_port_that_the_kernel_picks(bbipc_here: Here) -> None:
    with serving("ipv4:127.0.0.1:0") as (server, address):
        assert re.fullmatch(r"ipv4:127\.0\.0\.1:[1-9]\d+", address)
        assert bbipc_here("send", address, "x") == (0, b"x\n", "")
        assert re.fullmatch(r"<- STRING \(1 bytes, 127\.0\.0\.1 port \d+\): x", line_of(server))
        assert interrupted(server)[0] == 0


# How it ends.


def test_a_close_stops_who_was_told_to_stop_on_one(path: str, bbipc_here: Here) -> None:
    with serving(path, "--stop-on-close") as (server, _):
        assert bbipc_here("send", path, "--close") == (0, b"", "")
        assert line_of(server).startswith("<- CLOSE (pid ")
        code, out, err = ended(server)
    assert (code, err, summary(out)["kinds"]) == (0, "", "1 CLOSE")


def test_a_close_is_one_of_so_many_messages_and_quiet_is_quiet(path: str, bbipc_here: Here) -> None:
    with serving(path, "--messages", "2", "--quiet") as (server, _):
        assert bbipc_here("send", path, "x") == (0, b"x\n", "")
        assert bbipc_here("send", path, "--close") == (0, b"", "")
        code, out, err = ended(server)
    assert (code, err, summary(out)["kinds"]) == (0, "", "1 STRING, 1 CLOSE")


def test_sigterm_ends_it_as_ctrl_c_does(path: str) -> None:
    with serving(path) as (server, _):
        code, out, err = interrupted(server, signal.SIGTERM)
    assert (code, err, summary(out)["total"]) == (0, "", "0")
    assert not Path(path).exists()


def test_in_the_background_of_a_script_it_can_be_interrupted_too(path: str) -> None:
    """There a shell starts it with SIGINT ignored."""
    script = (
        f"{shlex.join(BBIPC)} serve {path} > {path}.out & until [ -s {path}.out ]; do :; done; kill -INT $!; wait $!"
    )
    done = subprocess.run(["sh", "-c", script], capture_output=True, check=False, timeout=6 * PATIENCE)
    assert (done.returncode, done.stderr) == (0, b"")
    assert summary(Path(f"{path}.out").read_bytes().splitlines(keepends=True)[-1])["total"] == "0"


def test_the_message_in_hand_is_finished_first_unless_ctrl_c_comes_twice(path: str, short_dir: Path) -> None:
    os.mkfifo(short_dir / "gate")
    program = python(f"import sys; open({str(short_dir / 'gate')!r}).read(); sys.stdout.write(sys.stdin.read())")
    for hurried in (False, True):
        with serving(path, "--reply", program) as (server, _), started("send", path, "late") as client:
            assert line_of(server).startswith("<- STRING")
            with open(short_dir / "gate", "w") as gate:  # the command is there
                server.send_signal(signal.SIGINT)
                if hurried:
                    wait_for_the_first(server, path)
                    server.send_signal(signal.SIGINT)
                    code, _, err = ended(client)
                    assert (code in (5, 6), err.count("\n")) == (True, 1)  # cut, or told that the command was killed
                gate.close()
            code, out, err = ended(server)
            assert code == 0, err
            if not hurried:
                assert summary(out)["cut"] == ""
                assert ended(client) == (0, b"late\n", "")


def wait_for_the_first(server: subprocess.Popen[bytes], path: str) -> None:
    """Until its first Ctrl-C has closed its doors."""
    while Path(path).exists():
        assert server.poll() is None


def test_a_reader_that_has_gone_ends_it_silently(path: str, bbipc_here: Here) -> None:
    with serving(path) as (server, _):
        assert server.stdout is not None
        server.stdout.close()
        assert bbipc_here("send", path, "x")[0] in (5, 6)
        assert server.stderr is not None
        assert select.select([server.stderr], [], [], PATIENCE)[0]
        assert (server.stderr.read(), server.wait(PATIENCE)) == (b"", 141)
    assert not Path(path).exists()


def test_a_reader_that_never_was_and_a_full_disk(path: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open("/dev/full", "wb") as full, started("serve", path, stdout=writer) as server:
        os.close(writer)
        assert ended(server)[::2] == (141, "")
        assert not Path(path).exists()
        with started("serve", path, stdout=full.fileno()) as other:
            assert ended(other)[::2] == (1, "bbipc serve: cannot write the output: No space left on device\n")
    assert not Path(path).exists()


def test_what_is_closed_stays_away_from_its_sockets(path: str) -> None:
    """A socket that got the number of a closed stderr would be told of errors."""
    script = f"exec {shlex.join(BBIPC)} serve {path} <&- 2>&-"
    with subprocess.Popen(["bash", "-c", script], stdout=subprocess.PIPE, bufsize=0) as server:
        assert line_of(server).startswith("listening on ")
        assert [os.readlink(f"/proc/{server.pid}/fd/{number}") for number in (0, 2)] == ["/dev/null", "/dev/null"]
        assert interrupted(server)[0] == 0


# Who is let in, and what is refused.


def test_others_than_those_who_are_allowed_are_turned_away(path: str, bbipc_here: Here) -> None:
    with serving(path, "--allow-uid", str(os.getuid() + 1)) as (server, _):
        one_line(bbipc_here("send", path, "x"), 5)
        assert interrupted(server)[0] == 0
    with serving(path, "--allow-uid", str(os.getuid() + 1), "--allow-uid", str(os.getuid())) as (server, _):
        assert bbipc_here("send", path, "x") == (0, b"x\n", "")
        assert interrupted(server)[0] == 0


def test_what_is_no_message_is_told_and_disturbs_nobody(path: str, bbipc_here: Here) -> None:
    with serving(path, "--quiet") as (server, _):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE)
            client.connect(path)
            client.sendall(b"GET / HTTP/1.1\r\nHost: example\r\n\r\n")
            assert receive(client).flags & MessageFlag.FAILED
        assert bbipc_here("send", path, "x") == (0, b"x\n", "")
        code, out, err = interrupted(server)
    assert (code, summary(out)["errors"]) == (0, "1")
    assert err == f"bbipc serve: pid {os.getpid()}, uid {os.getuid()}: InvalidMessageError: no message begins here\n"


def test_messages_without_a_checksum_are_taken_from_who_asks_for_it(path: str) -> None:
    unsigned = encode(Message.string("x", MessageFlag.UNSIGNED))
    with serving(path, "--quiet", "--accept-unsigned") as (server, _):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE)
            client.connect(path)
            client.sendall(unsigned)
            assert receive(client) == Message.string("x")
        assert interrupted(server)[0] == 0


def test_a_place_that_is_taken_is_told_in_one_line(path: str, bbipc_here: Here) -> None:
    with serving(path) as (server, _):
        assert "a live server listens there" in one_line(bbipc_here("serve", path), 1)
        server.kill()
        server.wait()
    assert "a dead server left its socket there; --replace-stale takes it" in one_line(bbipc_here("serve", path), 1)
    with serving(path, "--replace-stale", "--mode", "0640") as (server, _):
        assert Path(path).stat().st_mode & 0o777 == 0o640
        assert interrupted(server)[0] == 0


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["ipv4:127.0.0.1:0", "--mode", "600"], "--mode means nothing at ipv4:127.0.0.1:0"),
        (["ipv4:127.0.0.1:0", "--replace-stale"], "--replace-stale means nothing"),
        (["ipv6:[::1]:0", "--allow-uid", "0"], "--allow-uid means nothing"),
        (["abstract:x", "--mode", "600"], "--mode means nothing at abstract:x"),
        (["abstract:x", "--replace-stale"], "--replace-stale means nothing at abstract:x"),
        (["x", "--reuse-port"], "--reuse-port means nothing at local:x"),
        (["x", "--reply", "no-such-command -x"], "there is no command 'no-such-command'"),
        (["x", "--reply", "'"], "No closing quotation"),
        (["x", "--reply", ""], "there is no command ''"),
        (["x", "--workers", "0"], "at least 1"),
        (["x", "--max-in-flight", "65536"], "--max-in-flight must be at most 65535"),
        (["x", "--mode", "999"], "no mode in octal"),
        (["x", "--allow-uid", "root"], "'root' is no user's number"),
        (["x", "--allow-uid", "4294967295"], "'4294967295' is no user's number"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_options_that_make_no_sense(words: list[str], reason: str, bbipc_here: Here) -> None:
    assert reason in one_line(bbipc_here("serve", *words), 2)
