"""What a type checker knows in a user's program: ``.ci/run`` has mypy read this, and here it runs, too."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from pathlib import Path
from typing import assert_type

import bbipc
from bbipc import LocalStream, SocketEvent, StreamSocket
from pool import ConnectionServer, MessageClient, MessageServer, PollerThread, Request, WorkerPool
from tests.support.makers import PATIENCE


def test_the_kind_of_a_server_is_that_of_its_connections(short_dir: Path) -> None:
    peers: list[int] = []

    def handler(stream: LocalStream) -> None:
        peers.append(stream.peer_credentials().pid)
        stream.write(stream.read() or b"")

    def on_error(error: BaseException, stream: LocalStream) -> None:
        raise AssertionError(error, stream.path)

    def anything(stream: StreamSocket) -> None:
        stream.close()

    with PollerThread() as thread, bbipc.make_local_server(short_dir / "a") as listening:
        accepted = thread.accept(listening)
        assert_type(accepted, Future[LocalStream])
        as_any: Future[StreamSocket] = thread.accept(listening)
        assert accepted.cancel()
        assert as_any.cancel()
    server = bbipc.make_local_server(short_dir / "s")
    with ConnectionServer(server, handler, on_error=on_error), bbipc.connect_to_local_server(short_dir / "s") as client:
        assert client.write(b"x") == 1
        assert bbipc.poll_socket(client, SocketEvent.DATA_AVAILABLE, PATIENCE)
    servers = [bbipc.make_local_server(short_dir / "t"), bbipc.make_ipv4_tcp_server(bbipc.IPV4_LOOPBACK, 0)]
    ConnectionServer(servers, anything).stop()
    assert len(peers) == 1


def test_the_arguments_of_a_call_are_those_of_the_function() -> None:
    def add(one: int, other: int) -> int:
        return one + other

    def tell(stream: LocalStream, events: SocketEvent, done: threading.Event) -> str:
        done.set()
        return f"{events!r} of {stream.path!r}"

    one, other = bbipc.local_stream_pair()
    with PollerThread() as thread, WorkerPool(1) as workers, one, other:
        later = thread.call_later(0, add, 1, 2)
        assert_type(later, Future[int])
        assert later.result(PATIENCE) == 3
        called = workers.when(one, SocketEvent.READY_TO_WRITE, tell, threading.Event())
        assert_type(called, Future[str])
        assert called.result(PATIENCE)


def test_a_handler_may_return_what_a_client_submits(short_dir: Path) -> None:
    with (
        MessageServer(bbipc.make_local_server(short_dir / "s"), lambda request: request.value),
        MessageClient(short_dir / "s") as client,
    ):

        def ask_the_other(request: Request) -> Future[str | bytes | None]:
            return client.submit(request.value)

        with (
            MessageServer(bbipc.make_local_server(short_dir / "t"), ask_the_other),
            MessageClient(short_dir / "t", timeout=PATIENCE) as asking,
        ):
            assert_type(asking.send("x"), str | bytes | None)
            assert asking.send("y") == "y"
