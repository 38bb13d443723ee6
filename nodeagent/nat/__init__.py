"""Peers behind NAT: where they are seen, proved by both sides, and the second device that leads there.

The kernel's VXLAN passes a masquerading router if every packet has one source port and FDB rows name the port
that was seen. Both are kept to a second device, with a VNI of its own, for such peers alone.
"""
