"""A server in a process of its own: started, found, measured from outside, ended.

Law of this file: it knows the standard library only, and no server in particular.

``python -m MODULE … NAME ADDRESS`` is a server.  ADDRESS is a path, or "tcp": then the system gives the port.  It
prints its port when it listens (0 for a path), and ends with its stdin: whatever becomes of the parent, no child is
left.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

if sys.platform != "win32":
    import fcntl
    import resource

#: where to connect: a path, or a host and a port
Where = str | tuple[str, int]

ROOT: Final = Path(__file__).resolve().parent.parent
#: descriptors that a process needs for itself
_OWN_FILES: Final = 100


# In the child.


def announce(port: int) -> None:
    """The server listens."""
    print(port, flush=True)


def serve(servers: Mapping[str, Callable[[str], None]]) -> None:
    """The whole of a child: be the server that the command line names."""
    # glibc maps a large block from the kernel, and gives it back, at each use, until the first such block was freed.
    # asyncio reads into a fresh 256 KiB each time: 23 us a request in the place of 6, or not, as the imports fall.
    bytes(4 << 20)
    _end_with_stdin()
    name, address = sys.argv[-2:]
    servers[name](address)


def _end_with_stdin() -> None:
    """When the parent is gone, or wants an end, so it be.  Nothing here is worth an orderly one."""
    if sys.platform != "linux":
        threading.Thread(target=_wait_for_end, daemon=True).start()
        return
    # No thread: in a process that has two, the kernel counts references in each call on a descriptor, 0.12 us a
    # request, and a server that has one thread is to be measured as that.  The default action of SIGIO is to end.
    fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([0], [], [], 0)[0]:  # it was gone before
        os._exit(0)


def _wait_for_end() -> None:
    while os.read(0, 1):
        pass
    os._exit(0)


# In the parent.


@contextlib.contextmanager
def running(module: str, *words: str) -> Iterator[tuple[int, Where]]:
    """The server that the *words*, of which the last is its address, tell *module* to be, in a child process.

    (Its process, where to connect).
    """
    address = words[-1]
    command = [sys.executable, "-m", module, *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            line = child.stdout.readline()
            if not line:
                raise RuntimeError(f"the server {words[-2]!r} of {module} did not start")
            yield child.pid, address if "/" in address else ("127.0.0.1", int(line))
        finally:
            child.stdin.close()
            child.wait(10)
            if "/" in address:
                Path(address).unlink(missing_ok=True)


def processor_time(process: int) -> float:
    """Seconds that a process has computed so far; only Linux has a clock for this."""
    return time.clock_gettime((~process << 3) | 2) if sys.platform == "linux" else 0.0


def resident_bytes(process: int) -> int:
    """Memory of a process that is really there.  Linux only."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def room_for_files(wanted: int) -> int:
    """*wanted* descriptors besides the process's own, or as many as may be had.

    Raises the soft limit of this process as far as is needed and allowed; children that are started later inherit it.
    """
    if sys.platform == "win32":
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = wanted + _OWN_FILES
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return limit - _OWN_FILES


def note(text: str) -> None:
    """To whoever watches: what is left out, or smaller than asked for."""
    print(f"  {text}", file=sys.stderr, flush=True)
