"""The questions: each module answers one, as frozen structs that are also the ``--json`` output.

They read a :class:`replay.history.History` and fold states by :class:`replay.queries.states.States`. They
print nothing, open nothing and never ask what time it is: moments come in as points of the log.
Cancelled, a question leaves nothing behind.
"""
