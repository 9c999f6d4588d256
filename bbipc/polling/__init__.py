"""Waiting for sockets: ``wait.py`` for once, ``poller.py`` and its backends for many sockets and for good."""
