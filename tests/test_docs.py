"""README and docs: their code runs, their links lead somewhere, their tables agree with the code."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import pytest

import bbipc
from bbipc import readiness
from bbipc.events import EVENTS, SocketEvent
from bbipc.messages import Decoder, MessageStream
from bbipc.readiness import ERROR, HUNG_UP, READ_HUNG_UP, READABLE, WRITABLE, Stage, condition_of, stream_events
from pool import (
    ConnectionServer,
    FutureStream,
    MessageClient,
    MessageServer,
    Monitor,
    Monitoring,
    PollerThread,
    Request,
    StreamFile,
    WorkerPool,
)
from pool.borrowed import BorrowedMonitor
from pool.stations import Station
from tests.support.makers import PATIENCE
from tests.test_layers import MODULES, our_imports

TOP = Path(__file__).parent.parent
PAGES = [TOP / "README.md", TOP / "CHANGELOG.md", *sorted((TOP / "docs").glob("*.md"))]
NAMES = [str(page.relative_to(TOP)) for page in PAGES]

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def blocks(page: Path, language: str) -> Iterator[tuple[int, str]]:
    """(line before its first, code) of every block in *language*."""
    text = page.read_text()
    for match in FENCE.finditer(text):
        if match[1] == language:
            yield text.count("\n", 0, match.start(2)), match[2]


def rows_under(page: Path, first_heading: str) -> list[list[str]]:
    """The cells of the table whose first column has this heading, without the heading."""
    lines = page.read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {first_heading} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


def close_all(things: Iterable[object]) -> None:
    """What a block has left open, in whatever state it failed: threads first, so that nothing is told of the rest."""
    closers: list[tuple[type, Callable[[Any], object]]] = [
        (MessageClient, lambda client: client.close()),
        (ConnectionServer, lambda server: server.stop(0)),
        (MessageServer, lambda server: server.stop(0)),
        (WorkerPool, lambda pool: pool.shutdown(cancel_futures=True, timeout=PATIENCE)),
        (PollerThread, lambda poller_thread: poller_thread.close()),
        (FutureStream, lambda stream: stream.close(flush=False)),
        (bbipc.Socket, lambda socket: socket.close()),
        (bbipc.Poller, lambda poller: poller.close()),
    ]
    left = list(things)
    with contextlib.ExitStack() as stack:
        for kind, close in reversed(closers):
            for thing in left:
                if isinstance(thing, kind):
                    stack.callback(close, thing)


@pytest.fixture(scope="module", autouse=True)
def tracker() -> None:
    """What multiprocessing opens once and keeps, before anything is counted."""
    resource_tracker.ensure_running()


# docs/threads.md forks while a poller thread runs: that is what it is about.
@pytest.mark.filterwarnings(r"ignore:.*use of fork\(\) may lead to deadlocks:DeprecationWarning")
@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_block_of_python_runs(page: Path, short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(short_dir)
    namespace: dict[str, object] = {"__name__": "page"}
    try:
        for line, code in blocks(page, "python"):
            exec(compile("\n" * line + code, str(page), "exec", dont_inherit=True), namespace)
    finally:
        close_all(namespace.values())
        namespace.clear()


def test_the_pages_with_code_have_some() -> None:
    for name in NAMES:
        if name not in {"CHANGELOG.md", "docs/design-notes.md", "docs/from-the-seeds.md", "docs/speed.md"}:
            assert list(blocks(TOP / name, "python")), name


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_relative_link_resolves(page: Path) -> None:
    for link in LINK.findall(page.read_text()):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name} links to {link}"
        assert target.is_relative_to(TOP), f"{page.name} links out of the repository: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name} links to {link}"


def test_readme_opens_with_the_two_commands() -> None:
    text = (TOP / "README.md").read_text()
    commands = [code for _, code in blocks(TOP / "README.md", "sh")]
    assert len(commands) == 2
    assert all(command.count("\n") == 1 for command in commands), "each is one line to paste"
    assert commands[0].endswith(" -e '.[cli]' && .venv/bin/bbipc demo\n")
    assert "-m pytest -n auto" in commands[1]
    assert text.index("```sh") < text.index("\n## ")


def test_readme_names_the_files_in_the_order_of_their_imports() -> None:
    """Each row knows the rows above it, and none below, by whatever detour."""
    row_of: dict[str, int] = {}
    for row, (_, files, _) in enumerate(rows_under(TOP / "README.md", "layer")):
        for link in LINK.findall(files):
            own = link.removesuffix(".py").rstrip("/").replace("/", ".")
            row_of |= {name: row for name in MODULES if f"{name}.".startswith(f"{own}.")}
    assert len(set(row_of.values())) > 10
    for name, row in row_of.items():
        known = {name}
        while new := {other for each in known for other in our_imports(each)} - known:
            known |= new
        later = {other for other in known if row_of.get(other, row) > row}
        assert not later, f"{name} stands above {later}"


def test_readme_quotes_the_line_that_decides() -> None:
    _, _, text = (TOP / "README.md").read_text().partition("**The line that decides")
    line = next(line for line in text.splitlines() if line.startswith("    if "))
    source = inspect.getsource(stream_events).splitlines()
    at = next(number for number, of_source in enumerate(source) if of_source.strip() == line.strip())
    assert source[at + 1].strip() == "events |= DATA_AVAILABLE"
    assert readiness.__name__.replace(".", "/") + ".py" in text


NO = "\N{EN DASH}"
COLUMNS = {
    "DETERMINED": SocketEvent.DETERMINED,
    "SUCCEEDED": SocketEvent.CONNECTION_SUCCEEDED,
    "FAILED": SocketEvent.CONNECTION_FAILED,
    "DATA": SocketEvent.DATA_AVAILABLE,
    "WRITE": SocketEvent.READY_TO_WRITE,
    "DISCONNECTED": SocketEvent.REMOTE_DISCONNECTED,
    "ROOM": SocketEvent.ROOM_TO_WRITE,
}
UP = WRITABLE
TCP_END = READABLE | WRITABLE | READ_HUNG_UP
LOCAL_END = TCP_END | HUNG_UP
RESET = LOCAL_END | ERROR
#: row -> what the kernel says in it (TCP's way, local's way), and how many bytes are unread
STATES = {
    "connecting": (Stage.CONNECTING, (0, WRITABLE | HUNG_UP), 0),
    "refused / unreachable": (Stage.FAILED, (TCP_END, RESET), 0),
    "up, idle": (Stage.CONNECTED, (UP,), 0),
    "up, bytes unread": (Stage.CONNECTED, (UP | READABLE,), 0),  # nobody counts them without a hang-up
    "up, our send buffer full": (Stage.CONNECTED, (0,), 0),
    "peer closed, bytes unread": (Stage.CONNECTED, (TCP_END, LOCAL_END), 3),
    "peer closed, all read": (Stage.CONNECTED, (TCP_END, LOCAL_END), 0),
    "peer shut its sending side only, all read": (Stage.CONNECTED, (TCP_END,), 0),
    "the same, and our send buffer full": (Stage.CONNECTED, (TCP_END & ~WRITABLE,), 0),
    "reset by the peer, bytes unread": (Stage.CONNECTED, (RESET,), 3),
    "reset by the peer, all read": (Stage.CONNECTED, (RESET,), 0),
}


def test_the_truth_table_is_the_one_of_readiness() -> None:
    page = TOP / "docs/primitives.md"
    heading = next(line for line in page.read_text().splitlines() if line.startswith("| the stream is |"))
    assert [cell.strip() for cell in heading.strip("|").split("|")][1:] == list(COLUMNS)
    rows = rows_under(page, "the stream is")
    assert [row[0] for row in rows] == list(STATES)
    for name, *cells in rows:
        stage, ways, unread = STATES[name]
        assert set(cells) <= {"yes", NO}, name
        told = SocketEvent(0)
        for event, cell in zip(COLUMNS.values(), cells, strict=True):
            told |= event if cell == "yes" else SocketEvent(0)
        for flags in ways:
            assert told is EVENTS[stream_events(condition_of(stage, flags, unread), flags, unread)], name


def public_names(kind: type) -> set[str]:
    """Its methods and properties that are ours, without those that its docstrings keep from users."""
    return {
        member.name
        for member in inspect.classify_class_attrs(kind)
        if not member.name.startswith("_")
        and member.defining_class.__module__.split(".")[0] in {"bbipc", "pool"}
        and (inspect.isroutine(member.object) or isinstance(member.object, property))
        and not (inspect.getdoc(member.object) or "").startswith("Not for users")
    }


def named_in(page: str) -> dict[str, set[str]]:
    """What the thread table of *page* names: the members of each class."""
    named: dict[str, set[str]] = {}
    for row in rows_under(TOP / page, "method or function"):
        for owner, name in re.findall(r"`(\w+)\.(\w+)(?:\(\))?`", row[0]):
            named.setdefault(owner, set()).add(name)
    return named


@pytest.mark.parametrize(
    "kind",
    [
        bbipc.Socket,
        bbipc.StreamServer,
        bbipc.IPv4TCPServer,
        bbipc.IPv6TCPServer,
        bbipc.LocalServer,
        bbipc.StreamSocket,
        bbipc.IPv4TCPStream,
        bbipc.IPv6TCPStream,
        bbipc.LocalStream,
        bbipc.Poller,
    ],
)
def test_the_thread_table_names_every_method(kind: type) -> None:
    named = named_in("docs/primitives.md")
    owners = {base.__name__ for base in kind.__mro__}
    told = {name for owner in owners for name in named.get(owner, ())}
    assert public_names(kind)
    assert public_names(kind) - told == set()


#: what users of the pool hold
POOL_KINDS: list[type] = [
    PollerThread,
    Monitor,
    WorkerPool,
    FutureStream,
    StreamFile,
    ConnectionServer,
    MessageServer,
    Request,
    MessageClient,
    MessageStream,
    Decoder,
]
#: those that users do not make themselves
GIVEN = {"Monitor", "StreamFile", "Request"}


@pytest.mark.parametrize("kind", POOL_KINDS)
def test_the_thread_table_of_the_pool_names_every_method_and_no_others(kind: type) -> None:
    named = named_in("docs/threads.md")[kind.__name__]
    assert public_names(kind)
    assert public_names(kind) - named == set()
    assert not [name for name in named if not hasattr(kind, name)]


def test_the_thread_table_of_the_pool_has_no_empty_cell_and_names_no_strangers() -> None:
    kinds = {kind.__name__ for kind in POOL_KINDS} - GIVEN
    assert set(named_in("docs/threads.md")) == kinds | GIVEN | {"Future"}
    made = set()
    for name, *cells in rows_under(TOP / "docs/threads.md", "method or function"):
        assert len(cells) == 3
        assert all(cells), name
        made |= set(re.findall(r"^`(\w+)\(\)`", name))
    assert made == kinds | {"send_quick"}


def test_whatever_gives_a_monitor_gives_the_same_methods() -> None:
    """The table names Monitor for both."""
    assert public_names(Monitor) == public_names(Monitoring)
    assert public_names(Station) >= public_names(Monitoring) <= public_names(BorrowedMonitor)


#: what the pages call things
CALLED = {
    "poller_thread": PollerThread,
    "workers": WorkerPool,
    "server": ConnectionServer,
    "PollerThread": PollerThread,
    "WorkerPool": WorkerPool,
    "FutureStream": FutureStream,
    "ConnectionServer": ConnectionServer,
    "Monitor": Monitor,
    "Poller": bbipc.Poller,
}


@pytest.mark.parametrize("page", ["futures-and-workers", "threads", "servers", "moving-here"])
def test_what_a_page_says_of_the_pool_is_there(page: str) -> None:
    found = 0
    for span in re.findall(r"`([^`\n]+)`", FENCE.sub("", (TOP / f"docs/{page}.md").read_text())):
        for owner, name in re.findall(r"\b([A-Za-z_]+)\.([a-z]\w*)", span):
            kind = CALLED.get(owner)
            if kind is not None and name != "socket":  # the name of a local path
                assert hasattr(kind, name) or f"self.{name} = " in inspect.getsource(kind), span
                found += 1
    assert found >= 5


#: where a page names a kind of socket of which there are several, or one that has no name at the face
CONCRETE = {"StreamServer": bbipc.IPv4TCPServer, "TCPStream": bbipc.IPv4TCPStream}


def test_the_thread_table_names_nothing_that_is_not_there() -> None:
    for row in rows_under(TOP / "docs/primitives.md", "method or function"):
        for owner, name in re.findall(r"`(\w+)\.(\w+)(?:\(\))?`", row[0]):
            kind = CONCRETE.get(owner) or getattr(bbipc, owner)
            assert hasattr(kind, name) or name in inspect.get_annotations(kind), f"{owner}.{name}"
        for name in re.findall(r"`(\w+)\(\)`", row[0]):
            assert name in bbipc.__all__, name


def test_the_names_that_the_pages_take_for_ours_are_ours() -> None:
    """In from-the-seeds.md every `Class.name` and `function(` of the second column exists."""
    for row in rows_under(TOP / "docs/from-the-seeds.md", "basic-binary-ipc"):
        for owner, name in re.findall(r"`([A-Z]\w+)\.(\w+)", row[1]):
            kind = CONCRETE.get(owner) or getattr(bbipc, owner)
            assert hasattr(kind, name), f"{owner}.{name}"
        for name in re.findall(r"`([a-z]\w+)\(", row[1]):
            assert name in bbipc.__all__, name
