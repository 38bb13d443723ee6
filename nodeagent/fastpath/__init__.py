"""The eBPF path for flows that the node's own stack has let through: programs, their maps, their owner.

``programs``, ``layout``, ``libbpf``   the object and its records, loaded and attached
``reconciler``, ``entries``   kept as it should be; what it should know of each peer, by the way to it
``start``, ``predecessors``   begun, or why not; what earlier agents left
``capture``, ``ports``   flows given back to the stack for a while; the devices where pods are attached
"""
