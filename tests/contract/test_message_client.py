"""MessageClient over TCP and local streams: the same promises in every namespace."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import as_completed

import pytest

import bbipc
from bbipc import RemoteDisconnectedError, RemoteHandlerError
from bbipc.messages import MAX_MESSAGE_SIZE, MessageType
from pool import MessageClient, send_quick
from tests.support.makers import PATIENCE, Namespace, Server
from tests.support.messaging import FAILED, Peer, ScriptedServer, echo, echo_in_order, echo_once, requests_of
from tests.support.serving import until


def address_of(server: Server) -> str:
    return str(bbipc.Address.of(server))


@pytest.fixture(name="listening")
def a_listening_server(namespace: Namespace) -> Iterator[Server]:
    with namespace.make_server() as server:
        yield server


def test_text_bytes_and_nothing_go_there_and_back(listening: Server) -> None:
    with ScriptedServer(echo, listening), MessageClient(address_of(listening), timeout=PATIENCE) as client:
        assert client.send("grüße") == "GRüßE" or client.send("abc") == "ABC"
        assert client.send("") == ""
        assert client.send(b"abc") == b"ABC"
        assert client.send(b"") == b""
        assert client.send(memoryview(b"abc")) == b"ABC"
        assert client.send(b"abc", MessageType.STRING) == "ABC"
        assert client.send(None) is None
        assert client.stats().connections == 1


def test_many_futures_over_one_connection(listening: Server) -> None:
    with ScriptedServer(echo, listening) as server, MessageClient(address_of(listening), timeout=PATIENCE) as client:
        futures = {client.submit(b"x%d" % index): b"X%d" % index for index in range(200)}
        for future in as_completed(futures, PATIENCE):
            assert future.result() == futures[future]
        assert server.connections == 1


@pytest.mark.parametrize("script", [echo, echo_in_order, echo_once])
def test_the_largest_message_goes_there_and_back(listening: Server, script: object) -> None:
    payload = bytes(range(97, 123)) * (MAX_MESSAGE_SIZE // 26)
    with ScriptedServer(script, listening), MessageClient(address_of(listening), timeout=PATIENCE) as client:  # type: ignore[arg-type]
        assert client.send(payload) == payload.upper()
        assert client.submit(payload).result(PATIENCE) == payload.upper()


def test_large_requests_pass_a_server_that_writes_before_it_reads_on(listening: Server) -> None:
    """Both sides' buffers are full: who sends has to read as well."""

    def answer_first(peer: Peer) -> None:
        for request in requests_of(peer):
            peer.answer(request)

    payload = b"x" * 1_000_000
    with ScriptedServer(answer_first, listening), MessageClient(address_of(listening), timeout=PATIENCE) as client:
        futures = [client.submit(payload) for _ in range(8)]
        assert client.send(payload) == payload.upper()
        assert [len(future.result(PATIENCE) or b"") for future in futures] == [1_000_000] * 8


def test_a_peer_that_takes_one_message_a_connection(listening: Server) -> None:
    with (
        ScriptedServer(echo_once, listening, one_at_a_time=True) as server,
        MessageClient(address_of(listening), timeout=PATIENCE) as client,
    ):
        assert [client.send(b"x%d" % index) for index in range(5)] == [b"X%d" % index for index in range(5)]
        assert [future.result(PATIENCE) for future in [client.submit(b"y") for _ in range(5)]] == [b"Y"] * 5
        client.send(b"z", no_response=True)
        assert client.send(b"z") == b"Z"
        assert server.connections >= 12


def test_a_reply_that_says_that_the_handler_failed(listening: Server) -> None:
    def fail(peer: Peer) -> None:
        for request in requests_of(peer):
            peer.answer(request, b"ValueError: no\0", FAILED)

    with ScriptedServer(fail, listening), MessageClient(address_of(listening), timeout=PATIENCE) as client:
        with pytest.raises(RemoteHandlerError, match=r"^ValueError: no$"):
            client.send("x")
        with pytest.raises(RemoteHandlerError, match=r"^ValueError: no$"):
            client.submit("x").result(PATIENCE)


def test_a_peer_that_resets_the_connection(listening: Server) -> None:
    def reset(peer: Peer) -> None:
        if peer.number == 1:
            peer.receive()
            peer.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        else:
            echo(peer)

    with ScriptedServer(reset, listening), MessageClient(address_of(listening), timeout=PATIENCE) as client:
        with pytest.raises(RemoteDisconnectedError) as caught:
            client.send(b"x")
        assert caught.value.__cause__ is not None
        assert client.send(b"x") == b"X"


def test_an_error_reply_is_seen_although_the_request_cannot_be_sent(listening: Server) -> None:
    """HAZARDS 23: the server answers from the header, and reads no further."""

    def refuse(peer: Peer) -> None:
        peer.refuse(b"MessageTooLargeError: no\0")

    with ScriptedServer(refuse, listening), MessageClient(address_of(listening), timeout=PATIENCE) as client:
        for _ in range(20):
            with pytest.raises(RemoteHandlerError, match="MessageTooLargeError"):
                client.send(bytes(4_000_000))


def test_a_message_that_wants_no_response(listening: Server) -> None:
    got: list[bytes] = []

    def take(peer: Peer) -> None:
        for request in requests_of(peer):
            got.append(request.payload)
            if not request.flags & 1:
                peer.answer(request)

    with ScriptedServer(take, listening), MessageClient(address_of(listening), timeout=PATIENCE) as client:
        client.send(bytes(1_000_000), no_response=True)
        client.send(b"two", no_response=True)
        assert client.send(b"three") == b"THREE"  # over another connection, as long as nobody knows what the peer is
        until(lambda: len(got) == 3)
    assert sorted(got) == [bytes(1_000_000), b"three", b"two"]


def test_quickly(listening: Server) -> None:
    with ScriptedServer(echo, listening) as server:
        assert send_quick(address_of(listening), "abc", timeout=PATIENCE) == "ABC"
        assert send_quick(address_of(listening), b"abc", MessageType.CLOSE, timeout=PATIENCE) is None
        assert server.connections == 2


def test_nobody_listens(namespace: Namespace) -> None:
    with namespace.make_server() as server:
        address = address_of(server)
    with MessageClient(address, timeout=PATIENCE) as client:
        with pytest.raises(bbipc.ConnectionFailedError):
            client.send(b"x")
        with pytest.raises(bbipc.ConnectionFailedError):
            client.submit(b"x").result(PATIENCE)
        client.close()
        with pytest.raises(bbipc.SocketClosedError):
            client.send(b"x")
