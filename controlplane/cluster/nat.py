"""Who may announce which address where members are behind NAT. Pure.

An address of a node behind NAT means something on its own link alone: of two members with the same one each is
behind a NAT of its own, and that they are at different places is said by their sites. Everybody else's address
is one for all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from controlplane.cluster.state import ClusterState
from events.types import NodeNatChanged


def holder(state: ClusterState, address: str, site: str, node: str) -> str:
    """The member that keeps ``node`` of that site from announcing the address; the node itself: none does."""
    other = state.by_address.get(address, node)
    return other if other != node else at_site(state, address, site, node)


def at_site(state: ClusterState, address: str, site: str, node: str) -> str:
    """The member behind NAT with that address at that site; the node itself when there is no other."""
    for name in state.by_private.get(address, ()) if state.by_private else ():
        if name != node and state.nodes[name].site == site:
            return name
    return node


def changed(state: ClusterState, event: NodeNatChanged) -> tuple[int, str] | None:
    """What of the invariants the event would break: number and words."""
    member = state.nodes.get(event.node)
    if member is None or member.uid != event.uid:
        return 3, f"{event.node!r} (uid {event.uid!r}) is behind NAT or not, but it is no member"
    if event.behind:
        other = at_site(state, member.announced, member.site, event.node)
    else:
        other = holder(state, member.announced, member.site, event.node)
    if other != event.node:
        return 3, f"{event.node!r} and {other!r} both announce {member.announced}"
    return None


def whole(state: ClusterState) -> Iterator[tuple[int, str]]:
    """Violations among all members behind NAT: number and words. O(these)."""
    members = [node for node in map(state.nodes.get, state.behind_nat) if node is not None]
    for name in state.behind_nat:
        if name not in state.nodes:
            yield 3, f"{name!r} is behind NAT, and no member"
    for (address, site), count in Counter((node.announced, node.site) for node in members).items():
        if count > 1:
            yield 3, f"{count} live nodes behind NAT announce {address} at site {site!r}"
