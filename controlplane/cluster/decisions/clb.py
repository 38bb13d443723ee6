"""Decisions about CLB reservations: two addresses of a subnet, together or not at all.

The pair is the lowest two usable addresses: never the network or broadcast address, the gateway,
an address that the cloud already uses (the exclusion list), a member's, a backend's, or another reservation's.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import msgspec

from controlplane.cluster.addressing.addresses import Net, address_text, address_value, network
from controlplane.cluster.decision import Decision, DecisionContext, definition_of
from controlplane.cluster.decisions.entries import by_address
from controlplane.cluster.decisions.holders import withdrawn
from controlplane.cluster.decisions.overlap import settle, subnet_conflicts
from controlplane.cluster.state import ClusterState, asker_clb
from events.errors import BadRequest, Refused
from events.protocol.commands import ReleaseClb, ReserveClb
from events.subjects import check_label
from events.types import ClbAddress, ClbRefused, ClbReleased, ClbReserved

EXCLUSIONS_LIMIT = 4096


def reserve(state: ClusterState, command: ReserveClb, now: datetime, context: DecisionContext) -> Decision:
    """Reserve the pair. Idempotent by name: the same request again answers with the same pair.

    Raises BadRequest(bad_request).
    """
    del now
    definition_of(state)
    check_label(command.reservation, "reservation")
    _check_purposes(command)
    subnet = network(command.subnet, "CLB subnet")
    gateway = _gateway(command.gateway, subnet)
    if len(command.exclude) > EXCLUSIONS_LIMIT:
        raise BadRequest(
            "bad_request",
            f"{len(command.exclude):,} exclusions; at most {EXCLUSIONS_LIMIT:,} (a CIDR excludes many at once)",
            field="exclude",
        )
    excluded = _excluded(command.exclude)
    existing = state.clb.get(command.reservation)
    if existing is not None:
        return _again(command, existing, gateway, excluded)
    accepted, refused = settle(subnet_conflicts(subnet, state, context), command.overrides, state.name)
    if refused is not None:
        return _refuse(state, command, refused.refused())
    usable, pair = _pick(state, subnet, gateway, excluded)
    if len(pair) < 2:
        return _refuse(state, command, _too_small(state, subnet, gateway, excluded, usable))
    first, second = (
        ClbAddress(purpose=purpose, address=address_text(value))
        for purpose, value in zip(command.purposes, pair, strict=True)
    )
    event = ClbReserved(
        name=command.reservation,
        subnet=str(subnet),
        addresses=(first, second),
        gateway=address_text(gateway) if gateway is not None else "",
        excluded=command.exclude,
        provider=command.provider,
    )
    return Decision((*accepted, event), _described(event, _warnings(state, subnet)))


def _check_purposes(command: ReserveClb) -> None:
    for purpose in command.purposes:
        check_label(purpose, "purpose")
    if command.purposes[0] == command.purposes[1]:
        raise BadRequest(
            "bad_request",
            f"both addresses are to serve {command.purposes[0]!r}: name two different purposes",
            field="purposes",
        )
    check_label(command.provider, "provider")


def _gateway(given: str, subnet: Net) -> int | None:
    """The subnet's router: as given, else its first host address; None where the subnet has no hosts."""
    if not given:
        return subnet.first + 1 if subnet.size >= 4 else None
    value = address_value(given)
    if value is None or not subnet.has(value):
        raise BadRequest(
            "bad_request",
            f"gateway {given[:64]!r} is no address of {subnet}",
            field="gateway",
            subnet=str(subnet),
        )
    return value


def _excluded(exclude: Iterable[str]) -> list[Net]:
    """The exclusion list (addresses and CIDRs) as networks."""
    items: list[Net] = []
    for item in exclude:
        value = address_value(item)
        items.append(Net(value, 1) if value is not None else network(item, "excluded address"))
    return items


def _taken(state: ClusterState, subnet: Net, gateway: int | None, excluded: list[Net]) -> list[Net]:
    """Everything inside the subnet that cannot be reserved, sorted.

    What other reservations were told is in use counts too: it is in use whoever asks.
    """
    told = [item for other in state.clb.values() for item in (*other.excluded, other.gateway) if item]
    excluded = [*excluded, *_excluded(told)]
    taken = [Net(subnet.first, 1), Net(subnet.last, 1), *(n for n in excluded if n.overlaps(subnet))]
    if gateway is not None:
        taken.append(Net(gateway, 1))
    used = [*state.clb_addresses, *(backend.address for backend in state.backends)]
    for node in state.nodes.values():
        used += (node.underlay, node.announced)
    for address in used:
        value = address_value(address)
        if value is not None and subnet.has(value):
            taken.append(Net(value, 1))
    return sorted(taken)


def _pick(state: ClusterState, subnet: Net, gateway: int | None, excluded: list[Net]) -> tuple[int, list[int]]:
    """How many addresses are usable, and the lowest two of them. O(members), not O(addresses)."""
    usable, pair = 0, list[int]()
    position = subnet.first
    end = subnet.first + subnet.size
    for item in [*_taken(state, subnet, gateway, excluded), Net(end, 1)]:
        gap = min(item.first, end) - position
        if gap > 0:
            usable += gap
            pair += range(position, position + min(gap, 2 - len(pair)))
        position = max(position, item.first + item.size)
    return usable, pair


