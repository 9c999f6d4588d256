"""python -m benchmarks primitives|servers|calls [--quick] [--rounds N] [--only CASE ...] [--json FILE] [--check]"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Final

import benchmarks
from benchmarks import calls, primitives, servers
from benchmarks.measure import Effort, Row, print_table


@dataclass(frozen=True)
class Command:
    """*module* has the cases, ``CASES``; *rounds* and *quick_rounds*: turns of each side."""

    module: ModuleType
    summary: str
    rounds: int
    quick_rounds: int
    quick_seconds: int


COMMANDS: Final = {
    "primitives": Command(primitives, "the calls of bbipc beside those of the standard library", 400, 20, 15),
    "servers": Command(servers, "echo servers of pool beside other ways to write one", 400, 3, 15),
    "calls": Command(calls, "calls by messages beside other means of calling another process", 400, 3, 15),
}


def about() -> dict[str, object]:
    """Where the numbers come from."""
    return {
        "python": platform.python_version(),
        "free_threaded": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
        "system": platform.platform(),
    }


def write_json(path: Path, rows: Sequence[Row], effort: Effort) -> None:
    content = about() | {"quick": effort.quick, "rounds": effort.rounds, "rows": [row.as_json() for row in rows]}
    path.write_text(json.dumps(content, indent=1) + "\n")


def run(command: Command, options: argparse.Namespace) -> int:
    rounds = options.rounds or (command.quick_rounds if options.quick else command.rounds)
    effort = Effort(rounds, options.quick)
    rows: list[Row] = []
    for name in options.only or command.module.CASES:
        print(f"{name} …", file=sys.stderr, flush=True)
        rows += command.module.CASES[name](effort)
    print(" ".join(f"{key}={value}" for key, value in about().items()))
    print_table(rows)
    if options.json:
        write_json(options.json, rows, effort)
    missed = [row.name for row in rows if row.met is False]
    return 1 if options.check and missed else 0


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=benchmarks.__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for name, command in COMMANDS.items():
        add_command(commands.add_parser(name, help=command.summary, description=command.module.__doc__), command)
    options = parser.parse_args()
    return run(COMMANDS[options.command], options)


def add_command(parser: argparse.ArgumentParser, command: Command) -> None:
    quick = f"under {command.quick_seconds} s: it runs, the numbers mean little"
    parser.add_argument("--quick", action="store_true", help=quick)
    rounds = f"turns of each side ({command.rounds}, or {command.quick_rounds} with --quick)"
    parser.add_argument("--rounds", type=positive, metavar="N", help=rounds)
    parser.add_argument(
        "--only", nargs="+", choices=list(command.module.CASES), metavar="CASE", help="some cases alone"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to FILE, too")
    check = "exit with 1 when a target is missed; not with --quick, where noise decides"
    parser.add_argument("--check", action="store_true", help=check)


if __name__ == "__main__":
    sys.exit(main())
