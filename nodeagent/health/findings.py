"""What `isthmus doctor` finds out about the host: forwarding, filters, CNI files, kubelet's settings.

Each check looks and yields findings; nothing is changed.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Interface, IPv4Network, ip_address
from pathlib import Path
from typing import Literal

import msgspec

from events.errors import IsthmusError
from nodeagent.config import DEFAULT_CNI_DIR
from nodeagent.dataplane.host_settings import feature, read_sysctl
from nodeagent.health import accept_in_others, diagnosis, legacy_filter, settings
from nodeagent.local_files import LocalStatus, now_of
from nodeagent.netlink import links
from nodeagent.pods import chain, cni

Level = Literal["ok", "info", "warning", "problem"]

CNI_DIRECTORIES = chain.DIRECTORIES
CNI_PLUGINS = ("ptp", "host-local", "portmap")
"""What our file names, where there is none yet."""

OPTION = "--accept-in-others"
KUBELET_CONFIG = Path("/var/lib/kubelet/config.yaml")
MAX_PODS_DEFAULT = 110
"""kubelet's own."""

PACKAGE = "apt-get install containernetworking-plugins (or the plugins' release, into /opt/cni/bin)"
INSTALL_OURS = "isthmus agent install-plugin"
ADDRESSES_UNUSABLE = 3
NEIGHBOURS_MAX = "net.ipv4.neigh.default.gc_thresh3"
TUNNEL_SEGMENTATION = "tx-udp_tnl-segmentation"
NEIGHBOURS_SHARE = 0.5
"""Of the kernel's neighbour table for members on the link; other programs and namespaces share it."""


class Finding(msgspec.Struct, frozen=True):
    """One line of the diagnosis. ``fix`` is what to do, empty when there is nothing."""

    check: str
    level: Level
    text: str
    fix: str = ""


def forwarding(device: str) -> Iterator[Finding]:
    """Whether the host forwards, and each device that matters does. Raises OSError."""
    found = settings.forwarding()
    off = [index for index, on in found.items() if not on]
    if not found.get(settings.ALL, True):
        files = diagnosis.sysctl_files("net.ipv4.ip_forward", "0")
        yield Finding(
            "forwarding",
            "warning",
            "net.ipv4.ip_forward is 0: a running agent switches it on"
            + (f"; {', '.join(files)} says 0" if files else ""),
            "sysctl -w net.ipv4.ip_forward=1, and keep it in /etc/sysctl.d",
        )
        return
    names = {link.index: link.name for link in links.links()} | {settings.DEFAULT: "default"}
    told = [names[index] for index in off if index in names and names[index] in {"default", device}]
    if told:
        yield Finding(
            "forwarding",
            "warning",
            f"forwarding is off for {', '.join(told)}: pods there are cut off",
            "; ".join(f"sysctl -w net.ipv4.conf.{name}.forwarding=1" for name in told),
        )
    else:
        yield Finding("forwarding", "ok", "net.ipv4.ip_forward is 1")


def connections() -> Iterator[Finding]:
    """Whether the kernel's table of tracked connections has room for new ones, in this network namespace."""
    if text := settings.full_of_connections():
        yield Finding("connections", "problem", *text.split(". On the host: "))


def segmentation(device: str) -> Iterator[Finding]:
    """Whether the underlay device cuts large packets of a tunnel itself; else this node's CPU does."""
    try:
        on, changeable = feature(device, TUNNEL_SEGMENTATION)
    except OSError:
        return  # no Ethernet device, or a driver that does not answer
    if on:
        yield Finding("segmentation", "ok", f"{device} cuts large packets of the tunnel itself")
        return
    text = f"{device} does not cut large packets of the tunnel ({TUNNEL_SEGMENTATION} is off): bulk TCP takes "
    text += "several times the CPU"
    fix = f"ethtool -K {shlex.quote(device)} {TUNNEL_SEGMENTATION} on"
    if not changeable:
        fix = "a larger underlay MTU makes up for it, or direct ways where nodes share a link (--direct auto)"
    yield Finding("segmentation", "warning" if changeable else "info", text, fix)


