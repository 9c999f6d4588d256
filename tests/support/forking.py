"""A call that forks while another thread holds a lock, and returns in both processes."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.makers import PATIENCE, Worker

#: seconds until a child counts as hung
LIMIT = 5
FORKS = (
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
    # Python 3.12 and later warn of a fork while threads run, which is what these tests are about.
    pytest.mark.filterwarnings(r"ignore:.*use of fork\(\) may lead to deadlocks:DeprecationWarning"),
)


class Forking:
    """To be called once, by what is tested.  *lock*: in the child somebody holds it for ever who is not there."""

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self._child: int | None = None

    def __call__(self) -> None:
        held, done = threading.Event(), threading.Event()

        def hold() -> None:
            with self._lock:
                held.set()
                assert done.wait(PATIENCE)

        holder = Worker(hold)
        assert held.wait(PATIENCE)
        self._child = os.fork()
        if self._child:
            done.set()
            holder.outcome()

    def leave(self, code: int = 0) -> None:
        """End the child, which has come as far; *code*: not 0 where it should not have."""
        if self._child == 0:
            os._exit(code)

    @contextlib.contextmanager
    def child_ends(self) -> Iterator[None]:
        """Inside something forks; the child ends in time and in good order."""
        reader, writer = os.pipe()  # the end of file comes when the child ends, which holds it open, too
        try:
            yield
        except BaseException:
            if self._child == 0:
                os._exit(1)
            raise
        finally:
            os.close(writer)
            ended = bool(select.select([reader], [], [], LIMIT)[0])
            os.close(reader)
            assert self._child, "nobody has forked"
            if not ended:
                os.kill(self._child, signal.SIGKILL)
            status = os.waitpid(self._child, 0)[1]
        assert ended, "the child hangs"
        assert status == 0
