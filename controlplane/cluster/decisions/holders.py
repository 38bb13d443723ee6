"""Which gateway holds which CLB address: a deterministic choice, spread, sticky, and never two.

An address is withdrawn and assigned in one atomic batch, so that no reader ever sees two holders. A
holder that is silent, or says that it cannot hold (its link is down, its kernel refuses the rules), is
replaced only by a gateway that is heard and can: without one its packets may well flow, and the address
stays where it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Literal

from controlplane.cluster.decision import EMPTY_CONTEXT, AssignHolders, Decision, DecisionContext
from controlplane.cluster.state import ClusterState
from events.protocol.clb import Holder
from events.types import ClbHolderAssigned, ClbHolderWithdrawn, Event

Cause = Literal["left", "unmarked", "silent", "fenced", "released"]

PROVIDER = "gateway"
"""The provider of reservations whose addresses are held by our own gateways."""

SILENCE_S = 3.0
"""A holder that was not heard for so long is replaced. Its agent beats every second."""

REASON_CHARACTERS = 200
UNEXPLAINED = "it said that it cannot hold addresses"
"""The reason of an agent that gives none: one of an earlier release."""

FRESH_S = 2.0
"""A replacement must have been heard within it: proof that it lives, and that this controller hears at all."""


def assign(state: ClusterState, command: AssignHolders, now: datetime, context: DecisionContext) -> Decision:
    """Give addresses without a holder, and those of a silent or unable one, to gateways that are heard."""
    del context
    if not state.gateways or state.deleted:
        return Decision()
    at = command.at or now
    silent = at - timedelta(seconds=SILENCE_S)
    fresh = at - timedelta(seconds=FRESH_S)
    heard: dict[str, datetime] = {}
    able: set[str] = set()
    unable: dict[str, str] = {}
    for name in state.gateways:
        uid = state.nodes[name].uid
        heard[name] = command.last_seen.get(uid, command.watching_since)
        if uid not in command.last_seen or heard[name] < fresh:
            continue
        if uid in command.able:
            able.add(name)
        elif uid in command.unable:
            unable[name] = (command.unable[uid] or UNEXPLAINED)[:REASON_CHARACTERS]
    load = _load(state)
    events: list[Event] = []
    for reservation, purpose, address in gateway_addresses(state):
        if len(events) + 2 > command.limit:
            break
        holder = state.holders.get(address)
        reason = unable.get(holder.node, "") if holder is not None else ""
        if holder is not None and not reason and heard.get(holder.node, silent) >= silent:
            continue
        chosen = _choose(load, able - {holder.node} if holder else able)
        if chosen is None:
            continue
        if holder is not None:
            events.append(withdrawn(holder, "silent", reason))
            load[holder.node] -= 1
        events.append(_assigned(state, reservation, purpose, address, chosen, holder))
        load[chosen] += 1
    return Decision(tuple(events), {"changed": len(events)})


def hand_over(
    state: ClusterState, node: str, cause: Cause, context: DecisionContext = EMPTY_CONTEXT
) -> list[Event]:
    """Before ``node`` goes: what it holds is withdrawn and given to the other gateways.

    To those that are heard and able, or, if there is none, to those that the log does not call unreachable.
    """
    held = [h for h in state.holders.values() if h.node == node] if state.holders else []
    if not held:
        return []
    load = _load(state)
    others = {name for name in state.gateways if name != node and name not in state.unreachable}
    others = others & context.gateways or others
    events: list[Event] = []
    for holder in sorted(held, key=lambda h: (h.name, h.address)):
        events.append(withdrawn(holder, cause))
        chosen = _choose(load, others)
        if chosen is not None:
            events.append(_assigned(state, holder.name, holder.purpose, holder.address, chosen, holder))
            load[chosen] += 1
    return events


def gateway_addresses(state: ClusterState) -> Iterator[tuple[str, str, str]]:
    """Reservation, purpose and address of everything that gateways are to hold, in a fixed order."""
    for name in sorted(state.clb):
        entry = state.clb[name]
        if entry.provider == PROVIDER:
            for item in entry.addresses:
                yield name, item.purpose, item.address


def withdrawn(holder: Holder, cause: Cause, reason: str = "") -> ClbHolderWithdrawn:
    """The event by which a holder loses its address."""
    return ClbHolderWithdrawn(
        name=holder.name,
        purpose=holder.purpose,
        address=holder.address,
        node=holder.node,
        uid=holder.uid,
        epoch=holder.epoch,
        cause=cause,
        reason=reason,
    )


def _load(state: ClusterState) -> Counter[str]:
    return Counter(holder.node for holder in state.holders.values())


def _choose(load: Mapping[str, int], among: Collection[str]) -> str | None:
    """The gateway that holds the fewest addresses; of equals the first by name."""
    return min(among, key=lambda name: (load.get(name, 0), name), default=None)


def _assigned(  # noqa: PLR0917  an event's fields
    state: ClusterState, reservation: str, purpose: str, address: str, node: str, before: Holder | None
) -> ClbHolderAssigned:
    return ClbHolderAssigned(
        name=reservation,
        purpose=purpose,
        address=address,
        node=node,
        uid=state.nodes[node].uid,
        previous=before.node if before else "",
        previous_epoch=before.epoch if before else 0,
    )
