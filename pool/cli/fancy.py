"""Drawing on a terminal, with rich: tables that change in place, and a progress bar.

Law of this file: only ``terminal.py`` imports it, when there is a terminal; rich may be missing.  No thread is started
(rich would draw in one of its own): whoever has news calls.  Text is drawn as it is, never read as markup.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import rich.box
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table as RichTable
from rich.text import Text

from pool.cli.text import Table


def show(table: Table) -> None:
    """Draw *table* once, on stdout."""
    Console().print(_drawn(table))


@contextlib.contextmanager
def live() -> Iterator[Callable[[Table], None]]:
    """Draw tables in one place of stdout; the last one stays."""
    with Live(console=Console(), auto_refresh=False) as screen:
        yield lambda table: screen.update(_drawn(table), refresh=True)


class Bar:
    """A progress bar on stderr."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            auto_refresh=False,
            transient=True,
        )
        self._task: TaskID | None = None
        self._doing = ""

    def draw(self, doing: str, done: int, total: int) -> None:
        """*done* of *total* bytes; another *doing* begins anew."""
        if self._task is None:
            self._progress.start()
        if doing != self._doing:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._task, self._doing = self._progress.add_task(doing), doing
        assert self._task is not None
        self._progress.update(self._task, completed=done, total=total, refresh=True)

    def clear(self) -> None:
        """Remove it."""
        self._progress.stop()


def _drawn(table: Table) -> RichTable:
    drawn = RichTable(
        title=Text(table.title) if table.title else None,
        title_justify="left",
        box=rich.box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for number, column in enumerate(table.columns):
        drawn.add_column(Text(column), justify="right" if number else "left", no_wrap=True)
    for row in table.rows:
        drawn.add_row(*(Text(cell) for cell in row))
    return drawn
