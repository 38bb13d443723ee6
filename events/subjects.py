"""Names ⇄ NATS subjects. The only place where a subject is spelt.

Every subject of a cluster starts with ``isthmus.<cluster>.``:

=====================================================  ==========================================
``isthmus.C.events.<aggregate>.<id>.<verb>``           the log (stream ``ISTHMUS_C``)
``isthmus.C.live.<aggregate>.<id>.<verb>``             the same, republished on plain subjects
``isthmus.C.command.<name>``                           requests to a controller
``isthmus.C.command.node.<node>.<name>``               requests that one node's credentials allow
``isthmus.C.command.kubernetes.<name>``                requests that a Kubernetes bridge's credentials allow
``isthmus.C.query.<name>``                             questions to a controller about the present
``isthmus.C.status.<node>``                            last status per node (``ISTHMUS_C_STATUS``)
``isthmus.C.pods.<node>.<address>``                    which pod had it (``ISTHMUS_C_PODS``)
``isthmus.C.snapshot.…``                               snapshots for agents (``ISTHMUS_C_SNAPSHOT``)
``isthmus.C.enrol.<node>``                             a join token's holder asks the issuer for credentials
``isthmus.C.enrol-pod.<node>``                         the same by a pod's ServiceAccount token
``isthmus.C.renew.<node>``                             a node asks the issuer for its next ones
``isthmus.C.spans.<node>``                             a node's finished spans, for the built-in store
``isthmus.C.spans._<role>``                            the same from a role that is no node
=====================================================  ==========================================

Cluster names are DNS-1123 labels. Node names are DNS-1123 subdomains: a dot would split the
subject, so ``.`` is written ``_`` (which DNS-1123 forbids, hence reversible). Ranges are written
``10_3_7_0-26``.
"""

from __future__ import annotations

import re

from events.errors import BadRequest

_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(rf"{_LABEL.pattern}(?:\.{_LABEL.pattern})*")

SITE_LIMIT = 63
BRIDGE = "kubernetes"
"""The token in the subjects of the commands that the Kubernetes bridge sends, and how it signs."""


def check_label(name: str, what: str) -> str:
    """Return ``name`` if it is a DNS-1123 label (RFC 1123 §2.1, at most 63 characters).

    Raises BadRequest(bad_request) otherwise.
    """
    if not _LABEL.fullmatch(name):
        raise BadRequest(
            "bad_request",
            f"{what} {name!r} is not a DNS-1123 label: 1 to 63 of a-z, 0-9 and '-', no '-' at either end",
            field=what,
        )
    return name


def check_node_name(name: str) -> str:
    """Return ``name`` if it is a DNS-1123 subdomain of at most 253 characters.

    Raises BadRequest(node_name_invalid) otherwise.
    """
    if len(name) > 253 or not _SUBDOMAIN.fullmatch(name):
        raise BadRequest(
            "node_name_invalid",
            f"node name {name[:80]!r} is not a DNS-1123 subdomain: labels of a-z, 0-9 and '-' joined by '.', "
            f"at most 253 characters",
            node=name[:80],
        )
    return name


def check_site(name: str) -> str:
    """Return ``name`` if it is printable and at most 63 characters, as a label's value; may be empty.

    Raises BadRequest(bad_request) otherwise.
    """
    if len(name) > SITE_LIMIT or not name.isprintable():
        raise BadRequest(
            "bad_request",
            f"site {name[:SITE_LIMIT]!r} has {len(name):,} characters: it takes at most {SITE_LIMIT}, and "
            f"printable ones",
            field="site",
        )
    return name


def token(entity: str) -> str:
    """One subject token for the name of a node, a range (CIDR), a reservation or a cluster."""
    return entity.replace(".", "_").replace("/", "-")


def node_from_token(value: str) -> str:
    """The node name that :func:`token` encoded."""
    return value.replace("_", ".")


def stream(cluster: str) -> str:
    """The name of the cluster's event stream."""
    return f"ISTHMUS_{cluster}"


def status_stream(cluster: str) -> str:
    """The name of the cluster's status stream."""
    return f"ISTHMUS_{cluster}_STATUS"


