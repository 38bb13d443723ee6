"""The laboratory: a whole two-site deployment in network namespaces on one machine.

Everything the lab makes lives inside namespaces of its own, so the kernel removes it when the lab ends,
however it ends, and nothing outside can be touched by mistake.
"""
