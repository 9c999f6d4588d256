"""What may stand on the command line, and what it means.

Law of this file: words in, options out; nothing is opened, and no command is imported before it is asked for.  A wrong
word is a ProblemError of one line, never argparse's block of usage.
"""

from __future__ import annotations

import argparse
import contextlib
import re
from collections.abc import Callable, Sequence
from typing import Final, NoReturn, TypeVar

from bbipc import parse_address
from bbipc.messages import MAX_MESSAGE_SIZE
from pool.cli.exits import Exit, ProblemError

_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_SIZE: Final = re.compile(r"([0-9]{1,12})([KMG]?)")
_MAX_SIZE: Final = (1 << 32) - 1
#: what Linux says where there is no user
_NO_UID: Final = (1 << 32) - 1
#: more than a year: what "no limit" is to say is said by leaving it out
MAX_SECONDS: Final = 1e8

_ADDRESSES: Final = """\
ADDRESS is one of
  PATH or local:PATH       a local (Unix domain) socket
  abstract:NAME            a name in Linux's abstract namespace
  ipv4:HOST:PORT           numeric, as ipv4:127.0.0.1:4000
  ipv6:[HOST]:PORT         numeric, as ipv6:[::1]:4000
"""
_SERVE: Final = """
examples:
  bbipc serve /run/user/1000/echo                  every message comes back
  bbipc serve ipv4:127.0.0.1:4000 --reply upper    in capitals, over TCP
  bbipc serve ./count --reply 'wc -c'              the message on the stdin of a command, whose stdout is the reply
  bbipc serve ./jobs --allow-uid 1000 --stop-on-close

It ends on Ctrl-C or SIGTERM, with a summary; a second Ctrl-C does not wait for the messages in hand.
"""
_SEND: Final = """
examples:
  bbipc send ./echo 'Hello World'
  date | bbipc send ./echo -
  bbipc send ./echo @photo.jpg --binary > copy.jpg
  bbipc send ./echo --close                        ask the server to close, or to stop if it was told to
  bbipc send ipv6:[::1]:4000 hello --timeout 2 || echo "it did not work: $?"

exit code:
  0  answered (or sent, with --no-response)       4  no answer in time
  1  anything else, as a file that is not there   5  the connection was lost
  2  the command line makes no sense              6  the server's handler failed
  3  no server                                    7  a message that cannot be: too large, not text, damaged
"""
_DEMO: Final = """
examples:
  bbipc demo
  bbipc demo --seconds 20 --processes 4 --threads 50 --tcp

The exit code is 0 if every message was answered, and every answer was right.
"""
_BENCH: Final = """
examples:
  bbipc bench
  bbipc bench --seconds 10 --size 1K

All sides are measured in turns in one run; the ratios are worth more than the figures.
"""


class TextAskedError(Exception):
    """The user asked for a text (--help, --version), which is to be printed; then the command is done."""


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options: object) -> None:
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **options,  # type: ignore[arg-type]
        )

    def print_help(self, file: object = None) -> NoReturn:
        raise TextAskedError(self.format_help())

    def error(self, message: str) -> NoReturn:
        raise ProblemError(Exit.USAGE, f"{message}; see {self.prog} --help")


