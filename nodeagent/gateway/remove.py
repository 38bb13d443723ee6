"""Removes what a gateway leaves in the kernel: on purpose only."""

from __future__ import annotations

import asyncio

from events.errors import Refused
from nodeagent.firewall import ruleset
from nodeagent.gateway import link, rules


async def gateway_remove() -> list[str]:
    """What was removed, in words. Raises OSError. Cancelled, a part may be left; it may be repeated."""
    removed: list[str] = []
    for entry in sorted(await asyncio.to_thread(link.ours)):
        await asyncio.to_thread(link.remove, entry.address, entry.ifindex)
        removed.append(f"CLB address {entry.address}")
    try:
        await ruleset.nft(rules.render_removal())
    except Refused as error:
        if error.code != "prerequisite_missing":
            raise
    return removed
