"""Processes that a command starts, and what they tell: a line of JSON at a time on their stdout.

Law of this file: a child ends when its stdin does.  So none is left behind, however its parent ends; no signal is
needed, and a Ctrl-C in the terminal is for the parent alone, which ends its children in order.  Called from main
threads only.

    parent                         child
    Child("module", words)   ->    tell(...)  every now and then, until stdin_ended(...)
    Children.told()          <-    a line of JSON
    child.end()              ->    the end of its stdin
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Final, Self

from pool.cli.exits import Exit, ProblemError

#: what a child tells
News = dict[str, object]

#: seconds for a child to end when it has been asked to
_PATIENCE: Final = 5.0


class Child:
    """One process: ``python -m`` *module* with *words*."""

    def __init__(self, name: str, module: str, words: Sequence[str]) -> None:
        self.name = name
        self._rest = b""
        self._process = subprocess.Popen(  # noqa: S603 # it is ourselves
            [sys.executable, "-m", module, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,
        )

    @property
    def pid(self) -> int:
        """Its process number."""
        return self._process.pid

    def end(self) -> None:
        """Ask it to end.  Idempotent."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def close(self) -> None:
        """Ask it to end, and see that it does."""
        assert self._process.stdout is not None
        self.end()
        try:
            self._process.wait(_PATIENCE)
        except BaseException as error:
            self._process.kill()
            self._process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
        finally:
            self._process.stdout.close()

    def fileno(self) -> int:
        """Of its stdout."""
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def read(self) -> list[News] | None:
        """What it has told since; None at its end.

        :raises ProblemError: it could not go on
        """
        data = os.read(self.fileno(), 1 << 16)
        *lines, self._rest = (self._rest + data).split(b"\n")
        news = [json.loads(line) for line in lines]
        for each in news:
            if "error" in each:
                raise ProblemError(Exit.FAILED, f"{self.name} failed: {each['error']}")
        if data:
            return news
        if code := self._process.wait(_PATIENCE):
            raise ProblemError(Exit.FAILED, f"{self.name} ended with exit code {code}")
        return None


class Children:
    """All children of a command; on leaving they are ended, the last one first."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._ready = selectors.DefaultSelector()
        self._stack.callback(self._ready.close)

    def start(self, name: str, module: str, *words: str) -> Child:
        """Start another one."""
        child = Child(name, module, words)
        self._stack.callback(child.close)
        self._ready.register(child, selectors.EVENT_READ)
        return child

    def told(self, deadline: float) -> Iterator[tuple[Child, News | None]]:
        """What they tell, as it comes: (who, what), (who, None) at an end; until *deadline*, or until all have ended.

        :raises ProblemError: one of them could not go on
        """
        while self._ready.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in self._ready.select(left):
                child = key.fileobj
                assert isinstance(child, Child)
                news = child.read()
                if news is None:
                    self._ready.unregister(child)
                    yield child, None
                for each in news or ():
                    yield child, each

    def first_word(self, child: Child, patience: float = 20.0) -> News:
        """The first that *child* tells.

        :raises ProblemError: it tells nothing
        """
        for who, news in self.told(time.monotonic() + patience):
            if who is child:
                if news is None:
                    break
                return news
        raise ProblemError(Exit.FAILED, f"{child.name} does not start")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()


# In a child.


def tell(news: Mapping[str, object]) -> None:
    """Tell the parent.  Where it is gone nobody needs to know."""
    with contextlib.suppress(BrokenPipeError):
        data = json.dumps(news).encode() + b"\n"
        while data:
            data = data[os.write(1, data) :]


def stdin_ended(patience: float | None) -> bool:
    """Wait *patience* seconds for the parent to ask for the end; whether it has."""
    return bool(select.select([0], [], [], patience)[0])


def be_child(work: Callable[[list[str]], None]) -> None:
    """Do *work* with the words of the command line; what goes wrong is told to the parent."""
    try:
        work(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(Exit.INTERRUPTED)
    except Exception as error:  # noqa: BLE001 # whatever it is, the parent tells it in one line
        tell({"error": f"{type(error).__name__}: {error}"})
        sys.exit(Exit.FAILED)
