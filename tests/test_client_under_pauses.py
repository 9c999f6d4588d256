"""MessageClient, where a thread stands still between two lines, or in a callback; each failed on the code before."""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any, Self
from unittest import mock

import pytest

import bbipc
from bbipc import (
    NoLocalServerError,
    PollerClosedError,
    QueueFullError,
    RemoteDisconnectedError,
    SocketClosedError,
    SocketEvent,
    StreamSocket,
    poll_socket,
)
from bbipc.messages import Message, MessageType, encode
from bbipc.messages.message import NO_RESPONSE
from bbipc.polling.vigil import Vigil
from pool import MessageClient, PollerThread
from pool.calls import Call, Waiter
from pool.connecting import MOST_SPENT
from pool.conversation import Conversation
from pool.parties import Monitor
from pool.standby import Standby
from pool.turn import Turn
from tests.support.makers import PATIENCE, Worker
from tests.support.messaging import FAILED, TAGGED, Peer, ScriptedServer, requests_of
from tests.support.serving import until

#: more than the kernel takes at once
LARGE = bytes(3_000_000)


@pytest.fixture(name="path")
def a_path(short_dir: Path) -> Path:
    return short_dir / "s"


def answering(peer: Peer) -> None:
    """Answers what does not say "mute", with little."""
    for request in requests_of(peer):
        if request.payload != b"mute":
            peer.answer(request, b"ok")


def conversation_of(client: MessageClient) -> Conversation:
    conversation = client._connections.current
    assert conversation is not None
    return conversation


# A future's own time.


def test_the_time_of_a_future_ends_a_wait_for_it_in_a_callback(path: Path) -> None:
    """The poller thread, which looks after the times, waits there itself."""
    told: Future[float] = Future()
    with ScriptedServer(answering, path), MessageClient(path) as client:

        def wait_in_a_callback(_: object) -> None:
            mute = client.submit(b"mute", timeout=0.05)
            try:
                mute.result(PATIENCE)
            except BaseException as error:
                told.set_exception(error)

        assert client.send(b"a") == b"ok"
        client.submit(b"b").add_done_callback(wait_in_a_callback)
        with pytest.raises(TimeoutError, match="no reply"):
            told.result(PATIENCE / 2)
        assert client.stats().in_flight == 0


def test_the_time_of_a_future_ends_a_wait_for_it_beside_a_long_callback(path: Path) -> None:
    begun, go = threading.Event(), threading.Event()

    def stay(_: object) -> None:
        begun.set()
        assert go.wait(PATIENCE)

    with ScriptedServer(answering, path), MessageClient(path) as client:
        assert client.send(b"a") == b"ok"
        future = client.submit(b"b")
        Worker(lambda: future.add_done_callback(stay))  # which is called there if it is done already
        assert begun.wait(PATIENCE)
        mute = client.submit(b"mute", timeout=0.05)
        both = [Worker(mute.result), Worker(mute.exception)]
        with pytest.raises(TimeoutError, match="no reply"):
            both[0].outcome(PATIENCE / 2)
        assert isinstance(both[1].outcome(PATIENCE / 2), TimeoutError)
        assert mute.done()
        go.set()


# What the poller thread is asked to look for.


class Late:
    """Stands in for a method: the first call of it by a thread that *who* says yes to is made when told to *go*."""

    def __init__(self, owner: type, name: str, who: Callable[[object], bool], *, behind: bool = False) -> None:
        self.there, self.go = threading.Event(), threading.Event()
        original = getattr(owner, name)

        def late(target: object, *args: object, **kwargs: object) -> object:
            mine = not self.there.is_set() and who(target)
            result = original(target, *args, **kwargs) if behind or not mine else None
            if mine:
                self.there.set()
                assert self.go.wait(PATIENCE)
            return result if behind or not mine else original(target, *args, **kwargs)

        self._patch = mock.patch.object(owner, name, late)

    def __enter__(self) -> Self:
        self._patch.start()
        return self

    def __exit__(self, *what: object) -> None:
        self.go.set()
        self._patch.stop()


