"""A key-value store: a server that keeps bytes by name, and its client.

python examples/key_value_server.py ADDRESS                  the server; Ctrl-C ends it
python examples/key_value_server.py ADDRESS set KEY VALUE    the client; the VALUE - is what comes on stdin
python examples/key_value_server.py ADDRESS get KEY          prints the value; exit code 1: there is none
python examples/key_value_server.py ADDRESS delete KEY
python examples/key_value_server.py ADDRESS keys

ADDRESS: a path, abstract:NAME, ipv4:HOST:PORT or ipv6:[HOST]:PORT.

A text asks: "get KEY", "delete KEY", "keys".  Bytes set: the key, a NUL, the value.  "There is none" is the answer
without a value.  What the handler raises is the client's error.  Values live as long as the server.
"""

import argparse
import sys
import threading

import bbipc
from bbipc import Address, parse_address
from pool import MessageClient, MessageServer, Request

PATIENCE = 10.0  # seconds for an answer
ROOM = 64 * 1024 * 1024  # bytes of all keys and values together


class Store:
    """Values by key; its handler runs on any number of workers at once."""

    def __init__(self) -> None:
        self.lock = threading.Lock()  # guards the two below
        self.values: dict[str, bytes] = {}
        self.size = 0

    def handle(self, request: Request) -> str | bytes | None:
        """The answer; on a worker."""
        value = request.value
        if isinstance(value, bytes):
            key, _, content = value.partition(b"\0")
            self._set(key.decode(), content)
            return None
        question, _, name = str(value).partition(" ")
        with self.lock:
            if question == "get":
                return self.values.get(name)
            if question == "keys":
                return "\n".join(sorted(self.values))
            if question == "delete":
                self._forget(name)
                return None
        raise ValueError(f"there is no question {question!r}")

    def _set(self, key: str, content: bytes) -> None:
        with self.lock:
            self._forget(key)
            if self.size + len(key) + len(content) > ROOM:
                raise ValueError("the store is full")
            self.values[key] = content
            self.size += len(key) + len(content)

    def _forget(self, key: str) -> None:
        content = self.values.pop(key, None)
        if content is not None:
            self.size -= len(key) + len(content)


def serve(address: Address) -> None:
    listening = address.listen(replace_stale=True)
    server = MessageServer(listening, Store().handle)
    server.start()
    print(f"key-value server: listening on {Address.of(listening)}; Ctrl-C ends it", flush=True)
    server.serve_forever()
    print("key-value server: bye")


def ask(address: Address, words: list[str]) -> None:
    with MessageClient(address, timeout=PATIENCE) as client:
        if words[0] == "set":
            _, key, value = words
            content = sys.stdin.buffer.read() if value == "-" else value.encode()
            client.send(key.encode() + b"\0" + content)
            return
        answer = client.send(" ".join(words))
    if isinstance(answer, bytes):
        sys.stdout.buffer.write(answer)
    elif answer:
        print(answer)
    elif words[0] == "get":
        raise KeyError(words[1])


#: how many words follow each
QUESTIONS = {"get": 1, "set": 2, "delete": 1, "keys": 0}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", metavar="ADDRESS")
    parser.add_argument("words", nargs="*", metavar="get|set|delete|keys …")
    args = parser.parse_args()
    if args.words and QUESTIONS.get(args.words[0]) != len(args.words) - 1:
        parser.error(f"what is {' '.join(args.words)!r}?")
    try:
        where = parse_address(args.address)
        ask(where, args.words) if args.words else serve(where)
    except KeyboardInterrupt:
        pass
    except KeyError as error:
        sys.exit(f"key-value client: there is no {error}")
    except (OSError, ValueError, bbipc.RemoteHandlerError) as error:
        sys.exit(f"key-value {'client' if args.words else 'server'}: {error}")
