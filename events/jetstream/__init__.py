"""The log on NATS JetStream: implements :mod:`events.log`, and what else is kept on the bus.

``log``   the port's implementation, made of ``stream`` (settings), ``append``, ``read`` and ``direct``
``live``  following without a consumer on the server; ``freshness``: is this the log's last word
``snapshots``, ``status_stream``   the membership at a sequence; each agent's last report
``api``   JetStream's own requests, raw, because nats-py has no typed form for half of them
"""
