"""The agent of one node: makes the kernel's tunnel rows, firewall and CNI file match the log.

It may import only ``events``. It works without bus and controller from what it remembers, writes only what is
ours (the device, our protocol number, our nftables tables) and never flushes: losing the bus, the controller
or itself changes nothing in the kernel. :mod:`.composition` puts it together, :mod:`.agent` runs it.
"""
