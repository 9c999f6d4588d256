"""MessageServer with handlers on executors of somebody else's: threads, processes, interpreters; and when these break.

The cluster is in ``test_cluster.py``.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import resource_tracker
from pathlib import Path

import pytest

import bbipc
from bbipc import RemoteHandlerError
from pool import MessageClient, MessageServer, Request, WorkerPool
from tests.support import handlers
from tests.support.makers import PATIENCE
from tests.support.serving import until

Handler = Callable[[Request], object]
ISOLATED: type[Executor] | None = getattr(concurrent.futures, "InterpreterPoolExecutor", None)


@contextlib.contextmanager
def served(
    directory: Path, handler: Handler, executor: Executor, **limits: int
) -> Iterator[tuple[MessageClient, MessageServer]]:
    """A client of a server with *handler* on *executor*; both are ended."""
    server = MessageServer(
        bbipc.make_local_server(directory / "server"),
        handler,  # type: ignore[arg-type] # some return what they should not
        workers=executor,
        **limits,  # type: ignore[arg-type]
    )
    with server, MessageClient(directory / "server", timeout=PATIENCE) as client:
        yield client, server


def outcome(future: Future[str | bytes | None]) -> str:
    """The answer, or what the handler failed with."""
    try:
        return str(future.result(PATIENCE))
    except RemoteHandlerError as error:
        return f"failed: {error}"


def process_pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))


@pytest.fixture(scope="module")
def tracker() -> None:
    """A process of multiprocessing's that is started with the first pool and lives as long as this one."""
    resource_tracker.ensure_running()


@pytest.fixture(scope="module")
def processes(tracker: None) -> Iterator[ProcessPoolExecutor]:
    """One other process, which has been used before."""
    with process_pool(1) as executor:
        executor.submit(os.getpid).result(6 * PATIENCE)
        yield executor


# Threads.


def test_threads_of_an_executor_answer_and_stay_its_owners(short_dir: Path) -> None:
    with ThreadPoolExecutor(4, "borrowed") as executor:
        with served(short_dir, handlers.upper_and_where, executor) as (client, _):
            futures = [client.submit(f"number {number}") for number in range(100)]
            answers = [outcome(future).split() for future in futures]
        assert [answer[:2] for answer in answers] == [["NUMBER", str(number)] for number in range(100)]
        assert all(answer[3].startswith("borrowed") for answer in answers)
        assert executor.submit(int).result(PATIENCE) == 0


def test_the_executor_of_a_pool_makes_the_calls(short_dir: Path) -> None:
    with ThreadPoolExecutor(2, "borrowed") as executor, WorkerPool(executor=executor) as workers:
        with served(short_dir, handlers.upper_and_where, workers) as (client, server):
            assert str(client.send("hello")).split()[2].startswith("borrowed")
            assert server.workers is workers


def test_no_more_requests_are_given_to_an_executor_than_may_be_in_flight(short_dir: Path) -> None:
    """Back-pressure: the rest waits in the kernel, and at the client."""
    go_on, lock, waiting = threading.Event(), threading.Lock(), [0, 0]

    def patient(request: Request) -> bytes:
        with lock:
            waiting[0] += 1
            waiting[1] = max(waiting)
        assert go_on.wait(PATIENCE)
        with lock:
            waiting[0] -= 1
        return b""

    with ThreadPoolExecutor(50) as executor:
        with served(short_dir, patient, executor, max_in_flight=5) as (client, _):
            futures = [client.submit(b"") for _ in range(40)]
            until(lambda: waiting[0] == 5)
            go_on.set()
            assert [outcome(future) for future in futures] == ["b''"] * 40
    assert waiting == [0, 5]


def test_an_executor_that_takes_nothing_any_more_is_named(short_dir: Path) -> None:
    executor = ThreadPoolExecutor(1)
    with served(short_dir, handlers.process_id, executor) as (client, _):
        assert client.send("") == str(os.getpid())
        executor.shutdown()
        assert "failed: RuntimeError: cannot schedule new futures" in outcome(client.submit(""))
        assert "failed: RuntimeError: cannot schedule new futures" in outcome(client.submit(""))


