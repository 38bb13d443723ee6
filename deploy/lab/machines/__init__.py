"""Namespaces that act as machines, and the programs on them.

``machine``, ``sandbox``, ``shell``   the namespaces, and running programs inside them
``daemons``, ``buses``, ``secure``    processes with a log each, NATS servers, credentials
``forward``, ``certificate``          small helpers: the console's port, the API stand-in's certificate
"""
