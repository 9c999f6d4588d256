"""Addresses as values: every spelling means one thing, and str() is a spelling of its own."""

from __future__ import annotations

import copy
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bbipc
from bbipc import Address, SocketEvent, parse_address
from bbipc.sockets.paths import MAX_PATH_BYTES
from tests.support.makers import NAMESPACES, PATIENCE, Namespace, accept

LOCAL = Address("local", path="/run/s")
IPV4 = Address("ipv4", host_address="127.0.0.1", port=4000)
IPV6 = Address("ipv6", host_address="::1", port=4000)

SPELLINGS: list[tuple[Any, Address]] = [
    ("/run/s", LOCAL),
    ("local:/run/s", LOCAL),
    (b"/run/s", LOCAL),
    (Path("/run/s"), LOCAL),
    (LOCAL, LOCAL),
    ("s", Address("local", path="s")),
    ("local:s", Address("local", path="s")),
    ("local:local:s", Address("local", path="local:s")),
    (b"local:s", Address("local", path="local:s")),
    (Path("ipv4:127.0.0.1:4000"), Address("local", path="ipv4:127.0.0.1:4000")),
    ("./127.0.0.1:4000", Address("local", path="./127.0.0.1:4000")),
    ("local:127.0.0.1:4000", Address("local", path="127.0.0.1:4000")),
    ("unix:name", Address("local", path="unix:name")),
    ("@name", Address("local", path="@name")),
    ("two words", Address("local", path="two words")),
    (b"caf\xe9", Address("local", path="caf\udce9")),
    ("\0name", Address("local", path="\0name")),
    (b"\0name", Address("local", path="\0name")),
    ("abstract:name", Address("local", path="\0name")),
    ("abstract:a:1", Address("local", path="\0a:1")),
    ("ipv4:127.0.0.1:4000", IPV4),
    (("127.0.0.1", 4000), IPV4),
    ("ipv4:127.0.0.1:04000", IPV4),
    ("ipv4:0.0.0.0:0", Address("ipv4", host_address="0.0.0.0")),
    ("ipv6:[::1]:4000", IPV6),
    (("::1", 4000), IPV6),
    (("0:0::1", 4000), IPV6),
    ("ipv6:[::ffff:127.0.0.1]:65535", Address("ipv6", host_address="::ffff:127.0.0.1", port=65535)),
]
REFUSED: list[tuple[Any, str]] = [
    ("", "must not be empty"),
    ("local:", "must not be empty"),
    ("abstract:", "must not be empty"),
    (b"", "must not be empty"),
    ("a\0b", "must not hold a NUL"),
    ("local:" + "x" * (MAX_PATH_BYTES + 1), f"at most {MAX_PATH_BYTES} bytes"),
    ("localhost:4000", "say ipv4:HOST:PORT"),
    ("127.0.0.1:4000", "say ipv4:HOST:PORT"),
    ("[::1]:4000", "say ipv4:HOST:PORT"),
    ("IPV4:127.0.0.1:4000", "say ipv4:HOST:PORT"),
    ("tcp:4000", "say ipv4:HOST:PORT"),
    ("ipv4:", "form ipv4:HOST:PORT"),
    ("ipv4:127.0.0.1", "form ipv4:HOST:PORT"),
    ("ipv4:127.0.0.1:", "is not a number"),
    ("ipv4:127.0.0.1:http", "is not a number"),
    ("ipv4:127.0.0.1:-1", "is not a number"),
    ("ipv4:127.0.0.1: 1", "is not a number"),
    ("ipv4:127.0.0.1:\u0661", "is not a number"),
    ("ipv4:127.0.0.1:\u00b2", "is not a number"),
    ("ipv4:127.0.0.1:" + "9" * 5000, "is not a number"),
    ("ipv4:127.0.0.1:65536", "port 65536 is not in 0 to 65535"),
    ("ipv4::4000", r"resolve_ipv4_address\(\)"),
    ("ipv4:localhost:4000", r"'localhost' is not a numeric IPv4 address; resolve_ipv4_address\(\)"),
    ("ipv4:127.1:4000", r"resolve_ipv4_address\(\)"),
    ("ipv4:::1:4000", r"resolve_ipv4_address\(\)"),
    ("ipv6:::1:4000", r"form ipv6:\[HOST\]:PORT"),
    ("ipv6:[::1]4000", r"form ipv6:\[HOST\]:PORT"),
    ("ipv6:[::1]:4000\n", "is not a number"),
    ("ipv6:[localhost]:4000", r"resolve_ipv6_address\(\)"),
    ("ipv6:[127.0.0.1]:4000", r"resolve_ipv6_address\(\)"),
    (("localhost", 4000), r"resolve_ipv4_address\(\)"),
    (("::1%lo", 4000), r"resolve_ipv6_address\(\)"),
    (("", 4000), r"resolve_ipv4_address\(\)"),
    (("127.0.0.1", 65536), "port 65536 is not in"),
    (("127.0.0.1", -1), "port -1 is not in"),
    (("127.0.0.1",), "not a tuple of 1"),
    (("::1", 4000, 0, 0), "not a tuple of 4"),
]
MISTYPED = [
    None,
    4000,
    True,
    1.5,
    object(),
    ["127.0.0.1", 4000],
    bytearray(b"/run/s"),
    ("127.0.0.1", "4000"),
    ("127.0.0.1", None),
    ("127.0.0.1", True),
    (b"127.0.0.1", 4000),
    (4000, "127.0.0.1"),
]


