"""``whatif``: the same requests, decided again under another plan, or with extra commands.

The log's events say what was wanted (a join, a leave, a reservation). From the fork on those requests
are put to the same ``decide`` that the controller uses, on a state of their own; who is refused waits
and asks again whenever a range comes free. Confirmations of drains and the ends of quarantines are
taken from the log, range for range by owner, so that with nothing changed nothing differs.

Nothing here touches the log or the bus.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from controlplane.cluster.decide import decide
from controlplane.cluster.decision import Decision
from controlplane.cluster.decisions.nodes import drain
from controlplane.cluster.evolve import evolve
from controlplane.cluster.state import ClusterState, Node
from events import types
from events.codec import Recorded, decode
from events.errors import Usage
from events.protocol import commands
from replay.history import Point, Progress
from replay.queries.difference import counts
from replay.queries.other_plan import LIST_LIMIT, Moved, OtherPlan, Unserved, WhatIf
from replay.queries.states import States, advance


async def whatif(
    states: States, fork: Point, until: Point, plan: OtherPlan, progress: Progress | None = None
) -> WhatIf:
    """Re-run ``(fork, until]`` under ``plan``.

    Raises Refused with the plan's own refusal, Usage when there is nothing to change or no cluster. Cancelled,
    it leaves nothing behind.
    """
    if until.sequence < fork.sequence:
        raise Usage("usage", f"the end ({until.sequence}) lies before the fork ({fork.sequence})")
    real, _ = await states.at(fork.sequence, progress)
    simulation = _Simulation(real, plan, fork)
    simulation.begin()
    async for batch in states.history.messages(after=fork.sequence, until=until.sequence):
        for message in batch:
            recorded = decode(message, states.history.parked)
            evolve(real, recorded.sequence, recorded.event)
            simulation.take(recorded)
        if progress:
            progress(batch[-1].sequence)
    if real.sequence < until.sequence:
        await advance(states.history, real, until.sequence, progress)
    return simulation.answer(real, until)


class _Simulation:
    """The simulated cluster, driven by recorded events."""

    def __init__(self, real: ClusterState, plan: OtherPlan, fork: Point) -> None:
        self.plan, self.fork, self.real = plan, fork, real
        self.state = ClusterState(real.name)
        self.sequence = 0
        self.now = fork.recorded_at or datetime.fromtimestamp(0, UTC)
        self.owner: dict[int, str] = {}  # recorded epoch → uid
        self.mine: dict[str, types.RangeDraining] = {}  # uid → the simulated range that it left behind
        self.waiting: OrderedDict[str, commands.JoinNode] = OrderedDict()  # node → its request
        self.unserved: dict[str, Unserved] = {}  # node → its latest refusal
        self.done: list[Unserved] = []
        self.refused = 0
        self.peak = 0
        self.exhausted: tuple[datetime, int] | None = None
        self.extra: list[dict[str, Any]] = []
        self.overrides: list[commands.Override] = []
        self.adopted: dict[str, types.NodeJoined] = {}  # while in adoption: who joined, its range to come
        self.recorded_sequence = fork.sequence

    # --- the fork -------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Make the simulated state at the fork, and put the extra commands to it."""
        real = self.real
        for held in real.ranges.values():
            self.owner[held.epoch] = held.uid
        if real.definition is not None:
            if self.plan.replans:
                self._replan(real.definition)
            else:
                from controlplane.cluster.digest import canonical
                from controlplane.cluster.state_decoder import decode_state

                self.state = decode_state(canonical(real))
                self.sequence = real.sequence
                for index in (*real.draining, *real.quarantined):
                    held = real.ranges[index]
                    self.mine[held.uid] = types.RangeDraining(
                        cidr=held.cidr, index=index, node=held.node, uid=held.uid, epoch=held.epoch
                    )
            self._extend()

    def _extend(self) -> None:
        for cidr in self.plan.appended:
            self._must(commands.AppendCidr(cidr=cidr))
        for command in self.plan.commands:
            self._extra(command)

    def _replan(self, definition: types.ClusterDefined) -> None:
        self._must(self._define(definition))
        for cidr in self.real.cidrs[1:]:
            self._must(commands.AppendCidr(cidr=cidr.cidr))
        for adoption in self.real.adoption.values():
            self._must(commands.BeginAdoption(source=adoption.source, plan=adoption.plan))
        for node in sorted(self.real.nodes.values(), key=lambda node: node.joined):
            self._join(_join_request(node.name, node, ()))
        for reservation in self.real.clb.values():
            self._put(_reserve(reservation, ()))

    def _define(self, definition: types.ClusterDefined) -> commands.DefineCluster:
        plan = self.plan
        return commands.DefineCluster(
            container_cidr=plan.container_cidr or definition.container_cidr,
            pods_per_node=plan.pods_per_node or definition.max_pods_per_node,
            services=plan.services or definition.max_services,
            networks=definition.networks,
            vni=definition.vni,
            vxlan_port=definition.vxlan_port,
            quarantine_s=definition.quarantine_s,
            unreachable_after_s=definition.unreachable_after_s,
            remove_after_s=definition.remove_after_s,
            overrides=tuple(self.overrides),
        )

    # --- deciding ---------------------------------------------------------------------------------------

    def _fold(self, events: Sequence[types.Event]) -> None:
        for event in events:
            self.sequence += 1
            evolve(self.state, self.sequence, event)
            if isinstance(event, types.RangeDraining):
                self.mine[event.uid] = event
        self.peak = max(self.peak, self.state.pool.capacity - self.state.pool.free)
        if self.exhausted is None and self.state.pool.capacity and not self.state.pool.free:
            self.exhausted = (self.now, self.recorded_sequence)

    def _put(self, command: commands.Command) -> Decision:
        decision = decide(self.state, command, self.now)
        self._fold(decision.events)
        return decision

    def _must(self, command: commands.Command) -> None:
        refusal = self._put(command).refusal
        if refusal is not None:
            raise refusal

    def _extra(self, command: commands.Command) -> None:
        decision = self._put(command)
        self.extra.append(
            {
                "command": command.name,
                "refused": decision.refusal.message if decision.refusal else "",
                "result": decision.result,
            }
        )

    def _join(self, command: commands.JoinNode) -> None:
        refusal = self._put(command).refusal
        if refusal is None:
            self._stop_waiting(command.node, served_at=self.now)
            return
        if command.node not in self.waiting:
            self.refused += 1
            self.unserved[command.node] = Unserved(
                node=command.node,
                code=refusal.code,
                message=refusal.message,
                sequence=self.recorded_sequence,
                since=self.now,
                served_at=None,
            )
        self.waiting[command.node] = command

    def _stop_waiting(self, node: str, *, served_at: datetime | None = None) -> None:
        """The node was served, or has left without."""
        self.waiting.pop(node, None)
        waited = self.unserved.pop(node, None)
        if waited is not None:
            self.done.append(msgspec.structs.replace(waited, served_at=served_at))

    def _ask_again(self) -> None:
        while self.waiting and self.state.pool.free:
            node, command = next(iter(self.waiting.items()))
            if self._put(command).refusal is not None:
                self.waiting.move_to_end(node)
                return
            self._stop_waiting(node, served_at=self.now)

    # --- recorded events ----------------------------------------------------------------------------------

    def take(self, recorded: Recorded) -> None:
        """What the recorded event means in the simulated cluster."""
        event = recorded.event
        self.now, self.recorded_sequence = recorded.envelope.time, recorded.sequence
        if recorded.envelope.tx_index == 0:
            self.overrides.clear()
        state = self.state
        match event:
            case types.ClusterDefined():
                self._must(self._define(event))
                self._extend()
            case types.CidrAppended():
                self._put(commands.AppendCidr(cidr=event.cidr, overrides=tuple(self.overrides)))
                self._ask_again()
            case types.ClusterDeleted():
                self._put(commands.DeleteCluster(reason=event.reason))
            case types.NetworkDeclared():
                self._put(commands.DeclareNetwork(network=event.network, overrides=tuple(self.overrides)))
            case types.NetworkWithdrawn():
                self._put(commands.WithdrawNetwork(cidr=event.cidr))
            case types.ConflictOverridden():
                self.overrides.append(commands.Override(code=event.code, reason=event.reason))
            case types.AdoptionBegun():
                self._put(commands.BeginAdoption(source=event.source, plan=event.plan))
            case types.AdoptionEnded():
                self._put(commands.EndAdoption(reason=event.reason))
            case types.NodeJoined() if state.adoption:
                self.adopted[event.node] = event
            case types.RangeAdopted() | types.RangeAllocated() if event.node in self.adopted:
                self.owner[recorded.sequence] = event.uid
                self._given(self.adopted.pop(event.node), event)
            case types.NodeJoined():
                self._join(_join_request(event.node, event, tuple(self.overrides)))
            case types.NodeUnderlayChanged() if event.vtep_mac and event.node in state.nodes:
                node = _adopted(_join_request(event.node, state.nodes[event.node], ()), event.vtep_mac,
                                state.owned[event.node].cidr)  # fmt: skip
                node = msgspec.structs.replace(node, underlay=event.underlay, announced=event.announced)
                self._put(commands.AdoptNodes(nodes=(node,), overrides=tuple(self.overrides)))
            case types.NodeUnderlayChanged():
                self._put(
                    commands.ChangeUnderlay(
                        node=event.node, uid=event.uid, underlay=event.underlay, announced=event.announced
                    )
                )
            case types.NodeLeft():
                self._stop_waiting(event.node)
                if event.node in state.nodes:
                    self._put(commands.LeaveNode(node=event.node, uid=event.uid, reason=event.reason))
            case types.NodeFenced():
                self._fence(event)
            case types.NodeUnreachable() if event.node in state.nodes and event.node not in state.unreachable:
                self._fold([event])
            case types.NodeRecovered() if event.node in state.unreachable:
                self._fold([event])
            case types.RangeAllocated():
                self.owner[recorded.sequence] = event.uid
            case types.RangeQuarantined():
                self._quarantine(event)
            case types.RangeFreed():
                self._free(event)
            case types.ClbReserved():
                self._put(_reserve(event, tuple(self.overrides)))
            case types.ClbReleased() if event.name in state.clb:
                self._put(commands.ReleaseClb(reservation=event.name))
            case types.EntryAdded():
                self._put(commands.AddEntry(entry=event.name, sources=event.sources, address=event.address))
            case types.EntryRemoved() if event.name in state.entries:
                self._put(commands.RemoveEntry(entry=event.name))
            case _:
                pass

    def _given(self, joined: types.NodeJoined, event: types.RangeAllocated) -> None:
        """A node that came during the adoption: with the range that it had, where this plan has such a one."""
        request = _join_request(joined.node, joined, tuple(self.overrides))
        if isinstance(event, types.RangeAdopted):
            node = _adopted(request, joined.vtep_mac, event.cidr)
            command = commands.AdoptNodes(nodes=(node,), overrides=request.overrides)
            if self._put(command).refusal is None:
                return
        self._join(request)

    def _fence(self, event: types.NodeFenced) -> None:
        """A fact, also when another machine takes the name and its joining is refused: the old one is gone."""
        if event.former:
            return  # its last range is another one here
        if event.cause != "rejoin":
            self._stop_waiting(event.node)
        member = self.state.nodes.get(event.node)
        if member is not None and member.uid == event.uid:
            self._fold([event, drain(self.state.owned[event.node])])

    def _quarantine(self, event: types.RangeQuarantined) -> None:
        left = self.mine.get(self.owner.get(event.epoch, ""))
        if left is not None and left.index in self.state.draining:
            self._fold(
                [
                    types.RangeQuarantined(
                        cidr=left.cidr,
                        index=left.index,
                        epoch=left.epoch,
                        watermark=self.sequence,
                        until=event.until,
                    )
                ]
            )

    def _free(self, event: types.RangeFreed) -> None:
        left = self.mine.pop(self.owner.pop(event.epoch, ""), None)
        if left is not None and left.index in self.state.quarantined:
            self._fold([types.RangeFreed(cidr=left.cidr, index=left.index, epoch=left.epoch)])
            self._ask_again()

    # --- the answer -----------------------------------------------------------------------------------------

    def answer(self, real: ClusterState, until: Point) -> WhatIf:
        """Both outcomes beside each other."""
        for joined in self.adopted.values():  # the history ends between a node and its range
            self._join(_join_request(joined.node, joined, ()))
        moved = []
        for name in sorted(real.nodes.keys() | self.state.nodes.keys()):
            mine, theirs = self.state.owned.get(name), real.owned.get(name)
            before, after = theirs.cidr if theirs else "", mine.cidr if mine else ""
            if before != after:
                moved.append(Moved(node=name, recorded=before, imagined=after))
        unserved = sorted([*self.done, *self.unserved.values()], key=lambda item: item.sequence)
        return WhatIf(
            fork=self.fork,
            until=until,
            plan=_plan(self.state),
            recorded_plan=_plan(real),
            recorded=counts(real),
            imagined=counts(self.state),
            peak_in_use=self.peak,
            exhausted_at=self.exhausted[0] if self.exhausted else None,
            exhausted_sequence=self.exhausted[1] if self.exhausted else 0,
            refused=self.refused,
            unserved=unserved[:LIST_LIMIT],
            extra=self.extra,
            differing=len(moved),
            moved=moved[:LIST_LIMIT],
        )


