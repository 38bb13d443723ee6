"""The facts: event types, their envelope, their subjects, and the log that keeps them.

This package is the bottom of the house: it imports nothing of ours, and every other package
speaks through it. Where to look:

===================  =====================================================================
``types``            every event that can be written (frozen structs, named in the past tense)
``commands``         every request that can be made of a controller, and its answer
``status``           what an agent reports about its node
``codec``            a stored message ⇄ an event; unknown and newer types are a reader's decision
``envelope``         the headers of an event: identity, cause, actor, trace, hash chain
``chain``            the hash chain: how one event vouches for all before it
``subjects``         names ⇄ NATS subjects
``ids``              command id → event ids, time-ordered ids
``log``              the port: append with an expected head, read from a position
``memory``           the log in memory (simulation, dry runs, tests)
``jetstream``        the log in a NATS JetStream stream (production)
``live``             following the log without a consumer on the server (agents)
``snapshots``        the membership at a sequence, so that an agent need not read the whole log
``status_stream``    sending and reading status
``server``           a nats-server process of our own; ``server_cluster``: three of them
``errors``, ``codes``  the error tree and its stable codes
===================  =====================================================================
"""
