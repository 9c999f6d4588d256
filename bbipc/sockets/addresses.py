"""Numeric addresses and ports: what is one, and what a host name resolves to.

Law of this file: no sockets.  Addresses are text as in RFC 791 (dotted quads) and RFC 4291; nothing that needs a
look-up or a guess is taken for one (``127.1`` and ``0x7f.1`` are addresses to inet_aton, and typing errors to
everybody else). Only ``resolve_*`` blocks.
"""

from __future__ import annotations

import operator
import socket
from typing import Final

IPV4_LOOPBACK: Final = "127.0.0.1"
IPV4_ANY: Final = "0.0.0.0"
IPV6_LOOPBACK: Final = "::1"
IPV6_ANY: Final = "::"

_KINDS: Final = {socket.AF_INET: ("IPv4", "resolve_ipv4_address"), socket.AF_INET6: ("IPv6", "resolve_ipv6_address")}
_NO_SUCH_NAME: Final = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}


def numeric_address(family: socket.AddressFamily, text: str, name: str = "host_address") -> str:
    """*text* in the one spelling of RFC 5952 (``0:0::1`` is ``::1``).

    :raises TypeError: not a str
    :raises ValueError: not a numeric address of that family
    """
    kind, resolver = _KINDS[family]
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a str, not {type(text).__name__}")
    try:
        return socket.inet_ntop(family, socket.inet_pton(family, text))
    except (OSError, ValueError):
        raise ValueError(
            f"{name} {text!r} is not a numeric {kind} address; {resolver}() turns a host name into one"
        ) from None


def port_number(port: int, *, lowest: int = 0, name: str = "port") -> int:
    """*port* as an int from *lowest* to 65535.

    :raises TypeError: not an int (a port given as text is a mistake somewhere else)
    :raises ValueError: out of range
    """
    if isinstance(port, bool):
        raise TypeError(f"{name} must be an int, not bool")
    try:
        number = operator.index(port)
    except TypeError:
        raise TypeError(f"{name} must be an int, not {type(port).__name__}") from None
    if not lowest <= number <= 65535:
        raise ValueError(f"{name} {number} is not in {lowest} to 65535")
    return number


def backlog_size(backlog: int) -> int:
    """*backlog* as a number of connections that may wait to be accepted.

    :raises TypeError: not an int
    :raises ValueError: negative, or more than a C int holds
    """
    if isinstance(backlog, bool) or not isinstance(backlog, int):
        raise TypeError(f"backlog must be an int, not {type(backlog).__name__}")
    if not 0 <= backlog < 2**31:
        raise ValueError(f"backlog {backlog} is not in 0 to {2**31 - 1}")
    return backlog


def _resolve(family: socket.AddressFamily, hostname: str) -> str | None:
    if not isinstance(hostname, str):
        raise TypeError(f"hostname must be a str, not {type(hostname).__name__}")
    try:
        found = socket.getaddrinfo(hostname, None, family, socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno in _NO_SUCH_NAME:
            return None
        raise
    return str(found[0][4][0]) if found else None


def resolve_ipv4_address(hostname: str) -> str | None:
    """**This call blocks**, for as long as the system's resolver takes: the first IPv4 address of *hostname*.

    ``None`` where the name has none.  Any thread may call it.

    :raises socket.gaierror: the resolver could not tell (no answer, no network)
    :raises UnicodeError: not a name at all: an empty or too long part (it is a ValueError)
    :raises TypeError: not a str
    """
    return _resolve(socket.AF_INET, hostname)


def resolve_ipv6_address(hostname: str) -> str | None:
    """**This call blocks**, for as long as the system's resolver takes: the first IPv6 address of *hostname*.

    ``None`` where the name has none.  Any thread may call it.

    :raises socket.gaierror: the resolver could not tell (no answer, no network)
    :raises UnicodeError: not a name at all: an empty or too long part (it is a ValueError)
    :raises TypeError: not a str
    """
    return _resolve(socket.AF_INET6, hostname)