async def filters(cidrs: tuple[str, ...]) -> list[Finding]:
    """Forward chains that drop what they do not know. Cancelled, it leaves nothing behind."""
    network = cidrs[0] if cidrs else "POD_NETWORK"
    rules = {each.key: each for each in await accept_in_others.look()}
    chains = await diagnosis.dropping_chains()
    named = {(one.family, one.table, one.name) for one in chains}
    chains += [
        diagnosis.Chain(family=key[0], table=key[1], name=key[2], how="its last rule drops or rejects the rest")
        for key, each in rules.items()
        if each.denies and key not in named
    ]
    let = {key for key, each in rules.items() if cidrs and each.lets(cidrs)}
    legacy = await legacy_filter.look(accept_in_others.TAG)
    if legacy is not None and legacy.denies:
        older = diagnosis.Chain(
            family="ip", table="filter", name="FORWARD", program=legacy.program, legacy=True, how=legacy.how
        )
        chains.append(older)
    found = []
    for one in chains:
        if legacy is not None and one.legacy:
            passes = bool(cidrs) and sorted(legacy.ours) == sorted(accept_in_others.wanted(cidrs))
        else:
            passes = (one.family, one.table, one.name) in let
        if passes:
            found.append(Finding("forward policy", "ok", f"{one}: our rules in it let pods through"))
            continue
        cure = one.cure.replace("POD_NETWORK", network)
        by_us = f" (the agent adds such rules with {OPTION})"
        text = f"{one}: pods are cut off unless a rule in it accepts them{by_us}"
        found.append(Finding("forward policy", "warning", text, cure))
    return found or [Finding("forward policy", "ok", "no forward chain drops by policy")]


def plugins(status: LocalStatus | None) -> Iterator[Finding]:
    """The CNI files' order, and the plugins that ours names, and ``loopback``."""
    directory = Path(status.cni_dir if status is not None and status.cni_dir else DEFAULT_CNI_DIR)
    named = conflist_of(directory)
    wanted = [*dict.fromkeys([*(_types(named) or CNI_PLUGINS), "loopback"])]
    missing = [name for name in wanted if not any((Path(place) / name).exists() for place in CNI_DIRECTORIES)]
    if missing:
        yield Finding(
            "cni",
            "problem" if named else "warning",
            f"CNI plugins are missing: {', '.join(missing)} (looked in {', '.join(CNI_DIRECTORIES)}): pods "
            "that need them do not start",
            PACKAGE if {*missing} != {chain.OUR_PLUGIN} else INSTALL_OURS,
        )
    else:
        yield Finding("cni", "ok", f"CNI plugins are there ({', '.join(wanted)})")
    yield from _own_plugin(named)
    try:
        before = diagnosis.cni_before(directory, cni.FILE_NAME)
    except FileNotFoundError:
        before = ""
    if before:
        what, _, fix = before.partition(" Move it away: ")
        yield Finding("cni order", "problem", what.rstrip("."), fix)
    if (
        any(plugin.get("type") == "bridge" for plugin in named)
        and read_sysctl("net/bridge/bridge-nf-call-iptables") != "1"
    ):
        yield Finding(
            "bridge filter",
            "warning",
            "the bridge plugin is used and net.bridge.bridge-nf-call-iptables is not 1: Services between pods "
            "of this node are not translated",
            "modprobe br_netfilter && sysctl -w net.bridge.bridge-nf-call-iptables=1, or --cni-plugin ptp",
        )


def _own_plugin(named: list[dict[str, object]]) -> Iterator[Finding]:
    """Whether our own plugin ends the chain, and is this release's."""
    if not named:
        return
    programs = [Path(place) / chain.OUR_PLUGIN for place in CNI_DIRECTORIES]
    there = [path for path in programs if path.exists()]
    if not there:
        text = "our own is not installed: pods are noticed later, and the runtime is not told of cut packets"
        yield Finding("cni plugin", "info", text, INSTALL_OURS)
        return
    try:
        old = [str(path) for path in there if not chain.current(path, chain.shipped())]
    except IsthmusError as error:
        yield Finding("cni plugin", "info", error.message)
        return
    if old:
        yield Finding("cni plugin", "warning", f"{', '.join(old)} is another release's", INSTALL_OURS)
    elif chain.OUR_PLUGIN in _types(named):
        yield Finding("cni plugin", "ok", f"{there[0]} ends the chain")
    else:
        yield Finding(
            "cni plugin", "info", f"{there[0]} is there, and our file does not name it (--cni-own-plugin)"
        )


