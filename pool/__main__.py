"""``python -m pool``: the same as the command ``bbipc``."""

import sys

from pool.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
