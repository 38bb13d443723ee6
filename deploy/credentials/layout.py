"""Who may do what on the bus: accounts, what they share, and limits. Data only: no keys, no files.

Every principal that is not a controller is a **tenant with an account of its own**. An account is a
subject space of its own, so a tenant can name nothing that its imports do not bring in, whatever
permissions its user may have; replies of others never pass through it; and its limits on
connections, subscriptions and message size are its own, so that nobody can use up another's share.
The user's permissions are the second fence inside the first.

Why not one account for all agents: reply subjects are not permission-checked by the server, so one
agent could have answers delivered to another's subjects, and connections are limited by account.

=========  ====================================================================================
CONTROL    the streams and the controllers; exports commands, status, reads (never a JetStream
           call that creates, changes or deletes, and no consumers: a push consumer's
           ``deliver_subject`` could forge an event)
ISSUER     redeems join tokens and renews credentials; holds one scoped signing key
SYSTEM     the servers' own; pushes account JWTs
tenants    one per node, operator, auditor and Kubernetes bridge, per join token for several machines, and one
           for the pods of a Kubernetes cluster that ask to be nodes
=========  ====================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import msgspec

from events import subjects
from events.protocol.commands import COMMANDS, OF_THE_BRIDGE, UseToken

Role = Literal[
    "node", "operator", "audit", "kubernetes", "token", "bridge", "controller", "site", "issuer", "system"
]  # fmt: skip
Kind = Literal["service", "stream"]

API_PREFIX = "ISTHMUS.API"
"""Where a tenant finds JetStream's read-only calls. ``$JS.API`` would reach its own, empty account."""
INBOX = "_INBOX.>"
RESPONSE_THRESHOLD_S = 10
"""How long the server keeps the way back of an unanswered request: bounds what floods can pile up."""

NODE_PAYLOAD_LIMIT_BYTES = 64 * 1024
NODE_CONNECTION_LIMIT = 4
"""The agent, its successor during an upgrade, and a person who looks after it."""
NODE_SUBSCRIPTION_LIMIT = 64
PERSON_CONNECTION_LIMIT = 64
POD_CONNECTION_LIMIT = 1024
"""Nodes of one Kubernetes cluster that ask for their first credentials at a time."""


class Share(msgspec.Struct, frozen=True):
    """A subject that one account offers or takes. ``local`` is its name for the taker, when another.

    ``streamed`` says that one request has many answers.
    """

    subject: str
    kind: Kind = "service"
    streamed: bool = False
    local: str = ""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Of an account (``connections``) and of each of its users; -1 is none."""

    connections: int = -1
    subscriptions: int = -1
    payload_bytes: int = -1


class Permissions(msgspec.Struct, frozen=True):
    """Subjects that a user may publish to and subscribe to; nothing else."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    never_publish: tuple[str, ...] = ()
    """Exceptions from ``publish``."""


class Tenant(msgspec.Struct, frozen=True, kw_only=True):
    """One account that takes part without owning anything."""

    name: str
    control: tuple[Share, ...]
    """What it takes from CONTROL."""
    issuer: tuple[Share, ...] = ()
    """What it takes from ISSUER."""
    permissions: Permissions
    enrolment: Permissions | None = None
    """What the holder of a join token may do."""
    limits: Limits


CONTROL_EXPORTS: tuple[Share, ...] = (
    Share("isthmus.*.command.>"),
    Share("isthmus.*.query.>"),
    Share("isthmus.*.status.*"),
    Share("isthmus.*.spans.*"),
    Share("$JS.API.STREAM.INFO.*"),
    Share("$JS.API.STREAM.MSG.GET.*"),
    Share("$JS.API.DIRECT.GET.*", streamed=True),
    Share("$JS.API.DIRECT.GET.*.>", streamed=True),
    Share("isthmus.*.live.>", "stream"),
    Share("isthmus.*.status.*", "stream"),
)
"""Offered to every account of this operator; what a tenant really has is in its imports."""

ISSUER_EXPORTS: tuple[Share, ...] = (
    Share("isthmus.*.enrol.*"),
    Share("isthmus.*.enrol-pod.*"),
    Share("isthmus.*.renew.*"),
)


