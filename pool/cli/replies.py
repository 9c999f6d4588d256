"""What ``bbipc serve`` answers: the message itself, its capitals, nothing, or what a command makes of it.

Law of this file: called on workers, several at once.  An answer is of the type of its message.  A command is run
without a shell; what a peer sends goes to its stdin and nowhere else.  How much it may write, and for how long it may
run, is limited; what it has started and left running is killed when it ends, however it ends.  What it says on stderr
is for the operator, and no peer sees it.
"""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from typing import Final

from bbipc.messages import Message, MessageType
from bbipc.sockets.locks import make_lock
from pool.cli.exits import Exit, ProblemError
from pool.requests import Request

Reply = Callable[[Request], Message | None]

_PIECE: Final = 1 << 16


class CommandFailedError(Exception):
    """What a peer is told of a command that gave no reply."""


def echo(request: Request) -> Message:
    """The message itself."""
    return Message(request.type, request.payload)


def upper(request: Request) -> Message:
    """The message in capitals; of bytes those that are ASCII letters."""
    if request.type == MessageType.STRING:
        return Message(MessageType.STRING, request.payload.decode().upper().encode())
    return Message(request.type, request.payload.upper())


def nothing(_: Request) -> None:
    """No value: the peer is told that there is none."""


class Command:
    """What the command *line* writes when it is given the message on its stdin.

    *timeout*: seconds it may run.  *limit*: bytes it may write.  Any number of threads.

    :raises ProblemError: there is no such command
    """

    def __init__(self, line: str, *, timeout: float, limit: int) -> None:
        try:
            self._words = shlex.split(line)
        except ValueError as error:
            raise ProblemError(Exit.USAGE, f"--reply {line!r}: {error}") from error
        self._name = self._words[0] if self._words else ""
        if shutil.which(self._name) is None:
            raise ProblemError(Exit.USAGE, f"--reply {line!r}: there is no command {self._name!r}")
        self._timeout = timeout
        self._limit = limit
        self._lock = make_lock()  # guards what follows
        self._running: set[subprocess.Popen[bytes]] = set()
        self._over = False

    def __call__(self, request: Request) -> Message:
        """The reply to *request*.

        :raises CommandFailedError: there is none
        """
        is_text = request.type == MessageType.STRING
        written = self._run(request.payload.removesuffix(b"\0") if is_text else request.payload)
        if is_text:
            with contextlib.suppress(ValueError):  # not UTF-8, or a NUL in it: bytes, then
                return Message.of(written, MessageType.STRING)
        return Message.binary(written)

    def end(self) -> None:
        """Kill the commands that are running, and begin no other."""
        with self._lock:
            self._over = True
            for process in self._running:
                _kill(process)

    def _run(self, message: bytes) -> bytes:
        with tempfile.TemporaryFile() as stdin:  # not a pipe: it need not read, and nobody has to feed it meanwhile
            stdin.write(message)
            stdin.seek(0)
            with self._started(stdin.fileno()) as process:
                try:
                    deadline = time.monotonic() + self._timeout
                    written = self._read(process, deadline)
                    self._await_exit(process, deadline)
                finally:
                    with self._lock:
                        self._running.discard(process)
                    _kill(process)  # with what it has left running; then it is reaped
        if code := process.returncode:
            how = f"exit code {code}" if code > 0 else f"signal {-code}"
            raise CommandFailedError(f"{self._name} failed with {how}")
        return written

    def _started(self, stdin: int) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._over:
                raise CommandFailedError("the server is being stopped")
            # In a group of its own: a Ctrl-C in the terminal is for the server, which lets it finish.
            process = subprocess.Popen(self._words, stdin=stdin, stdout=subprocess.PIPE, process_group=0)  # noqa: S603
            self._running.add(process)
            return process

    def _read(self, process: subprocess.Popen[bytes], deadline: float) -> bytes:
        assert process.stdout is not None
        number = process.stdout.fileno()
        ready = select.poll()
        ready.register(number, select.POLLIN)
        written = bytearray()
        while True:
            if not ready.poll(max(deadline - time.monotonic(), 0) * 1000):
                raise self._too_slow()
            part = os.read(number, _PIECE)
            if not part:
                return bytes(written)
            written += part
            if len(written) > self._limit:
                raise CommandFailedError(f"{self._name} wrote more than {self._limit} bytes")

    def _await_exit(self, process: subprocess.Popen[bytes], deadline: float) -> None:
        """Wait until *process* has exited; it is reaped later: until then its group's number is nobody else's."""
        if not hasattr(os, "waitid"):  # macOS before Python 3.13: there what it has left running goes on
            try:
                process.wait(max(deadline - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                raise self._too_slow() from None
            return
        pause = 0.0005
        while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise self._too_slow()
            pause = min(2 * pause, 0.05)
            time.sleep(min(pause, left))

    def _too_slow(self) -> CommandFailedError:
        return CommandFailedError(f"{self._name} took longer than {self._timeout:g} s")


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill it and whatever it has started and left in its group; nothing when it has been reaped."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: nobody is left but a zombie
            os.killpg(process.pid, signal.SIGKILL)


def make_reply(name: str, *, timeout: float, limit: int) -> Reply:
    """The reply that ``--reply`` names.

    :raises ProblemError: there is no such command
    """
    known: dict[str, Reply] = {"echo": echo, "upper": upper, "none": nothing}
    return known.get(name) or Command(name, timeout=timeout, limit=limit)
