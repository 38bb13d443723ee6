"""``ways``: which way packets between two nodes took at a moment, since when, and by which event.

It follows from what the log says of the two: whether each was behind NAT, at which sites they were, what the
cluster encrypted, which gateways relayed. Nothing is written for a pair, so that a log of ten thousand nodes
has no line for each of their fifty million pairs. What an agent finds out for itself is not in it: that two
nodes on one link reach each other directly, and which gateway relays while the preferred one does not answer.
"""

from __future__ import annotations

import itertools
from typing import Any, Final, NamedTuple

import msgspec

from controlplane.cluster.state import ClusterState
from events import types
from events.codec import Recorded
from events.errors import Refused
from events.protocol.encryption import Encryption
from events.protocol.ways import preferred_relay, way_between
from events.status import WayKind
from replay.history import History, Point
from replay.queries.stamp import Stamp, stamp
from replay.queries.states import base
from replay.queries.unknown import unknown

STEPS_MAX = 1000
"""Most changes that are answered: the latest."""
_SENT: Final = {
    "plain": "plain",
    "accepting": "plain, encrypted is taken, too",
    "sending": "encrypted, plain is taken, too",
    "required": "encrypted",
}
NOTE = (
    "by the log; that nodes on one link reach each other directly, and which gateway relays while the "
    "preferred one does not answer, is each agent's own finding (isthmus node show NODE)"
)


class End(msgspec.Struct, frozen=True, kw_only=True):
    """One of the two at the moment. ``epoch`` is that of its range (0: it was no member)."""

    node: str
    member: bool
    site: str = ""
    epoch: int = 0
    behind_nat: Stamp | None = None
    """The event by which it is behind NAT; None also where it was so before a capsule's first event."""
    nat: bool = False
    seen_as: str = ""


class WayStep(msgspec.Struct, frozen=True, kw_only=True):
    """From this event on packets took this way; ``way`` is empty while one of the two was no member.

    ``encryption`` is the pair's stage (:mod:`events.protocol.encryption`).
    """

    since: Stamp | None
    way: WayKind | None
    encryption: str

    @property
    def words(self) -> str:
        """In one line."""
        if self.way is None:
            return "no way: one of them is no member"
        return f"{self.way}, {_SENT[self.encryption]}"

    @property
    def packets(self) -> tuple[WayKind | None, bool]:
        """Which way they took, and whether encrypted: what else the ends would have taken is not in it."""
        return self.way, self.encryption in {"sending", "required"}


class WaysAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """``via`` is the gateway that both prefer where they are relayed (empty: there is none, and no way);
    ``via_since`` the event by which it is one (0: there is none); ``gateways`` are those of the moment, in the
    order of their marks. ``now`` is since when packets took this way, encrypted or not. ``steps`` ends with the
    last event that changed it, or what the two take from each other."""

    at: Point
    a: End
    b: End
    now: WayStep
    via: str
    via_since: int
    gateways: tuple[str, ...]
    steps: tuple[WayStep, ...]
    note: str = NOTE


class _Side(NamedTuple):
    """What is known of one of the two; ``site`` None: no member."""

    site: str | None = None
    epoch: int = 0
    behind: bool = False
    seen_as: str = ""
    since: Stamp | None = None

    def after(self, recorded: Recorded) -> _Side:
        """The same behind an event about this node."""
        match recorded.event:
            case types.NodeJoined() as event:
                return _Side(event.site)
            case types.RangeAllocated():
                return self._replace(epoch=recorded.sequence)
            case types.NodeNatChanged() as event:
                return self._replace(
                    behind=event.behind, seen_as=event.seen_as, since=stamp(recorded) if event.behind else None
                )
            case types.NodeLeft() | types.NodeFenced(former=False):
                return _Side()
        return self

    def end(self, node: str) -> End:
        """As it is answered."""
        return End(
            node=node, member=self.site is not None, site=self.site or "", epoch=self.epoch,
            behind_nat=self.since, nat=self.behind, seen_as=self.seen_as,
        )  # fmt: skip


async def ways(history: History, a: str, b: str, at: Point, state: ClusterState) -> WaysAnswer:
    """The way between two nodes at a moment; ``state`` is the cluster's there.

    Reads the events about the two and about the cluster, through the log's index. Raises
    Refused(not_in_history) for a name that no event is about, and for two that are one.
    """
    if a == b:
        raise Refused("not_in_history", f"{a} is one node: a way is between two", node=a)
    before = base(history)
    sides = {name: _side(before, name) for name in (a, b)}
    encryption = before.encrypts
    found: list[tuple[int, str, Recorded]] = []
    for name in (a, b):
        about = [recorded async for recorded in history.about("node", name, until=at.sequence)]
        if not about and sides[name].site is None:
            raise await unknown(history, "node", name, at.sequence)
        found += [(recorded.sequence, name, recorded) for recorded in about]
    async for recorded in history.about("cluster", history.cluster, until=at.sequence):
        if isinstance(recorded.event, types.ClusterEncryptionChanged):
            found.append((recorded.sequence, "", recorded))
    steps = [_step(None, sides[a], sides[b], encryption)]
    command = ""
    for sequence, name, recorded in sorted(found, key=lambda one: one[0]):
        if name:
            sides[name] = sides[name].after(recorded)
        elif isinstance(recorded.event, types.ClusterEncryptionChanged):
            encryption = Encryption.of(recorded.event, sequence)
        step = _step(stamp(recorded), sides[a], sides[b], encryption)
        if (step.way, step.encryption) == (steps[-1].way, steps[-1].encryption):
            continue
        if command and recorded.envelope.command_id == command:  # one command is one step
            steps.pop()
        steps.append(step)
        command = recorded.envelope.command_id
    gateways = [name for name in state.gateways if name not in state.behind_nat]
    via = _via(state, a, b, gateways) if steps[-1].way == "relayed" else ""
    return WaysAnswer(
        at=at,
        a=sides[a].end(a),
        b=sides[b].end(b),
        now=msgspec.structs.replace(steps[-1], since=_since(steps)),
        via=via,
        via_since=state.gateways.get(via, 0),
        gateways=tuple(gateways),
        steps=tuple(steps[-STEPS_MAX:]),
    )


def _since(steps: list[WayStep]) -> Stamp | None:
    """The event by which packets take the way that they take now."""
    same = itertools.takewhile(lambda step: step.packets == steps[-1].packets, reversed(steps))
    return list(same)[-1].since


def _side(state: ClusterState, name: str) -> _Side:
    node, owned, known = state.nodes.get(name), state.owned.get(name), state.behind_nat.get(name)
    if node is None:
        return _Side()
    nat: dict[str, Any] = {"behind": True, "seen_as": known.seen_as} if known is not None else {}
    return _Side(node.site, owned.epoch if owned else 0, **nat)


def _step(since: Stamp | None, a: _Side, b: _Side, encryption: Encryption) -> WayStep:
    if a.site is None or b.site is None:
        return WayStep(since=since, way=None, encryption="")
    way = way_between(a.behind, b.behind, one_site=a.site == b.site)
    return WayStep(since=since, way=way, encryption=encryption.stage(a.site, b.site))


def _via(state: ClusterState, a: str, b: str, gateways: list[str]) -> str:
    epochs = {owned.epoch: name for name in gateways if (owned := state.owned.get(name)) is not None}
    one, other = state.owned.get(a), state.owned.get(b)
    chosen = preferred_relay(one.epoch, other.epoch, epochs) if one is not None and other is not None else None
    return epochs[chosen] if chosen is not None else ""
