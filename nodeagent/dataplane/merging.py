"""Whether receive offload (GRO) on the tunnel device is worth what it costs, judged by what arrives there.

It merges small segments into large ones, which halves the cost of bulk transfers; but where the NIC has merged
them already, it only queues each packet once more (a fifth of the CPU time of a small one, measured on Linux
6.18). The device's own counters tell which it is: packets that are longer than the way allows were merged
before. Where nothing is known it stays on, which is never much worse.
"""

from __future__ import annotations

import errno
import logging
from pathlib import Path
from typing import NamedTuple

from nodeagent.dataplane import host_settings

log = logging.getLogger("isthmus.agent.merging")

PACKETS_MIN = 1000
"""Fewer packets than that say nothing."""
ETHERNET_BYTES = 14


class Arrived(NamedTuple):
    """Packets and bytes that a device has received so far, merged packets counted once."""

    packets: int
    octets: int


def arrived(device: str) -> Arrived:
    """The device's counters in this network namespace (``/sys`` may show another). Raises OSError."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, words = line.partition(":")
        if name.strip() == device:
            octets, packets = words.split()[:2]
            return Arrived(int(packets), int(octets))
    raise OSError(errno.ENODEV, "no such device", device)


def judge(on: bool, packets: int, octets: int, mtu: int) -> bool:
    """Whether to merge from now on, by the mean length of what came since it was judged last."""
    if packets < PACKETS_MIN:
        return on
    mean = octets / packets
    if mean > mtu + ETHERNET_BYTES:
        return False
    return on or mean > mtu / 3  # full segments, some acknowledgements between: worth merging


class Merging:
    """The setting of one tunnel device; ``wish`` None finds it out."""

    def __init__(self, wish: bool | None) -> None:
        self.on = wish is not False
        self._automatic = wish is None
        self._before = Arrived(0, 0)

    def look(self, device: str, mtu: int) -> None:
        """Judge by what has arrived since the last look, and switch. Raises OSError."""
        if not self._automatic:
            return
        now = arrived(device)
        if now.packets < self._before.packets:  # a device that was made anew
            self._before = Arrived(0, 0)
        packets, octets = now.packets - self._before.packets, now.octets - self._before.octets
        if packets < PACKETS_MIN:
            return
        self._before = now
        wanted = judge(self.on, packets, octets, mtu)
        if wanted != self.on:
            self.on = wanted
            host_settings.set_gro(device, on=wanted)
            log.info(
                "receive offload on %s is %s: %d bytes a packet",
                device,
                "on" if wanted else "off",
                octets // packets,
            )
