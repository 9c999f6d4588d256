"""The face of the package: its names, their docstrings, what they refuse, and how they show themselves."""

from __future__ import annotations

import contextlib
import copy
import importlib
import inspect
import pickle
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import bbipc
from bbipc import SocketClosedError, SocketEvent, messages
from tests.support.makers import PATIENCE, Namespace, accept, make_namespace

#: DESIGN.md, sections 3 and 4
NAMES = [
    "IPV4_ANY",
    "IPV4_LOOPBACK",
    "IPV6_ANY",
    "IPV6_LOOPBACK",
    "Address",
    "ChecksumError",
    "ConnectionFailedError",
    "IPv4TCPServer",
    "IPv4TCPStream",
    "IPv6TCPServer",
    "IPv6TCPStream",
    "IncompleteReadError",
    "InvalidMessageError",
    "LocalServer",
    "LocalStream",
    "MessageError",
    "MessageTooLargeError",
    "NoConnectionAvailableError",
    "NoLocalServerError",
    "PeerCredentials",
    "Poller",
    "PollerClosedError",
    "QueueFullError",
    "RemoteDisconnectedError",
    "RemoteHandlerError",
    "ResponseAlreadySentError",
    "ResponseDisabledError",
    "ResponseError",
    "SeparatorNotFoundError",
    "Socket",
    "SocketClosedError",
    "SocketError",
    "SocketEvent",
    "StreamServer",
    "StreamSocket",
    "TruncatedMessageError",
    "WriteTimeoutError",
    "adopt_descriptor",
    "available_backends",
    "connect_to_ipv4_tcp_server",
    "connect_to_ipv6_tcp_server",
    "connect_to_local_server",
    "local_stream_pair",
    "make_ipv4_tcp_server",
    "make_ipv6_tcp_server",
    "make_local_server",
    "make_poller",
    "parse_address",
    "poll_socket",
    "poll_sockets",
    "resolve_ipv4_address",
    "resolve_ipv6_address",
]
LIFETIME = {"close", "closed", "fileno"}
STREAM = LIFETIME | {
    "determined",
    "connection_succeeded",
    "connection_failed",
    "connection_error",
    "data_available",
    "ready_to_write",
    "room_to_write",
    "remote_disconnected",
    "read_into",
    "read",
    "write",
    "write_vector",
    "shutdown_write",
}
TCP = STREAM | {"local_host_address", "local_port", "remote_host_address", "remote_port", "no_delay", "keep_alive"}
SERVER = LIFETIME | {"accept_connection", "connection_available"}
MEMBERS = {
    "Socket": LIFETIME,
    "StreamSocket": STREAM,
    "IPv4TCPStream": TCP,
    "IPv6TCPStream": TCP,
    "LocalStream": STREAM | {"path", "peer_credentials", "send_descriptors", "receive_descriptors"},
    "IPv4TCPServer": SERVER | {"host_address", "port"},
    "IPv6TCPServer": SERVER | {"host_address", "port"},
    "LocalServer": SERVER | {"path"},
}
SIGNATURES = {
    "make_ipv4_tcp_server": "(host_address, port, *, reuse_address=True, reuse_port=False, backlog=128)",
    "make_ipv6_tcp_server": "(host_address, port, *, reuse_address=True, reuse_port=False, backlog=128)",
    "connect_to_ipv4_tcp_server": "(host_address, port, *, local_host_address=None, local_port=0)",
    "connect_to_ipv6_tcp_server": "(host_address, port, *, local_host_address=None, local_port=0)",
    "resolve_ipv4_address": "(hostname)",
    "resolve_ipv6_address": "(hostname)",
    "make_local_server": "(path, *, backlog=128, mode=384, delete_on_close=True, replace_stale=False)",
    "connect_to_local_server": "(path)",
    "local_stream_pair": "()",
    "poll_socket": "(socket, events, timeout)",
    "poll_sockets": "(rows, timeout)",
    "make_poller": "(backend=None)",
    "adopt_descriptor": "(descriptor)",
    "available_backends": "()",
    "parse_address": "(address)",
    "Address.connect": "(self)",
    "Address.listen": "(self, **options)",
    "StreamSocket.read_into": "(self, buffer, start=0, end=None, *, peek=False)",
    "StreamSocket.read": "(self, max_bytes=65536, *, peek=False)",
    "StreamSocket.write": "(self, buffer, start=0, end=None)",
    "StreamSocket.write_vector": "(self, buffers)",
    "Poller.monitor_socket": "(self, socket, events)",
    "Poller.unmonitor_socket": "(self, socket)",
    "Poller.monitored_events": "(self, socket)",
    "Poller.set_monitored_events": "(self, socket, events)",
    "Poller.monitored_sockets": "(self)",
    "Poller.wait_for_events": "(self, timeout)",
}


