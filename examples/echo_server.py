"""An echo server: one thread, one poller, any number of clients; it serves nc and socat as well as echo_client.py.

python examples/echo_server.py [--local PATH | --host H --port P]        Ctrl-C ends it.
"""

import argparse
import sys

import bbipc
from bbipc import SocketEvent

CALLER, ROOM = SocketEvent.CONNECTION_AVAILABLE, SocketEvent.ROOM_TO_WRITE
DATA_OR_END = SocketEvent.DATA_AVAILABLE | SocketEvent.REMOTE_DISCONNECTED


def serve(poller: bbipc.Poller, server: bbipc.LocalServer | bbipc.IPv4TCPServer) -> None:
    poller.monitor_socket(server, CALLER)
    while True:
        happened = poller.wait_for_events(None if poller.monitored_events(server) else 0.1)
        poller.set_monitored_events(server, CALLER)
        for socket, _ in happened:
            try:
                if isinstance(socket, bbipc.StreamSocket):
                    echo(poller, socket)
                else:
                    poller.monitor_socket(server.accept_connection(), DATA_OR_END)
            except bbipc.RemoteDisconnectedError:
                socket.close()  # it leaves the poller by itself
            except bbipc.SocketError:  # out of descriptors, or the caller has gone: nobody is let in for a moment
                poller.set_monitored_events(server, SocketEvent(0))


def echo(poller: bbipc.Poller, client: bbipc.StreamSocket) -> None:
    data = client.read(peek=True)
    if not data:
        return client.close() if data == b"" else None
    sent = client.write(data)
    if sent:
        client.read(sent)  # the rest stays in the kernel: who does not read the echo is not read from
    wanted = DATA_OR_END if sent == len(data) else ROOM
    if wanted is not poller.monitored_events(client):
        poller.set_monitored_events(client, wanted)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
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
