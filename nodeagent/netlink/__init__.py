"""Talking to the kernel's routing tables; knows rows and devices, and nothing of clusters.

Packed bytes for the three hot message types (:mod:`.messages`, :mod:`.rows`), a parser for their dumps
(:mod:`.dump`), the socket (:mod:`.socket`), notices (:mod:`.monitor`); pyroute2 for links (:mod:`.links`).
Must never touch what does not carry our device or protocol number.
"""
