"""Streams whose reads and writes are futures: the same contract over ipv4, ipv6 and local."""

from __future__ import annotations

import array
import concurrent.futures
import contextlib
import errno
import gc
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import pytest

import bbipc
from bbipc import (
    ConnectionFailedError,
    IncompleteReadError,
    PollerClosedError,
    RemoteDisconnectedError,
    SeparatorNotFoundError,
    SocketClosedError,
    SocketError,
    SocketEvent,
    WriteTimeoutError,
)
from bbipc.sockets import fork
from pool.future_stream import FutureStream
from pool.poller_thread import PollerThread
from pool.reading import TURN, ReadingHalf
from tests.support.makers import PATIENCE, Namespace, Worker, accept, fill, make_namespace

E = TypeVar("E", bound=BaseException)

BIG = bytes(range(256)) * 16384  # 4 MiB: more than any kernel takes at once


@pytest.fixture
def poller_thread() -> Iterator[PollerThread]:
    with PollerThread() as thread:
        yield thread


@pytest.fixture
def ends(namespace: Namespace, poller_thread: PollerThread) -> Iterator[tuple[FutureStream, socket.socket]]:
    """A FutureStream, and its peer as a plain, blocking socket."""
    with namespace.stream_and_peer() as (stream, peer):
        if namespace.name != "local":
            bound_buffers(stream, peer)
        yield FutureStream(stream, poller_thread), peer


