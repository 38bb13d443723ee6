"""What the agents report, and what follows from it: liveness, convergence, attestation, their history.

Reads the status stream; writes nothing to the log.
"""
