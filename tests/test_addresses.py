"""What counts as a numeric address and as a port, everywhere one can be handed in; resolving host names."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bbipc
from bbipc.sockets.addresses import backlog_size, numeric_address, port_number

IPV4 = ["127.0.0.1", "0.0.0.0", "255.255.255.255", "10.20.30.40"]
IPV6 = {
    "::1": "::1",
    "::": "::",
    "0:0::1": "::1",
    "0:0:0:0:0:0:0:1": "::1",
    "FE80::00AB": "fe80::ab",
    "::ffff:127.0.0.1": "::ffff:127.0.0.1",
    "2001:db8:0:0:1:0:0:1": "2001:db8::1:0:0:1",
}
BAD_IPV4 = [
    "",
    "localhost",
    "127.1",
    "127",
    "2130706433",
    "0x7f.1",
    "0x7f.0.0.1",
    "0177.0.0.1",
    "127.0.0.1 junk",
    "127.0.0.1 ",
    " 127.0.0.1",
    "127.0.0.1\n",
    "127.0.0.1\0",
    "\0",
    "127.0.0.1\0.2",
    "127.0.0.256",
    "127.0.0.-1",
    "127.0.0.1.1",
    "127.0.0.1/8",
    "127.0.0.1:80",
    "::1",
    "\uff11\uff12\uff17.0.0.1",  # digits to str.isdigit, to nobody else
    "\ud800",
]
BAD_IPV6 = [
    "",
    "localhost",
    "ip6-localhost",
    "127.0.0.1",
    "::1%lo",
    "fe80::1%1",
    "[::1]",
    "[::1]:80",
    "::1 junk",
    " ::1",
    "::1\n",
    "::1\0",
    "1::2::3",
    "::12345",
    ":::",
    "1:2:3:4:5:6:7:8:9",
    "::1/128",
    "\udfff",
]
NO_TEXT = [None, b"127.0.0.1", b"::1", 2130706433, 1.5, True, ("127.0.0.1", 80), bytearray(b"::1")]
BAD_PORTS = [-1, 65536, 2**31, -(2**63), 2**70]
NO_PORTS = ["80", "", None, 1.0, True, False, b"80", [80]]


class Countable:
    """An int by its __index__, as numpy's are."""

    def __index__(self) -> int:
        return 8080


Call = Callable[[Any, Any], object]
#: every way to hand in (address, port), with its family
DOORS: dict[str, tuple[socket.AddressFamily, Call]] = {
    "make_ipv4_tcp_server": (socket.AF_INET, bbipc.make_ipv4_tcp_server),
    "make_ipv6_tcp_server": (socket.AF_INET6, bbipc.make_ipv6_tcp_server),
    "connect_to_ipv4_tcp_server": (socket.AF_INET, bbipc.connect_to_ipv4_tcp_server),
    "connect_to_ipv6_tcp_server": (socket.AF_INET6, bbipc.connect_to_ipv6_tcp_server),
    "connect from, ipv4": (
        socket.AF_INET,
        lambda host, port: bbipc.connect_to_ipv4_tcp_server(
            bbipc.IPV4_LOOPBACK, 1, local_host_address=host, local_port=port
        ),
    ),
    "connect from, ipv6": (
        socket.AF_INET6,
        lambda host, port: bbipc.connect_to_ipv6_tcp_server(
            bbipc.IPV6_LOOPBACK, 1, local_host_address=host, local_port=port
        ),
    ),
}


@pytest.mark.parametrize("text", IPV4)
def test_a_dotted_quad_is_an_address(text: str) -> None:
    assert numeric_address(socket.AF_INET, text) == text


@pytest.mark.parametrize("text", IPV6)
def test_an_ipv6_address_comes_back_in_its_one_spelling(text: str) -> None:
    assert numeric_address(socket.AF_INET6, text) == IPV6[text]


@pytest.mark.parametrize("text", BAD_IPV4, ids=ascii)
def test_what_is_no_dotted_quad_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a numeric IPv4 address; resolve_ipv4_address\(\) turns") as caught:
        numeric_address(socket.AF_INET, text)
    assert repr(text) in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("text", BAD_IPV6, ids=ascii)
