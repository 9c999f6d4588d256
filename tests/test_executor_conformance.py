"""CPython's own tests of executors, run against WorkerPool.

They come from the interpreter's ``test`` package (``test.test_concurrent_futures``; one module up to 3.11, a package
since), where it is installed: distributors often leave it out.  The classes for ThreadPoolExecutor are taken as they
are, with ``executor_type`` set to WorkerPool, and ``concurrent.futures.ThreadPoolExecutor`` replaced by it for the
cases that name it.  What cannot be run so is in EXCLUDED with its reason; where it is for a name only, an equivalent
with our name stands below, and runs on every interpreter.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import multiprocessing
import os
import subprocess
import sys
import textwrap
import threading
import time
import unittest
import weakref
from concurrent import futures
from types import ModuleType
from typing import Any
from unittest import mock

import pytest

from pool.worker_pool import WorkerPool
from tests.support.makers import PATIENCE
from tests.support.serving import until

pytestmark = pytest.mark.filterwarnings(r"ignore:.*use of fork\(\) may lead to deadlocks:DeprecationWarning")

#: name of the case -> why it is not run, and what is run for it
EXCLUDED = {
    "test_interpreter_shutdown": "its script imports the executor from concurrent.futures: test_work_is_done_at_exit",
    "test_submit_after_interpreter_shutdown": "the same: test_submit_from_atexit_is_refused",
    "test_hang_gh83386": "the same: test_shutdown_without_wait_and_exit",
    "test_cancel_futures_wait_false": "the same: test_cancel_without_wait_and_exit",
    "test_thread_names_default": "wants the name ThreadPoolExecutor-N_M: test_default_names_of_threads",
    "test_map_timeout": "sleeps for 6 s (up to 3.13): test_map_times_out, at a tenth",
}
if sys.version_info < (3, 12):
    EXCLUDED["test_timeout"] = "sleeps for 6 s: test_wait_times_out, at a tenth"
if not getattr(sys, "_is_gil_enabled", lambda: True)():
    # Who lets go last of an object that another thread has made leaves the rest to that thread; one that sleeps does it
    # when it wakes, or the collector in its place.  Seen with ThreadPoolExecutor as well (3.14: 1 of 8,000).
    EXCLUDED["test_free_reference"] = "looks for 30 s at what only a collection frees: test_map_keeps_no_result"

#: where the classes are since 3.12, and their names, which are the same before
CASES = {
    "test_thread_pool": ["ThreadPoolExecutorTest"],
    "test_wait": ["ThreadPoolWaitTests"],
    "test_as_completed": ["ThreadPoolAsCompletedTest"],
    "test_shutdown": ["ThreadPoolShutdownTest"],
    "test_init": ["ThreadPoolInitializerTest", "ThreadPoolFailingInitializerTest"],
}


class CheckedPool(WorkerPool):
    """With what the tests of the initializer look at besides the interface."""

    @property
    def _broken(self) -> bool:
        try:
            self._crew.check()
        except futures.BrokenExecutor:
            return True
        return False


class OurNames:
    """Before all other bases: whatever a case calls ThreadPoolExecutor is ours."""

    executor_type = CheckedPool

    def setUp(self) -> None:
        replaced = mock.patch.object(futures, "ThreadPoolExecutor", CheckedPool)
        replaced.start()
        self.addCleanup(replaced.stop)  # type: ignore[attr-defined]
        super().setUp()  # type: ignore[misc]


class OurLogger(OurNames):
    """For the failing initializer: it is logged by us, under our name."""

    def _assert_logged(self, message: str) -> Any:
        return self.assertLogs("pool.crew", "CRITICAL")  # type: ignore[attr-defined]


def find_module(name: str) -> ModuleType:
    """CPython's module that has the cases of *name*.

    :raises ImportError: the ``test`` package is not installed, or without these tests
    """
    whole = importlib.import_module("test.test_concurrent_futures")
    if hasattr(whole, "__path__"):
        return importlib.import_module(f"test.test_concurrent_futures.{name}")
    return whole


def our_version(cases: type[unittest.TestCase]) -> type[unittest.TestCase]:
    """*cases* with WorkerPool, and without those that are excluded."""
    first = OurLogger if "FailingInitializer" in cases.__name__ else OurNames
    excluded: dict[str, Any] = dict.fromkeys(EXCLUDED)
    return type(cases.__name__.replace("ThreadPool", "WorkerPool"), (first, cases), excluded | {"__module__": __name__})


try:
    FOUND = {name: getattr(find_module(file), name) for file, names in CASES.items() for name in names}
except (ImportError, unittest.SkipTest) as error:
    MISSING: str | None = f"CPython's own tests are not installed beside {sys.executable}: {error}"
else:
    MISSING = None
    globals().update({made.__name__: made for made in map(our_version, FOUND.values())})


@pytest.fixture(scope="module", autouse=True)
def lasting_helpers() -> None:
    """What multiprocessing starts once and keeps, before anything is counted."""
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()


def test_the_cases_of_cpython_are_there() -> None:
    """Skipped where they are not; and a case whose name has changed must not slip out unseen."""
    if MISSING is not None:
        pytest.skip(MISSING)
    names_of = unittest.defaultTestLoader.getTestCaseNames
    collected = {case for cases in FOUND.values() for case in names_of(our_version(cases))}
    assert len(collected) > 30
    assert not collected & set(EXCLUDED)
    everything = {case for cases in FOUND.values() for case in names_of(cases)}
    assert everything - collected == set(EXCLUDED) & everything


def test_it_is_an_executor() -> None:
    assert issubclass(WorkerPool, futures.Executor)


# The equivalents.


class Thing:
    """Something that can be referred to weakly."""


def test_map_keeps_no_result() -> None:
    with WorkerPool(4) as pool:
        for made in pool.map(lambda _: Thing(), range(10)):
            kept = weakref.ref(made)
            del made
            until(lambda kept=kept: gc.collect() >= 0 and kept() is None)  # type: ignore[misc]


def run_script(text: str) -> tuple[int, str, str]:
    """What a script of its own process comes to: code, stdout, stderr."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(text)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return done.returncode, done.stdout.strip(), done.stderr


