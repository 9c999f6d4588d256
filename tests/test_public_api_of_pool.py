"""The face of the package pool: its names, their signatures and docstrings, and how its objects show themselves."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import bbipc
import pool
from bbipc import SocketEvent
from tests.support.makers import PATIENCE

#: DESIGN.md, section 3, and what its methods give
NAMES = [
    "ConnectionServer",
    "FutureStream",
    "MessageClient",
    "MessageClientStats",
    "MessageServer",
    "MessageServerStats",
    "Monitor",
    "Monitoring",
    "PollerThread",
    "PoolStats",
    "Request",
    "ServerStats",
    "StopReport",
    "StreamFile",
    "WorkerPool",
    "send_quick",
]
CONNECT = "(self, host_address, port, *, local_host_address=None, local_port=0, timeout=None)"
SIGNATURES = {
    "PollerThread": "(poller=None, *, name=None)",
    "PollerThread.when": "(self, socket, events, *, timeout=None)",
    "PollerThread.monitor": "(self, socket, events, callback, *, on_close=None)",
    "PollerThread.call_later": "(self, delay, fn, *args)",
    "PollerThread.close": "(self, timeout=5.0)",
    "PollerThread.is_current": "(self)",
    "PollerThread.connect_ipv4": CONNECT,
    "PollerThread.connect_ipv6": CONNECT,
    "PollerThread.connect_local": "(self, path, *, timeout=None)",
    "PollerThread.accept": "(self, server, *, timeout=None)",
    "Monitor.cancel": "(self)",
    "Monitor.pause": "(self)",
    "Monitor.resume": "(self)",
    "Monitor.set_events": "(self, events)",
    "WorkerPool": (
        "(max_workers=None, *, poller_thread=None, executor=None, thread_name_prefix='', initializer=None, "
        "initargs=(), queue_limit=None, queue_timeout=None, spin=0.0)"
    ),
    "WorkerPool.submit": "(self, fn, /, *args, **kwargs)",
    "WorkerPool.when": "(self, socket, events, fn, *args, timeout=None)",
    "WorkerPool.monitor": "(self, socket, events, fn, *, on_close=None)",
    "WorkerPool.shutdown": "(self, wait=True, *, cancel_futures=False, timeout=None)",
    "WorkerPool.stats": "(self)",
    "FutureStream": "(stream, poller_thread, *, write_limit=65536)",
    "FutureStream.read": "(self, max_bytes=65536, *, timeout=None)",
    "FutureStream.read_exactly": "(self, n, *, timeout=None)",
    "FutureStream.read_until": "(self, separator, max_bytes=65536, *, timeout=None)",
    "FutureStream.write": "(self, buffer, *, timeout=None)",
    "FutureStream.flush": "(self, *, timeout=None)",
    "FutureStream.shutdown_write": "(self, *, timeout=None)",
    "FutureStream.close": "(self, flush=True, *, timeout=None)",
    "FutureStream.as_file": "(self, timeout=None)",
    "StreamFile.readinto": "(self, buffer, /)",
    "StreamFile.readall": "(self)",
    "StreamFile.read": "(self, size=-1, /)",
    "StreamFile.write": "(self, buffer, /)",
    "StreamFile.close": "(self)",
    "StreamFile.fileno": "(self)",
    "ConnectionServer": (
        "(server, handler, *, workers=None, max_connections=1024, per='connection', speaks_first=False, on_error=None)"
    ),
    "ConnectionServer.start": "(self)",
    "ConnectionServer.serve_forever": "(self, *, stop_timeout=10.0)",
    "ConnectionServer.stop": "(self, timeout=10.0)",
    "ConnectionServer.stats": "(self)",
    "MessageClient": (
        "(address, *, timeout=None, max_message_size=5242879, reconnect=True, max_in_flight=1024, "
        "accept_unsigned=False, spin=0.0, poller_thread=None)"
    ),
    "MessageClient.send": "(self, value, type=None, *, timeout=DEFAULT, no_response=False)",
    "MessageClient.submit": "(self, value, type=None, *, timeout=DEFAULT)",
    "MessageClient.close": "(self)",
    "MessageClient.stats": "(self)",
    "MessageServer": (
        "(server, handler, *, workers=None, on_error=None, on_close=None, max_message_size=5242879, "
        "max_connections=1024, max_in_flight=64, max_in_flight_total=1024, max_unsent=None, "
        "max_unverified=67108864, idle_timeout=None, header_timeout=10.0, "
        "body_timeout=5.0, min_body_rate=1024, stall_timeout=30.0, allowed_uids=None, "
        "accept_unsigned=False, stop_on_close=False)"
    ),
    "MessageServer.start": "(self)",
    "MessageServer.serve_forever": "(self, *, stop_timeout=10.0)",
    "MessageServer.stop": "(self, timeout=10.0)",
    "MessageServer.stats": "(self)",
    "Request": "(message, desk)",
    "Request.respond": "(self, value, type=None)",
    "send_quick": "(address, value, type=None, *, timeout=None)",
}
FIELDS = {
    "MessageClientStats": ["connected", "connections", "in_flight", "unsent", "late"],
    "MessageServerStats": [
        *["connections", "in_flight", "waiting", "unverified", "unsent", "paused"],
        *["accepted", "shed", "refused", "refused_uids"],
        *["requests", "replies", "dropped_replies", "dropped_requests", "handler_errors", "protocol_errors"],
        *["hook_errors", "too_large"],
        *["cut_for_header", "cut_for_body", "cut_for_idle", "cut_for_stall", "cut_for_memory", "cut_for_lingering"],
        *["held_for_connections", "held_for_requests", "held_for_replies", "held_for_memory"],
    ],
    "PoolStats": ["max_workers", "threads", "idle", "queued", "monitored"],
    "ServerStats": ["connections", "accepted", "shed", "refused", "handler_errors", "disconnected", "paused"],
    "StopReport": ["drained", "forced", "abandoned"],
}


def public_callables() -> dict[str, Callable[..., Any]]:
    """Every public method and property of ours of a public class, by its dotted name."""
    found: dict[str, Callable[..., Any]] = {}
    for name in NAMES:
        thing = getattr(pool, name, object)
        if inspect.isfunction(thing):
            found[name] = thing
        for kind in getattr(thing, "__mro__", ()):  # also of PollingLoop
            if kind.__module__.split(".")[0] == "pool":
                for own, member in vars(kind).items():
                    function = member.fget if isinstance(member, property) else member
                    hidden = (inspect.getdoc(function) or "").startswith("Not for users")
                    if not own.startswith("_") and inspect.isfunction(function) and not hidden:
                        found.setdefault(f"{name}.{own}", function)
    return found


def bare(signature: inspect.Signature) -> str:
    """Without the types."""
    parameters = [one.replace(annotation=inspect.Parameter.empty) for one in signature.parameters.values()]
    return str(signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty))


def test_all_is_the_documented_list() -> None:
    assert sorted(pool.__all__) == sorted(NAMES)
    assert len(pool.__all__) == len(set(pool.__all__))


def test_a_star_import_gives_exactly_these_names() -> None:
    space: dict[str, object] = {}
    exec("from pool import *", space)
    assert sorted(set(space) - {"__builtins__"}) == sorted(NAMES)


def test_what_is_imported_at_its_first_use_is_what_type_checkers_are_told() -> None:
    tree = ast.parse(Path(pool.__file__).read_text())
    told = {
        alias.name: node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    del told["import_module"]
    assert sorted(told) == sorted(NAMES)
    for name in NAMES:
        assert getattr(pool, name) is getattr(importlib.import_module(str(told[name])), name)
        assert name in dir(pool)
    with pytest.raises(AttributeError, match="module 'pool' has no attribute 'Nonsense'"):
        getattr(pool, "Nonsense")  # noqa: B009 # a checker knows that it has none


def test_the_package_itself_imports_nothing() -> None:
    """So that the command line comes to its first line, which sees to Ctrl-C."""
    program = (
        "import sys; before = set(sys.modules); import pool.cli.entry;"
        "print(*sorted(set(sys.modules) - before)); dir(pool); print('bbipc' in sys.modules);"
        "pool.StopReport; print('bbipc' in sys.modules, 'StopReport' in vars(pool))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.stderr) == ("pool pool.cli pool.cli.entry\nFalse\nTrue True\n", "")


def test_nothing_else_leaks_but_the_modules_of_the_package() -> None:
    others = {name: getattr(pool, name) for name in dir(pool) if not name.startswith("_") and name not in NAMES}
    for name, thing in others.items():
        assert isinstance(thing, ModuleType), name
        assert thing.__name__ == f"pool.{name}"


def test_the_package_tells_type_checkers_that_it_is_typed() -> None:
    assert (Path(pool.__file__).parent / "py.typed").is_file()


@pytest.mark.parametrize("name", [module.name for module in pkgutil.walk_packages(pool.__path__, "pool.")])
def test_every_module_has_a_docstring(name: str) -> None:
    assert importlib.import_module(name).__doc__


def test_importing_the_package_starts_nothing_opens_nothing_and_says_nothing() -> None:
    program = (
        "import os, threading; before = os.listdir('/proc/self/fd'); import pool;"
        "assert os.listdir('/proc/self/fd') == before; assert threading.active_count() == 1"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_making_one_of_each_starts_no_thread() -> None:
    """They start at first use."""
    program = (
        "import threading, bbipc, pool;"
        "poller_thread, workers = pool.PollerThread(), pool.WorkerPool();"
        "one, other = bbipc.local_stream_pair(); stream = pool.FutureStream(one, poller_thread);"
        "server = pool.ConnectionServer(bbipc.make_ipv4_tcp_server(bbipc.IPV4_LOOPBACK, 0), print);"
        "assert threading.active_count() == 1;"
        "server.stop(); stream.close(); other.close(); workers.shutdown(); poller_thread.close()"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", SIGNATURES)
def test_a_signature_is_the_documented_one(name: str) -> None:
    if "." in name:
        assert bare(inspect.signature(public_callables()[name])) == SIGNATURES[name]
    else:
        assert bare(inspect.signature(getattr(pool, name))) == SIGNATURES[name]


@pytest.mark.parametrize("name", FIELDS)
def test_a_report_has_its_documented_fields_each_told_in_its_docstring(name: str) -> None:
    kind = getattr(pool, name)
    assert list(inspect.signature(kind).parameters) == FIELDS[name]
    assert {field for field in FIELDS[name] if f"``{field}``" not in kind.__doc__} == set()


def test_a_worker_pool_is_an_executor() -> None:
    assert issubclass(pool.WorkerPool, Executor)


@pytest.mark.parametrize("name", NAMES)
def test_every_public_class_has_a_docstring_of_its_own(name: str) -> None:
    thing = getattr(pool, name)
    own = thing.__doc__ if inspect.isfunction(thing) else vars(thing).get("__doc__")
    assert own
    assert not own.startswith(f"{name}(")  # not the one that a dataclass makes up


@pytest.mark.parametrize("name", public_callables())
def test_every_public_method_is_documented_and_annotated(name: str) -> None:
    function = public_callables()[name]
    assert (inspect.getdoc(function) or "").strip()
    assert (set(inspect.signature(function).parameters) - {"self"}) | {"return"} <= set(function.__annotations__)
    # P.args and P.kwargs are types of the caller's function; Any would be the end of checking.
    assert not [note for note in function.__annotations__.values() if re.search(r"\bAny\b", str(note))]


@pytest.mark.parametrize("name", NAMES)
def test_every_timeout_and_delay_says_that_it_is_in_seconds(name: str) -> None:
    kind = getattr(pool, name)
    told = inspect.getdoc(kind) or ""
    timed = [
        function
        for dotted, function in public_callables().items()
        if dotted.startswith(f"{name}.") and {"timeout", "delay"} & set(inspect.signature(function).parameters)
    ]
    for function in timed:
        doc = inspect.getdoc(function) or ""
        assert "second" in doc + told or ":meth:`connect_ipv4`" in doc, function.__qualname__


def test_every_exception_that_a_docstring_promises_exists() -> None:
    others = vars(importlib.import_module("builtins")) | vars(importlib.import_module("concurrent.futures.thread"))
    for name, function in public_callables().items():
        for promised in re.findall(r":raises ([\w., ]+):", inspect.getdoc(function) or ""):
            for each in promised.split(", "):
                found = getattr(bbipc, each, None) or others.get(each)
                assert inspect.isclass(found), f"{name} promises {each}"
                assert issubclass(found, BaseException)


@pytest.fixture(name="poller_thread")
def a_poller_thread() -> Iterator[pool.PollerThread]:
    with pool.PollerThread(name="one") as poller_thread:
        yield poller_thread


def test_a_poller_thread_shows_its_name_and_what_it_waits_for(poller_thread: pool.PollerThread) -> None:
    assert repr(poller_thread) == "<PollerThread 'one' 0 sockets, 0 timers>"
    one, other = bbipc.local_stream_pair()
    with one, other:
        waiting = poller_thread.when(one, SocketEvent.DATA_AVAILABLE, timeout=PATIENCE)
        assert repr(poller_thread) == "<PollerThread 'one' 1 sockets, 1 timers>"
        monitor = poller_thread.monitor(other, SocketEvent.DATA_AVAILABLE, print)
        assert repr(monitor) == f"<Monitor active of {other!r}>"
        monitor.pause()
        assert repr(monitor) == f"<Monitor paused of {other!r}>"
        monitor.cancel()
        assert repr(monitor) == f"<Monitor ended of {other!r}>"
        assert waiting.cancel()
    poller_thread.close()
    assert repr(poller_thread) == "<PollerThread 'one' closed>"


def test_a_future_stream_shows_its_stream_and_what_waits(poller_thread: pool.PollerThread) -> None:
    one, other = bbipc.local_stream_pair()
    with other:
        stream = pool.FutureStream(one, poller_thread)
        reading = stream.read()
        assert repr(stream) == f"<FutureStream of {one!r} 1 reads waiting, 0 bytes to send>"
        assert repr(stream.as_file()) == f"<StreamFile of {stream!r}>"
        assert reading.cancel()
        stream.close().result(PATIENCE)
        assert "<LocalStream closed>" in repr(stream)


def test_a_worker_pool_shows_its_name_and_its_threads() -> None:
    with pool.WorkerPool(3, thread_name_prefix="one") as workers:
        assert repr(workers) == "<WorkerPool 'one' 0 of 3 threads>"
        workers.submit(int).result(PATIENCE)
        assert repr(workers) == "<WorkerPool 'one' 1 of 3 threads>"
    assert repr(workers) == "<WorkerPool 'one' shut down>"


def test_a_server_shows_where_it_listens_and_whether_it_serves() -> None:
    listening = bbipc.make_ipv4_tcp_server(bbipc.IPV4_LOOPBACK, 0)
    server = pool.ConnectionServer(listening, print)
    assert repr(server) == f"<ConnectionServer not started, 0 connections, at ({listening!r},)>"
    with server:
        assert repr(server) == f"<ConnectionServer serving, 0 connections, at ({listening!r},)>"
    assert repr(server) == f"<ConnectionServer stopped, 0 connections, at ({listening!r},)>"


RACE = """
import importlib, sys, threading
names = sys.argv[1:]
start, failed = threading.Barrier(len(names)), []
def use(name):
    start.wait()
    try:
        exec(name)
    except BaseException as error:
        failed.append(f"{name}: {error!r}")