def bound_buffers(stream: bbipc.StreamSocket, peer: socket.socket) -> None:
    """TCP's grow to many megabytes, as the kernel sees fit, unless somebody says how large they may be."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 18)
    with socket.socket(fileno=os.dup(stream.fileno())) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)


@pytest.fixture
def local_ends(short_dir: Path, poller_thread: PollerThread) -> Iterator[tuple[FutureStream, socket.socket]]:
    """The same over local, where one will do, or where full has to mean full: TCP may find room later."""
    with make_namespace("local", short_dir).stream_and_peer() as (stream, peer):
        yield FutureStream(stream, poller_thread), peer


Ends = tuple[FutureStream, socket.socket]


def failure(future: Future[Any], kind: type[E]) -> E:
    """What *future* fails with."""
    error = future.exception(PATIENCE)
    assert type(error) is kind, repr(error)
    return error


def arrived(stream: FutureStream) -> None:
    """Return when there is something to read."""
    events = SocketEvent.DATA_AVAILABLE | SocketEvent.REMOTE_DISCONNECTED
    assert bbipc.poll_socket(stream.stream, events, PATIENCE)


def buffered(stream: FutureStream, count: int) -> None:
    """Return when the poller thread has taken *count* bytes that are not enough for whoever waits."""
    deadline = time.monotonic() + PATIENCE
    while len(stream._reading._queue.buffer) != count:
        assert time.monotonic() < deadline


def receive(peer: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = peer.recv(min(count - len(data), 1 << 20))
        if not part:
            break
        data += part
    return bytes(data)


def receive_all(peer: socket.socket) -> bytes:
    return receive(peer, 1 << 40)


# Reading.


def test_what_is_there_is_read_at_once_without_a_thread(ends: Ends, poller_thread: PollerThread) -> None:
    stream, peer = ends
    peer.sendall(b"abcdef\nghi")
    arrived(stream)
    calls: list[Callable[[], Future[bytes]]] = [
        lambda: stream.read(2),
        lambda: stream.read_exactly(3),
        lambda: stream.read_until(b"\n"),
        lambda: stream.read_exactly(0),
        lambda: stream.read(timeout=0),
    ]
    found = []
    for call in calls:
        future = call()
        assert future.done()
        found.append(future.result(0))
    assert found == [b"ab", b"cde", b"f\n", b"", b"ghi"]
    assert poller_thread._thread is None


def test_a_read_waits_for_bytes_and_its_thread_is_the_poller_thread(ends: Ends, poller_thread: PollerThread) -> None:
    stream, peer = ends
    future = stream.read()
    where: list[bool] = []
    future.add_done_callback(lambda _: where.append(poller_thread.is_current()))
    assert not future.done()
    peer.sendall(b"abc")
    assert future.result(PATIENCE) == b"abc"
    assert poller_thread.call_later(0, lambda: list(where)).result(PATIENCE) == [True]


def test_reads_are_served_in_the_order_of_their_calls(ends: Ends) -> None:
    stream, peer = ends
    futures = [stream.read_exactly(size) for size in (3, 1, 4)] + [stream.read_until(b"\n"), stream.read()]
    for byte in b"abcdefghi\nj":
        peer.sendall(bytes([byte]))
    assert [future.result(PATIENCE) for future in futures] == [b"abc", b"d", b"efgh", b"i\n", b"j"]


def test_a_read_behind_another_waits_though_it_could_be_served(ends: Ends) -> None:
    stream, peer = ends
    first = stream.read_exactly(5)
    peer.sendall(b"abc")
    buffered(stream, 3)
    second = stream.read(1)
    assert not second.done()
    peer.sendall(b"def")
    assert (first.result(PATIENCE), second.result(PATIENCE)) == (b"abcde", b"f")


def test_the_end_is_empty_for_ever(ends: Ends) -> None:
    stream, peer = ends
    waiting = stream.read()
    peer.close()
    assert waiting.result(PATIENCE) == b""
    assert stream.read().result(PATIENCE) == b""
    assert stream.read(timeout=0).result(PATIENCE) == b""
    assert failure(stream.read_exactly(3), IncompleteReadError).partial == b""


@pytest.mark.parametrize("waits", [True, False], ids=["waiting", "at once"])
def test_an_end_before_all_has_come_gives_what_came_and_takes_it(ends: Ends, waits: bool) -> None:
    stream, peer = ends
    if not waits:
        peer.sendall(b"abc")
        peer.close()
        arrived(stream)
    future, line = stream.read_exactly(5), stream.read_until(b"\n")
    if waits:
        peer.sendall(b"abc")
        peer.close()
    error = failure(future, IncompleteReadError)
    assert (error.partial, error.expected) == (b"abc", 5)
    error = failure(line, IncompleteReadError)
    assert (error.partial, error.expected) == (b"", None)
    assert stream.read().result(PATIENCE) == b""


def test_a_line_that_is_too_long_stays_to_be_read(ends: Ends) -> None:
    stream, peer = ends
    future = stream.read_until(b"\n", 8)
    peer.sendall(b"0123456789\n")
    assert failure(future, SeparatorNotFoundError).max_bytes == 8
    assert stream.read_until(b"\n", 11).result(PATIENCE) == b"0123456789\n"


def test_a_huge_read_is_put_together(ends: Ends) -> None:
    stream, peer = ends
    future = stream.read_exactly(len(BIG))
    sender = Worker(lambda: peer.sendall(BIG))
    assert future.result(PATIENCE) == BIG
    sender.outcome()


def test_a_turn_reads_64_kib_at_most(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    stream, peer = ends
    turns: list[int] = []
    turn, read = ReadingHalf._turn_alone, bbipc.StreamSocket.read

    def counted_turn(self: ReadingHalf, after: object) -> None:
        turns.append(0)
        turn(self, after)  # type: ignore[arg-type]

    def counted_read(self: bbipc.StreamSocket, max_bytes: int = 65536, *, peek: bool = False) -> bytes | None:
        data = read(self, max_bytes, peek=peek)
        if turns:
            turns[-1] += len(data or b"")
        return data

    monkeypatch.setattr(ReadingHalf, "_turn_alone", counted_turn)
    monkeypatch.setattr(bbipc.StreamSocket, "read", counted_read)
    future = stream.read_exactly(len(BIG))
    sender = Worker(lambda: peer.sendall(BIG))
    assert len(future.result(PATIENCE)) == len(BIG)
    sender.outcome()
    assert 0 < max(turns) <= TURN == 65536


def test_a_read_that_timed_out_takes_no_byte(ends: Ends) -> None:
    stream, peer = ends
    exact, line = stream.read_exactly(5, timeout=0.02), stream.read_until(b"\n", timeout=0.02)
    peer.sendall(b"abc")
    for future in (exact, line, stream.read_exactly(9, timeout=0)):
        failure(future, TimeoutError)
    assert stream.read().result(PATIENCE) == b"abc"
    failure(stream.read(timeout=0), TimeoutError)


def test_what_was_too_little_for_a_read_that_timed_out_serves_the_next(ends: Ends) -> None:
    stream, peer = ends
    first, second = stream.read_exactly(5, timeout=0.05), stream.read()
    peer.sendall(b"abc")
    failure(first, TimeoutError)
    assert second.result(PATIENCE) == b"abc"


def test_what_was_too_little_for_a_cancelled_read_serves_the_next(ends: Ends) -> None:
    stream, peer = ends
    first, second = stream.read_exactly(5), stream.read()
    peer.sendall(b"abc")
    buffered(stream, 3)
    assert first.cancel()
    assert second.result(PATIENCE) == b"abc"


def test_whoever_waits_for_a_cancelled_operation_is_told(local_ends: Ends) -> None:
    stream, _ = local_ends
    fill(stream.stream)
    futures: list[Future[Any]] = [stream.read(), stream.write(BIG), stream.flush()]
    # The flush first: with nothing left to wait for it would be done.
    assert [future.cancel() for future in reversed(futures)] == [True] * 3
    _, waiting = concurrent.futures.wait(futures, timeout=PATIENCE)
    assert not waiting


def test_a_reset_comes_after_what_had_come(ends: Ends, namespace: Namespace) -> None:
    stream, peer = ends
    peer.sendall(b"abc")
    arrived(stream)
    exact, rest, last = stream.read_exactly(9), stream.read(2), stream.read(2)
    namespace.reset(stream.stream, peer)
    if namespace.name == "local":  # TCP forgets what was not read yet; ours was
        assert (rest.result(PATIENCE), last.result(PATIENCE)) == (b"ab", b"c")
    else:
        assert rest.result(PATIENCE) == b"ab"
    failure(exact, RemoteDisconnectedError)
    failure(stream.read(), RemoteDisconnectedError) if last.result(PATIENCE) else None
    failure(stream.read(), RemoteDisconnectedError)


# Writing.


def test_a_write_that_the_kernel_takes_is_done_at_once(ends: Ends, poller_thread: PollerThread) -> None:
    stream, peer = ends
    for data, size in ((b"abc", 3), (bytearray(b"de"), 2), (memoryview(b"xfgx")[1:3], 2), (b"", 0)):
        future = stream.write(data)
        assert future.done()
        assert future.result(0) == size
    numbers = array.array("I", [1, 2])
    assert stream.write(numbers).result(0) == 2 * numbers.itemsize
    assert receive(peer, 15) == b"abcdefg" + numbers.tobytes()
    assert stream.flush().done()
    assert poller_thread._thread is None


def test_a_write_that_the_kernel_does_not_take_holds_its_buffer_until_it_is_done(ends: Ends) -> None:
    stream, peer = ends
    data = bytearray(BIG)
    future = stream.write(data)
    assert not future.done()
    assert stream.pending_bytes > 65536
    with pytest.raises(BufferError):
        data.clear()
    assert not future.cancel(), "a part of it is sent"
    assert receive(peer, len(BIG)) == BIG
    assert future.result(PATIENCE) == len(BIG)
    data.clear()
    stream.flush().result(PATIENCE)
    assert stream.pending_bytes == 0


def test_small_writes_are_done_while_the_queue_is_short_and_a_flush_waits_for_them(local_ends: Ends) -> None:
    stream, peer = local_ends
    filled = fill(stream.stream)
    assert all(stream.write(b"x" * 1000).done() for _ in range(65))
    assert stream.pending_bytes == 65000
    waiting, flush = stream.write(b"y" * 1000), stream.flush()
    assert not waiting.done()
    assert not flush.done()
    assert receive(peer, filled + 66000)[filled:] == b"x" * 65000 + b"y" * 1000
    flush.result(PATIENCE)
    assert waiting.result(0) == 1000


def test_a_write_that_was_cancelled_in_time_is_not_sent(local_ends: Ends) -> None:
    stream, peer = local_ends
    filled = fill(stream.stream)
    first, data = stream.write(b"a" * 65536), bytearray(b"b" * 99999)
    second, third = stream.write(data), stream.write(b"c")
    assert first.done()
    assert second.cancel()
    data.clear()
    assert receive(peer, filled + 65537)[filled:] == b"a" * 65536 + b"c"
    assert third.result(PATIENCE) == 1


def test_a_write_of_which_nothing_could_be_sent_is_taken_back_when_its_time_is_up(local_ends: Ends) -> None:
    stream, peer = local_ends
    filled = fill(stream.stream)
    data = bytearray(BIG)
    late, never = stream.write(data, timeout=0.02), stream.write(BIG, timeout=0)
    for error in (failure(late, WriteTimeoutError), failure(never, WriteTimeoutError)):
        assert (error.sent, error.unsent) == (0, len(BIG))
    data.clear()
    small = stream.write(b"small", timeout=0)
    assert small.result(PATIENCE) == 5, "there is room for it here"
    assert receive(peer, filled + 5)[filled:] == b"small"


@pytest.mark.parametrize("timeout", [0.05, 0])
def test_a_write_that_was_sent_in_part_breaks_the_direction_when_its_time_is_up(ends: Ends, timeout: float) -> None:
    stream, peer = ends
    future = stream.write(BIG, timeout=timeout)
    behind, flush = (stream.write(b"x" * 70000), stream.flush()) if timeout else (None, None)
    error = failure(future, WriteTimeoutError)
    assert error.sent is not None
    assert 0 < error.sent < len(BIG)
    assert error.sent + (error.unsent or 0) == len(BIG)
    for later in (behind, flush, stream.write(b"x"), stream.flush(), stream.shutdown_write()):
        if later is not None:
            told = failure(later, WriteTimeoutError)
            assert told.sent == 0
    peer.sendall(b"still read")
    assert stream.read().result(PATIENCE) == b"still read"
    assert stream.close().result(PATIENCE) is None, "nothing that was promised is lost"
    assert receive_all(peer) == BIG[: error.sent]


def test_a_peer_that_goes_away_ends_all_writes_each_with_its_own_count(ends: Ends, namespace: Namespace) -> None:
    stream, peer = ends
    first, second, flush = stream.write(BIG), stream.write(BIG), stream.flush()
    assert receive(peer, 1000) == BIG[:1000]
    peer.close()
    errors = [failure(future, RemoteDisconnectedError) for future in (first, second)]
    assert errors[0].sent is not None
    assert 1000 <= errors[0].sent < len(BIG)
    assert errors[0].sent + (errors[0].unsent or 0) == len(BIG)
    assert (errors[1].sent, errors[1].unsent) == (0, len(BIG))
    assert errors[0] is not errors[1]
    assert isinstance(errors[0].__cause__, OSError)
    assert failure(flush, RemoteDisconnectedError).unsent == (errors[0].unsent or 0) + len(BIG)
    assert failure(stream.write(b"x"), RemoteDisconnectedError).sent == 0
    stream.close().result(PATIENCE)


def test_an_error_behind_a_done_write_is_told_by_what_follows(local_ends: Ends) -> None:
    stream, peer = local_ends
    fill(stream.stream)
    assert stream.write(b"x" * 1000).done()
    peer.close()
    assert failure(stream.flush(), RemoteDisconnectedError).unsent == 1000
    assert failure(stream.write(b"y"), RemoteDisconnectedError).sent == 0
    assert failure(stream.close(), RemoteDisconnectedError).unsent == 1000
    assert stream.closed
    assert stream.close().result(PATIENCE) is None, "it was told"


def test_shutting_down_waits_for_what_was_written_before(ends: Ends) -> None:
    stream, peer = ends
    write, shutdown = stream.write(BIG), stream.shutdown_write()
    error = failure(stream.write(b"late"), SocketError)
    assert (error.errno, error.sent) == (errno.EPIPE, 0)
    assert receive_all(peer) == BIG
    assert (write.result(PATIENCE), shutdown.result(PATIENCE)) == (len(BIG), None)
    assert stream.shutdown_write().result(PATIENCE) is None
    assert failure(stream.write(b"late"), SocketError).errno == errno.EPIPE
    assert stream.flush().result(PATIENCE) is None
    peer.sendall(b"answer")
    assert stream.read().result(PATIENCE) == b"answer"


def test_shutting_down_can_be_taken_back(local_ends: Ends) -> None:
    stream, peer = local_ends
    filled = fill(stream.stream)
    stream.write(b"abc")
    assert stream.shutdown_write().cancel()
    assert failure(stream.shutdown_write(timeout=0.01), WriteTimeoutError).unsent == 3
    assert stream.write(b"def").result(PATIENCE) == 3
    assert receive(peer, filled + 6)[filled:] == b"abcdef"


def test_a_peer_that_has_shut_its_side_still_gets_its_answer(ends: Ends) -> None:
    stream, peer = ends
    peer.sendall(b"question")
    peer.shutdown(socket.SHUT_WR)
    assert stream.read().result(PATIENCE) == b"question"
    assert stream.read().result(PATIENCE) == b""
    waiting = stream.write(BIG)
    assert not waiting.done()
    assert receive(peer, len(BIG)) == BIG
    assert waiting.result(PATIENCE) == len(BIG)


# Closing.


def test_a_close_sends_first_what_was_written(ends: Ends) -> None:
    stream, peer = ends
    write, reading, close = stream.write(BIG), stream.read(), stream.close()
    late = stream.write(b"late")
    assert failure(late, SocketClosedError).sent == 0
    assert not stream.closed
    assert not close.cancel()
    peer.sendall(b"meanwhile")
    assert reading.result(PATIENCE) == b"meanwhile"
    waiting = stream.read()
    assert receive_all(peer) == BIG
    assert (write.result(PATIENCE), close.result(PATIENCE)) == (len(BIG), None)
    assert stream.closed
    failure(waiting, SocketClosedError)
    failure(stream.flush(), SocketClosedError)


def test_a_close_in_time_closes_anyway_and_tells_what_was_not_sent(ends: Ends) -> None:
    stream, peer = ends
    write = stream.write(BIG)
    error = failure(stream.close(timeout=0.05), WriteTimeoutError)
    told = failure(write, SocketClosedError)
    assert told.sent is not None
    assert error.unsent == told.unsent == len(BIG) - told.sent
    assert stream.closed
    assert receive_all(peer) == BIG[: told.sent]


@pytest.mark.parametrize("flush", [True, False])
def test_a_close_with_nothing_to_send_is_done_at_once(ends: Ends, flush: bool) -> None:
    stream, peer = ends
    reading = stream.read()
    close = stream.close(flush)
    assert close.done()
    assert close.result(0) is None
    failure(reading, SocketClosedError)
    for future in (stream.read(), stream.read_exactly(0), stream.write(b"x"), stream.write(b""), stream.flush()):
        failure(future, SocketClosedError)
    assert peer.recv(1) == b""


def test_a_close_without_flush_drops_what_was_written(ends: Ends) -> None:
    stream, peer = ends
    write, flushing, closing = stream.write(BIG), stream.flush(), stream.close()
    assert stream.close(flush=False).result(PATIENCE) is None
    sent = failure(write, SocketClosedError).sent
    for future in (flushing, closing):
        assert failure(future, SocketClosedError).unsent == len(BIG) - (sent or 0)
    assert stream.close().result(PATIENCE) is None
    assert receive_all(peer) == BIG[:sent]


def test_a_close_whose_peer_is_gone_tells_it(ends: Ends) -> None:
    stream, peer = ends
    write, close = stream.write(BIG), stream.close()
    peer.close()
    error = failure(close, RemoteDisconnectedError)
    assert error.unsent == failure(write, RemoteDisconnectedError).unsent
    assert stream.closed


def test_bytes_that_came_and_were_not_read_are_gone_with_the_close(ends: Ends) -> None:
    stream, peer = ends
    peer.sendall(b"abc\ndef")
    assert stream.read_until(b"\n").result(PATIENCE) == b"abc\n"
    stream.close().result(PATIENCE)
    failure(stream.read(), SocketClosedError)


@pytest.mark.parametrize("close", ["stream", "socket"])
def test_everything_ends_when_another_thread_closes(ends: Ends, close: str) -> None:
    stream, _ = ends
    futures: list[Future[Any]] = [
        stream.read(),
        stream.read_exactly(3),
        stream.write(BIG),
        stream.write(b"x" * 70000),
        stream.flush(),
    ]
    Worker(lambda: stream.close(flush=False) if close == "stream" else stream.stream.close()).outcome()
    for future in futures:
        error = failure(future, SocketClosedError)
        assert error.socket is stream.stream


def test_many_threads_close_once(ends: Ends) -> None:
    stream, peer = ends
    barrier = threading.Barrier(8)
    stream.write(BIG)

    def close() -> None:
        barrier.wait(PATIENCE)
        stream.close().result(PATIENCE)

    closers = [Worker(close) for _ in range(8)]
    assert receive_all(peer) == BIG
    for closer in closers:
        closer.outcome()


def test_a_with_block_sends_what_was_written(ends: Ends) -> None:
    stream, peer = ends
    reader = Worker(lambda: receive_all(peer))
    with stream:
        stream.write(BIG)
    assert stream.closed
    assert reader.outcome() == BIG
    with pytest.raises(SocketClosedError):
        stream.__enter__()


def test_a_with_block_that_fails_closes_at_once(ends: Ends) -> None:
    stream, _ = ends
    with pytest.raises(ZeroDivisionError), stream:
        write = stream.write(BIG)
        raise ZeroDivisionError
    assert stream.closed
    failure(write, SocketClosedError)


def test_leaving_a_with_block_does_not_hang(local_ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pool.future_stream.EXIT_TIMEOUT", 0.05)
    stream, _ = local_ends
    with pytest.raises(WriteTimeoutError), stream:
        stream.write(BIG)
    assert stream.closed


def test_a_with_block_on_the_poller_thread_does_not_wait(local_ends: Ends, poller_thread: PollerThread) -> None:
    stream, peer = local_ends

    def leave() -> bool:
        with stream:
            stream.write(BIG)
        return stream.closed

    assert poller_thread.call_later(0, leave).result(PATIENCE) is False
    assert receive_all(peer) == BIG


# The poller thread, connecting, callbacks.


def test_a_closed_poller_thread_ends_what_waits_and_nothing_else(ends: Ends, poller_thread: PollerThread) -> None:
    stream, peer = ends
    waiting = stream.read()
    poller_thread.close()
    failure(waiting, PollerClosedError)
    failure(stream.read(), PollerClosedError)
    assert stream.write(b"at once").result(0) == 7
    peer.sendall(b"abc")
    arrived(stream)
    assert stream.read().result(0) == b"abc"
    error = failure(stream.write(BIG), PollerClosedError)
    assert error.sent is not None
    assert error.sent > 0
    assert failure(stream.write(b"garbage"), PollerClosedError).sent == 0
    assert stream.close().result(PATIENCE) is None


def test_a_closing_poller_thread_tells_a_write_how_much_went(ends: Ends, poller_thread: PollerThread) -> None:
    stream, peer = ends
    write, close = stream.write(BIG), stream.close()
    poller_thread.close()
    error = failure(write, PollerClosedError)
    assert failure(close, PollerClosedError).unsent == error.unsent
    assert stream.closed
    assert receive_all(peer) == BIG[: error.sent]


def test_a_poller_thread_that_closes_before_the_timer_of_a_write_tells_how_much_went(
    local_ends: Ends, poller_thread: PollerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. the write waits in the queue; 2. the poller thread is closed, which gives that up; 3. there is no timer."""
    stream, peer = local_ends
    start_timer = poller_thread.start_timer

    def close_first(delay: float, *actions: Any) -> Any:
        if delay == 1000:
            Worker(poller_thread.close).outcome()
        return start_timer(delay, *actions)

    monkeypatch.setattr(poller_thread, "start_timer", close_first)
    error = failure(stream.write(BIG, timeout=1000), PollerClosedError)
    assert error.sent is not None
    assert error.unsent == len(BIG) - error.sent
    assert failure(stream.write(b"garbage"), PollerClosedError).sent == 0
    assert stream.close(flush=False).result(PATIENCE) is None
    assert receive_all(peer) == BIG[: error.sent]


