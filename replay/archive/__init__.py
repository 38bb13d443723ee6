"""One file that holds a cluster's log: compressed, self-describing, verifiable, readable without a bus.

The format is documented in ``replay/ARCHIVE.md``; :mod:`replay.archive.format` is its one definition
in code. ``reader`` implements the log's reading port, so that everything that works on the live
stream works on a file.
"""
