r"""Addresses as values: where a server listens, in every spelling a user may choose, read in one place.

    "local:PATH", "PATH", b"PATH", Path("PATH")     a path
    "abstract:NAME", "\0NAME"                         a name in Linux's abstract namespace, as a command line can say it
    "ipv4:HOST:PORT", (HOST, PORT)                  numeric, as everywhere
    "ipv6:[HOST]:PORT", (HOST, PORT)                the brackets belong to the text alone

Law of this file: an Address is sound once it is made, and opens nothing until it is told to.  Nothing is guessed: text
that looks like a host and a port without saying of which kind is refused, not taken for the name of a file.
"""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, TypedDict, Unpack

from bbipc.sockets.addresses import numeric_address, port_number
from bbipc.sockets.local import LocalServer, connect_to_local_server, make_local_server
from bbipc.sockets.paths import socket_path
from bbipc.sockets.server import StreamServer
from bbipc.sockets.stream import StreamSocket
from bbipc.sockets.tcp import (
    IPv4TCPServer,
    IPv6TCPServer,
    connect_to_ipv4_tcp_server,
    connect_to_ipv6_tcp_server,
    make_ipv4_tcp_server,
    make_ipv6_tcp_server,
)

_IPV4: Final = re.compile(r"(.*):([^:]*)", re.DOTALL)
_IPV6: Final = re.compile(r"\[(.*)\]:([^:]*)", re.DOTALL)
#: what a host and its port look like, and no path with a directory does
_HOST_AND_PORT: Final = re.compile(r"[^/]*:[0-9]+")


class ListenOptions(TypedDict, total=False):
    """What the ``make_`` functions take by keyword: the last three are a path's, the two before them TCP's."""

    backlog: int
    reuse_address: bool
    reuse_port: bool
    mode: int
    delete_on_close: bool
    replace_stale: bool


@dataclass(frozen=True, slots=True, repr=False)
class Address:
    """Where a server listens: an immutable value, made by :func:`parse_address`.

    ``kind``: ``"local"``, ``"ipv4"`` or ``"ipv6"``.  ``path``: of a local one, with a leading NUL in the abstract
    namespace; ``""`` otherwise.  ``host_address``, ``port``: of the other two; ``""`` and 0 otherwise.  ``str()`` gives
    text from which ``parse_address`` makes an equal Address.  Any thread.

    :raises ValueError: an unknown kind; a path, a host address or a port that cannot be one
    :raises TypeError: one of them is of a wrong type
    """

    kind: Literal["local", "ipv4", "ipv6"]
    path: str = ""
    host_address: str = ""
    port: int = 0

    def __post_init__(self) -> None:
        if self.kind == "local":
            object.__setattr__(self, "path", os.fsdecode(socket_path(self.path)))
        elif self.kind in ("ipv4", "ipv6"):
            family = socket.AF_INET if self.kind == "ipv4" else socket.AF_INET6
            object.__setattr__(self, "host_address", numeric_address(family, self.host_address))
            object.__setattr__(self, "port", port_number(self.port))
        else:
            raise ValueError(f'an address is "local", "ipv4" or "ipv6", not {self.kind!r}')
        if bool(self.path) is bool(self.host_address or self.port):
            raise ValueError("a local address has a path, and the others a host address and a port")

    @classmethod
    def of(cls, server: StreamServer) -> Address:
        """Where *server* listens: the port is the one that the kernel has picked.

        :raises TypeError: not one of our servers
        """
        if isinstance(server, LocalServer):
            return cls("local", path=os.fsdecode(server.path))
        if isinstance(server, IPv4TCPServer):
            return cls("ipv4", host_address=server.host_address, port=server.port)
        if isinstance(server, IPv6TCPServer):
            return cls("ipv6", host_address=server.host_address, port=server.port)
        raise TypeError(f"a StreamServer is required, not {type(server).__name__}")

    def connect(self) -> StreamSocket:
        """Begin to connect, as ``connect_to_local_server`` and its like do.  Never blocks.

        :raises NoLocalServerError: nothing listens on the path
        :raises ConnectionFailedError: the server on the path cannot be connected to (EACCES …)
        :raises ValueError: port 0
        :raises SocketError: there are no descriptors left
        """
        if self.kind == "local":
            return connect_to_local_server(self.path)
        if self.kind == "ipv4":
            return connect_to_ipv4_tcp_server(self.host_address, self.port)
        return connect_to_ipv6_tcp_server(self.host_address, self.port)

    def listen(self, **options: Unpack[ListenOptions]) -> StreamServer:
        """A server that listens here, as ``make_local_server`` and its like make it; port 0: the kernel picks one.

        *options*: theirs.  What is true of a kind anyway may be asked of it, so that a program can take the address
        from its user: TCP leaves no stale path behind and nothing to delete, a path is not kept from being reused.
        What a kind cannot do is refused: ``mode`` of TCP, ``reuse_port`` of a path.

        :raises SocketError: the address cannot be had: EADDRINUSE, EACCES, ENOENT …
        :raises TypeError: an option that servers of this kind do not have, or of a wrong type
        :raises ValueError: an option out of range
        """
        if self.kind == "local":
            options.pop("reuse_address", None)
            return make_local_server(self.path, **options)  # type: ignore[misc] # it refuses what is not its own
        options.pop("replace_stale", None)
        options.pop("delete_on_close", None)
        make = make_ipv4_tcp_server if self.kind == "ipv4" else make_ipv6_tcp_server
        return make(self.host_address, self.port, **options)  # type: ignore[misc]

    def __str__(self) -> str:
        if self.kind == "local":
            return f"abstract:{self.path[1:]}" if self.path.startswith("\0") else f"local:{self.path}"
        host = self.host_address if self.kind == "ipv4" else f"[{self.host_address}]"
        return f"{self.kind}:{host}:{self.port}"

    def __repr__(self) -> str:
        return f"<Address {str(self)!r}>"