def on_the_poller_thread(_: object) -> bool:
    return threading.current_thread().name == "bbipc-client"


def on_a_worker(_: object) -> bool:
    return isinstance(threading.current_thread(), Worker)


@contextlib.contextmanager
def watched(path: Path, script: Callable[[Peer], object] = answering, **terms: Any) -> Iterator[MessageClient]:
    """A client whose connection the poller thread reads."""
    with ScriptedServer(script, path), MessageClient(path, **{"timeout": PATIENCE, **terms}) as client:
        assert client.send(b"a") == b"ok"
        done, _ = wait([client.submit(b"b")], PATIENCE)
        assert done
        current = conversation_of(client)
        until(lambda: current._armed and not current._role)
        yield client


def asked_for(client: MessageClient) -> tuple[bool, bool]:
    """Whether room to write is asked for; and whether there is something to write."""
    current = conversation_of(client)
    assert current._monitor is not None
    return bool(current._monitor.wanted & SocketEvent.ROOM_TO_WRITE.value), current.outgoing.stuck


def test_room_that_one_thread_asks_for_is_not_unasked_by_one_that_looked_before(path: Path) -> None:
    """The request stayed half written for good."""
    with watched(path) as client, Late(Monitor, "set_events", on_a_worker) as late:
        arming = Worker(conversation_of(client)._arm)  # nothing is stuck
        assert late.there.wait(PATIENCE)
        large = client.submit(LARGE)
        late.go.set()
        arming.outcome()
        done, _ = wait([large], PATIENCE / 2)
        assert done


def test_room_that_nobody_needs_any_more_is_not_asked_for_by_one_that_looked_before(path: Path) -> None:
    """The poller thread was told of it again and again, for good."""
    with watched(path) as client, Late(Monitor, "set_events", on_a_worker) as late:
        submitting = Worker(lambda: client.submit(LARGE).result(PATIENCE))
        assert late.there.wait(PATIENCE)
        assert client.submit(b"c").result(PATIENCE) == b"ok"  # whoever reads writes the rest, too
        current = conversation_of(client)
        current._arm()
        assert asked_for(client) == (False, False)
        late.go.set()
        assert submitting.outcome() == b"ok"
        until(lambda: asked_for(client) == (False, False))
        assert not current._roomy


# What nobody writes who waits for it.


def test_room_is_asked_for_by_who_got_stuck_on_anothers_request(path: Path) -> None:
    """Behind his own, which wants no reply, he wrote what had been queued meanwhile, and went away."""
    with watched(path) as client, Late(StreamSocket, "write", on_a_worker, behind=True) as late:
        telling = Worker(lambda: client.send(b"told", no_response=True))
        assert late.there.wait(PATIENCE)
        large = client.submit(LARGE)
        until(lambda: not conversation_of(client)._role)
        assert len(conversation_of(client).outgoing.queue) == 1
        assert asked_for(client) == (False, False)
        late.go.set()
        telling.outcome()
        done, _ = wait([large], PATIENCE / 2)
        assert done


def test_room_is_asked_for_by_who_got_stuck_on_what_stood_behind_a_cancelled_request(path: Path) -> None:
    with watched(path) as client:
        outgoing = conversation_of(client).outgoing
        writer = object()
        outgoing._pen[0] = writer  # somebody writes, so what is submitted is queued
        first, second = client.submit(b"first"), client.submit(LARGE)
        assert asked_for(client) == (False, False)
        del outgoing._pen[0]
        assert first.cancel()
        done, _ = wait([second], PATIENCE / 2)
        assert done


# Room for one more.


