"""What a person should know about the present state: exhaustion, silence, drains that wait, exceptions.

Conditions are computed, never stored: they go away with their cause. Their codes are listed in
:data:`events.protocol.queries.CONDITIONS`.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from itertools import combinations, islice

from controlplane.cluster.decisions.exhaustion import earliest_free
from controlplane.cluster.decisions.holders import gateway_addresses
from controlplane.cluster.decisions.time import laggards
from controlplane.cluster.mesh.findings import sentence
from controlplane.cluster.state import ClusterState
from events.errors import IsthmusError
from events.protocol.queries import Condition

LOW_FRACTION = 0.1
"""Free fraction of the pool under which it counts as low."""

SHOWN = 5


def conditions(
    state: ClusterState, applied: Mapping[str, int], absent: Container[str] = frozenset()
) -> Iterator[Condition]:
    """All conditions of the state; ``applied`` is uid → applied sequence, as the agents reported.

    ``absent`` are uids of members that have never reported.
    """
    if state.definition is None:
        return
    if state.deleted:
        yield Condition(code="cluster_deleted", severity="info", message=f"deleted at sequence {state.deleted}")
        return
    yield from _pool(state)
    yield from _drains(state, applied, absent)
    yield from _encryption(state, applied)
    yield from _nat(state)
    yield from _members(state)
    for override in state.overrides.values():
        yield Condition(
            code="conflict_overridden",
            severity="warning",
            message=f"{override.code}: {override.ours} overlaps {override.theirs}, accepted because: "
            f"{override.reason}",
        )


def poisoned(halted: IsthmusError) -> Condition:
    """That the fold stands still before the event which the error names."""
    return Condition(
        code="log_poisoned",
        severity="critical",
        message=f"this is the state before an event that cannot be followed, commands are refused: "
        f"{halted.message}",
    )


def kernel_conditions(differing: Iterable[tuple[str, tuple[str, ...]]]) -> Iterator[Condition]:
    """Nodes, each with the rows its agent names, whose kernel is not as the log says."""
    found = sorted(differing)
    if found:
        shown = "; ".join(f"{node}{f' ({rows[0]})' if rows else ''}" for node, rows in found[:SHOWN])
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        yield Condition(
            code="kernel_differs",
            severity="warning",
            message=f"kernel rows differ from the log on {shown}{more}",
        )


def _pool(state: ClusterState) -> Iterator[Condition]:
    free, capacity = state.pool.free, state.capacity
    numbers = (
        f"{len(state.owned):,} allocated, {len(state.draining):,} draining, "
        f"{len(state.quarantined):,} quarantined of {capacity:,}"
    )
    if free == 0:
        moment = earliest_free(state)
        when = f"the next range is free at {moment.isoformat(timespec='seconds')}" if moment else "none is due"
        yield Condition(
            code="pool_exhausted", severity="critical", message=f"no free range ({numbers}); {when}"
        )
    elif free < capacity * LOW_FRACTION:
        yield Condition(
            code="pool_low", severity="warning", message=f"{free:,} of {capacity:,} ranges free ({numbers})"
        )
    refused = [asker.removeprefix("node/") for asker in state.refusals if asker.startswith("node/")]
    if refused:
        codes = sorted({code for asker in refused for code in state.refusals[f"node/{asker}"]})
        yield Condition(
            code="joins_refused",
            severity="warning",
            message=f"{len(refused):,} nodes were refused a range ({_some(refused)}): {', '.join(codes)}",
        )


def _drains(state: ClusterState, applied: Mapping[str, int], absent: Container[str]) -> Iterator[Condition]:
    if not state.draining:
        return
    oldest = next(iter(state.draining.values()))
    waiting = laggards(state, applied, oldest, SHOWN + 1, absent)
    silent = [name for name in waiting if name in state.unreachable][:SHOWN]
    ends = ""
    if silent:
        owners = _some(f"{held.cidr} of {held.node}" for held in map(state.ranges.__getitem__, state.draining))
        commands = "; ".join(f"isthmus node fence {name} --yes" for name in silent)
        ends = (
            f". {_some(silent)} {'does' if len(silent) == 1 else 'do'} not report, and {owners} cannot be "
            f"given to anybody before; if such a machine is gone: {commands}"
        )
    if waiting:
        yield Condition(
            code="drain_waiting",
            severity="warning",
            message=f"{_ranges(len(state.draining))} for agents to apply sequence {oldest:,} and later: "
            f"{_some(waiting)}{ends}",
        )


def _encryption(state: ClusterState, applied: Mapping[str, int]) -> Iterator[Condition]:
    here = state.encrypts
    if here.settled:
        return
    waiting = laggards(state, applied, here.since, SHOWN + 1)
    yield Condition(
        code="encryption_waiting",
        severity="warning",
        message=f"on the way to encrypt {here.scope!r}: {here.within_sites} within sites, {here.between_sites} "
        f"between sites since event {here.since:,}"
        + (
            f"; the next step waits for agents to apply it: {_some(waiting)}. If such a machine is gone: "
            f"isthmus node remove NODE"
            if waiting
            else ""
        ),
    )


def _nat(state: ClusterState) -> Iterator[Condition]:
    if not state.behind_nat or any(name not in state.behind_nat for name in state.gateways):
        return
    sites: dict[str, list[str]] = {}
    for name in state.behind_nat:
        sites.setdefault(state.nodes[name].site, []).append(name)
    if len(sites) < 2:
        return
    firsts = [(site, sorted(names)) for site, names in sorted(sites.items())]
    pairs = [f"{one[0]} and {other[0]}" for (_, one), (_, other) in combinations(firsts[: SHOWN + 1], 2)]
    counts = ", ".join(f"{len(names)} at site {site or '(none)'!r}" for site, names in firsts[:SHOWN])
    yield Condition(
        code="nat_no_way",
        severity="critical",
        message=f"nodes behind different NATs ({counts}{', …' if len(firsts) > SHOWN else ''}) cannot reach "
        f"each other, such as {_some(pairs)}: no gateway relays. Start the agent of a cloud node with "
        f"--gateway, then: isthmus clb gateway add NODE",
    )


def _members(state: ClusterState) -> Iterator[Condition]:
    if state.nodes and not state.external:
        yield Condition(
            code="no_external_node",
            severity="warning",
            message=f"all {len(state.nodes):,} nodes are cloud nodes; this network mode is for clusters with "
            f"external ones",
        )
    if state.unreachable:
        yield Condition(
            code="nodes_unreachable",
            severity="critical" if 2 * len(state.unreachable) >= len(state.nodes) else "warning",
            message=f"{len(state.unreachable):,} of {len(state.nodes):,} nodes "
            f"{'does' if len(state.unreachable) == 1 else 'do'} not report: {_some(state.unreachable)}",
        )
    if state.lost_paths:
        said = [
            sentence(one.scope, one.a, one.b, one.fault, (one.broken_from, one.broken_to))
            for one in state.lost_paths.values()
        ]
        yield Condition(code="path_lost", severity="critical", message=_some(said))
    yield from _traffic(state)
    if state.external and not state.clb:
        yield Condition(
            code="no_clb",
            severity="info",
            message=f"{state.external:,} external node{'' if state.external == 1 else 's'}, no CLB pair: "
            "isthmus clb reserve NAME --subnet CIDR",
        )


def _traffic(state: ClusterState) -> Iterator[Condition]:
    lost = [
        f"{address} ({purpose})"
        for _, purpose, address in gateway_addresses(state)
        if address not in state.holders
    ]
    if lost:
        yield Condition(
            code="clb_no_holder",
            severity="critical",
            message=f"no gateway holds {_some(lost)}: isthmus clb gateway add NODE",
        )
    ports: dict[str, bool] = {}
    for key, backend in state.backends.items():
        port = f"{key.purpose} {key.protocol} {key.port} of {key.name}"
        ports[port] = ports.get(port, False) or backend.healthy
    dead = [port for port, healthy in ports.items() if not healthy]
    if dead:
        yield Condition(
            code="clb_no_backend", severity="critical", message=f"no healthy backend behind {_some(dead)}"
        )


def _ranges(count: int) -> str:
    return "1 range waits" if count == 1 else f"{count:,} ranges wait"


def _some(names: Iterable[str]) -> str:
    shown = list(islice(names, SHOWN + 1))
    return ", ".join(shown[:SHOWN]) + (", …" if len(shown) > SHOWN else "")
