"""`isthmus lab`: a whole two-site deployment in network namespaces on one machine.

``scenario`` runs the ``checks/`` on the ``runtime``, which is made of ``machines/``, with ``traffic/`` on
them; ``members`` is its own fold of the log.
Everything the lab makes lives inside namespaces of its own, so the kernel removes it when the lab ends,
however it ends, and nothing outside can be touched by mistake.
"""
