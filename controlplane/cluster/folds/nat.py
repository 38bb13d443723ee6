"""Members behind NAT: what their events do to the state, and where an address is kept.

The address of a member behind NAT means something on its own link alone, so several may have it.
"""

from __future__ import annotations

from controlplane.cluster.folds.contradiction import Contradiction
from controlplane.cluster.state import BehindNat, ClusterState, Node
from events.types import NodeNatChanged


def changed(state: ClusterState, sequence: int, event: NodeNatChanged) -> None:
    """The member is behind NAT, or is not any more. Raises Contradiction."""
    member = state.nodes.get(event.node)
    if member is None or member.uid != event.uid:
        raise Contradiction(f"{event.node} (uid {event.uid}) is no member")
    if event.behind == (event.node in state.behind_nat):
        raise Contradiction(f"{event.node} is{'' if event.behind else ' not'} behind NAT before it")
    if not event.behind and member.announced in state.by_address:
        raise Contradiction(f"{state.by_address[member.announced]} announces {member.announced}, too")
    forget(state, member)
    if event.behind:
        state.behind_nat[event.node] = BehindNat.of(event, sequence)
    else:
        del state.behind_nat[event.node]
    keep(state, member)


def keep(state: ClusterState, member: Node) -> None:
    """The member is at the address that it announces."""
    if member.name in state.behind_nat:
        others = state.by_private.get(member.announced, ())
        state.by_private[member.announced] = tuple(sorted((*others, member.name)))
    else:
        state.by_address[member.announced] = member.name


def held(state: ClusterState, member: Node) -> bool:
    """Whether the member is kept at its address."""
    if member.name in state.behind_nat:
        return member.name in state.by_private.get(member.announced, ())
    return state.by_address.get(member.announced) == member.name


def forget(state: ClusterState, member: Node) -> None:
    """The member is not at its address any more. Raises Contradiction: it was not."""
    if not held(state, member):
        raise Contradiction(f"{member.name} is not at {member.announced}")
    if member.name not in state.behind_nat:
        del state.by_address[member.announced]
        return
    rest = tuple(name for name in state.by_private[member.announced] if name != member.name)
    if rest:
        state.by_private[member.announced] = rest
    else:
        del state.by_private[member.announced]
