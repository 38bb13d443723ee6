"""Traces, metrics and logs of every role, and their ways out of the process.

``role``      one :class:`~events.telemetry.role.Telemetry` per role, passed in, never global
``spans``, ``sampling``   the built-in store's outbox; how much is recorded under load
``logs``, ``http``     log lines with trace ids; ``/metrics`` and health
"""
