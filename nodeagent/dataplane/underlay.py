"""Which address, device and MTU the tunnel stands on. It reads the kernel and changes nothing."""

from __future__ import annotations

from ipaddress import IPv4Address

import msgspec

from events.errors import Usage
from nodeagent.config import IPV4_ONLY
from nodeagent.netlink import links
from nodeagent.netlink.links import MTU_MINIMUM, VXLAN_OVERHEAD_V4

ETHERNET_MTU = 1500
IPV4_LARGEST = 65535
"""Bytes of an IP packet, of which the loopback device would take one more."""


class Underlay(msgspec.Struct, frozen=True):
    """The address on the node's own link, and that link. ``ifindex`` 0: it is not there just now."""

    address: str
    device: str
    ifindex: int
    mtu: int
    up: bool

    @property
    def present(self) -> bool:
        """Whether packets can leave by it now."""
        return self.ifindex != 0 and self.up


def overlay_mtu(underlay: Underlay, configured: int = 0) -> int:
    """Bytes of an inner IP packet: underlay − 50 (IPv4), or what is configured if that is less."""
    following = max(MTU_MINIMUM, underlay.mtu - VXLAN_OVERHEAD_V4)
    return min(configured, following) if configured else following


def resolve(wish: str, last: Underlay | None = None) -> Underlay:
    """Find the underlay for ``auto``, a device name or an address.

    When it is away just now, the answer is the last known one, marked absent. Raises Usage when it
    has never been there: a device without address, no default route.
    """
    if _is_address(wish):
        return _by_address(wish, last)
    device = links.default_device() if wish == "auto" else wish
    if not device and last is not None:
        device = last.device
    link = links.find(device) if device else None
    if link is not None:
        address = next((text for index, text, _ in links.addresses() if index == link.index), "")
        if address:
            return Underlay(address, link.name, link.index, min(link.mtu, IPV4_LARGEST), link.up)
    if last is not None:
        return msgspec.structs.replace(last, ifindex=0, up=False)
    raise Usage("usage", _why_not(wish, found=link is not None))


def _why_not(wish: str, *, found: bool) -> str:
    if ":" in wish:
        return f"--underlay {wish}: {IPV4_ONLY}. Give the node's IPv4 address, or its device"
    if found:
        return (
            f"--underlay {wish}: the device has no IPv4 address, and {IPV4_ONLY}. Give it one, or name another"
        )
    if wish == "auto":
        return "no IPv4 default route tells the underlay: start with --underlay ADDRESS or --underlay DEVICE"
    return f"--underlay {wish}: there is no such device (see `ip link`), and it is no IPv4 address"


def _by_address(address: str, last: Underlay | None) -> Underlay:
    index = next((index for index, text, _ in links.addresses() if text == address), 0)
    link = next((link for link in links.links() if link.index == index), None)
    if link is None:
        mtu = last.mtu if last is not None else ETHERNET_MTU
        return Underlay(address, last.device if last is not None else "", 0, mtu, up=False)
    return Underlay(address, link.name, link.index, min(link.mtu, IPV4_LARGEST), link.up)


def _is_address(text: str) -> bool:
    try:
        IPv4Address(text)
    except ValueError:
        return False
    return True
