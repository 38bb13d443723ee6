"""What the lab tells, and its directory on disk."""
