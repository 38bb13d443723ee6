"""What is said when a log has nothing about the thing asked about: what it does know, and the nearest name.

Looked up only then, and in a bounded part of the log: a suggestion need not be complete.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from ipaddress import IPv4Address, IPv4Interface

from controlplane.cluster.state import ClusterState
from events.errors import IsthmusError, Refused
from events.types import EVENT_TYPES
from replay.history import History
from replay.queries.states import base
from replay.queries.who import plan_of


async def unknown(history: History, kind: str, name: str, until: int | None = None) -> Refused:
    """The refusal for a ``node``, ``range`` (CIDR), ``clb``, ``cluster``, … that the log has nothing about."""
    end = history.end if until is None else until
    message = f"{history.source} has nothing about {kind} {name!r} in events {history.start + 1} to {end}"
    known = await _before(history, kind, name)
    if known:
        message += f"; {known}"
    else:
        message += hint(await suggestions(history, kind, name))
    return Refused("not_in_history", message, kind=kind, name=name)


async def suggestions(history: History, kind: str, name: str) -> list[str]:
    """Names like ``name`` that the log does speak of, the nearest first."""
    if kind == "range":
        return await _ranges(history, name)
    if kind in ("node", "clb", "entry"):
        return get_close_matches(name, await history.names(kind), n=3)
    return [history.cluster] if kind == "cluster" and name != history.cluster else []


def types_like(prefixes: Iterable[str]) -> list[str]:
    """For each prefix with which no known event type begins: the types that are most like it."""
    full = [event.type_name() for event in EVENT_TYPES]
    plain = [name.rsplit(".", 1)[0] for name in full]
    aggregates = sorted({name.split(".")[0] for name in full})
    return [
        found
        for prefix in prefixes
        if not any(name.startswith(prefix) for name in full)
        for found in get_close_matches(prefix, [*aggregates, *plain, *full], n=2)
    ]


async def _ranges(history: History, text: str) -> list[str]:
    """The range that holds the address that somebody wrote in place of a CIDR, or with another prefix."""
    try:
        address = IPv4Address(IPv4Interface(text.strip()).ip)
        plan = await plan_of(history, history.end, base(history) if history.start else None)
    except (ValueError, IsthmusError):
        return []
    cidr = plan.range_of(address) if plan is not None else None
    return [cidr] if cidr and cidr != text.strip() else []


async def _before(history: History, kind: str, name: str) -> str:
    """What a capsule's state says of the thing."""
    if not history.start or history.base is None:
        return ""
    state: ClusterState = base(history)
    if kind == "node" and name in state.nodes:
        node, owned = state.nodes[name], state.owned.get(name)
        held = f", with {owned.cidr} since event {owned.epoch}" if owned else ""
        return f"it was a member before them, since event {node.joined}{held}"
    if kind == "range":
        found = next((held for held in state.ranges.values() if held.cidr == name), None)
        if found is not None:
            phase = state.phase_of(found.index)
            return f"before them it was {phase}, node {found.node}, since event {found.epoch}"
    if kind == "clb" and name in state.clb:
        return f"before them it was reserved in {state.clb[name].subnet}"
    if kind == "entry" and name in state.entries:
        return f"it was there before them, since event {state.entries[name].since}"
    return ""


def hint(names: list[str]) -> str:
    """What to put behind a message about a name that is none; nothing without names."""
    return f": did you mean {' or '.join(names)}?" if names else ""
