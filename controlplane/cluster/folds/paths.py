"""Paths between nodes: what their events do to the state."""

from __future__ import annotations

from controlplane.cluster.state import ClusterState, LostPath
from events.types import PathLost, PathRestored


def lost(state: ClusterState, sequence: int, event: PathLost) -> None:
    """Nothing passes there, or not everything."""
    state.lost_paths[event.scope, event.a, event.b] = LostPath.of(event, sequence)


def restored(state: ClusterState, sequence: int, event: PathRestored) -> None:  # noqa: ARG001
    """Packets pass there again."""
    del state.lost_paths[event.scope, event.a, event.b]
