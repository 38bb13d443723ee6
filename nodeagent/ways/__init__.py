"""Which way packets take to each peer: the tunnel, or a preferred route above its rows. Pure.

The tunnel's rows (neighbour, FDB, route) are complete for every peer, whatever way is taken. Any other way is
one more route to the same range that the kernel prefers; taking it away leads packets back into the tunnel.
"""
