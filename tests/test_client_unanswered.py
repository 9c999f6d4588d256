"""MessageClient: what wants no reply, from peers that ignore tags and answer it all the same (HAZARDS 45, 51)."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

from bbipc import RemoteDisconnectedError, RemoteHandlerError
from bbipc.messages import Message, MessageFlag, MessageType
from pool import MessageClient
from pool.calls import Call, Waiter
from pool.connecting import MOST_SPENT
from pool.conversation import Conversation
from pool.pending import ECHOES, IN_ORDER, NO_REPLY, Distrust, Pending
from tests.support.makers import PATIENCE, Worker
from tests.support.messaging import FAILED, TAGGED, Peer, Script, ScriptedServer, echo_in_order, requests_of
from tests.support.serving import until

BIG = b"told-" + bytes(3_000_000)  # more than a kernel takes at once


@pytest.fixture(name="path")
def a_path(short_dir: Path) -> Path:
    return short_dir / "s"


class Answerer:
    """A peer of the original's kind: it ignores tags, and answers whatever comes.

    It waits for *go* before it reads what stands behind "first", and before it reads the connection number *asleep*;
    with *once* it closes behind its first answer.
    """

    def __init__(self, *, asleep: int = 0, once: bool = False) -> None:
        self.go = threading.Event()
        self._asleep = asleep
        self._once = once

    def __call__(self, peer: Peer) -> None:
        if peer.number == self._asleep:
            assert self.go.wait(PATIENCE)
        for request in requests_of(peer):
            peer.answer_plainly(request, request.payload[:5].upper())
            if request.payload == b"first":
                assert self.go.wait(PATIENCE)
            if self._once:
                return


def obey(peer: Peer) -> None:
    """As a server of ours: it knows tags, and does not answer what wants no reply."""
    for request in requests_of(peer):
        if not request.flags & MessageFlag.NO_RESPONSE:
            peer.answer(request)


def then(script: Script) -> Script:
    """*script*, from the second connection on: another server has taken the place of one of ours."""
    return lambda peer: obey(peer) if peer.number == 1 else script(peer)


def ask(client: MessageClient, value: bytes, behind: Callable[[], None]) -> object:
    """The reply to *value*; *behind*: done when it is under way."""
    asked = Worker(lambda: client.send(value))
    until(lambda: client.stats().in_flight > 0 or not asked.is_alive())
    behind()
    return asked.outcome()


@pytest.mark.parametrize("kind", ["known", "unknown", "once"])
def test_an_answer_to_what_ran_out_of_time_is_nobody_elses(path: Path, kind: str) -> None:
    script = Answerer(asleep=2 if kind == "known" else 1, once=kind == "once")
    with ScriptedServer(script, path), MessageClient(path, timeout=PATIENCE) as client:
        if kind == "known":
            assert client.send(b"first") == b"FIRST"
        with pytest.raises(TimeoutError):
            client.send(BIG, no_response=True, timeout=0.05)
        assert client.stats().unsent > 0
        assert ask(client, b"asked", script.go.set) == b"ASKED"
        if kind != "once":
            until(lambda: client.stats().unsent == 0)  # the rest goes out when it can


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("way", ["send", "submit"])
def test_an_answer_to_what_is_still_going_out_is_nobody_elses(path: Path, way: str, known: bool) -> None:
    script = Answerer(asleep=2 if known else 1)
    with ScriptedServer(script, path), MessageClient(path, timeout=PATIENCE) as client:
        if known:
            assert client.send(b"first") == b"FIRST"
        teller = Worker(lambda: client.send(BIG, no_response=True))
        until(lambda: client.stats().unsent > 0)
        if way == "send":
            assert ask(client, b"asked", script.go.set) == b"ASKED"
        else:
            future = client.submit(b"asked")
            script.go.set()
            assert future.result(PATIENCE) == b"ASKED"
        assert teller.outcome() is None


@pytest.mark.parametrize("known", [False, True])
def test_an_answer_to_what_a_ctrl_c_ended_is_nobody_elses(path: Path, known: bool) -> None:
    """It comes when a part has left."""
    script, attend = Answerer(asleep=2 if known else 1), Conversation.attend

    def interrupted(conversation: Conversation, waiter: Waiter, deadline: float | None) -> bool:
        if waiter in conversation._tellers:
            raise KeyboardInterrupt
        return attend(conversation, waiter, deadline)

    with ScriptedServer(script, path), MessageClient(path, timeout=PATIENCE) as client:
        if known:
            assert client.send(b"first") == b"FIRST"
        with mock.patch.object(Conversation, "attend", interrupted), pytest.raises(KeyboardInterrupt):
            client.send(BIG, no_response=True)
        assert client.stats().unsent > 0
        assert ask(client, b"asked", script.go.set) == b"ASKED"


@pytest.mark.parametrize("obedient", [False, True], ids=["answers all", "obeys"])
def test_without_another_connection_an_answer_in_doubt_is_nobodys(path: Path, obedient: bool) -> None:
    """Nobody knows which kind of peer it is, so neither answer is trusted."""

    def talk(peer: Peer) -> None:
        for request in requests_of(peer):
            if not (obedient and request.payload == b"told"):
                peer.answer_plainly(request)

    with ScriptedServer(talk, path) as server, MessageClient(path, reconnect=False, timeout=PATIENCE) as client:
        assert client.send(b"one") == b"ONE"
        client.send(b"told", no_response=True)
        for _ in range(2):
            with pytest.raises(RemoteDisconnectedError, match="wants no reply"):
                client.send(b"two")
        with pytest.raises(RemoteDisconnectedError):
            client.send(b"told", no_response=True)
        assert server.connections == 1


def test_without_another_connection_an_unknown_peer_is_asked_and_its_answer_decides(path: Path) -> None:
    for script, echoes in ((obey, True), (Answerer(), False)):
        with ScriptedServer(script, path) as server, MessageClient(path, reconnect=False, timeout=PATIENCE) as client:
            client.send(b"told", no_response=True)
            if echoes:
                assert [client.send(b"asked") for _ in range(2)] == [b"ASKED"] * 2
            else:
                with pytest.raises(RemoteDisconnectedError, match="wanted none"):
                    client.send(b"asked")
            assert server.connections == 1
        path.unlink()


def test_many_who_tell_and_ask_at_once_get_their_own(path: Path) -> None:
    def play(name: int) -> None:
        for index in range(40):
            value = b"%d%03d" % (name, index)
            if name % 3 == 0:
                client.send(value, no_response=True)
            elif name % 3 == 1:
                assert client.send(value) == value
            else:
                assert client.submit(value).result(PATIENCE) == value

    with ScriptedServer(Answerer(), path) as server, MessageClient(path, timeout=PATIENCE) as client:
        for worker in [Worker(lambda name=name: play(name)) for name in range(6)]:  # type: ignore[misc]
            worker.outcome()
        assert server.connections == 2  # one for either kind, however many there are of it


# Peers that echo tags lose nothing by it.


@pytest.mark.parametrize("again", [False, True], ids=["at first", "connected anew"])
def test_a_peer_that_echoes_tags_is_told_and_asked_over_one_connection(path: Path, again: bool) -> None:
    with ScriptedServer(obey, path) as server, MessageClient(path, timeout=PATIENCE) as client:
        assert client.send(b"a") == b"A"
        if again:
            assert client.send(b"b") == b"B"
            server._peers[0].hang_up()
            until(lambda: server.ended == 1)
        for _ in range(10):
            client.send(b"told", no_response=True)
            assert client.send(b"asked") == b"ASKED"
        teller = Worker(lambda: client.send(BIG, no_response=True))
        assert client.send(b"asked") == b"ASKED"
        teller.outcome()
        assert server.connections == 1 + again
        assert client.stats().late == 0


def test_a_peer_that_is_told_first_costs_one_connection_more_and_no_third(path: Path) -> None:
    with ScriptedServer(obey, path) as server, MessageClient(path, timeout=PATIENCE) as client:
        for _ in range(3):
            client.send(b"told", no_response=True)
        for _ in range(3):
            assert client.send(b"asked") == b"ASKED"
            client.send(b"told", no_response=True)
        assert server.connections == 2
        until(lambda: server.ended == 1)  # it is not needed any more, and does not stay
        current = client._connections.current
        assert current is not None
        assert current.pending.sent_unanswered
        server._peers[1].hang_up()
        until(lambda: server.ended == 2)
        current.used = 0.0
        assert client.send(b"asked") == b"ASKED"
        assert client.stats().connections == 3


def test_a_peer_that_stops_echoing_tags_is_not_trusted(path: Path) -> None:
    """Another server has taken its place; the client thinks that it knows it, and mixes what it tells and asks."""
    with ScriptedServer(then(Answerer()), path) as server, MessageClient(path, timeout=PATIENCE) as client:
        assert [client.send(b"a") for _ in range(2)] == [b"A"] * 2
        server._peers[0].hang_up()
        until(lambda: server.ended == 1)
        client.send(b"told", no_response=True)
        with pytest.raises(RemoteDisconnectedError, match="wanted none"):
            client.send(b"asked")
        for _ in range(3):
            assert client.send(b"asked") == b"ASKED"
            client.send(b"told", no_response=True)


def test_what_was_asked_before_it_stopped_is_not_mixed_with_what_it_is_told(path: Path) -> None:
    """The call in flight is answered without a tag, before and behind what is told over the same connection."""
    go = threading.Event()

    def slowly(peer: Peer) -> None:
        first, *rest = (peer.receive() for _ in range(2 if peer.number == 2 else 1))
        assert go.wait(PATIENCE)
        for request in (first, *rest):
            assert request is not None
            peer.answer_plainly(request)
        echo_in_order(peer)

    with ScriptedServer(then(slowly), path) as server, MessageClient(path, timeout=PATIENCE) as client:
        assert [client.send(b"a") for _ in range(2)] == [b"A"] * 2
        server._peers[0].hang_up()
        until(lambda: server.ended == 1)
        future = client.submit(b"asked")
        client.send(b"told", no_response=True)
        go.set()
        assert future.result(PATIENCE) == b"ASKED"
        assert client.send(b"next") == b"NEXT"
        assert server.connections == 3


def test_what_is_told_to_a_peer_that_takes_one_message_is_left_to_it_to_close(path: Path) -> None:
    """That is found out by other calls while this goes out; the original dies of clients that leave before."""
    go, answer = threading.Event(), threading.Event()

    def once(peer: Peer) -> None:
        if peer.number == 1:
            assert go.wait(PATIENCE)
        request = peer.receive()
        assert request is not None
        assert peer.number != 1 or answer.wait(PATIENCE)
        peer.answer_plainly(request)

    with ScriptedServer(once, path), MessageClient(path, timeout=PATIENCE) as client:
        with pytest.raises(TimeoutError):
            client.send(BIG, no_response=True, timeout=0.05)
        telling = client._connections.telling
        assert telling is not None
        assert [client.send(b"asked") for _ in range(3)] == [b"ASKED"] * 3
        assert not telling.open
        go.set()
        until(lambda: not telling.outgoing.queue and not telling._role)
        assert telling.reason is None
        answer.set()
        until(lambda: telling not in client._connections.standing)


# CLOSE.


@pytest.mark.parametrize("size", [0, 3_000_000], ids=["at once", "in part"])
def test_nothing_is_sent_behind_a_close_that_wants_no_reply(path: Path, size: int) -> None:
    """Also where its time runs out; then it still goes out whole, and the connection ends behind it."""
    go, closes = threading.Event(), list[int]()

    def obedient(peer: Peer) -> None:
        for request in requests_of(peer):
            if request.type is MessageType.CLOSE:
                closes.append(len(request.payload))
                return
            peer.answer(request)
            if request.payload == b"first":
                assert go.wait(PATIENCE)

    with ScriptedServer(obedient, path) as server, MessageClient(path, timeout=PATIENCE) as client:
        assert client.send(b"first") == b"FIRST"
        used = client._connections.current
        if size:
            with pytest.raises(TimeoutError):
                client.send(bytes(size), MessageType.CLOSE, no_response=True, timeout=0.05)
        else:
            client.send(None, no_response=True)
        assert ask(client, b"asked", go.set) == b"ASKED"
        until(lambda: closes == [size])
        until(lambda: used not in client._connections.standing)
        assert server.connections == 2


def test_a_close_that_was_taken_back_ends_the_connection_all_the_same(path: Path) -> None:
    """It stood behind another thread's request, and nothing of it has left; others were refused because of it."""
    go = threading.Event()

    def talk(peer: Peer) -> None:
        for request in requests_of(peer):
            peer.answer(request, request.payload[:5])
            if request.payload == b"first":
                assert go.wait(PATIENCE)

    with ScriptedServer(talk, path), MessageClient(path, timeout=PATIENCE) as client:
        assert client.send(b"first") == b"first"
        used = client._connections.current
        teller = Worker(lambda: client.send(BIG, no_response=True))
        until(lambda: client.stats().unsent > 0)
        with pytest.raises(TimeoutError):
            client.send(None, no_response=True, timeout=0.02)
        assert client.send(b"asked") == b"asked"
        assert used in client._connections.standing  # it owes what the other thread has sent
        go.set()
        assert teller.outcome() is None
        until(lambda: used not in client._connections.standing)


