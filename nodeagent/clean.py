"""Removes everything of ours from a node, or only what it remembers. Nothing else in this package ever does."""

from __future__ import annotations

import asyncio
from pathlib import Path

from events.errors import Refused
from nodeagent.firewall import ruleset
from nodeagent.gateway.remove import gateway_remove
from nodeagent.local_files import STATUS_FILE, only_one, prepare_directory
from nodeagent.membership.cache import Cache
from nodeagent.netlink import links
from nodeagent.netlink.messages import Action, Operation
from nodeagent.netlink.rows import Kind
from nodeagent.netlink.socket import Engine, NetlinkChannel
from nodeagent.pods import cni


async def clean(state_dir: Path, cni_dir: Path, device: str) -> list[str]:
    """What was removed, in words. Raises Refused(agent_running) while an agent runs, OSError."""
    prepare_directory(state_dir)
    with only_one(state_dir):
        removed: list[str] = []
        if await asyncio.to_thread(links.remove_device, device):
            removed.append(f"device {device} with its rows")
        routes = await asyncio.to_thread(_remove_routes)
        if routes:
            removed.append(f"{routes} routes")
        try:
            if await ruleset.remove():
                removed.append(f"nftables table inet {ruleset.TABLE}")
        except Refused as error:
            if error.code != "prerequisite_missing":
                raise
        removed += await gateway_remove()
        if cni.remove(cni_dir):
            removed.append(str(cni_dir / cni.FILE_NAME))
        Cache(state_dir).forget()
        for name in (STATUS_FILE, "uid"):
            path = state_dir / name
            if path.exists():
                path.unlink()
                removed.append(str(path))
    return removed


def forget(state_dir: Path) -> bool:
    """Remove the memory of the log, and nothing else; whether there was one.

    Raises Refused(agent_running, not_permitted), OSError.
    """
    if not state_dir.is_dir():
        return False
    prepare_directory(state_dir)
    with only_one(state_dir):
        return Cache(state_dir).forget()


def _remove_routes() -> int:
    """Routes of our protocol that do not go with the device: the blackhole of the own range."""
    with Engine(NetlinkChannel()) as engine:
        routes = engine.read(0).routes
        engine.execute([Operation(Action.DROP, Kind.ROUTE, key, value) for key, value in routes.items()], 0)
    return len(routes)
