"""An echo client: sends each TEXT and prints what comes back.

python examples/echo_client.py [--local PATH | --host H --port P] TEXT ...
"""

import argparse
import sys

import bbipc
from bbipc import SocketEvent

DATA_OR_END = SocketEvent.DATA_AVAILABLE | SocketEvent.REMOTE_DISCONNECTED
PATIENCE = 10.0  # seconds, for each step


def connect(args: argparse.Namespace) -> bbipc.StreamSocket:
    if args.local:
        stream: bbipc.StreamSocket = bbipc.connect_to_local_server(args.local)
    else:
        stream = bbipc.connect_to_ipv4_tcp_server(args.host, args.port)
    bbipc.poll_socket(stream, SocketEvent.DETERMINED, PATIENCE)
    if not stream.connection_succeeded():
        raise stream.connection_error() or TimeoutError("the server does not answer")
    return stream


def echoed(stream: bbipc.StreamSocket, text: str) -> str:
    """Sends *text* and reads as many bytes again; both may take many steps, and both directions at once."""
    data = text.encode()
    sent, answer = 0, b""
    while len(answer) < len(data):
        wanted = DATA_OR_END | SocketEvent.ROOM_TO_WRITE if sent < len(data) else DATA_OR_END
        happened = bbipc.poll_socket(stream, wanted, PATIENCE)
        if not happened:
            raise TimeoutError("the server is not working")
        if SocketEvent.REMOTE_DISCONNECTED in happened:
            raise ConnectionError("the server has closed the connection")
        if SocketEvent.ROOM_TO_WRITE in happened:
            sent += stream.write(data, sent)
        if SocketEvent.DATA_AVAILABLE in happened:
            answer += stream.read(len(data) - len(answer)) or b""
    return answer.decode()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--local", metavar="PATH")
    parser.add_argument("--host", default=bbipc.IPV4_LOOPBACK)
    parser.add_argument("--port", type=int, default=12345)
    parser.add_argument("text", nargs="+", metavar="TEXT")
    arguments = parser.parse_args()
    try:
        with connect(arguments) as connection:
            for word in arguments.text:
                print(echoed(connection, word))
    except (OSError, ValueError) as problem:
        sys.exit(f"echo client: {problem}")
