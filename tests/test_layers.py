"""The architecture, read off the source: who may import whom, and how long things may get."""

from __future__ import annotations

import ast
import functools
import sys
from pathlib import Path

import pytest

import bbipc
import pool

ROOTS = [Path(file).resolve().parent for file in (bbipc.__file__, pool.__file__)]
MODULES = {
    ".".join((root.name, *path.relative_to(root).with_suffix("").parts)).removesuffix(".__init__"): path
    for root in ROOTS
    for path in sorted(root.rglob("*.py"))
}
OF_BBIPC = [name for name in MODULES if name.split(".")[0] == "bbipc"]
OF_CLI = [name for name in MODULES if name == "pool.__main__" or f"{name}.".startswith("pool.cli.")]
OF_POOL = [name for name in MODULES if name.split(".")[0] == "pool" and name not in OF_CLI]
PACKAGES = {name for name, path in MODULES.items() if path.name == "__init__.py"}
MAX_LINES = 400
MAX_FUNCTION_LINES = 30
SHORT_FUNCTIONS = 0.9

#: each may import those of the layers before it, and nothing beside or behind itself
LAYERS: list[set[str]] = [
    {"bbipc.errors"},
    {"bbipc.events"},
    {"bbipc.readiness"},
    {"bbipc.sockets"},
    {"bbipc.polling"},
    {"bbipc.messages"},
    {"bbipc"},
    {"pool"},
    {"pool.cli"},
    {"pool.__main__"},
]
SOCKET_LAYERS: list[set[str]] = [
    {"locks"},
    {"fork", "handle", "buffers", "addresses"},
    {"paths"},
    {"base"},
    {"connection"},
    {"stream"},
    {"server"},
    {"tcp", "local", "spare"},
    {"adopt", "endpoint"},
]
POLLING_LAYERS: list[set[str]] = [
    {"waker", "deadline", "watch"},
    {"registry", "vigil", "wait"},
    {"poller"},
    {"epoll", "kqueue", "poll", "select", "signals"},
    {"make"},
]
MESSAGE_LAYERS: list[set[str]] = [
    {"message"},
    {"crc64"},
    {"frames"},
    {"stream"},
]
POOL_LAYERS: list[set[str]] = [
    # what knows nothing of the rest
    {"arguments"},
    {"afterwards", "futures", "interests", "lifecycle", "lookout", "message_limits", "reports", "requests", "seldom"},
    {"pace", "table", "timers", "told", "unverified"},
    {"message_output", "parties", "stopping", "stream_reads", "stream_writes", "tasks"},
    {"dispatch", "duty", "errands", "stations"},
    {"crew"},
    # who waits
    {"dialogue", "station_calls"},
    {"term"},
    {"leader", "polling_loop"},
    # what waits for one socket
    {"accepting", "borrowed", "later", "lingering", "socket_queue"},
    {"accept_queue", "closing", "connections", "server_face", "stream_half"},
    {"reading", "writing"},
    {"stream_file"},
    # what users hold
    {"future_stream"},
    {"poller_thread"},
    {"message_sweep", "worker_pool"},
    {"message_service", "server"},
    {"message_flow"},
    {"message_inbox"},
    {"message_connection"},
    {"message_serving"},
    {"message_callers", "message_runners"},
    {"message_server"},
    # a client's connection, and the client
    {"calls"},
    {"pending", "turn"},
    {"outgoing"},
    {"replies"},
    {"standby"},
    {"conversation"},
    {"connecting"},
    {"client"},
]
CLI_LAYERS: list[set[str]] = [
    {"exits", "tally", "text"},
    {"children", "fancy", "parser", "replies"},
    {"terminal"},
    {"exchange"},
    # processes that commands start
    {"bench_server", "demo_clients", "demo_server"},
    # the commands
    {"bench", "demo", "send", "serve"},
    {"main"},
    {"entry"},
]
INNER_LAYERS = {
    "bbipc.sockets": SOCKET_LAYERS,
    "bbipc.polling": POLLING_LAYERS,
    "bbipc.messages": MESSAGE_LAYERS,
    "pool": POOL_LAYERS,
    "pool.cli": CLI_LAYERS,
}
#: for a type checker only; nobody else may look back
LOOKS_BACK = {("pool.stream_file", "pool.future_stream")}
#: who has threads of his own: the poller thread's, the workers, the one that a server's end runs on
STARTERS = {"pool.crew", "pool.polling_loop", "pool.stopping"}


