"""The pure core: a cluster's state, what an event does to it, and what a command means.

No clock, no network, no disk, no randomness in here; everything is a function of its arguments.
``evolve`` is the only writer of ``state``; ``decide`` is the only place where a command becomes events.
``invariants`` judges both. Addresses, plans and pools are in ``addressing/``, the rules of each subject in
``decisions/``. Must never import anything of :mod:`controlplane` outside of this package.
"""
