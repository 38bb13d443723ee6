"""Addresses: networks as integers, the plan of a container CIDR, which ranges and networks are free.

Pure like the rest of :mod:`controlplane.cluster`, and without any knowledge of nodes and events,
or of the state that is built on it.
"""
