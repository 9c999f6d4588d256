"""Handlers on a cluster: a real one, of processes on this machine, which loses a worker on the way.

Runs where the extra "cluster" is installed; ``.ci/run`` does that on one interpreter.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import re
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, as_completed
from pathlib import Path

import pytest

from bbipc import RemoteHandlerError
from pool import MessageClient
from tests.support.makers import PATIENCE
from tests.support.programs import serving_at

pytestmark = pytest.mark.skipif(importlib.util.find_spec("distributed") is None, reason='needs the extra "cluster"')

#: a cluster needs seconds for what takes a server microseconds
LONG = 9 * PATIENCE


@contextlib.contextmanager
def cluster(directory: Path, *more: str) -> Iterator[MessageClient]:
    """A client of the example, which is told by Ctrl-C to end at the end."""
    with serving_at("cluster_server.py", str(directory / "server"), *more) as server:
        with MessageClient(server.address, timeout=LONG) as client:
            yield client
        assert server.interrupt() == (0, "cluster server: bye\n", "")


def expected(payload: bytes) -> str:
    for _ in range(1000):
        payload = hashlib.sha256(payload).digest()
    return payload.hex()


def answers_and_failures(
    client: MessageClient, messages: int, stack: contextlib.ExitStack
) -> tuple[Counter[int], list[str]]:
    """How many answers came from each process, and what the other requests failed with; a worker is lost on the way."""
    payloads: dict[Future[str | bytes | None], bytes] = {}
    second = stack.enter_context(MessageClient(client.address, timeout=LONG))
    for number in range(messages // 2):
        payload = b"%d" % (number % 10)
        for each in (client, second):  # equal requests, with equal tags, are requests all the same
            payloads[each.submit(payload)] = payload
    processes: Counter[int] = Counter()
    runs, failures = set(), []
    for count, future in enumerate(as_completed(payloads, LONG)):
        try:
            found = re.fullmatch(r"(\w+) by process (\d+), begun at (\d+)", str(future.result()))
        except RemoteHandlerError as error:
            failures.append(str(error))
            continue
        assert found
        assert found[1] == expected(payloads[future])
        processes[int(found[2])] += 1
        runs.add((found[2], found[3]))
        if count == messages // 10:
            os.kill(int(found[2]), signal.SIGKILL)
    assert processes.total() + len(failures) == messages
    assert len(runs) == processes.total(), "no two requests had one run between them"
    return processes, failures


def test_a_lost_worker_is_replaced_and_every_request_answered(short_dir: Path) -> None:
    with cluster(short_dir) as client, contextlib.ExitStack() as stack:
        processes, failures = answers_and_failures(client, 1000, stack)
    assert not failures
    assert len(processes) >= 2


def test_without_another_try_what_a_lost_worker_had_fails_by_name(short_dir: Path) -> None:
    with cluster(short_dir, "--failures", "0") as client, contextlib.ExitStack() as stack:
        processes, failures = answers_and_failures(client, 200, stack)
        assert all(failure.startswith("KilledWorker: ") for failure in failures)
        assert len(failures) < 100, "only what that worker had"
        assert "by process" in str(client.send(b"1")), "and the server goes on"
    assert processes
