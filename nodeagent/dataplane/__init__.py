"""The kernel side of a node: the device, the rows, and what keeps them right.

``desired`` says which rows there must be, ``reconcile`` writes the difference and reads it back, ``reconciler``
owns both with the ``tunnel_device``; ``kernel_watcher`` and ``resync_triggers`` say when to compare again.
Must never flush: losing bus, controller or agent changes nothing in the kernel.
"""