def public_callables() -> dict[str, Callable[..., Any]]:
    """Every public function, and every public method and property of a public class, by its dotted name."""
    found: dict[str, Callable[..., Any]] = {}
    for name in NAMES:
        thing = getattr(bbipc, name)
        if inspect.isfunction(thing):
            found[name] = thing
        elif inspect.isclass(thing):
            for kind in thing.__mro__:  # also of the classes between: TCPStream, TCPServer
                if kind.__module__.startswith("bbipc"):
                    for own, member in vars(kind).items():
                        function = member.fget if isinstance(member, property) else member
                        if not own.startswith("_") and inspect.isfunction(function):
                            found[f"{kind.__name__}.{own}"] = function
                            if kind.__name__ == "Registry":  # users know it as the Poller's
                                found[f"{name}.{own}"] = function
    return found


def test_all_is_the_documented_list() -> None:
    assert sorted(bbipc.__all__) == sorted(NAMES)
    assert len(bbipc.__all__) == len(set(bbipc.__all__))


@pytest.mark.parametrize("name", NAMES)
def test_a_documented_name_is_there(name: str) -> None:
    assert getattr(bbipc, name) is not None


def test_a_star_import_gives_exactly_these_names() -> None:
    space: dict[str, object] = {}
    exec("from bbipc import *", space)
    assert sorted(set(space) - {"__builtins__"}) == sorted(NAMES)


def test_nothing_else_leaks_but_the_modules_of_the_package() -> None:
    others = {name: getattr(bbipc, name) for name in dir(bbipc) if not name.startswith("_") and name not in NAMES}
    for name, thing in others.items():
        assert isinstance(thing, ModuleType), name
        assert thing.__name__ == f"bbipc.{name}"


def test_the_package_tells_type_checkers_that_it_is_typed() -> None:
    assert (Path(bbipc.__file__).parent / "py.typed").is_file()


def test_every_module_imports_by_itself_and_has_a_docstring() -> None:
    names = [module.name for module in pkgutil.walk_packages(bbipc.__path__, "bbipc.")]
    assert len(names) > 20
    for name in names:
        assert importlib.import_module(name).__doc__


def test_importing_the_package_starts_nothing_opens_nothing_and_says_nothing() -> None:
    program = (
        "import os, threading; before = os.listdir('/proc/self/fd'); import bbipc;"
        "assert os.listdir('/proc/self/fd') == before; assert threading.active_count() == 1"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("kind", MEMBERS)
def test_a_kind_of_socket_has_its_documented_members_and_no_others(kind: str) -> None:
    members = {name for name in dir(getattr(bbipc, kind)) if not name.startswith("_")}
    assert members == MEMBERS[kind]


@pytest.mark.parametrize("name", SIGNATURES)
def test_a_signature_is_the_documented_one(name: str) -> None:
    signature = inspect.signature(public_callables()[name])
    bare = signature.replace(
        parameters=[one.replace(annotation=inspect.Parameter.empty) for one in signature.parameters.values()],
        return_annotation=inspect.Signature.empty,
    )
    assert str(bare) == SIGNATURES[name]


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("IPV")])
def test_every_public_class_and_function_has_a_docstring(name: str) -> None:
    own = vars(getattr(bbipc, name)).get("__doc__") or getattr(bbipc, name).__doc__
    assert own
    assert own.strip()
    assert not own.startswith(f"{name}(")  # not the one that a NamedTuple or a dataclass makes up


