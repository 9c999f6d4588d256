"""Text for people: tables, amounts, and what strangers wrote made harmless.

Law of this file: pure functions of their arguments.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field


@dataclass
class Table:
    """A table to show: the first column is text, the others are figures."""

    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    title: str = ""


def plain(text: str, keep: str = "") -> str:
    r"""*text* without anything that steers a terminal: such characters as ``\x1b``, but for those of *keep*."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or letter in keep else letter.encode("unicode_escape", "surrogatepass").decode()
        for letter in text
    )


def amount(size: float) -> str:
    """A number of bytes for people: ``512 bytes``, ``4.9 MiB``."""
    if size < 1024:
        return f"{size:.0f} bytes"
    for unit in ("KiB", "MiB"):
        size /= 1024
        if size < 1024:
            return f"{size:.1f} {unit}"
    return f"{size / 1024:.1f} GiB"


def counted(number: int, what: str) -> str:
    """So many of *what*: ``1 error``, ``1,200 errors``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def reason_of(error: BaseException) -> str:
    """What went wrong, in words: without the number of a system error, which means nothing to most people."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def in_columns(table: Table) -> Iterator[str]:
    """*table* as lines of text."""
    if table.title:
        yield table.title
    rows = [table.columns, *table.rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(table.columns))]
    for first, *others in rows:
        figures = (text.rjust(width) for text, width in zip(others, widths[1:], strict=True))
        yield "  ".join([first.ljust(widths[0]), *figures]).rstrip()
