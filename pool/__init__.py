"""pool: threads that turn the readiness of bbipc's sockets into futures, callbacks and work for workers.

Start with ``docs/futures-and-workers.md``; ``docs/threads.md`` says what may be called from where.
"""

from pool.client import MessageClient, MessageClientStats, send_quick
from pool.future_stream import FutureStream
from pool.message_limits import MessageServerStats
from pool.message_server import MessageServer
from pool.parties import Monitor
from pool.poller_thread import PollerThread
from pool.requests import Request
from pool.server import ConnectionServer, ServerStats
from pool.stopping import StopReport
from pool.stream_file import StreamFile
from pool.worker_pool import Monitoring, PoolStats, WorkerPool

__all__ = [
    "ConnectionServer",
    "FutureStream",
    "MessageClient",
    "MessageClientStats",
    "MessageServer",
    "MessageServerStats",
    "Monitor",
    "Monitoring",
    "PollerThread",
    "PoolStats",
    "Request",
    "ServerStats",
    "StopReport",
    "StreamFile",
    "WorkerPool",
    "send_quick",
]
