"""The exceptions: their tree, the facts they keep, and what survives a journey through pickle."""

from __future__ import annotations

import copy
import errno
import inspect
import os
import pickle
from pathlib import Path

import pytest

import bbipc
from bbipc import (
    ChecksumError,
    ConnectionFailedError,
    IncompleteReadError,
    InvalidMessageError,
    MessageError,
    MessageTooLargeError,
    NoConnectionAvailableError,
    NoLocalServerError,
    PollerClosedError,
    QueueFullError,
    RemoteDisconnectedError,
    RemoteHandlerError,
    ResponseAlreadySentError,
    ResponseDisabledError,
    ResponseError,
    SeparatorNotFoundError,
    SocketClosedError,
    SocketError,
    SocketEvent,
    TruncatedMessageError,
    WriteTimeoutError,
    errors,
)
from tests.support.makers import PATIENCE, Namespace, make_namespace

#: every exception and its direct bases, as DESIGN.md section 4 draws them
TREE: dict[type[BaseException], tuple[type[BaseException], ...]] = {
    SocketError: (OSError,),
    SocketClosedError: (SocketError,),
    NoConnectionAvailableError: (SocketError, BlockingIOError),
    ConnectionFailedError: (SocketError, ConnectionError),
    NoLocalServerError: (ConnectionFailedError,),
    RemoteDisconnectedError: (SocketError, ConnectionError),
    IncompleteReadError: (EOFError,),
    SeparatorNotFoundError: (ValueError,),
    WriteTimeoutError: (TimeoutError,),
    PollerClosedError: (RuntimeError,),
    QueueFullError: (RuntimeError,),
    MessageError: (ValueError,),
    InvalidMessageError: (MessageError,),
    ChecksumError: (MessageError,),
    MessageTooLargeError: (MessageError,),
    TruncatedMessageError: (MessageError,),
    ResponseError: (RuntimeError,),
    ResponseDisabledError: (ResponseError,),
    ResponseAlreadySentError: (ResponseError,),
    RemoteHandlerError: (ResponseError,),
}

SOCKET_ERRORS = [
    SocketError(errno.EMFILE),
    SocketError(errno.EADDRINUSE, "a live server listens there"),
    SocketClosedError(object()),
    NoConnectionAvailableError(object()),
    ConnectionFailedError(errno.ECONNREFUSED, "nobody there"),
    NoLocalServerError(errno.ENOENT, "/nowhere/s"),
    NoLocalServerError(errno.ECONNREFUSED, b"\0abstract\xff"),
    RemoteDisconnectedError(errno.ECONNRESET, "lost"),
]


@pytest.mark.parametrize("kind", TREE, ids=lambda kind: kind.__name__)
def test_an_error_has_exactly_the_bases_of_the_documented_tree(kind: type[BaseException]) -> None:
    assert kind.__bases__ == TREE[kind]


def test_no_room_is_said_of_pools_and_clients_alike() -> None:
    """A client has no workers, and its limit is one of futures."""
    assert str(QueueFullError(7)) == "there is no room for one more call: the limit is 7"


def test_the_tree_of_the_module_holds_no_other_exceptions() -> None:
    defined = {
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, BaseException) and kind.__module__ == errors.__name__
    }
    assert defined == set(TREE)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (NoConnectionAvailableError(None), BlockingIOError),
        (ConnectionFailedError(errno.ECONNREFUSED), ConnectionError),
        (NoLocalServerError(errno.ENOENT, "/x"), ConnectionError),
        (RemoteDisconnectedError(errno.ECONNRESET), ConnectionError),
        (SocketClosedError(None), OSError),
        (IncompleteReadError(b"abc", 5), EOFError),
        (SeparatorNotFoundError(b"\n", 9), ValueError),
        (WriteTimeoutError("late"), TimeoutError),
        (PollerClosedError("closed"), RuntimeError),
        (ChecksumError(5), ValueError),
        (RemoteHandlerError("KeyError: 'x'"), RuntimeError),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else type(value).__name__,
)
def test_an_error_is_caught_by_those_who_only_know_the_builtin(error: BaseException, kind: type[BaseException]) -> None:
    with pytest.raises(kind) as caught:
        raise error
    assert caught.value is error


def test_a_closed_socket_is_no_disconnect_and_a_disconnect_is_no_close() -> None:
    assert not issubclass(SocketClosedError, ConnectionError)
    assert not issubclass(RemoteDisconnectedError, SocketClosedError)
    assert not issubclass(NoConnectionAvailableError, ConnectionError)
    assert not issubclass(PollerClosedError, OSError)


