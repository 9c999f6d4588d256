"""The echo server, synchronous: a worker for each connection, which waits in poll_socket, reads and writes.

python examples/echo_synchronous.py [--local PATH | --host H --port P] [--workers N]        Ctrl-C ends it.

The plainest code of the three, with the plainest limit: an idle connection holds a worker, and while all N are held the
next caller waits to be accepted.
"""

import argparse
import contextlib
import sys

import bbipc
from bbipc import SocketEvent
from pool import WorkerPool


def serve(server: bbipc.StreamServer, workers: WorkerPool) -> None:
    clients: set[bbipc.StreamSocket] = set()
    try:
        while True:
            bbipc.poll_socket(server, SocketEvent.CONNECTION_AVAILABLE, None)
            with contextlib.suppress(bbipc.NoConnectionAvailableError):  # the caller has gone again
                client = server.accept_connection()
                clients.add(client)
                workers.submit(echo, client, clients)
    finally:
        for client in clients.copy():
            client.close()  # the worker that waits for it, in another thread, is told


def echo(client: bbipc.StreamSocket, clients: set[bbipc.StreamSocket]) -> None:
    with client, contextlib.suppress(bbipc.RemoteDisconnectedError, bbipc.SocketClosedError):
        while bbipc.poll_socket(client, SocketEvent.DATA_AVAILABLE, None):  # nothing: the end, no data can come
            data = client.read() or b""
            while data := data[client.write(data) :]:  # what the kernel has not taken
                bbipc.poll_socket(client, SocketEvent.ROOM_TO_WRITE, None)
    clients.discard(client)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--local", metavar="PATH")
    parser.add_argument("--host", default=bbipc.IPV4_LOOPBACK)
    parser.add_argument("--port", type=int, default=12345)
    parser.add_argument("--workers", type=int, default=64, metavar="N")
    args = parser.parse_args()
    try:
        local = bbipc.make_local_server(args.local, replace_stale=True) if args.local else None
        with (
            local or bbipc.make_ipv4_tcp_server(args.host, args.port) as listening,
            WorkerPool(args.workers, queue_limit=1) as workers,  # so that submit waits while all are busy
        ):
            print(f"echo server: {listening!r}; Ctrl-C ends it", flush=True)
            serve(listening, workers)
    except KeyboardInterrupt:
        print("echo server: bye")
    except (OSError, ValueError) as error:
        sys.exit(f"echo server: {error}")
