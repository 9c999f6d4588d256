"""The command ``bbipc``: from the command line to the exit code, and never a traceback.

Law of this file: whatever happens in a command ends here, as an exit code and at most one line on stderr.
"""

from __future__ import annotations

import argparse
import atexit
import importlib
import logging
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Final

from bbipc.messages import MessageType
from pool.cli.exits import Exit, OutputGoneError, ProblemError, SignalledError
from pool.cli.parser import TextAskedError, command_of, parse
from pool.cli.terminal import Terminal, fill_standard_streams

#: they ask a program to end, and have an exit code of their own
_ENDING: Final = ("SIGTERM", "SIGHUP")


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line *words* (``None``: the program's own); the exit code (see ``exits.py``).

    For the main thread of a program of its own: it takes over SIGINT, SIGTERM, SIGHUP, a SIGCHLD that is ignored, and
    the hooks for errors that nobody catches, and does not give them back.
    """
    try:
        fill_standard_streams()
        terminal = Terminal()
        _catch_signals()
        _catch_the_rest(terminal)
        given = sys.argv[1:] if words is None else list(words)
        terminal.command = command_of(given)
        return _run(given, terminal)
    except SignalledError as error:
        return 128 + error.number
    except KeyboardInterrupt:
        return Exit.INTERRUPTED


def _run(words: list[str], terminal: Terminal) -> int:
    try:
        return _command(parse(words), terminal)
    except TextAskedError as asked:
        return _print(str(asked), terminal)
    except OutputGoneError:
        return Exit.OUTPUT_GONE
    except ProblemError as error:
        terminal.error(str(error))
        return error.code
    except Exception as error:  # noqa: BLE001 # a bug of ours, told in one line all the same
        terminal.error(f"this is a bug: {type(error).__name__}: {error} ({_where(error)})")
        return Exit.FAILED


def _command(options: argparse.Namespace, terminal: Terminal) -> int:
    arguments = vars(options)
    name = arguments.pop("command")
    if name == "send":
        _check_send(arguments)
    # Imported now: a message is not to wait for what a demonstration needs.
    module = importlib.import_module(f"pool.cli.{name}")
    code: Exit = module.run(module.Options(**arguments), terminal)
    return code


def _check_send(arguments: dict[str, object]) -> None:
    binary, close = arguments.pop("binary"), arguments.pop("close")
    arguments["kind"] = MessageType.CLOSE if close else MessageType.BINARY if binary else MessageType.STRING
    if close and arguments["text"] is not None:
        raise ProblemError(Exit.USAGE, "--close is a message of its own, without a TEXT; see bbipc send --help")
    if arguments["text"] is None and not close:
        raise ProblemError(Exit.USAGE, "what is to be sent? TEXT, - or @FILE; see bbipc send --help")


def _print(text: str, terminal: Terminal) -> int:
    try:
        terminal.line(text.rstrip("\n"))
    except OutputGoneError:
        return Exit.OUTPUT_GONE
    except ProblemError as error:
        terminal.error(str(error))
        return error.code
    return Exit.OK


def _where(error: BaseException) -> str:
    """The file and line where *error* was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "nowhere" if trace is None else f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"


def _catch_signals() -> None:
    """Let a signal that asks for the end raise, so that what is open is closed and a socket's path removed."""
    logging.getLogger("bbipc").addHandler(logging.NullHandler())
    logging.getLogger("pool").addHandler(logging.NullHandler())
    if threading.current_thread() is not threading.main_thread():
        return
    # Also where a shell has told its background job to ignore it: "kill -INT" is how a script ends a server.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in _ENDING:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores SIGHUP
            signal.signal(number, _raise)
    # A parent that ignores it has us do so: then nobody could tell how a command has ended that we have started.
    if hasattr(signal, "SIGCHLD") and signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)  # the end takes less than two seconds


def caught_signals() -> list[int]:
    """Those that :func:`main` has let raise."""
    numbers = [getattr(signal, name) for name in ("SIGINT", *_ENDING) if hasattr(signal, name)]
    return [number for number in numbers if signal.getsignal(number) in (signal.default_int_handler, _raise)]


def _catch_the_rest(terminal: Terminal) -> None:
    """What goes wrong where nobody can catch it, in a finalizer or a thread, is one line as well."""

    def tell(error: BaseException | None) -> None:
        if error is not None and not isinstance(error, KeyboardInterrupt | SystemExit):
            terminal.error(f"this is a bug: {type(error).__name__}: {error} ({_where(error)})")

    sys.unraisablehook = lambda told: tell(told.exc_value)
    threading.excepthook = lambda told: tell(told.exc_value)


def _raise(number: int, _: FrameType | None) -> None:
    raise SignalledError(number)
