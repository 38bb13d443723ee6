"""What the agents' measurements of each other mean: the smallest explanation (pure)."""
