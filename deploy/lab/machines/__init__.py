"""Namespaces that act as machines, and the programs on them.

``machine``, ``sandbox``, ``shell``   the namespaces, and running programs inside them
``pods``, ``kernel``                  pods attached by CNI plugins; the rows that a kernel really has
``daemons``, ``buses``, ``secure``    processes with a log each, NATS servers, credentials
``forward``                           a small helper: the console's port
"""
