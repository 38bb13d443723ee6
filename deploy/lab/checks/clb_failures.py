"""What the lab does to the CLB pair, and what each of it costs.

A backend's death, a gateway's, a planned handover, ten of those in a row, and a split in which the old
gateway does not know that it was replaced.

Every one runs under a flow of new connections and of connections in progress to both addresses, at the
product's own timers. Cancelled, it ends the flow and leaves the lab as it is then: whoever was killed, cut off
or taken out stays so.
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from controlplane.cluster.decisions.holders import SILENCE_S
from deploy.lab.failures import CheckFailedError
from deploy.lab.machines.shell import run
from deploy.lab.traffic import arp
from deploy.lab.traffic.clb_flow import API, holders, show, under_flow
from events.protocol.commands import MarkGateway

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from deploy.lab.reports.report import Report
    from deploy.lab.runtime import Lab, LabNode
    from deploy.lab.traffic.clb_flow import ClbSetup

DIED_S, PLANNED_S = 5.0, 1.0
"""What may be lost at most: time without an answer to new connections, seconds."""

FAILOVERS = 10
NOTICE_LIMIT_S = 30.0
LINK = "eth0"


async def backend_dies(lab: Lab, report: Report, setup: ClbSetup) -> None:
    """Its server is killed; the checks find out, and find out again when it is back."""
    with report.stage("A backend dies: the other one answers") as check:
        async with under_flow(lab, setup, report, check, DIED_S):
            await setup.servers["api-1"].kill()

            async def found_out() -> bool:
                return sum(not b.healthy for b in (await show(lab)).backends) == 1

            await lab.wait_until(found_out, NOTICE_LIMIT_S, "the dead backend to be noticed")
        await setup.servers["api-1"].start()

        async def all_well() -> bool:
            return all(b.healthy for b in (await show(lab)).backends)

        await lab.wait_until(all_well, NOTICE_LIMIT_S, "the backend to be healthy again")


async def gateway_dies(lab: Lab, report: Report, setup: ClbSetup) -> None:
    """Its link is pulled and its agent killed; back again, it gives up what it had."""
    victim = lab.nodes[await _holder(lab)]
    with report.stage(f"The gateway {victim.name} dies: the other one takes its address") as check:
        async with under_flow(lab, setup, report, check, DIED_S):
            await run(["ip", "link", "set", f"u-{victim.name}", "down"])
            await victim.agent.kill()
            await _replaced(lab, victim)
        await run(["ip", "link", "set", f"u-{victim.name}", "up"])
        await victim.agent.start()
        await lab.wait_until(lambda: lab.reports_since_start(victim), NOTICE_LIMIT_S, f"{victim.name}'s agent")
        await _on_link(lab, victim, setup.addresses[API], there=False)


async def handed_over(lab: Lab, report: Report, setup: ClbSetup) -> None:
    """Planned: the address goes first, then the gateway; what is in progress goes on through it.

    Raises CheckFailedError.
    """
    with report.stage("A gateway is taken out on purpose: handover first") as check:
        leaving = await _holder(lab)
        async with under_flow(lab, setup, report, check, PLANNED_S) as flows:
            await lab.client.send(MarkGateway(node=leaving, on=False))
        if leaving in (await holders(lab)).values():
            raise CheckFailedError(f"{leaving} still holds an address")
        broken = [f"{flow.purpose}: {one}" for flow in flows for one in flow.lasting if one["broken"]]
        if broken:
            raise CheckFailedError(f"connections in progress broke: {'; '.join(broken)}")
        check.detail += f"; {check.measured['kept']} connections in progress went on"
        await lab.client.send(MarkGateway(node=leaving))


async def ten_in_a_row(lab: Lab, report: Report, setup: ClbSetup) -> None:
    """Planned handovers there and back, each as soon as the one before it is through.

    Raises CheckFailedError.
    """
    with report.stage(f"{FAILOVERS} failovers in a row") as check:
        async with under_flow(lab, setup, report, check, PLANNED_S):
            for _ in range(FAILOVERS):
                leaving = await _holder(lab)
                await lab.client.send(MarkGateway(node=leaving, on=False))
                taking = (await holders(lab))[API]
                if taking == leaving:
                    raise CheckFailedError(f"{leaving} still holds the address")
                if not taking:
                    raise CheckFailedError(f"nobody holds the address that {leaving} gave up")
                await _on_link(lab, lab.nodes[taking], setup.addresses[API], there=True)
                await lab.client.send(MarkGateway(node=leaving))


async def split(lab: Lab, report: Report, setup: ClbSetup) -> None:
    """The holder loses the bus and does not know that it was replaced; its kernel yields all the same.

    Raises CheckFailedError.
    """
    address = setup.addresses[API]
    old = lab.nodes[await _holder(lab)]
    with report.stage(
        f"{old.name} is cut from the bus while it holds an address: it yields to the new holder"
    ) as check:
        gateways = (await show(lab)).gateways
        witness = next(
            node for node in lab.nodes.values() if node.node.kind == "cloud" and node.name not in gateways
        )
        async with _who_answers(witness, address) as heard, under_flow(lab, setup, report, check, DIED_S):
            await run(["ip", "link", "set", f"m-{old.name}", "down"])
            await _replaced(lab, old)
            new = lab.nodes[await _holder(lab)]
            await _on_link(lab, new, address, there=True)
            await _yields(lab, old, address)
            if address not in await old.machine.run("ip", "addr", "show", "dev", LINK):
                raise CheckFailedError(f"{old.name} gave up {address}: nothing was split")
            await run(["ip", "link", "set", f"m-{old.name}", "up"])
            await _on_link(lab, old, address, there=False)
        if (await holders(lab))[API] != new.name:
            raise CheckFailedError(f"{old.name}, back again, took {address} from {new.name}")
        if len({mac for _, mac in heard}) != 2:
            raise CheckFailedError(f"not both machines were heard to answer for {address}: {set(heard)}")
        both_s = arp.both_answered_s(heard)
        check.measured["both_answered_s"] = both_s
        check.detail += (
            f"\n  both machines answered for {address} during {both_s:.2f} s of {len(heard)} answers "
            f"(limit: the fencing time, {SILENCE_S:g} s)"
        )
        if both_s > SILENCE_S:
            raise CheckFailedError(check.detail)


async def _replaced(lab: Lab, victim: LabNode) -> None:
    async def replaced() -> bool:
        held_by = set((await holders(lab)).values())
        return not held_by & {victim.name, ""}

    await lab.wait_until(replaced, NOTICE_LIMIT_S, f"{victim.name} to be replaced")


async def _holder(lab: Lab) -> str:
    """Who holds the API server's address, once somebody does: between two holders it is nobody's."""

    async def held() -> bool:
        return bool((await holders(lab)).get(API))

    await lab.wait_until(held, NOTICE_LIMIT_S, "somebody to hold the API server's address")
    return (await holders(lab))[API]


async def _on_link(lab: Lab, node: LabNode, address: str, *, there: bool) -> None:
    async def seen() -> bool:
        return (f"inet {address}/" in await node.machine.run("ip", "addr", "show", "dev", LINK)) == there

    await lab.wait_until(seen, NOTICE_LIMIT_S, f"{node.name} to {'take' if there else 'give up'} {address}")


async def _yields(lab: Lab, node: LabNode, address: str) -> None:
    async def seen() -> bool:
        return address in await node.machine.run("nft", "list", "set", "arp", "isthmus_clb", "yielded")

    await lab.wait_until(seen, NOTICE_LIMIT_S, f"the kernel of {node.name} to yield {address}")


@asynccontextmanager
async def _who_answers(witness: LabNode, address: str) -> AsyncIterator[Sequence[tuple[float, str]]]:
    """Ask on the gateways' link while the block runs; the answers are there afterwards."""
    process = await asyncio.create_subprocess_exec(
        *witness.machine.inside(sys.executable, "-m", "deploy.lab.traffic.arp", LINK, address),
        stdout=asyncio.subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    heard: list[tuple[float, str]] = []
    try:
        yield heard
    finally:
        process.terminate()
        out, _ = await process.communicate()
    heard.extend((moment, mac) for moment, mac in map(json.loads, out.splitlines()))
