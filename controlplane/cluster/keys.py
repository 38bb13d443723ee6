"""Keys of nodes: what makes sense, whose it is, and who cannot encrypt. Pure.

Every node has one (X25519): WireGuard encrypts with it, where the node has it, and two nodes prove who they are
by the secret that both can compute.
"""

from __future__ import annotations

from typing import NamedTuple

from controlplane.cluster.input_checks import whole
from controlplane.cluster.state import ClusterState
from events.errors import BadRequest, Refused
from events.protocol.commands import JoinNode
from events.protocol.encryption import WIREGUARD_PORT_MAX, NodeKey, key_problem
from events.types import Event, NodeKeyChanged


class GivenKey(NamedTuple):
    """What a node says of its key: the public one, WireGuard's port, and the one that it keeps beside it."""

    key: str
    port: int
    beside: str = ""


def key_of(command: JoinNode) -> GivenKey | None:
    """The key that a node comes with; None: it says none. Raises BadRequest(bad_request)."""
    if not command.node_key:
        return None
    return checked(command.node_key, command.wireguard_port or 0, command.node_key_beside or "")


def checked(key: str, port: int, beside: str = "") -> GivenKey:
    """A key, a port and a key beside it that make sense. Raises BadRequest(bad_request)."""
    for name, one in (("node_key", key), ("node_key_beside", beside)):
        problem = key_problem(one) if one or name == "node_key" else ""
        if problem:
            raise BadRequest("bad_request", f"{one[:64]!r} {problem}", field=name)
    return GivenKey(key, whole(port, "wireguard_port", 0, WIREGUARD_PORT_MAX), beside)


def key_events(state: ClusterState, node: str, uid: str, given: GivenKey | None) -> list[Event]:
    """What records the node's key; nothing when it is known. Raises Refused(node_key_in_use).

    A key beside it counts only if the log has it as this node's: then the two have different slots.
    """
    if given is None:
        return []
    member = state.nodes.get(node)
    known = state.keys.get(node) if member is not None and member.uid == uid else None
    beside, slot = "", 0
    if known is not None:
        same = given.key == known.key
        slot = known.slot if same else 1 - known.slot
        if given.port and given.beside == (known.beside if same else known.key):
            beside = given.beside
        if same and (known.port, known.beside) == (given.port, beside):
            return []
    other = state.by_key.get(given.key, node)
    if other != node:
        raise Refused(
            "node_key_in_use",
            f"node {node!r} has the key of the live node {other!r}: a key belongs to one machine. On the copy "
            f"stop the agent, then: isthmus agent new-identity --yes",
            node=node,
            other=other,
        )
    return [NodeKeyChanged(node=node, uid=uid, key=given.key, port=given.port, beside=beside, slot=slot)]


def can_encrypt(known: NodeKey | None) -> bool:
    """Whether a member that is known so can be reached encrypted."""
    return known is not None and known.port > 0


def unable(state: ClusterState, node: str, given: GivenKey | None) -> Refused | None:
    """Why a node that comes with this cannot become a member: the cluster encrypts, or is about to."""
    if not state.encryption:  # nothing was ever said of it
        return None
    here = state.encrypts
    if here.off or (given is not None and given.port):
        return None
    return Refused(
        "wireguard_missing",
        f"node {node!r} has no WireGuard, and the cluster encrypts ({here.scope}): it could send and take "
        f"nothing. Upgrade its agent, and let `isthmus doctor` say what is missing",
        node=node,
        scope=here.scope,
    )
