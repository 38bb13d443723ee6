"""Who may do what on the bus, and the keys that prove it."""
