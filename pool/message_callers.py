"""Callers: whose handlers and hooks the calling thread is in.

Law of this file: it looks at the frames of the calling thread, and at nothing else.  Whoever stops a server from there
waits for us, and so his connections are not waited for.  Frames tell it at no cost to the calls themselves; a handler
may be inside of another one's hook (it settles the future of another connection, say), so there may be several.
"""

from __future__ import annotations

import inspect
from typing import Final

from pool.message_connection import MessageConnection
from pool.message_service import Service
from pool.message_serving import DirectConnection, PlacedConnection
from pool.requests import Request, call

#: where user code is called, and the name there of what knows the connection
_CALLS: Final = {
    DirectConnection.work_off.__code__: "self",
    call.__code__: "request",
    Service.call_hook.__code__: "client",
}


def settles_futures() -> bool:
    """Whether the calling thread settles the future of a reply just now: others may wait for the same thread."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code is not PlacedConnection.delivered.__code__:
        frame = frame.f_back
    return frame is not None


def callers(service: Service) -> set[MessageConnection]:
    """The connections of *service* for which the calling thread is in a handler or a hook."""
    found = set()
    frame = inspect.currentframe()
    while frame is not None:
        name = _CALLS.get(frame.f_code)
        if name is not None:
            what = frame.f_locals.get(name)
            connection = what.desk if isinstance(what, Request) else what
            if isinstance(connection, MessageConnection) and connection.service is service:
                found.add(connection)
        frame = frame.f_back
    return found