# Complaints of the connection as a whole carry no tag.


@pytest.mark.parametrize("told", [True, False])
def test_a_complaint_of_what_wants_no_reply_is_not_the_only_calls(path: Path, told: bool) -> None:
    """Of one call alone it is that call's failure; if something wanted no reply, nobody knows whose."""

    def complain(peer: Peer) -> None:
        request = peer.receive()
        assert request is not None
        peer.answer(request)
        for _ in range(1 + told):
            assert peer.receive() is not None
        peer.send(Message(MessageType.STRING, b"MessageTooLargeError: no\0", FAILED))

    with ScriptedServer(complain, path), MessageClient(path, timeout=PATIENCE) as client:
        assert client.send(b"first") == b"FIRST"
        if told:
            client.send(b"told", no_response=True)
        with pytest.raises(RemoteDisconnectedError if told else RemoteHandlerError, match="MessageTooLargeError"):
            client.send(b"asked")


# Which call a reply belongs to.


def plain(payload: bytes, flags: int = 0) -> Message:
    return Message(MessageType.BINARY, payload, flags, 0xDEAD)


def outstanding(order: str) -> tuple[Pending, list[Call]]:
    """A letter of *order* is a request: a(sked) or t(old)."""
    pending, calls = Pending(), list[Call]()
    for letter in order:
        if letter == "a":
            calls.append(Call())
        pending.note_order(pending.add(calls[-1]) if letter == "a" else NO_REPLY)
    return pending, calls


