"""What a node's kernel really holds, read by `ip` and `bridge`: a second opinion on the agent's own view.

Cancelled, the programs are killed; they only read.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deploy.lab.machines.shell import run_json

if TYPE_CHECKING:
    from collections.abc import Iterable

    from deploy.lab.machines.machine import Machine
    from deploy.lab.members import Member

PROTOCOL = "84"
"""The agent's mark of ownership on routes and neighbours, as the design states it."""


@dataclass(frozen=True, slots=True)
class OverlayRows:
    """The overlay's rows on one node: who is next hop, behind which MAC, at which underlay address."""

    neighbours: frozenset[tuple[str, str]]  # VTEP address, MAC
    fdb: frozenset[tuple[str, str]]  # MAC, underlay address
    routes: frozenset[tuple[str, str]]  # range, VTEP address

    def __len__(self) -> int:
        return len(self.neighbours) + len(self.fdb) + len(self.routes)

    def mentions(self, member: Member) -> int:
        """How many rows belong to this member."""
        return len(self.of([member], self))

    @staticmethod
    def of(members: Iterable[Member], within: OverlayRows | None = None) -> OverlayRows:
        """The rows that these members cause on a peer; only those that `within` holds, when given."""
        everyone = list(members)
        rows = OverlayRows(
            frozenset((member.vtep, member.mac) for member in everyone),
            frozenset((member.mac, member.underlay) for member in everyone),
            frozenset((member.range, member.vtep) for member in everyone),
        )
        if within is None:
            return rows
        return OverlayRows(
            rows.neighbours & within.neighbours, rows.fdb & within.fdb, rows.routes & within.routes
        )

    def differences(self, wanted: OverlayRows) -> list[str]:
        """One line per row that is missing here or too many, in the words of a person."""
        pairs = (
            ("neighbour", self.neighbours, wanted.neighbours),
            ("FDB row", self.fdb, wanted.fdb),
            ("route", self.routes, wanted.routes),
        )
        lines = [
            f"missing {what} {' → '.join(row)}" for what, here, there in pairs for row in sorted(there - here)
        ]
        return lines + [
            f"stale {what} {' → '.join(row)}" for what, here, there in pairs for row in sorted(here - there)
        ]


async def vxlan_device(machine: Machine) -> dict[str, Any] | None:
    """The node's VXLAN device as `ip -d link` describes it, or None."""
    links = await run_json(machine.inside("ip", "-j", "-d", "link", "show", "type", "vxlan"))
    return dict(links[0]) if links else None


async def overlay_rows(machine: Machine) -> OverlayRows:
    """The permanent rows on the node's VXLAN device; none when there is no device."""
    device = await vxlan_device(machine)
    if device is None:
        return OverlayRows(frozenset(), frozenset(), frozenset())
    name = device["ifname"]
    neighbours, fdb, routes = await asyncio.gather(
        run_json(machine.inside("ip", "-j", "neigh", "show", "dev", name, "nud", "permanent")),
        run_json(machine.inside("bridge", "-j", "fdb", "show", "dev", name)),
        run_json(machine.inside("ip", "-j", "route", "show", "dev", name, "proto", PROTOCOL)),
    )
    return OverlayRows(
        frozenset((row["dst"], row["lladdr"]) for row in neighbours if "lladdr" in row),
        frozenset((row["mac"], row["dst"]) for row in fdb if "dst" in row),
        frozenset((row["dst"], row["gateway"]) for row in routes if "gateway" in row),
    )
