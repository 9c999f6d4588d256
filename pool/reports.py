"""Reports: what user code did wrong on one of our threads, told to the log.

Law of this file: nothing here ever raises.  A log may fail, too (a handler of the user's, a closed stderr), and what
is reported here is told in the middle of work that others wait for.
"""

from __future__ import annotations

import contextlib
import logging
import threading

# Who has set up no logging has not asked for lines on stderr.
logging.getLogger("pool").addHandler(logging.NullHandler())


def failure(logger: logging.Logger, count: int, what: object, where: str, error: BaseException) -> None:
    """*what* has raised *error* for the *count*th time.

    The 1st, 10th, 100th … is told: something that fails at every event must not flood the log.
    """
    if count == 10 ** (len(str(count)) - 1):
        _tell(logger, logging.ERROR, "%r failed on %s (%d times)", (what, where, count), error)


def slowness(logger: logging.Logger, what: object, where: str, seconds: float, *, one_of: bool = False) -> None:
    """*what*, or one of them, kept others waiting for *seconds*."""
    text = f"{'one of ' if one_of else ''}%r kept %s from its work for %.0f ms"
    _tell(logger, logging.WARNING, text, (what, where, seconds * 1e3), None)


def _tell(logger: logging.Logger, level: int, text: str, args: tuple[object, ...], error: BaseException | None) -> None:
    try:
        logger.log(level, text, *args, exc_info=error)
    except BaseException as problem:  # noqa: BLE001 # told to whom it is left to be told
        thread = threading.current_thread()
        with contextlib.suppress(BaseException):
            threading.excepthook(threading.ExceptHookArgs((type(problem), problem, problem.__traceback__, thread)))
