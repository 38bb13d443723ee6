"""The command service: requests in, decisions appended, answers out.

===============  ============================================================================
``requests``     bytes and headers of a request → a checked command, or a typed error
``replica``      the cluster's state, folded from the log with its hash chain verified
``remembered``   which command ids have already happened (idempotency)
``committer``    the only writer: decides waiting commands on a fork and appends them together
``endpoint``     the subscriptions on the bus: commands, queries, service discovery
``ticker``       decisions that time brings: silent nodes, drained ranges, ended quarantines
``hooks``        where tracing, metrics and the console attach
===============  ============================================================================

The rules themselves are pure functions elsewhere (:mod:`controlplane.cluster.decide`); nothing in this
package decides anything about addresses.
"""
