"""What of the log the firewall follows: said of the kernel's table, not of what is wanted of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from nodeagent.conditions import Conditions
from nodeagent.firewall import ruleset
from nodeagent.firewall.reconciler import FirewallReconciler
from nodeagent.firewall.ruleset import Rules
from tests.nodeagent.sandbox import inside, sh
from tests.waiting import until

RULES = Rules(device="isthmus", port=8472, own_range="172.16.0.0/26", cidrs=("172.16.0.0/16",))
GATE = """#!/bin/sh
while [ -e {place}/closed ]; do touch {place}/asked; sleep 0.01; done
[ ! -e {place}/broken ] || {{ cat >/dev/null; [ "$1" != -f ] || {{ echo no >&2; exit 1; }}; }}
exec {place}/nft "$@"
"""


@contextlib.asynccontextmanager
async def running(firewall: FirewallReconciler) -> AsyncIterator[None]:
    task = asyncio.create_task(firewall.run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def gate(place: Path) -> None:
    """The real nft behind a gate, and able to refuse what is written; in this test's mount namespace only."""
    sh(f"cp $(command -v nft) {place}/nft")
    (place / "gate").write_text(GATE.format(place=place))
    sh(f"chmod +x {place}/gate && mount --bind {place}/gate $(command -v nft)")


@inside
async def test_members_come_and_go_in_the_kernel_before_their_events_count_as_applied() -> None:
    with TemporaryDirectory() as name:
        place, members, told = Path(name), {"10.0.0.2"}, []
        gate(place)
        firewall = FirewallReconciler(Conditions())
        firewall.notify(lambda: told.append(firewall.confirmed(99)))
        async with running(firewall):
            for sequence, there in ((5, {"10.0.0.2"}), (7, {"10.0.0.2", "10.0.0.3"}), (9, {"10.0.0.3"})):
                before = firewall.confirmed(sequence)
                members = there
                (place / "asked").unlink(missing_ok=True)
                (place / "closed").touch()  # whoever finds it so says it, also a look that began before
                firewall.want(RULES, lambda: members, sequence)  # noqa: B023
                await until((place / "asked").exists, "nft waits at the gate")
                assert firewall.confirmed(sequence) == before < sequence, "not before the kernel has it"
                (place / "closed").unlink()
                await until(lambda: firewall.confirmed(99) == sequence, "applied")  # noqa: B023
                assert await ruleset.elements_of("vteps") == there
                assert firewall.in_step
            assert told == [5, 7, 9], "whoever reports is woken"
            firewall.want(RULES, lambda: members, 11)
            await until(lambda: firewall.confirmed(99) == 11, "an event that changes nothing here")
            # A table that cannot be brought up to date keeps its old members: nothing later is applied.
            (place / "broken").touch()
            firewall.want(RULES, set, 13)
            await until(lambda: not firewall.in_step, "it is said")
            assert firewall.confirmed(99) == 11


@inside
async def test_where_no_table_of_ours_judges_packets_nothing_waits_for_it() -> None:
    with TemporaryDirectory() as name:
        place, conditions = Path(name), Conditions()
        gate(place)
        (place / "broken").touch()
        firewall = FirewallReconciler(conditions)
        assert firewall.confirmed(5) == 0, "a table of an earlier life may stand"
        async with running(firewall):
            firewall.want(RULES, set, 5)
            await until(lambda: firewall.confirmed(5) == 5, "no table, nothing to wait for")
            assert firewall.in_step
            assert conditions.has("firewall"), "and it is said that pods are not shielded"
    off = FirewallReconciler(Conditions(), enabled=False)
    off.want(RULES, set, 5)
    assert (off.confirmed(7), off.in_step, off.settled.is_set()) == (7, True, True)


@inside
async def test_a_table_that_is_changed_while_it_is_written_is_made_anew() -> None:
    """Between the write and the look at it: what is found there is not what was written."""
    members = {"10.0.0.2", "fd00::2"}
    with TemporaryDirectory() as name:
        place, nft = Path(name), f"{name}/nft"
        gate(place)
        for damage in (
            "delete table inet isthmus",
            "flush table inet isthmus",
            "flush chain inet isthmus leaving",
            "insert rule inet isthmus forwarded accept",
            "add element inet isthmus vteps { 10.0.0.66 }",
            "delete element inet isthmus vteps6 { fd00::2 }",
            "add chain inet isthmus theirs { type filter hook forward priority 0; policy drop; }",
        ):
            (place / "gate").write_text(
                f'#!/bin/sh\n{nft} "$@" || exit\n[ "$1" != -f ] || [ ! -e {place}/once ] || '
                f"{{ rm {place}/once; {nft} '{damage}'; }}\n"
            )
            firewall = FirewallReconciler(Conditions())
            (place / "once").touch()
            async with running(firewall):
                firewall.want(RULES, lambda: members, 5)
                await until(lambda: firewall.confirmed(9) == 5, damage)  # noqa: B023
                assert not (place / "once").exists(), damage
                assert ruleset.as_written(await ruleset.listing(), RULES, members), damage
            await ruleset.remove()


@inside
async def test_the_table_is_written_for_underlays_of_either_family() -> None:
    for own, member in (("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")):
        rules = msgspec.structs.replace(
            RULES, underlay=own, wireguard="isthmus-wg*", wireguard_ports="51820-51823"
        )
        await ruleset.replace(rules, [member])
        assert ruleset.as_written(await ruleset.listing(), rules, [member])
        assert f"daddr {own} ip" in await ruleset.listing(), "members' packets to it leave by the first rule"
        words = 'oifname "isthmus-wg*" ip saddr != 172.16.0.0/16 ip daddr 172.16.0.0/16 jump through'
        assert words in await ruleset.listing(), "a connection goes on by another device when a key is replaced"