#: all that parse_address takes
AddressLike: TypeAlias = Address | str | bytes | os.PathLike[str] | os.PathLike[bytes] | tuple[str, int]


def parse_address(address: AddressLike) -> Address:
    """The Address that *address* means; it is not connected to, and no name is looked up.

    ``str``: ``local:PATH``, ``abstract:NAME``, ``ipv4:HOST:PORT``, ``ipv6:[HOST]:PORT``, or a path that begins with
    none of these and does not look like ``HOST:PORT``.  ``bytes`` and ``os.PathLike``: a path, whatever it begins with.
    ``(host, port)``: TCP, IPv6 where there is a colon in *host*.  An Address: itself.  Never blocks; any thread.

    :raises ValueError: not an address; a host name (``resolve_ipv4_address`` turns it into an address)
    :raises TypeError: none of these
    """
    if isinstance(address, Address):
        return address
    if isinstance(address, str):
        return _from_text(address)
    if isinstance(address, bytes | os.PathLike):
        return Address("local", path=os.fsdecode(address))
    if isinstance(address, tuple):
        return _from_pair(address)
    raise TypeError(f"an address is a path, text, (host, port) or an Address, not {type(address).__name__}")


def _from_text(text: str) -> Address:
    kind, colon, rest = text.partition(":")
    if colon and kind == "local":
        return Address("local", path=rest)
    if colon and kind == "abstract":
        return Address("local", path=f"\0{rest}")
    if colon and kind == "ipv4":
        return Address("ipv4", **_host_and_port(text, _IPV4.fullmatch(rest), "ipv4:HOST:PORT"))
    if colon and kind == "ipv6":
        return Address("ipv6", **_host_and_port(text, _IPV6.fullmatch(rest), "ipv6:[HOST]:PORT"))
    if _HOST_AND_PORT.fullmatch(text):
        raise ValueError(
            f"{text!r} may be a host and a port, or a path: say ipv4:HOST:PORT, ipv6:[HOST]:PORT or local:PATH"
        )
    return Address("local", path=text)


class _HostAndPort(TypedDict):
    host_address: str
    port: int


def _host_and_port(text: str, match: re.Match[str] | None, form: str) -> _HostAndPort:
    if match is None:
        raise ValueError(f"{text!r} is not an address of the form {form}")
    host, port = match.groups()
    if not (port.isascii() and port.isdigit() and len(port) <= 5):
        raise ValueError(f"the port of {text!r} is not a number in 0 to 65535")
    return {"host_address": host, "port": int(port)}


def _from_pair(pair: tuple[str, int]) -> Address:
    if len(pair) != 2:
        raise ValueError(f"an address of TCP is (host, port), not a tuple of {len(pair)}")
    host, port = pair
    kind: Literal["ipv4", "ipv6"] = "ipv6" if isinstance(host, str) and ":" in host else "ipv4"
    return Address(kind, host_address=host, port=port)