@pytest.mark.parametrize(("spelling", "address"), SPELLINGS, ids=lambda value: ascii(value)[:40])
def test_every_spelling_means_one_address(spelling: Any, address: Address) -> None:
    found = parse_address(spelling)
    assert found == address
    assert hash(found) == hash(address)


@pytest.mark.parametrize(("text", "reason"), REFUSED, ids=lambda value: ascii(value)[:40])
def test_what_is_no_address_is_refused_with_a_hint(text: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        parse_address(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", MISTYPED, ids=lambda value: type(value).__name__)
def test_what_cannot_be_one_is_refused_by_its_type(value: Any) -> None:
    with pytest.raises(TypeError, match=r"must be a|must be an int|an address is"):
        parse_address(value)


def test_an_address_shows_the_text_that_means_it() -> None:
    assert str(LOCAL) == "local:/run/s"
    assert str(IPV4) == "ipv4:127.0.0.1:4000"
    assert str(IPV6) == "ipv6:[::1]:4000"
    assert str(parse_address("\0name")) == "abstract:name"
    assert repr(IPV6) == "<Address 'ipv6:[::1]:4000'>"


@pytest.mark.parametrize("address", [address for _, address in SPELLINGS], ids=lambda value: ascii(str(value)))
def test_an_address_is_a_value(address: Address) -> None:
    assert parse_address(str(address)) == address
    assert pickle.loads(pickle.dumps(address)) == address
    assert copy.deepcopy(address) == address
    assert address not in ({LOCAL, IPV4, IPV6} - {address})
    with pytest.raises(AttributeError):
        address.port = 1  # type: ignore[misc]


NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20) | st.binary(
    min_size=1, max_size=60
).map(os.fsdecode)


@given(NAMES)
@settings(database=None, deadline=None)
def test_any_path_comes_back_from_its_text(name: str) -> None:
    try:
        address = parse_address(os.fsencode(name))
    except ValueError:
        assert not name.strip("\0") or "\0" in name
        return
    assert address.path == name
    assert parse_address(str(address)) == address


@given(st.ip_addresses(), st.integers(0, 65535))
@settings(database=None, deadline=None)
def test_any_host_and_port_come_back_from_their_text(host: Any, port: int) -> None:
    address = parse_address((str(host), port))
    assert (address.kind, address.port) == (f"ipv{host.version}", port)
    assert parse_address(str(address)) == address


@given(st.text() | st.text("0123456789abcdef:.[]/\0") | st.tuples(st.sampled_from(NAMESPACES), st.text()).map(":".join))
@settings(database=None, deadline=None)
def test_any_text_is_an_address_or_a_value_error(text: str) -> None:
    try:
        address = parse_address(text)
    except ValueError:
        return
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("tcp", "", "127.0.0.1", 1), "not 'tcp'"),
        (("local", "s", "127.0.0.1", 0), "has a path, and the others"),
        (("local", "s", "", 1), "has a path, and the others"),
        (("ipv4", "s", "127.0.0.1", 1), "has a path, and the others"),
        (("ipv4", "", "::1", 1), "resolve_ipv4_address"),
        (("local",), "must not be empty"),
        (("ipv6",), "resolve_ipv6_address"),
    ],
)
def test_an_unsound_address_cannot_be_made(arguments: tuple[Any, ...], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Address(*arguments)


def test_a_server_tells_its_address_and_who_connects_to_it_gets_there(namespace: Namespace) -> None:
    with namespace.make_server() as server:
        address = Address.of(server)
        assert address.kind == namespace.name
        with parse_address(str(address)).connect() as stream, accept(server) as accepted:
            assert bbipc.poll_socket(stream, SocketEvent.CONNECTION_SUCCEEDED, PATIENCE)
            assert stream.write(b"x") == 1
            assert bbipc.poll_socket(accepted, SocketEvent.DATA_AVAILABLE, PATIENCE)


def test_only_a_server_of_ours_has_an_address() -> None:
    one, other = bbipc.local_stream_pair()
    with one, other, pytest.raises(TypeError, match="a StreamServer is required, not LocalStream"):
        Address.of(one)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["ipv4:127.0.0.1:0", "ipv6:[::1]:0"])
