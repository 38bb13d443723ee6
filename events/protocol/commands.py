"""Every request that can be made of a controller, and the answer to it.

A command is a JSON object sent as a NATS request to ``isthmus.<cluster>.command.<name>``, or to
``isthmus.<cluster>.command.node.<node>.<name>`` for those that a node makes for itself. Headers
carry who asks (``isthmus-actor``), the command's id (``isthmus-command-id``: a repeated id has no
second effect), the schema version, ``isthmus-dry-run`` and the trace context.

Unknown fields are refused: a misspelt option must not be silently dropped.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar

import msgspec

from events.status import NatMode
from events.types import Affinity, CheckKind, EncryptionScope, Network, NodeKind, Protocol

SCHEMA_VERSION = 1
"""Version of this module's shapes; sent with each request and checked by the controller."""

COMMAND_ID = "isthmus-command-id"
ACTOR = "isthmus-actor"
SCHEMA = "isthmus-schema"
DRY_RUN = "isthmus-dry-run"
INSTANCE = "isthmus-instance"
"""Which process of an agent asks: it tells two with one identity apart. A controller of 0.2 ignores it."""

PAYLOAD_LIMIT_BYTES = 512 * 1024
"""Largest request body; well under the server's 1 MiB, so that it is refused with a reason."""