def conflist_of(directory: Path) -> list[dict[str, object]]:
    """The plugins that our file names; none when it is not there."""
    try:
        found = json.loads((directory / cni.FILE_NAME).read_bytes())["plugins"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [plugin for plugin in found if isinstance(plugin, dict)]


def _types(named: list[dict[str, object]]) -> list[str]:
    found: list[str] = []
    for plugin in named:
        found.append(str(plugin.get("type")))
        ipam = plugin.get("ipam")
        if isinstance(ipam, dict):
            found.append(str(ipam.get("type")))
    return found


def max_pods(own_range: str, config: Path = KUBELET_CONFIG) -> Iterator[Finding]:
    """Whether kubelet starts more pods than the node has addresses. Nothing without a kubelet."""
    try:
        text = config.read_text()
    except OSError:
        return
    found = re.search(r"^maxPods:\s*(\d+)", text, re.MULTILINE)
    allowed = int(found[1]) if found else MAX_PODS_DEFAULT
    addresses = IPv4Network(own_range).num_addresses - ADDRESSES_UNUSABLE
    if allowed > addresses:
        yield Finding(
            "max pods",
            "warning",
            f"kubelet starts up to {allowed} pods ({config}) and {own_range} has {addresses} addresses: the "
            "rest fails with FailedCreatePodSandBox",
            f"set maxPods: {addresses} in {config} and restart kubelet, or define a cluster with larger ranges",
        )
    else:
        yield Finding(
            "max pods", "ok", f"kubelet's {allowed} pods fit into {own_range} ({addresses} addresses)"
        )


def neighbour_table(address: str, peers: Iterable[str], limit: str | None) -> Iterator[Finding]:
    """Whether the kernel's table of link-layer neighbours holds the members on this node's own links.

    ``address`` is the underlay's, ``peers`` are the others', ``limit`` is :data:`NEIGHBOURS_MAX`: entries in
    all, beyond which the kernel resolves nobody (arp(7)). Members behind a router need no entry, nor
    do rows of ours, which are permanent (exempt since Linux 5.0). Raises OSError.
    """
    here = ip_address(address)
    nets = [IPv4Interface(f"{own}/{length}").network for _, own, length in links.addresses()]
    nets = [net for net in nets if here in net]
    near = sum(any(ip_address(peer) in net for net in nets) for peer in peers)
    if limit is None or not limit.isdigit() or not near:
        return
    if near < int(limit) * NEIGHBOURS_SHARE:
        yield Finding("neighbour table", "ok", f"{near} members on this link, room for {int(limit)}")
        return
    enough = 1 << (4 * near - 1).bit_length()
    yield Finding(
        "neighbour table",
        "warning",
        f"{near} members on this link, and {NEIGHBOURS_MAX} is {limit}: "
        "when the table is full, members cannot be reached",
        f"sysctl -w {NEIGHBOURS_MAX}={enough} {NEIGHBOURS_MAX[:-1]}2={enough // 2}, "
        "and keep it in /etc/sysctl.d",
    )


def path(status: LocalStatus, now: float | None = None) -> Iterator[Finding]:
    """Whether packets of this node's pods pass, as its agent last saw."""
    age_s = (now or now_of(status)) - status.path_confirmed_at
    last = f"one last passed {age_s:.0f} s ago" if status.path_confirmed_at else "none has passed yet"
    match status.path:
        case "confirmed":
            yield Finding("packets", "ok", f"packets of pods pass to other nodes and back: {last}")
        case "failing":
            yield Finding(
                "packets", "problem", f"packets of pods do not pass: {last}", "see the agent's condition `path`"
            )
        case "not confirmed":
            yield Finding("packets", "info", f"not confirmed that packets of pods pass: {last}")
        case _:
            return
