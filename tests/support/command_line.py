"""The command bbipc as a user runs it: a process, real streams, real signals, and a terminal where one is needed."""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bbipc.messages import Decoder, Message, encode
from pool.cli.main import main
from tests.support.makers import PATIENCE, Worker

BBIPC = [sys.executable, "-m", "pool"]
#: the same command where rich is not installed
WITHOUT_RICH = [
    sys.executable,
    "-c",
    "import sys; sys.modules['rich'] = None; from pool.cli.main import main; sys.exit(main())",
]


def run(
    *words: str | bytes, stdin: bytes = b"", command: list[str] = BBIPC, cwd: Path | None = None
) -> tuple[int, bytes, str]:
    """(exit code, stdout, stderr) of one command."""
    done = subprocess.run(
        [*command, *words], input=stdin, capture_output=True, check=False, timeout=6 * PATIENCE, cwd=cwd
    )
    return done.returncode, done.stdout, done.stderr.decode()


def one_line(ended: tuple[int, bytes, str], code: int) -> str:
    """The one line of stderr with which a command gave up with exit *code*."""
    found, out, err = ended
    assert (found, out) == (code, b""), err
    assert err.startswith("bbipc"), err
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    assert "this is a bug" not in err
    return err


@contextlib.contextmanager
def started(
    *words: str, command: list[str] = BBIPC, stdout: int = subprocess.PIPE, stderr: int = subprocess.PIPE
) -> Iterator[subprocess.Popen[bytes]]:
    """A command that runs."""
    # Without a buffer, in which what is read for a line could stay when the rest is read.
    with subprocess.Popen(
        [*command, *words], stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, bufsize=0
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def serving(*words: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """``bbipc serve``, and the address that it prints once it listens."""
    with started("serve", *words) as process:
        greeting = line_of(process)
        if not greeting.startswith("listening on "):
            process.kill()
            raise AssertionError((greeting, ended(process)))
        yield process, greeting.removeprefix("listening on ").split(";")[0]


def line_of(process: subprocess.Popen[bytes]) -> str:
    """The next line that it prints."""
    assert process.stdout is not None
    return process.stdout.readline().decode().rstrip("\n")


def ended(process: subprocess.Popen[bytes]) -> tuple[int, bytes, str]:
    """(exit code, the rest of stdout, stderr) of a process that ends by itself."""
    out, err = process.communicate(timeout=6 * PATIENCE)
    return process.returncode, out, (err or b"").decode()


def interrupted(process: subprocess.Popen[bytes], number: int = signal.SIGINT) -> tuple[int, bytes, str]:
    """What Ctrl-C does."""
    process.send_signal(number)
    return ended(process)


@contextlib.contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    """(ours, the program's) ends of a terminal."""
    ours, theirs = os.openpty()
    try:
        yield ours, theirs
    finally:
        os.close(ours)
        os.close(theirs)


def screen_until(number: int, text: bytes, count: int = 1) -> bytes:
    """What is written on the terminal, until *text* was *count* times."""
    data = b""
    while data.count(text) < count:
        assert select.select([number], [], [], PATIENCE)[0], data
        data += os.read(number, 65536)
    return data


# A server that knows nothing of bbipc's: it does what a test tells it.


@contextlib.contextmanager
def scripted(path: Path, script: Callable[[socket.socket], object]) -> Iterator[None]:
    """A server that plays *script* for one client, then closes the connection."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        listening.settimeout(PATIENCE)

        def play() -> None:
            connection, _ = listening.accept()
            connection.settimeout(PATIENCE)
            with connection:
                script(connection)

        worker = Worker(play)
        yield
        worker.outcome()


def receive(connection: socket.socket) -> Message:
    """The next message."""
    decoder = Decoder(max_message_size=1 << 30)
    messages: list[Message] = []
    while not messages:
        data = connection.recv(1 << 20)
        assert data, "the client has left"
        messages = decoder.feed(data)
    decoder.check()
    assert not decoder.pending
    return messages[0]


def answering(answer: Message | bytes) -> tuple[list[Message], Callable[[socket.socket], None]]:
    """What came, and a script that receives a message and sends *answer*."""
    came: list[Message] = []

    def script(connection: socket.socket) -> None:
        came.append(receive(connection))
        connection.sendall(encode(answer) if isinstance(answer, Message) else answer)

    return came, script


# The same in this process, for the many ways in which a command can fail.

Here = Callable[..., tuple[int, bytes, str]]


@contextlib.contextmanager
def signals_kept() -> Iterator[None]:
    """Undo what a command does to its process."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    hooks = sys.unraisablehook, threading.excepthook
    try:
        yield
    finally:
        sys.unraisablehook, threading.excepthook = hooks
        for number, handler in kept.items():
            signal.signal(number, handler)
        atexit.unregister(signal.signal)


@pytest.fixture
def bbipc_here(capfdbinary: pytest.CaptureFixture[bytes]) -> Iterator[Here]:
    """Runs a command in this process: (exit code, stdout, stderr)."""

    def run_here(*words: str) -> tuple[int, bytes, str]:
        code = main(list(words))
        out, err = capfdbinary.readouterr()
        return code, out, err.decode()

    with signals_kept():
        yield run_here
