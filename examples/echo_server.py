"""An echo server: one thread, one poller, any number of clients; it serves nc and socat as well as echo_client.py.

python examples/echo_server.py [--local PATH | --host H --port P]        Ctrl-C ends it.
"""

import argparse
import sys

import bbipc
from bbipc import SocketEvent

DATA, ROOM, CALLER = SocketEvent.DATA_AVAILABLE, SocketEvent.READY_TO_WRITE, SocketEvent.CONNECTION_AVAILABLE
BUFFER = bytearray(65536)


def serve(poller: bbipc.Poller, server: bbipc.LocalServer | bbipc.IPv4TCPServer) -> None:
    unsent: dict[bbipc.Socket, bytes] = {}  # what a client has not taken yet; it is not read from meanwhile
    poller.monitor_socket(server, CALLER)
    while True:
        for socket, _ in poller.wait_for_events(None):
            if not isinstance(socket, bbipc.StreamSocket):
                if server.connection_available():
                    poller.monitor_socket(server.accept_connection(), DATA)
                continue
            try:
                echo(poller, socket, unsent)
            except bbipc.RemoteDisconnectedError:
                unsent.pop(socket, None)
                socket.close()  # it leaves the poller by itself


def echo(poller: bbipc.Poller, client: bbipc.StreamSocket, unsent: dict[bbipc.Socket, bytes]) -> None:
    rest = unsent.pop(client, b"")
    if not rest:
        count = client.read_into(BUFFER)
        if not count:
            return client.close() if count == 0 else None
        rest = BUFFER[:count]
    sent = client.write(rest)
    if sent < len(rest):
        unsent[client] = bytes(rest[sent:])
    wanted = ROOM if client in unsent else DATA
    if wanted is not poller.monitored_events(client):
        poller.set_monitored_events(client, wanted)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--local", metavar="PATH")
    parser.add_argument("--host", default=bbipc.IPV4_LOOPBACK)
    parser.add_argument("--port", type=int, default=12345)
    args = parser.parse_args()
    try:
        local = bbipc.make_local_server(args.local, replace_stale=True) if args.local else None
        with local or bbipc.make_ipv4_tcp_server(args.host, args.port) as listening, bbipc.make_poller() as watching:
            print(f"echo server: {listening!r}; Ctrl-C ends it", flush=True)
            serve(watching, listening)
    except KeyboardInterrupt:
        print("echo server: bye")
    except (OSError, ValueError) as error:
        sys.exit(f"echo server: {error}")
