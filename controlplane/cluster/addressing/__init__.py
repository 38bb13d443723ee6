"""Addresses: networks as integers, the plan of a container CIDR, which ranges are free, what overlaps.

Pure like the rest of :mod:`controlplane.cluster`, and without any knowledge of nodes or events.
"""
