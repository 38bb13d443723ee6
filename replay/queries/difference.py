"""``diff``: what changed between two points: members, ranges, reservations, networks, the plan."""

from __future__ import annotations

from typing import Any

import msgspec

from controlplane.cluster.state import ClusterState
from replay.history import Point, Progress
from replay.queries.states import States, advance


class StateChange(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that differs. ``before`` is empty for what appeared, ``after`` for what vanished."""

    kind: str
    name: str
    what: str
    before: dict[str, Any] = {}
    after: dict[str, Any] = {}


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """``changes`` ordered by kind and name; ``counts`` are each side's numbers."""

    a: Point
    b: Point
    changes: list[StateChange]
    counts: dict[str, tuple[int, int]]


Picture = dict[str, dict[str, dict[str, Any]]]


async def difference(states: States, a: Point, b: Point, progress: Progress | None = None) -> Difference:
    """Compare the states at ``a`` and ``b``; ``a`` may be the later one, and is then still the left side."""
    early, late = (a, b) if a.sequence <= b.sequence else (b, a)
    state, origin = await states.at(early.sequence, progress)
    first, first_counts = picture(state), counts(state)
    if origin.method == "fold":
        await advance(states.history, state, late.sequence, progress)
    else:
        state, _ = await states.at(late.sequence, progress)
    second, second_counts = picture(state), counts(state)
    if early is b:
        first, second, first_counts, second_counts = second, first, second_counts, first_counts
    return Difference(
        a=a,
        b=b,
        changes=compare(first, second),
        counts={name: (first_counts[name], second_counts[name]) for name in first_counts},
    )


def compare(first: Picture, second: Picture) -> list[StateChange]:
    """The changes from one picture to another."""
    found: list[StateChange] = []
    for kind in first:
        before, after = first[kind], second[kind]
        for name in sorted(before.keys() | after.keys()):
            old, new = before.get(name), after.get(name)
            if old == new:
                continue
            if old is None or new is None:
                what = "appeared" if old is None else "vanished"
                found.append(StateChange(kind=kind, name=name, what=what, before=old or {}, after=new or {}))
                continue
            fields = [key for key in {**old, **new} if old.get(key) != new.get(key)]
            found.append(
                StateChange(
                    kind=kind,
                    name=name,
                    what="changed",
                    before={key: old.get(key) for key in fields},
                    after={key: new.get(key) for key in fields},
                )
            )
    return found


def counts(state: ClusterState) -> dict[str, int]:
    """The state in numbers."""
    return {
        "nodes": len(state.nodes),
        "external": state.external,
        "unreachable": len(state.unreachable),
        "allocated": len(state.owned),
        "draining": len(state.draining),
        "quarantined": len(state.quarantined),
        "free": state.pool.free,
        "capacity": state.pool.capacity,
        "cursor": state.pool.cursor,
        "fenced": len(state.fenced),
        "reservations": len(state.clb),
        "entries": len(state.entries),
    }


def picture(state: ClusterState) -> Picture:
    """The state as plain values by kind and name, detached from it. O(n)."""
    ranges: dict[str, dict[str, Any]] = {}
    for index, held in state.ranges.items():
        ranges[held.cidr] = {
            "phase": state.phase_of(index),
            "node": held.node,
            "uid": held.uid,
            "epoch": held.epoch,
        }
    nodes: dict[str, dict[str, Any]] = {}
    for name, node in state.nodes.items():
        owned = state.owned.get(name)
        nodes[name] = {
            "uid": node.uid,
            "kind": node.kind,
            "site": node.site,
            "underlay": node.underlay,
            "announced": node.announced,
            "range": owned.cidr if owned else "",
            "reachable": name not in state.unreachable,
        }
    return {
        "cluster": {
            state.name: {
                "defined": state.definition is not None,
                "deleted": bool(state.deleted),
                "cidrs": ", ".join(cidr.cidr for cidr in state.cidrs),
            }
        },
        "node": nodes,
        "range": ranges,
        "clb": {
            name: {"subnet": r.subnet, "addresses": ", ".join(item.address for item in r.addresses)}
            for name, r in state.clb.items()
        },
        "entry": {
            name: {"sources": ", ".join(entry.sources), "address": entry.address}
            for name, entry in state.entries.items()
        },
        "network": {cidr: {"kind": net.kind, "name": net.name} for cidr, net in state.networks.items()},
    }
