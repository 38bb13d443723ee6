"""A range that a node of a running cluster has → its place in the pool, or everything that is wrong with it.

Pure; the only reader of ranges that we did not choose.
"""

from __future__ import annotations

from typing import NamedTuple

from controlplane.cluster.addressing.addresses import Net, address_value, network
from controlplane.cluster.addressing.plan import prefix_of
from controlplane.cluster.state import ClusterState
from events.errors import Refused

SHOWN = 64


class Finding(NamedTuple):
    """Why something cannot be adopted: a stable code, and the text with both sides."""

    code: str
    message: str


class Placed(NamedTuple):
    """``number`` is the range's index in the pool, -1 when it has none; ``cidr`` is its text."""

    number: int
    cidr: str
    findings: tuple[Finding, ...]


def read(text: str) -> tuple[Net | None, tuple[Finding, ...]]:
    """The network that the text names, or why it names none."""
    given = text.strip()
    if not given:
        return None, (Finding("adopt_range_missing", "it has no range"),)
    parts = [part for part in given.replace(",", " ").split() if part]
    wide = [part for part in parts if ":" in part]
    if wide:
        return None, (Finding("adopt_range_ipv6", f"its range {wide[0][:SHOWN]!r} is not IPv4"),)
    if len(parts) > 1:
        listed = ", ".join(part[:SHOWN] for part in parts[:4])
        return None, (
            Finding("adopt_range_several", f"it has {len(parts)} ranges ({listed}), a node here has one"),
        )
    quad, _, mask = given.partition("/")
    value = address_value(quad)
    if value is None or not (mask.isascii() and mask.isdigit()) or len(mask) > 2 or not 0 < int(mask) <= 32:
        return None, (
            Finding(
                "adopt_range_unreadable", f"its range {given[:SHOWN]!r} is no IPv4 network like 10.42.3.0/24"
            ),
        )
    size = 1 << (32 - int(mask))
    net = Net(value & ~(size - 1), size)
    if value != net.first:
        return net, (
            Finding(
                "adopt_range_host_bits",
                f"its range {given} has host bits set: {quad} is not the first address of {net}",
            ),
        )
    return net, ()


def place(state: ClusterState, text: str) -> Placed:
    """Where in the cluster's pool the range lies, with every finding about it. O(container CIDRs)."""
    net, found = read(text)
    definition = state.definition
    if net is None or definition is None:
        return Placed(-1, text, found)
    findings = list(found)
    if net.size != definition.range_size:
        findings.append(
            Finding(
                "adopt_range_size",
                f"its range {net} has {net.size:,} addresses, the cluster's ranges have "
                f"{definition.range_size:,} (/{prefix_of(definition.range_size)})",
            )
        )
    home = next((own for own in state.cidrs if _net(own.cidr).contains(net)), None)
    if home is None:
        held = ", ".join(own.cidr for own in state.cidrs)
        findings.append(
            Finding("adopt_range_outside", f"its range {net} lies outside the container CIDR {held}")
        )
    services = _net(definition.service_cidr)
    if services.overlaps(net):
        findings.append(
            Finding("adopt_range_service", f"its range {net} overlaps the Service range {services}")
        )
    if findings or home is None:
        return Placed(-1, str(net), tuple(findings))
    index = home.first_index + (net.first - home.first) // definition.range_size
    if state.cidr_of(index) != str(net):  # between the last whole range and the Service range
        outside = Finding("adopt_range_outside", f"{net} is none of the ranges of {home.cidr}")
        return Placed(-1, str(net), (outside,))
    return Placed(index, str(net), ())


def _net(cidr: str) -> Net:
    try:
        return network(cidr)
    except Refused:  # a log's own definition was checked when it was written
        return Net(0, 1)
