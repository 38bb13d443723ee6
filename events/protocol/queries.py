"""The questions about the cluster that a controller answers from its fold, and the answers.

A query is a JSON object sent as a NATS request to ``isthmus.<cluster>.query.<name>``; it changes nothing and is
answered from the folded state, with what the agents last reported beside it, and states the sequence that it is
true at. What a controller keeps beside the fold (spans, signed checkpoints) is asked elsewhere.
"""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar, Literal

import msgspec

from events.protocol.encryption import NO_ENCRYPTION, Encryption
from events.protocol.ways import PeerWayView
from events.types import ClbReserved, ClusterDefined, ConflictOverridden, Network, NodeKind

PAGE_LIMIT = 1000
"""Most entries of one page: about half a megabyte of nodes, under the bus's largest message."""


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """A state of affairs that a person should know; it goes away by itself when its cause does."""

    code: str
    severity: Literal["info", "warning", "critical"]
    message: str
    help: str = ""
    """The command that helps or says more, where there is one; capitals stand for what the message names."""


CONDITIONS: dict[str, str] = {
    "no_external_node": "All nodes are cloud nodes; this network mode is for clusters with external ones. "
    "Nodes join one by one, so this is a warning, not an error.",
    "pool_exhausted": "No range is free; joins are refused until a range returns or a CIDR is appended.",
    "pool_low": "Less than a tenth of the ranges is free.",
    "drain_waiting": "Released ranges wait for agents that have not applied their release; the message names "
    "them. Fence a node that is dead.",
    "pods_running": "Pods may still run with addresses of released ranges, which are not reused before; the "
    "message names the nodes and how to end it.",
    "nodes_unreachable": "Nodes have stopped reporting; they stay members, their packets may well be flowing.",
    "path_lost": "Packets of pods do not pass, as several agents measured; the message says where.",
    "nat_no_way": "Nodes behind different NATs have no way to each other, as the cluster has no gateway that "
    "relays; the message names some pairs.",
    "encryption_waiting": "The cluster is on its way to encrypting, or to not encrypting any more; the message "
    "says how far it is and which nodes it waits for.",
    "no_clb": "External nodes exist, but no CLB pair by which they could reach the API server is reserved.",
    "clb_no_holder": "No gateway holds an address of a reserved pair; mark a cloud node as a gateway and start "
    "its agent with --gateway.",
    "clb_no_backend": "A port of a CLB address has no healthy backend; new connections to it are refused.",
    "conflict_overridden": "Somebody accepted an overlap of networks; the message names both sides.",
    "joins_refused": "Nodes asked for a range and were refused; the message names them and the cause.",
    "kernel_differs": "Nodes whose kernel rows are not those that the log demands; the message names them. "
    "Their agents say which rows, and repair them unless another program keeps rewriting them.",
    "record_incomplete": "A file that the controller can do without (recent traces, what the agents reported, "
    "the key and file of checkpoints) was unreadable and set aside, or cannot be written; the message names it "
    "and what to do.",
    "log_poisoned": "The log holds an event that the controller cannot follow; the message names it. Answers "
    "are of the state before it, commands are refused.",
    "clocks_disagree": "Clocks are more than 10 s apart: the controller's, the bus server's, the log's or the "
    "agents'; the message has the numbers. Meanwhile silent nodes are not removed; if it is the bus server's, "
    "no quarantine ends.",
    "cluster_deleted": "The cluster was deleted; the log takes no further command.",
    "identity_twice": "Two agents with one name and uid report: a cloned machine, or copied state. The message "
    "has both addresses; the one that was there keeps its place. On the copy stop the agent, run "
    "`isthmus agent new-identity --yes`, and start it.",
    "identity_mismatch": "Reports arrive on a node's subject with another uid than that member's: they count "
    "for nobody. Two machines use one name or one set of credentials, or somebody forges reports.",
    "report_refused": "Reports were unreadable, or say what cannot be: they count for nobody.",
    "node_over_budget": "A node asks, writes or reports more than any node needs; what is beyond is refused.",
}
"""Condition code → what it means; the documentation's table is generated from it."""


REMEDIES: dict[str, str] = {
    "pool_exhausted": "isthmus cluster append CIDR",
    "pool_low": "isthmus cluster append CIDR",
    "drain_waiting": "isthmus node list",
    "nodes_unreachable": "isthmus node list --unreachable",
    "path_lost": "isthmus mesh",
    "nat_no_way": "isthmus clb gateway add NODE",
    "no_clb": "isthmus clb reserve main --subnet CIDR",
    "clb_no_holder": "isthmus clb gateway add NODE",
    "clb_no_backend": "isthmus clb show NAME",
    "conflict_overridden": "isthmus cluster network list",
    "joins_refused": "isthmus node show NODE",
    "kernel_differs": "isthmus node show NODE",
    "log_poisoned": "isthmus replay verify",
    "cluster_deleted": "isthmus replay log",
}
"""Condition code → the command that helps, or that says more."""