def test_a_known_number_does_not_turn_a_socket_error_into_a_builtin_subclass() -> None:
    for number in (errno.EAGAIN, errno.ECONNRESET, errno.EPIPE, errno.ENOENT, errno.EINTR):
        assert type(SocketError(number)) is SocketError


def test_an_error_without_text_speaks_with_the_systems_words() -> None:
    error = SocketError(errno.EMFILE)
    assert (error.errno, error.strerror) == (errno.EMFILE, os.strerror(errno.EMFILE))
    assert os.strerror(errno.EMFILE) in str(error)
    assert error.socket is None


def test_an_error_keeps_number_text_and_socket() -> None:
    here = object()
    error = SocketError(errno.EADDRINUSE, "taken", socket=here)
    assert (error.errno, error.strerror, error.socket) == (errno.EADDRINUSE, "taken", here)
    assert error.args == (errno.EADDRINUSE, "taken")


def test_the_closed_error_names_the_kind_of_socket_and_says_ebadf() -> None:
    one, other = bbipc.local_stream_pair()
    other.close()
    one.close()
    error = SocketClosedError(one)
    assert error.errno == errno.EBADF
    assert "LocalStream is closed" in str(error)
    assert error.socket is one


def test_the_error_of_an_idle_server_says_eagain_and_names_the_server() -> None:
    server = object()
    error = NoConnectionAvailableError(server)
    assert error.errno == errno.EAGAIN
    assert error.socket is server


def test_the_no_server_error_keeps_the_path_and_tells_why() -> None:
    error = NoLocalServerError(errno.ENOENT, "/no/such/path")
    assert error.path == "/no/such/path"
    assert "/no/such/path" in str(error)
    assert os.strerror(errno.ENOENT) in str(error)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("error", SOCKET_ERRORS, ids=lambda error: type(error).__name__)
def test_a_pickled_error_keeps_its_facts_and_drops_the_socket(error: SocketError, protocol: int) -> None:
    back = pickle.loads(pickle.dumps(error, protocol))
    assert type(back) is type(error)
    assert (back.errno, back.strerror, str(back), back.args) == (
        error.errno,
        error.strerror,
        str(error),
        error.args,
    )
    assert back.socket is None
    assert getattr(back, "path", None) == getattr(error, "path", None)


def test_a_pickled_error_of_a_live_socket_travels_without_it() -> None:
    one, other = bbipc.local_stream_pair()
    with one, other:
        error = RemoteDisconnectedError(errno.ECONNRESET, "lost", socket=one)
        back = pickle.loads(pickle.dumps(error))
        assert back.socket is None
        assert error.socket is one  # the original keeps it
        assert copy.copy(error).errno == errno.ECONNRESET


def test_a_pickled_error_keeps_the_notes_and_facts_that_were_added() -> None:
    error = ConnectionFailedError(errno.ETIMEDOUT, "slow")
    error.add_note("at the third try")
    error.attempt = 3  # type: ignore[attr-defined]
    back = pickle.loads(pickle.dumps(error))
    assert back.__notes__ == ["at the third try"]
    assert back.attempt == 3


def test_a_pickled_poller_error_keeps_its_text() -> None:
    back = pickle.loads(pickle.dumps(PollerClosedError("the poller is closed")))
    assert type(back) is PollerClosedError
    assert str(back) == "the poller is closed"


def test_the_errors_of_a_stream_tell_their_facts() -> None:
    short = IncompleteReadError(b"abc", 5)
    assert (short.partial, short.expected) == (b"abc", 5)
    assert str(short) == "the stream ended after 3 bytes, before all 5 bytes"
    assert str(IncompleteReadError(b"secret")) == "the stream ended after 6 bytes, before the separator"
    long = SeparatorNotFoundError(b"\r\n", 100)
    assert (long.separator, long.max_bytes) == (b"\r\n", 100)
    assert str(long) == r"no b'\r\n' in 100 bytes"
    late = WriteTimeoutError("late", sent=3, unsent=4)
    assert (late.sent, late.unsent, str(late), late.errno) == (3, 4, "late", None)


def test_the_errors_of_messages_tell_their_facts() -> None:
    large = MessageTooLargeError(10, 9)
    assert (large.size, large.limit, large.tag) == (10, 9, None)
    assert str(large) == "a message of 10 bytes, where at most 9 are allowed"
    assert MessageTooLargeError(10, 9, tag=7).tag == 7
    cut = TruncatedMessageError(3, 32)
    assert (cut.have, cut.need) == (3, 32)
    assert str(cut) == "the stream ended after 3 of 32 bytes of a message"
    assert ChecksumError(12).size == 12
    assert str(ChecksumError(12)) == "checksum mismatch in a message of 12 bytes"


