"""Follows the way to a peer in trouble hop by hop, as this node sees it: at most a few peers, and rarely.

Route, neighbour and FDB entry for that peer alone, the filters of this host, then packets: to the peer's
underlay address, through the tunnel to its kernel, and from pod to pod.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from events.mesh import TRACES_MAX, Step, Trace
from nodeagent.health import diagnosis
from nodeagent.health.path_prober import Route, answers_at
from nodeagent.health.probe_device import device_name, probe_address
from nodeagent.membership.peers import Peer
from nodeagent.membership.values import first_address
from nodeagent.netlink import links
from nodeagent.netlink.rows import Kind, describe
from nodeagent.netlink.socket import Engine, NetlinkChannel

log = logging.getLogger("isthmus.agent.mesh")

AGAIN_S, AGAIN_MAX_S = 5.0, 60.0
"""Between two traces of one peer, while it is in trouble; twice as long each time that nothing is new."""
ROUND_S = 1.0
"""Between two rounds, however often traces are asked for."""
ASKED_KEPT_S = 30.0
"""A trace that somebody asked for is kept and repeated so long."""
NO_WAY = frozenset({errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EACCES, errno.EINVAL, errno.EXDEV})
"""What the kernel answers when it would not forward a packet."""


class PeerTracer:
    """:meth:`want` says whom to trace; :meth:`run` does it; :meth:`traces` gives what was found.

    ``told``: what the book says of a peer, by its epoch, as (small packets pass, large ones do).
    """

    def __init__(
        self, told: Callable[[int], tuple[int, int]], *, due: Callable[[], None] = lambda: None
    ) -> None:
        self._told = told
        self.due = due
        self._wanted: list[Peer] = []
        self._route: Route | None = None
        self._found: dict[int, tuple[float, tuple[Step, ...]]] = {}
        self._next: dict[int, tuple[float, float]] = {}  # epoch → when it is traced again, and the pause then
        self._wake = asyncio.Event()
        self._asked: dict[int, float] = {}

    def ask(self, epoch: int, now: float) -> None:
        """Somebody wants to see the way to the peer with that epoch, whatever its state; the last few count."""
        self._asked.pop(epoch, None)
        self._asked[epoch] = now
        while len(self._asked) > TRACES_MAX:
            del self._asked[next(iter(self._asked))]
        self._wake.set()

    def asked(self, now: float) -> list[int]:
        """Whose ways were asked for lately."""
        self._asked = {epoch: at for epoch, at in self._asked.items() if now - at < ASKED_KEPT_S}
        return list(self._asked)

    def want(self, peers: list[Peer], route: Route) -> None:
        """The peers to trace, now: the last few of them, so what matters most is last."""
        self._route = route
        wanted = peers[-TRACES_MAX:]
        if wanted != self._wanted:
            self._wanted = wanted
            present = {peer.epoch for peer in wanted}
            self._found = {epoch: found for epoch, found in self._found.items() if epoch in present}
            self._next = {epoch: due for epoch, due in self._next.items() if epoch in present}
            self._wake.set()

    def traces(self, now: float) -> tuple[Trace, ...]:
        """What was found of those still in trouble."""
        return tuple(
            Trace(epoch, round(max(0.0, now - at), 1), steps) for epoch, (at, steps) in self._found.items()
        )

    async def run(self) -> None:
        """Until cancelled; what it has started ends with it."""
        while True:
            begun = time.monotonic()
            self._wake.clear()
            for peer in list(self._wanted):
                route = self._route
                if route is None or route.view.own is None or not self._is_due(peer.epoch, time.monotonic()):
                    continue
                try:
                    async with asyncio.timeout(AGAIN_S * 2):
                        steps = await self._trace(peer, route)
                except (TimeoutError, OSError) as error:
                    log.debug("no trace of %s: %s", peer.node, error)
                    continue
                known = self._found.get(peer.epoch)
                if peer in self._wanted:
                    now = time.monotonic()
                    self._found[peer.epoch] = now, steps
                    same = known is not None and [step.ok for step in known[1]] == [step.ok for step in steps]
                    last = self._next.get(peer.epoch, (0.0, AGAIN_S))[1]
                    pause = min(AGAIN_MAX_S, 2 * last) if same else AGAIN_S
                    self._next[peer.epoch] = now + pause, pause
                    if known is None or known[1] != steps or known[0] < self._asked.get(peer.epoch, 0.0):
                        self.due()
            await asyncio.sleep(max(0.0, begun + ROUND_S - time.monotonic()))
            try:
                async with asyncio.timeout(AGAIN_S if self._wanted else None):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def _is_due(self, epoch: int, now: float) -> bool:
        """Whether it is time to look again: for a person at once, and then as long as one may be watching."""
        asked, last = self._asked.get(epoch, -1e9), self._found.get(epoch, (-1e9, ()))[0]
        if now - asked < ASKED_KEPT_S:
            return last < asked or now - last >= AGAIN_S
        return now >= self._next.get(epoch, (0.0, 0.0))[0] - 0.1

    async def _trace(self, peer: Peer, route: Route) -> tuple[Step, ...]:
        own = route.view.own
        plan = route.view.plan
        if own is None or plan is None:
            return ()
        small, large = self._told(peer.epoch)
        vtep = first_address(peer.cidr)
        steps = list(await asyncio.to_thread(_kernel_steps, peer, route, own.cidr))
        before = await _drops(route.device)
        tunnel, underlay = await asyncio.gather(
            answers_at(first_address(own.cidr), vtep), answers_at(route.underlay, peer.underlay)
        )
        after = await _drops(route.device)
        rose = [
            f"{after[name] - before.get(name, 0):,} by {name}"
            for name in after
            if after[name] > before.get(name, 0)
        ]
        counted = (
            "dropped here meanwhile: " + "; ".join(rose[:3]) if rose else "nothing was dropped here meanwhile"
        )
        found = Step("filters", 1) if small == 1 else await _filters(plan.port)
        steps.append(Step(found.name, found.ok, f"{found.text}; {counted}" if found.text else counted))
        # Many networks drop datagrams to closed ports: silence is a fault only where nothing else passes.
        steps += [
            Step("underlay ping", 1)
            if underlay
            else Step("underlay ping", -1 if tunnel else 0, f"{peer.underlay} answers no datagram"),
            Step("tunnel ping", 1)
            if tunnel
            else Step("tunnel ping", 0, f"{vtep} does not answer through the tunnel (UDP port {plan.port})"),
            Step("pod ping", small, "" if small == 1 else f"{probe_address(peer.cidr)} does not answer"),
            Step(
                "MTU",
                large,
                f"packets of {route.mtu} bytes do not arrive, small ones do"
                if large == 0
                else f"{route.mtu} bytes",
            ),
        ]
        return tuple(steps)


async def _filters(port: int) -> Step:
    """What drops the tunnel's packets or forwarded ones on this host."""
    rules = await diagnosis.dropping_rules(port)
    if rules:
        return Step("filters", 0, f"UDP port {port} is dropped here: {rules[0]}")
    chains = await diagnosis.dropping_chains()
    return Step("filters", 0, f"not forwarded here: {chains[0]}") if chains else Step("filters", 1)


