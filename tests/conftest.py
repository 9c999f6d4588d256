"""What every test is held to: it leaves no thread, no descriptor and no warning behind."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sysconfig
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import bbipc
from tests.support.alarm import Interrupt
from tests.support.makers import NAMESPACES, Namespace, make_namespace

#: There a collection looks at all objects whatever was frozen: 15 to 20 ms a test, 90 s of two processors a suite.
COLLECTIONS_ARE_DEAR = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))


def open_descriptors() -> dict[str, str]:
    """Number -> what is open under it."""
    found = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            found[number] = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:  # the listing's own
            continue
    return found


def has_children() -> bool:
    """Whether there is a child that was not waited for."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


@pytest.fixture(scope="session", autouse=True)
def tombstone() -> None:
    """Open what the library opens once and keeps, before anything is counted.

    And let the collector leave alone what is there already (some 8,000 tests with their parameters), and what every
    test leaves for good: a collection behind each test then costs 1 ms in place of 40.
    """
    for stream in bbipc.local_stream_pair():
        stream.close()
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def no_leaks(tombstone: None) -> Iterator[None]:
    """Fails a test that leaks a thread, a child or a descriptor; a ResourceWarning in the garbage is an error, too."""
    threads = set(threading.enumerate())
    before = open_descriptors()
    yield
    # Garbage that warns of itself has a descriptor, a thread or a child: without one more of them there is none.
    more = has_children() or open_descriptors() != before or set(threading.enumerate()) != threads
    if more or not COLLECTIONS_ARE_DEAR:
        gc.collect()
        gc.freeze()  # what is there now stays (modules, parameters, trees): the next collection need not look at it
    left = set(threading.enumerate()) - threads
    for thread in left:  # one that is just ending is no leak
        thread.join(5)
    assert not [thread for thread in left if thread.is_alive()], "threads leaked"
    after = open_descriptors()
    leaked = {number: name for number, name in after.items() if before.get(number) != name}
    assert not leaked, f"descriptors leaked: {leaked}"


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """An own directory whose name is short enough for the path of a local socket."""
    path = Path(tempfile.mkdtemp(prefix="bbipc-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(params=NAMESPACES)
def namespace(request: pytest.FixtureRequest, short_dir: Path) -> Namespace:
    """ipv4, ipv6 and local, one after the other."""
    return make_namespace(request.param, short_dir)


@pytest.fixture(params=bbipc.available_backends())
def backend(request: pytest.FixtureRequest) -> str:
    """Every poller backend of this system."""
    return str(request.param)


@pytest.fixture
def interrupts() -> Iterator[None]:
    """A SIGALRM raises Interrupt."""

    def ring(number: int, frame: object) -> None:
        raise Interrupt

    before = signal.signal(signal.SIGALRM, ring)
    yield
    signal.signal(signal.SIGALRM, before)
