"""Listens to the kernel's notices and decides which of them are a reason to compare.

It is quiet about what the agent itself writes: a notice that agrees with what is wanted is no news.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from ipaddress import IPv4Address, IPv4Network
from typing import Protocol

from nodeagent.dataplane.counters import Counters
from nodeagent.dataplane.desired import Desired
from nodeagent.dataplane.fight_guard import DEVICE, FightGuard, RepairKey
from nodeagent.dataplane.preflight import ForeignRoute, overlapping
from nodeagent.dataplane.second_device import KEY
from nodeagent.dataplane.tunnel_device import TunnelDevice
from nodeagent.membership.view import View
from nodeagent.netlink.monitor import FOREIGN, AddressChange, LinkChange, Monitor, Notice, RowChange
from nodeagent.netlink.rows import STRAY, Kind, address_bytes, describe, mac_text, split_route_key

log = logging.getLogger("isthmus.agent.watcher")

FOREIGN_ROUTE = "foreign route"
"""The reason of a resync that also looks for routes of others that draw container traffic away."""


class ResyncTarget(Protocol):
    """Who compares, and what a notice is held against."""

    tunnel: TunnelDevice
    guard: FightGuard[RepairKey]
    counters: Counters
    desired: Desired | None
    view: View | None

    def request(self, reason: str) -> None:
        """Ask for a comparison."""


class KernelWatcher:
    """Between the monitor's socket and the reconciler's reasons."""

    def __init__(self, reconciler: ResyncTarget) -> None:
        self._target = reconciler
        self._monitor: Monitor | None = None
        self._watched = (0, 0, 0)

    def start(self) -> None:
        """Begin to listen, on the running event loop. Raises OSError."""
        self._monitor = Monitor()
        asyncio.get_running_loop().add_reader(self._monitor.fileno(), self._ready)

    def stop(self) -> None:
        """Stop listening."""
        if self._monitor is not None:
            asyncio.get_running_loop().remove_reader(self._monitor.fileno())
            self._monitor.close()
            self._monitor = None

    def watch(self, ifindex: int, port: int, second: int = 0) -> None:
        """The devices whose rows matter, and the port id whose own writes do not. From any thread."""
        if self._monitor is not None and self._watched != (ifindex, port, second):
            self._monitor.watch(ifindex, port, second)
            self._watched = (ifindex, port, second)

    def _ready(self) -> None:
        monitor = self._monitor
        if monitor is None:
            return
        try:
            notices = monitor.read()
        except OSError as error:
            log.warning(
                "the monitor's socket failed (%s) and is opened anew", errno.errorcode.get(error.errno or 0)
            )
            self.stop()
            self._watched = (0, 0, 0)
            self.start()
            self._target.request("monitor reopened")
            return
        for notice in notices:
            reason = self.reason(notice)
            if reason:
                self._target.request(reason)

    def reason(self, notice: Notice) -> str:
        """Why this notice asks for a comparison; empty when it does not."""
        if isinstance(notice, RowChange):
            return self._row(notice)
        if isinstance(notice, LinkChange):
            return self._link(notice)
        if isinstance(notice, AddressChange):
            return self._address(notice)
        self._target.counters.overflows += 1
        return "overflow"

    def _row(self, notice: RowChange) -> str:
        desired, guard, row = self._target.desired, self._target.guard, (notice.kind, notice.key)
        if desired is None:
            return ""
        if notice.second:
            return self._row_beside(notice)
        wanted = desired.rows[notice.kind].get(notice.key)
        if notice.value == wanted:
            return ""
        if wanted is None and notice.value == STRAY:
            return ""
        if wanted is None and notice.value == FOREIGN:
            underlay = self._target.tunnel.underlay
            if underlay is not None and not underlay.present:
                return "route"  # maybe the one by which packets leave from now on
            return FOREIGN_ROUTE if self._draws_containers_away(notice) else ""
        if guard.contested(row, time.monotonic()):
            return "contested" if guard.tell(row) else ""
        return f"drift: {describe(notice.kind, notice.key, wanted or b'')}"

    def _row_beside(self, notice: RowChange) -> str:
        """The same for a row of the second device."""
        wanted = self._target.tunnel.second.rows[notice.kind].get(notice.key)
        row = (notice.kind, KEY + notice.key)
        if notice.value == wanted or (wanted is None and notice.value == STRAY):
            return ""
        if self._target.guard.contested(row, time.monotonic()):
            return "contested" if self._target.guard.tell(row) else ""
        return f"drift: {describe(notice.kind, notice.key, wanted or b'')}"

    def _draws_containers_away(self, notice: RowChange) -> bool:
        """Whether a route of somebody else meets the container network outside this node's own range."""
        view = self._target.view
        if view is None or view.plan is None or view.own is None or notice.kind is not Kind.ROUTE:
            return False
        network, length, _ = split_route_key(notice.key)
        route = ForeignRoute(IPv4Network((network, length)), 0, 0)
        return length > 0 and bool(overlapping([route], view.plan.cidrs, view.own.cidr))

    def _link(self, notice: LinkChange) -> str:
        tunnel = self._target.tunnel
        spec, underlay = tunnel.spec, tunnel.underlay
        if spec is not None and (notice.ifindex == tunnel.ifindex or notice.name == spec.name):
            if notice.gone:
                return "device gone"
            differing = [
                name
                for name, present, wanted in (
                    ("up", notice.up, True),
                    ("mtu", notice.mtu, spec.mtu),
                    ("mac", mac_text(notice.mac), spec.mac),
                    ("name", notice.name, spec.name),
                    ("local", notice.local, address_bytes(spec.local)),
                    ("master", notice.master, 0),
                    ("arp", notice.arp, True),
                )
                if present != wanted
            ]
            return self._device(differing)
        second = tunnel.second
        if second.spec is not None and (notice.ifindex == second.ifindex or notice.name == second.name):
            as_wanted = (
                notice.up and notice.mtu == second.spec.mtu and notice.local == address_bytes(second.spec.local)
            )
            return "" if as_wanted and not notice.gone else "second device changed"
        if underlay is not None and (notice.ifindex == underlay.ifindex or notice.name == underlay.device):
            there = (not notice.gone, notice.up and notice.carrier, notice.mtu)
            return "" if there == (underlay.ifindex != 0, underlay.up, underlay.mtu) else "underlay changed"
        return ""

    def _device(self, differing: list[str]) -> str:
        """These properties are not as specified; those that are fought over wait for their time."""
        guard, now = self._target.guard, time.monotonic()
        contested = [name for name in differing if guard.contested((DEVICE, name), now)]
        if len(contested) < len(differing):
            return "device changed"
        news = [name for name in contested if guard.tell((DEVICE, name))]
        return "contested" if news else ""

    def _address(self, notice: AddressChange) -> str:
        tunnel = self._target.tunnel
        spec, underlay = tunnel.spec, tunnel.underlay
        if len(notice.address) != 4:
            return ""
        address = str(IPv4Address(notice.address))
        if spec is not None and notice.ifindex == tunnel.ifindex:
            return "" if (address == spec.address) != notice.gone else self._device(["address"])
        if underlay is None:
            return ""
        concerned = underlay.ifindex in {0, notice.ifindex} or address == underlay.address
        as_known = address == underlay.address and underlay.present and not notice.gone
        return "underlay address" if concerned and not as_known else ""
