"""A running controller: everything around the pure core that touches the bus, the clock or the disk.

``controller``      the parts put together, as tasks of one group
``requests``        bytes and headers of a request → a checked command, or a typed error
``commands/``       checked commands decided and appended, answers out
``replication/``    the state in this process, folded from the log
``leadership/``     which of several controllers answers
``agents/``         what the agents report, and what follows from it
``mesh/``           what the agents measured, collected and answered for
``publishing/``     snapshots and signed checkpoints
``observability/``  spans, metrics, traces
"""
