"""Packets to peers encrypted by WireGuard: its device, this node's key, and who is reached with which.

Routes lead straight into the device, and cryptokey routing there says to whom a packet goes and whose a packet
is that comes out. What is not in step sends nothing: sealed peers have a blackhole below their route.
"""
