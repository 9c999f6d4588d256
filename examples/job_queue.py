"""A job queue: jobs are submitted, looked at, cancelled, and their results taken as they are done.

python examples/job_queue.py ADDRESS serve [--jobs N]          the server; Ctrl-C ends it
python examples/job_queue.py ADDRESS run NUMBER... [--patience SECONDS]

ADDRESS: a path, abstract:NAME, ipv4:HOST:PORT or ipv6:[HOST]:PORT.

A job counts the primes below its number.  The handler of "run NAME NUMBER" returns a future, and the answer is sent
when that is done: a job that waits holds no worker, and "progress NAME" and "cancel NAME" are answered meanwhile.
The client's jobs are futures, too.  Those that are not done when its patience or a Ctrl-C ends are cancelled.
"""

import argparse
import contextlib
import math
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from functools import partial

import bbipc
from bbipc import Address, parse_address
from pool import MessageClient, MessageServer, Request

EVERY = 0.25  # seconds from one look at the progress to the next
PATIENCE = 10.0  # seconds for an answer that needs no job
MOST = 500  # jobs of a server at once, those that wait included

Answer = Future[str | bytes | None]


class JobCancelledError(Exception):
    """What becomes of a job that is cancelled in the middle."""


class Job:
    """One job; any thread may look at it and stop it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.percent = 0
        self.stop = threading.Event()

    def run(self) -> str:
        """How many primes there are; on a thread of its own."""
        found = 0
        for candidate in range(2, self.number):
            if candidate % 256 == 0:
                if self.stop.is_set():
                    raise JobCancelledError(f"at {self.percent} %")
                self.percent = 100 * candidate // self.number
            found += all(candidate % divisor for divisor in range(2, math.isqrt(candidate) + 1))
        return str(found)


class Queue:
    """The server's side; its handler runs on any number of workers at once, the jobs on threads of their own."""

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        self.threads = threads
        self.lock = threading.Lock()  # guards the one below
        self.jobs: dict[str, tuple[Job, Future[str]]] = {}

    def handle(self, request: Request) -> str | Future[str] | None:
        """The answer, or what will give it; on a worker."""
        order, name, *number = str(request.value).split()
        if order == "run":
            return self._run(name, int(number[0]))
        with self.lock:
            job, future = self.jobs[name]
        if order == "progress":
            return str(job.percent)
        if order == "cancel":
            self._cancel(job, future)
            return None
        raise ValueError(f"there is no order {order!r}")

    def _run(self, name: str, number: int) -> Future[str]:
        with self.lock:
            if name in self.jobs or len(self.jobs) >= MOST:
                raise ValueError("there is such a job" if name in self.jobs else "there are too many jobs")
            job = Job(number)
            future = self.threads.submit(job.run)
            self.jobs[name] = job, future
        future.add_done_callback(partial(self._forget, name))
        return future

    def _forget(self, name: str, _: Future[str]) -> None:
        with self.lock:
            del self.jobs[name]

    @staticmethod
    def _cancel(job: Job, future: Future[str]) -> None:
        future.cancel()  # if it has not begun
        job.stop.set()  # if it has

    def cancel_all(self) -> None:
        """At the server's end."""
        with self.lock:
            jobs = list(self.jobs.values())
        for job, future in jobs:
            self._cancel(job, future)


def serve(address: Address, jobs: int) -> None:
    listening = address.listen(replace_stale=True)
    with ThreadPoolExecutor(jobs) as threads:
        queue = Queue(threads)
        with MessageServer(listening, queue.handle, max_in_flight=2 * MOST):
            print(f"job queue: listening on {Address.of(listening)}; Ctrl-C ends it", flush=True)
            try:
                while True:
                    time.sleep(1)  # in short sleeps: a Ctrl-C that comes just before one is noticed when it ends
            except KeyboardInterrupt:
                queue.cancel_all()  # the server's stop behind it still sends their answers
    print("job queue: bye")


class Jobs:
    """The client's side; any thread."""

    def __init__(self, client: MessageClient, numbers: list[int]) -> None:
        self.client = client
        self.jobs: dict[Answer, tuple[str, int]] = {}  # a name, and the number
        for number in numbers:
            name = uuid.uuid4().hex
            self.jobs[client.submit(f"run {name} {number}", timeout=None)] = name, number

    def _names(self) -> list[str]:
        """Of those that are not done."""
        return [name for answer, (name, _) in self.jobs.items() if not answer.done()]

    def _progress(self) -> str:
        looks = [self.client.submit(f"progress {name}", timeout=PATIENCE) for name in self._names()]
        return " ".join("done" if look.exception() else f"{look.result()!s} %" for look in looks)  # since we asked

    def show_progress(self, over: threading.Event) -> None:
        """Now and then, until it is *over*."""
        with contextlib.suppress(OSError):  # the server is lost, and the jobs' own answers say so
            while not over.wait(EVERY):
                print(f"under way: {self._progress()}", flush=True)

    def cancel(self) -> None:
        """Those that are not done; nobody waits for it."""
        for name in self._names():
            self.client.submit(f"cancel {name}", timeout=PATIENCE)

    def results(self, patience: float | None) -> Iterator[str]:
        """As they are done; those that are not in time are cancelled."""
        left = set(self.jobs)
        try:
            for answer in as_completed(self.jobs, timeout=patience):
                left.remove(answer)
                yield self._result(answer)
        except TimeoutError:
            self.cancel()
            yield from map(self._result, as_completed(left))

    def _result(self, answer: Answer) -> str:
        return f"{self.jobs[answer][1]}: {answer.exception() or answer.result()!s}"


def run(address: Address, numbers: list[int], patience: float | None) -> None:
    over = threading.Event()
    with MessageClient(address) as client:
        jobs = Jobs(client, numbers)
        watcher = threading.Thread(target=jobs.show_progress, args=(over,))
        watcher.start()
        try:
            for line in jobs.results(patience):
                print(line, flush=True)
        except KeyboardInterrupt:
            jobs.cancel()
            wait(jobs.jobs, timeout=PATIENCE)
            raise
        finally:
            over.set()
            watcher.join()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", metavar="ADDRESS")
    orders = parser.add_subparsers(dest="order", required=True)
    server = orders.add_parser("serve")
    server.add_argument("--jobs", type=int, default=2, metavar="N", help="at once")
    client = orders.add_parser("run")
    client.add_argument("numbers", type=int, nargs="+", metavar="NUMBER")
    client.add_argument("--patience", type=float, metavar="SECONDS")
    args = parser.parse_args()
    try:
        where = parse_address(args.address)
        if args.order == "serve":
            serve(where, args.jobs)
        else:
            run(where, args.numbers, args.patience)
    except KeyboardInterrupt:
        print("job queue: cancelled")
    except (OSError, ValueError, bbipc.RemoteHandlerError) as error:
        sys.exit(f"job queue: {error}")
