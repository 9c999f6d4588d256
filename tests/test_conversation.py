"""One connection of a client: the roles, and what becomes of them when a Ctrl-C comes anywhere."""

from __future__ import annotations

import contextlib
import gc
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

import bbipc
from bbipc import RemoteDisconnectedError, SocketClosedError
from bbipc.messages import Decoder, Message, MessageType, encode
from bbipc.sockets.stream import StreamSocket
from pool import PollerThread, connecting
from pool.calls import Call, Unsent
from pool.client import MessageClient
from pool.conversation import Conversation
from pool.pending import Pending
from pool.replies import Reading
from pool.turn import Turn
from tests.support.alarm import alarms
from tests.support.makers import PATIENCE, Worker
from tests.support.messaging import TAGGED, Peer, ScriptedServer, echo, echo_once, requests_of
from tests.support.serving import until


@pytest.fixture(name="client")
def a_client(short_dir: Path) -> Iterator[MessageClient]:
    with ScriptedServer(echo, short_dir / "s"), MessageClient(short_dir / "s", timeout=PATIENCE) as client:
        client.send(b"x")
        yield client


def conversation_of(client: MessageClient) -> Conversation:
    conversation = client._connections.current
    assert conversation is not None
    return conversation


def idle(conversation: Conversation) -> bool:
    return not (conversation._role or conversation._sleepers or conversation.table or conversation.outgoing._pen)


class Interrupt(BaseException):
    """What stands for a Ctrl-C that comes in a certain place."""


def interrupting(owner: object, name: str, *, behind: bool) -> mock._patch[object]:
    """Raises before or behind the first call of *name* in the main thread, where a Ctrl-C comes."""
    original = getattr(owner, name)
    calls: list[str] = []

    def interrupted(*args: object, **kwargs: object) -> object:
        if calls or threading.current_thread() is not threading.main_thread():
            return original(*args, **kwargs)
        calls.append(name)
        if behind:
            original(*args, **kwargs)
        raise Interrupt

    return mock.patch.object(owner, name, interrupted)


PLACES: list[tuple[type, str]] = [
    (StreamSocket, "write"),
    (StreamSocket, "read"),
    (Decoder, "feed"),
    (Conversation, "_send"),
    (Conversation, "_take_in"),
    (Conversation, "_deal_out"),
]


@pytest.mark.parametrize("behind", [False, True], ids=["before", "behind"])
@pytest.mark.parametrize(("owner", "name"), PLACES, ids=[name for _, name in PLACES])
def test_an_interrupt_anywhere_leaves_nobody_waiting(
    client: MessageClient, owner: type, name: str, *, behind: bool
) -> None:
    """The role is given back; what may have been lost ends the connection; the others go on or are told."""
    future = client.submit(b"other")
    until(future.done)
    with contextlib.suppress(Interrupt), interrupting(owner, name, behind=behind):
        client.send(b"y")
    until(lambda: idle(conversation_of(client)) or not conversation_of(client).open)
    workers = [Worker(lambda: client.send(b"z")) for _ in range(3)]
    assert [worker.outcome() for worker in workers] == [b"Z"] * 3
    assert client.submit(b"z").result(PATIENCE) == b"Z"
    until(lambda: idle(conversation_of(client)))


