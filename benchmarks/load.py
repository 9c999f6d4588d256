"""The load: messages on many connections, each answered by as many bytes.

Law of this file: it must cost less a message than any server, or it would be measured in the server's place.  So it
does not poll.  One send and one receive a message, by bound methods of blocking sockets: beside a hand-written epoll
loop with 50 connections the server computes 97 % of the time, and a generator in C that polls gets no more out of it.

A server of many threads answers in any order.  A generator that waits for one connection after the other would wait
for the slowest thread each time, while all others have nothing to do (22,000 messages a second in the place of
127,000).  So the connections form eight groups: all of one group are received, the last first, then all of it are sent
to again, and meanwhile the server has the other seven.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import time
from collections.abc import Sequence
from typing import Final

from benchmarks.measure import Turn
from benchmarks.processes import Where, processor_time

_GROUPS: Final = 8


def connected(where: Where, count: int) -> list[socket.socket]:
    """*count* connections; a server that lags behind is waited for."""
    with contextlib.ExitStack() as stack:
        connections = []
        for _ in range(count):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX if isinstance(where, str) else socket.AF_INET))
            sock.connect(where)
            if sock.family == socket.AF_INET:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connections.append(sock)
        stack.pop_all()
    return connections


def load(
    connections: Sequence[socket.socket], sweeps: int, *, size: int = 64, depth: int = 1, message: bytes | None = None
) -> Turn:
    """*depth* messages of *size* bytes in flight on every connection, *sweeps* times; seconds a message.

    The messages of one connection go out in one piece.  *message*: one of them, where a server does not take any bytes.
    """
    data = bytes(size * depth) if message is None else message * depth
    buffer = bytearray(len(data))
    messages = sweeps * depth * len(connections)
    each = -(-len(connections) // _GROUPS)
    groups = [connections[start : start + each] for start in range(0, len(connections), each)]
    ends = [([sock.send for sock in group], [sock.recv_into for sock in reversed(group)]) for group in groups]
    whole = socket.MSG_WAITALL

    def turn() -> float:
        start = time.perf_counter()
        for sends, _ in ends:
            for send in sends:
                send(data)
        for _ in range(sweeps - 1):
            for sends, receives in ends:
                for receive in receives:
                    receive(buffer, 0, whole)
                for send in sends:
                    send(data)
        for _, receives in ends:
            for receive in receives:
                if receive(buffer, 0, whole) < len(buffer):
                    raise ConnectionError("the server closed a connection")
        return (time.perf_counter() - start) / messages

    return turn


def counting(turn: Turn, process: int, messages: int, spent: list[float]) -> Turn:
    """*turn*, which notes in *spent* the server's processor time a message, where the system tells it."""
    if sys.platform != "linux":
        return turn

    def counted() -> float:
        before = processor_time(process)
        taken = turn()
        time.sleep(0.001)  # the kernel adds up when the server falls asleep again
        spent.append((processor_time(process) - before) / messages)
        return taken

    return counted
