"""The servers compared, each a short file, written as its own documentation recommends.

Every one takes ``--bind``, ``--mode`` and ``--recv`` (see ``common``), prints ``listening on HOST:PORT`` once
it is ready, and ends on SIGTERM.
"""
