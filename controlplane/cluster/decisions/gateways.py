"""Decisions about gateways, backends and their health: what an operator and the active gateway may change."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from controlplane.cluster.decision import Decision, DecisionContext, definition_of
from controlplane.cluster.decisions.clb import reserved
from controlplane.cluster.decisions.holders import PROVIDER, hand_over
from controlplane.cluster.input_checks import text, unicast
from controlplane.cluster.state import ClusterState
from events import types
from events.errors import BadRequest, Refused
from events.protocol.clb import Backend, BackendKey
from events.protocol.commands import AddBackend, MarkGateway, RemoveBackend, ReportHealth

HEALTH_REST_S = 5.0
"""A backend's recorded health changes at most once in this time, however it flaps; its holder acts at once."""

BACKENDS_LIMIT = 256
"""Backends of one reservation."""

SETTINGS = (
    "affinity",
    "check",
    "check_path",
    "check_port",
    "check_interval_s",
    "check_timeout_s",
    "rise",
    "fall",
)


def mark(state: ClusterState, command: MarkGateway, now: datetime, context: DecisionContext) -> Decision:
    """Let a cloud node be a gateway, or no more; what it holds is handed over first.

    Raises Refused(node_unknown, clb_not_gateway).
    """
    del now
    definition_of(state)
    member = state.nodes.get(command.node)
    if member is None:
        raise Refused(
            "node_unknown",
            f"no live node is named {command.node[:253]!r} ({len(state.nodes):,} live nodes)",
            node=command.node[:253],
        )
    result = {"node": member.name, "gateway": command.on}
    if (member.name in state.gateways) == command.on:
        return Decision((), result)
    if command.on:
        if member.kind != "cloud":
            raise Refused(
                "clb_not_gateway",
                f"node {member.name!r} is an {member.kind} node: the pair lies in a subnet of the VPC, so only "
                f"cloud nodes can hold it",
                node=member.name,
                kind=member.kind,
            )
        return Decision((types.NodeGatewayMarked(node=member.name, uid=member.uid),), result)
    moved = hand_over(state, member.name, "unmarked", context)
    return Decision((*moved, types.NodeGatewayUnmarked(node=member.name, uid=member.uid)), result)


def add(state: ClusterState, command: AddBackend, now: datetime, context: DecisionContext) -> Decision:
    """Add a backend, or change the settings of the one that is there. The same again writes nothing.

    Raises BadRequest(bad_request).
    """
    del now, context
    definition_of(state)
    reservation = _reservation(state, command.reservation, command.purpose)
    _check(command)
    key = key_of(command)
    if key.address in state.clb_addresses:
        raise BadRequest(
            "bad_request",
            f"{key.address} is reserved for a CLB itself: its connections would go round in circles",
            field="address",
        )
    existing = state.backends.get(key)
    if existing is not None and all(getattr(existing, f) == getattr(command, f) for f in SETTINGS):
        return Decision((), _described(key, existing.healthy))
    count = sum(1 for known in state.backends if known.name == reservation.name)
    if existing is None and count >= BACKENDS_LIMIT:
        raise BadRequest(
            "bad_request",
            f"reservation {reservation.name!r} has {count} backends; the limit is {BACKENDS_LIMIT}",
            field="address",
        )
    settings: dict[str, Any] = {field: getattr(command, field) for field in SETTINGS}
    event = types.ClbBackendAdded(**key._asdict(), **settings)
    return Decision((event,), _described(key, existing.healthy if existing else True))


def remove(state: ClusterState, command: RemoveBackend, now: datetime, context: DecisionContext) -> Decision:
    """Take a backend away; connections in progress stay with it."""
    del now, context
    definition_of(state)
    _reservation(state, command.reservation, command.purpose)
    key = key_of(command)
    known = _known(state, key)
    return Decision((types.ClbBackendRemoved(**key._asdict()),), _described(key, known.healthy))