def test_every_backend_serves_both_directions(namespace: Namespace, backend: str) -> None:
    """Big reads and writes at the same time, a peer that shuts its side, a flush, a close."""
    with PollerThread(bbipc.make_poller(backend)) as poller_thread, namespace.stream_and_peer() as (one, peer):
        stream = FutureStream(one, poller_thread)
        reading, writing = stream.read_exactly(len(BIG)), stream.write(BIG)
        sender = Worker(lambda: peer.sendall(BIG))
        assert receive(peer, len(BIG)) == BIG
        sender.outcome()
        assert (reading.result(PATIENCE), writing.result(PATIENCE)) == (BIG, len(BIG))
        end = stream.read()
        peer.shutdown(socket.SHUT_WR)
        assert end.result(PATIENCE) == b""
        writing, closing = stream.write(BIG), stream.close()
        assert receive_all(peer) == BIG
        assert (writing.result(PATIENCE), closing.result(PATIENCE)) == (len(BIG), None)


def test_operations_wait_for_a_connect(short_dir: Path, poller_thread: PollerThread) -> None:
    namespace = make_namespace("local", short_dir)
    with namespace.make_server(backlog=0) as server, namespace.connect(server), namespace.connect(server) as late:
        assert not late.determined()
        stream = FutureStream(late, poller_thread)
        write, read = stream.write(b"x" * 70000), stream.read()
        with accept(server), accept(server) as accepted:
            accepted.write(b"welcome")
            assert read.result(PATIENCE) == b"welcome"
            assert write.result(PATIENCE) == 70000