def _too_small(
    state: ClusterState, subnet: Net, gateway: int | None, excluded: list[Net], usable: int
) -> Refused:
    nodes = sum(1 for node in state.nodes.values() if subnet.has(address_value(node.announced) or 0))
    reserved = sum(1 for address in state.clb_addresses if subnet.has(address_value(address) or 0))
    shut_out = sum(
        min(n.last, subnet.last) - max(n.first, subnet.first) + 1 for n in excluded if n.overlaps(subnet)
    )
    plural = "" if usable == 1 else "es"
    router = f"1 the gateway {address_text(gateway)}" if gateway is not None else "none a gateway"
    return Refused(
        "clb_subnet_too_small",
        f"subnet {subnet} has {usable} usable address{plural}, a CLB takes 2: of {subnet.size} addresses "
        f"{min(2, subnet.size)} are network and broadcast, {router}, "
        f"{shut_out} excluded, {nodes} nodes', {reserved} reserved for other CLBs. "
        f"Choose a larger subnet or shorten the exclusion list",
        subnet=str(subnet),
        usable=usable,
        excluded=shut_out,
        nodes=nodes,
        reserved=reserved,
    )


def _again(command: ReserveClb, existing: ClbReserved, gateway: int | None, excluded: list[Net]) -> Decision:
    """The name is taken: the same request gets the same pair, another one is refused."""
    purposes = tuple(item.purpose for item in existing.addresses)
    differences = [
        f"{what} {have} (asked: {want})"
        for what, have, want in (
            ("subnet", existing.subnet, str(network(command.subnet))),
            ("purposes", "/".join(purposes), "/".join(command.purposes)),
            ("provider", existing.provider, command.provider),
            ("gateway", existing.gateway, address_text(gateway) if gateway is not None else ""),
        )
        if have != want
    ]
    held = {item.address: address_value(item.address) or 0 for item in existing.addresses}
    differences += [
        f"it holds {address}, which the exclusion list names"
        for address, value in held.items()
        if any(net.has(value) for net in excluded)
    ]
    if differences:
        raise Refused(
            "clb_already_reserved",
            f"reservation {existing.name!r} exists with {', '.join(differences)}: release it first "
            f"(isthmus clb release {existing.name} --yes) or choose another name",
            reservation=existing.name,
            differences=differences,
        )
    return Decision((), _described(existing, []))


def _refuse(state: ClusterState, command: ReserveClb, error: Refused) -> Decision:
    """Refuse, and record it once per reservation and cause until it changes."""
    if error.code in state.refusals.get(asker_clb(command.reservation), {}):
        return Decision(refusal=error)
    event = ClbRefused(name=command.reservation, subnet=command.subnet, code=error.code, message=error.message)
    return Decision((event,), refusal=error)


def _warnings(state: ClusterState, subnet: Net) -> list[str]:
    """The provider takes the pair from a subnet of the cluster's VPC; say so when it does not look like one."""
    known = [n for n in state.networks.values() if n.kind in {"vpc", "clb"}]
    if known and not any(network(n.cidr).contains(subnet) for n in known):
        listed = ", ".join(n.cidr for n in known[:4])
        return [f"subnet {subnet} lies in no declared VPC CIDR ({listed})"]
    return []


def _described(event: ClbReserved, warnings: list[str]) -> dict[str, Any]:
    described: dict[str, Any] = msgspec.to_builtins(event)
    return {**described, "warnings": warnings} if warnings else described


def reserved(state: ClusterState, name: str) -> ClbReserved:
    """The reservation of that name. Raises Refused(clb_unknown)."""
    found = state.clb.get(name)
    if found is None:
        listed = ", ".join(sorted(state.clb)[:8]) or "none"
        raise Refused(
            "clb_unknown",
            f"no CLB reservation is named {name[:63]!r}; reserved: {listed}",
            reservation=name[:63],
        )
    return found


def release(state: ClusterState, command: ReleaseClb, now: datetime, context: DecisionContext) -> Decision:
    """Give the pair back. Raises Refused(clb_unknown, clb_in_use)."""
    del now, context
    definition_of(state)
    existing = reserved(state, command.reservation)
    used = by_address(state, {item.address for item in existing.addresses})
    if used:
        raise Refused(
            "clb_in_use",
            f"sources come in by an address of {existing.name!r}: entry {', '.join(used)}. "
            f"Remove it first: `isthmus entry remove {used[0]} --yes`",
            reservation=existing.name,
            entries=used,
        )
    event = ClbReleased(name=existing.name, subnet=existing.subnet, addresses=existing.addresses)
    held = [state.holders[item.address] for item in existing.addresses if item.address in state.holders]
    return Decision((*(withdrawn(h, "released") for h in held), event), msgspec.to_builtins(event))
