"""``bbipc send`` as a user runs it, against servers that do what a test tells them."""

from __future__ import annotations

import importlib.metadata
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bbipc.messages import MAX_MESSAGE_SIZE, Message, MessageFlag, MessageType, encode
from tests.support.command_line import (
    BBIPC,
    WITHOUT_RICH,
    Here,
    answering,
    bbipc_here,
    ended,
    one_line,
    receive,
    run,
    screen_until,
    scripted,
    started,
    terminal,
)
from tests.support.makers import PATIENCE

__all__ = ["bbipc_here"]

STRING, BINARY, CLOSE = MessageType
BLANK = Message.binary(b"", MessageFlag.NO_RESPONSE | MessageFlag.DISCARD)


@pytest.fixture
def path(short_dir: Path) -> Path:
    return short_dir / "server"


# What is sent, and what is printed.


@pytest.mark.parametrize(
    ("words", "sent"),
    [
        (["Hello Wörld"], Message.string("Hello Wörld")),
        (["@content", "-b"], Message.binary(b"\x89PNG\0")),
        (["--literal", "@content"], Message.string("@content")),
        (["--close"], Message.close()),
        (["-b", "caf\udce9"], Message.binary(b"caf\xe9")),
    ],
    ids=["text", "file", "literal", "close", "raw bytes"],
)
def test_what_is_named_is_sent(
    words: list[str], sent: Message, path: Path, bbipc_here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    Path("content").write_bytes(b"\x89PNG\0")
    came, script = answering(BLANK)
    with scripted(path, script):
        assert bbipc_here("send", "server", *words) == (0, b"", "")
    assert came == [sent]
    assert came[0].flags == 0


def test_stdin_is_sent(path: Path) -> None:
    came, script = answering(BLANK)
    with scripted(path, script):
        assert run("send", str(path), "--binary", "-", stdin=b"\0\xff\n") == (0, b"", "")
    assert came == [Message.binary(b"\0\xff\n")]


@pytest.mark.parametrize(
    ("answer", "printed"),
    [
        (Message.string("Grüße"), "Grüße\n".encode()),
        (Message.binary(b"\0\x1b[31m\xff" * 100000), b"\0\x1b[31m\xff" * 100000),
        (Message(STRING, b"no NUL, as the original's own command sends it\n"), None),
        (Message.close(), b""),
    ],
    ids=["text", "bytes", "without a NUL", "close"],
)
def test_the_answer_is_printed(answer: Message, printed: bytes | None, path: Path, bbipc_here: Here) -> None:
    with scripted(path, answering(answer)[1]):
        assert bbipc_here("send", f"local:{path}", "x") == (0, answer.payload if printed is None else printed, "")


def test_the_answer_can_be_written_to_a_file(path: Path, bbipc_here: Here) -> None:
    with scripted(path, answering(Message.string("answer"))[1]):
        assert bbipc_here("send", str(path), "x", "-o", str(path.parent / "out")) == (0, b"", "")
    assert (path.parent / "out").read_bytes() == b"answer"


def test_who_wants_no_answer_does_not_wait_for_one(path: Path, bbipc_here: Here) -> None:
    def script(connection: socket.socket) -> None:
        message = receive(connection)
        assert message.flags == MessageFlag.NO_RESPONSE
        assert connection.recv(1) == b""

    with scripted(path, script):
        assert bbipc_here("send", str(path), "x", "--no-response") == (0, b"", "")


def test_much_goes_there_and_back_in_pieces(path: Path) -> None:
    data = os.urandom(1 << 20) * 4
    came, script = answering(Message.binary(data))
    with scripted(path, script):
        assert run("send", str(path), "-b", "-", stdin=data) == (0, data, "")
    assert came == [Message.binary(data)]


def test_a_tcp_server_is_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(PATIENCE)
        with started("send", f"ipv4:127.0.0.1:{listening.getsockname()[1]}", "x") as process:
            connection, _ = listening.accept()
            with connection:
                answering(Message.string("y"))[1](connection)
            assert ended(process) == (0, b"y\n", "")


def test_an_answer_is_made_harmless_on_a_terminal(path: Path) -> None:
    with terminal() as (screen, theirs), scripted(path, answering(Message.string("a\x1b[2Jb\tc\nd"))[1]):
        with started("send", str(path), "x", stdout=theirs) as process:
            assert ended(process)[0] == 0
        assert screen_until(screen, b"d\r\n") == b"a\\x1b[2Jb\tc\r\nd\r\n"


# What goes wrong: one line, and an exit code of its own.


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "required: COMMAND; see bbipc --help"),
        (["nonsense"], "invalid choice"),
        (["send"], "required: ADDRESS"),
        (["send", "x"], "what is to be sent?"),
        (["send", "x", "y", "--nonsense"], "unrecognized arguments: --nonsense"),
        (["send", "x", "y", "--binary", "--close"], "not allowed with"),
        (["send", "ipv4:localhost:80", "y"], "resolve_ipv4_address()"),
        (["send", "localhost:80", "y"], "say ipv4:HOST:PORT"),
        (["send", "ipv4:127.0.0.1:0", "y"], "port 0"),
        (["send", "", "y"], "must not be empty"),
        (["send", "x", "y", "--timeout", "soon"], "'soon' is no number of seconds"),
        (["send", "x", "y", "--max-message-size", "5T"], "'5T' is no size"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_a_command_line_that_makes_no_sense(words: list[str], reason: str, bbipc_here: Here) -> None:
    assert reason in one_line(bbipc_here(*words), 2)


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (["nobody", "x"], 3, "no server listens at 'nobody'"),
        (["plain file", "x"], 3, "no server listens at 'plain file'"),
        (["ipv4:127.0.0.1:1", "x"], 3, "no server can be reached at ipv4:127.0.0.1:1: Connection refused"),
        (["nobody", "@nothing"], 1, "cannot read nothing: No such file"),
        (["nobody", "@"], 2, "@ wants the name of a file"),
        (["nobody", "--close", "x"], 2, "--close is a message of its own"),
        (["nobody", "@."], 1, "cannot read .: Is a directory"),
        (["nobody", "@bytes"], 7, "no UTF-8 text; send it with --binary"),
        (["nobody", "@NUL"], 7, "a NUL in a text"),
        (["nobody", "@/dev/zero", "-b"], 7, f"a message of {MAX_MESSAGE_SIZE + 1} or more bytes"),
        (["nobody", "12345", "--max-message-size", "4"], 7, "a message of 5 bytes; --max-message-size is 4"),
    ],
)
def test_what_cannot_be_sent(
    words: list[str], code: int, reason: str, short_dir: Path, bbipc_here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(short_dir)
    (short_dir / "plain file").touch()
    (short_dir / "bytes").write_bytes(b"\xff")
    (short_dir / "NUL").write_bytes(b"a\0b")
    assert reason in one_line(bbipc_here("send", *words), code)


FAILED = Message.string("ValueError: no such \x1b[31mthing\n", MessageFlag.FAILED)
DAMAGED = bytearray(encode(Message.string("damaged")))
DAMAGED[-2] ^= 1


@pytest.mark.parametrize(
    ("answer", "code", "reason"),
    [
        (b"", 5, "the server closed the connection without an answer"),
        (encode(Message.string("half"))[:35], 5, "after 35 of 37 bytes"),
        (FAILED, 6, "the server failed: ValueError: no such \\x1b[31mthing\\n"),
        (bytes(DAMAGED), 7, "the answer is refused: checksum mismatch"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n..........", 7, "the answer is refused: no message begins here"),
        (Message.binary(bytes(5000)), 7, "a message of 5000 bytes, where at most 4999 are allowed"),
        (Message.string("x", MessageFlag.UNSIGNED), 7, "without a checksum is not accepted"),
    ],
    ids=["end", "half", "failed", "damaged", "no message", "too large", "unsigned"],
)
def test_an_answer_that_is_none(answer: Message | bytes, code: int, reason: str, path: Path, bbipc_here: Here) -> None:
    with scripted(path, answering(answer)[1]):
        assert reason in one_line(bbipc_here("send", str(path), "x", "--max-message-size", "4999"), code)


def test_a_server_that_says_nothing_in_time(path: Path, bbipc_here: Here) -> None:
    def script(connection: socket.socket) -> None:
        receive(connection)
        assert connection.recv(1) == b""  # the client gives up

    with scripted(path, script):
        assert "no answer in time" in one_line(bbipc_here("send", str(path), "x", "-t", "0.2"), 4)


def test_a_server_that_does_not_read_in_time(path: Path, bbipc_here: Here) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen()
        (path.parent / "big").write_bytes(bytes(1 << 20))
        words = ["send", str(path), f"@{path.parent / 'big'}", "-b", "-t", "0.2"]
        assert " of 1048608 bytes were taken in time" in one_line(bbipc_here(*words), 4)


@pytest.mark.parametrize("patient", [False, True])
def test_a_refusal_in_the_middle_of_the_message_is_told(patient: bool, path: Path, bbipc_here: Here) -> None:
    """The server has seen the header, says why, and hangs up on the rest; or reads no further, and waits for us to."""
    (path.parent / "big").write_bytes(bytes(4 << 20))

    def script(connection: socket.socket) -> None:
        assert connection.recv(100)
        connection.sendall(encode(Message.string("MessageTooLargeError: no", MessageFlag.FAILED)))
        if patient:
            left = select.poll()
            left.register(connection, 0)
            assert left.poll(PATIENCE * 1000)

    with scripted(path, script):
        assert "MessageTooLargeError" in one_line(bbipc_here("send", str(path), f"@{path.parent / 'big'}", "-b"), 6)


def test_a_hang_up_in_the_middle_of_the_message_is_told(path: Path, bbipc_here: Here) -> None:
    (path.parent / "big").write_bytes(bytes(4 << 20))
    with scripted(path, lambda connection: connection.recv(100)):
        assert "connection" in one_line(bbipc_here("send", str(path), f"@{path.parent / 'big'}", "-b"), 5)


def test_a_command_says_by_its_exit_code_how_it_went(path: Path) -> None:
    """The codes that scripts rely on, of a real process; what leads to them stands above."""
    with scripted(path, answering(Message.string("y"))[1]):
        assert run("send", str(path), "x") == (0, b"y\n", "")
    path.unlink()
    one_line(run("send", str(path), "@/nowhere"), 1)
    one_line(run("send", str(path)), 2)
    one_line(run("send", str(path), "x"), 3)
    with scripted(path, answering(FAILED)[1]):
        one_line(run("send", str(path), "x"), 6)


# However it ends, there is no traceback.


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_silently(number: int, path: Path) -> None:
    waiting: list[subprocess.Popen[bytes]] = []

    def script(connection: socket.socket) -> None:
        receive(connection)
        waiting[0].send_signal(number)
        assert connection.recv(1) == b""

    with scripted(path, script), started("send", str(path), "x") as process:
        waiting.append(process)
        assert ended(process) == (128 + number, b"", "")


#: sends itself a signal when it comes to import a module that is named to it, or "main": when that has returned, or
#: "sys.exit": when it ends
INTERRUPTS_ITSELF = """
import runpy, signal, sys

where, number, *sys.argv[1:] = sys.argv[1:]
number = int(number)
end = sys.exit


class Finder:
    def find_spec(self, name, *_):
        if name == where:
            signal.raise_signal(number)


def leave(code):
    if where == "sys.exit":
        signal.raise_signal(number)
    end(code)


if where == "main":
    import pool.cli.main
    really_main = pool.cli.main.main

    def main():
        code = really_main()
        signal.raise_signal(number)
        return code

    pool.cli.main.main = main

sys.meta_path.insert(0, Finder())
sys.exit = leave
runpy.run_module("pool", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    "where",
    [
        *["pool.cli.main", "argparse", "bbipc", "bbipc.sockets.local", "bbipc.messages", "pool.cli.parser"],
        *["pool.cli.send", "pool.cli.exchange", "sys.exit"],
    ],
)
def test_a_ctrl_c_at_its_beginning_or_end_is_as_silent(where: str, short_dir: Path) -> None:
    """Most of its time goes into imports: somebody who has changed his mind hits those."""
    command = [sys.executable, "-c", INTERRUPTS_ITSELF]
    code, out, err = run(where, str(int(signal.SIGINT)), "send", str(short_dir / "nobody"), "x", command=command)
    assert (code, out, "Traceback" in err) == (130, b"", False)
    assert err.count("\n") == (where == "sys.exit")  # there it has told that there is no server


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("where", ["main", "sys.exit"])
def test_a_signal_behind_its_last_word_is_as_silent(where: str, number: int, short_dir: Path) -> None:
    command = [sys.executable, "-c", INTERRUPTS_ITSELF]
    code, out, err = run(where, str(int(number)), "send", str(short_dir / "nobody"), "x", command=command)
    assert (code, out, err.count("\n")) == (128 + number, b"", 1)  # it has told that there is no server


def test_without_that_ctrl_c_it_would_have_gone_on(short_dir: Path) -> None:
    """Against a test that sees the end of something else."""
    command = [sys.executable, "-c", INTERRUPTS_ITSELF]
    one_line(run("no such module", str(int(signal.SIGINT)), "send", str(short_dir / "nobody"), "x", command=command), 3)


def test_a_reader_that_has_gone_ends_it_silently(path: Path) -> None:
    with scripted(path, answering(Message.binary(bytes(1 << 20)))[1]):
        command = f"{' '.join(BBIPC)} send {path} x | head -c 1; exit $PIPESTATUS"
        done = subprocess.run(["bash", "-c", command], capture_output=True, check=False, timeout=6 * PATIENCE)
    assert (done.returncode, done.stdout, done.stderr) == (141, b"\0", b"")


def test_a_full_disk_is_told(path: Path) -> None:
    with scripted(path, answering(Message.string("y"))[1]), open("/dev/full", "wb") as full:
        with started("send", str(path), "x", stdout=full.fileno()) as process:
            code, _, err = ended(process)
    assert (code, err) == (1, "bbipc send: cannot write the output: No space left on device\n")


def test_streams_that_are_closed_are_no_harm(path: Path) -> None:
    """What would get their numbers is /dev/null, and not the connection."""

    def closed(streams: str, text: str) -> tuple[int, bytes, bytes]:
        command = f"exec {' '.join(BBIPC)} send {path} {text} {streams}"
        done = subprocess.run(["bash", "-c", command], capture_output=True, check=False, timeout=6 * PATIENCE)
        return done.returncode, done.stdout, done.stderr

    came, script = answering(Message.string("y"))
    with scripted(path, script):
        assert closed("<&- >&- 2>&-", "x") == (1, b"", b"")  # its answer had nowhere to go
    assert came == [Message.string("x")]
    path.unlink()
    with scripted(path, answering(BLANK)[1]):
        assert closed("<&- >&- 2>&-", "x") == (0, b"", b"")
    path.unlink()
    with scripted(path, answering(Message.string("y"))[1]):
        assert closed(">&-", "x") == (1, b"", b"bbipc send: cannot write the output: it is closed\n")
    path.unlink()
    assert closed("<&- >&- 2>&-", "x") == (3, b"", b"")
    assert closed("<&-", "-") == (1, b"", b"bbipc send: cannot read stdin: it is closed\n")


# Progress.


@pytest.mark.parametrize("command", [BBIPC, WITHOUT_RICH], ids=["rich", "plain"])
def test_progress_is_shown_on_a_terminal_while_it_takes_its_time(command: list[str], path: Path) -> None:
    size = (4 << 20) + 32

    def read(connection: socket.socket, most: int) -> int:
        return len(connection.recv(most))

    def script(connection: socket.socket) -> None:
        """Read slowly until there is something on the screen, then the rest."""
        have = 0
        while not select.select([screen], [], [], 0.02)[0]:
            have += read(connection, 1 << 15)
        shown.append(screen_until(screen, b"sending"))
        while have < size:
            have += read(connection, 1 << 18)
        connection.sendall(encode(Message.string("done")))

    (path.parent / "big").write_bytes(bytes(size - 32))
    shown: list[bytes] = []
    words = ["send", str(path), f"@{path.parent / 'big'}", "-b"]
    with terminal() as (screen, theirs), scripted(path, script):
        with started(*words, command=command, stderr=theirs) as process:
            assert ended(process)[:2] == (0, b"done\n")
    assert (b"%)" in shown[0]) is (command is WITHOUT_RICH)


# Texts.


@pytest.mark.parametrize("command", ["", "serve", "send", "demo", "bench"])
def test_help_is_printed_with_examples(command: str, bbipc_here: Here) -> None:
    code, out, err = bbipc_here(*([command] if command else []), "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: bbipc {command}".rstrip().encode())
    assert (b"examples:\n  bbipc %s" % command.encode() if command else b"COMMAND --help") in out


def test_the_version_is_printed(bbipc_here: Here) -> None:
    assert bbipc_here("--version") == (0, f"bbipc {importlib.metadata.version('bbipc')}\n".encode(), "")
