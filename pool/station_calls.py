"""Station calls: user code, as a worker calls it for a station, and its errands.

Law of this file: whatever user code raises ends nothing; it is told to the log.  Nothing here takes a lock, and none
may be held by who comes here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from bbipc.events import SocketEvent
from bbipc.sockets.base import Socket
from pool import reports
from pool.stations import Station
from pool.tasks import Errand

logger = logging.getLogger(__name__)


def make_call(station: Station, socket: Socket, events: SocketEvent) -> None:
    """Call for those of *events* that are wanted still: they may have been told some time ago."""
    events = station.fits(events)
    if events:
        try:
            station.call(socket, events)
        except BaseException as error:  # noqa: BLE001 # the law of this file
            failed(station, error)


def run_errand(errand: Errand) -> int:
    """Run it; how many pieces were done, at least one."""
    try:
        return errand.run() or 1
    except BaseException as error:  # noqa: BLE001 # the law of this file
        reports.failure(logger, 1, errand, "a worker", error)
        return 1


def farewell(station: Station, how: Callable[[Station], None]) -> None:
    """End it, by *how*."""
    try:
        how(station)
    except BaseException as error:  # noqa: BLE001 # the law of this file
        reports.failure(logger, 1, station.on_close, "a worker", error)


def failed(station: Station, error: BaseException) -> None:
    """Its call has raised *error*."""
    station.failures += 1
    reports.failure(logger, station.failures, station.call, "a worker", error)