def payloads(calls: list[Call]) -> list[bytes | None]:
    return [call.reply and call.reply.payload for call in calls]


@pytest.mark.parametrize(
    ("order", "replies", "got"),
    [
        ("t", 3, []),
        ("at", 1, [b"0"]),
        ("at", 3, [b"0"]),
        ("aatt", 4, [b"0", b"1"]),
    ],
)
def test_what_comes_behind_the_last_call_is_nobodys(order: str, replies: int, got: list[bytes]) -> None:
    pending, calls = outstanding(order)
    pending.deal_out(deque(plain(b"%d" % number) for number in range(replies)))
    assert payloads(calls) == got
    assert pending.late == replies - len(got)
    assert pending.is_doubtful() is bool(calls)
    assert list(pending.order) == [NO_REPLY]  # in one place, however many there were


@pytest.mark.parametrize("flags", [0, FAILED])
@pytest.mark.parametrize(("order", "got"), [("ta", [None]), ("ata", [b"0", None]), ("atta", [b"0", None])])
def test_a_reply_that_may_be_either_ones_is_nobodys(order: str, got: list[bytes | None], flags: int) -> None:
    pending, calls = outstanding(order)
    answered = len(got) - 1
    inbox = deque(plain(b"%d" % number) for number in range(answered))
    inbox.append(plain(b"whose", flags))
    with pytest.raises(Distrust, match="wanted none"):
        pending.deal_out(inbox)
    assert payloads(calls) == got
    assert pending.style == (IN_ORDER if answered else 0)


