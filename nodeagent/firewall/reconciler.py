"""Keeps the firewall table in step with the plan and the members, away from the path of the rows.

Running ``nft`` takes milliseconds, a join's three messages microseconds: so this has a task of its own. What
of the log counts as applied waits for both: rows to a member that the table does not know carry no answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import NamedTuple

from events.errors import IsthmusError
from events.telemetry.role import SpanKind, Telemetry
from nodeagent.conditions import Conditions
from nodeagent.dataplane.fight_guard import FightGuard, RepairKey
from nodeagent.firewall import elements, ruleset
from nodeagent.firewall.monitor import RulesetMonitor
from nodeagent.firewall.predecessor import Predecessor
from nodeagent.firewall.ruleset import Rules
from nodeagent.netlink.rows import Kind
from nodeagent.tracing import Causes

log = logging.getLogger("isthmus.agent.firewall")

RETRY_S = 5.0
GAP_S = 0.02
"""Shortest time between two runs: a burst of joins becomes one change of the set."""
_TABLE_ROW = (Kind.ROUTE, b"nftables")
INCREMENT_LIMIT = 500
"""Changes of the member set up to which the set is changed in place; beyond, the table is made anew."""


class _Wanted(NamedTuple):
    rules: Rules
    vteps: frozenset[str]
    near: dict[str, str]
    mapped: frozenset[str]
    hidden: frozenset[str]


class FirewallReconciler:
    """Wanted rules and members against those applied.

    Whoever :meth:`notify` names is called after each run that changed what is confirmed.
    """

    def __init__(
        self,
        conditions: Conditions,
        telemetry: Telemetry | None = None,
        *,
        enabled: bool = True,
        replacing: Predecessor | None = None,
    ) -> None:
        """``enabled``: whether this node has a firewall of ours at all.

        ``replacing``: another network's rules, which go with the transaction that brings ours.
        """
        self._conditions = conditions
        self._telemetry = telemetry or Telemetry.off("agent")
        self._causes = Causes()
        self._replacing = replacing
        self._rules: Rules | None = None
        self._members: Callable[[], set[str]] = set
        self._near: Callable[[], Mapping[str, str]] = dict
        self._mapped: Callable[[], set[str]] = set
        self._hidden: Callable[[], set[str]] = set
        self._applied: _Wanted | None = None
        self._listing = ""
        self._wake = asyncio.Event()
        self._verify = False
        self.settled = asyncio.Event()
        """Set while the kernel's table is the wanted one."""
        self._enabled = enabled
        if not enabled:
            self.settled.set()
        self._sequence = self._covered = 0
        self._filters = enabled  # whether a table of ours judges packets, as far as is known
        self.begun = self.in_step = not enabled
        """Whether the kernel's table is the wanted one or about to be; also where nothing of ours filters."""
        self._on_confirmed: Callable[[], None] = lambda: None
        self.repairs = 0
        self._guard = FightGuard[RepairKey]()

    def notify(self, on_confirmed: Callable[[], None]) -> None:
        """Name whom to call after each run that changed what is confirmed."""
        self._on_confirmed = on_confirmed

    def confirmed(self, sequence: int) -> int:
        """How much of the log up to ``sequence`` the kernel's table follows; all of it where there is none."""
        return min(sequence, self._covered) if self._filters else sequence

    def want(
        self,
        rules: Rules,
        members: Callable[[], set[str]],
        sequence: int,
        *,
        near: Callable[[], Mapping[str, str]] = dict,
        mapped: Callable[[], set[str]] = set,
        hidden: Callable[[], set[str]] = set,
    ) -> None:
        """The table to have from now on, by the log up to ``sequence``.

        ``members`` is asked for the known VTEPs when it is written, ``near`` for the MACs of those, by
        range, whose plain packets may come in, ``mapped`` for the places of peers behind NAT, ``hidden`` for
        the ranges between which this node relays.
        """
        if not self._enabled:
            return
        self._rules, self._members, self._sequence, self._near = rules, members, sequence, near
        self._mapped, self._hidden = mapped, hidden
        self._causes.note()
        self.settled.clear()
        self._wake.set()

    def verify(self) -> None:
        """Somebody may have touched the table: compare it with what was written."""
        self._verify = True
        if self._applied is not None:
            self._wake.set()

    async def run(self) -> None:
        """Follow the wishes until cancelled; the table stays. Raises OSError when it cannot listen."""
        monitor = RulesetMonitor(elements.TABLE)
        loop = asyncio.get_running_loop()
        loop.add_reader(monitor.fileno(), lambda: self.verify() if monitor.touched() else None)
        try:
            await self._follow()
        finally:
            loop.remove_reader(monitor.fileno())
            monitor.close()

    async def _follow(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self._step()
                self._conditions.clear("firewall")
                await asyncio.sleep(GAP_S)
            except IsthmusError as error:
                self._conditions.set("firewall", error.message)
                await self._pause()
            except (OSError, TimeoutError) as error:
                self._conditions.set("firewall", f"nft could not be run: {str(error) or type(error).__name__}")
                await self._pause()

    async def _patience(self) -> None:
        """Repair at once, but a table that is changed again and again ever more rarely."""
        loop = asyncio.get_running_loop()
        while not self._guard.allow(_TABLE_ROW, loop.time()):
            self._confirm(in_step=False)
            self._conditions.set(
                "firewall contested", "another program changes our nftables table again and again"
            )
            release = self._guard.next_release(loop.time())
            await asyncio.sleep(max(0.0, (release or 0.0) - loop.time()) + GAP_S)
        self._conditions.clear("firewall contested")

    async def _pause(self) -> None:
        self._applied = None  # unknown: the next attempt writes all of it
        self._filters = await self._there()
        self._confirm(in_step=not self._filters)
        await asyncio.sleep(RETRY_S)
        self._wake.set()

    async def _there(self) -> bool:
        """Whether a table of ours judges packets. Without the program there is none that we could wait for."""
        try:
            return bool(await ruleset.listing())
        except IsthmusError:
            return False
        except (OSError, TimeoutError):
            return True

    def _confirm(self, *, in_step: bool, covered: int | None = None) -> None:
        before = self.begun, self.in_step, self._covered
        self.begun, self.in_step = True, in_step
        self._covered = self._covered if covered is None else covered
        if before != (self.begun, self.in_step, self._covered):
            self._on_confirmed()

    async def _step(self) -> None:
        if self._verify:
            self._verify = False
            # With other rules to write the table is made anew in any case; and a device that was made anew
            # changes how the old rules read, which nobody else has done.
            settled = self._applied is not None and self._applied[0] == self._rules
            if settled and await ruleset.listing() != self._listing:
                await self._patience()
                self.repairs += 1
                log.warning("the table inet %s was changed by somebody else and is made anew", elements.TABLE)
                self._applied = None
        if self._rules is None:
            return
        near = dict(self._near()) if self._rules.direct else {}
        mapped = frozenset(self._mapped()) if self._rules.second is not None else frozenset()
        relays = self._rules.second is not None or bool(self._rules.wireguard)
        hidden = frozenset(self._hidden()) if relays else frozenset()
        wanted, sequence = (
            _Wanted(self._rules, frozenset(self._members()), near, mapped, hidden),
            self._sequence,
        )
        parent, links = self._causes.take()
        if wanted != self._applied:
            with self._telemetry.span(
                "firewall write",
                kind=SpanKind.CLIENT,
                parent=parent,
                root=parent is None,
                links=links,
                attributes={"isthmus.firewall.members": len(wanted[1])},
            ):
                await self._write(wanted)
                self._listing = await ruleset.listing()
            if not ruleset.as_written(self._listing, *wanted[:4], hidden=wanted.hidden):
                log.warning("the table inet %s was changed by somebody else while it was made", elements.TABLE)
                self._applied = None
                self._wake.set()
                await self._patience()
                return
            self._applied = wanted
        self._filters = True
        if not self._wake.is_set():
            self.settled.set()
        self._confirm(in_step=True, covered=sequence)

    async def _write(self, wanted: _Wanted) -> None:
        rules, vteps, near, mapped, hidden = wanted
        if self._applied is not None and self._applied[0] == rules:
            before = self._applied[1]
            added, removed = vteps - before, before - vteps
            there = self._applied[2]
            gone = {cidr: mac for cidr, mac in there.items() if near.get(cidr) != mac}
            fresh = {cidr: mac for cidr, mac in near.items() if there.get(cidr) != mac}
            places, old = mapped - self._applied[3], self._applied[3] - mapped
            pairs, apart = hidden - self._applied[4], self._applied[4] - hidden
            changes = (added, removed, gone, fresh, places, old, pairs, apart)
            if sum(map(len, changes)) <= INCREMENT_LIMIT:
                script = elements.render_members(added, removed) + elements.render_near(fresh, gone)
                script += elements.render_mapped(places, old) + elements.render_hidden(pairs, apart)
                await ruleset.nft(script)
                return
        also = await self._replacing.also() if self._replacing is not None else ""
        await ruleset.replace(rules, vteps, also=also, near=near, mapped=mapped, hidden=hidden)
        if self._replacing is not None:
            await self._replacing.after()
