"""A server whose handlers run on a cluster of Dask workers: processes here, or on as many machines as there are.

python examples/cluster_server.py ADDRESS [--scheduler SCHEDULER | --processes N] [--failures N]   Ctrl-C ends it
bbipc send ADDRESS "some text"                                                                     asks it

ADDRESS: a path, abstract:NAME, ipv4:HOST:PORT or ipv6:[HOST]:PORT; SCHEDULER: as Dask writes it, tcp://HOST:PORT.

It needs the extra "cluster".  Without --scheduler it makes a cluster of its own, of N processes on this machine.  A
worker that dies is replaced, and what it was to do is done again by another, N times; then the request fails with
KilledWorker.  So a handler here may run more than once for one request.
"""

import argparse
import contextlib
import hashlib
import logging
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Executor

try:
    import dask.config  # pyright: ignore[reportMissingImports] # an extra: it may not be there
    from distributed import Client, LocalCluster  # pyright: ignore[reportMissingImports]
except ImportError as error:
    raise SystemExit(f"this example needs the extra: pip install 'bbipc[cluster]' ({error})") from error

from bbipc import IPV4_LOOPBACK, Address, parse_address
from pool import MessageServer, Request


def answer(request: Request) -> str:
    """On a worker of the cluster, which must be able to import this, too; or it is sent there, as it is here."""
    data, begun = request.payload, time.time_ns()
    for _ in range(1000):
        data = hashlib.sha256(data).digest()
    return f"{data.hex()} by process {os.getpid()}, begun at {begun}"


@contextlib.contextmanager
def cluster(scheduler: str | None, processes: int) -> Iterator[Executor]:
    """The executor of a cluster, and a cluster, if none is named."""
    with contextlib.ExitStack() as stack:
        if scheduler is None:
            own = LocalCluster(
                n_workers=processes,
                threads_per_worker=1,
                host=IPV4_LOOPBACK,
                dashboard_address=None,  # pyright: ignore[reportArgumentType] # none, as its documentation says
            )
            stack.enter_context(own)
            scheduler = own.scheduler_address
        client = stack.enter_context(Client(scheduler))
        # pure=False, or two equal requests may be one call, whose answer both get.
        yield stack.enter_context(client.get_executor(pure=False))


def serve(address: Address, scheduler: str | None, processes: int) -> None:
    listening = address.listen(replace_stale=True)
    with (
        listening,
        cluster(scheduler, processes) as executor,
        MessageServer(listening, answer, workers=executor) as server,
    ):
        print(f"cluster server: listening on {Address.of(listening)}; Ctrl-C ends it", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", metavar="ADDRESS")
    parser.add_argument("--scheduler", metavar="SCHEDULER")
    parser.add_argument("--processes", type=int, default=2, metavar="N")
    parser.add_argument("--failures", type=int, default=3, metavar="N")
    args = parser.parse_args()
    for noisy in ("distributed.scheduler", "distributed.client", "distributed.nanny"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)  # they name every call that a lost worker had
    try:
        with dask.config.set({"distributed.scheduler.allowed-failures": args.failures}):
            serve(parse_address(args.address), args.scheduler, args.processes)
    except KeyboardInterrupt:  # before the server waited for it
        pass
    except (OSError, ValueError) as error:
        sys.exit(f"cluster server: {error}")
    print("cluster server: bye")
