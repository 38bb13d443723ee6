"""Which address the tunnel has, and the device and MTU by which its packets leave.

It reads the kernel and changes nothing. An address that the cluster knows is kept for as long as it works: a
default route that a VPN adds moves nobody. Where packets to peers leave is the kernel's answer, no guess.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from ipaddress import IPv4Address
from itertools import islice

import msgspec

from events.errors import Usage
from nodeagent.config import IPV4_ONLY
from nodeagent.netlink import links
from nodeagent.netlink.links import MTU_MINIMUM, VXLAN_OVERHEAD_V4

ETHERNET_MTU = 1500
WIREGUARD_MORE = 10
"""Bytes that WireGuard takes beyond VXLAN: outer IPv4 20 + UDP 8 + its own 32."""
PEERS_ASKED = 3
LOOPBACK = "lo"
IPV4_LARGEST = 65535
"""Bytes of an IP packet, of which the loopback device would take one more."""


class Underlay(msgspec.Struct, frozen=True):
    """The address on the node's own link, and that link. ``ifindex`` 0: it is not there just now.

    ``up``: set up, and with a carrier.
    """

    address: str
    device: str
    ifindex: int
    mtu: int
    up: bool

    @property
    def present(self) -> bool:
        """Whether packets can leave by it now."""
        return self.ifindex != 0 and self.up


def overlay_mtu(underlay: Underlay, configured: int = 0, *, encrypted: bool = False) -> int:
    """Bytes of an inner IP packet: underlay − 50 (IPv4), or what is configured if that is less.

    Where WireGuard encrypts, underlay − 60 on every way: pods have one MTU.
    """
    overhead = VXLAN_OVERHEAD_V4 + (WIREGUARD_MORE if encrypted else 0)
    following = max(MTU_MINIMUM, underlay.mtu - overhead)
    return min(configured, following) if configured else following


def resolve(wanted: str, last: Underlay | None = None, peers: Iterable[str] = ()) -> Underlay:
    """Find the underlay for ``auto``, a device name or an address.

    ``peers`` are addresses of peers, of which some are asked about. When the underlay is away just now, the
    answer is the last known one, marked absent. Raises Usage when it has never been there: a device without
    address, no default route.
    """
    some = list(islice(peers, PEERS_ASKED))
    if _is_address(wanted):
        return _leaving(_by_address(wanted, last), some)
    kept = _by_address(last.address, last) if last is not None else None
    if kept is not None and kept.present and wanted in {"auto", kept.device}:
        return _leaving(kept, some)
    device = (_device_towards(some) or links.default_device()) if wanted == "auto" else wanted
    if not device and last is not None:
        device = last.device
    link = links.find(device) if device else None
    if link is not None:
        address = next((text for index, text, _ in links.addresses() if index == link.index), "")
        if address:
            found = Underlay(
                address, link.name, link.index, min(link.mtu, IPV4_LARGEST), link.up and link.carrier
            )
            return _leaving(found, some)
    if kept is not None and kept.present:
        return _leaving(kept, some)  # it has moved: to a bridge that the device is a port of, for instance
    if last is not None:
        return msgspec.structs.replace(last, ifindex=0, up=False)
    raise Usage("usage", _why_not(wanted, found=link is not None))


def _device_towards(peers: Iterable[str]) -> str:
    """The device by which the kernel would send to one of these; empty when it knows no way."""
    for peer in peers:
        with contextlib.suppress(OSError):
            way = links.route_to(peer)
            link = links.find(way.device) if way.source and way.device != LOOPBACK else None
            if link is not None and link.up and link.carrier:
                return way.device
    return ""


def _leaving(found: Underlay, peers: Iterable[str]) -> Underlay:
    """The same address with the device by which its packets leave: that one's MTU counts.

    An address may be on the loopback device, or on one that carries no packets (routers do that).
    """
    if not found.present:
        return found
    ways: dict[int, links.KernelRoute] = {}
    for peer in peers:
        with contextlib.suppress(OSError):
            way = links.route_to(peer, source=found.address)
            if way.device and way.device != LOOPBACK:
                ways[way.index] = way
    if not ways and found.device == LOOPBACK:
        default = links.find(links.default_device() or found.device)
        if default is None or default.name == LOOPBACK:
            return msgspec.structs.replace(found, mtu=ETHERNET_MTU)
        return msgspec.structs.replace(found, device=default.name, ifindex=default.index, mtu=default.mtu)
    others = [link for link in links.links() if link.index in ways]
    if not others or any(link.index == found.ifindex for link in others):
        mtu = min([found.mtu, *(link.mtu for link in others)])
        return msgspec.structs.replace(found, mtu=mtu)
    link = min(others, key=lambda link: link.mtu)
    return msgspec.structs.replace(
        found, device=link.name, ifindex=link.index, mtu=link.mtu, up=link.up and link.carrier
    )


def _why_not(wanted: str, *, found: bool) -> str:
    option = f"--underlay {wanted}"
    if ":" in wanted:
        return f"{option}: {IPV4_ONLY}. Give the node's IPv4 address, or its device"
    if found:
        return f"{option}: the device has no IPv4 address, and {IPV4_ONLY}. Give it one, or name another"
    if wanted == "auto":
        return "no IPv4 default route leads to the underlay: start with --underlay ADDRESS or --underlay DEVICE"
    return f"{option}: there is no such device (see `ip link`), and it is no IPv4 address"


def _by_address(address: str, last: Underlay | None) -> Underlay:
    index = next((index for index, text, _ in links.addresses() if text == address), 0)
    link = next((link for link in links.links() if link.index == index), None)
    if link is None:
        mtu = last.mtu if last is not None else ETHERNET_MTU
        return Underlay(address, last.device if last is not None else "", 0, mtu, up=False)
    return Underlay(address, link.name, link.index, min(link.mtu, IPV4_LARGEST), link.up and link.carrier)


def _is_address(text: str) -> bool:
    try:
        IPv4Address(text)
    except ValueError:
        return False
    return True
