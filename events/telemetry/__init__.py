"""Traces, metrics and logs of every role, and their ways out of the process."""
