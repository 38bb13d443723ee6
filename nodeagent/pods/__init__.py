"""Pods on this node: the CNI configuration with the node's range (:mod:`.cni`, :mod:`.chain`), the addresses
that they have (:mod:`.addresses`, :mod:`.watch`), which pod had which (:mod:`.facts`), and our program at the
end of the CNI chain (:mod:`.plugin`).

Must never touch a running pod, its devices or its addresses.
"""