@pytest.mark.parametrize("name", ["settle", "end"])
def test_a_reply_whose_dealing_out_was_interrupted_is_dealt_out_again(name: str) -> None:
    """The interrupt comes inside of settling the call, before the reply is crossed off."""
    pending = Pending()
    first, second = Call(), Call()
    replies = b"".join(
        encode(Message(MessageType.BINARY, b"%d" % index, TAGGED, pending.add(call)))
        for index, call in enumerate([first, second])
    )
    inbox = deque(Decoder().feed(replies))
    with pytest.raises(Interrupt), interrupting(Call, name, behind=name == "end"):
        pending.deal_out(inbox)
    assert len(inbox) == 2
    pending.deal_out(inbox)
    assert [call.reply and call.reply.payload for call in (first, second)] == [b"0", b"1"]
    assert first.over
    assert second.over
    assert (len(inbox), pending.table, pending.late) == (0, {}, 0)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no such timer")
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # what was just made, and nobody's yet, is collected
@pytest.mark.filterwarnings("ignore:(?s).*KeyboardInterrupt:pytest.PytestUnraisableExceptionWarning")  # in a finalizer
def test_ctrl_c_in_the_middle_of_calls(short_dir: Path) -> None:
    """60 interrupts; threads beside it that must never notice, but for the connection's end."""
    hits = 0
    armed = [False]
    stop = threading.Event()

    def beside() -> int:
        done = 0
        while not stop.is_set():
            with contextlib.suppress(RemoteDisconnectedError):
                assert client.send(b"z", timeout=PATIENCE) == b"Z"
                done += 1
        return done

    def raising() -> None:
        if armed[0]:
            armed[0] = False
            raise KeyboardInterrupt

    with ScriptedServer(echo, short_dir / "s"), MessageClient(short_dir / "s", timeout=PATIENCE) as client:
        client.send(b"x")
        workers = [Worker(beside) for _ in range(2)]
        try:
            for index in range(60):
                armed[0] = True
                try:
                    with alarms(raising, 0.002):
                        for _ in range(1000):
                            with contextlib.suppress(RemoteDisconnectedError):
                                if index % 2:
                                    assert client.submit(b"y").result(PATIENCE) == b"Y"
                                else:
                                    assert client.send(b"y") == b"Y"
                except KeyboardInterrupt:
                    hits += 1
        finally:
            stop.set()
            outcomes = [worker.outcome() for worker in workers]
        assert client.send(b"x") == b"X"
    assert hits > 30
    assert all(outcomes)


def test_a_thread_that_waits_reads_for_the_others(client: MessageClient) -> None:
    """While somebody waits the poller thread does not."""
    client.submit(b"x").result(PATIENCE)
    conversation = conversation_of(client)
    with mock.patch.object(conversation, "_on_event", side_effect=AssertionError):
        for _ in range(50):
            futures = [client.submit(b"x") for _ in range(4)]
            assert futures[-1].result(PATIENCE) == b"X"
            assert [future.result(PATIENCE) for future in futures] == [b"X"] * 4


def test_the_poller_thread_takes_over_when_nobody_waits_any_more(short_dir: Path) -> None:
    go = threading.Event()

    def first_then_the_rest(peer: Peer) -> None:
        for request in requests_of(peer):
            if request.payload == b"late":
                assert go.wait(PATIENCE)
            peer.answer(request)

    with ScriptedServer(first_then_the_rest, short_dir / "s"), MessageClient(short_dir / "s") as client:
        for wait_by in (client.send, lambda value: client.submit(value).result(PATIENCE)):
            go.clear()
            called = threading.Event()
            wait_by(b"x")
            future = client.submit(b"late")
            future.add_done_callback(lambda future, called=called: called.set())  # type: ignore[misc]
            go.set()
            assert called.wait(PATIENCE)


def test_whoever_reads_hands_over_to_who_waits(short_dir: Path) -> None:
    """The first one's time is up while he reads; the second one gets his reply all the same."""
    asked = threading.Semaphore(0)
    go = threading.Event()

    def slow(peer: Peer) -> None:
        requests = []
        for request in requests_of(peer):
            if request.payload == b"go":
                peer.answer(request)
                continue
            requests.append(request)
            asked.release()
            if len(requests) == 2:
                assert go.wait(PATIENCE)
                peer.answer(requests[1])

    def give_up() -> None:
        with pytest.raises(TimeoutError):
            client.send(b"one", timeout=0.1)
        go.set()

    with ScriptedServer(slow, short_dir / "s"), MessageClient(short_dir / "s") as client:
        client.send(b"go")
        first = Worker(give_up)
        assert asked.acquire(timeout=PATIENCE)
        second = Worker(lambda: client.send(b"two", timeout=PATIENCE))
        first.outcome()
        assert second.outcome() == b"TWO"


def test_a_call_inside_of_another_one_of_its_thread_is_refused(client: MessageClient) -> None:
    """A signal handler that asks while its own thread reads would wait for itself."""
    conversation = conversation_of(client)
    told: list[BaseException] = []
    original = conversation._take_in

    def nested(*args: object) -> bool:
        if not told:
            told.append(RuntimeError())
            with pytest.raises(RuntimeError, match="inside of a call of its thread") as caught:
                client.send(b"inner")
            told.append(caught.value)
        return original(*args)  # type: ignore[arg-type]

    with mock.patch.object(conversation, "_take_in", nested):
        assert client.send(b"outer") == b"OUTER"
    assert len(told) == 2
    assert client.send(b"x") == b"X"


