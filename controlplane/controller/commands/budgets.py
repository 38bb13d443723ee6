"""How much one node may ask for: what its subject brings beyond that is refused, and said as a condition.

Each node has its own token buckets, so that a site of a thousand nodes that joins at once is served, and one
node that floods is not. They count by the node that the subject names, which its credentials prove; operators
are not counted. They are in the memory of the leading controller and full when it begins to lead.

=============  ====================================================================  ==============
commands       requests of any kind, answered or not                                 60, then 1 / s
memberships    joinings as another installation, and leavings                        10, then 1 / 5 min
moves          changes of the node's address that were written                       30, then 1 / 30 s
health         changes of backends' health that were written                         1,000, then 5 / s
pods           facts of pods, taken or refused                                       2,000, then 5 / s
=============  ====================================================================  ==============

Only what is written counts for the last three: a joining that is repeated, or refused because no range is free,
costs nothing but the request.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from controlplane.cluster.state import ClusterState
from events.errors import IsthmusError, Overloaded
from events.protocol.commands import ChangeUnderlay, Command, CommandReply, JoinNode, LeaveNode, ReportHealth
from events.protocol.queries import Condition

NODES_MAX = 50_000
"""Nodes that are counted; the one that asked least lately gives way (its buckets are full again by then)."""
SHOWN_S = 300.0
"""How long after the last refusal the condition is shown."""
SHOWN = 5


class Budget(NamedTuple):
    """So many at once, and one more every ``every_s`` seconds."""

    burst: int
    every_s: float


BUDGETS = {
    "commands": Budget(60, 1.0),
    "memberships": Budget(10, 300.0),
    "moves": Budget(30, 30.0),
    "health": Budget(1000, 0.2),
    "pods": Budget(2000, 0.2),
}


_Buckets = dict[str, float]
"""One node's buckets: kind → when it will be full again (seconds, monotonic); without an entry it is full."""


class NodeBudgets:
    """The buckets of all nodes."""

    def __init__(self, state: Callable[[], ClusterState]) -> None:
        self._state = state
        self._nodes: OrderedDict[str, _Buckets] = OrderedDict()
        self._refused: OrderedDict[str, tuple[float, str]] = OrderedDict()  # node → when last, and what

    def spend(self, node: str, command: Command) -> str:
        """Count a request on the node's subject; the kind that :meth:`settle` gives back if nothing is written.

        Raises Overloaded(overloaded): the request was not taken, and repeating it later is safe.
        """
        known, now = self._of(node), time.monotonic()
        kind = self._kind(node, command)
        if not known:  # of all that it may ask for it has spent nothing: nearly always, a node joins once
            known["commands"] = now + BUDGETS["commands"].every_s
            if kind:
                known[kind] = now + BUDGETS[kind].every_s
            return kind
        self._take(known, node, "commands", now)
        if kind:
            self._take(known, node, kind, now)
        return kind

    def spend_facts(self, node: str, count: int) -> None:
        """Count a report of pods. Raises Overloaded(overloaded): nothing of it was taken."""
        known, now = self._of(node), time.monotonic()
        self._take(known, node, "commands", now)
        for _ in range(count):
            self._take(known, node, "pods", now)

    def settle(self, node: str, kind: str, outcome: CommandReply | IsthmusError) -> None:
        """The outcome of a request is known: one that wrote nothing gets back what it had been counted as."""
        wrote = (
            isinstance(outcome, CommandReply) and outcome.events and not (outcome.duplicate or outcome.dry_run)
        )
        known = self._nodes.get(node)
        if kind and not wrote and known is not None and kind in known:
            known[kind] -= BUDGETS[kind].every_s

    def exceeded(self, node: str, what: str) -> None:
        """Something else of this node (its spans, its reports) was more than is taken."""
        self._refuse(node, what, time.monotonic())

    def _refuse(self, node: str, what: str, now: float) -> None:
        self._refused[node] = now, what
        self._refused.move_to_end(node)
        if len(self._refused) > NODES_MAX:
            self._refused.popitem(last=False)

    def _of(self, node: str) -> _Buckets:
        known = self._nodes.get(node)
        if known is None:
            known = self._nodes[node] = {}
            if len(self._nodes) > NODES_MAX:
                self._nodes.popitem(last=False)
        else:
            self._nodes.move_to_end(node)
        return known

    def conditions(self) -> list[Condition]:
        """Who was refused for asking too much, a short while ago. O(nodes that ever were)."""
        now = time.monotonic()
        over = [f"{node} ({what})" for node, (at, what) in self._refused.items() if now - at <= SHOWN_S]
        if not over:
            return []
        more = f" and {len(over) - SHOWN:,} more" if len(over) > SHOWN else ""
        return [
            Condition(
                code="node_over_budget",
                severity="warning",
                message=f"more than a node needs came from {', '.join(sorted(over)[:SHOWN])}{more}; "
                f"what is beyond is refused",
                help="isthmus credentials revoke node NODE --yes",
            )
        ]

    def _kind(self, node: str, command: Command) -> str:
        if isinstance(command, JoinNode):
            member = self._state().nodes.get(node)
            if member is None or member.uid != command.uid:
                return "memberships"
            return "moves"
        if isinstance(command, ChangeUnderlay):
            return "moves"
        if isinstance(command, ReportHealth):
            return "health"
        if isinstance(command, LeaveNode):
            return "memberships"
        return ""

    def _take(self, known: _Buckets, node: str, kind: str, now: float) -> None:
        budget, full_at = BUDGETS[kind], known.get(kind)
        if full_at is None or full_at <= now:  # nearly always: a node joins once
            known[kind] = now + budget.every_s
            return
        left = budget.burst - (full_at - now) / budget.every_s
        if left < 1.0:
            self._refuse(node, kind, now)
            wait_s = (1.0 - left) * budget.every_s
            raise Overloaded(
                "overloaded",
                f"node {node} has used up its {kind} (at most {budget.burst} at once, then one every "
                f"{budget.every_s:g} s): ask again in {wait_s:.0f} s",
                node=node,
                budget=kind,
                retry_after_s=round(wait_s, 1),
            )
        known[kind] = full_at + budget.every_s
