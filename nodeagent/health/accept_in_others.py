"""Lets the overlay's packets through forward chains of other programs that drop what they do not know.

Only where the operator wants it (``--accept-in-others``). Our own table accepts nothing for others: a packet
has to pass every chain of its hook, and Docker, ufw or firewalld drop what none of their rules accepts. So two
rules for each container CIDR go to the end of such a chain, before a last rule that drops or rejects all:
what its owner accepts or drops by name is judged first, as before. By our comment they are found again.

It looks every :data:`PERIOD_S`. A chain whose owner takes them away again and again is left to him, with a
condition.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

from events.errors import IsthmusError
from nodeagent.conditions import Conditions
from nodeagent.dataplane.fight_guard import FightGuard
from nodeagent.firewall import ruleset
from nodeagent.health import diagnosis, legacy_filter

log = logging.getLogger("isthmus.agent.firewall")

TAG = "isthmus"
"""The comment of our rules in others' chains."""
PERIOD_S = 5.0
FAMILIES = frozenset({"ip", "inet"})
Key = tuple[str, str, str]
"""Family, table, chain."""
LEGACY: Key = ("ip", "filter", "legacy FORWARD")
LEGACY_TABLES = Path("/proc/net/ip_tables_names")
LEGACY_UNSEEN = (
    "this node has tables of the older iptables, and the agent cannot look at them: it needs iptables-legacy "
    "and CAP_NET_RAW (AmbientCapabilities and CapabilityBoundingSet of its unit); see `isthmus doctor`"
)
Wanted = tuple[str, str]
"""``saddr`` or ``daddr``, and a CIDR."""


class Rules(msgspec.Struct, frozen=True):
    """A base chain of the forward hook: whether it drops the rest, where, and which rules of ours are in it."""

    key: Key
    denies: bool
    before: int
    """The handle of its last rule, when that drops or rejects everything; 0: the policy does."""
    ours: dict[int, Wanted | None]
    """Handle → what it accepts."""

    def lets(self, containers: Iterable[str]) -> bool:
        """Whether our rules in it are exactly those for these networks."""
        return sorted(map(str, self.ours.values())) == sorted(map(str, wanted(containers)))

    def __str__(self) -> str:
        family, table, chain = self.key
        return f"chain {chain} of table {family} {table}"


def wanted(containers: Iterable[str]) -> list[Wanted]:
    """What our rules accept: whatever comes from or goes to these networks."""
    return [(end, cidr) for cidr in sorted(containers) for end in ("daddr", "saddr")]


class AcceptInOthers:
    """Run it. Without ``enabled`` it takes away, once, what an agent with the option has left."""

    def __init__(
        self, conditions: Conditions, *, enabled: bool, containers: Callable[[], tuple[str, ...]]
    ) -> None:
        self._conditions, self._enabled, self._containers = conditions, enabled, containers
        self._guard = FightGuard[Key](free_repairs=3, window_s=10 * PERIOD_S)

    async def run(self) -> None:
        """Until cancelled, or done; the rules stay."""
        while True:
            try:
                if not self._enabled:
                    await remove()
                    return
                await self.step()
            except (IsthmusError, OSError, TimeoutError) as error:
                text = getattr(error, "message", "") or str(error) or "nft took too long"
                self._conditions.set("other filters", f"pods cannot be let through others' chains: {text}")
            await asyncio.sleep(PERIOD_S)

    async def step(self) -> None:
        """One look, and what it takes. Raises IsthmusError, OSError, TimeoutError.

        Cancelled, a chain has all of the rules or none.
        """
        containers = self._containers()
        if not containers:
            return
        contested = []
        for chain in await look():
            if not chain.denies or chain.lets(containers):
                continue
            if self._guard.allow(chain.key, time.monotonic()):
                await ruleset.nft(_script(chain, wanted(containers)))
                log.warning("%s drops what it does not know: packets of pods are let through there", chain)
            if self._guard.contested(chain.key, time.monotonic()):
                contested.append(str(chain))
        unreached = await self._enter_legacy(containers, contested)
        told = [f"our rules are taken out of {', '.join(contested)} again and again"] if contested else []
        told += [unreached] if unreached else []
        self._conditions.set("other filters", "; ".join(told))

    async def _enter_legacy(self, containers: tuple[str, ...], contested: list[str]) -> str:
        """The same for the older iptables' chain; in words why that is not possible here."""
        chain = await legacy_filter.look(TAG)
        if chain is None:
            return LEGACY_UNSEEN if await asyncio.to_thread(_legacy_tables) else ""
        rules = wanted(containers)
        if not chain.denies or sorted(chain.ours) == sorted(rules):
            return ""
        if self._guard.allow(LEGACY, time.monotonic()):
            await legacy_filter.write(chain, rules, TAG)
            log.warning("%s drops what it does not know: packets of pods are let through there", chain)
            after = await legacy_filter.look(TAG)
            if after is None or sorted(after.ours) != sorted(rules):
                return f"{chain} does not take our rules: `isthmus doctor` says what to do"
        if self._guard.contested(LEGACY, time.monotonic()):
            contested.append(str(chain))
        return ""