def test_what_is_no_ipv6_address_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a numeric IPv6 address; resolve_ipv6_address\(\) turns") as caught:
        numeric_address(socket.AF_INET6, text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("value", NO_TEXT, ids=repr)
def test_an_address_that_is_no_text_is_refused_by_its_type(value: Any) -> None:
    for family in (socket.AF_INET, socket.AF_INET6):
        with pytest.raises(TypeError, match=f"host_address must be a str, not {type(value).__name__}"):
            numeric_address(family, value)


@given(st.ip_addresses(v=4).map(str))
@settings(database=None, deadline=None)
def test_every_ipv4_address_is_kept_as_it_is(text: str) -> None:
    assert numeric_address(socket.AF_INET, text) == text


@given(st.ip_addresses(v=6))
@settings(database=None, deadline=None)
def test_every_spelling_of_an_ipv6_address_gives_the_same_text(address: Any) -> None:
    shown = numeric_address(socket.AF_INET6, address.exploded)
    assert shown == numeric_address(socket.AF_INET6, address.compressed) == numeric_address(socket.AF_INET6, shown)


def is_numeric(family: socket.AddressFamily, text: str) -> bool:
    try:
        socket.inet_pton(family, text)
    except (OSError, ValueError):
        return False
    return True


@given(st.text() | st.text("0123456789abcdef:.%x"))
@settings(database=None, deadline=None)
def test_any_text_is_an_address_or_a_value_error(text: str) -> None:
    for family in (socket.AF_INET, socket.AF_INET6):
        if is_numeric(family, text):
            assert socket.inet_pton(family, text) == socket.inet_pton(family, numeric_address(family, text))
        else:
            with pytest.raises(ValueError, match="numeric"):
                numeric_address(family, text)


@pytest.mark.parametrize("port", [0, 1, 80, 65535])
def test_a_port_in_range_is_kept(port: int) -> None:
    assert port_number(port) == port


def test_a_port_may_be_whatever_counts_as_an_int() -> None:
    number = port_number(Countable())  # type: ignore[arg-type]
    assert (number, type(number)) == (8080, int)


@pytest.mark.parametrize("port", BAD_PORTS)
def test_a_port_out_of_range_is_refused_and_named(port: int) -> None:
    with pytest.raises(ValueError, match=f"local_port {port} is not in 0 to 65535"):
        port_number(port, name="local_port")


def test_a_port_to_connect_to_is_not_zero() -> None:
    assert port_number(1, lowest=1) == 1
    with pytest.raises(ValueError, match="port 0 is not in 1 to 65535"):
        port_number(0, lowest=1)
    with pytest.raises(ValueError, match="port 0 is not in 1 to 65535"):
        bbipc.connect_to_ipv4_tcp_server(bbipc.IPV4_LOOPBACK, 0)
    with pytest.raises(ValueError, match="port 0 is not in 1 to 65535"):
        bbipc.connect_to_ipv6_tcp_server(bbipc.IPV6_LOOPBACK, 0)


@pytest.mark.parametrize("port", NO_PORTS, ids=repr)
def test_a_port_that_is_no_int_is_refused_by_its_type(port: Any) -> None:
    with pytest.raises(TypeError, match=f"port must be an int, not {type(port).__name__}"):
        port_number(port)


@pytest.mark.parametrize("backlog", [0, 1, 2**31 - 1])
def test_a_backlog_in_range_is_kept(backlog: int) -> None:
    assert backlog_size(backlog) == backlog


@pytest.mark.parametrize("backlog", [-1, 2**31, 2**64])
def test_a_backlog_out_of_range_is_refused(backlog: int) -> None:
    with pytest.raises(ValueError, match=f"backlog {backlog} is not in"):
        backlog_size(backlog)


@pytest.mark.parametrize("backlog", ["1", None, 1.0, True])
def test_a_backlog_that_is_no_int_is_refused(backlog: Any) -> None:
    with pytest.raises(TypeError, match=f"backlog must be an int, not {type(backlog).__name__}"):
        backlog_size(backlog)


# The same at every door; the leak check of the suite sees to it that no descriptor stays behind.


@pytest.mark.parametrize("door", DOORS)
def test_every_door_refuses_what_is_no_numeric_address(door: str) -> None:
    family, call = DOORS[door]
    texts, resolver = (
        (BAD_IPV4, "resolve_ipv4_address") if family == socket.AF_INET else (BAD_IPV6, "resolve_ipv6_address")
    )
    for text in texts:
        with pytest.raises(ValueError, match=rf"host_address .*numeric.*{resolver}\(\)"):
            call(text, 1)


@pytest.mark.parametrize("door", DOORS)
def test_every_door_refuses_an_address_that_is_no_text(door: str) -> None:
    for value in NO_TEXT:
        if value is None and "from" in door:  # there None means "wherever"
            continue
        with pytest.raises(TypeError, match="host_address must be a str"):
            DOORS[door][1](value, 1)


@pytest.mark.parametrize("door", DOORS)
def test_every_door_refuses_a_port_out_of_range(door: str) -> None:
    family, call = DOORS[door]
    host = bbipc.IPV4_LOOPBACK if family == socket.AF_INET else bbipc.IPV6_LOOPBACK
    for port in BAD_PORTS:
        with pytest.raises(ValueError, match=f"port {port} is not in"):
            call(host, port)


@pytest.mark.parametrize("door", DOORS)
def test_every_door_refuses_a_port_that_is_no_int(door: str) -> None:
    family, call = DOORS[door]
    host = bbipc.IPV4_LOOPBACK if family == socket.AF_INET else bbipc.IPV6_LOOPBACK
    for port in NO_PORTS:
        with pytest.raises(TypeError, match="port must be an int, not "):
            call(host, port)


@pytest.mark.parametrize("backlog", [-1, 2**31, "1", None, True])
def test_a_server_refuses_a_bad_backlog_before_it_listens(backlog: Any) -> None:
    for make, host in (
        (bbipc.make_ipv4_tcp_server, bbipc.IPV4_LOOPBACK),
        (bbipc.make_ipv6_tcp_server, bbipc.IPV6_LOOPBACK),
    ):
        with pytest.raises((ValueError, TypeError), match="backlog"):
            make(host, 0, backlog=backlog)


def test_a_server_shows_its_address_in_the_one_spelling() -> None:
    with bbipc.make_ipv6_tcp_server("0:0:0:0:0:0:0:1", 0) as server:
        assert server.host_address == bbipc.IPV6_LOOPBACK
        assert 0 < server.port < 65536


# Host names.

RESOLVERS = {
    socket.AF_INET: (bbipc.resolve_ipv4_address, "192.0.2.7"),
    socket.AF_INET6: (bbipc.resolve_ipv6_address, "2001:db8::7"),
}


@pytest.fixture(params=RESOLVERS, ids=["ipv4", "ipv6"], name="family")
def address_family(request: pytest.FixtureRequest) -> socket.AddressFamily:
    assert isinstance(request.param, socket.AddressFamily)
    return request.param


def test_the_first_address_of_a_name_is_given(monkeypatch: pytest.MonkeyPatch, family: socket.AddressFamily) -> None:
    resolve, address = RESOLVERS[family]
    asked: list[tuple[object, ...]] = []

    def found(*arguments: object) -> list[tuple[Any, ...]]:
        asked.append(arguments)
        return [(family, socket.SOCK_STREAM, 6, "", (text, 0, 0, 0)) for text in (address, "other")]

    monkeypatch.setattr(socket, "getaddrinfo", found)
    assert resolve("somewhere.example") == address
    assert asked == [("somewhere.example", None, family, socket.SOCK_STREAM)]


@pytest.mark.parametrize("number", [socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)])
def test_a_name_that_does_not_exist_gives_none(
    monkeypatch: pytest.MonkeyPatch, family: socket.AddressFamily, number: int
) -> None:
    def no_such_name(*_: object) -> list[tuple[Any, ...]]:
        raise socket.gaierror(number, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_such_name)
    assert RESOLVERS[family][0]("nowhere.invalid") is None