def test_operations_fail_with_a_failed_connect(short_dir: Path, poller_thread: PollerThread) -> None:
    namespace = make_namespace("local", short_dir)
    with namespace.make_server(backlog=0) as server, namespace.connect(server), namespace.connect(server) as late:
        assert not late.determined()
        stream = FutureStream(late, poller_thread)
        futures = [stream.write(b"x" * 70000), stream.read(), stream.flush()]
        server.close()
        for future in futures:
            failure(future, ConnectionFailedError)  # type: ignore[arg-type]


def test_callbacks_may_use_the_stream(ends: Ends) -> None:
    """No lock of ours is held when they run: 200 echoes, each begun in the callback of the last."""
    stream, peer = ends
    finished: Future[int] = Future()

    def again(count: int, future: Future[bytes]) -> None:
        if count == 200:
            stream.close()
            finished.set_result(count)
        else:
            stream.write(future.result(0))
            stream.read().add_done_callback(lambda done: again(count + 1, done))

    stream.read().add_done_callback(lambda done: again(0, done))
    for _ in range(200):
        peer.sendall(b"ping")
        assert receive(peer, 4) == b"ping"
    peer.sendall(b"last")
    assert finished.result(PATIENCE) == 200


@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt])
def test_a_callback_that_raises_harms_nobody(local_ends: Ends, kind: type[BaseException]) -> None:
    stream, peer = local_ends
    futures = [stream.read_exactly(1) for _ in range(5)]

    def spoil(future: Future[bytes]) -> None:
        raise kind

    for future in futures:
        future.add_done_callback(spoil)
    peer.sendall(b"abcde")
    assert [future.result(PATIENCE) for future in futures] == [b"a", b"b", b"c", b"d", b"e"]
    last = stream.read()
    peer.sendall(b"f")
    assert last.result(PATIENCE) == b"f"