@contextlib.contextmanager
def crammed(path: Path) -> Iterator[tuple[MessageClient, threading.Event]]:
    """A client that has more to write than it may hold; the server reads on when told to, and answers nothing then."""
    go = threading.Event()

    def read_late(peer: Peer) -> None:
        for count, request in enumerate(requests_of(peer)):
            if count == 2:
                assert go.wait(2 * PATIENCE)
            elif count < 2:
                peer.answer(request, b"ok")

    with watched(path, read_late, max_message_size=1_000_000) as client:
        for _ in range(4):
            client.submit(bytes(990_000))
        until(lambda: asked_for(client) == (True, True))
        try:
            yield client, go
        finally:
            go.set()


def test_who_waits_for_room_sleeps(path: Path) -> None:
    """He looked again and again."""
    with crammed(path) as (client, _), mock.patch.object(Vigil, "wait", autospec=True, side_effect=Vigil.wait) as looks:
        with pytest.raises(QueueFullError):
            client.submit(b"c", timeout=0.2)
        assert looks.call_count < 10


def test_who_waits_for_room_is_told_of_what_another_thread_has_written(path: Path) -> None:
    """Whoever reads finds nothing left to write when he comes to it."""
    with crammed(path) as (client, go):
        current = conversation_of(client)
        reader = Waiter()
        reader.thread = -1
        until(lambda: current._role.setdefault(0, reader) is reader)  # a thread that reads, and pauses
        waiting = Worker(lambda: client.submit(b"c", timeout=PATIENCE))
        until(lambda: bool(current._crowd) and bool(current._sleepers))
        go.set()

        def all_written() -> bool:
            with contextlib.suppress(TimeoutError):
                client.send(b"told", no_response=True, timeout=0.001)
            return not current.outgoing.queue

        until(all_written)
        waiting.outcome(PATIENCE / 2)
        del current._role[0]


def test_who_waits_for_room_is_told_of_what_is_taken_back(path: Path) -> None:
    with crammed(path) as (client, _):
        current = conversation_of(client)
        until(lambda: not current._role)
        size = current.outgoing.unsent()
        largest = Worker(lambda: client.send(bytes(990_000), no_response=True, timeout=0.5))
        until(lambda: current.outgoing.unsent() > size or not largest.is_alive())
        waiting = Worker(lambda: current.make_room(1024, size + 1, time.monotonic() + PATIENCE))
        until(lambda: bool(current._crowd) or not waiting.is_alive())
        with pytest.raises(TimeoutError):
            largest.outcome()
        assert waiting.outcome(PATIENCE / 2)


# The end of a connection that is idle.


def test_the_end_of_an_idle_connection_is_seen_by_a_submit_behind_submits() -> None:
    """Over TCP, where a write to a peer that has closed is taken all the same."""

    def once(peer: Peer) -> None:
        request = peer.receive()
        if request is not None:
            peer.answer(request)

    with (
        bbipc.make_ipv4_tcp_server(bbipc.IPV4_LOOPBACK, 0) as server,
        ScriptedServer(once, server) as scripted,
        MessageClient((server.host_address, server.port), timeout=PATIENCE) as client,
    ):
        for number in range(1, 10):
            assert client.submit(b"a").result() == b"A"
            until(lambda number=number: scripted.ended == number)  # type: ignore[misc]
        assert client.stats().connections == 9


# Who polls.


def test_who_polls_a_future_reads(path: Path) -> None:
    """He counted as somebody who reads, so that the poller thread did not."""
    with watched(path) as client:
        current = conversation_of(client)
        assert client.send(b"c") == b"ok"
        current._poller_thread().call_later(0, lambda: None).result(PATIENCE)
        with mock.patch.object(Conversation, "_attend"):  # nor is it to
            assert current._monitor is not None
            current._monitor.pause()
            future = client.submit(b"d")
            results = []

            def polled() -> bool:
                with contextlib.suppress(TimeoutError):
                    results.append(future.result(0))
                return bool(results)

            until(polled)
        assert results == [b"ok"]
        assert not current._role
        assert not current._sleepers