def test_a_name_without_an_address_of_that_kind_gives_none(
    monkeypatch: pytest.MonkeyPatch, family: socket.AddressFamily
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [])
    assert RESOLVERS[family][0]("nowhere.invalid") is None


@pytest.mark.parametrize("number", [socket.EAI_AGAIN, socket.EAI_FAIL, socket.EAI_MEMORY])
def test_a_resolver_that_cannot_tell_is_an_error_and_not_a_none(
    monkeypatch: pytest.MonkeyPatch, family: socket.AddressFamily, number: int
) -> None:
    def no_answer(*_: object) -> list[tuple[Any, ...]]:
        raise socket.gaierror(number, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", no_answer)
    with pytest.raises(socket.gaierror) as caught:
        RESOLVERS[family][0]("slow.example")
    assert caught.value.errno == number


@pytest.mark.parametrize("value", [None, b"localhost", 1], ids=repr)
def test_a_name_that_is_no_text_is_refused(
    monkeypatch: pytest.MonkeyPatch, family: socket.AddressFamily, value: Any
) -> None:
    def must_not_be_asked(*_: object) -> list[tuple[Any, ...]]:
        raise AssertionError("the resolver was asked")

    monkeypatch.setattr(socket, "getaddrinfo", must_not_be_asked)
    with pytest.raises(TypeError, match="hostname must be a str"):
        RESOLVERS[family][0](value)


def test_localhost_is_resolved_to_the_loopback_for_real() -> None:
    address = bbipc.resolve_ipv4_address("localhost")
    assert address is not None
    assert numeric_address(socket.AF_INET, address) == address
    assert address.startswith("127.")


def test_a_numeric_address_resolves_to_itself() -> None:
    assert bbipc.resolve_ipv4_address("127.0.0.1") == bbipc.IPV4_LOOPBACK
    assert bbipc.resolve_ipv6_address("::1") == bbipc.IPV6_LOOPBACK


@pytest.mark.parametrize("resolve", [bbipc.resolve_ipv4_address, bbipc.resolve_ipv6_address])
def test_a_resolver_says_first_of_all_that_it_blocks(resolve: Callable[[str], str | None]) -> None:
    assert resolve.__doc__ is not None
    assert "blocks" in resolve.__doc__.splitlines()[0]
