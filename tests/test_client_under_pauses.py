"""MessageClient, where a thread stands still between two lines, or in a callback; each failed on the code before."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from pathlib import Path

import pytest

from pool import MessageClient
from pool.conversation import Conversation
from tests.support.makers import PATIENCE, Worker
from tests.support.messaging import Peer, ScriptedServer, requests_of


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
