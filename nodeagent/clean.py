"""Removes everything of ours from a node, or only what it remembers, or gives a node that was taken over back.

Nothing else in this package ever does.
"""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from events.errors import Refused
from nodeagent import identity
from nodeagent.dataplane import takeover
from nodeagent.dataplane.second_device import second_name
from nodeagent.fastpath import programs
from nodeagent.fastpath.predecessors import FILE as FASTPATH_FILE
from nodeagent.fastpath.predecessors import Predecessors
from nodeagent.firewall import ruleset
from nodeagent.firewall.elements import TABLE
from nodeagent.firewall.predecessor import Predecessor
from nodeagent.gateway.remove import gateway_remove
from nodeagent.health import accept_in_others
from nodeagent.local_files import STATUS_FILE, only_one, prepare_directory
from nodeagent.membership.cache import Cache
from nodeagent.membership.node_key import drop_keys
from nodeagent.nat.kept import FILE as NAT_FILE
from nodeagent.netlink import links, neighbourhood
from nodeagent.netlink.messages import Action, Operation
from nodeagent.netlink.rows import Kind, is_preferred
from nodeagent.netlink.socket import Engine, NetlinkChannel
from nodeagent.pods import cni
from nodeagent.wireguard import start as wireguard_start
from nodeagent.wireguard.pairs import device_names as wireguard_names


async def clean(state_dir: Path, cni_dir: Path, device: str) -> list[str]:
    """What was removed, in words. Raises Refused(agent_running) while an agent runs, OSError.

    Cancelled, a part may be left; it may be repeated.
    """
    prepare_directory(state_dir)
    with only_one(state_dir):
        removed = await _remove_newer(state_dir, device)
        if await asyncio.to_thread(links.remove_device, device):
            removed.append(f"device {device} with its rows")
        routes = await asyncio.to_thread(_remove_routes)
        if routes:
            removed.append(f"{routes} routes")
        try:
            if await ruleset.remove():
                removed.append(f"nftables table inet {TABLE}")
        except Refused as error:
            if error.code != "prerequisite_missing":
                raise
        removed += await gateway_remove()
        removed += await accept_in_others.remove()
        if cni.remove(cni_dir):
            removed.append(str(cni_dir / cni.FILE_NAME))
        fenced = Cache(state_dir).says_fenced()
        Cache(state_dir).forget()
        removed += [str(state_dir / name) for name in identity.forget(state_dir)]
        for name in (STATUS_FILE, FASTPATH_FILE, NAT_FILE):
            path = state_dir / name
            if path.exists():
                path.unlink()
                removed.append(str(path))
        removed += map(str, drop_keys(state_dir))
        if (
            fenced
        ):  # the machine's own uid can never join again: whoever starts an agent here again means a new one
            removed.append(f"the fenced uid; the next agent here is {identity.renew(state_dir)}")
    return removed


async def clean_newer(state_dir: Path, device: str) -> list[str]:
    """Remove what 0.2.0 does not know and would leave as it is for good; what was removed, in words.

    These are the fast path's programs, the devices of WireGuard and of ways through NAT, and the routes that
    win over the tunnel's. The tunnel with its rows, the rules, the CNI file and the agent's folder stay.

    Raises Refused(agent_running) while an agent runs, OSError. Cancelled, a part may be left; it may be
    repeated.
    """
    prepare_directory(state_dir)
    with only_one(state_dir):
        return await _remove_newer(state_dir, device)


async def give_back(state_dir: Path, cni_dir: Path, device: str, old: str) -> list[str]:
    """Give a node back to the network before: device, routes, rules and CNI file, in safe order.

    The node stays a member, and the others' rows towards it stay right: its range, MAC and address are what
    they were. Returns what was done, in words; nothing the second time. Cancelled, a part may be left; it may
    be repeated.

    Raises Refused(agent_running) while an agent runs, OSError.
    """
    prepare_directory(state_dir)
    with only_one(state_dir):
        done: list[str] = []
        taken = await asyncio.to_thread(_remove_programs, state_dir)
        if taken:
            done.append(f"{taken} programs of the fast path removed")
        await asyncio.to_thread(links.remove_device, second_name(device))
        done += await asyncio.to_thread(takeover.give_back, device, old)
        # Flannel's rules stand before ours go: no packet of a pod leaves without its masquerade.
        if await Predecessor(state_dir).restore():
            done.append("flannel's rules are back")
        try:
            if await ruleset.remove():
                done.append(f"nftables table inet {TABLE} removed")
        except Refused as error:
            if error.code != "prerequisite_missing":
                raise
        if cni.put_back(cni_dir):
            done.append(f"{cni_dir / cni.FLANNEL_FILE} is back")
        if (cni_dir / cni.FLANNEL_FILE).exists() and cni.remove(cni_dir):
            done.append(f"{cni_dir / cni.FILE_NAME} removed")
    return done


def forget(state_dir: Path) -> bool:
    """Remove the memory of the log, and nothing else; whether there was one.

    Raises Refused(agent_running, not_permitted), OSError.
    """
    if not state_dir.is_dir():
        return False
    prepare_directory(state_dir)
    with only_one(state_dir):
        return Cache(state_dir).forget()


def new_identity(state_dir: Path) -> str:
    """Give this installation a new uid and key, and forget the log; return the uid. Every row stays.

    Raises Refused(agent_running, not_permitted), OSError.
    """
    prepare_directory(state_dir)
    with only_one(state_dir):
        Cache(state_dir).forget()
        (state_dir / STATUS_FILE).unlink(missing_ok=True)
        drop_keys(state_dir)
        return identity.renew(state_dir)


async def _remove_newer(state_dir: Path, device: str) -> list[str]:
    removed: list[str] = []
    routes = await asyncio.to_thread(_remove_preferred, device)
    if routes:
        removed.append(f"{routes} routes beside the tunnel's")
    await asyncio.to_thread(neighbourhood.follow_probe_routes, {}, 0)
    taken = await asyncio.to_thread(_remove_programs, state_dir)
    if taken:
        removed.append(f"{taken} programs of the fast path")
    if Predecessors(state_dir).restore():
        removed.append("conntrack's leave for TCP out of the window (nf_conntrack_tcp_be_liberal)")
    removed += [
        f"WireGuard device {name}"
        for name in wireguard_names(device)
        if await asyncio.to_thread(wireguard_start.remove, name)
    ]
    if await asyncio.to_thread(links.remove_device, second_name(device)):
        removed.append(f"device {second_name(device)} with its rows")
    return removed


def _remove_preferred(device: str) -> int:
    """The routes of ours that win over the tunnel's, wherever they lead."""
    tunnel = links.find(device)
    if tunnel is None:
        return 0
    with Engine(NetlinkChannel()) as engine:
        routes = {key: value for key, value in engine.read(tunnel.index).routes.items() if is_preferred(key)}
        dropped = [Operation(Action.DROP, Kind.ROUTE, key, value) for key, value in routes.items()]
        engine.execute(dropped, tunnel.index)
    return len(routes)


def _remove_programs(state_dir: Path) -> int:
    """The fast path's programs on every device, also those of a release whose state is gone."""
    try:
        known = Predecessors(state_dir).ids
        return programs.sweep([index for index, _ in socket.if_nameindex()], known)
    except Refused:
        return 0  # without libbpf there never were any


def _remove_routes() -> int:
    """Routes of our protocol that do not go with the device: the blackhole of the own range."""
    with Engine(NetlinkChannel()) as engine:
        routes = engine.read(0).routes
        engine.execute([Operation(Action.DROP, Kind.ROUTE, key, value) for key, value in routes.items()], 0)
    return len(routes)
