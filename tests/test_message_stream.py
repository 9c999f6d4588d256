"""MessageStream: whole messages over real sockets, without waiting, from any thread, with a bounded backlog."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

import bbipc
from bbipc import (
    ChecksumError,
    ConnectionFailedError,
    InvalidMessageError,
    MessageError,
    MessageTooLargeError,
    RemoteDisconnectedError,
    SocketClosedError,
    SocketEvent,
    TruncatedMessageError,
)
from bbipc.messages import MAX_MESSAGE_SIZE, Message, MessageFlag, MessageStream, encode
from bbipc.sockets.stream import StreamSocket
from tests.support import wire
from tests.support.makers import PATIENCE, Namespace, Worker, fill

HELLO = Message.string("hello")
SOMETHING = SocketEvent.DATA_AVAILABLE | SocketEvent.REMOTE_DISCONNECTED


@pytest.fixture(name="two")
def two_ends(namespace: Namespace) -> Iterator[tuple[MessageStream, MessageStream]]:
    with namespace.pair() as (one, other):
        yield MessageStream(one), MessageStream(other)


@pytest.fixture(name="local")
def two_local_ends() -> Iterator[tuple[MessageStream, MessageStream]]:
    one, other = bbipc.local_stream_pair()
    with one, other:
        yield MessageStream(one), MessageStream(other)


@pytest.fixture(name="raw")
def one_end_and_a_plain_socket() -> Iterator[tuple[MessageStream, socket.socket]]:
    one, other = socket.socketpair()
    with other, bbipc.adopt_descriptor(one.detach()) as stream:
        assert isinstance(stream, StreamSocket)
        other.settimeout(PATIENCE)
        yield MessageStream(stream), other


def next_of(stream: MessageStream) -> Message | None:
    """The next message, waited for as the docstring says; ``None`` at the end."""
    while (message := stream.receive()) is None and not stream.ended:
        assert bbipc.poll_socket(stream.stream, SOMETHING, PATIENCE), "nothing came"
    return message


def flushed(stream: MessageStream) -> None:
    while not stream.flush():
        assert bbipc.poll_socket(stream.stream, SocketEvent.ROOM_TO_WRITE, PATIENCE), "no room came"


def sent(stream: MessageStream, message: Message) -> None:
    while not stream.send(message):
        assert bbipc.poll_socket(stream.stream, SocketEvent.ROOM_TO_WRITE, PATIENCE), "no room came"


def test_messages_go_both_ways(two: tuple[MessageStream, MessageStream]) -> None:
    one, other = two
    for here, there in ((one, other), (other, one)):
        assert here.receive() is None
        assert here.send(HELLO)
        assert here.send(Message.binary(b"\0\xff", MessageFlag.TAGGED, 7))
        assert here.unsent == 0
        assert next_of(there) == HELLO
        assert next_of(there) == Message.binary(b"\0\xff", 16, 7)
        assert there.receive() is None
        assert not there.ended


def test_the_largest_message_travels_whole(two: tuple[MessageStream, MessageStream]) -> None:
    one, other = two
    message = Message.binary(bytes(range(256)) * (MAX_MESSAGE_SIZE // 256))
    assert one.send(message)
    assert one.unsent > 0
    worker = Worker(lambda: next_of(other))
    flushed(one)
    assert worker.outcome() == message
    assert one.unsent == 0


def test_the_end_is_told_behind_all_messages(two: tuple[MessageStream, MessageStream]) -> None:
    one, other = two
    for _ in range(3):
        one.send(HELLO)
    one.stream.shutdown_write()
    assert [next_of(other) for _ in range(3)] == [HELLO] * 3
    assert next_of(other) is None
    assert other.ended
    assert other.receive() is None
    assert other.send(HELLO)  # the other way still goes
    assert next_of(one) == HELLO


def test_what_came_together_is_received_one_by_one_before_the_end_is_seen(
    raw: tuple[MessageStream, socket.socket],
) -> None:
    stream, peer = raw
    peer.sendall(encode(HELLO) * 3)
    peer.close()
    for _ in range(3):
        assert stream.receive() == HELLO
        assert not stream.ended
    assert stream.receive() is None
    assert stream.ended


def test_a_message_in_single_bytes_arrives(raw: tuple[MessageStream, socket.socket]) -> None:
    stream, peer = raw
    frame = encode(HELLO)
    for count, octet in enumerate(frame, 1):
        peer.sendall(bytes([octet]))
        assert (stream.receive() is not None) == (count == len(frame))


def test_an_end_inside_a_message_is_an_error_and_stays_one(raw: tuple[MessageStream, socket.socket]) -> None:
    stream, peer = raw
    peer.sendall(encode(HELLO) + encode(HELLO)[:35])
    peer.close()
    assert stream.receive() == HELLO
    for _ in range(2):
        with pytest.raises(TruncatedMessageError) as caught:
            stream.receive()
        assert (caught.value.have, caught.value.need) == (35, len(encode(HELLO)))
        assert not stream.ended


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (b"x" * 32, InvalidMessageError),
        (wire.Frame(1, b"abc").header(check=1) + b"abc", ChecksumError),
        (wire.Frame(1).header(MAX_MESSAGE_SIZE + 1), MessageTooLargeError),
        (wire.Frame(1, b"", wire.UNSIGNED).encoded(), InvalidMessageError),
    ],
    ids=["magic", "checksum", "size", "unsigned"],
)
def test_damage_is_told_behind_what_was_good_and_stays(
    raw: tuple[MessageStream, socket.socket], damage: bytes, kind: type[MessageError]
) -> None:
    stream, peer = raw
    peer.sendall(encode(HELLO) * 2 + damage + encode(HELLO))
    assert [stream.receive(), stream.receive()] == [HELLO, HELLO]
    for _ in range(2):
        with pytest.raises(kind):
            stream.receive()
    assert stream.send(HELLO)  # so that the peer may be told
    assert peer.recv(100) == encode(HELLO)
    assert not stream.stream.closed


def test_the_options_are_those_of_the_decoder(raw: tuple[MessageStream, socket.socket]) -> None:
    stream, peer = raw
    picky = MessageStream(stream.stream, max_message_size=4, accept_unsigned=True)
    unsigned = Message.binary(b"four", MessageFlag.UNSIGNED)
    peer.sendall(encode(unsigned) + encode(Message.binary(b"fives")))
    assert picky.receive() == unsigned
    with pytest.raises(MessageTooLargeError) as caught:
        picky.receive()
    assert (caught.value.size, caught.value.limit) == (5, 4)
    with pytest.raises(ValueError, match="max_message_size"):
        MessageStream(stream.stream, max_message_size=-1)


def test_a_message_too_large_is_not_sent(raw: tuple[MessageStream, socket.socket]) -> None:
    stream, peer = raw
    small = MessageStream(stream.stream, max_message_size=10)
    for size in (11, 1000):
        with pytest.raises(MessageTooLargeError) as caught:
            small.send(Message.binary(bytes(size)))
        assert (caught.value.size, caught.value.limit) == (size, 10)
    assert small.send(Message.binary(bytes(10)))
    assert peer.recv(1000) == encode(Message.binary(bytes(10)))


def test_it_shows_its_stream_and_what_is_unsent(local: tuple[MessageStream, MessageStream]) -> None:
    one, _ = local
    assert repr(one) == f"<MessageStream over {one.stream!r}, 0 bytes unsent>"
    fill(one.stream)
    one.send(Message.string("secret"))
    assert repr(one) == f"<MessageStream over {one.stream!r}, 39 bytes unsent>"


# A peer that does not read.


def test_the_backlog_has_a_bound_and_what_was_refused_is_not_sent(local: tuple[MessageStream, MessageStream]) -> None:
    one, other = local
    one = MessageStream(one.stream, max_message_size=100_000)
    taken = 0
    while one.send(Message.binary(b"a" * 30_000, 16, taken)):
        taken += 1
        assert one.unsent <= 100_000
    assert one.unsent > 100_000 - 30_032
    before = one.unsent
    assert not one.send(Message.binary(b"b" * 30_000))
    assert one.unsent == before
    assert one.send(Message.close(16, taken))  # a small one still has its place
    assert not one.flush()
    found: list[Message] = []
    while len(found) <= taken:
        message = other.receive()
        if message is not None:
            found.append(message)
        else:
            one.flush()
    assert [message.tag for message in found] == list(range(taken + 1))
    assert {message.payload for message in found} == {b"a" * 30_000, b""}
    assert one.flush()
    assert one.unsent == 0


def test_with_nothing_unsent_a_message_of_any_size_allowed_is_taken(
    local: tuple[MessageStream, MessageStream],
) -> None:
    one, _ = local
    fill(one.stream)
    assert one.send(Message.binary(bytes(MAX_MESSAGE_SIZE)))
    assert one.unsent == MAX_MESSAGE_SIZE + 32
    assert not one.send(Message.close())
    assert not one.flush()


def test_thousands_of_small_messages_go_out_in_order(local: tuple[MessageStream, MessageStream]) -> None:
    one, other = local
    fill_size = fill(one.stream)
    for number in range(2000):
        assert one.send(Message.binary(b"", 16, number))
    assert one.unsent == 2000 * 32
    while fill_size:
        fill_size -= len(other.stream.read(fill_size) or b"")
    flushed(one)
    one.stream.shutdown_write()
    assert [message.tag for message in iter(lambda: next_of(other), None)] == list(range(2000))


# Errors of the stream.


def test_a_closed_stream_says_so(local: tuple[MessageStream, MessageStream]) -> None:
    one, _ = local
    fill(one.stream)
    assert one.send(HELLO)
    assert one.unsent == 38
    one.stream.close()
    calls: list[Callable[[], object]] = [one.receive, one.flush, lambda: one.send(HELLO)]
    for call in calls:
        for _ in range(2):
            with pytest.raises(SocketClosedError) as caught:
                call()
            assert caught.value.socket is one.stream
            assert caught.value.unsent == (None if call is calls[0] else 38)


def test_a_peer_that_is_gone_is_told_to_who_sends_and_what_it_sent_can_be_read(
    raw: tuple[MessageStream, socket.socket],
) -> None:
    stream, peer = raw
    peer.sendall(encode(HELLO))
    peer.close()
    with pytest.raises(RemoteDisconnectedError) as caught:
        stream.send(HELLO)
    assert caught.value.unsent == stream.unsent == 38
    assert stream.receive() == HELLO
    assert stream.receive() is None
    assert stream.ended


def test_a_reset_is_no_end(namespace: Namespace) -> None:
    with namespace.stream_and_peer() as (stream, peer):
        messages = MessageStream(stream)
        namespace.reset(stream, peer)
        for _ in range(2):
            with pytest.raises(RemoteDisconnectedError):
                next_of(messages)
        assert not messages.ended


def test_a_connect_that_failed_is_told_both_ways() -> None:
    with bbipc.make_ipv4_tcp_server(bbipc.IPV4_LOOPBACK, 0) as server:
        port = server.port
    with bbipc.connect_to_ipv4_tcp_server(bbipc.IPV4_LOOPBACK, port) as stream:
        messages = MessageStream(stream)
        assert bbipc.poll_socket(stream, SocketEvent.CONNECTION_FAILED, PATIENCE)
        for call in (messages.receive, lambda: messages.send(HELLO)):
            with pytest.raises(ConnectionFailedError) as caught:
                call()
            assert caught.value.errno == errno.ECONNREFUSED


def test_what_was_sent_while_connecting_goes_out_later(namespace: Namespace) -> None:
    with namespace.make_server() as server, namespace.connect(server) as client:
        messages = MessageStream(client)
        assert messages.send(HELLO)
        with bbipc.make_poller() as poller:
            poller.monitor_socket(server, SocketEvent.CONNECTION_AVAILABLE)
            assert poller.wait_for_events(PATIENCE)
        with server.accept_connection() as accepted:
            flushed(messages)
            assert next_of(MessageStream(accepted)) == HELLO


# Threads.


def test_frames_of_many_threads_do_not_mix(local: tuple[MessageStream, MessageStream]) -> None:
    one, other = local
    one = MessageStream(one.stream, max_message_size=100_000)
    senders, each = 6, 150
    start = threading.Barrier(senders)

    def work(number: int) -> Callable[[], None]:
        def run() -> None:
            start.wait()
            for count in range(each):
                sent(one, Message.binary(bytes([number]) * (count * 37 % 9000), 16, count))

        return run

    workers = [Worker(work(number)) for number in range(senders)]
    found = []
    for _ in range(senders * each):
        message = next_of(other)
        assert message is not None
        found.append(message)
        one.flush()
    for worker in workers:
        worker.outcome()
    assert other.receive() is None
    for number in range(senders):
        mine = [message.tag for message in found if message.payload[:1] == bytes([number])]
        assert mine == [count for count in range(each) if count * 37 % 9000]


def test_many_threads_receive_each_message_once(local: tuple[MessageStream, MessageStream]) -> None:
    one, other = local
    total = 1200

    def take() -> list[int]:
        tags = []
        while (message := next_of(other)) is not None:
            tags.append(message.tag)
        return tags

    workers = [Worker(take) for _ in range(4)]
    for tag in range(total):
        sent(one, Message.binary(bytes(tag), 16, tag))
    flushed(one)
    one.stream.shutdown_write()
    lists = [cast("list[int]", worker.outcome()) for worker in workers]
    assert sorted(tag for tags in lists for tag in tags) == list(range(total))
    assert all(tags == sorted(tags) for tags in lists)


class Interrupted:
    """A stream during whose calls Ctrl-C is pressed once, when the kernel has done its part."""

    def __init__(self) -> None:
        self.written = 0

    def write_vector(self, buffers: Any) -> int:
        self.written += 1
        raise KeyboardInterrupt

    def read(self, max_bytes: int) -> bytes:
        raise KeyboardInterrupt


def test_a_direction_in_which_bytes_may_be_lost_is_not_used_again() -> None:
    stream = Interrupted()
    messages = MessageStream(cast("StreamSocket", stream))
    for call in (lambda: messages.send(HELLO), messages.receive):
        with pytest.raises(KeyboardInterrupt):
            call()
    for call in (lambda: messages.send(HELLO), messages.flush):
        with pytest.raises(RuntimeError, match="a write was interrupted"):
            call()
    with pytest.raises(RuntimeError, match="a read was interrupted"):
        messages.receive()
    assert stream.written == 1
