"""Several processes serve one TCP port, so that handlers which compute have a core each.

python examples/reuse_port_servers.py ADDRESS [--processes N]                        Ctrl-C ends it
python examples/reuse_port_servers.py --measure [SECONDS] [--processes N]            what it gains here

ADDRESS: ipv4:HOST:PORT or ipv6:[HOST]:PORT.

The kernel gives each caller to one of the processes, and there he stays.
"""

import argparse
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection

from bbipc import IPV4_LOOPBACK, Address, parse_address
from pool import MessageClient, MessageServer, Request

CLIENTS = 16  # connections of the measurement: enough that every process has some
PAYLOAD = bytes(range(256)) * 32


# A process that serves.


def answer(request: Request) -> bytes:
    """A millisecond of Python, as a parser or a codec would take: one process does it on one core only."""
    check = 0
    for octet in request.payload:
        check = (check * 31 + octet) & 0xFFFFFFFF
    return check.to_bytes(4, "little")


def serve(address: Address, boss: "Connection[Address | OSError, None]") -> None:
    """Until *boss* says so, or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C in the terminal is for the boss
    try:
        listening = address.listen(reuse_port=True)
    except OSError as error:
        return boss.send(error)
    with MessageServer(listening, answer) as server:
        boss.send(Address.of(listening))
        with contextlib.suppress(EOFError):
            boss.recv()
    tell(server)


def tell(server: MessageServer) -> None:
    print(f"process {os.getpid()}: served {server.stats().requests} requests", flush=True)


# The process that starts them.


@contextlib.contextmanager
def serving(address: Address, processes: int) -> Iterator[Address]:
    """*processes* that serve one address; where the port is 0, the first one chooses it."""
    context = multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as stack:
        for _ in range(processes):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(address, theirs))
            process.start()
            theirs.close()
            stack.callback(process.join)
            stack.callback(ours.close)
            said = ours.recv()
            if isinstance(said, OSError):
                raise said
            address = said
        yield address


def requests_per_second(address: Address, seconds: float) -> float:
    """What all clients together get answered, each on a connection of its own, one call after the other."""
    gate = threading.Barrier(CLIENTS)

    def call(_: int) -> float:
        with MessageClient(address, timeout=30) as client:
            client.send(PAYLOAD)
            gate.wait()
            count, start = 0, time.perf_counter()
            while time.perf_counter() - start < seconds:
                client.send(PAYLOAD)
                count += 1
            return count / (time.perf_counter() - start)

    with ThreadPoolExecutor(CLIENTS) as threads:
        return sum(threads.map(call, range(CLIENTS)))


def measure(processes: int, seconds: float) -> None:
    rates = []
    for count in (1, processes):
        with serving(Address("ipv4", host_address=IPV4_LOOPBACK), count) as address:
            rates.append(requests_per_second(address, seconds))
        print(f"{count} {'process' if count == 1 else 'processes'}: {rates[-1]:,.0f} requests/s", flush=True)
    print(f"gain: x{rates[1] / rates[0]:.2f}")


def serve_until_ctrl_c(address: Address, processes: int) -> None:
    """This process is one of them."""
    if address.kind == "local":
        raise ValueError("a path has one owner; a TCP port may be shared")
    with serving(address, processes - 1) as shared, shared.listen(reuse_port=True) as listening:
        with MessageServer(listening, answer) as server:
            where = Address.of(listening)
            print(f"reuse port servers: {processes} processes listening on {where}; Ctrl-C ends them", flush=True)
            server.serve_forever()
        tell(server)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", nargs="?", metavar="ADDRESS")
    parser.add_argument("--processes", type=int, default=2, metavar="N")
    parser.add_argument("--measure", type=float, nargs="?", const=3.0, metavar="SECONDS")
    args = parser.parse_args()
    if (args.address is None) is (args.measure is None):
        parser.error("either an address or --measure")
    try:
        if args.measure:
            measure(args.processes, args.measure)
        else:
            serve_until_ctrl_c(parse_address(args.address), args.processes)
    except KeyboardInterrupt:  # before the server waited for it
        pass
    except (OSError, ValueError) as error:
        sys.exit(f"reuse port servers: {error}")
    if args.address:
        print("reuse port servers: bye")