def test_a_finished_operation_leaves_no_timer(local_ends: Ends, poller_thread: PollerThread) -> None:
    stream, peer = local_ends
    read = stream.read(timeout=1000)
    peer.sendall(b"x")
    read.result(PATIENCE)
    write, flush = stream.write(BIG, timeout=1000), stream.flush(timeout=1000)
    cancelled = stream.read(timeout=1000)
    cancelled.cancel()
    receive(peer, len(BIG))
    write.result(PATIENCE)
    flush.result(PATIENCE)
    assert poller_thread.call_later(0, lambda: len(poller_thread._timers)).result(PATIENCE) == 0


def test_a_future_that_is_done_is_freed_without_the_collector(local_ends: Ends, poller_thread: PollerThread) -> None:
    """It may hold a megabyte: no circle through its callbacks, or through the traceback of its error."""
    stream, peer = local_ends
    gc.collect()
    gc.disable()
    try:
        futures: list[Future[Any]] = [stream.read(timeout=99), stream.read_exactly(5), stream.read_until(b"\n", 3)]
        peer.sendall(b"abc")
        assert futures[0].result(PATIENCE) == b"abc"
        peer.sendall(b"01234567")
        failure(futures[2], SeparatorNotFoundError)
        futures += [stream.read_exactly(9, timeout=0.01), stream.write(BIG, timeout=99), stream.flush(timeout=99)]
        failure(futures[3], TimeoutError)
        assert len(receive(peer, len(BIG))) == len(BIG)
        futures[5].result(PATIENCE)
        futures += [stream.read_exactly(9), stream.read_exactly(9)]
        futures[6].cancel()
        peer.close()
        failure(futures[7], IncompleteReadError)
        references = [weakref.ref(future) for future in futures]
        del futures
        poller_thread.call_later(0, int).result(PATIENCE)  # its thread has let go of them, too
        poller_thread.call_later(0, int).result(PATIENCE)
        assert [reference() for reference in references] == [None] * len(references)
    finally:
        gc.enable()


