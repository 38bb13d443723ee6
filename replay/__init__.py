"""Every question about the past of a cluster, answered from its log and proven.

``history`` is one log with what every question needs (``log_index`` finds events in it, ``when`` reads times);
``queries`` answer, ``verification`` proves, ``archive`` is the file format, ``transfer`` moves a log in and out
of it, and ``cli`` prints. It reads logs, live or archived; it decides nothing and writes to no live cluster,
except for ``import``, which fills an empty stream.
"""
