"""Polling loops under test: sockets for them, the next turn of the thread, what is left when all is over."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

import bbipc
from pool.polling_loop import PollingLoop
from tests.support.makers import PATIENCE

T = TypeVar("T")


@contextlib.contextmanager
def pair() -> Iterator[tuple[bbipc.LocalStream, bbipc.LocalStream]]:
    """Two connected streams."""
    one, other = bbipc.local_stream_pair()
    with one, other:
        yield one, other


@contextlib.contextmanager
def pairs(count: int) -> Iterator[list[tuple[bbipc.LocalStream, bbipc.LocalStream]]]:
    """*count* of them."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(pair()) for _ in range(count)]


def on_thread(loop: PollingLoop, fn: Callable[[], T]) -> T:
    """What *fn* comes to on the poller thread."""
    return loop.call_later(0, fn).result(PATIENCE)


def dealt_out(loop: PollingLoop) -> None:
    """Return when all that is true by now was told.

    A timer runs at the end of a turn; the turn of the first may have begun to wait before this call, the turn of the
    second has not.
    """
    for _ in range(2):
        on_thread(loop, lambda: None)


def left(loop: PollingLoop) -> tuple[tuple[bbipc.Socket, ...], int, int, int]:
    """What is registered: sockets in the poller, in the table, in its short cut; timers."""
    assert loop._poller is not None
    return loop._poller.monitored_sockets(), len(loop._interests), len(loop._interests.direct), len(loop._timers)


NOTHING: tuple[tuple[bbipc.Socket, ...], int, int, int] = ((), 0, 0, 0)


class Broken(logging.Handler):
    """A logging handler that raises, as one does whose file is closed."""

    def emit(self, record: logging.LogRecord) -> None:
        raise ValueError("the log is broken")


@contextlib.contextmanager
def handler_added(handler: logging.Handler, name: str = "pool") -> Iterator[None]:
    """*handler* hears of what is logged under *name*."""
    logger = logging.getLogger(name)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
