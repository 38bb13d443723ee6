"""Which pod had an address at a moment, by what its node said: beside the log, so with how sure that is.

Facts of pods are no events: controllers keep them for a while (:mod:`events.protocol.pods`), and archives carry
what was kept when they were made. Pure.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal, Protocol

import msgspec

from events.protocol.pods import Certainty, NodeFact, PodsView

State = Literal["known", "none", "too old", "not kept", "not at hand"]


class PodAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """``state``: a pod is ``known``; ``none`` had it by what the node said; or why nobody can say.

    ``began`` and ``ended`` say how sure the times are. Times are the node's own clock.
    """

    state: State
    note: str = ""
    namespace: str = ""
    name: str = ""
    uid: str = ""
    node: str = ""
    container: str = ""
    since: datetime | None = None
    began: Certainty = "found"
    until: datetime | None = None
    ended: Certainty = "found"


def not_at_hand(why: str) -> PodAnswer:
    """Nobody could be asked."""
    return PodAnswer(state="not at hand", note=why)


class Holder(Protocol):
    """Whose range an address was then."""

    @property
    def node(self) -> str: ...
    @property
    def uid(self) -> str: ...
    @property
    def epoch(self) -> int: ...


def pod_at(view: PodsView, holding: Holder, moment: datetime) -> PodAnswer:
    """The pod that had the address at ``moment``, among facts of the node whose range it was then."""
    if not view.kept:
        return PodAnswer(state="not kept", note="no node of this cluster has told of its pods yet")
    last: dict[tuple[object, ...], NodeFact] = {}
    for each in view.facts:
        if (each.node, each.uid, each.fact.epoch) == (holding.node, holding.uid, holding.epoch):
            last[each.fact.key, each.fact.since] = each
    then = [
        each
        for each in last.values()
        if each.fact.since <= moment and (each.fact.until is None or moment < each.fact.until)
    ]
    if then:
        found = max(then, key=lambda each: each.fact.since)
        fact = found.fact
        return PodAnswer(
            state="known",
            note="" if fact.pod.name else "its name was not told: the runtime gave none, or the agent was away",
            namespace=fact.pod.namespace,
            name=fact.pod.name,
            uid=fact.pod.uid,
            node=found.node,
            container=fact.container,
            since=fact.since,
            began=fact.sure,
            until=fact.until,
            ended=fact.until_sure,
        )
    if view.since is None or moment < view.since:
        return PodAnswer(state="too old", note="what is kept of pods begins later", since=view.since)
    return PodAnswer(state="none", note=f"{holding.node} told of no pod with this address then")
