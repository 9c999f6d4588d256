"""``python -m pool``: the same as the command ``bbipc``."""

import sys

from pool.cli.entry import run

if __name__ == "__main__":
    sys.exit(run())
