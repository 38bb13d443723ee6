"""The rows of members, ranges, plan, networks, reservations and refusals.

With :mod:`controlplane.readmodel.gateway_rows` the projection's whole knowledge of what events mean.
Written independently of :mod:`controlplane.cluster.evolve`, so that comparing the two digests says something.
"""

from __future__ import annotations

import msgspec

from controlplane.cluster.state import Fenced, Node, Range
from controlplane.readmodel.rows import Handlers, Rows, json_text, microseconds
from events import types
from events.codec import SkippedEvent

_decode_node = msgspec.json.Decoder(Node).decode


def _joined(rows: Rows, sequence: int, time_us: int, event: types.NodeJoined) -> None:
    name = event.node
    node = Node(
        name, event.uid, event.kind, event.underlay, event.announced, event.vtep_mac, event.site,
        sequence, sequence,
    )  # fmt: skip
    rows.nodes.open(name, [name, json_text(node), 0, None], sequence, time_us)
    rows.cleared(sequence, time_us, f"node/{name}")


def _out(rows: Rows, sequence: int, time_us: int, event: types.NodeLeft) -> None:
    rows.nodes.close(event.node, sequence, time_us)


def _fenced(rows: Rows, sequence: int, time_us: int, event: types.NodeFenced) -> None:
    if not event.former:
        rows.nodes.close(event.node, sequence, time_us)
    uid = event.uid
    if rows.fenced.is_open(uid):
        rows.fenced.close(uid, sequence, time_us)
    fenced = Fenced(event.node, sequence, event.cause, event.by_uid)
    rows.fenced.open(uid, [uid, f"{json_text(uid)}:{json_text(fenced)}"], sequence, time_us)


def _underlay_changed(rows: Rows, sequence: int, time_us: int, event: types.NodeUnderlayChanged) -> None:
    new = rows.nodes.current(event.node)
    node = _decode_node(new[1])
    new[1] = json_text(
        Node(
            node.name, node.uid, node.kind, event.underlay, event.announced,
            event.vtep_mac or node.vtep_mac, node.site, node.joined, sequence,
        )
    )  # fmt: skip
    rows.nodes.replace(event.node, new, sequence, time_us)
    rows.cleared(sequence, time_us, f"node/{event.node}")


def _bound(rows: Rows, sequence: int, time_us: int, event: types.NodeBound) -> None:
    # It ends with the membership; that end is not written (asof reads it so, as with gateways).
    rows.fact(sequence, time_us, ("bound", event.node, ""), event)


def _key_changed(rows: Rows, sequence: int, time_us: int, event: types.NodeKeyChanged) -> None:
    # As with bindings, its end with the membership is not written.
    rows.fact(sequence, time_us, ("keys", event.node, ""), event)


def _encryption_changed(rows: Rows, sequence: int, time_us: int, event: types.ClusterEncryptionChanged) -> None:
    rows.fact(sequence, time_us, ("encryption", event.cluster, ""), event)


def _nat_changed(rows: Rows, sequence: int, time_us: int, event: types.NodeNatChanged) -> None:
    key = ("behind_nat", event.node, "")
    if event.behind:
        rows.fact(sequence, time_us, key, event)
    elif rows.facts.is_open(key):
        rows.facts.close(key, sequence, time_us)


def _unreachable(rows: Rows, sequence: int, time_us: int, event: types.NodeUnreachable) -> None:
    new = rows.nodes.current(event.node)
    new[2:4] = 1, None if event.last_seen is None else microseconds(event.last_seen)
    rows.nodes.replace(event.node, new, sequence, time_us)


def _recovered(rows: Rows, sequence: int, time_us: int, event: types.NodeRecovered) -> None:
    new = rows.nodes.current(event.node)
    new[2:4] = 0, None
    rows.nodes.replace(event.node, new, sequence, time_us)


def _allocated(rows: Rows, sequence: int, time_us: int, event: types.RangeAllocated) -> None:
    index = event.index
    held = json_text(Range(index, event.cidr, event.node, event.uid, sequence))
    row = [index, event.node, held, "allocated", None, 0, event.cursor_after]
    rows.ranges.open(index, row, sequence, time_us)


def _draining(rows: Rows, sequence: int, time_us: int, event: types.RangeDraining) -> None:
    index = event.index
    held = json_text(Range(index, event.cidr, event.node, event.uid, event.epoch))
    row = [index, event.node, held, "draining", None, 0, None]
    rows.ranges.replace(index, row, sequence, time_us)


def _quarantined(rows: Rows, sequence: int, time_us: int, event: types.RangeQuarantined) -> None:
    new = rows.ranges.current(event.index)
    new[3:7] = "quarantined", microseconds(event.until), event.watermark, None
    rows.ranges.replace(event.index, new, sequence, time_us)


def _freed(rows: Rows, sequence: int, time_us: int, event: types.RangeFreed) -> None:
    rows.ranges.close(event.index, sequence, time_us)


def _defined(rows: Rows, sequence: int, time_us: int, event: types.ClusterDefined) -> None:
    rows.fact(sequence, time_us, ("definition", event.cluster, ""), event)
    for network in event.networks:
        rows.fact(sequence, time_us, ("network", network.cidr, ""), network)


