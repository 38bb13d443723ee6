"""Measures how large packets may be on the way to each peer, and keeps its route's MTU right.

A link's MTU says nothing of a tunnel, a VPN or PPPoE somewhere on the path. There the kernel's VXLAN packets
are cut into pieces, slowly, or lost where pieces are dropped; nobody tells the pods. A route with an MTU
does: the kernel answers what is too large with ICMP, and TCP adapts. So each peer is asked (see
:mod:`nodeagent.path_mtu.probe`) soon after it joined and then now and again. The finding is per peer:
one bad way leaves the others as they are.

A peer that does not answer at all changes nothing. A path is called narrow only when two measurements, some
seconds apart, say so: packets get lost for other reasons, too. It is called wide again at once.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping

import msgspec

from nodeagent.conditions import Conditions
from nodeagent.membership.peers import Peer
from nodeagent.membership.view import View
from nodeagent.netlink.links import MTU_MINIMUM, VXLAN_OVERHEAD_V4
from nodeagent.path_mtu.probe import measure, path_to

log = logging.getLogger("isthmus.agent.path_mtu")

PERIOD_S = 600.0
"""Between two measurements of a way that is wide or does not answer."""

NARROW_PERIOD_S = 60.0
"""Between two measurements of a way that is narrow: it is used below its worth if it became wide."""

SETTLE_S = 1.5
"""From a peer's join to its first measurement: its agent, and ours, have to write their rows."""

FIRST_PER_S = 100.0
"""Nodes that ask a newcomer in one second: all see the join at once, and ICMP answers are limited per host."""

CONFIRM_S = 2.0
STEP_S = 0.5
AT_ONCE = 8
"""Paths measured together, each step: 10,000 peers are through in ten minutes, by 16 packets a second."""

SHOWN = 3


class TrackedPath(msgspec.Struct, gc=False):
    """What is known of one. ``passes`` is in outer bytes; 0: not known. ``doubt``: a narrower finding."""

    peer: Peer
    passes: int = 0
    doubt: int = 0
    due: float = 0.0


class PathMtuTracker:
    """When to measure which, and what to make of it. Pure: time is an argument (seconds)."""

    def __init__(self, chance: Callable[[], float] = lambda: 0.5) -> None:
        """``chance`` gives numbers in 0 … 1 that spread the nodes."""
        self._chance = chance
        self._paths: dict[str, TrackedPath] = {}
        self._due: list[tuple[float, str]] = []
        self._wanted = 0

    def follow(self, peers: Iterable[Peer], wanted: int, known: Mapping[Peer, int], now: float) -> None:
        """The peers as they are, and the outer size that the device sends at most, in bytes.

        ``known``: inner MTUs that an earlier life of this agent found.
        """
        if wanted != self._wanted:
            for known_path in self._paths.values():
                wide = known_path.passes >= self._wanted
                known_path.passes, known_path.doubt = 0 if wide else known_path.passes, 0
                self._again(known_path, now + SETTLE_S)
            self._wanted = wanted
        current = {peer.cidr: peer for peer in peers}
        for cidr in self._paths.keys() - current.keys():
            del self._paths[cidr]
        for cidr, peer in current.items():
            path = self._paths.get(cidr)
            if path is None or path.peer != peer:
                mtu = known.get(peer, 0)
                path = self._paths[cidr] = TrackedPath(peer, mtu + VXLAN_OVERHEAD_V4 if mtu else 0)
                self._again(path, now + SETTLE_S + self._chance() * len(current) / FIRST_PER_S)

    def take(self, now: float, limit: int = AT_ONCE) -> list[Peer]:
        """Up to ``limit`` peers that are due; :meth:`found` must follow for each."""
        taken: list[Peer] = []
        while self._due and self._due[0][0] <= now and len(taken) < limit:
            due, cidr = heapq.heappop(self._due)
            path = self._paths.get(cidr)
            if path is not None and path.due == due:  # else it has another turn, or is gone
                taken.append(path.peer)
        return taken

    def found(self, peer: Peer, passes: int, now: float) -> None:
        """A measurement's result in outer bytes; 0: no answer."""
        path = self._paths.get(peer.cidr)
        if path is None or path.peer != peer:
            return  # measured while it changed: the change has its own turn
        narrower = 0 < passes < (path.passes or self._wanted)
        if narrower and not path.doubt:
            path.doubt = passes
            self._again(path, now + CONFIRM_S)
            return
        path.doubt = 0
        path.passes = passes or path.passes
        period = NARROW_PERIOD_S if 0 < path.passes < self._wanted else PERIOD_S
        self._again(path, now + period * (0.8 + 0.4 * self._chance()))

    def _again(self, path: TrackedPath, at: float) -> None:
        path.due = at
        heapq.heappush(self._due, (at, path.peer.cidr))

    def smallest(self) -> int:
        """The inner MTU of the narrowest way that was measured; 0 while none was."""
        passes = min((path.passes for path in self._paths.values() if path.passes), default=0)
        return max(MTU_MINIMUM, min(passes, self._wanted) - VXLAN_OVERHEAD_V4) if passes else 0

    def narrow(self) -> dict[Peer, int]:
        """The inner MTU of each peer whose path is narrower than the device."""
        return {
            path.peer: max(MTU_MINIMUM, path.passes - VXLAN_OVERHEAD_V4)
            for path in self._paths.values()
            if 0 < path.passes < self._wanted
        }