def test_calls_that_the_executor_cancels_fail_by_name(short_dir: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def blocking(request: Request) -> bytes:
        begun.set()
        assert go_on.wait(PATIENCE)
        return b"done"

    executor = ThreadPoolExecutor(1)
    with served(short_dir, blocking, executor) as (client, server):
        futures = [client.submit(b"") for _ in range(10)]
        assert begun.wait(PATIENCE)
        until(lambda: server.stats().in_flight == 10)
        executor.shutdown(wait=False, cancel_futures=True)
        assert all(outcome(future).startswith("failed: CancelledError") for future in futures[1:])
        go_on.set()
        assert outcome(futures[0]) == "b'done'"


# Processes.


def test_a_handler_in_another_process_has_the_facts_of_the_request(
    processes: ProcessPoolExecutor, short_dir: Path
) -> None:
    with served(short_dir, handlers.facts, processes) as (client, _):
        kind, payload, value, _, peer = eval(str(client.send("hello")), {"PeerCredentials": bbipc.PeerCredentials})
    assert (kind, payload, value) == ("STRING", b"hello\0", "hello")
    assert peer == bbipc.PeerCredentials(os.getpid(), os.getuid(), os.getgid())


def test_many_requests_are_answered_by_another_process(processes: ProcessPoolExecutor, short_dir: Path) -> None:
    with served(short_dir, handlers.upper_and_where, processes) as (client, _):
        answers = [outcome(future) for future in [client.submit(f"n{number}") for number in range(200)]]
    assert [answer.split()[0] for answer in answers] == [f"N{number}" for number in range(200)]
    assert {int(answer.split()[1]) for answer in answers}.isdisjoint({os.getpid()})


def test_large_payloads_travel_both_ways(processes: ProcessPoolExecutor, short_dir: Path) -> None:
    payload = bytes(range(256)) * 8192
    with served(short_dir, handlers.echo, processes) as (client, _):
        assert client.send(payload) == payload


@pytest.mark.parametrize(
    ("handler", "text"),
    [
        (handlers.failing, "LookupError: there is no 'x'"),
        (handlers.responding, "ResponseDisabledError: "),
        (handlers.not_to_be_pickled, "TypeError: cannot pickle"),
        (lambda request: b"", "PicklingError: "),
    ],
)
def test_what_does_not_work_in_another_process_fails_by_name(
    handler: Handler, text: str, processes: ProcessPoolExecutor, short_dir: Path
) -> None:
    with served(short_dir, handler, processes) as (client, _):
        for _ in range(2):
            said = outcome(client.submit("x"))
            assert said.startswith("failed: ")
            assert text.removesuffix(": ") in said, said


def test_the_hook_is_told_the_error_of_another_process(processes: ProcessPoolExecutor, short_dir: Path) -> None:
    told: list[BaseException] = []
    listening = bbipc.make_local_server(short_dir / "server")
    with MessageServer(listening, handlers.failing, workers=processes, on_error=lambda error, peer: told.append(error)):
        with MessageClient(short_dir / "server", timeout=PATIENCE) as client:
            assert outcome(client.submit("x")).startswith("failed: LookupError")
    assert [type(error) for error in told] == [LookupError]


def test_every_request_is_answered_or_fails_by_name_when_a_process_dies(tracker: None, short_dir: Path) -> None:
    with process_pool(2) as executor, served(short_dir, handlers.dying, executor) as (client, server):
        assert int(str(client.send("0"))) != os.getpid()
        futures = [client.submit("die" if number == 20 else "0.001") for number in range(60)]
        outcomes = [outcome(future) for future in futures]
        failures = [said for said in outcomes if not said.isdecimal()]
        assert failures
        assert all(said.startswith("failed: BrokenProcessPool: ") for said in failures), failures
        assert outcomes[20] in failures
        # And so it goes on, by name: the pool is lost, the server is not.
        assert outcome(client.submit("0")).startswith("failed: BrokenProcessPool: ")
        until(lambda: server.stats().in_flight == 0)


# Interpreters.


@pytest.mark.skipif(ISOLATED is None, reason="from Python 3.14 on")
def test_handlers_in_interpreters_of_their_own(short_dir: Path) -> None:
    assert ISOLATED is not None
    with ISOLATED(2) as executor, served(short_dir, handlers.upper_and_where, executor) as (client, _):  # type: ignore[call-arg]
        answers = [outcome(future) for future in [client.submit(f"n{number}") for number in range(20)]]
        assert [answer.split()[:2] for answer in answers] == [[f"N{number}", str(os.getpid())] for number in range(20)]


# The end.


def test_a_server_that_stops_waits_for_the_calls_of_an_executor(short_dir: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(request: Request) -> bytes:
        begun.set()
        assert go_on.wait(PATIENCE)
        return b"done"

    with ThreadPoolExecutor(1) as executor:
        server = MessageServer(bbipc.make_local_server(short_dir / "server"), slow, workers=executor)
        server.start()
        with MessageClient(short_dir / "server", timeout=PATIENCE) as client:
            future = client.submit(b"")
            assert begun.wait(PATIENCE)
            stopping = threading.Thread(target=server.stop, args=(PATIENCE,))
            stopping.start()
            until(lambda: server.stopping)
            go_on.set()
            assert future.result(PATIENCE) == b"done"
            stopping.join(PATIENCE)
        assert server.stop().abandoned == 0


def test_a_call_that_never_returns_is_left_behind(short_dir: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def stuck(request: Request) -> None:
        begun.set()
        go_on.wait(PATIENCE)

    with ThreadPoolExecutor(1) as executor:
        server = MessageServer(bbipc.make_local_server(short_dir / "server"), stuck, workers=executor)
        server.start()
        with MessageClient(short_dir / "server", timeout=PATIENCE) as client:
            future = client.submit(b"")
            assert begun.wait(PATIENCE)
            start = time.monotonic()
            server.stop(0.1)
            assert time.monotonic() - start < PATIENCE / 2
            with pytest.raises(bbipc.RemoteDisconnectedError):
                future.result(PATIENCE)
        go_on.set()
