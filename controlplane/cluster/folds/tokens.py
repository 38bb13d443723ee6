"""Join tokens for several machines: what a use does to the state."""

from __future__ import annotations

from controlplane.cluster.folds.contradiction import Contradiction
from controlplane.cluster.state import Admission, ClusterState
from events.types import SharedTokenUsed


def shared_used(state: ClusterState, sequence: int, event: SharedTokenUsed) -> None:
    """The name is let in, and its token has one use less. Raises Contradiction."""
    last = state.last_admitted.get(event.token)
    before = 0 if last is None else state.admitted[last].use
    if event.use != before + 1 or event.use > event.uses:
        raise Contradiction(f"use {event.use} of {event.uses} follows use {before} of its token")
    if event.node in state.admitted:
        raise Contradiction(f"{event.node} was let in at event {state.admitted[event.node].since}")
    if event.node in state.nodes:
        raise Contradiction(f"{event.node} is a member already")
    state.admitted[event.node] = Admission.of(event, sequence)
    state.last_admitted[event.token] = event.node