@pytest.mark.parametrize("name", public_callables())
def test_every_public_function_and_method_has_a_docstring(name: str) -> None:
    doc = inspect.getdoc(public_callables()[name])
    # The setter's and the overrider's may be inherited; nobody's may be missing.
    kind, _, method = name.rpartition(".")
    if not doc and kind:
        doc = inspect.getdoc(getattr(getattr(bbipc, kind), method))
    assert doc
    assert doc.strip()


@pytest.mark.parametrize("name", public_callables())
def test_every_parameter_and_every_result_is_annotated(name: str) -> None:
    function = public_callables()[name]
    parameters = set(inspect.signature(function).parameters) - {"self"}
    assert parameters | {"return"} <= set(function.__annotations__)


def test_every_timeout_says_that_it_is_in_seconds() -> None:
    timed = [
        name for name, function in public_callables().items() if "timeout" in inspect.signature(function).parameters
    ]
    assert set(timed) == {"poll_socket", "poll_sockets", "Poller.wait_for_events"}
    for name in timed:
        doc = public_callables()[name].__doc__ or ""
        assert "*timeout*: seconds" in doc, name
        assert "``None``" in doc, name


def test_every_exception_that_a_docstring_promises_exists() -> None:
    for name, function in public_callables().items():
        for promised in re.findall(r":raises ([\w.]+):", function.__doc__ or ""):
            module, _, kind = promised.rpartition(".")
            space = importlib.import_module(module) if module else bbipc
            found = getattr(space, kind, None) or vars(__import__("builtins")).get(kind)
            assert inspect.isclass(found), f"{name} promises {promised}"
            assert issubclass(found, BaseException)


def test_every_socket_method_says_what_happens_after_a_close() -> None:
    for name, function in public_callables().items():
        kind, _, method = name.rpartition(".")
        if kind and issubclass(getattr(bbipc, kind, bbipc.Poller), bbipc.Socket) and method not in {"close", "closed"}:
            assert ":raises SocketClosedError:" in (function.__doc__ or ""), name


# The package inside the package.

MESSAGE_NAMES = [
    "MAX_MESSAGE_SIZE",
    "Decoder",
    "Message",
    "MessageFlag",
    "MessageStream",
    "MessageType",
    "encode",
    "encode_header",
]
MESSAGE_SIGNATURES = {
    "encode": "(message)",
    "encode_header": "(message)",
    "Message": "(type, payload, flags=0, tag=0)",
    "Message.string": "(text, flags=0, tag=0)",
    "Message.binary": "(buffer, flags=0, tag=0)",
    "Message.close": "(flags=0, tag=0)",
    "Message.of": "(value, type=None, flags=0, tag=0)",
    "Decoder": "(*, max_message_size=5242879, accept_unsigned=False)",
    "Decoder.feed": "(self, buffer)",
    "Decoder.check": "(self)",
    "Decoder.finish": "(self)",
    "MessageStream": "(stream, *, max_message_size=5242879, accept_unsigned=False)",
    "MessageStream.send": "(self, message)",
    "MessageStream.flush": "(self)",
    "MessageStream.receive": "(self)",
}


def message_callables() -> dict[str, Callable[..., Any]]:
    """The same of ``bbipc.messages``, with its classes themselves."""
    found: dict[str, Callable[..., Any]] = {}
    for name in MESSAGE_NAMES:
        thing = getattr(messages, name)
        if callable(thing) and name not in {"MessageFlag", "MessageType"}:
            found[name] = thing
            for own, member in vars(thing).items() if inspect.isclass(thing) else ():
                function = member.fget if isinstance(member, property) else getattr(thing, own)
                if not own.startswith("_") and inspect.isroutine(function) and not inspect.ismethoddescriptor(function):
                    found[f"{name}.{own}"] = function
    return found


def test_the_names_of_messages_are_the_documented_ones() -> None:
    assert messages.__all__ == MESSAGE_NAMES
    space: dict[str, object] = {}
    exec("from bbipc.messages import *", space)
    assert sorted(set(space) - {"__builtins__"}) == sorted(MESSAGE_NAMES)


