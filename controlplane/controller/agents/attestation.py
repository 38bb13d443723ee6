"""Whether each node's kernel holds the rows that the log demands, by the digests that agents publish.

One sum over all peers is kept (:mod:`events.attestation`), and the recent changes of it, so that a
report about an earlier sequence can be judged at that sequence. Judging costs the same for ten
nodes as for ten thousand, plus a step for each change that the report does not cover yet.

An observation, not a fact: nothing of it is stored.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from controlplane.cluster.state import ClusterState
from events.attestation import ClusterSum, own_sum, peer_sum, text
from events.codec import Recorded
from events.status import AgentStatus
from events.types import NodeJoined, NodeUnderlayChanged, RangeAllocated, RangeDraining

CHANGES_LIMIT = 8192
"""Changes that can be undone; reports about anything older are not judged."""


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """A node whose kernel is not as the log says at ``sequence``. ``rows`` are those that its agent names."""

    node: str
    sequence: int
    expected: str
    reported: str
    rows: tuple[str, ...] = ()


class _Owner(NamedTuple):
    """What peers need to reach the owner of a range."""

    node: str
    vtep_mac: str
    announced: str


class _Change(NamedTuple):
    sequence: int
    cidr: str
    before: _Owner | None
    after: _Owner | None


_new = tuple.__new__  # a named tuple's own constructor is a Python function


class Attestor:
    """Follows the log beside the state, and judges reports. Owned by one event loop."""

    def __init__(self) -> None:
        self._sum = ClusterSum()
        self._owners: dict[str, _Owner] = {}  # range → its owner
        self._ranges: dict[str, str] = {}  # node → its range
        self._joined: dict[str, _Owner] = {}  # node → as it joined, until it gets its range
        self._changes: deque[_Change] = deque(maxlen=CHANGES_LIMIT)
        self._from = 0  # reports about earlier sequences cannot be judged
        self._sequence = 0
        self.differences: dict[str, Difference] = {}
        """uid → how that node's kernel differs, as of its last report."""
        self.agreeing: dict[str, int] = {}
        """uid → the last sequence at which that node's kernel was found to be as the log says."""

    def load(self, state: ClusterState) -> None:
        """Begin anew from a state."""
        self._sum, self._owners, self._ranges, self._joined = ClusterSum(), {}, {}, {}
        self._changes.clear()
        self._from = self._sequence = state.sequence
        for name, owned in state.owned.items():
            node = state.nodes.get(name)
            if node is None:  # between its leaving and the draining, which follows at once: not to be judged
                self._from = state.sequence + 1
                continue
            self._set(owned.cidr, _Owner(name, node.vtep_mac, node.announced))
        for node in state.nodes.values():
            if node.name not in state.owned:  # between its joining and its allocation
                self._joined[node.name] = _Owner(node.name, node.vtep_mac, node.announced)

    def fold(self, events: Iterable[Recorded]) -> None:
        """Follow further events; those that the loaded state knew are skipped."""
        for sequence, _, event, _ in events:
            if sequence <= self._sequence:
                continue
            self._sequence = sequence
            if isinstance(event, NodeJoined):
                self._joined[event.node] = _new(_Owner, (event.node, event.vtep_mac, event.announced))
            elif isinstance(event, RangeAllocated):
                self._change(sequence, event.cidr, self._joined.pop(event.node, None))
            elif isinstance(event, RangeDraining):
                self._change(sequence, event.cidr, None)
            elif isinstance(event, NodeUnderlayChanged) and event.node in self._ranges:
                cidr = self._ranges[event.node]
                owner = self._owners[cidr]
                mac = event.vtep_mac or owner.vtep_mac
                self._change(sequence, cidr, owner._replace(announced=event.announced, vtep_mac=mac))

    def _change(self, sequence: int, cidr: str, after: _Owner | None) -> None:
        if len(self._changes) == CHANGES_LIMIT:
            self._from = self._changes[0].sequence
        self._changes.append(_new(_Change, (sequence, cidr, self._owners.get(cidr), after)))
        self._set(cidr, after)

    def _set(self, cidr: str, owner: _Owner | None) -> None:
        before = self._owners.pop(cidr, None)
        if before is not None and self._ranges.get(before.node) == cidr:
            del self._ranges[before.node]
        if owner is None:
            self._sum.drop(cidr)
            return
        self._owners[cidr] = owner
        self._ranges[owner.node] = cidr
        self._sum.put(cidr, owner.vtep_mac, owner.announced)

    def judge(self, state: ClusterState, status: AgentStatus) -> bool | None:
        """Compare a report with the log: True if it agrees, False if not, None when it cannot be judged."""
        expected = self._expected(state, status) if status.kernel_digest else None
        if expected is None:
            return None
        if expected == status.kernel_digest:
            self.differences.pop(status.uid, None)
            self.agreeing[status.uid] = status.applied
            return True
        self.differences[status.uid] = Difference(
            node=status.node,
            sequence=status.applied,
            expected=expected,
            reported=status.kernel_digest,
            rows=status.drift,
        )
        return False

    def forget(self, uid: str) -> None:
        """The node is no member any more."""
        self.differences.pop(uid, None)
        self.agreeing.pop(uid, None)

    def _expected(self, state: ClusterState, status: AgentStatus) -> str | None:
        node, owned, definition = state.nodes.get(status.node), state.owned.get(status.node), state.definition
        if node is None or owned is None or definition is None or node.uid != status.uid:
            return None
        if not max(owned.epoch, node.changed, self._from) <= status.applied <= self._sequence:
            return None
        total = self._sum.total()
        for change in reversed(self._changes):
            if change.sequence <= status.applied:
                break
            total += _hash(change.cidr, change.before) - _hash(change.cidr, change.after)
        total -= peer_sum(owned.cidr, node.vtep_mac, node.announced)
        return text(total + own_sum(owned.cidr, node.vtep_mac, definition.vni, definition.vxlan_port))


def _hash(cidr: str, owner: _Owner | None) -> int:
    return peer_sum(cidr, owner.vtep_mac, owner.announced) if owner is not None else 0
