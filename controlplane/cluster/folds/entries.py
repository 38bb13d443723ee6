"""Entries: what their events do to the state."""

from __future__ import annotations

from controlplane.cluster.folds.contradiction import Contradiction
from controlplane.cluster.state import ClusterState
from events.protocol.clb import Entry
from events.types import EntryAdded, EntryRemoved


def added(state: ClusterState, sequence: int, event: EntryAdded) -> None:
    """These sources may come in, and no others by this name. Raises Contradiction."""
    if event.address not in state.clb_addresses:
        raise Contradiction(f"{event.address} belongs to no reservation")
    state.entries[event.name] = Entry.of(event, sequence)


def removed(state: ClusterState, sequence: int, event: EntryRemoved) -> None:  # noqa: ARG001
    """They may not any more."""
    del state.entries[event.name]
