"""Direct ways: peers on the node's own link, to which pods' packets go without the tunnel.

Only to a peer of which probes say that such packets pass both ways, and only for as long as they do. The
tunnel's rows stay beside: whenever anything is in doubt, one route goes and packets take the tunnel.
"""
