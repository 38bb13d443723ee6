"""Talking to the kernel's routing tables.

Packed bytes for the three hot message types (:mod:`.messages`), a parser for their dumps
(:mod:`.dump`), the socket (:mod:`.socket`), change notifications (:mod:`.monitor`); pyroute2 does
the rare work on links and addresses (:mod:`.links`).
"""