def test_what_became_of_a_write_is_unknown_where_there_was_none() -> None:
    errors_of_writes: list[SocketError | PollerClosedError] = [*SOCKET_ERRORS, PollerClosedError("closed")]
    for error in errors_of_writes:
        assert (error.sent, error.unsent) == (None, None)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "error",
    [
        IncompleteReadError(b"abc", 5),
        IncompleteReadError(b"abc"),
        SeparatorNotFoundError(b"\n", 9),
        WriteTimeoutError("late", sent=3, unsent=4),
        InvalidMessageError("no message begins here"),
        ChecksumError(12),
        MessageTooLargeError(10, 9),
        MessageTooLargeError(10, 9, tag=7),
        TruncatedMessageError(3, 32),
        ResponseDisabledError("no response is wanted"),
        ResponseAlreadySentError("responded to before"),
        RemoteHandlerError("ValueError: no"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_pickled_error_of_a_stream_keeps_its_facts(error: Exception, protocol: int) -> None:
    error.add_note("seen")
    for back in (pickle.loads(pickle.dumps(error, protocol)), copy.copy(error)):
        assert type(back) is type(error)
        assert (str(back), back.args, vars(back)) == (str(error), error.args, vars(error))


def test_an_error_of_a_system_call_keeps_number_and_cause(short_dir: Path) -> None:
    with make_namespace("ipv4", short_dir).make_server() as server:
        assert isinstance(server, bbipc.IPv4TCPServer)
        with pytest.raises(SocketError) as caught:
            bbipc.make_ipv4_tcp_server(bbipc.IPV4_LOOPBACK, server.port)
    assert caught.value.errno == errno.EADDRINUSE
    assert isinstance(caught.value.__cause__, OSError)
    assert not isinstance(caught.value.__cause__, SocketError)
    assert str(server.port) in str(caught.value)


def test_an_idle_server_raises_an_error_that_names_it(namespace: Namespace) -> None:
    with namespace.make_server() as server:
        with pytest.raises(NoConnectionAvailableError) as caught:
            server.accept_connection()
        assert caught.value.socket is server
        assert not caught.value.__suppress_context__ or caught.value.__cause__ is None


def test_a_refused_connect_raises_with_number_socket_and_cause(short_dir: Path) -> None:
    with make_namespace("ipv4", short_dir).make_server() as server:
        assert isinstance(server, bbipc.IPv4TCPServer)
        port = server.port
    with bbipc.connect_to_ipv4_tcp_server(bbipc.IPV4_LOOPBACK, port) as stream:
        assert bbipc.poll_socket(stream, SocketEvent.CONNECTION_FAILED, PATIENCE)
        for call in (lambda: stream.read(1), lambda: stream.write(b"x"), stream.shutdown_write):
            with pytest.raises(ConnectionFailedError) as caught:
                call()
            assert caught.value.errno == errno.ECONNREFUSED
            assert caught.value.socket is stream
        with pytest.raises(ConnectionFailedError) as caught:
            stream.read(1)
        assert caught.value.__cause__ is stream.connection_error()


def test_a_missing_server_raises_with_its_path(short_dir: Path) -> None:
    path = str(short_dir / "nobody")
    with pytest.raises(NoLocalServerError) as caught:
        bbipc.connect_to_local_server(path)
    assert (caught.value.errno, caught.value.path) == (errno.ENOENT, path)


def test_a_reset_raises_with_number_socket_and_cause(namespace: Namespace) -> None:
    with namespace.stream_and_peer() as (stream, peer):
        namespace.reset(stream, peer)
        assert bbipc.poll_socket(stream, SocketEvent.REMOTE_DISCONNECTED, PATIENCE)
        with pytest.raises(RemoteDisconnectedError) as caught:
            stream.read(1)
        assert caught.value.errno == errno.ECONNRESET
        assert caught.value.socket is stream
        assert isinstance(caught.value.__cause__, OSError)


def test_a_kept_error_keeps_the_object_but_not_the_number() -> None:
    one, other = bbipc.local_stream_pair()
    other.close()
    number = one.fileno()
    one.close()
    with pytest.raises(SocketClosedError) as caught:
        one.read(1)
    assert caught.value.socket is one
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        os.fstat(number)