def _api(call: str, *, streamed: bool = False) -> Share:
    return Share(f"$JS.API.{call}", streamed=streamed, local=f"{API_PREFIX}.{call}")


def _reads(cluster: str) -> tuple[Share, ...]:
    """Reading the log and the snapshots of one cluster; nothing that leaves anything behind."""
    shares = []
    for stream in (subjects.stream(cluster), subjects.snapshot_stream(cluster)):
        shares += [
            _api(f"STREAM.INFO.{stream}"),
            _api(f"STREAM.MSG.GET.{stream}"),
            _api(f"DIRECT.GET.{stream}", streamed=True),
            _api(f"DIRECT.GET.{stream}.>", streamed=True),
        ]
    return (*shares, Share(subjects.live_wildcard(cluster), "stream"))


def _reports(cluster: str) -> tuple[Share, ...]:
    """Reading what every agent reports: for people, not for agents."""
    stream = subjects.status_stream(cluster)
    return (
        _api(f"STREAM.INFO.{stream}"),
        _api(f"DIRECT.GET.{stream}", streamed=True),
        Share(subjects.status_wildcard(cluster), "stream"),
    )


def _allow(shares: tuple[Share, ...]) -> Permissions:
    return Permissions(
        publish=tuple(share.local or share.subject for share in shares if share.kind == "service"),
        subscribe=(*(share.local or share.subject for share in shares if share.kind == "stream"), INBOX),
    )


def node(cluster: str, name: str) -> Tenant:
    """An agent: its own commands and status, and reading. Raises BadRequest(node_name_invalid)."""
    token = subjects.token(subjects.check_node_name(name))
    subjects.check_label(cluster, "cluster")
    control = (
        Share(f"isthmus.{cluster}.command.node.{token}.>"),
        Share(subjects.status(cluster, name)),
        Share(subjects.spans(cluster, name)),
        *_reads(cluster),
    )
    enrol, renew = Share(subjects.enrol(cluster, name)), Share(subjects.renew(cluster, name))
    return Tenant(
        name=f"{cluster}/node/{name}",
        control=control,
        issuer=(enrol, renew),
        permissions=_allow((*control, renew)),
        enrolment=_allow((enrol,)),
        limits=Limits(
            connections=NODE_CONNECTION_LIMIT,
            subscriptions=NODE_SUBSCRIPTION_LIMIT,
            payload_bytes=NODE_PAYLOAD_LIMIT_BYTES,
        ),
    )


def operator(cluster: str, name: str) -> Tenant:
    """A person or a machine that gives commands to a cluster's controllers."""
    subjects.check_label(cluster, "cluster")
    subjects.check_label(name, "operator name")
    control = (
        Share(f"isthmus.{cluster}.command.*"),  # not a node's own subjects: nobody else speaks in its name
        Share(f"isthmus.{cluster}.query.>"),
        Share(subjects.spans(cluster, role="cli")),
        *_reports(cluster),
        *_reads(cluster),
    )
    return Tenant(
        name=f"{cluster}/operator/{name}",
        control=control,
        permissions=msgspec.structs.replace(
            _allow(control), never_publish=(subjects.command(cluster, UseToken.name),)
        ),
        limits=Limits(connections=PERSON_CONNECTION_LIMIT, subscriptions=1024, payload_bytes=-1),
    )


def audit(cluster: str, name: str) -> Tenant:
    """A reader: the replay tool, an archive, a third party that follows the events. It can change nothing."""
    subjects.check_label(cluster, "cluster")
    subjects.check_label(name, "auditor name")
    control = (*_reports(cluster), *_reads(cluster), Share(f"isthmus.{cluster}.query.>"))
    return Tenant(
        name=f"{cluster}/audit/{name}",
        control=control,
        permissions=_allow(control),
        limits=Limits(
            connections=PERSON_CONNECTION_LIMIT, subscriptions=1024, payload_bytes=NODE_PAYLOAD_LIMIT_BYTES
        ),
    )


