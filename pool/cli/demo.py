"""``bbipc demo``: a server with workers and many client threads, each side in processes of its own, with live figures.

Law of this file: this process only starts, watches and ends the others (``children.py``), and adds up what they tell.
It ends by itself; a Ctrl-C or another signal ends it earlier, with the same totals.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

from pool.cli.children import Child, Children, News
from pool.cli.exits import Exit, ProblemError
from pool.cli.tally import Tally, added_up
from pool.cli.terminal import Terminal
from pool.cli.text import Table, amount

#: seconds beyond the clients' own time, before something must be wrong
_PATIENCE: Final = 30.0
_COLUMNS: Final = ("", "answers", "a second", "data", "p50 ms", "p99 ms", "wrong")


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    seconds: float
    processes: int
    threads: int
    workers: int | None
    tcp: bool


def run(options: Options, terminal: Terminal) -> Exit:
    """Show it, and tell whether all went well."""
    with tempfile.TemporaryDirectory(prefix="bbipc-") as directory, Children() as children:
        address = "ipv4:127.0.0.1:0" if options.tcp else f"local:{directory}/demo"
        server = children.start("the server", "pool.cli.demo_server", address, str(options.workers or 0))
        address = str(children.first_word(server)["address"])
        show = Show(options, server)
        terminal.line(f"a server in process {server.pid} listens on {address}")
        terminal.line(f"{show.who}: calling it for {options.seconds:g} s; Ctrl-C ends it")
        interrupted = _watch(show, children, address, terminal)
    for line in show.totals():
        terminal.line(line)
    show.check(in_full=interrupted is None)
    if interrupted is not None:
        raise interrupted  # which says with what exit code
    return Exit.OK


def _watch(show: Show, children: Children, address: str, terminal: Terminal) -> KeyboardInterrupt | None:
    """Let the clients call, and show it; what has ended it before its time: a Ctrl-C, or another signal."""
    options = show.options
    interrupted: KeyboardInterrupt | None = None
    deadline = time.monotonic() + options.seconds + _PATIENCE
    for number in range(1, options.processes + 1):
        words = (address, str(options.threads), str(options.seconds), str(number))
        show.tallies[children.start(f"client {number}", "pool.cli.demo_clients", *words)] = Tally()
    with terminal.live() as draw:
        while not show.over:
            try:
                for child, news in children.told(deadline):
                    show.take(child, news)
                    if show.begun:
                        draw(show.table(), show.line())
                break
            except KeyboardInterrupt as error:
                if interrupted is not None:
                    raise
                interrupted = error
                show.end_clients()
    return interrupted


class Show:
    """All that is known of the processes, and how it is told."""

    def __init__(self, options: Options, server: Child) -> None:
        self.options = options
        self.tallies: dict[Child, Tally] = {}
        self.over = False
        self._server = server
        self._serving: News = {}
        self._running = options.processes
        self._seconds = 0.0  # that the clients have been calling
        calls = options.processes * options.threads
        self.who = f"{calls} threads in {options.processes} processes, {options.processes} connections"

    def take(self, child: Child, news: News | None) -> None:
        """*child* tells *news*; None: it has ended.  When all clients have, the server is asked to."""
        if child is self._server:
            self._serving = news or self._serving
            self.over = news is None
        elif news is not None:
            values: dict[str, Any] = {each.name: news[each.name] for each in fields(Tally)}
            self.tallies[child] = Tally(**values)
            self._seconds = max(self._seconds, float(str(news["seconds"])))
        else:
            self._running -= 1
            if not self._running:
                self._server.end()

    @property
    def begun(self) -> bool:
        """Whether there is anything to show."""
        return self._seconds > 0

    def end_clients(self) -> None:
        """Let them end before their time."""
        for child in self.tallies:
            child.end()

    def table(self) -> Table:
        """The figures of all."""
        total = added_up(list(self.tallies.values()))
        rows: list[Sequence[str]] = [self._row(child.name, tally) for child, tally in self.tallies.items()]
        rows.append(self._row("all clients", total))
        replies = f"{self._serving.get('replies', 0):,}"
        rows.append(("the server", replies, "", "", "", "", ""))
        return Table(_COLUMNS, rows)

    def _row(self, name: str, tally: Tally) -> tuple[str, ...]:
        return (
            name,
            f"{tally.answers:,}",
            f"{self._rate(tally):,.0f}",
            amount(tally.bytes),
            f"{tally.milliseconds(0.5):.2f}",
            f"{tally.milliseconds(0.99):.2f}",
            f"{tally.wrong:,}",
        )

    def line(self) -> str:
        """The same in one line."""
        total = added_up(list(self.tallies.values()))
        return (
            f"{total.answers:,} answers, {self._rate(total):,.0f} a second, {amount(total.bytes)}; round trip "
            f"p50 {total.milliseconds(0.5):.2f} ms, p99 {total.milliseconds(0.99):.2f} ms; {total.wrong} wrong"
        )

    def totals(self) -> list[str]:
        """What it came to."""
        serving = self._serving
        server = f"{serving.get('accepted', 0)} connections, {serving.get('requests', 0):,} requests"
        return [
            f"clients: {self.line()}",
            f"server:  {server}, {serving.get('replies', 0):,} replies, {serving.get('handler_errors', 0)} errors",
        ]

    def check(self, *, in_full: bool) -> None:
        """See whether all went well; *in_full*: nobody has ended it before its time.

        :raises ProblemError: it did not
        """
        total = added_up(list(self.tallies.values()))
        if total.wrong:
            raise ProblemError(Exit.FAILED, f"{total.wrong} of {total.answers} answers were wrong")
        if in_full and not total.answers:
            raise ProblemError(Exit.FAILED, "there was no answer at all")
        if not self.over:
            raise ProblemError(Exit.FAILED, "the processes did not end in time")

    def _rate(self, tally: Tally) -> float:
        return tally.answers / max(self._seconds, 0.001)
