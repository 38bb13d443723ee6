"""The eBPF path for flows that the node's own stack has let through: programs, their maps, their owner."""
