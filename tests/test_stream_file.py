"""A stream as a file: everything that reads and writes files works over a connection."""

from __future__ import annotations

import gc
import io
import pickle
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

import bbipc
from bbipc import RemoteDisconnectedError, SocketClosedError, WriteTimeoutError
from pool.future_stream import FutureStream
from pool.poller_thread import PollerThread
from pool.stream_reads import UpTo
from tests.support.makers import PATIENCE, Namespace, Worker, fill

Ends = tuple[FutureStream, socket.socket]


class CtrlC:
    """A signal that raises KeyboardInterrupt in the main thread, once.

    It is sent until that has happened: one that comes just before the thread goes to sleep is seen when it wakes.
    """

    def __init__(self) -> None:
        self.before = signal.signal(signal.SIGUSR1, self.handle)
        self.due = False

    def handle(self, number: int, frame: object) -> None:
        if self.due:
            self.due = False
            raise KeyboardInterrupt

    def send(self) -> None:
        self.due = True
        pause = threading.Event()
        while self.due:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            pause.wait(0.005)


@pytest.fixture
def ctrl_c() -> Iterator[CtrlC]:
    made = CtrlC()
    yield made
    signal.signal(signal.SIGUSR1, made.before)


@pytest.fixture
def poller_thread() -> Iterator[PollerThread]:
    with PollerThread() as thread:
        yield thread


@pytest.fixture
def ends(namespace: Namespace, poller_thread: PollerThread) -> Iterator[Ends]:
    with namespace.stream_and_peer() as (stream, peer):
        yield FutureStream(stream, poller_thread), peer


@pytest.fixture
def pair(poller_thread: PollerThread) -> Iterator[tuple[FutureStream, FutureStream]]:
    one, other = bbipc.local_stream_pair()
    with one, other:
        yield FutureStream(one, poller_thread), FutureStream(other, poller_thread)


def test_lines_are_read_and_written(ends: Ends) -> None:
    stream, peer = ends
    with io.BufferedRWPair(stream.as_file(), stream.as_file()) as file:
        peer.sendall(b"first\nsecond\nlast")
        assert [file.readline(), file.readline()] == [b"first\n", b"second\n"]
        file.write(b"answer\n")
        file.flush()
        assert peer.recv(99) == b"answer\n"
        peer.shutdown(socket.SHUT_WR)
        assert file.readline() == b"last"
        assert file.readline() == b""
    assert stream.closed


def test_text_is_read_and_written(ends: Ends) -> None:
    stream, peer = ends
    pair = io.BufferedRWPair(stream.as_file(), stream.as_file())
    with io.TextIOWrapper(pair, encoding="utf-8", newline="\n", write_through=True) as file:  # type: ignore[type-var]
        peer.sendall("grüße\nłódź\n".encode())
        peer.shutdown(socket.SHUT_WR)
        assert list(file) == ["grüße\n", "łódź\n"]
        file.write("ende\n")
        file.flush()
        assert peer.recv(99) == b"ende\n"


def test_pickles_travel(pair: tuple[FutureStream, FutureStream]) -> None:
    """50 objects, up to 2 MB each, back to back."""
    ours, theirs = pair
    things = [{"number": number, "data": bytes([number]) * (number * number * 800)} for number in range(50)]

    def send() -> None:
        with io.BufferedWriter(ours.as_file()) as file:
            for thing in things:
                pickle.dump(thing, file)

    sender = Worker(send)
    with io.BufferedReader(theirs.as_file(PATIENCE)) as file:
        assert [pickle.load(file) for _ in things] == things
        with pytest.raises(EOFError):
            pickle.load(file)
    sender.outcome()


def test_it_is_a_raw_file(ends: Ends) -> None:
    stream, peer = ends
    file = stream.as_file()
    assert isinstance(file, io.RawIOBase)
    assert (file.readable(), file.writable(), file.seekable(), file.isatty()) == (True, True, False, False)
    assert file.fileno() == stream.stream.fileno()
    peer.sendall(b"abcdef")
    buffer = bytearray(4)
    assert file.readinto(buffer) == 4
    assert buffer == b"abcd"
    assert file.readinto(bytearray()) == 0
    assert file.read(9) == b"ef"
    assert file.write(memoryview(b"xyz")[1:]) == 2
    assert peer.recv(9) == b"yz"
    peer.close()
    assert file.read(1) == b""
    assert repr(file) == f"<StreamFile of {stream!r}>"
    file.close()
    assert repr(file) == "<StreamFile closed>"


def test_a_read_blocks_until_something_comes(ends: Ends) -> None:
    stream, peer = ends
    file = stream.as_file()
    reader = Worker(lambda: file.read(9))
    peer.sendall(b"abc")
    assert reader.outcome() == b"abc"
    everything = Worker(file.readall)
    peer.sendall(b"the rest")
    peer.shutdown(socket.SHUT_WR)
    assert everything.outcome() == b"the rest"


