"""Connections that are accepted here are served by other processes, which are passed their descriptors.

python examples/pass_to_process.py [--local PATH | --host H --port P] [--processes N]        Ctrl-C ends it.

What a client sends comes back behind the number of the process that serves it.  The processes take turns; when this one
ends, they see the end of their channel, and end as well.
"""

import argparse
import contextlib
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from functools import partial

import bbipc
from bbipc import SocketEvent
from pool import WorkerPool

DATA_OR_END = SocketEvent.DATA_AVAILABLE | SocketEvent.REMOTE_DISCONNECTED
PATIENCE = 10.0  # seconds for a client to take its answer, and for a process to take a client or to end


# The process that accepts.


@contextlib.contextmanager
def serving_process() -> Iterator[bbipc.LocalStream]:
    """Another process, and a channel to it; at the end both are closed."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, __file__, "--channel", str(theirs.fileno())]
    with theirs:
        # A group of its own: it ends when its channel does, and a Ctrl-C in the terminal is for us alone.
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], process_group=0)
    try:
        with adopt_local(ours.detach()) as channel:
            yield channel
    finally:
        process.wait(PATIENCE)


def adopt_local(number: int) -> bbipc.LocalStream:
    channel = bbipc.adopt_descriptor(number)
    assert isinstance(channel, bbipc.LocalStream)
    return channel


def distribute(server: bbipc.StreamServer, channels: deque[bbipc.LocalStream]) -> None:
    while channels:
        ends = [(channel, SocketEvent.REMOTE_DISCONNECTED) for channel in channels]
        called, *dead = bbipc.poll_sockets([(server, SocketEvent.CONNECTION_AVAILABLE), *ends], None)
        if any(dead):
            channels = deque(channel for channel, gone in zip(channels, dead, strict=True) if not gone)
        elif called:
            channels.rotate()
            with contextlib.suppress(bbipc.NoConnectionAvailableError, bbipc.RemoteDisconnectedError):
                pass_on(server.accept_connection(), channels[0])
    raise OSError("no process is left to serve")


def pass_on(client: bbipc.StreamSocket, channel: bbipc.LocalStream) -> None:
    with client:  # once it is passed on, this closes our end of it only: the connection is its new holder's
        while not channel.send_descriptors([client]):
            if not bbipc.poll_socket(channel, SocketEvent.ROOM_TO_WRITE, PATIENCE):
                return  # a process that does not keep up costs its client the connection, and the others a wait


# The processes that serve.


def serve(channel: bbipc.LocalStream) -> None:
    with channel, WorkerPool() as workers:
        while True:
            bbipc.poll_socket(channel, SocketEvent.DATA_AVAILABLE, None)
            data, numbers = channel.receive_descriptors(1, 1) or (None, [])
            if data == b"":
                return
            for number in numbers:
                client = bbipc.adopt_descriptor(number)
                workers.monitor(client, DATA_OR_END, answer, on_close=partial(end, client))


def end(client: bbipc.Socket, _: Exception) -> None:
    client.close()


def answer(client: bbipc.Socket, _: SocketEvent) -> None:
    """On a worker; not twice at once for one client."""
    assert isinstance(client, bbipc.StreamSocket)
    try:
        data = client.read()
        rest = memoryview(b"%d: %b" % (os.getpid(), data) if data else b"")
        while rest := rest[client.write(rest) :]:  # what the kernel has not taken
            if not bbipc.poll_socket(client, SocketEvent.ROOM_TO_WRITE, PATIENCE):
                return client.close()  # who does not read is not waited for
        if data == b"":
            client.close()
    except bbipc.RemoteDisconnectedError:
        client.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--local", metavar="PATH")
    parser.add_argument("--host", default=bbipc.IPV4_LOOPBACK)
    parser.add_argument("--port", type=int, default=12345)
    parser.add_argument("--processes", type=int, default=2, metavar="N")
    parser.add_argument("--channel", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.channel is not None:
        serve(adopt_local(args.channel))
        sys.exit()
    try:
        local = bbipc.make_local_server(args.local, replace_stale=True) if args.local else None
        with local or bbipc.make_ipv4_tcp_server(args.host, args.port) as listening, contextlib.ExitStack() as stack:
            channels = deque(stack.enter_context(serving_process()) for _ in range(args.processes))
            print(f"pass to process: {listening!r}; Ctrl-C ends it", flush=True)
            distribute(listening, channels)
    except KeyboardInterrupt:
        print("pass to process: bye")
    except (OSError, ValueError) as error:
        sys.exit(f"pass to process: {error}")
