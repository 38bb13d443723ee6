"""Counting packets between the lab's pods: every pair once, or streams that run while something happens."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self

from deploy.lab.failures import CheckFailedError
from deploy.lab.reports.report import Check

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploy.lab.machines.pods import Pod
    from deploy.lab.runtime import Lab

PACKETS = 10
FLOW_INTERVAL_MS = 5.0
FLOW_AT_LEAST = 200
"""Packets that each stream sends while a check lasts: a second of traffic, however short the check."""

Answers = dict[str, dict[str, dict[str, Any]]]
"""From pod → to pod → the prober's report."""


class Flows:
    """Streams of numbered packets in both directions, running while the block runs (and FLOW_AT_LEAST long)."""

    def __init__(self, lab: Lab, name: str | None, pairs: Sequence[tuple[Pod, Pod]] = ()) -> None:
        """Across the sites, those of one node where ``name`` says which, and between these ``pairs``."""
        cloud = [pod for pod in lab.pods if site_of(lab, pod.name) == "cloud" and name in (None, pod.node.name)]
        other = [pod for pod in lab.pods if site_of(lab, pod.name) == "external"]
        across = [*zip(cloud, other, strict=False), *zip(other, cloud, strict=False)]
        taken = [source for source, _ in pairs]  # a pod is the source of one stream
        self._pairs = [*(pair for pair in across if pair[0] not in taken), *pairs]
        self.results: list[dict[str, Any]] = []

    async def __aenter__(self) -> Self:
        await asyncio.gather(*(a.start_flow(b.address, interval_ms=FLOW_INTERVAL_MS) for a, b in self._pairs))
        return self

    async def __aexit__(self, *_: object) -> None:
        stopping = (source.stop_flow(at_least=FLOW_AT_LEAST) for source, _ in self._pairs)
        self.results = list(await asyncio.gather(*stopping))

    def judge(self, check: Check) -> None:
        """Whether nothing was lost. Raises CheckFailedError."""
        sent = sum(result["sent"] for result in self.results)
        received = sum(result["received"] for result in self.results)
        silence_ms = max(result["longest_silence_ms"] for result in self.results)
        check.measured["flows"] = {
            "sent": sent,
            "received": received,
            "longest_silence_ms": round(silence_ms, 1),
        }
        if not sent or received != sent:
            lost = ", ".join(
                f"→ {result['target']} numbers {result['lost']} of {result['sent']}"
                for result in self.results
                if result["lost"]
            )
            raise CheckFailedError(f"{sent - received} of {sent} packets were lost meanwhile: {lost}")
        check.detail = (
            f"{received:,} of {sent:,} packets answered in {len(self.results)} streams across the sites, "
            f"longest silence {silence_ms:.0f} ms"
        )


async def probe_all(
    lab: Lab, sources: list[Pod] | None = None, *, interval_ms: float = 1, in_turn: bool = False
) -> Answers:
    """Numbered packets from each of `sources` (every pod, by default) to each pod on another node; with
    ``in_turn`` one source after the other.

    Cancelled, probers send what they were told to send; their reports are dropped.
    """

    async def probe(source: Pod) -> dict[str, dict[str, Any]]:
        targets = [pod for pod in lab.pods if pod.node.name != source.node.name]
        addresses = [pod.address for pod in targets]
        reports = await source.probe(addresses, count=PACKETS, interval_ms=interval_ms)
        return {pod.name: answer for pod, answer in zip(targets, reports, strict=True)}

    chosen = lab.pods if sources is None else sources
    if in_turn:
        return {source.name: await probe(source) for source in chosen}
    answers = await asyncio.gather(*(probe(source) for source in chosen))
    return {source.name: answer for source, answer in zip(chosen, answers, strict=True)}


def judge_pairs(check: Check, results: Answers) -> None:
    """Whether every pair heard each other. Raises CheckFailedError."""
    pairs = [
        (source, target, answer) for source, answers in results.items() for target, answer in answers.items()
    ]
    sent = sum(answer["sent"] for _, _, answer in pairs)
    received = sum(answer["received"] for _, _, answer in pairs)
    check.measured |= {"pairs": len(pairs), "sent": sent, "received": received}
    broken = [
        f"{source} → {target} {answer['received']}/{answer['sent']}"
        for source, target, answer in pairs
        if answer["received"] != answer["sent"]
    ]
    if broken or not pairs:
        raise CheckFailedError(f"{len(broken)} of {len(pairs)} pairs lost packets: {', '.join(broken[:8])}")
    check.detail = f"{len(pairs)} pairs, {received} of {sent} packets answered"


def site_of(lab: Lab, pod: str) -> str:
    return next(node.node.kind for node in lab.nodes.values() if pod in node.node.pods)


def pod_in(lab: Lab, kind: str) -> Pod:
    return next(pod for pod in lab.pods if site_of(lab, pod.name) == kind)


def short(pod: str) -> str:
    return pod.replace("cloud-", "c").replace("idc-", "i").replace("-", "")
