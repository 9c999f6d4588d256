"""What only the select backend has: a limit of the numbers."""

from __future__ import annotations

import errno
import os

import pytest

import bbipc
from bbipc import SocketEvent

DATA = SocketEvent.DATA_AVAILABLE


def test_a_number_that_select_cannot_watch_is_named() -> None:
    poller, unlimited = bbipc.make_poller("select"), bbipc.make_poller("poll")
    held = [os.dup(0) for _ in range(1024 - 8)]
    try:
        with pytest.raises(bbipc.SocketError, match="its own descriptor") as refused:
            bbipc.make_poller("select")
        assert refused.value.errno == errno.EMFILE
        pairs = [bbipc.local_stream_pair() for _ in range(8)]
        streams = [stream for pair in pairs for stream in pair]
        high = [stream for stream in streams if stream.fileno() >= 1024]
        assert high
        with poller, unlimited:
            with pytest.raises(bbipc.SocketError, match="1023") as caught:
                poller.monitor_socket(high[0], DATA)
            assert caught.value.errno == errno.EMFILE
            assert poller.monitored_sockets() == ()
            assert high[0]._watchers == ()
            unlimited.monitor_socket(high[0], DATA)
            assert unlimited.wait_for_events(0) == []
        for stream in streams:
            stream.close()
    finally:
        for number in held:
            os.close(number)
