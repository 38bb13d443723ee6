"""Whether the UDP ports that WireGuard needs here are its own or free, and what to do where they are not."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from events.protocol.encryption import WIREGUARD_PORT, WIREGUARD_PORT_MAX, WIREGUARD_PORTS
from nodeagent.netlink.udp_ports import Holder, bound, holders
from nodeagent.wireguard import link
from nodeagent.wireguard.pairs import PAIRS
from nodeagent.wireguard.userspace import PROGRAM


def strangers(first: int, tunnel: str) -> list[Holder]:
    """Who but our devices holds one of the ports, where ``first`` is announced. Raises OSError."""
    devices = {pair.port(first): pair.name(tunnel) for pair in PAIRS}
    return [one for one in holders(devices) if not _ours(one, devices[one.port])]


def _ours(holder: Holder, device: str) -> bool:
    if not link.index_of(device):
        return False
    words = holder.arguments
    return not holder.pid or (bool(words) and Path(words[0]).name == PROGRAM and device in words)


def in_words(found: Iterable[Holder]) -> str:
    """Which ports they hold, as the beginning of a sentence."""
    return ", ".join(f"UDP port {one.port} is held by {one}" for one in found)


def way_out() -> str:
    """What to do about it. Raises OSError."""
    held = bound()
    for first in range(WIREGUARD_PORT, WIREGUARD_PORT_MAX, WIREGUARD_PORTS):
        if not held.intersection(range(first, first + WIREGUARD_PORTS)):
            return f"stop it, or start the agent with --wireguard-port {first}"
    return "stop it"
