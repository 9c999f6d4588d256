"""How a command ends: the exit codes, which scripts rely on, and the error that carries one.

Law of this file: a number never changes its meaning.  2 is what argparse and shells use for a wrong command line, 128
plus a signal's number is what shells report for a program that a signal has ended.
"""

from __future__ import annotations

import enum
import signal


class Exit(enum.IntEnum):
    """What an exit code says."""

    #: it is done: answered, or sent where no answer was asked for; a server was stopped
    OK = 0
    #: anything else: a file that cannot be read or written, an address that cannot be had, a wrong answer
    FAILED = 1
    #: the command line makes no sense
    USAGE = 2
    #: nobody listens at the address, or it cannot be reached
    NO_SERVER = 3
    #: no answer in time
    TIMEOUT = 4
    #: the connection was lost before the answer was complete
    LOST = 5
    #: the server answered that its handler failed
    REMOTE_FAILED = 6
    #: a message that cannot be: too large, not text, damaged
    BAD_MESSAGE = 7
    #: Ctrl-C
    INTERRUPTED = 130
    #: whoever was reading our output is gone
    OUTPUT_GONE = 141


class ProblemError(Exception):
    """What ends a command: told in one line on stderr, and by the exit code."""

    def __init__(self, code: Exit, text: str) -> None:
        super().__init__(text)
        self.code = code


class OutputGoneError(Exception):
    """Whoever was reading our output is gone: the command ends, and says nothing."""


class SignalledError(KeyboardInterrupt):
    """A signal that asks the program to end; it ends everything that a Ctrl-C ends."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number
