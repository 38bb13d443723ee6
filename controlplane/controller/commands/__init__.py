"""The command service: requests in, decisions appended, answers out.

``endpoint``         the subscriptions on the bus: commands, queries, service discovery
``committer``        the only writer: decides waiting commands on a fork and appends them together
``planner``          one group of commands, decided on a speculative state; no I/O
``pending_replies``  who waits for which command, and what was answered before
``ticker``           decisions that time brings: silent nodes, drained ranges, ended quarantines

The rules themselves are pure functions elsewhere (:mod:`controlplane.cluster.decide`); nothing in this
package decides anything about addresses.
"""
