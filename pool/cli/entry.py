"""Where the command ``bbipc`` begins: a Ctrl-C ends it silently from here on, before it can do so as it should.

Law of this file: nothing is imported before SIGINT is seen to but what the interpreter has anyway, and no signal raises
once the exit code is known.  In between, ``main.py`` sees to everything.
"""

import os

_INTERRUPTED = 2  # SIGINT: its number before there is a module that knows it


def run() -> int:
    """Run the command line of this program; its exit code.  Main thread only."""
    try:
        # Imported now: that takes a while, in which a Ctrl-C would end with a traceback.
        import signal  # noqa: PLC0415

        signal.signal(signal.SIGINT, _end)
        from pool.cli.main import caught_signals, main  # noqa: PLC0415

        code = main()
        for number in caught_signals():  # all is closed, and the interpreter's end has no use for them
            signal.signal(number, _end)
    except KeyboardInterrupt as error:
        os._exit(128 + getattr(error, "number", _INTERRUPTED))
    return code


def _end(number: int, _frame: object = None) -> None:
    os._exit(128 + number)
