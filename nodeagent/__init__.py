"""The node agent: one node's kernel made to match the log, and kept so.

``membership/`` follows the log, ``dataplane/`` says which rows there must be and writes the difference through
``netlink/``; ``firewall/``, ``path_mtu/`` and ``gateway/`` keep the rest. It never flushes: when the bus or the
agent is away, packets keep flowing.
"""
