"""The standard streams: what is printed, where, and how it looks.

Law of this file: nothing else of the command line writes to stdout or stderr, except ``fancy.py``, which draws for a
terminal and which only this file imports.  It writes to the descriptors themselves, so that nothing is left in a buffer
for the interpreter to fail on at its exit.  What comes from elsewhere (a message, an error's text, a path) goes through
``plain`` first: it must not be able to write to the terminal as if it were the program, nor to begin a line of its own.
Any thread may print; a line is never torn.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, BinaryIO, Final

from bbipc.sockets.locks import make_lock
from pool.cli.exits import Exit, OutputGoneError, ProblemError
from pool.cli.text import Table, amount, in_columns, plain

if TYPE_CHECKING:
    from pool.cli import fancy

_STDOUT: Final = 1
_STDERR: Final = 2
#: seconds that a transfer may take before its progress is shown
_PATIENCE: Final = 0.3
#: seconds between two drawings: of a progress, of figures in lines
_REDRAW: Final = 0.1
_LINE_EVERY: Final = 1.0

#: told (what is being done, how many bytes of it, of how many)
Meter = Callable[[str, int, int], None]


class Terminal:
    """The three standard streams of this process."""

    def __init__(self) -> None:
        self.command = "bbipc"  # as whom errors are told
        self.draws_out = _draws(_STDOUT)
        self._draws_err = _draws(_STDERR)
        self._lock = make_lock()  # a line at a time

    def line(self, text: str) -> None:
        """One line on stdout, unless it was closed before we began: then nobody wants it.

        :raises OutputGoneError: nobody reads it any more
        :raises ProblemError: it cannot be written: the disk is full
        """
        self._out(f"{text}\n".encode(_encoding(sys.stdout), "backslashreplace"))

    def answer(self, data: bytes) -> None:
        """What was asked for, on stdout; errors as with :meth:`line`, and a closed stdout is one, too."""
        if data and sys.stdout is None:
            raise ProblemError(Exit.FAILED, "cannot write the output: it is closed")
        self._out(data)

    def _out(self, data: bytes) -> None:
        if sys.stdout is None:
            return
        try:
            with self._lock:
                _write_all(_STDOUT, data)
        except BrokenPipeError:
            raise OutputGoneError from None
        except OSError as error:
            raise ProblemError(Exit.FAILED, f"cannot write the output: {error.strerror}") from error

    def error(self, text: str) -> None:
        """One line on stderr.  Never raises: there is nobody left to tell."""
        with contextlib.suppress(OSError), self._lock:
            line = f"{self.command}: {plain(text)}\n"
            _write_all(_STDERR, line.encode(_encoding(sys.stderr), "backslashreplace"))

    def table(self, table: Table) -> None:
        """A table on stdout: drawn for a terminal, in columns elsewhere."""
        tools = drawing_tools() if self.draws_out else None
        if tools is None:
            self._out("".join(f"{line}\n" for line in in_columns(table)).encode(_encoding(sys.stdout)))
        else:
            tools.show(table)

    @contextlib.contextmanager
    def live(self) -> Iterator[Callable[[Table, str], None]]:
        """Show figures that change: call what this gives with the table and with the line that stands for it.

        The table is redrawn in place on a terminal; elsewhere, or without rich, it is a line a second.
        """
        tools = drawing_tools() if self.draws_out else None
        if tools is not None:
            with tools.live() as redraw:
                yield lambda table, _: redraw(table)
            return
        last = time.monotonic() - _LINE_EVERY

        def print_seldom(_: Table, line: str) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= _LINE_EVERY:
                last = now
                self.line(line)

        yield print_seldom

    @contextlib.contextmanager
    def progress(self) -> Iterator[Meter]:
        """Show how far a transfer is, if stderr is a terminal and the transfer takes its time."""
        if not self._draws_err:
            yield lambda *_: None
            return
        shown = _Progress(self)
        try:
            yield shown.tell
        finally:
            shown.clear()

    def draw(self, text: str) -> None:
        """A piece of a line on stderr, which is a terminal."""
        with contextlib.suppress(OSError), self._lock:
            _write_all(_STDERR, text.encode(_encoding(sys.stderr), "backslashreplace"))


class _Progress:
    """The progress of one transfer on a terminal: nothing at first, then a bar, or a line that is written again."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._next = time.monotonic() + _PATIENCE
        self._began = False
        self._bar: fancy.Bar | None = None

    def tell(self, doing: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _REDRAW
        if not self._began:
            self._began = True
            tools = drawing_tools()
            self._bar = None if tools is None else tools.Bar()
        if self._bar is not None:
            self._bar.draw(doing, done, total)
        else:
            percent = 100 * done // max(total, 1)
            self._terminal.draw(f"\r\x1b[K{doing} {amount(done)} of {amount(total)} ({percent} %)")

    def clear(self) -> None:
        if self._bar is not None:
            self._bar.clear()
        elif self._began:
            self._terminal.draw("\r\x1b[K")


def read_stdin(limit: int) -> bytes:
    """All of stdin, or its first *limit* + 1 bytes.

    :raises ProblemError: it is closed, or cannot be read
    """
    if sys.stdin is None:
        raise ProblemError(Exit.FAILED, "cannot read stdin: it is closed")
    stream: BinaryIO = sys.stdin.buffer
    parts: list[bytes] = []
    size = 0
    try:
        while size <= limit and (part := stream.read(min(limit + 1 - size, 1 << 20))):
            parts.append(part)
            size += len(part)
    except OSError as error:
        raise ProblemError(Exit.FAILED, f"cannot read stdin: {error.strerror}") from error
    return b"".join(parts)


def fill_standard_streams() -> None:
    """Put /dev/null where one of the three is closed: a socket that got its number would be printed on."""
    for number in (0, _STDOUT, _STDERR):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free


def drawing_tools() -> ModuleType | None:
    """``fancy.py``, or None where rich is not installed."""
    try:
        from pool.cli import fancy  # noqa: PLC0415 # rich may be missing, and takes its time to import
    except ImportError:
        return None
    return fancy


def _draws(number: int) -> bool:
    return os.isatty(number) and os.environ.get("TERM", "dumb") != "dumb"


def _encoding(stream: object) -> str:
    return getattr(stream, "encoding", None) or "utf-8"


def _write_all(number: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(number, left) :]
        except OSError as error:
            if error.errno != errno.EAGAIN:
                raise
            select.select([], [number], [])  # somebody has made it non-blocking
