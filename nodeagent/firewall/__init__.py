"""The node's nftables table: rendered (:mod:`.ruleset`), kept in step (:mod:`.reconciler`), and watched.

All rules are in one table of our own that is replaced atomically; changes of members go into its sets.
:mod:`.monitor` hears when somebody else changes it. Must never touch a table of somebody else, but the
rules of the network that it takes over (:mod:`.predecessor`).
"""