SAY = """
import time
from pool.worker_pool import WorkerPool

def sleep_and_print(seconds, text):
    time.sleep(seconds)
    print(text, flush=True)
"""


def test_work_is_done_at_exit() -> None:
    assert run_script(SAY + "t = WorkerPool(5); t.submit(sleep_and_print, 1.0, 'apple')") == (0, "apple", "")


def test_submit_from_atexit_is_refused() -> None:
    script = """
    import atexit

    @atexit.register
    def run_last():
        try:
            t.submit(id, None)
        except RuntimeError:
            print("runtime-error")
            raise

    from pool.worker_pool import WorkerPool
    t = WorkerPool(5)
    """
    code, out, err = run_script(script)
    assert (code, out) == (0, "runtime-error")
    assert "RuntimeError: cannot schedule new futures" in err


def test_shutdown_without_wait_and_exit() -> None:
    script = SAY + "t = WorkerPool(3); t.submit(sleep_and_print, 1.0, 'apple'); t.shutdown(wait=False)"
    assert run_script(script) == (0, "apple", "")


def test_cancel_without_wait_and_exit() -> None:
    script = SAY + "t = WorkerPool(); t.submit(sleep_and_print, 0.1, 'apple'); t.shutdown(False, cancel_futures=True)"
    code, out, err = run_script(script)
    assert (code, err) == (0, "")
    assert out in {"apple", ""}


def test_default_names_of_threads() -> None:
    pool = WorkerPool(5)
    pool.map(abs, range(-5, 5))
    threads = tuple(pool._threads)
    del pool
    for thread in threads:
        prefix, _, number = thread.name.rpartition("_")
        assert prefix.startswith("WorkerPool-")
        assert 0 <= int(number) < 5
        thread.join(PATIENCE)


def test_map_times_out() -> None:
    held = threading.Event()
    with WorkerPool(5) as pool:
        results = pool.map(lambda event: event.wait(PATIENCE) if event else None, [None, None, held], timeout=0.5)
        assert [next(results), next(results)] == [None, None]
        started = time.monotonic()
        with pytest.raises(TimeoutError):
            next(results)
        assert time.monotonic() - started < 2
        held.set()


def test_wait_times_out() -> None:
    held = threading.Event()
    with WorkerPool(5) as pool:
        quick, slow = pool.submit(bool), pool.submit(held.wait, PATIENCE)
        assert futures.wait([quick, slow], timeout=0.3) == ({quick}, {slow})
        held.set()


@pytest.mark.skipif(not hasattr(os, "process_cpu_count"), reason="new in 3.13")
def test_as_many_workers_as_a_thread_pool_executor_takes() -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        with futures.ThreadPoolExecutor() as theirs, WorkerPool() as ours:
            assert ours.stats().max_workers == theirs._max_workers
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system has no fork")
def test_a_worker_may_fork_a_process() -> None:
    """bpo-43944: the child of a worker ends, and is not held by threads that it does not have."""

    def run_child() -> int | None:
        child = multiprocessing.get_context("fork").Process(target=lambda: None)
        child.start()
        child.join(PATIENCE)
        return child.exitcode

    with WorkerPool(1) as pool:
        assert pool.submit(run_child).result(PATIENCE) == 0
