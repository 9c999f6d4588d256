"""What a MessageServer tells of its limits: a count of each, and to the log once a second at most."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, get_args
from unittest import mock

import pytest

from pool import MessageServer, Request
from pool.cli.serve import _Log
from pool.message_limits import COUNTED
from pool.message_sweep import Cut
from pool.seldom import Seldom
from tests.support.makers import Namespace, make_namespace
from tests.support.serving import at_end, until
from tests.support.wire import receive, receive_all, string, tagged

HELLO = string("hello")
TIMES = 20


@pytest.fixture
def local(short_dir: Path) -> Namespace:
    return make_namespace("local", short_dir)


class Clock:
    """The time of everything that is told seldom."""

    def __init__(self) -> None:
        self.now = 0.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("pool.message_service.Seldom", partial(Seldom, clock=lambda: clock.now))
    return clock


def echo(request: Request) -> Any:
    return request.value


@contextlib.contextmanager
def served(local: Namespace, handler: Any = echo, **options: Any) -> Iterator[MessageServer]:
    with MessageServer(local.make_server(), handler, workers="inline", **options) as server:
        yield server


def connect(local: Namespace, server: MessageServer) -> socket.socket:
    return local.connect_plainly(server.servers[0])  # type: ignore[arg-type]


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(record.levelname, record.getMessage()) for record in caplog.records]


def test_messages_that_are_too_large(local: Namespace, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), served(local, max_message_size=10) as server:
        for number in range(TIMES + 1):
            clock.now = float(number == TIMES)
            with connect(local, server) as peer:
                peer.sendall(string("x" * (9 + bool(number))).encoded())  # the first is as large as may be
                assert receive(peer) is not None
        assert (server.stats().too_large, server.stats().protocol_errors) == (TIMES, TIMES)
    (level, first), (_, last) = told(caplog)
    assert level == "INFO"
    assert "(0 not logged before)" in first
    assert f"({TIMES - 2} not logged before)" in last


def test_what_is_no_message(local: Namespace, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), served(local) as server:
        for _ in range(TIMES):
            with connect(local, server) as peer:
                peer.sendall(b"garbage!" * 8)
                assert len(receive_all(peer)) == 1
        assert (server.stats().protocol_errors, server.stats().too_large) == (TIMES, 0)
    assert [level for level, _ in told(caplog)] == ["DEBUG"]


def test_strangers(local: Namespace, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with served(local, allowed_uids=[os.geteuid() + 1]) as server:
        for _ in range(TIMES):
            with connect(local, server) as peer:
                assert at_end(peer)
        until(lambda: server.stats().refused_uids == TIMES)
    ((level, text),) = told(caplog)
    assert level == "WARNING"
    assert f"uid={os.geteuid()}" in text


def test_as_many_connections_as_may_be(local: Namespace, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with served(local, max_connections=2) as server, connect(local, server) as first:
        first.sendall(HELLO.encoded())
        assert receive(first) == HELLO
        assert server.stats().held_for_connections == 0
        for number in range(1, TIMES + 1):
            with connect(local, server):
                until(lambda: server.stats().paused)
                until(lambda number=number: server.stats().held_for_connections == number)  # type: ignore[misc]
            until(lambda: not server.stats().paused)
        assert server.stats().held_for_connections == TIMES
    ((level, text),) = told(caplog)
    assert level == "WARNING"
    assert "max_connections" in text


def test_connections_that_are_read_no_further(local: Namespace, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    futures: list[Future[str]] = []

    def handler(request: Request) -> Future[str]:
        futures.append(Future())
        return futures[-1]

    with caplog.at_level(logging.INFO), served(local, handler, max_in_flight=1) as server:
        with connect(local, server) as peer:
            for number in range(TIMES):
                peer.sendall(tagged(HELLO, 1).encoded())
                until(lambda number=number: len(futures) == 2 * number + 1)  # type: ignore[misc]
                peer.sendall(tagged(HELLO, 2).encoded())
                until(lambda number=number: server.stats().held_for_requests == number + 1)  # type: ignore[misc]
                futures[-1].set_result("one")
                until(lambda number=number: len(futures) == 2 * number + 2)  # type: ignore[misc]
                futures[-1].set_result("two")
                assert [receive(peer) is not None for _ in range(2)] == [True, True]
        assert server.stats().held_for_requests == TIMES
    ((level, text),) = told(caplog)
    assert level == "INFO"
    assert "held_for_requests" in text


@pytest.mark.parametrize("why", get_args(Cut))
def test_connections_that_are_cut(local: Namespace, clock: Clock, caplog: pytest.LogCaptureFixture, why: Cut) -> None:
    """Each kind has a gate of its own."""
    with served(local) as server:
        client = mock.Mock(peer=None)
        for _ in range(TIMES):
            server._service._cut(client, why)
        server._service._cut(client, "idle" if why != "idle" else "stall")
        assert getattr(server.stats(), f"cut_for_{why}") == TIMES
        assert client.cut.call_count == TIMES + 1
    assert [level for level, _ in told(caplog)] == ["WARNING"] * 2


def test_all_that_is_counted_can_be_seen(local: Namespace) -> None:
    with served(local) as server:
        for number, name in enumerate(COUNTED, 1):
            server._service.count(name, number)
        stats = server.stats()
    assert [getattr(stats, name) for name in COUNTED] == [*range(1, len(COUNTED) + 1)]


def test_a_cut_that_the_hook_is_told_of_is_marked(local: Namespace, caplog: pytest.LogCaptureFixture) -> None:
    """So that who prints both, as the command line does, prints it once."""
    errors: list[Any] = []
    terminal = mock.Mock()
    with served(local, on_error=lambda *what: errors.append(what)) as server:
        for why in get_args(Cut):
            server._service._cut(mock.Mock(peer=("host", 1)), why)
    names = [str(error).partition(":")[0] for error, _ in errors]
    assert names == ["header_timeout", "body_timeout", "stall_timeout", "max_unverified"]
    assert {peer for _, peer in errors} == {("host", 1)}
    for record in caplog.records:
        _Log(terminal).emit(record)
    printed = [call.args[0] for call in terminal.error.call_args_list]
    assert [line.partition(" (0 ")[0].rpartition(" ")[2] for line in printed] == ["idle", "lingering"]


def test_each_reason_not_to_read_is_told_by_its_name(
    local: Namespace, clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pool.message_flow.Flow.go_on", lambda flow: None)
    with caplog.at_level(logging.INFO), served(local) as server, connect(local, server):
        until(lambda: server.stats().connections == 1)
        connection: Any = server._service.table.members()[0]
        for _ in range(TIMES):
            connection.holds = 0
            for why in (1, 2, 4, 7):  # the last is no news
                connection._hold(why)
        stats = server.stats()
        assert (stats.held_for_requests, stats.held_for_replies, stats.held_for_memory) == (TIMES, TIMES, TIMES)
        assert [text.split(": ")[1].split(" ")[0] for _, text in told(caplog)] == [
            *("held_for_requests", "held_for_replies", "held_for_memory")
        ]
