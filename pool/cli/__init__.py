"""The command line: ``bbipc serve``, ``send``, ``demo`` and ``bench``; also ``python -m pool``."""
