"""Servers and streams: see ``base.py`` for their lifetime, ``stream.py`` for reading and writing."""
