"""Decisions about the cluster itself: its definition, growth, networks and end."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from controlplane.cluster.addressing.addresses import network
from controlplane.cluster.addressing.plan import check_private, make_plan, prefix_of
from controlplane.cluster.decision import Decision, DecisionContext, definition_of
from controlplane.cluster.decisions.encryption import begun
from controlplane.cluster.decisions.entries import removed
from controlplane.cluster.decisions.overlap import (
    Conflict,
    Side,
    container_conflicts,
    free_offer,
    network_conflicts,
    network_side,
    settle,
)
from controlplane.cluster.input_checks import seconds, text, whole
from controlplane.cluster.state import ClusterState, asker_command
from events import types
from events.errors import BadRequest, Refused
from events.protocol.commands import (
    AppendCidr,
    Command,
    DeclareNetwork,
    DefineCluster,
    DeleteCluster,
    WithdrawNetwork,
)
from events.subjects import check_label

LONGEST_S = 366 * 86400.0
"""Upper bound of every configurable time: a year."""

MAX_VNI = (1 << 24) - 1
NETWORKS_LIMIT = 4096
"""Declared networks per cluster; each overlap check reads them all."""


def define(state: ClusterState, command: DefineCluster, now: datetime, context: DecisionContext) -> Decision:
    """The first event of the log. The same definition again writes nothing; another one is refused.

    Raises Refused with the conflict that nobody accepted.
    """
    del now
    wanted = _definition(state.name, command)
    if state.definition is not None:
        definition_of(state)
        return _defined_already(state, state.definition, wanted, command.encrypt or state.encrypts.scope)
    ours = Side(network(wanted.container_cidr), "container CIDR")
    conflicts = container_conflicts(ours, state, context, wanted.networks)
    accepted, refused = settle(conflicts, command.overrides, state.name)
    if refused is not None:
        raise refused.refused()
    encrypt = command.encrypt or "off"
    more = (begun(state, encrypt),) if encrypt != "off" else ()
    return Decision((wanted, *accepted, *more), _described(wanted))


def _definition(name: str, command: DefineCluster) -> types.ClusterDefined:
    """The checked definition. Raises Refused and BadRequest."""
    plan = make_plan(command.container_cidr, command.pods_per_node, command.services)
    return types.ClusterDefined(
        cluster=check_label(name, "cluster"),
        container_cidr=plan.container_cidr,
        max_pods_per_node=plan.max_pods_per_node,
        max_services=plan.max_services,
        range_size=plan.range_size,
        service_size=plan.service_size,
        service_cidr=plan.service_cidr,
        capacity=plan.capacity,
        networks=_networks(command.networks),
        vni=whole(command.vni, "vni", 1, MAX_VNI),
        vxlan_port=whole(command.vxlan_port, "vxlan_port", 1, 65535),
        quarantine_s=seconds(command.quarantine_s, "quarantine_s", 0, LONGEST_S),
        unreachable_after_s=seconds(command.unreachable_after_s, "unreachable_after_s", 0.1, LONGEST_S),
        remove_after_s=seconds(command.remove_after_s, "remove_after_s", 0, LONGEST_S),
    )


def _networks(networks: tuple[types.Network, ...]) -> tuple[types.Network, ...]:
    if len(networks) > NETWORKS_LIMIT:
        raise BadRequest(
            "bad_request", f"{len(networks):,} networks; at most {NETWORKS_LIMIT:,}", limit=NETWORKS_LIMIT
        )
    seen: set[str] = set()
    for item in networks:
        _check_network(item)
        if item.cidr in seen:
            raise BadRequest("bad_request", f"network {item.cidr} is listed twice", field="networks")
        seen.add(item.cidr)
    return networks


def _check_network(item: types.Network) -> None:
    network_side(item)
    text(item.name, "the network's name", limit=253)


def _described(definition: types.ClusterDefined) -> dict[str, Any]:
    described: dict[str, Any] = msgspec.to_builtins(definition)
    return described


_FIXED = (
    "container_cidr",
    "range_size",
    "service_size",
    "vni",
    "vxlan_port",
    "quarantine_s",
    "unreachable_after_s",
    "remove_after_s",
)


def _defined_already(
    state: ClusterState, current: types.ClusterDefined, wanted: types.ClusterDefined, encrypt: str
) -> Decision:
    differences = [
        f"{field} {getattr(current, field)} (asked: {getattr(wanted, field)})"
        for field in _FIXED
        if getattr(current, field) != getattr(wanted, field)
    ]
    unknown = [item.cidr for item in wanted.networks if state.networks.get(item.cidr) != item]
    if differences:
        raise Refused(
            "cluster_already_defined",
            f"cluster {current.cluster!r} is defined with {', '.join(differences)}; a definition never changes "
            f"in place. To grow it: isthmus cluster append CIDR",
            cluster=current.cluster,
            current=_described(current),
            differences=differences,
        )
    if unknown:
        raise Refused(
            "cluster_already_defined",
            f"cluster {current.cluster!r} exists, without network {', '.join(unknown)}: "
            "isthmus cluster network add CIDR --kind KIND",
            cluster=current.cluster,
            networks=unknown,
        )
    if encrypt != state.encrypts.scope:
        raise Refused(
            "cluster_already_defined",
            f"cluster {current.cluster!r} exists and encrypts {state.encrypts.scope!r}, not {encrypt!r}: "
            f"isthmus cluster encrypt {encrypt}",
            cluster=current.cluster,
            encrypt=state.encrypts.scope,
        )
    return Decision((), _described(current))


def append(state: ClusterState, command: AppendCidr, now: datetime, context: DecisionContext) -> Decision:
    """One more container CIDR; ranges continue into it. The same CIDR again writes nothing.

    Raises Refused(cidr_too_small).
    """
    del now
    definition = definition_of(state)
    net = check_private(network(command.cidr, "container CIDR"))
    for own in state.cidrs[1:]:
        if own.cidr == str(net):
            return Decision((), _appended(own.cidr, own.first_index, own.capacity, state.capacity))
    capacity = net.size // definition.range_size
    if capacity == 0:
        smallest = prefix_of(definition.range_size)
        raise Refused(
            "cidr_too_small",
            f"{net} has {net.size} addresses, one node's range takes {definition.range_size}: "
            f"append at least a /{smallest}: {free_offer(definition.range_size, state, context)}",
            addresses=net.size,
            range_size=definition.range_size,
        )
    conflicts = container_conflicts(Side(net, "container CIDR"), state, context)
    accepted, refused = settle(conflicts, command.overrides, state.name)
    if refused is not None:
        return _conflict(state, command, refused)
    event = types.CidrAppended(cluster=state.name, cidr=str(net), first_index=state.capacity, capacity=capacity)
    return Decision(
        (*accepted, event), _appended(event.cidr, event.first_index, capacity, state.capacity + capacity)
    )


def _appended(cidr: str, first_index: int, capacity: int, total: int) -> dict[str, Any]:
    return {"cidr": cidr, "first_index": first_index, "capacity": capacity, "total_capacity": total}


def _conflict(state: ClusterState, command: Command, conflict: Conflict) -> Decision:
    """Refuse because of an overlap, and record it unless the last record says the same."""
    error = conflict.refused()
    known = state.refusals.get(asker_command(command.name), {}).get(conflict.code)
    if known is not None and known.message == error.message:
        return Decision(refusal=error)
    event = types.ConflictRefused(
        cluster=state.name,
        command=command.name,
        code=conflict.code,
        ours=str(conflict.ours.net),
        theirs=str(conflict.theirs.net),
        message=error.message,
    )
    return Decision((event,), refusal=error)


def declare(state: ClusterState, command: DeclareNetwork, now: datetime, context: DecisionContext) -> Decision:
    """Make a network known to the overlap checks. The same again writes nothing."""
    del now, context
    definition_of(state)
    _check_network(command.network)
    if state.networks.get(command.network.cidr) == command.network:
        return Decision((), msgspec.to_builtins(command.network))
    _networks((*(n for n in state.networks.values() if n.cidr != command.network.cidr), command.network))
    conflicts = network_conflicts(command.network, state)
    accepted, refused = settle(conflicts, command.overrides, state.name)
    if refused is not None:
        return _conflict(state, command, refused)
    event = types.NetworkDeclared(cluster=state.name, network=command.network)
    return Decision((*accepted, event), msgspec.to_builtins(command.network))


def withdraw(
    state: ClusterState, command: WithdrawNetwork, now: datetime, context: DecisionContext
) -> Decision:
    """Forget a declared network. Raises Refused(network_unknown)."""
    del now, context
    definition_of(state)
    known = state.networks.get(command.cidr)
    if known is None:
        listed = ", ".join(sorted(state.networks)[:8]) or "none"
        raise Refused(
            "network_unknown",
            f"no network {command.cidr[:64]!r} is declared; declared: {listed}",
            cidr=command.cidr[:64],
        )
    return Decision(
        (types.NetworkWithdrawn(cluster=state.name, cidr=command.cidr),), msgspec.to_builtins(known)
    )


def delete(state: ClusterState, command: DeleteCluster, now: datetime, context: DecisionContext) -> Decision:
    """End the cluster: its entries end and its CLB reservations are released with it. Refused while nodes live.

    Raises Refused(cluster_has_live_nodes).
    """
    del now, context
    definition_of(state)
    reason = text(command.reason, "reason")
    if state.nodes:
        first = sorted(state.nodes)[:8]
        more = f" and {len(state.nodes) - len(first):,} more" if len(state.nodes) > len(first) else ""
        raise Refused(
            "cluster_has_live_nodes",
            f"cluster {state.name!r} has {len(state.nodes):,} live nodes ({', '.join(first)}{more}): "
            f"remove them first with `isthmus node remove NODE`",
            cluster=state.name,
            count=len(state.nodes),
            nodes=first,
        )
    entries = [removed(name, entry) for name, entry in sorted(state.entries.items())]
    released = [
        types.ClbReleased(name=item.name, subnet=item.subnet, addresses=item.addresses)
        for _, item in sorted(state.clb.items())
    ]
    return Decision(
        (*entries, *released, types.ClusterDeleted(cluster=state.name, reason=reason)),
        {"cluster": state.name, "released_clb": [item.name for item in released]},
    )