def _join_request(
    name: str, asked: types.NodeJoined | Node, overrides: tuple[commands.Override, ...]
) -> commands.JoinNode:
    return commands.JoinNode(
        node=name,
        uid=asked.uid,
        kind=asked.kind,  # type: ignore[arg-type]  # a state keeps it as text
        underlay=asked.underlay,
        announced=asked.announced,
        site=asked.site,
        overrides=overrides,
    )


def _adopted(asked: commands.JoinNode, mac: str, cidr: str) -> commands.AdoptedNode:
    return commands.AdoptedNode(
        node=asked.node,
        uid=asked.uid,
        kind=asked.kind,
        underlay=asked.underlay,
        announced=asked.announced,
        site=asked.site,
        vtep_mac=mac,
        range=cidr,
    )


def _reserve(event: types.ClbReserved, overrides: tuple[commands.Override, ...]) -> commands.ReserveClb:
    first, second = event.addresses
    return commands.ReserveClb(
        reservation=event.name,
        subnet=event.subnet,
        gateway=event.gateway,
        exclude=event.excluded,
        purposes=(first.purpose, second.purpose),
        provider=event.provider,
        overrides=overrides,
    )


def _plan(state: ClusterState) -> dict[str, Any]:
    definition = state.definition
    if definition is None:
        return {}
    return {
        "cidrs": [cidr.cidr for cidr in state.cidrs],
        "range_size": definition.range_size,
        "service_cidr": definition.service_cidr,
        "capacity": state.pool.capacity,
    }
