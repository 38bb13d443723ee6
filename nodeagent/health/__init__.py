"""Whether packets of this node's pods pass, and what of the host keeps them from it.

``packets``       the probes as bytes, and what an answer is an answer to (pure)
``probe_device``  a TUN device with an address of the node's range: what enters there is forwarded like a pod's
``path_judge``    what a round of probes means: confirmed, not confirmed, failing (pure)
``path_prober``   asks a few peers, sparsely, and answers theirs
``settings``      forwarding of the host and of each device, as the kernel has it
``host_watch``    keeps these settings, and watches for what draws pods away from the overlay
``diagnosis``     names the rule, the chain or the file that is in the way
"""