class Override(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Consent to one kind of overlap: which check, and why. It becomes an event."""

    code: str
    reason: str


class Command(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all commands. ``name`` is the last token of the subject."""

    name: ClassVar[str]
    node_scoped: ClassVar[bool] = False
    """Whether a node's own credentials may send it (for that node only)."""


class DefineCluster(Command, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Define the cluster: the container CIDR and how it is cut. The first command of a log.

    ``pods_per_node`` and ``services`` are rounded up to powers of two.
    """

    name: ClassVar[str] = "define-cluster"
    container_cidr: str
    pods_per_node: int = 256
    services: int = 256
    networks: tuple[Network, ...] = ()
    vni: int = 100
    vxlan_port: int = 8472
    quarantine_s: float = 60.0
    unreachable_after_s: float = 30.0
    remove_after_s: float = 0.0
    overrides: tuple[Override, ...] = ()
    encrypt: EncryptionScope | msgspec.UnsetType = msgspec.UNSET
    """Left out: nothing is encrypted."""


class SetEncryption(Command, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Encrypt packets between nodes, or no more; the cluster goes there step by step.

    Repeating it writes nothing.
    """

    name: ClassVar[str] = "set-encryption"
    scope: EncryptionScope


class DeleteCluster(Command, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """End the cluster; refused while nodes live."""

    name: ClassVar[str] = "delete-cluster"
    reason: str = ""


class AppendCidr(Command, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Add a container CIDR at run time; ranges continue into it."""

    name: ClassVar[str] = "append-cidr"
    cidr: str
    overrides: tuple[Override, ...] = ()


class DeclareNetwork(Command, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Make a routed network known, so that overlap checks see it."""

    name: ClassVar[str] = "declare-network"
    network: Network
    overrides: tuple[Override, ...] = ()


class WithdrawNetwork(Command, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Forget a routed network."""

    name: ClassVar[str] = "withdraw-network"
    cidr: str


class JoinNode(Command, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A node asks to become a member and for a range. Repeating it writes nothing.

    ``range`` and ``pod_ip`` exist only to be refused with a clear answer. ``node_key`` is its public key
    (X25519, base64), left out where controllers before 0.3 would refuse it; ``node_key_beside`` the one before,
    while it is valid, too; ``wireguard_port`` its first UDP port, left out (or 0) where it has no WireGuard.
    """

    name: ClassVar[str] = "join"
    node_scoped: ClassVar[bool] = True
    node: str
    uid: str
    kind: NodeKind
    underlay: str
    announced: str = ""
    site: str = ""
    range: str = ""
    pod_ip: str = ""
    overrides: tuple[Override, ...] = ()
    node_key: str | msgspec.UnsetType = msgspec.UNSET
    node_key_beside: str | msgspec.UnsetType = msgspec.UNSET
    wireguard_port: int | msgspec.UnsetType = msgspec.UNSET
    nat: NatMode | msgspec.UnsetType = msgspec.UNSET  # ``on``: behind NAT at once; else its reports tell


class ChangeUnderlay(Command, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The node's address changed; range and epoch stay."""

    name: ClassVar[str] = "change-underlay"
    node_scoped: ClassVar[bool] = True
    node: str
    uid: str
    underlay: str
    announced: str = ""


class ChangeKey(Command, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The node has this key from now on. Only its own credentials may send it; repeating it writes nothing.

    ``port`` is WireGuard's, 0: the node cannot encrypt; ``beside`` as ``node_key_beside`` of a join.
    """

    name: ClassVar[str] = "change-key"
    node_scoped: ClassVar[bool] = True
    node: str
    uid: str
    key: str
    port: int = 0
    beside: str = ""


class LeaveNode(Command, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The node leaves on its own; its range drains."""

    name: ClassVar[str] = "leave"
    node_scoped: ClassVar[bool] = True
    node: str
    uid: str
    reason: str = ""


class RemoveNode(Command, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """An operator removes a node that may or may not be alive.

    ``uid``: only the member with that one is meant (empty, and then left out for releases before 0.3: any).
    """

    name: ClassVar[str] = "remove-node"
    node: str
    reason: str = ""
    uid: str = ""


class FenceNode(Command, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """An operator says a node is dead: it is removed, its uid fenced, and nothing waits for it any more."""

    name: ClassVar[str] = "fence-node"
    node: str
    reason: str = ""
    uid: str = ""


class ImportNodes(Command, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Many joins in one go, all or nothing (at most 400 per request, to fit one atomic batch).

    ``replace`` names members that are fenced when their line has another uid. Nobody else who was ever
    heard is. (It is left out when empty: releases before 0.3 do not know it.)
    """

    name: ClassVar[str] = "import-nodes"
    nodes: tuple[JoinNode, ...]
    replace: tuple[str, ...] = ()


class BeginAdoption(Command, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An operator lets nodes of a running cluster keep the ranges that they have, until :class:`EndAdoption`.

    ``plan`` is the SHA-256 of the plan that was decided on. Repeating it writes nothing.
    """

    name: ClassVar[str] = "begin-adoption"
    source: str
    plan: str = ""


class AdoptedNode(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A node of a running cluster as it is: its range, the MAC of its VTEP, and where it is reached."""

    node: str
    uid: str
    kind: NodeKind
    underlay: str
    range: str
    vtep_mac: str
    announced: str = ""
    site: str = ""


class AdoptNodes(Command, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Make nodes members with exactly these ranges, all or none (at most 400 per request).

    Only while the cluster is in adoption. The refusal names every finding of every node at once.
    Repeating it writes nothing.
    """

    name: ClassVar[str] = "adopt-nodes"
    nodes: tuple[AdoptedNode, ...]
    overrides: tuple[Override, ...] = ()


class EndAdoption(Command, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """No further range is adopted. Repeating it writes nothing."""

    name: ClassVar[str] = "end-adoption"
    reason: str = ""


class ReserveClb(Command, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Reserve two addresses of a subnet for a private CLB. Idempotent by name.

    ``gateway`` defaults to the subnet's first address; ``exclude`` lists addresses in use;
    ``purposes`` names what the two serve.
    """

    name: ClassVar[str] = "reserve-clb"
    reservation: str
    subnet: str
    gateway: str = ""
    exclude: tuple[str, ...] = ()
    purposes: tuple[str, str] = ("apiserver", "public-services")
    provider: str = "reserve-only"
    overrides: tuple[Override, ...] = ()


class ReleaseClb(Command, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Give the two addresses back."""

    name: ClassVar[str] = "release-clb"
    reservation: str


class MarkGateway(Command, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An operator lets a cloud node hold addresses of CLB pairs, or no more (``on`` false: handover first)."""

    name: ClassVar[str] = "mark-gateway"
    node: str
    on: bool = True


class AddBackend(Command, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Let connections to a port of a reserved address go to a backend. Repeating it writes nothing.

    ``backend_port`` 0 is the same port. A check of a UDP backend needs a ``check_port`` that speaks TCP.
    """

    name: ClassVar[str] = "add-backend"
    reservation: str
    purpose: str
    port: int
    address: str
    backend_port: int = 0
    protocol: Protocol = "tcp"
    affinity: Affinity = "none"
    check: CheckKind = "tcp"
    check_path: str = "/"
    check_port: int = 0
    check_interval_s: float = 1.0
    check_timeout_s: float = 1.0
    rise: int = 2
    fall: int = 2


class RemoveBackend(Command, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Send no new connection to the backend; those in progress stay."""

    name: ClassVar[str] = "remove-backend"
    reservation: str
    purpose: str
    port: int
    address: str
    backend_port: int = 0
    protocol: Protocol = "tcp"


class ReportHealth(Command, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The holder of an address says what its checks of a backend found. ``epoch`` is that of its holding."""

    name: ClassVar[str] = "report-health"
    node_scoped: ClassVar[bool] = True
    node: str
    uid: str
    epoch: int
    reservation: str
    purpose: str
    protocol: Protocol
    port: int
    address: str
    backend_port: int
    healthy: bool
    reason: str = ""


class AddEntry(Command, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Let sources outside of the overlay reach pods and ClusterIPs through gateways.

    ``sources`` are all that this entry lets in: repeated with others, it shuts those out that are not named
    any more. ``address`` is one of a pair that gateways hold (empty: that of the entry, or of the only such
    pair the first). Repeating it writes nothing.
    """

    name: ClassVar[str] = "add-entry"
    entry: str
    sources: tuple[str, ...]
    address: str = ""


class RemoveEntry(Command, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Let them in no more; their connections end."""

    name: ClassVar[str] = "remove-entry"
    entry: str


class BindNodes(Command, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Records which members (by name, uid) are which Kubernetes Nodes (by UID); at most 900 at a time."""

    name: ClassVar[str] = "bind-nodes"
    nodes: tuple[tuple[str, str, str], ...]


class SharedUse(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a join token for several machines allows: ``uses`` until ``until``, as ``kind``, in ``site``."""

    uses: int
    until: datetime
    kind: str = ""
    site: str = ""


class UseToken(Command, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The issuer records that it redeems a join token; only its credentials reach this subject.

    The command's id is :func:`token_command_id`: whoever comes second gets the first one's event. Of a
    token for several machines each key has one use.
    """

    name: ClassVar[str] = "use-token"
    token: str
    node: str
    public_key: str
    expires: datetime
    pod: str = ""
    """Who proved itself by a ServiceAccount token instead; ``token`` is then the new key itself."""
    shared: SharedUse | None = None


def token_command_id(token: str, public_key: str = "") -> str:
    """The one command id under which a token can be used; of a token for several machines, by that key."""
    return f"join-token/{token}/{public_key}" if public_key else f"join-token/{token}"


COMMANDS: tuple[type[Command], ...] = (
    DefineCluster,
    DeleteCluster,
    AppendCidr,
    DeclareNetwork,
    WithdrawNetwork,
    JoinNode,
    ChangeUnderlay,
    LeaveNode,
    RemoveNode,
    FenceNode,
    ImportNodes,
    ReserveClb,
    ReleaseClb,
    MarkGateway,
    AddBackend,
    RemoveBackend,
    ReportHealth,
    UseToken,
    BeginAdoption,
    AdoptNodes,
    EndAdoption,
    AddEntry,
    RemoveEntry,
    SetEncryption,
    ChangeKey,
    BindNodes,
)
"""Every command that can be sent."""

OF_THE_BRIDGE = (BindNodes, FenceNode, RemoveNode, AdoptNodes, AddBackend, RemoveBackend)
"""What the Kubernetes bridge sends on subjects of its own; the first is sent on no other."""


class WrittenEvent(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One event that a command caused (or, in a dry run, would cause; then ``sequence`` is provisional)."""

    sequence: int
    type: str
    event: msgspec.Raw | dict[str, Any]


class CommandReply(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The answer. On success ``code`` is empty.

    ``sequence`` is the log's last sequence that the answer rests on. ``result`` is what the caller
    asked for (for a join: the range; for a reservation: the addresses). ``duplicate`` says that
    the command id was seen before and this is the first answer's effect again.
    """

    sequence: int = 0
    events: tuple[WrittenEvent, ...] = ()
    result: dict[str, Any] = {}
    duplicate: bool = False
    dry_run: bool = False
    code: str = ""
    message: str = ""
    details: dict[str, Any] = {}
    answered_at: datetime | None = None
