"""Events about nodes: who is a member, where it is reached, what became of it."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar, Literal

from events.types.base import Event, NodeKind


class _NodeEvent(Event, frozen=True, kw_only=True, gc=False):
    aggregate: ClassVar[str] = "node"
    node: str
    uid: str

    @property
    def entity(self) -> str:
        return self.node


class NodeJoined(_NodeEvent, frozen=True, kw_only=True, gc=False):
    """A node became a member. ``uid`` names the installation, ``node`` the role.

    ``underlay`` is the address on the node's own link, ``announced`` the one by which its peers
    reach it (they differ behind NAT). ``vtep_mac`` is derived from the uid; an adopted node keeps its own.
    """

    verb: ClassVar[str] = "joined"
    kind: NodeKind
    underlay: str
    announced: str
    vtep_mac: str
    site: str = ""


class NodeUnderlayChanged(_NodeEvent, frozen=True, kw_only=True, gc=False):
    """The node is reached at another address; its range and epoch stay.

    ``vtep_mac`` is the new one of a node that another network still serves and has given another; empty: as it
    was.
    """

    verb: ClassVar[str] = "underlay-changed"
    underlay: str
    announced: str
    vtep_mac: str = ""


class NodeKeyChanged(_NodeEvent, frozen=True, kw_only=True, gc=False):
    """The member is known by this key from now on: it came with it, or made a new one.

    ``key`` is the public one (X25519, base64), ``port`` the UDP port by which WireGuard reaches the node with
    it, the first of four; 0: the node has no WireGuard, and cannot encrypt. The key ends with the membership.

    ``beside`` is the key that the node had before, and that stays valid beside this one until the next such
    event; empty: there is none any more. ``slot`` (0 or 1) is this key's, the other one is that of ``beside``:
    see :mod:`nodeagent.wireguard.pairs`.
    """

    verb: ClassVar[str] = "key-changed"
    key: str
    port: int = 0
    beside: str = ""
    slot: int = 0


class NodeNatChanged(_NodeEvent, frozen=True, kw_only=True, gc=False):
    """The member is behind NAT from now on (``behind``), or is not any more; that ends with the membership.

    Others see its packets come from another address than the one that it announces, and from a port that may
    change: each peer learns where to answer, and none of that is in the log. ``seen_as`` is the address as
    which ``seen_by`` (some of the members that said so) saw it when this was decided; both are empty where its
    agent was told so (``--nat on`` or ``off``).
    """

    verb: ClassVar[str] = "nat-changed"
    behind: bool
    seen_as: str = ""
    seen_by: tuple[str, ...] = ()


class NodeLeft(_NodeEvent, frozen=True, kw_only=True, gc=False):
    """The node is no member any more: it said so itself, or an operator removed it (the actor tells)."""

    verb: ClassVar[str] = "left"
    reason: str = ""


class NodeUnreachable(_NodeEvent, frozen=True, kw_only=True, gc=False):
    """The node's reports stopped. It stays a member: its packets may well be flowing."""

    verb: ClassVar[str] = "unreachable"
    last_seen: datetime | None = None


class NodeRecovered(_NodeEvent, frozen=True, kw_only=True, gc=False):
    """An unreachable node reports again."""

    verb: ClassVar[str] = "recovered"


class NodeBound(_NodeEvent, frozen=True, kw_only=True, gc=False):
    """The member is the Kubernetes Node with the UID ``node_uid``, until it leaves or is bound anew.

    A Node that is missing later was deleted, also while nobody watched; one of that name with another UID was
    made anew.
    """

    verb: ClassVar[str] = "bound"
    node_uid: str


class NodeGatewayMarked(_NodeEvent, frozen=True, kw_only=True, gc=False):
    """This cloud node may hold addresses of CLB pairs from now on; the mark ends with its membership."""

    verb: ClassVar[str] = "gateway-marked"


class NodeGatewayUnmarked(_NodeEvent, frozen=True, kw_only=True, gc=False):
    """The node holds no CLB address any more; what it held was handed over just before."""

    verb: ClassVar[str] = "gateway-unmarked"


class NodeFenced(_NodeEvent, frozen=True, kw_only=True, gc=False):
    """This uid is out for good: another one took the name (``by_uid``), or an operator or a timer decided.

    ``former``: it was no member any more. Its last range, which had waited for the end of the pods on that
    machine, waits no longer.
    """

    verb: ClassVar[str] = "fenced"
    cause: Literal["rejoin", "operator", "unreachable"]
    by_uid: str = ""
    reason: str = ""
    former: bool = False
