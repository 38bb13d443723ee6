"""The replay tool: every question about the past, answered from the log, live or from an archive.

``history`` is one log with its index, ``queries/`` holds one module a question, ``verification/`` proves a log,
``archive/`` keeps one in a file, ``cli/`` has one file a verb. It reads; only ``import`` writes, into an empty
stream.
"""
