"""Handlers that other processes import: this module is light, for each of them loads it anew."""

from __future__ import annotations

import os
import threading
import time

from pool import Request


def upper_and_where(request: Request) -> str:
    """The text in capitals, and the process and the thread that made them."""
    return f"{str(request.value).upper()} {os.getpid()} {threading.current_thread().name}"


def facts(request: Request) -> str:
    """What is known of the request there."""
    return repr((request.type.name, request.payload, request.value, request.flags, request.peer))


def echo(request: Request) -> bytes:
    return request.payload


def failing(request: Request) -> None:
    raise LookupError(f"there is no {request.value!r}")


def responding(request: Request) -> None:
    request.respond(b"from afar")


def not_to_be_pickled(request: Request) -> object:
    return threading.Lock()


def dying(request: Request) -> str:
    """The process ends in the middle of the request "die"; others take *their text* seconds."""
    if request.value == "die":
        os._exit(1)
    time.sleep(float(str(request.value)))
    return str(os.getpid())


def process_id(request: Request) -> str:
    return str(os.getpid())
