"""The questions: each module answers one, as frozen structs that are also the ``--json`` output.

They read a :class:`replay.history.History` and print nothing.
"""
