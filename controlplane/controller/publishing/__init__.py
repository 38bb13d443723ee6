"""What a leading controller publishes beside its events: snapshots for agents, signed checkpoints."""
