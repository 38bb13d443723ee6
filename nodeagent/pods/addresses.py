"""Which container addresses pods on this node have, by what the kernel and the address plugin show.

Evidence, any of which counts: a host route to one address over a veth (``ptp``), a lease of ``host-local``
or a neighbour while pods hang on our bridge (``bridge``), and a lease so young that its pod is just being
attached. A lease alone is no pod: it outlives a restart of the machine. Nothing is changed here.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import msgspec

from nodeagent.config import DEFAULT_NETWORK, FLANNEL_NETWORK
from nodeagent.dataplane.preflight import foreign_routes
from nodeagent.netlink import links
from nodeagent.pods.cni import BRIDGE, FLANNEL_BRIDGE

YOUNG_S = 60.0
"""How long a lease counts without a route: a pod is attached in much less."""


class Pods(msgspec.Struct, frozen=True, kw_only=True):
    """What was found. ``sequence`` is the event by which own and other ranges were told apart.

    ``own`` counts pods in the node's range, whose addresses are ``homes``; ``strays`` are the addresses of pods
    in any other. Both ascend.
    """

    sequence: int
    own: int = 0
    homes: tuple[str, ...] = ()
    strays: tuple[str, ...] = ()

    def ranges(self, length: int) -> tuple[str, ...]:
        """The ranges (of ``length`` bits) that the strays are in."""
        found = {IPv4Network((address, length), strict=False) for address in self.strays}
        return tuple(str(network) for network in sorted(found))


def find(data_dir: Path, containers: Sequence[str], own: str, *, device: str, sequence: int) -> Pods:
    """Look now, in a worker thread. ``own`` is the node's range, or empty. Raises OSError."""
    networks = [IPv4Network(cidr) for cidr in containers]
    leases = leases_in(data_dir)
    now = time.time()
    found = {address for address, since in leases.items() if now - since < YOUNG_S}
    present = {link.index: link for link in links.links()}
    index = next((link.index for link in present.values() if link.name == device), 0)
    for route in foreign_routes(index):
        link = present.get(route.ifindex)
        if link is not None and link.kind == "veth" and route.network.prefixlen == 32:
            found.add(route.network.network_address)
    for bridge in [link.index for link in present.values() if link.name in {BRIDGE, FLANNEL_BRIDGE}]:
        if links.has_ports(bridge):
            found |= {*leases, *map(IPv4Address, links.neighbours(bridge))}
    inside = {address for address in found if any(address in network for network in networks)}
    home = {address for address in inside if own and address in IPv4Network(own)}
    return Pods(
        sequence=sequence,
        own=len(home),
        homes=tuple(map(str, sorted(home))),
        strays=tuple(map(str, sorted(inside - home))),
    )


def leases_in(data_dir: Path) -> dict[IPv4Address, float]:
    """host-local's leases: address → when it was given (Unix seconds). Raises OSError."""
    found: dict[IPv4Address, float] = {}
    directories = [data_dir / name for name in (DEFAULT_NETWORK, FLANNEL_NETWORK)]
    for path in (path for directory in directories if directory.is_dir() for path in directory.iterdir()):
        try:
            found[IPv4Address(path.name)] = path.stat().st_mtime
        except (ValueError, FileNotFoundError):
            continue  # host-local's lock and marks; a lease that has just ended
    return found


def release(data_dir: Path, address: str) -> None:
    """End the lease of an address whose pod is gone. Raises OSError."""
    for name in (DEFAULT_NETWORK, FLANNEL_NETWORK):
        (data_dir / name / address).unlink(missing_ok=True)
