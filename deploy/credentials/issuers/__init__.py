"""Who hands out nodes' credentials, on line: for join tokens (``tokens``), and for pods' tokens (``pods``)."""
