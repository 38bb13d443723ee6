"""Which pod had an address at a moment, of what its node told."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from controlplane.controller.agents.pod_answer import pod_at
from events.protocol.pods import NodeFact, PodFact, PodName, PodsView
from replay.queries.who import Holding

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
HOLDING = Holding(node="a", uid="u", epoch=7, range="172.16.0.0/26")


def told(name: str, since: int, until: int | None = None, *, epoch: int = 7, uid: str = "u") -> NodeFact:
    fact = PodFact(
        address="172.16.0.2", container=f"c-{name}", interface="eth0", epoch=epoch, since=at(since),
        pod=PodName(namespace="shop", name=name, uid="p"), until=at(until) if until is not None else None,
    )  # fmt: skip
    return NodeFact(node="a", uid=uid, fact=fact)


def at(minutes: int) -> datetime:
    return NOON + timedelta(minutes=minutes)


def test_the_pod_of_the_moment_is_named_and_its_end_counts() -> None:
    facts = (
        told("one", 0),
        told("one", 0, 10),
        told("two", 12),
        told("other", 0, epoch=3),
        told("x", 0, uid="v"),
    )
    view = PodsView(kept=True, since=at(-60), facts=facts)
    assert [pod_at(view, HOLDING, at(minute)).name for minute in (0, 5, 10, 11, 12, 500)] == [
        "one", "one", "", "", "two", "two",
    ]  # fmt: skip
    first = pod_at(view, HOLDING, at(5))
    assert (first.state, first.namespace, first.uid, first.until) == ("known", "shop", "p", at(10))
    assert pod_at(view, HOLDING, at(11)).state == "none"


def test_what_nobody_can_say_is_said_to_be_unknown() -> None:
    assert pod_at(PodsView(kept=False), HOLDING, NOON).state == "not kept"
    assert pod_at(PodsView(kept=True), HOLDING, NOON).state == "too old"
    assert pod_at(PodsView(kept=True, since=at(1), facts=(told("one", 3),)), HOLDING, NOON).state == "too old"
