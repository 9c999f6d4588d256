"""Where the command ``bbipc`` begins: a Ctrl-C ends it silently from here on, before it can do so as it should.

Law of this file: nothing is imported before SIGINT is seen to but what the interpreter has anyway, and nothing raises
once the exit code is known.  In between, ``main.py`` sees to everything.
"""

import os

_INTERRUPTED = 130  # as in exits.py


def run() -> int:
    """Run the command line of this program; its exit code.  Main thread only."""
    try:
        # Imported now: that takes a while, in which a Ctrl-C would end with a traceback.
        import signal  # noqa: PLC0415

        signal.signal(signal.SIGINT, _end)
        from pool.cli.main import main  # noqa: PLC0415

        code = main()
        signal.signal(signal.SIGINT, _end)  # all is closed, and the interpreter's end has no use for a Ctrl-C
    except KeyboardInterrupt:
        os._exit(_INTERRUPTED)
    return code


def _end(*_: object) -> None:
    os._exit(_INTERRUPTED)
