"""The overlay's checks, one function per promise. Each measures real packets and real kernel tables.

Each returns nothing: it fills in its check, shows its table, or raises CheckFailedError with what it saw
instead. The order matters only where a docstring says so. Cancelled, a check ends its streams of packets and
leaves the lab as it is then: what it stopped stays stopped, and what it asked for may take effect.
"""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise
from typing import TYPE_CHECKING

from deploy.lab.failures import CheckFailedError
from deploy.lab.machines.kernel import vxlan_device
from deploy.lab.traffic.measure import PACKETS, Flows, judge_pairs, pod_in, probe_all, short, site_of
from nodeagent.local_files import read_status

if TYPE_CHECKING:
    from deploy.lab.reports.report import Report
    from deploy.lab.runtime import Lab, LabNode

UDP_AND_IP = 28  # header bytes before a UDP payload (RFC 768, RFC 791 without options)


async def cyclic_ranges(lab: Lab, report: Report) -> None:
    """Ranges were given in cyclic order, and each event carries the cursor after it.

    Raises CheckFailedError.
    """
    with report.stage("Ranges are given cyclically and sequentially") as check:
        members = sorted(lab.members.live.values(), key=lambda member: member.epoch)
        report.table(
            "Ranges in the order they were given",
            ("event", "node", "kind", "range", "index", "cursor after", "underlay", "VTEP MAC"),
            [(m.epoch, m.node, m.kind, m.range, m.index, m.cursor_after, m.underlay, m.mac) for m in members],
            right=("event", "index", "cursor after"),
            drop=("VTEP MAC", "kind"),
        )
        for before, after in pairwise(members):
            if after.index != before.cursor_after:
                raise CheckFailedError(
                    f"{after.node} got index {after.index}, the cursor stood at {before.cursor_after}"
                )
        if members[0].index != 0:
            raise CheckFailedError(f"the first node got index {members[0].index}, not 0")
        check.detail = f"{members[0].range} … {members[-1].range}, cursor now {members[-1].cursor_after}"


async def every_pair(lab: Lab, report: Report, *, name: str) -> None:
    """Every pod reaches every pod on every other node: numbered packets, counted at their return."""
    with report.stage(name) as check:
        await lab.wait_converged()
        results = await probe_all(lab)
        report.table(
            f"{PACKETS} packets from each pod to each pod on another node: how many came back",
            ("from \\ to", *(short(pod.name) for pod in lab.pods)),
            [
                (
                    f"{short(source.name)} {source.address}",
                    *(results[source.name].get(target.name, {}).get("received", "·") for target in lab.pods),
                )
                for source in lab.pods
            ],
            right=tuple(short(pod.name) for pod in lab.pods),
        )  # fmt: skip
        judge_pairs(check, results)
        crossing = [
            answer
            for source, answers in results.items()
            for target, answer in answers.items()
            if site_of(lab, source) != site_of(lab, target)
        ]
        rtts = [answer["rtt_min_ms"] for answer in crossing if answer["rtt_min_ms"] is not None]
        if rtts:
            check.detail += f"; {len(crossing)} pairs cross the sites, round trips from {min(rtts):.2f} ms"


async def full_size(lab: Lab, report: Report) -> None:
    """A packet as large as the device allows crosses the sites unfragmented; one byte more is refused.

    Raises CheckFailedError.
    """
    with report.stage("Packets of full size cross the sites unfragmented") as check:
        source, target = pod_in(lab, "cloud"), pod_in(lab, "external")
        device = await vxlan_device(source.node)
        if device is None:
            raise CheckFailedError(f"{source.node.name} has no VXLAN device")
        payload = int(device["mtu"]) - UDP_AND_IP
        (fits,) = await source.probe([target.address], size=payload, count=PACKETS)
        (larger,) = await source.probe([target.address], size=payload + 1, count=3, timeout_ms=200)
        check.measured = {"mtu": device["mtu"], "fits": fits, "larger": larger}
        if fits["received"] != fits["sent"]:
            raise CheckFailedError(
                f"{fits['received']} of {fits['sent']} packets of {device['mtu']} bytes came back"
            )
        if larger["received"]:
            raise CheckFailedError(
                f"packets of {int(device['mtu']) + 1} bytes came through: they were fragmented"
            )
        check.detail = f"{device['mtu']} bytes inside, {int(device['mtu']) + 50} on the wire"


async def leave(lab: Lab, report: Report, name: str) -> None:
    """A node leaves; every row about it vanishes from every other kernel. Raises CheckFailedError."""
    with report.stage(f"{name} leaves: its rows vanish on all others") as check:
        leaver, member = lab.nodes[name], lab.members.live[name]
        await asyncio.gather(*(pod.delete() for pod in leaver.pods))
        leaver.pods.clear()
        others = [other for other in lab.nodes if other != name]
        before = await lab.rows(others)
        removing = asyncio.create_task(
            lab.isthmus("node", "remove", "--yes", name, "--reason", "the lab takes it out")
        )
        await lab.members.wait_for(lambda: name not in lab.members.live, 10, f"the event that {name} left")
        gone_ms: dict[str, float] = {}

        async def vanished() -> bool:
            rows = await lab.rows([other for other in others if other not in gone_ms])
            for other, now in rows.items():
                if not now.mentions(member):
                    gone_ms[other] = (time.time() - lab.members.left_at[name]) * 1e3
            return len(gone_ms) == len(others)

        await lab.wait_until(vanished, 15, f"the rows of {name} to vanish on {', '.join(others)}")
        await removing
        after = await lab.rows(others)
        report.table(
            f"Rows about {name} ({member.range}) in the others' kernels",
            ("node", "before", "after", "all rows now", "seen gone after"),
            [
                (other, before[other].mentions(member), after[other].mentions(member), len(after[other]),
                 f"≤ {gone_ms[other]:.0f} ms")
                for other in others
            ],
            right=("before", "after", "all rows now", "seen gone after"),
        )  # fmt: skip
        if any(before[other].mentions(member) != 3 for other in others):
            raise CheckFailedError(f"not every node held the three rows of {name} before")
        await lab.retire(leaver)
        check.detail = (
            f"{3 * len(others)} rows removed; timed from the event in the log to our first look without them"
        )