@pytest.mark.parametrize("name", MESSAGE_SIGNATURES)
def test_a_signature_of_messages_is_the_documented_one(name: str) -> None:
    signature = inspect.signature(message_callables()[name])
    bare = signature.replace(
        parameters=[one.replace(annotation=inspect.Parameter.empty) for one in signature.parameters.values()],
        return_annotation=inspect.Signature.empty,
    )
    assert str(bare) == MESSAGE_SIGNATURES[name]


@pytest.mark.parametrize("name", message_callables())
def test_everything_public_of_messages_is_documented_and_annotated(name: str) -> None:
    function = message_callables()[name]
    assert (function.__doc__ or "").strip()
    assert not (function.__doc__ or "").startswith(f"{name}(")
    for promised in re.findall(r":raises ([\w.]+):", function.__doc__ or ""):
        kind = getattr(bbipc, promised, None) or vars(__import__("builtins")).get(promised)
        assert inspect.isclass(kind), f"{name} promises {promised}"
        assert issubclass(kind, BaseException)
    if not inspect.isclass(function):
        parameters = set(inspect.signature(function).parameters) - {"self"}
        assert parameters | {"return"} <= set(getattr(function, "__func__", function).__annotations__)


# Sockets of every kind.

KINDS = [
    "IPv4TCPServer",
    "IPv4TCPStream",
    "IPv6TCPServer",
    "IPv6TCPStream",
    "LocalServer",
    "LocalStream",
]
NAMESPACE_OF = {"IPv4": "ipv4", "IPv6": "ipv6", "Local": "local"}


@pytest.fixture(params=KINDS, name="one")
def one_of_each_kind(request: pytest.FixtureRequest, short_dir: Path) -> Iterator[bbipc.Socket]:
    name = next(own for prefix, own in NAMESPACE_OF.items() if request.param.startswith(prefix))
    namespace = make_namespace(name, short_dir)
    with namespace.make_server() as server, contextlib.ExitStack() as stack:
        made: bbipc.Socket = server
        if request.param.endswith("Stream"):
            client = stack.enter_context(namespace.connect(server))
            stack.enter_context(accept(server))
            assert bbipc.poll_socket(client, SocketEvent.DETERMINED, PATIENCE)
            made = client
        assert type(made).__name__ == request.param
        yield made


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_socket_refuses_to_be_pickled_and_says_what_to_do_instead(one: bbipc.Socket, protocol: int) -> None:
    with pytest.raises(TypeError, match=f"a {type(one).__name__} cannot be pickled; .*send_descriptors"):
        pickle.dumps(one, protocol)
    one.close()
    with pytest.raises(TypeError, match=f"a {type(one).__name__} cannot be pickled"):
        pickle.dumps(one, protocol)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_a_socket_refuses_to_be_copied(one: bbipc.Socket, duplicate: Callable[[object], object]) -> None:
    with pytest.raises(TypeError, match=f"a {type(one).__name__} cannot be"):
        duplicate(one)
    assert not one.closed


def test_a_poller_refuses_to_be_pickled_and_copied(backend: str) -> None:
    with bbipc.make_poller(backend) as poller:
        with pytest.raises(TypeError):
            pickle.dumps(poller)
        for duplicate in (copy.copy, copy.deepcopy):
            with pytest.raises(TypeError):
                duplicate(poller).close()


def test_an_open_socket_shows_kind_number_and_where(one: bbipc.Socket) -> None:
    shown = repr(one)
    assert shown.startswith(f"<{type(one).__name__} fd={one.fileno()} ")
    assert shown.endswith(">")
    if isinstance(one, bbipc.IPv4TCPServer | bbipc.IPv6TCPServer):
        assert shown == f"<{type(one).__name__} fd={one.fileno()} listening on {one.host_address} port {one.port}>"
    elif isinstance(one, bbipc.LocalServer):
        assert shown == f"<LocalServer fd={one.fileno()} listening on {one.path!r}>"
    elif isinstance(one, bbipc.IPv4TCPStream):
        assert shown.endswith(f" connected local=127.0.0.1:{one.local_port} peer=127.0.0.1:{one.remote_port}>")
    elif isinstance(one, bbipc.IPv6TCPStream):
        assert shown.endswith(f" connected local=[::1]:{one.local_port} peer=[::1]:{one.remote_port}>")
    else:
        assert isinstance(one, bbipc.LocalStream)
        assert shown == f"<LocalStream fd={one.fileno()} connected path={one.path!r}>"