def test_an_echo_clears_all_doubts() -> None:
    pending, calls = outstanding("tata")
    pending.deal_out(deque(Message(MessageType.BINARY, b"%d" % call.tag, TAGGED, call.tag) for call in calls[::-1]))
    assert payloads(calls) == [b"0", b"1"]
    assert (pending.style, list(pending.order), pending.is_doubtful()) == (ECHOES, [], False)


def test_a_peer_that_takes_one_message_a_connection_has_time_to_answer_what_wants_no_reply(path: Path) -> None:
    """One of the original's kind ends by SIGPIPE where nobody is left."""
    with ScriptedServer(Answerer(asleep=2, once=True), path) as server, MessageClient(path, timeout=PATIENCE) as client:
        script = server._script
        assert isinstance(script, Answerer)
        assert client.send(b"one") == b"ONE"
        client.send(b"told", no_response=True)
        assert client.send(b"next") == b"NEXT"
        assert client.send(b"last") == b"LAST"
        told = [one for one in list(client._connections.standing) if isinstance(one, Conversation) and one.told_at]
        assert [one._stream.closed for one in told] == [False]
        script.go.set()
        until(lambda: server.ended == 4)
        assert server.errors == []


def test_connections_that_were_told_once_do_not_gather(path: Path) -> None:
    with ScriptedServer(Answerer(asleep=-1, once=True), path), MessageClient(path, timeout=PATIENCE) as client:
        assert client.send(b"one") == b"ONE"
        for _ in range(3 * MOST_SPENT):
            client.send(b"told", no_response=True)
        assert client.send(b"next") == b"NEXT"
        standing = [
            one for one in list(client._connections.standing) if isinstance(one, Conversation) and one.is_spent()
        ]
        assert len(standing) <= MOST_SPENT
