"""What pods on this node get from us: the CNI configuration with the node's range (:mod:`.cni`).

Must never touch a running pod, its devices or its addresses.
"""