async def look() -> list[Rules]:
    """The forward hook's base chains of others, with their last rules and ours in them.

    Cancelled, it leaves nothing behind.
    """
    found = []
    for key, drops in base_chains(await diagnosis.run_program("nft", "--json", "list", "chains")):
        found.append(parse(key, drops, await diagnosis.run_program("nft", "--json", "list", "chain", *key)))
    return found


def base_chains(document: str) -> list[tuple[Key, bool]]:
    """The chains in nft's JSON, and whether their policy drops."""
    with contextlib.suppress(ValueError, TypeError, AttributeError, KeyError):
        chains = [entry["chain"] for entry in json.loads(document or "{}")["nftables"] if "chain" in entry]
        return [
            ((chain["family"], chain["table"], chain["name"]), chain.get("policy") == "drop")
            for chain in chains
            if chain.get("hook") == "forward"
            and chain["family"] in FAMILIES
            and chain["table"] not in diagnosis.OWN_TABLES
        ]
    return []


def parse(key: Key, drops: bool, document: str) -> Rules:
    """One chain, from nft's JSON."""
    last, denies, ours = 0, False, dict[int, Wanted | None]()
    with contextlib.suppress(ValueError, TypeError, AttributeError, KeyError):
        for entry in json.loads(document or "{}")["nftables"]:
            rule = entry.get("rule")
            if rule is None:
                continue
            if rule.get("comment") == TAG:
                ours[rule["handle"]] = _accepted(rule.get("expr", []))
            else:
                last, denies = rule["handle"], _denies_all(rule.get("expr", []))
    return Rules(key, drops or denies, last if denies else 0, ours)


async def remove() -> list[str]:
    """Take our rules out of everybody's chains; what was removed, in words.

    Raises Refused as `ruleset.nft` does. Cancelled, a part may be left; it may be repeated.
    """
    removed = []
    for chain in await look():
        if chain.ours:
            await ruleset.nft(_deletions(chain))
            removed.append(f"{len(chain.ours)} rules in {chain}")
    legacy = await legacy_filter.look(TAG)
    if legacy is not None and legacy.ours:
        await legacy_filter.write(legacy, (), TAG)
        removed.append(f"{len(legacy.ours)} rules in {legacy}")
    return removed


def _legacy_tables() -> bool:
    """Whether the older iptables has a filter table here; unreadable counts as none when nobody says more."""
    with contextlib.suppress(OSError):
        return "filter" in LEGACY_TABLES.read_text().split()
    return False


def _script(chain: Rules, accepted: list[Wanted]) -> str:
    name = " ".join(chain.key)
    place = f"insert rule {name} position {chain.before}" if chain.before else f"add rule {name}"
    return _deletions(chain) + "".join(
        f'{place} ip {end} {cidr} counter accept comment "{TAG}"\n' for end, cidr in accepted
    )


def _deletions(chain: Rules) -> str:
    return "".join(f"delete rule {' '.join(chain.key)} handle {handle}\n" for handle in chain.ours)


def _accepted(terms: list[Any]) -> Wanted | None:
    """What a rule of ours accepts; None when somebody has changed it."""
    match terms:
        case [
            {"match": {"op": "==", "left": {"payload": {"field": end}}, "right": right}},
            {"counter": _},
            {"accept": _},
        ]:
            if isinstance(right, dict) and "prefix" in right:
                return end, f"{right['prefix']['addr']}/{right['prefix']['len']}"
            return end, f"{right}/32"
    return None


def _denies_all(terms: list[Any]) -> bool:
    """Whether a rule drops or rejects whatever comes to it."""
    names = {name for term in terms if isinstance(term, dict) for name in term}
    return bool(names & {"drop", "reject"}) and names <= {"counter", "log", "drop", "reject"}