def test_a_reply_that_has_come_in_time_is_had_though_nobody_has_read_it_in_time(path: Path) -> None:
    with watched(path) as client:
        current = conversation_of(client)
        with mock.patch.object(Conversation, "_attend"), mock.patch.object(Conversation, "_sweep"):
            assert current._monitor is not None
            current._monitor.pause()
            future = client.submit(b"d", timeout=0.05)
            assert current._vigil is not None
            assert current._vigil.wait(PATIENCE)
            deadline = time.monotonic() + 0.1
            until(lambda: time.monotonic() > deadline)
            assert future.result() == b"ok"


# The end of a peer that does not read any more.


def test_a_peer_that_does_not_read_and_talks_on_suspends_no_timeout(path: Path) -> None:
    """Whoever could not write to it heard it out for as long as it went on."""
    late = encode(Message(MessageType.BINARY, b"", TAGGED, 0xFFFFFF))
    with watched(path, reconnect=False) as client:
        with (
            mock.patch.object(StreamSocket, "write", side_effect=BrokenPipeError(errno.EPIPE, "gone")),
            mock.patch.object(StreamSocket, "read", return_value=late),
            pytest.raises(RemoteDisconnectedError, match="gone"),
        ):
            Worker(lambda: client.send(b"c", timeout=0.1)).outcome(PATIENCE / 2)
        assert not client._connections.standing


# A peer that complains, and does not close.


def complaining(peer: Peer) -> None:
    for request in requests_of(peer):
        if not request.flags & NO_RESPONSE:
            peer.answer(request)
        peer.send(Message(MessageType.STRING, b"Bad: you\0", FAILED, 0))


def test_connections_are_not_left_to_a_peer_that_complains(path: Path) -> None:
    with ScriptedServer(complaining, path) as server, MessageClient(path, timeout=PATIENCE) as client:
        for number in range(1, 10):
            assert client.send(b"a") == b"A"
            current = conversation_of(client)
            if current.open:
                assert poll_socket(current._stream, SocketEvent.DATA_AVAILABLE, PATIENCE)
                current.used = 0.0  # it is looked at
            assert client.stats().connections == number
        assert len(client._connections.standing) == 1
        until(lambda: server.ended == server.connections - 1)


def test_connections_for_what_wants_no_reply_are_not_left_to_a_peer_that_complains(path: Path) -> None:
    with ScriptedServer(complaining, path), MessageClient(path, timeout=PATIENCE) as client:
        for number in range(1, 2 * MOST_SPENT):
            client.send(b"a", no_response=True)
            telling = client._connections.telling
            assert telling is not None
            assert poll_socket(telling._stream, SocketEvent.DATA_AVAILABLE, PATIENCE)
            assert client.stats().connections == number
        assert len(client._connections.standing) <= MOST_SPENT + 2


# Callbacks.


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_callback_that_raises_what_it_likes_takes_nobody_elses_away(path: Path) -> None:
    called, go = threading.Event(), threading.Event()

    def answer_at_once(peer: Peer) -> None:
        requests = requests_of(peer)
        for _ in range(2):
            peer.answer(next(requests), b"ok")
        both = [next(requests), next(requests)]
        assert go.wait(PATIENCE)
        peer.connection.sendall(b"".join(encode(Message(one.type, b"ok", TAGGED, one.tag)) for one in both))
        peer.receive()

    def leave(_: object) -> None:
        raise SystemExit("a callback")

    with watched(path, answer_at_once) as client:
        client.submit(b"c").add_done_callback(leave)
        client.submit(b"d").add_done_callback(lambda _: called.set())
        go.set()
        assert called.wait(PATIENCE / 2)


# A write that fails.