def _deleted(rows: Rows, sequence: int, time_us: int, event: types.ClusterDeleted) -> None:
    rows.fact(sequence, time_us, ("deleted", event.cluster, ""), event)


def _appended(rows: Rows, sequence: int, time_us: int, event: types.CidrAppended) -> None:
    rows.fact(sequence, time_us, ("cidr", event.cidr, ""), event)
    rows.cleared(sequence, time_us, "command/append-cidr")


def _adoption_begun(rows: Rows, sequence: int, time_us: int, event: types.AdoptionBegun) -> None:
    rows.fact(sequence, time_us, ("adoption", event.cluster, ""), event)


def _adoption_ended(rows: Rows, sequence: int, time_us: int, event: types.AdoptionEnded) -> None:
    rows.facts.close(("adoption", event.cluster, ""), sequence, time_us)


def _declared(rows: Rows, sequence: int, time_us: int, event: types.NetworkDeclared) -> None:
    rows.fact(sequence, time_us, ("network", event.network.cidr, ""), event.network)
    rows.cleared(sequence, time_us, "command/declare-network")


def _withdrawn(rows: Rows, sequence: int, time_us: int, event: types.NetworkWithdrawn) -> None:
    rows.facts.close(("network", event.cidr, ""), sequence, time_us)


def _overridden(rows: Rows, sequence: int, time_us: int, event: types.ConflictOverridden) -> None:
    rows.fact(sequence, time_us, ("override", event.code, f"{event.ours} {event.theirs}"), event)


def _reserved(rows: Rows, sequence: int, time_us: int, event: types.ClbReserved) -> None:
    rows.fact(sequence, time_us, ("clb", event.name, ""), event)
    rows.cleared(sequence, time_us, f"clb/{event.name}")


def _released(rows: Rows, sequence: int, time_us: int, event: types.ClbReleased) -> None:
    rows.facts.close(("clb", event.name, ""), sequence, time_us)


def _allocation_refused(rows: Rows, sequence: int, time_us: int, event: types.AllocationRefused) -> None:
    rows.refusal(sequence, time_us, f"node/{event.node}", event.code, event)


def _clb_refused(rows: Rows, sequence: int, time_us: int, event: types.ClbRefused) -> None:
    rows.refusal(sequence, time_us, f"clb/{event.name}", event.code, event)


def _conflict_refused(rows: Rows, sequence: int, time_us: int, event: types.ConflictRefused) -> None:
    rows.refusal(sequence, time_us, f"command/{event.command}", event.code, event)


def _token_used(rows: Rows, sequence: int, time_us: int, event: types.JoinTokenUsed) -> None:
    rows.fact(sequence, time_us, ("token", event.token, event.node), event)


def _shared_token_used(rows: Rows, sequence: int, time_us: int, event: types.SharedTokenUsed) -> None:
    rows.fact(sequence, time_us, ("admitted", event.node, ""), event)


def _skipped(rows: Rows, sequence: int, time_us: int, event: SkippedEvent) -> None:
    rows.skip(sequence, time_us, event)


def _events_parked(rows: Rows, sequence: int, time_us: int, event: types.EventsParked) -> None:  # noqa: ARG001
    rows.parked(sequence, event)


def _path_lost(rows: Rows, sequence: int, time_us: int, event: types.PathLost) -> None:
    rows.fact(sequence, time_us, ("lost_paths", f"{event.scope} {event.a}", event.b), event)


def _path_restored(rows: Rows, sequence: int, time_us: int, event: types.PathRestored) -> None:
    rows.facts.close(("lost_paths", f"{event.scope} {event.a}", event.b), sequence, time_us)


HANDLERS: Handlers = {
    types.NodeJoined: _joined,
    types.NodeLeft: _out,
    types.NodeFenced: _fenced,
    types.NodeBound: _bound,
    types.NodeKeyChanged: _key_changed,
    types.ClusterEncryptionChanged: _encryption_changed,
    types.NodeNatChanged: _nat_changed,
    types.NodeUnderlayChanged: _underlay_changed,
    types.NodeUnreachable: _unreachable,
    types.NodeRecovered: _recovered,
    types.PathLost: _path_lost,
    types.PathRestored: _path_restored,
    types.RangeAllocated: _allocated,
    types.RangeAdopted: _allocated,
    types.RangeDraining: _draining,
    types.RangeQuarantined: _quarantined,
    types.RangeFreed: _freed,
    types.ClusterDefined: _defined,
    types.ClusterDeleted: _deleted,
    types.CidrAppended: _appended,
    types.NetworkDeclared: _declared,
    types.NetworkWithdrawn: _withdrawn,
    types.ConflictOverridden: _overridden,
    types.ConflictRefused: _conflict_refused,
    types.ClbReserved: _reserved,
    types.ClbReleased: _released,
    types.ClbRefused: _clb_refused,
    types.AllocationRefused: _allocation_refused,
    types.JoinTokenUsed: _token_used,
    types.SharedTokenUsed: _shared_token_used,
    types.EventsParked: _events_parked,
    types.AdoptionBegun: _adoption_begun,
    types.AdoptionEnded: _adoption_ended,
    SkippedEvent: _skipped,
}