# Interrupts, re-entry, forks.


def test_a_call_in_the_middle_of_another_waits_for_it(local_ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal handler writes, reads and closes while its thread is between the kernel's part of a write and ours."""
    stream, peer = local_ends
    write = bbipc.StreamSocket.write
    nested: list[Future[Any]] = []

    def interrupted(self: bbipc.StreamSocket, *args: object) -> int:
        count = write(self, *args)  # type: ignore[arg-type]
        if not nested:
            nested.append(stream.write(b"handler"))
            nested.append(stream.close())
            assert not any(future.done() for future in nested)
        return count

    monkeypatch.setattr(bbipc.StreamSocket, "write", interrupted)
    future = stream.write(BIG)
    assert receive_all(peer) == BIG + b"handler"
    assert future.result(PATIENCE) == len(BIG)
    assert [one.result(PATIENCE) for one in nested] == [7, None]


def test_a_read_in_the_middle_of_another_waits_for_it(local_ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    stream, peer = local_ends
    read = bbipc.StreamSocket.read
    nested: list[Future[bytes]] = []

    def interrupted(self: bbipc.StreamSocket, *args: object) -> bytes | None:
        data = read(self, *args)  # type: ignore[arg-type]
        if not nested:
            nested.append(stream.read_exactly(2))
            cancelled = stream.read()
            assert cancelled.cancel()
        return data

    peer.sendall(b"abcdef")
    arrived(stream)
    monkeypatch.setattr(bbipc.StreamSocket, "read", interrupted)
    assert stream.read(3).result(PATIENCE) == b"abc"
    assert nested[0].result(PATIENCE) == b"de"
    assert stream.read(3).result(PATIENCE) == b"f"


@pytest.mark.parametrize("direction", ["read", "write"])
def test_a_ctrl_c_between_the_kernels_part_and_ours_breaks_the_direction(
    local_ends: Ends, monkeypatch: pytest.MonkeyPatch, direction: str
) -> None:
    stream, peer = local_ends
    original = getattr(bbipc.StreamSocket, direction)

    def interrupted(self: bbipc.StreamSocket, *args: object) -> object:
        original(self, *args)
        raise KeyboardInterrupt

    peer.sendall(b"abc")
    arrived(stream)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(bbipc.StreamSocket, direction, interrupted)
        stream.read() if direction == "read" else stream.write(BIG)
    for _ in range(2):
        broken: Future[Any] = stream.read() if direction == "read" else stream.write(b"x")
        assert failure(broken, SocketError).errno == errno.EIO
    other: Future[Any] = stream.read() if direction == "write" else stream.write(b"x")
    assert other.result(PATIENCE) in {b"abc", 1}
    with contextlib.suppress(SocketError):
        stream.close().result(PATIENCE)
    assert stream.closed


def test_in_a_forked_child_it_refuses_and_closes(local_ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    stream, _ = local_ends
    monkeypatch.setattr(fork, "generation", fork.generation + 1)
    calls: list[Callable[[], object]] = [stream.read, lambda: stream.write(b"x"), stream.flush, stream.shutdown_write]
    stream._reading._at_work[0] = stream._writing._at_work[0] = "a thread that is not there"
    for call in calls:
        with pytest.raises(PollerClosedError):
            call()
    stream.close().result(PATIENCE)
    assert stream.closed


# What it looks like.


def test_it_shows_what_waits(local_ends: Ends) -> None:
    stream, _ = local_ends
    stream.read()
    assert repr(stream) == f"<FutureStream of {stream.stream!r} 1 reads waiting, 0 bytes to send>"
    assert not stream.closed
    stream.close()
    assert repr(stream) == "<FutureStream of <LocalStream closed> 0 reads waiting, 0 bytes to send>"


def test_nonsense_is_refused_at_the_call(local_ends: Ends, poller_thread: PollerThread) -> None:
    stream, _ = local_ends
    refused: list[tuple[Callable[[], object], type[Exception]]] = [
        (lambda: stream.read(0), ValueError),
        (lambda: stream.read(timeout=-1), ValueError),
        (lambda: stream.read_exactly(-1), ValueError),
        (lambda: stream.read_until(b""), ValueError),
        (lambda: stream.read_until("x"), TypeError),  # type: ignore[arg-type]
        (lambda: stream.write("x"), TypeError),  # type: ignore[arg-type]
        (lambda: stream.write(memoryview(b"abcd")[::2]), TypeError),
        (lambda: stream.write(b"x", timeout="1"), TypeError),  # type: ignore[arg-type]
        (lambda: stream.flush(timeout=float("nan")), ValueError),
        (lambda: stream.close(timeout=-1), ValueError),
        (lambda: stream.as_file(timeout=-1), ValueError),
        (lambda: FutureStream(stream, poller_thread), TypeError),  # type: ignore[arg-type]
        (lambda: FutureStream(stream.stream, stream), TypeError),  # type: ignore[arg-type]
        (lambda: FutureStream(stream.stream, poller_thread, write_limit=-1), ValueError),
    ]
    for call, kind in refused:
        with pytest.raises(kind):
            call()
    assert stream.write(b"fine").result(0) == 4
