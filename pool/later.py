"""Later: what is to be run on a poller thread, when it has looked at its sockets once more.

Law of this file: any thread may add; there is one timer for all.
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from typing import Protocol

from bbipc.errors import PollerClosedError
from pool import reports
from pool.polling_loop import PollingLoop

logger = logging.getLogger(__name__)


class Job(Protocol):
    """Something to run."""

    def run(self) -> object:
        """Do it."""


class Later:
    """What is to be run on the poller thread, behind everything that is ready there."""

    def __init__(self, loop: PollingLoop) -> None:
        self._loop = loop
        self._waiting: deque[Job] = deque()
        self._resting = [None]  # taken by who starts the timer

    def call(self, job: Job) -> None:
        """Run *job* soon.  Any thread."""
        self._waiting.append(job)
        self._start()

    def _start(self) -> None:
        try:
            self._resting.pop()
        except IndexError:
            return
        try:
            with contextlib.suppress(PollerClosedError):  # the server ends
                self._loop.call_later(0, self._run)
        except BaseException:  # a Ctrl-C, or no memory: the next one starts it
            self._resting.append(None)
            raise

    def _run(self) -> None:
        self._resting.append(None)
        for _ in range(len(self._waiting)):
            job = self._waiting.popleft()
            try:
                job.run()
            except BaseException as error:  # noqa: BLE001 # told, and the others run
                reports.failure(logger, 1, job.run, "the poller thread", error)
