"""The controller's metrics say what is: scraped as Prometheus would, after each kind of thing happened."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from events.errors import Refused
from events.protocol.commands import AppendCidr, ReleaseClb
from events.status import AgentStatus
from tests.console.rig import Rig, join, leave, running


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with running(tmp_path) as rig:
        await rig.define(5)
        yield rig


async def scraped(rig: Rig) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Name and own labels → value. Every family has a help text and a type."""
    await asyncio.sleep(0)  # the answers of one group are counted in the next turn of the loop
    found: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    for family in text_string_to_metric_families(rig.source.observability.telemetry.prometheus().decode()):
        assert family.documentation.endswith((".", "metadata")), family.name
        assert family.type in {"counter", "gauge", "histogram"}, family.name
        for sample in family.samples:
            own = {
                k: v for k, v in sample.labels.items() if k not in {"isthmus_cluster", "service_instance_id"}
            }
            found[sample.name, frozenset(own.items())] = sample.value
    return found


def of(found: dict[tuple[str, frozenset[tuple[str, str]]], float], name: str, **labels: str) -> float | None:
    return found.get((name, frozenset(labels.items())))


async def test_a_member_that_was_never_heard_is_what_the_watermark_waits_for(rig: Rig) -> None:
    await rig.fill(5)
    before = await scraped(rig)
    assert of(before, "isthmus_watermark_lag") == 0
    assert of(before, "isthmus_agents", state="ready") == 5
    assert {
        of(before, "isthmus_agents", state=s) for s in ("unreported", "unreachable", "degraded", "silent")
    } == {0}
    await rig.send(join(6))
    after = await scraped(rig)
    assert of(after, "isthmus_agents", state="unreported") == 1
    assert of(after, "isthmus_watermark") == 0
    assert of(after, "isthmus_watermark_lag") == rig.replica.state.sequence


async def test_an_agent_whose_node_was_taken_out_is_not_waited_for_however_long_it_reports(rig: Rig) -> None:
    await rig.fill(3)
    node = rig.replica.state.nodes["vm-1"]
    await rig.send(leave(rig, 1))
    status = AgentStatus(node=node.name, uid=node.uid, applied=0, sent_at=datetime.now(UTC))
    for applied in (5, 6):
        rig.liveness.observe(msgspec.structs.replace(status, applied=applied), state=rig.replica.state)
    await rig.send(join(4))
    rig.report_all()
    measured = rig.source.latest_convergence(1)[0]
    assert measured.expected == measured.applied == 2
    assert measured.last is not None


async def test_a_look_that_finds_nothing_is_no_command_and_one_that_decides_something_is(rig: Rig) -> None:
    await rig.fill(2)
    for _ in range(3):
        await rig.ticker.tick()
    found = await scraped(rig)
    assert not [name for name, labels in found if ("command", "mark-liveness") in labels]
    await rig.send(leave(rig, 1))
    rig.report_all()
    await rig.ticker.tick()
    found = await scraped(rig)
    assert of(found, "isthmus_commands_total", command="advance-drains", code="ok") == 1
    assert of(found, "isthmus_events_total", type="range.quarantined.v1") == 1


async def test_counters_and_pool_follow_joins_leaves_and_refusals(rig: Rig) -> None:
    await rig.fill(5)
    await rig.send(leave(rig, 2))
    await rig.send(AppendCidr(cidr="172.18.0.0/16"))
    for _ in range(3):
        with pytest.raises(Refused):
            await rig.send(ReleaseClb(reservation="nothing"))
    found = await scraped(rig)
    assert of(found, "isthmus_events_total", type="node.joined.v1") == 5
    assert of(found, "isthmus_events_total", type="node.left.v1") == 1
    assert of(found, "isthmus_refusals_total", code="clb_unknown") == 3
    assert of(found, "isthmus_commands_total", command="release-clb", code="clb_unknown") == 3
    pool = {
        (cidr, state): of(found, "isthmus_pool_ranges", cidr=cidr, state=state)
        for cidr in ("172.16.0.0/16", "172.18.0.0/16")
        for state in ("allocated", "draining", "quarantined", "free")
    }
    assert pool == {
        ("172.16.0.0/16", "allocated"): 4, ("172.16.0.0/16", "draining"): 1,
        ("172.16.0.0/16", "quarantined"): 0, ("172.16.0.0/16", "free"): 1015,
        ("172.18.0.0/16", "allocated"): 0, ("172.18.0.0/16", "draining"): 0,
        ("172.18.0.0/16", "quarantined"): 0, ("172.18.0.0/16", "free"): 1024,
    }  # fmt: skip
    assert of(found, "isthmus_pool_capacity") == 2044
    assert of(found, "isthmus_pool_cursor") == 5
    assert (
        of(found, "isthmus_log_sequence") == of(found, "isthmus_chain_verified") == rig.replica.state.sequence
    )


async def test_no_series_names_a_node(rig: Rig) -> None:
    await rig.fill(5)
    rig.report_all()
    assert not [
        labels
        for _, labels in (await scraped(rig))
        for _, value in labels
        if value.startswith(("vm-", "idc-", "uid-"))
    ]
