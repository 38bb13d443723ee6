"""Who may do what on the bus, and the keys that prove it.

``layout``      the accounts and permissions of every role; ``claims``, ``jwt``: how NATS writes them
``authority``, ``store``, ``certificates``   the operator's keys, kept in files, and the certificates of TLS
``tokens``, ``issuer``   join tokens, and who gives credentials for them; ``cli*``: `isthmus credentials`
"""