def test_a_write_blocks_until_it_is_taken(ends: Ends) -> None:
    stream, peer = ends
    data = bytes(range(256)) * 16384
    file = stream.as_file()
    writer = Worker(lambda: file.write(data))
    received = bytearray()
    while len(received) < len(data):
        received += peer.recv(1 << 20)
    assert writer.outcome() == len(data)
    assert received == data


def test_a_timeout_ends_a_read_and_loses_nothing(ends: Ends) -> None:
    stream, peer = ends
    file = stream.as_file(0.02)
    assert file.timeout == 0.02
    with pytest.raises(TimeoutError):
        file.read(9)
    peer.sendall(b"abc")
    file.timeout = PATIENCE
    assert file.read(9) == b"abc"


def test_a_timeout_ends_a_write(pair: tuple[FutureStream, FutureStream]) -> None:
    stream, _ = pair
    fill(stream.stream)
    file = stream.as_file(0.02)
    with pytest.raises(WriteTimeoutError) as caught:
        file.write(bytes(100000))
    assert caught.value.sent == 0
    assert file.write(b"small") == 5
    with pytest.raises(WriteTimeoutError) as caught:
        file.close()
    assert caught.value.unsent == 5
    assert stream.closed
    file.close()


def test_a_close_sends_what_was_written(ends: Ends) -> None:
    stream, peer = ends
    data = bytes(1 << 21)
    file = stream.as_file()
    write = stream.write(data)
    closer = Worker(file.close)
    count = 0
    while part := peer.recv(1 << 20):
        count += len(part)
    closer.outcome()
    assert (count, write.result(0), stream.closed) == (len(data), len(data), True)


def test_a_closed_file_refuses_everything(ends: Ends) -> None:
    stream, _ = ends
    file = stream.as_file()
    file.close()
    calls: list[Callable[[], object]] = [lambda: file.read(1), lambda: file.write(b"x"), lambda: file.readinto(b"")]
    for call in calls:
        with pytest.raises(ValueError, match="closed file"):
            call()
    with pytest.raises(SocketClosedError):
        file.fileno()


def test_a_closed_stream_and_a_lost_peer_raise(ends: Ends, namespace: Namespace) -> None:
    stream, peer = ends
    file = stream.as_file()
    namespace.reset(stream.stream, peer)
    with pytest.raises(RemoteDisconnectedError):
        file.read(1)
    stream.close()
    with pytest.raises(SocketClosedError):
        file.read(1)
    with pytest.raises(SocketClosedError):
        file.write(b"x")


def test_a_close_in_another_thread_ends_a_blocked_read(ends: Ends) -> None:
    stream, _ = ends
    file = stream.as_file()
    asked = threading.Event()

    def read() -> None:
        asked.set()
        with pytest.raises(SocketClosedError):
            file.read(1)

    reader = Worker(read)
    assert asked.wait(PATIENCE)
    stream.close()
    reader.outcome()


def test_the_poller_thread_is_refused_instead_of_hanging(ends: Ends, poller_thread: PollerThread) -> None:
    stream, peer = ends
    file = stream.as_file()
    for call in (lambda: file.read(1), lambda: file.write(b"x")):
        future = poller_thread.call_later(0, call)
        with pytest.raises(RuntimeError, match="poller thread"):
            future.result(PATIENCE)
    stream.write(bytes(1 << 20))
    assert poller_thread.call_later(0, file.close).result(PATIENCE) is None
    count = 0
    while part := peer.recv(1 << 20):
        count += len(part)
    assert count == 1 << 20


def test_dropping_the_file_leaves_the_stream_open(ends: Ends) -> None:
    stream, peer = ends
    stream.as_file()
    gc.collect()
    assert not stream.closed
    stream.write(b"x")
    assert peer.recv(1) == b"x"


def test_a_read_that_a_ctrl_c_ended_keeps_its_bytes(pair: tuple[FutureStream, FutureStream]) -> None:
    ours, theirs = pair
    file = theirs.as_file()
    file._request = request = UpTo(4)  # what a Ctrl-C leaves behind
    reading = theirs._reading.ask(request, None)
    ours.write(b"abcdef")
    assert reading.result(PATIENCE) == b"abcd"
    assert [file.read(3), file.read(3), file.read(3)] == [b"abc", b"d", b"ef"]


# What is gathered above the file.

Gatherer = Callable[[io.BufferedReader], object]
GATHERERS: dict[str, Gatherer] = {
    "readline": lambda file: file.readline(),
    "read": lambda file: file.read(8),
    "read all": lambda file: file.read(),
    "readinto": lambda file: file.readinto(bytearray(8)),
    "pickle": pickle.load,
}