@functools.cache
def tree_of(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text(encoding="utf-8"), str(MODULES[name]))


def imports_of(name: str) -> set[str]:
    """The full names of all modules that *name* imports, wherever in it: at the head, in a function, for typing."""
    found = set()
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = name if name in PACKAGES else name.rpartition(".")[0]
            for _ in range(node.level - 1):
                package = package.rpartition(".")[0]
            origin = ".".join(part for part in (package if node.level else "", node.module or "") if part)
            for alias in node.names:  # "from bbipc.sockets import fork" imports a module
                found.add(f"{origin}.{alias.name}" if f"{origin}.{alias.name}" in MODULES else origin)
    return found


def uses_of(module: str, name: str) -> list[ast.Call]:
    """The calls in *name* that have *module* as an argument, or are of something in it."""
    calls = [node for node in ast.walk(tree_of(name)) if isinstance(node, ast.Call)]
    return [call for call in calls if any(isinstance(part, ast.Name) and part.id == module for part in ast.walk(call))]


def our_imports(name: str) -> set[str]:
    return {other for other in imports_of(name) if other.split(".")[0] in {"bbipc", "pool"}}


def layer_of(name: str) -> int:
    """Which of LAYERS *name* belongs to; what stands for the whole of bbipc comes behind its parts."""
    own = "pool" if name in OF_POOL else ".".join(name.split(".")[:2])
    ranks = [rank for rank, layer in enumerate(LAYERS) if own in layer]
    assert ranks, f"{name} is in no layer: draw it into DESIGN.md section 2 and into this test"
    return ranks[0]


def inside(package: str) -> list[str]:
    """The modules of *package*, without those that are a layer of their own."""
    return [name for name in MODULES if name.rpartition(".")[0] == package and (package != "pool" or name in OF_POOL)]


def inner_layer_of(name: str) -> int:
    package, _, own = name.rpartition(".")
    ranks = [rank for rank, layer in enumerate(INNER_LAYERS[package]) if own in layer]
    assert ranks, f"{name} is in no layer of {package}: draw it into this test"
    return ranks[0]


def test_the_walk_sees_both_packages_and_their_imports() -> None:
    """Against a walk that finds nothing, of which everything is true."""
    assert {"bbipc", "bbipc.errors", "bbipc.sockets.handle", "bbipc.polling.wait"} <= set(OF_BBIPC)
    assert {"pool", "pool.crew", "pool.polling_loop", "pool.server"} <= set(OF_POOL)
    assert "bbipc.polling.poller" in imports_of("pool.polling_loop")
    assert "pool.lifecycle" in imports_of("pool.crew")  # a module that is imported by its name
    assert "bbipc.sockets.handle" in imports_of("bbipc.polling.wait")
    assert "bbipc.sockets.fork" in imports_of("bbipc.sockets.base")
    assert "fcntl" in imports_of("bbipc.sockets.handle")  # an import inside an "if"


@pytest.mark.parametrize("name", MODULES)
def test_imports_run_one_way_through_the_layers(name: str) -> None:
    for other in our_imports(name):
        if layer_of(other) == layer_of(name) and name != "bbipc":
            continue  # inside of one layer: see below
        assert layer_of(other) < layer_of(name), f"{name} imports {other}"


@pytest.mark.parametrize("package", INNER_LAYERS)
def test_imports_inside_a_layer_run_one_way_too(package: str) -> None:
    inner = inside(package)
    assert inner
    for name in inner:
        for other in our_imports(name):
            if other in inner and (name, other) not in LOOKS_BACK:
                assert inner_layer_of(other) < inner_layer_of(name), f"{name} imports {other}"
            assert other != package, f"{name} imports its own package"