@contextlib.contextmanager
def read_no_more(conversation: Conversation) -> Iterator[None]:
    """Its peer does not; but it does not hang up, so nothing comes that would let anybody look."""
    write, write_vector = StreamSocket.write, StreamSocket.write_vector

    def refused(stream: StreamSocket, *args: Any) -> int:
        if stream is conversation._stream:
            raise BrokenPipeError(errno.EPIPE, "gone")
        return write(stream, *args)

    def vector_refused(stream: StreamSocket, *args: Any) -> int:
        if stream is conversation._stream:
            raise BrokenPipeError(errno.EPIPE, "gone")
        return write_vector(stream, *args)

    with (
        mock.patch.object(StreamSocket, "write", refused),
        mock.patch.object(StreamSocket, "write_vector", vector_refused),
    ):
        yield


def lost(future: Future[Any]) -> bool:
    """Whether that becomes of it though nobody waits for it, who would read."""
    until(future.done)
    return isinstance(future.exception(), RemoteDisconnectedError)


def test_the_poller_thread_ends_what_could_not_be_written_to_since_it_has_looked(path: Path) -> None:
    with watched(path) as client:
        mute, current = client.submit(b"mute"), conversation_of(client)
        with Late(Standby, "_turn", on_the_poller_thread, behind=True) as late:
            client.submit(b"c")
            assert late.there.wait(PATIENCE)
            with read_no_more(current):
                assert client.submit(b"d").result(PATIENCE) == b"ok"  # over another connection
        assert lost(mute)
        assert current not in client._connections.standing


def test_a_reader_who_leaves_ends_what_could_not_be_written_to_since_he_has_looked(path: Path) -> None:
    with watched(path) as client:
        mute, current = client.submit(b"mute"), conversation_of(client)
        reader = Waiter()
        reader.thread = -1
        until(lambda: current._role.setdefault(0, reader) is reader)
        with read_no_more(current):
            assert client.submit(b"c").result(PATIENCE) == b"ok"
        current._leave(reader)
        assert lost(mute)


def test_what_fails_behind_a_request_that_is_taken_back_is_the_end(path: Path) -> None:
    with watched(path) as client:
        mute, current = client.submit(b"mute"), conversation_of(client)
        current.outgoing._pen[0] = current  # somebody writes, so what is submitted is queued
        first, second = client.submit(b"first"), client.submit(b"second")
        del current.outgoing._pen[0]
        with read_no_more(current):
            assert first.cancel()
            assert lost(mute)
            assert lost(second)


# Long times.


def test_a_time_may_be_longer_than_a_lock_can_wait(path: Path) -> None:
    with watched(path) as client:
        current = conversation_of(client)
        reader = Waiter()
        reader.thread = -1
        until(lambda: current._role.setdefault(0, reader) is reader)
        workers = [
            Worker(lambda: client.send(b"c", timeout=1e11)),
            Worker(lambda: client.submit(b"d", timeout=1e11).result()),
            Worker(lambda: client.submit(b"e").result(1e11)),
        ]
        until(lambda: len(current._sleepers) == 3 or not all(worker.is_alive() for worker in workers))
        current._leave(reader)
        assert [worker.outcome() for worker in workers] == [b"ok"] * 3


def test_a_turn_may_be_waited_for_longer_than_a_lock_can(path: Path) -> None:
    turn = Turn()
    waiter = Waiter()
    waiter.thread = -1
    turn._holder[0] = waiter
    waiting = Worker(lambda: turn.run(lambda _: "done", time.monotonic() + 1e11))
    until(lambda: bool(turn._sleepers) or not waiting.is_alive())
    turn._leave(waiter)
    assert waiting.outcome() == "done"


def test_no_timer_is_left_by_a_connection_that_ended_before_it_was_made(path: Path) -> None:
    with watched(path, timeout=None) as client:
        current, loop = conversation_of(client), client._lender.get()
        with Late(Standby, "_sweep_later", on_a_worker) as late:
            submitting = Worker(lambda: client.submit(b"mute", timeout=3600).exception())
            assert late.there.wait(PATIENCE)
            current.end(ConnectionResetError())
        assert isinstance(submitting.outcome(), RemoteDisconnectedError)
        until(lambda: len(loop._timers) == 0)
        assert not current._sweeps


# The poller thread, while others wait to connect anew.


