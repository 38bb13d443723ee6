"""Encryption: what its events do to the state."""

from __future__ import annotations

from controlplane.cluster.folds.contradiction import Contradiction
from controlplane.cluster.state import ClusterState
from events.protocol.encryption import Encryption, NodeKey
from events.types import ClusterEncryptionChanged, NodeKeyChanged


def changed(state: ClusterState, sequence: int, event: ClusterEncryptionChanged) -> None:
    """The cluster encrypts so from now on."""
    state.encryption[event.cluster] = Encryption.of(event, sequence)


def key_changed(state: ClusterState, sequence: int, event: NodeKeyChanged) -> None:
    """The member has another key. Raises Contradiction."""
    member = state.nodes.get(event.node)
    if member is None or member.uid != event.uid:
        raise Contradiction(f"{event.node} (uid {event.uid}) is no member")
    known = NodeKey.of(event, sequence)
    for key in known.valid:
        if state.by_key.get(key, event.node) != event.node:
            raise Contradiction(f"{state.by_key[key]} has that key")
    forget(state, event.node)
    state.keys[event.node] = known
    state.by_key.update(dict.fromkeys(known.valid, event.node))


def forget(state: ClusterState, node: str) -> None:
    """The node has no key any more."""
    known = state.keys.pop(node, None)
    for key in known.valid if known is not None else ():
        del state.by_key[key]
