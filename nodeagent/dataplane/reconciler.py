"""Owns the kernel side of a node: the device, the rows, and everything that keeps them right.

Two ways lead to the kernel. A change of the log goes directly: the three messages of its peer. All
else (start, a notice of the kernel, an error, the timer) ends in :meth:`Reconciler.resync`, which makes
the device be as specified, compares all rows with the desired ones, writes the difference and has it
read back. One lock orders the two. Nothing is ever flushed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice

from events.attestation import text
from events.errors import IsthmusError
from events.status import DRIFT_SHOWN, WayKind
from events.telemetry.role import INVALID_SPAN, Span, SpanKind, Telemetry, mark_error
from nodeagent.conditions import Conditions
from nodeagent.config import AgentConfig
from nodeagent.dataplane.counters import Counters
from nodeagent.dataplane.desired import Desired, desired_of
from nodeagent.dataplane.fight_guard import DEVICE, FightGuard, RepairKey
from nodeagent.dataplane.kernel_watcher import FOREIGN_ROUTE, KernelWatcher
from nodeagent.dataplane.own_findings import OwnFindings
from nodeagent.dataplane.reconcile import Outcome
from nodeagent.dataplane.resync_triggers import QUIET, READ_BACK, ResyncTriggers
from nodeagent.dataplane.second_device import KEY
from nodeagent.dataplane.tunnel_device import TunnelDevice
from nodeagent.dataplane.underlay import PEERS_ASKED
from nodeagent.membership.peers import Peer, PeerChange
from nodeagent.membership.values import OverlayPlan
from nodeagent.membership.view import View
from nodeagent.netlink.links import DeviceOutcome
from nodeagent.netlink.messages import Action, Operation
from nodeagent.netlink.rows import Rows, describe
from nodeagent.netlink.socket import AnswersLost, KernelRefusal
from nodeagent.tracing import Causes, mark_refused
from nodeagent.ways.table import Exit

log = logging.getLogger("isthmus.agent.reconciler")

DIRECT_LIMIT = 64
"""Changes of one batch up to which each goes its direct way; beyond, one comparison is cheaper."""

HARMFUL = frozenset({"overlay_conflict", "route_conflict"})

GAP_S = 0.02


class Reconciler:
    """Keeps the kernel as the view wants it.

    Whoever :meth:`notify` names is called after each step that changed what is applied or how healthy it is.
    """

    def __init__(
        self,
        config: AgentConfig,
        conditions: Conditions,
        *,
        telemetry: Telemetry | None = None,
    ) -> None:
        self._telemetry = telemetry or Telemetry.off("agent", config.node)
        self._causes = Causes()
        self._config = config
        self._conditions = conditions
        self._on_applied: Callable[[], None] = lambda: None
        self._lock = asyncio.Lock()
        self._triggers = ResyncTriggers(config.resync_s)
        self.desired: Desired | None = None
        """The rows to have; None before the node holds a range."""
        self._built_for: tuple[str, OverlayPlan] | None = None
        self._fresh = False  # the desired rows were changed on purpose since the last clean comparison
        self.view: View | None = None
        """What the rows are made from; None before the first look at the log."""
        self.found = OwnFindings()
        self.guard = FightGuard[RepairKey]()
        self.tunnel = TunnelDevice(config, conditions)
        self.applied = 0
        """The last sequence whose rows the kernel has acknowledged, or which were read back from it."""
        self.drift: tuple[str, ...] = ()
        """Rows that were still wrong after the last comparison, in words."""
        self._digest_shift: int | None = None  # kernel − desired as sums of row hashes; None: not known
        self.clean = False
        self.counters = Counters()
        self.watcher = KernelWatcher(self)

    # ------------------------------------------------------------------ what others ask of it

    def probe_context(self, view: View) -> tuple[View, str, int] | None:
        """View, own underlay address and device MTU to measure paths with; None while packets cannot leave."""
        underlay, spec = self.tunnel.underlay, self.tunnel.spec
        if not self.clean or view.own is None or underlay is None or spec is None or not underlay.present:
            return None
        return view, underlay.address, spec.mtu

    def notify(self, on_applied: Callable[[], None]) -> None:
        """Name whom to call after each step."""
        self._on_applied = on_applied

    def digest(self) -> str:
        """The kernel's digest at ``applied``; empty when it is not known.

        The MTU of a route, and a route that is preferred to the tunnel's, are this node's own findings: rows
        that have them right count as the log's.
        """
        view = self.view
        if view is None or self._digest_shift is None or not self.clean or self.applied != view.sequence:
            return ""
        expected = view.expected_digest()
        return text(int(expected, 16) + self._digest_shift) if expected else ""

    def note_cause(self) -> None:
        """What is being taken in now is a cause of the next comparison: their traces are joined."""
        self._causes.note()

    def request(self, reason: str) -> None:
        """Ask for a comparison with the kernel; the reasons of one turn are handled together."""
        self._causes.note()
        self._triggers.add(reason)

    async def follow(self, view: View, changes: Sequence[PeerChange]) -> None:
        """Take in what events up to ``view.sequence`` changed; on return it is applied or a resync is due.

        Cancelled while it waits for a resync, nothing was taken in.
        """
        if self._lock.locked():
            async with self._lock:
                self._follow(view, changes)
        else:
            self._follow(view, changes)  # nothing in it waits, so nobody can come between

    async def narrow(self, mtus: Mapping[Peer, int]) -> None:
        """The whole of what is known of ways narrower than the device: the inner MTU by peer, in bytes.

        It is written at once; peers that are not in it any more get the device's MTU back. Cancelled while it
        waits for a resync, nothing was taken in.
        """
        async with self._lock:
            operations = self.found.narrow(mtus, self.view, self.desired)
            if operations and self.view is not None:
                self._write(self.view, operations)

    async def prefer(self, exits: Mapping[Peer, Exit], *, by: WayKind) -> None:
        """The whole of what leads to peers by ways of the kind ``by``, written at once.

        What the kernel refuses is not in ``found.exits`` afterwards. Cancelled while it waits for a resync,
        nothing was taken in.
        """
        async with self._lock:
            operations = self.found.prefer(exits, self.view, self.desired, by=by)
            if operations and self.view is not None:
                self._write(self.view, operations)

    async def encrypt(self, ways: Mapping[tuple[str, int], Exit]) -> None:
        """What leads into WireGuard, by range and epoch, as :meth:`prefer`: to sealed peers nothing else does.

        Cancelled while it waits for a resync, nothing was taken in.
        """
        async with self._lock:
            operations = self.found.encrypt(ways, self.view, self.desired)
            if operations and self.view is not None:
                self._write(self.view, operations)

    async def beside(self, rows: Rows, exits: Mapping[Peer, Exit], relayed: Mapping[Peer, Exit]) -> None:
        """The whole of what the second device has to have, and of what leads to peers by it or by a relay.

        Rows are written before routes to them, and taken away behind these. Cancelled while it waits for a
        resync, nothing was taken in.
        """
        async with self._lock:
            puts, drops = self.tunnel.second.change(rows)
            failed = self.tunnel.apply_beside(puts)
            operations = self.found.prefer(exits, self.view, self.desired, by="nat")
            operations += self.found.prefer(relayed, self.view, self.desired, by="relayed")
            if operations and self.view is not None:
                self._write(self.view, operations)
            failed = self.tunnel.apply_beside(drops) or failed
            self.guard.forget({(operation.kind, KEY + operation.key) for operation in (*puts, *drops)})
            if failed:
                self._fresh = True
                self.request(failed)

    def _adopt(self, view: View, desired: Desired) -> None:
        """In a worker thread, at the start: what an earlier life found of the ways stands in the routes."""
        self.found.adopt(self.tunnel.routes(), view, sideways=self._config.direct != "off")
        self.found.put_into(desired, view)

    def _follow(self, view: View, changes: Sequence[PeerChange]) -> None:
        self.view = view
        self.found.follow(changes)
        if self.tunnel.encrypted == view.encryption.off:
            self.tunnel.encrypted = not view.encryption.off
            self.request("encryption")  # which takes more of each packet
        if self._rebuild(view):
            self.request("membership")
            return
        desired = self.desired
        if desired is None:
            self.applied = 0  # rows of an earlier life may stand: nobody confirms what nobody manages
            self._on_applied()
            return
        operations = [operation for change in changes for operation in desired.apply(change)]
        if not operations:
            self._note_applied(view)
            return
        if len(changes) > DIRECT_LIMIT:
            self._fresh = True
            self.request("changes")
            return
        self._write(view, operations)

    def _write(self, view: View, operations: list[Operation]) -> None:
        """The direct way, if the rows were right before; else by the next comparison."""
        if not self.clean:
            self._fresh = True
            self.request("changes")
            return
        if not self._telemetry.tracing:
            self._directly(view, operations, INVALID_SPAN)
            return
        with self._telemetry.span(
            "netlink batch",
            kind=SpanKind.CLIENT,
            attributes={"isthmus.netlink.operations": len(operations)},
        ) as span:
            self._directly(view, operations, span)

    def _directly(self, view: View, operations: list[Operation], span: Span) -> None:
        started = time.perf_counter()
        try:
            refusals = self.tunnel.apply(operations)
        except AnswersLost as error:
            mark_error(span, error)
            self._fresh = True
            self.request(f"lost: {error}")
            return
        except OSError as error:
            mark_error(span, error)
            self._close()
            self._fresh = True
            self.request(f"socket: {error}")
            return
        mark_refused(span, refusals)
        self.guard.forget({(operation.kind, operation.key) for operation in operations})
        self.counters.record_direct(operations, len(refusals), time.perf_counter() - started)
        if refusals:
            self._fresh = True
            if self.desired is not None:
                self.found.give_up(self.desired, [refusal.operation for refusal in refusals])
            self._refused(refusals)
            self.request("refused")
            return
        self._note_applied(view)

    def _note_applied(self, view: View) -> None:
        if self.clean:
            self.applied = view.sequence
            self._on_applied()

    def _rebuild(self, view: View) -> bool:
        """Make the desired rows from scratch when the own range or the plan changed; say whether."""
        built = (view.own.cidr, view.plan) if view.own is not None and view.plan is not None else None
        if built == self._built_for:
            return False
        self._built_for = built
        self.desired = None
        if view.own is not None:
            self.desired = desired_of(view.own, view)
            self.desired.preferred = self.found.preferred
            self.found.put_into(self.desired, view)
        self.clean, self._fresh = False, True
        return True

    # ------------------------------------------------------------------ the loop

    async def run(self) -> None:
        """Compare whenever there is a reason, at least every ``resync_s`` (jittered), until cancelled."""
        self.watcher.start()
        await asyncio.to_thread(self.tunnel.look)
        failures = 0
        try:
            while True:
                reasons = await self._triggers.next(failures, self.guard.next_release(time.monotonic()))
                if self.view is None or (self.desired is None and self._built_for is None):
                    continue
                failures = 0 if await self.resync(reasons) else failures + 1
                await asyncio.sleep(max(GAP_S, 2 * self.counters.last_resync_s))
        finally:
            self.watcher.stop()
            self._close()

    async def resync(self, reasons: set[str]) -> bool:
        """Device, rows, read-back; True when the kernel is as it should be (but for contested rows).

        Cancelled, the kernel may hold a part: the next resync goes on from what is there.
        """
        parent, links = self._causes.take()
        if parent is None and not links and reasons <= QUIET:
            return await self._resync(reasons, INVALID_SPAN)  # the timer's look is not worth a trace
        attributes = {"isthmus.resync.reasons": sorted(reasons)[:8], "isthmus.node": self._config.node}
        with self._telemetry.span(
            "netlink resync",
            kind=SpanKind.CLIENT,
            parent=parent,
            root=parent is None,
            links=links,
            attributes=attributes,
        ) as span:
            return await self._resync(reasons, span)

    async def _resync(self, reasons: set[str], span: Span) -> bool:
        async with self._lock:
            view = self.view
            if view is None or view.own is None or view.plan is None or self.desired is None:
                return True
            started = time.perf_counter()
            try:
                # Looked up here: the view goes on changing while the worker thread works.
                peers = [peer.underlay for peer in islice(view.peers, PEERS_ASKED)]
                foreign = FOREIGN_ROUTE in reasons
                device = await asyncio.to_thread(self._prepare, view.own, view.plan, foreign, peers)
                if not self.counters.resyncs and self.tunnel.existed:
                    await asyncio.to_thread(self._adopt, view, self.desired)
                on_purpose = self._fresh or not self.clean or bool(device.actions)
                self.found.put_into(self.desired, view)  # with the device's MTU as it is now
                outcome = await asyncio.to_thread(self._compare, self.desired, on_purpose)
                if self.found.give_up(self.desired, [refusal.operation for refusal in outcome.refusals]):
                    outcome = await asyncio.to_thread(self._compare, self.desired, on_purpose)
            except IsthmusError as error:
                mark_error(span, error)
                self._failed(error.message)
                if error.code in HARMFUL and not self.counters.resyncs and not self.tunnel.existed:
                    raise  # nothing of ours works here yet: starting would do harm, stopping does none
                return False
            except OSError as error:
                mark_error(span, error)
                self._close()
                self._failed(f"netlink: {error}")
                return False
            span.set_attributes(
                {
                    "isthmus.netlink.written": outcome.written,
                    "isthmus.netlink.removed": outcome.removed,
                    "isthmus.sequence.first": view.sequence,
                    "isthmus.sequence.last": view.sequence,
                }
            )
            mark_refused(span, outcome.refusals)
            self._conditions.clear("kernel")
            took_s = time.perf_counter() - started
            self._account(view, device, outcome, reasons, on_purpose=on_purpose, took_s=took_s)
            return outcome.clean or len(outcome.remaining) <= len(outcome.withheld)

    def _failed(self, what: str) -> None:
        self.clean = False
        self._digest_shift = None
        self._conditions.set("kernel", what)
        self._on_applied()

    def _account(
        self,
        view: View,
        device: DeviceOutcome,
        outcome: Outcome,
        reasons: set[str],
        *,
        on_purpose: bool,
        took_s: float,
    ) -> None:
        counters = self.counters
        if device.actions and counters.resyncs:
            counters.drift_found_link += 1
            counters.drift_repaired_link += 1
        counters.resyncs += 1
        self.tunnel.settled()
        counters.last_resync_s, counters.last_resync_at = took_s, time.time()
        counters.written += outcome.written
        counters.removed += outcome.removed
        if not on_purpose:
            counters.repaired += outcome.written + outcome.removed
            counters.record_drift(outcome.found, outcome.left)
        self.clean = not outcome.refusals and len(outcome.remaining) <= len(outcome.withheld)
        self._refused(outcome.refusals)
        contested = [f"{name} of device {self._config.device}" for name in device.withheld]
        contested += [describe(op.kind, op.key, op.value) for op in outcome.withheld]
        self._conditions.set(
            "contested",
            f"{len(contested)} rows or settings are rewritten again and again by another program: "
            f"{'; '.join(contested[:3])}"
            if contested
            else "",
        )
        self._fresh = False
        if self.clean:
            self.applied = view.sequence
        self._digest_shift = outcome.digest_shift
        if outcome.unread:
            self._triggers.add(READ_BACK)
        self.drift = tuple(
            f"{'wanted' if op.action is Action.PUT else 'unwanted'} {describe(op.kind, op.key, op.value)}"
            for op in outcome.remaining[:DRIFT_SHOWN]
        )
        if device.actions or outcome.written or outcome.removed:
            log.info(
                "resync (%s): %d written, %d removed%s in %.0f ms",
                ", ".join(sorted(reasons)),
                outcome.written,
                outcome.removed,
                "".join(f", {action}" for action in device.actions),
                took_s * 1000,
            )
        self._on_applied()

    def _refused(self, refusals: Sequence[KernelRefusal]) -> None:
        self.counters.refused += len(refusals)
        self._conditions.set(
            "refused",
            f"the kernel refused {len(refusals)} rows, the first: {refusals[0]}" if refusals else "",
        )

    def _prepare(self, own: Peer, plan: OverlayPlan, look_around: bool, peers: Sequence[str]) -> DeviceOutcome:
        """In a worker thread. Raises IsthmusError, OSError."""
        now = time.monotonic()
        outcome = self.tunnel.prepare(
            own,
            plan,
            look_around=look_around,
            peers=peers,
            allow=lambda name: self.guard.allow((DEVICE, name), now),
        )
        self.found.device_mtu = self.tunnel.spec.mtu if self.tunnel.spec is not None else 0
        self.watcher.watch(self.tunnel.ifindex, self.tunnel.port, self.tunnel.second.ifindex)
        return outcome

    def _compare(self, desired: Desired, on_purpose: bool) -> Outcome:
        """In a worker thread. Raises AnswersLost, OSError."""
        if on_purpose:
            return self.tunnel.compare(desired, None)
        now = time.monotonic()
        return self.tunnel.compare(
            desired, lambda operation: self.guard.allow((operation.kind, operation.key), now)
        )

    def _close(self) -> None:
        self.tunnel.close()
        self.clean = False