class PathMtuProber:
    """Measures the paths of a running agent, a few in each step."""

    def __init__(
        self,
        conditions: Conditions,
        *,
        context: Callable[[], tuple[View, str, int] | None],
        known: Callable[[], Mapping[Peer, int]],
        apply: Callable[[Mapping[Peer, int]], Awaitable[None]],
    ) -> None:
        """``context``: view, own underlay address and the device's MTU, or None while packets cannot leave.

        ``known``: the inner MTUs that the routes have; ``apply`` takes all that they should have.
        """
        self._conditions, self._probe_context, self._known, self._apply = conditions, context, known, apply
        self._tracker = PathMtuTracker(random.random)
        self._seen: tuple[int, int] = (0, 0)
        self._told: dict[Peer, int] = {}
        self.smallest = 0
        """The inner MTU of the narrowest way that was measured; 0 while none was."""

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(STEP_S)
            context = self._probe_context()
            if context is not None:
                await self._step(*context)

    async def _step(self, view: View, underlay: str, mtu: int) -> None:
        now, wanted = time.monotonic(), mtu + VXLAN_OVERHEAD_V4
        if self._seen != (view.sequence, wanted):
            self._seen = (view.sequence, wanted)
            self._tracker.follow(view.peers, wanted, self._known(), now)
        peers = self._tracker.take(now)
        results = await asyncio.gather(*(self._measure(view, peer, underlay, wanted) for peer in peers))
        for peer, passes in zip(peers, results, strict=True):
            self._tracker.found(peer, passes, time.monotonic())
        if peers:
            self.smallest = self._tracker.smallest()
        narrow = self._tracker.narrow()
        if narrow != self._told:
            self._told = narrow
            self._tell(narrow)
            await self._apply(narrow)

    async def _measure(self, view: View, peer: Peer, underlay: str, wanted: int) -> int:
        path = path_to(peer, view, underlay)

        def going() -> bool:
            now = view.peers.get(peer.cidr)
            return now is not None and not now.sealed

        try:
            return await measure(path, wanted, going=going) if path is not None else 0
        except OSError as error:  # our address is away, or there is no route: as good as no answer
            log.debug("the way to %s cannot be measured: %s", peer.node, error)
            return 0

    def _tell(self, narrow: Mapping[Peer, int]) -> None:
        shown = [f"{peer.node} ({peer.underlay}): {mtu}" for peer, mtu in list(narrow.items())[:SHOWN]]
        self._conditions.set(
            "path",
            f"the way to {len(narrow)} peers is narrower than the link: their routes have the MTU of what "
            f"passes in one piece, inside: {'; '.join(shown)}"
            if narrow
            else "",
        )