@contextlib.contextmanager
def held_off(path: Path) -> Iterator[tuple[PollerThread, MessageClient]]:
    """A client that is not to try for long, as it has failed to connect again and again."""
    with PollerThread() as loop, MessageClient(path, poller_thread=loop) as client:
        for _ in range(2):
            with pytest.raises(NoLocalServerError):
                client.send(b"a")
        client._connections._not_before = time.monotonic() + 2 * PATIENCE
        yield loop, client


def test_the_poller_thread_does_not_wait_where_others_wait_to_connect_anew(path: Path) -> None:
    with held_off(path) as (loop, client):
        sending = [Worker(lambda: client.send(b"b")) for _ in range(2)]
        until(lambda: len(client._connections._turn._sleepers) == 2)
        with pytest.raises(NoLocalServerError):
            loop.call_later(0, lambda: client.submit(b"c")).result(PATIENCE / 2)
        client.close()
        for worker in sending:
            with pytest.raises(SocketClosedError):
                worker.outcome()


def test_the_poller_thread_does_not_wait_where_others_begin_to_wait_to_connect_anew(path: Path) -> None:
    with held_off(path) as (loop, client):
        connections = client._connections
        later, connections._not_before = connections._not_before, 0.0
        holder = Waiter()
        holder.thread = -1
        connections._turn._holder[0] = holder
        submitting = loop.call_later(0, lambda: client.submit(b"c"))
        until(lambda: bool(connections._turn._sleepers))
        connections._not_before = later
        pausing = Worker(lambda: connections._pause(None, True, holder))
        with pytest.raises(NoLocalServerError):
            submitting.result(PATIENCE / 2)
        client.close()
        with pytest.raises(SocketClosedError):
            pausing.outcome()


# A poller thread that is closed.


def in_order_of_its_own(peer: Peer) -> None:
    """What says "slow" is answered behind the next one."""
    held: list[Message] = []
    for request in requests_of(peer):
        if request.payload == b"slow":
            held.append(request)
            continue
        peer.answer(request, b"ok")
        while held:
            peer.answer(held.pop(), b"slow, too")


@contextlib.contextmanager
def reading(path: Path) -> Iterator[tuple[PollerThread, MessageClient, Worker]]:
    """A thread that waits for a slow answer, and reads for others."""
    with (
        ScriptedServer(in_order_of_its_own, path),
        PollerThread() as loop,
        MessageClient(path, poller_thread=loop, timeout=PATIENCE) as client,
    ):
        assert client.send(b"a") == b"ok"
        slow, current = Worker(lambda: client.send(b"slow")), conversation_of(client)
        until(lambda: isinstance(current._role.get(0), Call))
        yield loop, client, slow


def test_a_submit_without_a_poller_thread_is_refused_and_harms_nobody(path: Path) -> None:
    """It was sent, or it ended what others wait for."""
    with reading(path) as (loop, client, slow):
        loop.close()
        with pytest.raises(PollerClosedError):
            client.submit(b"b")
        assert client.send(b"c") == b"ok"
        assert slow.outcome() == b"slow, too"
        assert client.stats().connections == 1


def test_a_callback_whose_poller_thread_is_closed_is_not_called_in_the_readers_role(path: Path) -> None:
    """It could send nothing there: it waited for itself."""
    told: Future[object] = Future()
    with reading(path) as (loop, client, slow):

        def send_from_there(_: object) -> None:
            try:
                told.set_result(client.send(b"there"))
            except BaseException as error:
                told.set_exception(error)

        outgoing = conversation_of(client).outgoing
        outgoing._pen[0] = client  # somebody writes, so what is submitted is queued, until it has a callback
        future = client.submit(b"b")
        future.add_done_callback(send_from_there)
        loop.close()
        del outgoing._pen[0]
        outgoing.flush(client)
        assert told.result(PATIENCE / 2) == b"ok"
        assert slow.outcome() == b"slow, too"
        assert future.result(0) == b"ok"
