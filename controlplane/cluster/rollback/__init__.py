"""The way back to an earlier release: what it lacks of a log (``comparison``)."""