def test_a_closed_socket_shows_that_it_is_closed_and_no_number(one: bbipc.Socket) -> None:
    one.close()
    assert repr(one) == f"<{type(one).__name__} closed>"
    assert str(one) == repr(one)


def test_a_connecting_and_a_failed_stream_show_their_stage(short_dir: Path) -> None:
    namespace: Namespace = make_namespace("ipv4", short_dir)
    with namespace.make_server() as server:
        pass
    with namespace.connect(server) as one:
        assert re.fullmatch(r"<IPv4TCPStream fd=\d+ (connecting|failed) local=.* peer=127\.0\.0\.1:\d+>", repr(one))
        assert bbipc.poll_socket(one, SocketEvent.DETERMINED, PATIENCE)
        assert " failed " in repr(one)


def test_addresses_and_paths_stay_readable_after_a_close(one: bbipc.Socket) -> None:
    names = [
        "host_address",
        "port",
        "local_host_address",
        "local_port",
        "remote_host_address",
        "remote_port",
        "path",
    ]
    plain = {name: getattr(one, name) for name in names if hasattr(one, name)}
    assert plain
    one.close()
    assert {name: getattr(one, name) for name in plain} == plain


#: a call of every method that a socket may have
CALLS: dict[str, Callable[[Any], object]] = {
    "fileno": lambda one: one.fileno(),
    "__enter__": lambda one: one.__enter__(),
    "accept_connection": lambda one: one.accept_connection(),
    "connection_available": lambda one: one.connection_available(),
    "determined": lambda one: one.determined(),
    "connection_succeeded": lambda one: one.connection_succeeded(),
    "connection_failed": lambda one: one.connection_failed(),
    "connection_error": lambda one: one.connection_error(),
    "data_available": lambda one: one.data_available(),
    "ready_to_write": lambda one: one.ready_to_write(),
    "room_to_write": lambda one: one.room_to_write(),
    "remote_disconnected": lambda one: one.remote_disconnected(),
    "read_into": lambda one: one.read_into(bytearray(1)),
    "read": lambda one: one.read(),
    "write": lambda one: one.write(b"x"),
    "write_vector": lambda one: one.write_vector([b"x"]),
    "shutdown_write": lambda one: one.shutdown_write(),
    "no_delay": lambda one: one.no_delay,
    "keep_alive": lambda one: one.keep_alive,
    "peer_credentials": lambda one: one.peer_credentials(),
    "send_descriptors": lambda one: one.send_descriptors([0]),
    "receive_descriptors": lambda one: one.receive_descriptors(1),
}


def test_every_method_of_a_closed_socket_raises_the_closed_error_that_names_it(one: bbipc.Socket) -> None:
    one.close()
    one.close()
    assert one.closed
    methods = (MEMBERS[type(one).__name__] | {"__enter__"}) & set(CALLS)
    plain = {"close", "closed", "path", "host_address", "port"}
    plain |= {"local_host_address", "local_port", "remote_host_address", "remote_port"}
    assert methods | plain >= MEMBERS[type(one).__name__]
    for name in sorted(methods):
        with pytest.raises(SocketClosedError) as caught:
            CALLS[name](one)
        assert caught.value.socket is one, name


def test_a_poller_shows_its_kind_and_how_many_sockets_it_has(backend: str) -> None:
    one, other = bbipc.local_stream_pair()
    with one, other:
        with bbipc.make_poller(backend) as poller:
            kind = type(poller).__name__
            assert backend in kind.lower()
            assert repr(poller) == f"<{kind} 0 sockets>"
            poller.monitor_socket(one, SocketEvent.DATA_AVAILABLE)
            assert repr(poller) == f"<{kind} 1 sockets>"
        assert repr(poller) == f"<{kind} closed>"
