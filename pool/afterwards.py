"""Afterwards: what was decided while nobody else could come in, to be done when they can again.

Law of this file: it knows nothing of sockets or futures.  One thread fills a list and works it off.  Every entry is
done, whatever another one raises: a future that was claimed and never settled would hang its owner for ever.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import InvalidStateError
from functools import partial


class Afterwards:
    """A list of calls."""

    __slots__ = ("_calls",)

    def __init__(self) -> None:
        self._calls: deque[Callable[[], object]] = deque()

    def add(self, fn: Callable[..., object], *args: object) -> None:
        """Call ``fn(*args)`` afterwards."""
        self._calls.append(partial(fn, *args))

    def do(self) -> None:
        """Make the calls, in their order.  What one of them raises is raised when all are made."""
        if self._calls:
            try:
                self._work_off()
            except BaseException:  # Ctrl-C between two of them
                self._work_off()
                raise

    def _work_off(self) -> None:
        raised: BaseException | None = None
        while self._calls:
            try:
                self._calls[0]()
            except InvalidStateError:  # made already: a Ctrl-C came before it was crossed off
                pass
            except BaseException as error:  # noqa: BLE001 # a future's callback; the others are to be settled all the same
                raised = raised or error
            self._calls.popleft()
        if raised is not None:
            try:
                raise raised
            finally:
                raised = None  # its traceback holds this frame
