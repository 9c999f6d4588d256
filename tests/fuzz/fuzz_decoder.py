"""Drive the harness with atheris, which is not needed for the tests:

    pip install atheris
    python -m tests.fuzz.fuzz_decoder tests/fuzz/corpus -max_len=600 -max_total_time=600

New inputs are written to the first directory given: give another one before it to look at them first, and keep those
that ``-merge=1`` keeps.
"""

from __future__ import annotations

import importlib
import sys


def main() -> None:
    """Fuzz until something fails, or as the command line says."""
    atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["bbipc.messages", "tests.fuzz.harness"]):
        harness = importlib.import_module("tests.fuzz.harness")

    def one(data: bytes) -> None:
        harness.run(data)

    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
