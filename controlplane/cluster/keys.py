"""Keys of nodes: what makes sense, whose it is, and who cannot encrypt. Pure.

Every node has one (X25519): WireGuard encrypts with it, where the node has it, and two nodes prove who they are
by the secret that both can compute.
"""

from __future__ import annotations

from controlplane.cluster.input_checks import whole
from controlplane.cluster.state import ClusterState
from events.errors import BadRequest, Refused
from events.protocol.commands import JoinNode
from events.protocol.encryption import WIREGUARD_PORT_MAX, NodeKey, key_problem
from events.types import Event, NodeKeyChanged


def key_of(command: JoinNode) -> tuple[str, int] | None:
    """The key and WireGuard port that a node comes with; None: it says none. Raises BadRequest(bad_request)."""
    if not command.node_key:
        return None
    return checked(command.node_key, command.wireguard_port or 0)


def checked(key: str, port: int) -> tuple[str, int]:
    """A key and port that make sense. Raises BadRequest(bad_request)."""
    problem = key_problem(key)
    if problem:
        raise BadRequest("bad_request", f"{key[:64]!r} {problem}", field="node_key")
    return key, whole(port, "wireguard_port", 0, WIREGUARD_PORT_MAX)


def key_events(state: ClusterState, node: str, uid: str, given: tuple[str, int] | None) -> list[Event]:
    """What records the node's key; nothing when it is known. Raises Refused(node_key_in_use)."""
    if given is None:
        return []
    key, port = given
    known = state.keys.get(node)
    member = state.nodes.get(node)
    if known is not None and (known.key, known.port) == given and member is not None and member.uid == uid:
        return []
    other = state.by_key.get(key, node)
    if other != node:
        raise Refused(
            "node_key_in_use",
            f"node {node!r} has the key of the live node {other!r}: a key belongs to one machine. On the copy "
            f"stop the agent, then: isthmus agent new-identity --yes",
            node=node,
            other=other,
        )
    return [NodeKeyChanged(node=node, uid=uid, key=key, port=port)]


def can_encrypt(known: NodeKey | None) -> bool:
    """Whether a member that is known so can be reached encrypted."""
    return known is not None and known.port > 0


def unable(state: ClusterState, node: str, given: tuple[str, int] | None) -> Refused | None:
    """Why a node that comes with this cannot become a member: the cluster encrypts, or is about to."""
    here = state.encrypts
    if here.off or (given is not None and given[1]):
        return None
    return Refused(
        "wireguard_missing",
        f"node {node!r} has no WireGuard, and the cluster encrypts ({here.scope}): it could send and take "
        f"nothing. Upgrade its agent, and let `isthmus doctor` say what is missing",
        node=node,
        scope=here.scope,
    )