class _Version(argparse.Action):
    def __call__(self, *_: object, **__: object) -> NoReturn:
        import importlib.metadata  # noqa: PLC0415 # a quarter of the time that a message takes to be sent

        version = "of a checkout that is not installed"
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            version = importlib.metadata.version("bbipc")
        raise TextAskedError(f"bbipc {version}\n")


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The options of the command line *words*; ``command`` says of which command.

    :raises ProblemError: they make no sense
    :raises TextAskedError: the user asked for a text
    """
    if not words or words[0] not in _COMMANDS:
        return _whole().parse_args(words)  # which finds an error, or a text that is asked for
    told, text, fill = _COMMANDS[words[0]]
    parser = _Parser(prog=f"bbipc {words[0]}", description=f"{told.capitalize()}.", epilog=text)
    fill(parser)
    # A parser of its own: one below another could not take options between ADDRESS and TEXT.
    options = parser.parse_intermixed_args(words[1:])
    options.command = words[0]
    return options


def _whole() -> _Parser:
    """What there is at all."""
    parser = _Parser(
        prog="bbipc",
        description="Messages between processes: typed, checksummed, over local sockets and TCP.",
        epilog=_ADDRESSES + "\nbbipc COMMAND --help says more, with examples.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, dest=argparse.SUPPRESS, help="print the version")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (told, _, _) in _COMMANDS.items():
        commands.add_parser(name, help=told)
    return parser


def _fill_serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("address", metavar="ADDRESS", type=_checked(parse_address), help="where to listen")
    parser.add_argument(
        "--reply",
        default="echo",
        metavar="echo|upper|none|COMMAND",
        help="the answer (default: echo); COMMAND is run without a shell, and a failing one is a failing handler",
    )
    parser.add_argument("--command-timeout", type=_seconds, default=60.0, metavar="S", help="of COMMAND (default: 60)")
    parser.add_argument("--messages", type=_count, metavar="N", help="stop after so many messages")
    parser.add_argument("--stop-on-close", action="store_true", help="let any client's CLOSE stop the server")
    parser.add_argument("--quiet", action="store_true", help="do not print the messages")
    parser.add_argument("--workers", type=_count, metavar="N", help="how many messages to answer at once")
    _add_size(parser)
    parser.add_argument("--max-connections", type=_count, default=1024, metavar="N", help="default: 1024")
    parser.add_argument("--max-in-flight", type=_count, default=64, metavar="N", help="of a connection; default: 64")
    parser.add_argument("--idle-timeout", type=_seconds, metavar="S", help="cut who says nothing for so long")
    parser.add_argument(
        "--allow-uid",
        type=_uid,
        action="append",
        metavar="UID",
        help="let in this user only (local sockets; may be repeated)",
    )
    parser.add_argument("--accept-unsigned", action="store_true", help="take messages without a checksum")
    parser.add_argument("--replace-stale", action="store_true", help="take over the path of a server that died")
    parser.add_argument("--mode", type=_mode, metavar="MODE", help="of the path, in octal (default: 600)")
    parser.add_argument("--backlog", type=_count, default=128, metavar="N", help="default: 128")
    parser.add_argument("--reuse-port", action="store_true", help="share the TCP port with other servers")
    parser.add_argument(
        "--stop-timeout", type=_seconds, default=10.0, metavar="S", help="for the messages in hand (default: 10)"
    )


def _fill_send(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("address", metavar="ADDRESS", type=_checked(parse_address), help="of the server")
    parser.add_argument(
        "text", metavar="TEXT|-|@FILE", nargs="?", help="the message: a text, stdin, or a file's content"
    )
    parser.add_argument("-l", "--literal", action="store_true", help="send TEXT as it stands, be it - or @FILE")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("-b", "--binary", action="store_true", help="send it as bytes, not as text")
    kind.add_argument("-c", "--close", action="store_true", help="ask the server to close; without a TEXT")
    parser.add_argument("-n", "--no-response", action="store_true", help="do not ask for an answer, or wait for one")
    parser.add_argument(
        "-t", "--timeout", type=_seconds, metavar="S", help="to connect, send and be answered (default: no limit)"
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="write the answer there, not to stdout")
    _add_size(parser)
    parser.add_argument("--accept-unsigned", action="store_true", help="take an answer without a checksum")


def _fill_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=_seconds, default=5.0, metavar="S", help="default: 5")
    parser.add_argument("--processes", type=_count, default=2, metavar="N", help="of clients (default: 2)")
    parser.add_argument("--threads", type=_count, default=25, metavar="N", help="of each of them (default: 25)")
    parser.add_argument("--workers", type=_count, metavar="N", help="of the server")
    parser.add_argument("--tcp", action="store_true", help="over TCP; otherwise over a local socket")


def _fill_bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=_seconds, default=3.0, metavar="S", help="about how long (default: 3)")
    parser.add_argument("--size", type=_size, metavar="SIZE", help="of a message (default: 64 and 64K)")


_COMMANDS: Final[dict[str, tuple[str, str, Callable[[argparse.ArgumentParser], None]]]] = {
    "serve": ("answer messages, and print them as they come", f"{_ADDRESSES}{_SERVE}", _fill_serve),
    "send": ("send a message, and print the answer", f"{_ADDRESSES}{_SEND}", _fill_send),
    "demo": ("show a server and many clients at work", _DEMO, _fill_demo),
    "bench": ("measure beside the interpreter's own sockets", _BENCH, _fill_bench),
}


def command_of(words: Sequence[str]) -> str:
    """As whom an error in *words* is told: ``bbipc``, or ``bbipc`` with the command."""
    return f"bbipc {words[0]}" if words and words[0] in _COMMANDS else "bbipc"


def _add_size(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-message-size",
        type=_size,
        default=MAX_MESSAGE_SIZE,
        metavar="SIZE",
        help=f"in bytes, or as 64K, 16M, 1G (default: {MAX_MESSAGE_SIZE})",
    )


_T = TypeVar("_T")


def _checked(convert: Callable[[str], _T]) -> Callable[[str], _T]:
    """*convert*, whose ValueError argparse would not show."""

    def converted(text: str) -> _T:
        try:
            return convert(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return converted


def _size(text: str) -> int:
    match = _SIZE.fullmatch(text)
    size = int(match[1]) * _UNITS[match[2]] if match else -1
    if not 0 <= size <= _MAX_SIZE:
        raise argparse.ArgumentTypeError(f"{text!r} is no size of at most 4 GiB, as 1000, 64K or 16M")
    return size


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= MAX_SECONDS:  # a NaN neither
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return seconds


def _count(text: str) -> int:
    number = _number(text)
    if not number:
        raise argparse.ArgumentTypeError("it must be at least 1")
    return number


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of up to nine digits")
    return int(text)


def _uid(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) < _NO_UID):
        raise argparse.ArgumentTypeError(f"{text!r} is no user's number")
    return int(text)


def _mode(text: str) -> int:
    if not re.fullmatch(r"0?[0-7]{3}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no mode in octal, as 600 or 0660")
    return int(text, 8)