@pytest.mark.parametrize("name", [name for name in INNER_LAYERS if name not in {"pool", "bbipc.messages"}])
def test_a_package_on_the_way_imports_nothing(name: str) -> None:
    assert imports_of(name) == set()


def test_the_layers_of_this_test_name_no_module_that_has_gone() -> None:
    for package, layers in INNER_LAYERS.items():
        for layer in layers:
            assert {f"{package}.{own}" for own in layer} <= set(MODULES)


def test_the_layers_of_this_test_name_every_module_once() -> None:
    for package, layers in INNER_LAYERS.items():
        named = [own for layer in layers for own in layer]
        assert len(named) == len(set(named))
        assert set(inside(package)) == {f"{package}.{own}" for own in named}


@pytest.mark.parametrize("name", OF_BBIPC)
def test_nothing_in_bbipc_knows_the_pool(name: str) -> None:
    assert not [other for other in imports_of(name) if other.split(".")[0] == "pool"]
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.Name):
            assert node.id != "__import__"
    assert "importlib" not in {other.split(".")[0] for other in imports_of(name)}


@pytest.mark.parametrize("name", MODULES)
def test_no_private_module_of_the_standard_library_is_imported(name: str) -> None:
    for other in imports_of(name):
        private = [part for part in other.split(".") if part.startswith("_") and part != "__future__"]
        assert not private, f"{name} imports {other}"


@pytest.mark.parametrize("name", MODULES)
def test_only_the_standard_library_typing_extensions_and_anycrc_are_needed(name: str) -> None:
    for other in imports_of(name):
        top = other.split(".")[0]
        needed = top in sys.stdlib_module_names or top in {"bbipc", "pool", "typing_extensions"}
        needed |= (name, top) == ("bbipc.messages.frames", "anycrc")
        extra = name == "pool.cli.fancy" and top == "rich"
        assert needed or extra, f"{name} imports {other}"


@pytest.mark.parametrize("name", MODULES)
def test_no_private_name_is_imported_from_another_module(name: str) -> None:
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.ImportFrom) and node.module != "__future__":
            assert not [alias.name for alias in node.names if alias.name.startswith("_")]
            assert not [alias.name for alias in node.names if alias.name == "*"]


@pytest.mark.parametrize(
    "name",
    [
        "bbipc.errors",
        "bbipc.events",
        "bbipc.readiness",
        "bbipc.sockets.buffers",
        "bbipc.messages.message",
        "bbipc.messages.frames",
    ],
)
def test_a_pure_module_makes_no_system_call_and_takes_no_lock(name: str) -> None:
    impure = {
        "socket",
        "select",
        "threading",
        "time",
        "fcntl",
        "termios",
        "signal",
        "subprocess",
        "bbipc.sockets.handle",
    }
    if name == "bbipc.readiness":  # one constant, which differs from system to system
        impure.remove("select")
        assert [ast.unparse(use) for use in uses_of("select", name)] == ["getattr(select, 'POLLRDHUP', 8192)"]
    assert not imports_of(name) & impure


MAKES_THREADS = {"Thread", "Timer", "start_new_thread"}


@pytest.mark.parametrize("name", OF_BBIPC)
def test_no_module_of_bbipc_knows_threads(name: str) -> None:
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.Attribute):
            assert node.attr not in MAKES_THREADS


def test_few_modules_of_the_pool_start_threads() -> None:
    found = {
        name
        for name in OF_POOL
        for node in ast.walk(tree_of(name))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MAKES_THREADS
    }
    assert found == STARTERS
    for name in OF_POOL:  # nor under another name
        for node in ast.walk(tree_of(name)):
            if isinstance(node, ast.ImportFrom):
                assert node.module not in {"threading", "concurrent.futures.thread"} or name in STARTERS
                assert not {alias.name for alias in node.names} & {"Thread", "ThreadPoolExecutor"}


#: modules through which the kernel is asked for something that concerns descriptors, processes or signals
KERNEL = {"asyncio", "fcntl", "mmap", "multiprocessing", "select", "selectors", "signal", "socket", "socketserver"}
KERNEL |= {"ssl", "subprocess", "termios"}
#: what of "os" is no matter of descriptors: how many processors there are, and being told of a fork
HARMLESS = {"cpu_count", "process_cpu_count", "register_at_fork", "sched_getaffinity"}