def events_wildcard(cluster: str) -> str:
    """Matches every event of the cluster."""
    return f"isthmus.{cluster}.events.>"


def aggregate_wildcard(cluster: str, aggregate: str) -> str:
    """Matches every event about one kind of thing."""
    return f"isthmus.{cluster}.events.{aggregate}.>"


def live_wildcard(cluster: str) -> str:
    """Matches every republished event of the cluster."""
    return f"isthmus.{cluster}.live.>"


def trace_wanted(cluster: str, node: str) -> str:
    """Where an agent learns that somebody wants its way to a peer traced: among what comes live, not stored."""
    return f"isthmus.{cluster}.live.trace.{token(check_node_name(node))}.wanted"


def event(cluster: str, aggregate: str, entity: str, verb: str) -> str:
    """The subject of one event, for example ``isthmus.prod.events.node.idc-7.joined``."""
    return f"isthmus.{cluster}.events.{aggregate}.{token(entity)}.{verb}"


def command(cluster: str, name: str) -> str:
    """The subject of an operator's command."""
    return f"isthmus.{cluster}.command.{name}"


def node_command(cluster: str, node: str, name: str) -> str:
    """The subject of a command that only the named node's credentials allow."""
    return f"isthmus.{cluster}.command.node.{token(node)}.{name}"


def bridge_command(cluster: str, name: str) -> str:
    """The subject of a command that only the credentials of a Kubernetes bridge allow."""
    return f"isthmus.{cluster}.command.{BRIDGE}.{name}"


def query(cluster: str, name: str) -> str:
    """The subject of a question about the present."""
    return f"isthmus.{cluster}.query.{name}"


def status(cluster: str, node: str) -> str:
    """Where the node's agent reports."""
    return f"isthmus.{cluster}.status.{token(node)}"


def status_wildcard(cluster: str) -> str:
    """Matches every node's status."""
    return f"isthmus.{cluster}.status.*"


def pods_stream(cluster: str) -> str:
    """The name of the stream that keeps which pod had which address."""
    return f"ISTHMUS_{cluster}_PODS"


def pods(cluster: str, node: str, address: str) -> str:
    """What a node (without ``node``: any) said of the pods that had an address. Only controllers write it."""
    return f"isthmus.{cluster}.pods.{token(node) or '*'}.{token(address)}"


def pods_wildcard(cluster: str) -> str:
    """Matches every fact of pods."""
    return f"isthmus.{cluster}.pods.*.*"


def spans(cluster: str, node: str = "", *, role: str = "") -> str:
    """Where finished spans are sent: a node's own subject, or a role's (``_cli``: no node's name)."""
    return f"isthmus.{cluster}.spans.{token(node) if node else f'_{role}'}"


def spans_wildcard(cluster: str) -> str:
    """Matches everybody's finished spans."""
    return f"isthmus.{cluster}.spans.*"


def snapshot_stream(cluster: str) -> str:
    """The name of the stream that holds the snapshots for agents."""
    return f"ISTHMUS_{cluster}_SNAPSHOT"


def snapshot_wildcard(cluster: str) -> str:
    """Matches everything of the snapshots."""
    return f"isthmus.{cluster}.snapshot.>"


def snapshot_latest(cluster: str) -> str:
    """Where the latest snapshot's manifest stands."""
    return f"isthmus.{cluster}.snapshot.latest"


def snapshot_chunk(cluster: str, slot: int, index: int) -> str:
    """One chunk of the snapshot in a slot."""
    return f"isthmus.{cluster}.snapshot.{slot}.{index}"


def enrol(cluster: str, node: str) -> str:
    """Where the holder of a join token asks the issuer for the node's credentials."""
    return f"isthmus.{cluster}.enrol.{token(node)}"


def enrol_pod(cluster: str, node: str) -> str:
    """Where an agent asks for the node's credentials as a pod of Kubernetes."""
    return f"isthmus.{cluster}.enrol-pod.{token(node)}"


def renew(cluster: str, node: str) -> str:
    """Where a node asks the issuer for its next credentials."""
    return f"isthmus.{cluster}.renew.{token(node)}"
