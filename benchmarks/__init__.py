"""Speed and memory of bbipc and pool beside what a person would write by hand with the standard library.

``python -m benchmarks primitives``, ``… servers`` and ``… calls`` measure, print a table, and with ``--check`` fail
where a target is missed.

Law of this package: a verdict is a ratio (or a difference) to a peer that was measured in the same run, turn and turn
about, and a median of many; a time that stands alone says more about the machine than about the code.
"""
