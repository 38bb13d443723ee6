"""WireGuard keys of nodes: what makes sense, whose it is, and who cannot do without. Pure."""

from __future__ import annotations

from controlplane.cluster.input_checks import whole
from controlplane.cluster.state import ClusterState
from events.errors import BadRequest, Refused
from events.protocol.commands import JoinNode
from events.protocol.encryption import WIREGUARD_PORT, key_problem
from events.types import Event, NodeKeyChanged

PORT_MAX = 65535


def key_of(command: JoinNode) -> tuple[str, int] | None:
    """The key and port that a node comes with; None when it has none. Raises BadRequest(bad_request)."""
    if not command.wireguard_key:
        return None
    return checked(command.wireguard_key, command.wireguard_port or WIREGUARD_PORT)


def checked(key: str, port: int) -> tuple[str, int]:
    """A key and port that make sense. Raises BadRequest(bad_request)."""
    problem = key_problem(key)
    if problem:
        raise BadRequest("bad_request", f"{key[:64]!r} {problem}", field="wireguard_key")
    return key, whole(port, "wireguard_port", 1, PORT_MAX)


def key_events(state: ClusterState, node: str, uid: str, given: tuple[str, int] | None) -> list[Event]:
    """What records the node's key; nothing when it is known. Raises Refused(wireguard_key_in_use)."""
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
            "wireguard_key_in_use",
            f"node {node!r} has the WireGuard key of the live node {other!r}: a key belongs to one machine. On "
            f"the copy stop the agent, then: isthmus agent new-identity --yes",
            node=node,
            other=other,
        )
    return [NodeKeyChanged(node=node, uid=uid, key=key, port=port)]


def keyless(state: ClusterState, node: str) -> Refused | None:
    """Why a node without a key cannot become a member: the cluster encrypts, or is about to."""
    here = state.encrypts
    if here.off:
        return None
    return Refused(
        "wireguard_key_missing",
        f"node {node!r} has no WireGuard key, and the cluster encrypts ({here.scope}): it could send and take "
        f"nothing. Upgrade its agent, and let `isthmus doctor` say why it has none",
        node=node,
        scope=here.scope,
    )