class Query(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all queries. ``name`` is the last token of the subject."""

    name: ClassVar[str]


class ShowCluster(Query, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole cluster in numbers → :class:`ClusterView`. It is answered before the definition, too."""

    name: ClassVar[str] = "cluster"


class ListNodes(Query, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Members in order of their names, from behind ``after`` on → :class:`NodePage`."""

    name: ClassVar[str] = "nodes"
    after: str = ""
    limit: int = PAGE_LIMIT
    kind: NodeKind | None = None
    site: str | None = None
    unreachable: bool | None = None


class ShowNode(Query, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One member, or what is known of a node whose join was refused → :class:`NodeView`."""

    name: ClassVar[str] = "node"
    node: str


class ListRanges(Query, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Ranges that are not free, by index, from behind index ``after`` on → :class:`RangePage`."""

    name: ClassVar[str] = "ranges"
    after: int = -1
    limit: int = PAGE_LIMIT
    phase: Literal["allocated", "draining", "quarantined"] | None = None


class WhoHas(Query, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whose an address is now: a range's, a node's, a CLB's, the Service range's → :class:`AddressOwner`."""

    name: ClassVar[str] = "who"
    address: str


class ListClb(Query, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All CLB reservations → :class:`ClbList`."""

    name: ClassVar[str] = "clb-list"


class ShowClb(Query, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One CLB reservation → :class:`ClbAnswer`."""

    name: ClassVar[str] = "clb"
    reservation: str


class ListEntries(Query, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All entries → :class:`EntryList`."""

    name: ClassVar[str] = "entries"


class ShowEntry(Query, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One entry → :class:`EntryView`."""

    name: ClassVar[str] = "entry"
    entry: str


QUERIES: tuple[type[Query], ...] = (
    *(ShowCluster, ListNodes, ShowNode, ListRanges, WhoHas, ListClb, ShowClb, ListEntries, ShowEntry),
)
"""Every query that can be sent."""


# --- answers -----------------------------------------------------------------------------------------


class CidrView(msgspec.Struct, frozen=True, kw_only=True):
    """A container CIDR and the states of its ranges; ``since`` is the sequence that brought it."""

    cidr: str
    first_index: int
    capacity: int
    since: int = 0
    allocated: int = 0
    draining: int = 0
    quarantined: int = 0
    free: int = 0


class PoolView(msgspec.Struct, frozen=True, kw_only=True):
    """Ranges by phase; they add up to ``capacity``. ``cursor`` is the index where the next search starts.

    ``next_range`` is what the next node would get; empty when the pool is exhausted, and then
    ``earliest_free`` is when a range comes back, if one is due. ``range_size`` counts addresses.
    """

    capacity: int
    allocated: int
    draining: int
    quarantined: int
    free: int
    cursor: int
    next_range: str = ""
    earliest_free: datetime | None = None
    range_size: int = 0
    pods_per_node: int = 0
    service_cidr: str = ""
    cidrs: list[CidrView] = []


class ClusterView(msgspec.Struct, frozen=True, kw_only=True):
    """The cluster at one sequence. ``definition`` is None before ``cluster define``.

    ``agents`` counts members by their agent's state (``unreported``: never). ``controller`` of ``version``
    answered, and keeps the way back to ``compatible_with`` open.
    """

    cluster: str
    sequence: int
    digest: str
    definition: ClusterDefined | None
    cidrs: tuple[CidrView, ...]
    pool: PoolView
    networks: tuple[Network, ...]
    overrides: tuple[ConflictOverridden, ...]
    nodes: int
    external: int
    unreachable: int
    fenced_uids: int
    reservations: int
    watermark: int
    conditions: tuple[Condition, ...]
    agents: dict[str, int] = {}
    controller: str = ""
    version: str = ""
    compatible_with: str = ""
    encryption: Encryption = NO_ENCRYPTION


class RefusalView(msgspec.Struct, frozen=True, kw_only=True):
    """What a node was refused, first recorded at ``since``."""

    code: str
    message: str
    since: int


class NodeView(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A member with its range, and what its agent last reported.

    ``lag`` is how many events its agent is behind. A node that is no member has ``member`` false and
    only its refusals.
    """

    node: str
    member: bool = True
    uid: str = ""
    kind: str = ""
    site: str = ""
    underlay: str = ""
    announced: str = ""
    vtep_mac: str = ""
    cidr: str = ""
    index: int = -1
    epoch: int = 0
    joined: int = 0
    changed: int = 0
    unreachable: bool = False
    last_seen: datetime | None = None
    applied: int | None = None
    lag: int | None = None
    agent_state: str = ""
    agent_conditions: tuple[str, ...] = ()
    kernel: str = ""
    """``agrees`` or ``differs`` from the log, by the digest that the agent last published; empty: unknown."""
    kernel_at: int = 0
    """The sequence at which that was found; 0: never."""
    path: str = ""
    """Whether packets of its pods pass (:class:`events.status.AgentStatus`), as it last reported."""
    passed_at: datetime | None = None
    """When one last did, by the controller's clock."""
    stale: bool = False
    """Its last report is older than three of its intervals: what it said is what was, not what is."""
    drift: tuple[str, ...] = ()
    pods: int = -1
    """Pods that run on it, by its last report; -1: not known."""
    stray_pods: tuple[str, ...] = ()
    """Some addresses of pods on it in ranges that it does not have any more."""
    refusals: tuple[RefusalView, ...] = ()
    behind_nat: int = 0
    """The sequence since which the log has it behind NAT; 0: it is not."""
    seen_as: str = ""
    """The address as which others saw it then; empty: its agent was told so."""
    ways: str = ""
    """How many peers its packets reach which way, in words; empty: not known."""
    peer_ways: tuple[PeerWayView, ...] = ()
    """The peers that they reach, or reached until lately, otherwise than through the tunnel; the newest change
    first, and not all of many. Only of one node that is asked about."""


class NodePage(msgspec.Struct, frozen=True, kw_only=True):
    """Some members; ``next_after`` goes into the next request, None at the end.

    ``total`` counts the matches of this request, those of later pages included.
    """

    sequence: int
    nodes: tuple[NodeView, ...]
    total: int
    next_after: str | None = None


class RangeView(msgspec.Struct, frozen=True, kw_only=True):
    """A range that is not free. ``epoch`` is the sequence of its allocation.

    ``draining_since`` is a sequence; ``until`` ends the quarantine that began when every live agent had
    applied ``watermark``. While the range is allocated there is none of the three.
    """

    index: int
    cidr: str
    phase: str
    node: str
    uid: str = ""
    epoch: int
    draining_since: int | None = None
    watermark: int | None = None
    until: datetime | None = None


class RangePage(msgspec.Struct, frozen=True, kw_only=True):
    """Some ranges; ``next_after`` goes into the next request, None at the end."""

    sequence: int
    ranges: tuple[RangeView, ...]
    total: int
    next_after: int | None = None


class AddressOwner(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Whose an address is. ``kind`` says which of the other fields are set."""

    address: str
    kind: Literal["range", "free_range", "service", "stranded", "node", "clb", "outside"]
    range: RangeView | None = None
    cidr: str = ""
    node: str = ""
    reservation: str = ""
    purpose: str = ""
    also: tuple[str, ...] = ()  # further nodes with that address, behind other NATs


class ClbBackendView(msgspec.Struct, frozen=True, kw_only=True):
    """A backend of one port and its recorded health.

    ``since`` is the sequence of its last change of health (0: none recorded, it counts as healthy). ``check``
    is the kind of its check on the bus, and the whole check in words in the HTTP API.
    """

    purpose: str
    protocol: str
    port: int
    address: str
    backend_port: int
    affinity: str
    check: str
    healthy: bool
    since: int = 0
    since_at: datetime | None = None
    reason: str = ""
    added: int = 0


class ClbAddressView(msgspec.Struct, frozen=True, kw_only=True):
    """One of a reservation's two addresses.

    Where our gateways serve it, ``holder`` is the node that holds it since the sequence ``epoch``
    (empty: nobody does), and ``backends`` of all its ports are counted.
    """

    purpose: str
    address: str
    holder: str = ""
    epoch: int = 0
    backends: int = 0
    healthy: int = 0


class ClbView(msgspec.Struct, frozen=True, kw_only=True):
    """A CLB reservation. The ``provider`` ``gateway`` is ours; any other realises the addresses elsewhere."""

    name: str
    subnet: str
    gateway: str
    provider: str
    addresses: list[ClbAddressView]
    excluded: int


class HolderView(msgspec.Struct, frozen=True, kw_only=True):
    """Which gateway holds an address, since which sequence (its epoch)."""

    purpose: str
    address: str
    node: str = ""
    epoch: int = 0


class ClbAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A reservation at one sequence; holders and backends where our gateways serve it."""

    sequence: int
    reservation: ClbReserved
    holders: tuple[HolderView, ...] = ()
    backends: tuple[ClbBackendView, ...] = ()
    gateways: tuple[str, ...] = ()


class ClbList(msgspec.Struct, frozen=True, kw_only=True):
    """All reservations, in order of their names."""

    sequence: int
    reservations: tuple[ClbReserved, ...]


class EntryView(msgspec.Struct, frozen=True, kw_only=True):
    """Which sources outside of the overlay may reach pods, and by which address they come.

    ``since`` is the sequence of the event that says so, ``node`` the gateway that holds the address since
    ``epoch`` (empty: nobody does). Every gateway lets them in; the address is where their routers send to.
    """

    name: str
    sources: list[str]
    address: str
    reservation: str
    since: int
    node: str = ""
    epoch: int = 0


class EntryList(msgspec.Struct, frozen=True, kw_only=True):
    """All entries, in order of their names."""

    sequence: int
    entries: list[EntryView]


Answer = (
    ClusterView | NodePage | NodeView | RangePage | AddressOwner | ClbList | ClbAnswer | EntryList | EntryView
)