threads = [threading.Thread(target=use, args=(name,)) for name in names]
for thread in threads: thread.start()
for thread in threads: thread.join()
sys.exit("; ".join(failed) or 0)
"""


def test_names_may_be_used_first_by_several_threads_at_once() -> None:
    """6 fresh interpreters of 18 threads; without a first import of the whole of bbipc all of them failed."""
    uses = [f"from pool import {name}" for name in pool.__all__]
    for _ in range(6):
        done = run_fresh(RACE, *uses, "import bbipc", "from bbipc.messages import MessageStream")
        assert (done.returncode, done.stderr) == (0, "")


ORDER = """
import builtins, sys
names, really_import = sys.argv[1:], builtins.__import__
def find_early(name, globals=None, locals=None, fromlist=(), level=0):
    for package in ("bbipc", "bbipc.messages"):
        if name.startswith(package + ".") and package not in sys.modules:
            sys.exit(f"{name} before {package}")
    return really_import(name, globals, locals, fromlist, level)
builtins.__import__ = find_early
for name in names:
    for module in [module for module in sys.modules if module.split(".")[0] in ("bbipc", "pool")]:
        del sys.modules[module]
    exec(f"from pool import {name}")
"""


def test_a_first_use_imports_no_module_of_a_package_before_the_package() -> None:
    """The race above, without the luck: two threads that do so wait for each other, in one of some hundred runs."""
    done = run_fresh(ORDER, *pool.__all__)
    assert (done.returncode, done.stderr) == (0, "")


def run_fresh(program: str, *args: str) -> subprocess.CompletedProcess[str]:
    """*program* in an interpreter of its own."""
    return subprocess.run(
        [sys.executable, "-c", program, *args], capture_output=True, text=True, timeout=60, check=False
    )
