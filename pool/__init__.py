"""pool: threads that turn the readiness of bbipc's sockets into futures, callbacks and work for workers.

Start with ``docs/futures-and-workers.md``; ``docs/threads.md`` says what may be called from where.

Each name is imported at its first use: the command line has to get past this file before it can see to its Ctrl-C.
"""

TYPE_CHECKING = False  # checkers know it by its name, and "typing" takes its time
if TYPE_CHECKING:
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
else:  # not for checkers: to them a module with a __getattr__ would have every name
    del TYPE_CHECKING
    _ORIGINS = {
        "ConnectionServer": "server",
        "FutureStream": "future_stream",
        "MessageClient": "client",
        "MessageClientStats": "client",
        "MessageServer": "message_server",
        "MessageServerStats": "message_limits",
        "Monitor": "parties",
        "Monitoring": "worker_pool",
        "PollerThread": "poller_thread",
        "PoolStats": "worker_pool",
        "Request": "requests",
        "ServerStats": "server",
        "StopReport": "stopping",
        "StreamFile": "stream_file",
        "WorkerPool": "worker_pool",
        "send_quick": "client",
    }

    def __getattr__(name):
        """Import *name*, once."""
        if name not in _ORIGINS:
            raise AttributeError(f"module 'pool' has no attribute {name!r}")
        from importlib import import_module  # noqa: PLC0415 # so that the package has no such name

        # Packages first, and whole.  Who imports a module of one that nobody has imported yet holds that module's lock
        # while he waits for the package's, and the package's own import asks for them the other way round.
        import_module("bbipc")
        import_module("bbipc.messages")
        thing = globals()[name] = getattr(import_module(f"pool.{_ORIGINS[name]}"), name)
        return thing

    def __dir__():
        return sorted({*globals(), *__all__})


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
