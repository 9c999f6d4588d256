"""python -m benchmarks primitives [--quick] [--rounds N] [--only CASE ...] [--json FILE] [--check]"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from benchmarks import primitives
from benchmarks.measure import Effort, Row, print_table

FULL_ROUNDS = 400
QUICK_ROUNDS = 20


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


def run_primitives(options: argparse.Namespace) -> int:
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else FULL_ROUNDS)
    effort = Effort(rounds, options.quick)
    rows: list[Row] = []
    for name in options.only or primitives.CASES:
        print(f"{name} …", file=sys.stderr, flush=True)
        rows += primitives.CASES[name](effort)
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
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=primitives.__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("primitives", help="the calls of bbipc beside those of the standard library")
    command.add_argument("--quick", action="store_true", help="under 15 s: it runs, the numbers mean little")
    command.add_argument("--rounds", type=positive, metavar="N", help="turns of each side (400, or 20 with --quick)")
    command.add_argument("--only", nargs="+", choices=list(primitives.CASES), metavar="CASE", help="some cases alone")
    command.add_argument("--json", type=Path, metavar="FILE", help="write the rows to FILE, too")
    command.add_argument(
        "--check",
        action="store_true",
        help="exit with 1 when a target is missed; not with --quick, where noise decides",
    )
    command.set_defaults(run=run_primitives)
    options = parser.parse_args()
    return int(options.run(options))


if __name__ == "__main__":
    sys.exit(main())