@pytest.mark.parametrize("name", OF_POOL)
def test_the_pool_leaves_system_calls_to_bbipc(name: str) -> None:
    assert not {other.split(".")[0] for other in imports_of(name)} & KERNEL
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
            assert node.attr in HARMLESS, f"{name} uses os.{node.attr}"
        if isinstance(node, ast.ImportFrom):
            assert node.module != "os"


@pytest.mark.parametrize("name", OF_POOL)
def test_the_pool_takes_no_lock_that_a_ctrl_c_could_leave_held(name: str) -> None:
    """Condition, Event, Semaphore and Queue are Python code, with a gap between taking and giving back."""
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.Attribute):
            assert node.attr not in {"Condition", "Event", "Semaphore", "BoundedSemaphore", "Barrier", "Queue"}


#: they make plain locks that are never taken by ``with``: somebody sleeps on one, or it is taken for good
SLEEPERS = {"pool.calls", "pool.crew", "pool.stopping", "pool.table", "pool.tasks"}


@pytest.mark.parametrize("name", MODULES)
def test_locks_are_made_where_no_ctrl_c_can_leave_them_held(name: str) -> None:
    allowed = {"bbipc.sockets.locks": {"Lock", "RLock"}, "pool.futures": {"Lock", "RLock"}}.get(name, set())
    made = {
        node.func.attr
        for node in ast.walk(tree_of(name))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if isinstance(node.func.value, ast.Name) and node.func.value.id == "threading"
    }
    assert made & {"Lock", "RLock"} <= (allowed or ({"Lock"} if name in SLEEPERS else set()))


@pytest.mark.parametrize("name", MODULES)
def test_futures_are_made_where_no_ctrl_c_can_leave_them_locked(name: str) -> None:
    made = {
        node.func.id
        for node in ast.walk(tree_of(name))
        if isinstance(node, ast.Call)
        if isinstance(node.func, ast.Name)
    }
    assert "Future" not in made or name == "pool.futures"


@pytest.mark.parametrize("name", OF_POOL)
def test_the_pool_prints_nothing_and_never_sleeps(name: str) -> None:
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in {"print", "time.sleep", "sleep"}


@pytest.mark.parametrize("name", OF_CLI)
def test_only_its_terminal_writes_for_the_command_line(name: str) -> None:
    """And only what it imports when there is a terminal needs rich, so that everything works without."""
    tops = {other.split(".")[0] for other in imports_of(name)}
    assert ("rich" in tops) is (name == "pool.cli.fancy")
    assert ("pool.cli.fancy" in imports_of(name)) is (name == "pool.cli.terminal")
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) != "print"
        if isinstance(node, ast.Attribute) and name != "pool.cli.terminal":
            assert ast.unparse(node) not in {"sys.stdout", "sys.stderr"}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_says_at_its_head_what_it_is(name: str) -> None:
    head = ast.get_docstring(tree_of(name))
    assert head
    assert len(head.splitlines()[0]) > 10


@pytest.mark.parametrize("name", MODULES)
def test_a_module_can_be_read_in_one_sitting(name: str) -> None:
    lines = len(MODULES[name].read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{name} has {lines} lines"


@pytest.mark.parametrize("modules", [OF_BBIPC, OF_POOL + OF_CLI], ids=["bbipc", "pool"])
def test_nine_functions_of_ten_fit_on_a_screen(modules: list[str]) -> None:
    lengths = {
        f"{name}.{node.name}:{node.lineno}": (node.end_lineno or node.lineno) - node.lineno + 1
        for name in modules
        for node in ast.walk(tree_of(name))
        if isinstance(node, ast.FunctionDef)
    }
    assert len(lengths) > 100
    long = {name: length for name, length in lengths.items() if length >= MAX_FUNCTION_LINES}
    assert len(long) <= (1 - SHORT_FUNCTIONS) * len(lengths), long