async def _drops(device: str) -> dict[str, int]:
    """Packets dropped on this host so far: by rules that count, and by the tunnel device."""
    return {**await diagnosis.dropped_packets(), **_dropped_by(device)}


def _dropped_by(device: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for name in ("tx_errors", "tx_dropped", "rx_dropped", "rx_errors"):
        with contextlib.suppress(OSError, ValueError):
            found[f"{name} of {device}"] = int(
                Path(f"/sys/class/net/{device}/statistics/{name}").read_text(encoding="ascii")
            )
    return found


def _kernel_steps(peer: Peer, route: Route, own_range: str) -> tuple[Step, Step]:
    """The route and the rows as the kernel has them. In a worker thread."""
    try:
        rows = _rows(peer, route)
    except OSError as error:
        rows = Step("rows", -1, f"the kernel was not read: {_words(error)}")
    try:
        return _way(peer, route, own_range), rows
    except OSError as error:
        return Step("route", -1, f"the kernel was not asked: {_words(error)}"), rows


def _words(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)


def _way(peer: Peer, route: Route, own_range: str) -> Step:
    """Where this host would forward a pod's packet. Raises OSError."""
    entry = socket.if_nametoindex(device_name(route.device))
    try:
        way = links.route_to(first_address(peer.cidr), source=probe_address(own_range), incoming=entry)
    except OSError as error:
        if error.errno not in NO_WAY:
            raise
        return Step("route", 0, f"the kernel has no way from a pod here to {peer.cidr} ({_words(error)})")
    if route.leads_to(peer, way):
        return Step("route", 1, f"{peer.cidr} by {way.device or route.device}")
    taken = way.device or "no device"
    if way.table not in {0, 254}:
        taken += f" (table {way.table})"
    return Step("route", 0, f"packets for {peer.cidr} leave by {taken}, not by {route.device}")


def _rows(peer: Peer, route: Route) -> Step:
    """The neighbour and FDB entry that lead to the peer. Raises OSError."""
    vtep, mac, underlay, _ = peer.packed()
    address = first_address(peer.cidr)
    with Engine(NetlinkChannel()) as engine:
        neighbour = engine.read_one(Kind.NEIGHBOUR, vtep, route.ifindex)
        entry = engine.read_one(Kind.FDB, mac, route.ifindex)
    if neighbour != mac:
        found = describe(Kind.NEIGHBOUR, vtep, neighbour) if neighbour is not None else "it is missing"
        return Step("rows", 0, f"neighbour {address}: {found}, the log says {peer.vtep_mac}")
    if entry != underlay:
        found = describe(Kind.FDB, mac, entry) if entry is not None else "it is missing"
        return Step("rows", 0, f"FDB entry {peer.vtep_mac}: {found}, the log says {peer.underlay}")
    return Step("rows", 1, f"{address} is {peer.vtep_mac} at {peer.underlay}, epoch {peer.epoch}")