def test_an_error_that_somebody_keeps_keeps_no_descriptor_number(short_dir: Path) -> None:
    def vanish(peer: Peer) -> None:
        peer.receive()

    kept = []
    with (
        mock.patch.object(connecting, "FIRST_PAUSE", 0.0),
        ScriptedServer(vanish, short_dir / "s"),
        MessageClient(short_dir / "s") as client,
    ):
        for _ in range(20):
            with pytest.raises(RemoteDisconnectedError) as caught:
                client.send(b"x", timeout=PATIENCE)
            kept.append(caught.value)
        numbers = {conversation_number() for _ in range(3)}
    assert max(numbers) < 60
    del kept
    gc.collect()


def conversation_number() -> int:
    """The next number that the system gives out."""
    one, other = bbipc.local_stream_pair()
    with one, other:
        return max(one.fileno(), other.fileno())


def test_the_end_is_told_once_and_to_who_comes_too_late() -> None:
    one, other = bbipc.local_stream_pair()
    registry: dict[Reading, None] = {}
    with other, PollerThread() as poller_thread:
        conversation = Conversation(one, Decoder(), registry, lambda: poller_thread)
        assert list(registry) == [conversation]
        assert repr(conversation).startswith("<Conversation open, 0 calls, over ")
        worker = Worker(lambda: conversation.ask(1, b"x", None))
        until(lambda: bool(conversation._role))
        conversation.end(SocketClosedError(one))
        conversation.end(ConnectionResetError())
        with pytest.raises(SocketClosedError):
            worker.outcome()
        assert isinstance(conversation.reason, SocketClosedError)
        assert registry == {}
        for late in (conversation.ask, conversation.post, conversation.tell):
            with pytest.raises(Unsent) as caught:
                late(1, b"x", None)
            assert isinstance(caught.value.__cause__, SocketClosedError)
        assert conversation.table == {}


def test_who_looks_whether_the_peer_hangs_up_waits_for_that_and_nothing_else() -> None:
    """Whoever had the first reply tells the crowd once more, when he leaves: the look went on for too short a time."""
    other, one = bbipc.local_stream_pair()
    with other, PollerThread() as poller_thread:
        conversation = Conversation(one, Decoder(), {}, lambda: poller_thread)
        asker = Worker(lambda: conversation.ask(1, b"x", None))
        until(lambda: other.read(100) is not None)
        other.write(encode(Message(MessageType.STRING, b"X\0")))
        asker.outcome()
        prober = Worker(lambda: conversation.probe(PATIENCE))
        for _ in range(10):
            until(lambda: bool(conversation._crowd))
            (waiter,) = conversation._crowd
            conversation._tell_crowd()
            until(lambda: waiter not in conversation._crowd)  # noqa: B023
        assert not conversation.probed
        other.close()
        prober.outcome()
        assert conversation.single


def test_a_hang_up_that_somebody_saw_by_chance_counts(short_dir: Path) -> None:
    """He who read it was not looking for it; the next connection was shared again, and lost, and the one behind it."""
    with ScriptedServer(echo_once, short_dir / "s"), MessageClient(short_dir / "s", timeout=PATIENCE) as client:
        assert client.send(b"x") == b"X"
        conversation = conversation_of(client)
        conversation.look(PATIENCE)
        assert not conversation.open
        assert client.send(b"x") == b"X"
        assert client._connections.current is None


# Turns.


def test_turns_are_taken_one_at_a_time_and_none_is_forgotten() -> None:
    turn, inside, most = Turn(), [0], [0]

    def act(waiter: object) -> None:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        inside[0] -= 1

    def play() -> None:
        for _ in range(300):
            turn.run(act, None)

    for worker in [Worker(play) for _ in range(4)]:
        worker.outcome()
    assert most == [1]
    assert not turn._holder
    assert not turn._sleepers


def test_a_turn_may_come_too_late_and_is_nobodys_twice() -> None:
    turn = Turn()
    entered, go = threading.Event(), threading.Event()

    def hold(waiter: object) -> str:
        entered.set()
        with pytest.raises(RuntimeError, match="inside of a call"):
            turn.run(lambda waiter: None, None)
        assert go.wait(PATIENCE)
        return "held"

    worker = Worker(lambda: turn.run(hold, None))
    assert entered.wait(PATIENCE)
    for limit in (0.0, 0.01):
        with pytest.raises(TimeoutError):
            turn.run(lambda waiter: None, time.monotonic() + limit)
    go.set()
    assert worker.outcome() == "held"
    assert turn.run(lambda waiter: 7, None) == 7