@pytest.mark.parametrize("gather", GATHERERS.values(), ids=GATHERERS)
def test_behind_a_timeout_a_buffered_reader_gives_no_bytes_with_a_gap(ends: Ends, gather: Gatherer) -> None:
    """It has dropped what it had gathered; whoever asks again is told, in whatever way, as often as he likes."""
    stream, peer = ends
    raw = stream.as_file(0.02)
    file: io.BufferedReader = io.BufferedReader(raw)
    peer.sendall(b"\x80\x04\x95one")  # the beginning of a line, of 8 bytes, and of a pickle
    with pytest.raises(TimeoutError):
        gather(file)
    peer.sendall(b" half\n")
    for again in GATHERERS.values():
        with pytest.raises(OSError, match="broken a read off"):
            again(file)
    with pytest.raises(OSError, match="broken a read off"):
        raw.readall()
    assert raw.read(99) == b" half\n"  # the raw file itself has lost nothing


def test_a_read_of_the_raw_file_may_be_tried_again_and_loses_nothing(ends: Ends) -> None:
    stream, peer = ends
    file = stream.as_file(0.02)
    for byte in (b"a", b"b"):
        with pytest.raises(TimeoutError):
            file.read(4)
        peer.sendall(byte)
        file.timeout = PATIENCE
        assert file.read(4) == byte
        file.timeout = 0.02
    buffered = io.BufferedReader(file)  # nothing is missing
    peer.sendall(b"line\n")
    assert buffered.readline() == b"line\n"


def test_the_end_of_a_stream_is_told_as_often_as_one_asks(ends: Ends, namespace: Namespace) -> None:
    """A lost peer and a close are no gap."""
    stream, peer = ends
    file = io.BufferedReader(stream.as_file(PATIENCE))
    namespace.reset(stream.stream, peer)
    for _ in range(2):
        with pytest.raises(RemoteDisconnectedError):
            file.readline()
    stream.close()
    for _ in range(2):
        with pytest.raises(SocketClosedError):
            file.read()


def test_a_closed_file_says_so_whatever_was_before(ends: Ends) -> None:
    stream, _ = ends
    file = stream.as_file(0)
    with pytest.raises(TimeoutError):
        file.readinto(bytearray(1))
    file.close()
    with pytest.raises(ValueError, match="closed file"):
        file.readinto(bytearray(1))


@pytest.fixture
def running(poller_thread: PollerThread) -> None:
    """The thread has been started: the interrupt is not to come in the middle of that."""
    poller_thread.call_later(0, int).result(PATIENCE)


#: python/cpython#148874: there a Ctrl-C may come between the taking of a lock and the body of its ``with``
WITH_LEAKS_LOCKS = sys.version_info >= (3, 14)


@pytest.mark.skipif(WITH_LEAKS_LOCKS, reason="python/cpython#148874: a Ctrl-C leaves locks held")
def test_a_real_ctrl_c_in_a_read_loses_no_byte(
    running: None, ctrl_c: CtrlC, pair: tuple[FutureStream, FutureStream]
) -> None:
    """50 rounds; the interrupt comes anywhere behind the moment in which the read began to wait."""
    ours, theirs = pair
    file = theirs.as_file()

    def interrupt() -> None:
        while not theirs._reading.waiting:
            pass
        ctrl_c.send()

    for _ in range(50):
        interrupter = Worker(interrupt)
        with pytest.raises(KeyboardInterrupt):
            file.read(4)
        interrupter.outcome()
        ours.write(b"abcdef")
        received = b""
        while len(received) < 6:
            received += file.read(9)
        assert received == b"abcdef"


@pytest.mark.skipif(WITH_LEAKS_LOCKS, reason="python/cpython#148874: a Ctrl-C leaves locks held")
@pytest.mark.parametrize("gather", [GATHERERS["readline"], GATHERERS["read"]], ids=["readline", "read"])
def test_behind_a_ctrl_c_a_buffered_reader_gives_no_bytes_with_a_gap(
    running: None,
    ctrl_c: CtrlC,
    pair: tuple[FutureStream, FutureStream],
    gather: Gatherer,
) -> None:
    ours, theirs = pair
    raw = theirs.as_file(PATIENCE)
    file: io.BufferedReader = io.BufferedReader(raw)
    ours.write(b"first ")

    def interrupt() -> None:
        while theirs.stream.data_available() or not theirs._reading.waiting:
            pass
        ctrl_c.send()

    interrupter = Worker(interrupt)
    with pytest.raises(KeyboardInterrupt):
        gather(file)
    interrupter.outcome()
    ours.write(b"half\n")
    with pytest.raises(OSError, match="broken a read off"):
        gather(file)
    assert raw.read(99) == b"half\n"


def test_after_a_write_that_a_ctrl_c_left_in_doubt_nothing_is_written(
    running: None, ctrl_c: CtrlC, pair: tuple[FutureStream, FutureStream]
) -> None:
    ours, theirs = pair
    file = ours.as_file()
    data = bytes(1 << 21)

    def interrupt() -> None:
        theirs.read_exactly(1 << 20).result(PATIENCE)
        ctrl_c.send()

    sent = Worker(interrupt)
    with pytest.raises(KeyboardInterrupt):
        file.write(data)
    sent.outcome()
    with pytest.raises(OSError, match="interrupted"):
        file.write(b"x")
    assert theirs.read_exactly(1 << 20).result(PATIENCE) == data[: 1 << 20]
