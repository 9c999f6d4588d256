"""What callers give that makes no sense: it is said at once, by the name that they know, and nothing is lost by it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import bbipc
from bbipc import SocketEvent
from bbipc.messages import Message
from pool import ConnectionServer, MessageClient, MessageServer, PollerThread, WorkerPool
from tests.support.serving import until

READ = SocketEvent.DATA_AVAILABLE


class Things:
    """One of everything that takes something."""

    def __init__(self, path: Path) -> None:
        self.server = bbipc.make_local_server(path / "s")
        self.path = path / "s"
        self.stream, self.peer = bbipc.local_stream_pair()
        self.poller_thread = PollerThread()
        self.pool = WorkerPool(1)
        self.borrowing = WorkerPool(executor=ThreadPoolExecutor(1), poller_thread=self.poller_thread)

    def close(self) -> None:
        for each in (self.poller_thread, self.stream, self.peer, self.server):
            each.close()
        self.pool.shutdown()
        self.borrowing.shutdown()


@pytest.fixture
def things(short_dir: Path) -> Iterator[Things]:
    made = Things(short_dir)
    yield made
    made.close()


def monitor_of(name: str, **wrong: Any) -> Callable[[Things], object]:
    options: dict[str, Any] = {"on_close": None, **wrong}
    call = options.pop("fn", print)
    return lambda it: getattr(it, name).monitor(it.stream, READ, call, **options)


WRONG: dict[str, Callable[[Any], object]] = {
    r"workers must be a WorkerPool \(WorkerPool\(executor=…\) has any Executor call\), not ThreadPoolExecutor": (
        lambda it: ConnectionServer(it.server, print, workers=ThreadPoolExecutor(1))  # type: ignore[arg-type]
    ),
    "workers must be a WorkerPool .*, not str": lambda it: ConnectionServer(it.server, print, workers="inline"),  # type: ignore[arg-type]
    "server must be a StreamServer, or several, not LocalStream": lambda it: ConnectionServer(it.stream, print),
    "server must be a StreamServer, or several, not int": lambda it: MessageServer(3, lambda _: None),  # type: ignore[arg-type]
    "a StreamServer is required, not LocalStream": lambda it: ConnectionServer([it.stream], print),
    "handler must be a callable, not NoneType": lambda it: ConnectionServer(it.server, None),  # type: ignore[arg-type]
    "handler must be a callable, not int": lambda it: MessageServer(it.server, 3),  # type: ignore[arg-type]
    "on_error must be a callable, not int": lambda it: MessageServer(it.server, str, on_error=3),  # type: ignore[arg-type]
    "on_close must be a callable, not str": lambda it: MessageServer(it.server, str, on_close="x"),  # type: ignore[arg-type]
    "on_error must be a callable, not str": lambda it: ConnectionServer(it.server, print, on_error="x"),  # type: ignore[arg-type]
    "max_connections must be an int, not str": lambda it: ConnectionServer(it.server, print, max_connections="1"),  # type: ignore[arg-type]
    "max_message_size must be an int, not str": lambda it: MessageServer(it.server, str, max_message_size="1M"),  # type: ignore[arg-type]
    "max_in_flight must be an int, not bool": lambda it: MessageServer(it.server, str, max_in_flight=True),
    "a uid of allowed_uids must be an int, not str": lambda it: MessageServer(it.server, str, allowed_uids=["root"]),  # type: ignore[list-item]
    "a uid of .*, not str": lambda it: MessageServer(it.server, str, allowed_uids="root"),  # type: ignore[arg-type]
    "body_timeout must be a number of seconds or None, not str": (
        lambda it: MessageServer(it.server, str, body_timeout="5")  # type: ignore[arg-type]
    ),
    "poller must be a Poller, not str": lambda it: PollerThread("mine"),  # type: ignore[arg-type]
    "executor must be an Executor, not int": lambda it: WorkerPool(executor=3),  # type: ignore[arg-type]
    "poller_thread must be a PollerThread, not int": lambda it: WorkerPool(poller_thread=3),  # type: ignore[arg-type]
    "poller_thread must be a PollerThread, not str": lambda it: MessageClient(it.path, poller_thread="x"),  # type: ignore[arg-type]
    "max_workers must be an int, not str": lambda it: WorkerPool("2"),  # type: ignore[arg-type]
    "callback must be a callable, not NoneType": monitor_of("poller_thread", fn=None),
    "fn must be a callable, not NoneType": monitor_of("pool", fn=None),
    "fn must be a callable, not int": monitor_of("borrowing", fn=3),
    "on_close must be a callable, not int": monitor_of("poller_thread", on_close=3),
    "on_close must be a callable, not float": monitor_of("pool", on_close=3.0),
    "fn must be a callable, not str": lambda it: it.poller_thread.call_later(0, "x"),
    "fn must be a callable, not bytes": lambda it: it.pool.when(it.stream, READ, b"x"),
    "delay must be a number of seconds or None, not str": lambda it: it.poller_thread.call_later("x", print),
    "a message is made of a str, a bytes-like object, a Message or None, not of dict": lambda it: Message.of({}),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_type_is_told_by_name(text: str, things: Things) -> None:
    with pytest.raises(TypeError, match=f"^{text}$"):
        WRONG[text](things)
    assert not things.server.closed
    things.pool.monitor(things.stream, READ, print).cancel()  # nothing was left of another monitor


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (lambda it: MessageServer(it.server, str, stall_timeout=-3), "stall_timeout must not be negative or NaN: -3"),
        (lambda it: MessageServer(it.server, str, idle_timeout=0), "idle_timeout of 0 s would end every connection"),
        (
            lambda it: MessageServer(it.server, str, allowed_uids=[-1]),
            "a uid of .* must be at least 0, not -1",
        ),
        (lambda it: WorkerPool(spin=-1), "spin must not be negative or NaN: -1"),
        (lambda it: WorkerPool(queue_timeout=-2), "queue_timeout must not be negative or NaN: -2"),
        (lambda it: it.poller_thread.call_later(-1, print), "delay must not be negative or NaN: -1"),
        (lambda it: MessageClient(it.path, spin=-1), "spin must not be negative or NaN: -1"),
    ],
)
def test_a_wrong_number_is_told_by_name(wrong: Callable[[Things], object], text: str, things: Things) -> None:
    with pytest.raises(ValueError, match=f"^{text}$"):
        wrong(things)


def their_hook(_error: Exception) -> None:
    raise LookupError("a hook's")


@pytest.mark.parametrize("name", ["poller_thread", "pool", "borrowing"])
def test_who_has_raised_is_named(name: str, things: Things, caplog: pytest.LogCaptureFixture) -> None:
    """The hook, not the callback of the same monitor."""
    getattr(things, name).monitor(things.stream, READ, print, on_close=their_hook)
    things.stream.close()
    until(lambda: "their_hook" in caplog.text)
    assert "print" not in caplog.records[0].getMessage()