async def newcomer(lab: Lab, report: Report, freed: str) -> None:
    """A new node joins and takes the next range in the cycle, not the freed one. Runs after `leave`.

    Raises CheckFailedError.
    """
    spare = lab.topology.spare
    with report.stage(f"{spare.name} joins: it takes the next range, not the freed one") as check:
        expected = lab.members.ledger.cursor
        node = await lab.start_node(spare)
        member = lab.members.live[spare.name]
        if member.range == freed or member.index != expected:
            raise CheckFailedError(
                f"{spare.name} got {member.range} (index {member.index}); the cursor stood at {expected}"
            )
        await lab.wait_converged()
        await lab.start_pods(node)
        results = await probe_all(lab, node.pods)
        judge_pairs(check, results)
        check.detail = f"{member.range} (freed: {freed}); {check.detail}"


async def agent_killed(lab: Lab, report: Report, name: str) -> None:
    """SIGKILL for an agent, a restart, and meanwhile numbered packets from and to its node: none is lost.

    Raises CheckFailedError.
    """
    with report.stage(f"agent of {name} killed with SIGKILL and restarted: no packet lost") as check:
        victim = lab.nodes[name]
        before = (await lab.rows([name]))[name]
        async with Flows(lab, name) as flows:
            await victim.agent.kill()
            during = (await lab.rows([name]))[name]
            await victim.agent.start()
            await lab.wait_until(lambda: _reports_again(lab, victim), 20, f"the agent of {name} to be back")
        after = (await lab.rows([name]))[name]
        if during != before or after != before:
            raise CheckFailedError("the kernel's rows changed: " + "; ".join(after.differences(before)))
        flows.judge(check)
        check.detail += f"\nthe kernel's {len(before)} rows untouched"


async def bus_stopped(lab: Lab, report: Report) -> None:
    """Bus and controller die by SIGKILL: pods still talk, and after the restart nothing was lost.

    Raises CheckFailedError.
    """
    with report.stage("Bus and controller stopped: pods still reach each other") as check:
        before, members = await lab.rows(), dict(lab.members.live)
        async with Flows(lab, None) as flows:
            await lab.stop_control_plane()
            results = await probe_all(lab)
            if await lab.rows() != before:
                raise CheckFailedError("kernel rows changed when the bus went away")
        flows.judge(check)
        streams = check.detail
        judge_pairs(check, results)
        check.detail += f"\n{streams}"
    with report.stage("Bus and controller restarted: the same state, new commands are accepted") as check:
        sequence = lab.members.sequence
        await lab.restart_control_plane()
        if lab.members.live != members or await lab.rows() != before:
            raise CheckFailedError("the state after the restart is another one than before")
        check.detail = f"{len(members)} nodes, the log at event {sequence}, kernels unchanged"


async def log_holds(lab: Lab, report: Report) -> None:
    """The log alone, read to its end: no address had two owners, no event is missing or changed.

    Raises CheckFailedError.
    """
    from deploy.churn.verify import verify_log

    with report.stage("The log shows no address with two owners, and its hash chain is unbroken") as check:
        verified = await verify_log(lab.log)
        if verified.ledger.sequence < lab.members.sequence:
            raise CheckFailedError(
                f"the log ends at event {verified.ledger.sequence}; {lab.members.sequence} events were seen"
            )
        pool = verified.ledger.pool()
        check.measured = {"events": verified.ledger.sequence, "pool": pool}
        check.detail = (
            f"{verified.ledger.sequence} events, {verified.ledger.allocations} allocations; "
            f"of {pool['capacity']} ranges {pool['allocated']} allocated, {pool['draining']} draining, "
            f"{pool['quarantined']} quarantined, {pool['free']} free"
        )


def which_way(lab: Lab, report: Report) -> None:
    """Say which path has carried the pods' packets, as the agents' last reports have it."""
    found = [read_status(node.directory / "state") for node in lab.nodes.values() if node.agent.running]
    on = [status for status in found if status.fastpath.startswith("on")]
    if not on:
        why = next((status.fastpath for status in found if status.fastpath), "off")
        report.note(f"Every packet took the whole network stack: the fast path is {why}")
        return

    out, into, slow_out, slow_in = (
        f"{sum(status.counters.get(f'fastpath_{name}', 0) for status in on):,.0f}"
        for name in ("fast_out", "fast_in", "slow_out", "slow_in")
    )  # a packet that is fast at both ends is counted at each
    report.note(
        f"The fast path is on at {len(on)} of {len(found)} nodes: it carried {out} packets from pods and "
        f"{into} to pods; the stack decided {slow_out} and {slow_in}, first or anew"
    )


async def _reports_again(lab: Lab, node: LabNode) -> bool:
    if not node.agent.running:
        raise CheckFailedError(f"the agent of {node.name} ended:\n{node.agent.log_tail()}")
    return await lab.reports_since_start(node)