def test_an_address_of_tcp_is_listened_on_with_its_options(text: str) -> None:
    with parse_address(text).listen(reuse_port=True, backlog=3, replace_stale=True, delete_on_close=True) as server:
        address = Address.of(server)
        assert address.port > 0
        with address.listen(reuse_port=True):
            pass
        with pytest.raises(bbipc.SocketError):
            address.listen()
    with pytest.raises(TypeError, match="unexpected keyword argument 'mode'"):
        parse_address(text).listen(mode=0o600)


def test_a_path_is_listened_on_with_its_options(short_dir: Path) -> None:
    address = parse_address(short_dir / "server")
    with address.listen(mode=0o640, delete_on_close=False, reuse_address=True) as server:
        assert Address.of(server) == address
        assert (short_dir / "server").stat().st_mode & 0o777 == 0o640
    with pytest.raises(bbipc.SocketError, match="a dead server left its socket there"):
        address.listen()
    with address.listen(replace_stale=True):
        pass
    assert not list(short_dir.iterdir())
    with pytest.raises(TypeError, match="unexpected keyword argument 'reuse_port'"):
        address.listen(reuse_port=True)


def test_an_abstract_name_is_listened_on(short_dir: Path) -> None:
    text = f"abstract:bbipc {short_dir}"
    with parse_address(text).listen() as server:
        assert str(Address.of(server)) == text
        with parse_address(text).connect() as stream:
            assert stream.connection_succeeded()


def test_nobody_there_is_what_the_primitives_say(short_dir: Path) -> None:
    with pytest.raises(bbipc.NoLocalServerError):
        parse_address(short_dir / "nobody").connect()
    with pytest.raises(ValueError, match="port 0 is not in 1 to 65535"):
        parse_address("ipv4:127.0.0.1:0").connect()
    with bbipc.make_ipv4_tcp_server(bbipc.IPV4_LOOPBACK, 0) as server:
        address = Address.of(server)
    with address.connect() as stream:
        assert bbipc.poll_socket(stream, SocketEvent.CONNECTION_FAILED, PATIENCE)
