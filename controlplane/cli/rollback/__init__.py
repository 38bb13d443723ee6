"""``isthmus cluster prepare-rollback``."""
