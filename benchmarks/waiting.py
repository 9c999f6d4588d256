"""Waiting: poll_socket beside select.poll, a poller beside select.epoll, and how fast a waiting thread wakes.

Law of this file: the one of ``primitives.py``.  Where a system has no epoll, wait_for_events has no row.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from time import perf_counter

import bbipc
from bbipc import SocketEvent
from benchmarks.measure import Effort, Row, Turn, ratio, take_turns

_CALLS = 200
_TRIPS = 20  # a turn is shorter than another program's slice of the core: most turns are undisturbed


def our_polls(stream: bbipc.StreamSocket, timeout: float) -> Turn:
    wanted = SocketEvent.DATA_AVAILABLE

    def turn() -> float:
        start = perf_counter()
        for _ in range(_CALLS):
            bbipc.poll_socket(stream, wanted, timeout)
        return (perf_counter() - start) / _CALLS

    return turn


def cached_polls(sock: socket.socket, timeout: float) -> Turn:
    poll, number, wanted, milliseconds = select.poll(), sock.fileno(), select.POLLIN, int(timeout * 1000)

    def turn() -> float:
        start = perf_counter()
        for _ in range(_CALLS):
            poll.register(number, wanted)
            poll.poll(milliseconds)
        return (perf_counter() - start) / _CALLS

    return turn


def fresh_polls(sock: socket.socket, timeout: float) -> Turn:
    number, wanted, milliseconds = sock.fileno(), select.POLLIN, int(timeout * 1000)

    def turn() -> float:
        start = perf_counter()
        for _ in range(_CALLS):
            poll = select.poll()
            poll.register(number, wanted)
            poll.poll(milliseconds)
        return (perf_counter() - start) / _CALLS

    return turn


def poll_socket(effort: Effort) -> list[Row]:
    """On a stream that has data."""
    rows = []
    stream, other = bbipc.local_stream_pair()
    sock, sock_other = socket.socketpair()
    with stream, other, sock, sock_other:
        other.write(b"x")
        sock_other.send(b"x")
        for timeout in (0.0, 1.0):
            peers = {"select.poll, made fresh": fresh_polls(sock, timeout), "cached": cached_polls(sock, timeout)}
            for name, peer in peers.items():
                turns = take_turns(our_polls(stream, timeout), peer, effort.rounds)
                rows.append(ratio("poll_socket", f"poll_socket ready, timeout={timeout:g}", name, turns))
    return rows


# Ping-pong: two threads, each waits for the other's byte.


def our_answers(stream: bbipc.StreamSocket) -> None:
    """Give every byte back, until the other end is closed."""
    buffer = bytearray(1)
    while True:
        bbipc.poll_socket(stream, SocketEvent.DATA_AVAILABLE, 60.0)
        if not stream.read_into(buffer):
            return
        stream.write(buffer)


def our_trips(stream: bbipc.StreamSocket) -> Turn:
    buffer = bytearray(1)

    def turn() -> float:
        start = perf_counter()
        for _ in range(_TRIPS):
            stream.write(buffer)
            bbipc.poll_socket(stream, SocketEvent.DATA_AVAILABLE, 60.0)
            stream.read_into(buffer)
        return (perf_counter() - start) / _TRIPS

    return turn


def peer_answers(sock: socket.socket) -> None:
    buffer = bytearray(1)
    while True:
        poll = select.poll()
        poll.register(sock.fileno(), select.POLLIN)
        poll.poll(60000)
        if not sock.recv_into(buffer):
            return
        sock.send(buffer)


def peer_trips(sock: socket.socket) -> Turn:
    buffer = bytearray(1)

    def turn() -> float:
        start = perf_counter()
        for _ in range(_TRIPS):
            sock.send(buffer)
            poll = select.poll()
            poll.register(sock.fileno(), select.POLLIN)
            poll.poll(60000)
            sock.recv_into(buffer)
        return (perf_counter() - start) / _TRIPS

    return turn


def ping_pong(effort: Effort) -> list[Row]:
    """A round trip between two threads on one core, which both really sleep."""
    stream, other = bbipc.local_stream_pair()
    sock, sock_other = socket.socketpair()
    threads = [
        threading.Thread(target=our_answers, args=(other,), daemon=True),
        threading.Thread(target=peer_answers, args=(sock_other,), daemon=True),
    ]
    with other, sock_other:
        for thread in threads:
            thread.start()
        with stream, sock:
            turns = take_turns(our_trips(stream), peer_trips(sock), effort.rounds)
        for thread in threads:
            thread.join()
    return [ratio("ping_pong", "poll_socket round trip, 2 threads", "select.poll, made fresh", turns)]


# A poller.


def our_waits(poller: bbipc.Poller, calls: int) -> Turn:
    def turn() -> float:
        start = perf_counter()
        for _ in range(calls):
            poller.wait_for_events(None)
        return (perf_counter() - start) / calls

    return turn


def epoll_waits(epoll: select.epoll, connections: dict[int, socket.socket], calls: int) -> Turn:
    def turn() -> float:
        start = perf_counter()
        for _ in range(calls):
            [(connections[number], flags) for number, flags in epoll.poll()]
        return (perf_counter() - start) / calls

    return turn


def waits_on(count: int, effort: Effort) -> Row:
    """*count* sockets, all with data."""
    with contextlib.ExitStack() as stack:
        poller = stack.enter_context(bbipc.make_poller("epoll"))
        epoll = stack.enter_context(select.epoll())
        connections: dict[int, socket.socket] = {}
        for _ in range(count):
            stream, other = map(stack.enter_context, bbipc.local_stream_pair())
            other.write(b"x")
            poller.monitor_socket(stream, SocketEvent.DATA_AVAILABLE)
            sock, sock_other = map(stack.enter_context, socket.socketpair())
            sock_other.send(b"x")
            connections[sock.fileno()] = sock
            epoll.register(sock.fileno(), select.EPOLLIN)
        calls = max(10, _CALLS // count)
        turns = take_turns(our_waits(poller, calls), epoll_waits(epoll, connections, calls), effort.rounds)
    return ratio("wait_for_events", f"wait_for_events {count} ready of {count}", "epoll.poll() and a dict", turns)


def wait_for_events(effort: Effort) -> list[Row]:
    return [waits_on(count, effort) for count in (1, 50)] if hasattr(select, "epoll") else []
