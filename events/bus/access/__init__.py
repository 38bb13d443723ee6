"""Who may use the bus: credential files, the keys in them, and how a machine comes by its own."""