def kubernetes(cluster: str, name: str) -> Tenant:
    """Agents that have no credentials yet: they may ask the issuer, and prove themselves by a pod's token."""
    subjects.check_label(cluster, "cluster")
    subjects.check_label(name, "kubernetes name")
    ask = (Share(f"isthmus.{cluster}.enrol-pod.*"),)
    return Tenant(
        name=f"{cluster}/kubernetes/{name}",
        control=(),
        issuer=ask,
        permissions=_allow(ask),
        limits=Limits(
            connections=POD_CONNECTION_LIMIT, subscriptions=16, payload_bytes=NODE_PAYLOAD_LIMIT_BYTES
        ),
    )


def shared_token(cluster: str, name: str) -> Tenant:
    """Holders of a join token for several machines: they may ask the issuer, which gives them a name."""
    subjects.check_label(cluster, "cluster")
    subjects.check_label(name, "token")
    ask = (Share(f"isthmus.{cluster}.enrol.*"),)
    return Tenant(
        name=f"{cluster}/token/{name}",
        control=(),
        issuer=ask,
        permissions=_allow(ask),
        enrolment=_allow(ask),
        limits=Limits(
            connections=POD_CONNECTION_LIMIT, subscriptions=16, payload_bytes=NODE_PAYLOAD_LIMIT_BYTES
        ),
    )


def bridge(cluster: str, name: str) -> Tenant:
    """A Kubernetes bridge beside the controllers: its own commands, and reading."""
    subjects.check_label(cluster, "cluster")
    subjects.check_label(name, "bridge name")
    commands = (Share(subjects.bridge_command(cluster, command.name)) for command in OF_THE_BRIDGE)
    control = (*commands, *_reports(cluster), *_reads(cluster))
    return Tenant(
        name=f"{cluster}/bridge/{name}",
        control=control,
        permissions=_allow(control),
        limits=Limits(connections=PERSON_CONNECTION_LIMIT, subscriptions=1024, payload_bytes=-1),
    )


_TENANTS: Mapping[Role, Callable[[str, str], Tenant]] = {
    "node": node, "operator": operator, "audit": audit, "kubernetes": kubernetes,
    "token": shared_token, "bridge": bridge,
}  # fmt: skip
TENANT_ROLES = tuple(_TENANTS)


def tenant(role: Role, cluster: str, name: str) -> Tenant:
    """The tenant of a role. Raises BadRequest for a malformed name."""
    return _TENANTS[role](cluster, name)


ISSUER = Tenant(
    name="issuer",
    control=(Share("isthmus.*.command.use-token"),),
    permissions=Permissions(
        publish=("isthmus.*.command.use-token", "_R_.>"),
        subscribe=(*(share.subject for share in ISSUER_EXPORTS), INBOX),
    ),
    limits=Limits(connections=16, subscriptions=256, payload_bytes=NODE_PAYLOAD_LIMIT_BYTES),
)
"""The issuer's own account. ``_R_`` is where the server has the answers of a service sent."""


SITE = Permissions(
    publish=(
        # The whole of it, because the controllers subscribe to the whole of it …
        "isthmus.*.command.>",
        "isthmus.*.query.>",
        "isthmus.*.status.*",
        "isthmus.*.spans.*",
        "$JS.hub.API.STREAM.INFO.>",
        "$JS.hub.API.STREAM.MSG.GET.>",
        "$JS.hub.API.DIRECT.GET.>",
        "$JS.hub.API.CONSUMER.CREATE.>",
        "$JS.hub.API.CONSUMER.MSG.NEXT.>",
        "$JS.FC.>",
        "$JS.ACK.>",
    ),
    subscribe=("isthmus.*.live.>", "_INBOX.>", "_R_.>", "$JS.M.>", "$JS.S.>", "$JSC.R.>"),
    # … but for what is not a node's own to ask. One by one: a wildcard would also match, as text, the
    # controllers' subscription to command.> and keep the site from learning of it.
    never_publish=(
        *(subjects.command("*", command.name) for command in COMMANDS),
        *(subjects.bridge_command("*", command.name) for command in OF_THE_BRIDGE),
    ),
)
"""A site's leaf server in CONTROL: it speaks for its nodes and mirrors the log. Making the mirrors'
consumers is the one thing here that a malicious server could abuse (SECURITY.md): it is infrastructure,
not a node."""