def report(state: ClusterState, command: ReportHealth, now: datetime, context: DecisionContext) -> Decision:
    """Record a change of health, if the reporter holds the address and the last change is old enough.

    ``again_after_s`` in the result says that it was not recorded yet, and when to say it again. Raises
    Refused(clb_not_holder).
    """
    del context
    definition_of(state)
    key = BackendKey(
        command.reservation,
        command.purpose,
        command.protocol,
        command.port,
        command.address,
        command.backend_port,
    )
    reservation = _reservation(state, command.reservation, command.purpose)
    held = next(item.address for item in reservation.addresses if item.purpose == command.purpose)
    holder = state.holders.get(held)
    if holder is None or (holder.node, holder.uid, holder.epoch) != (command.node, command.uid, command.epoch):
        now_holds = f"{holder.node!r} does, since {holder.epoch}" if holder else "nobody does"
        raise Refused(
            "clb_not_holder",
            f"node {command.node[:253]!r} does not hold {held} at epoch {command.epoch}: {now_holds}",
            node=command.node[:253],
            address=held,
        )
    known = _known(state, key)
    if known.healthy == command.healthy:
        return Decision((), _described(key, known.healthy))
    if known.changed_at is not None:
        rest = known.changed_at + timedelta(seconds=HEALTH_REST_S) - now
        if timedelta() < rest <= timedelta(seconds=HEALTH_REST_S):
            return Decision((), {**_described(key, known.healthy), "again_after_s": rest.total_seconds()})
    event = types.ClbBackendHealthChanged(
        **key._asdict(),
        healthy=command.healthy,
        node=command.node,
        epoch=command.epoch,
        at=now,
        reason=text(command.reason, "reason"),
    )
    return Decision((event,), _described(key, command.healthy))


def key_of(command: AddBackend | RemoveBackend) -> BackendKey:
    """The backend that the command is about. Raises BadRequest for an address or port that is none."""
    unicast(command.address, "backend address")
    backend_port = command.backend_port or command.port
    for what, port in (("port", command.port), ("backend_port", backend_port)):
        if not 1 <= port <= 65535:
            raise BadRequest("bad_request", f"{what} {port} is outside 1 … 65535", field=what)
    return BackendKey(
        command.reservation, command.purpose, command.protocol, command.port, command.address, backend_port
    )


def _check(command: AddBackend) -> None:
    if command.protocol == "udp" and command.check != "none" and not command.check_port:
        raise BadRequest(
            "bad_request",
            "a UDP backend is checked by a TCP port of its own: give check_port, or check none",
            field="check_port",
        )
    for what, low, value, high in (
        ("check_port", 0, command.check_port, 65535),
        ("check_interval_s", 0.1, command.check_interval_s, 300),
        ("check_timeout_s", 0.05, command.check_timeout_s, 60),
        ("rise", 1, command.rise, 100),
        ("fall", 1, command.fall, 100),
    ):
        if not low <= value <= high:
            raise BadRequest("bad_request", f"{what} {value} is outside {low} … {high}", field=what)
    path = text(command.check_path, "check path")
    if not path.startswith("/") or any(c.isspace() or not c.isprintable() for c in path):
        raise BadRequest(
            "bad_request", f"check path {path[:64]!r} is no absolute path of a URL", field="check_path"
        )


def _reservation(state: ClusterState, name: str, purpose: str) -> types.ClbReserved:
    """The reservation that our gateways serve, with that purpose. Raises Refused."""
    reservation = reserved(state, name)
    if reservation.provider != PROVIDER:
        raise Refused(
            "clb_not_gateway",
            f"reservation {name!r} has provider {reservation.provider!r}: somebody else realises its "
            f"addresses; only provider {PROVIDER!r} has backends here",
            reservation=name,
            provider=reservation.provider,
        )
    purposes = [item.purpose for item in reservation.addresses]
    if purpose not in purposes:
        raise Refused(
            "clb_backend_unknown",
            f"reservation {name!r} serves {' and '.join(purposes)}, not {purpose[:63]!r}",
            reservation=name,
            purpose=purpose[:63],
        )
    return reservation


def _known(state: ClusterState, key: BackendKey) -> Backend:
    known = state.backends.get(key)
    if known is None:
        raise Refused(
            "clb_backend_unknown",
            f"{key.purpose} of {key.name!r} has no {key.protocol} backend {key.address}:{key.backend_port} "
            f"behind port {key.port}",
            reservation=key.name,
        )
    return known


def _described(key: BackendKey, healthy: bool) -> dict[str, Any]:
    return {**key._asdict(), "healthy": healthy}
