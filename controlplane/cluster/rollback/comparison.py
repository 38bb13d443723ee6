"""What it takes to go back to an earlier release: which events it cannot follow, and what they changed.

Events of newer types are left out by the log itself: parked (:mod:`events.parking`), which every release knows,
so that no sequence, epoch or digest changes and the whole history stays. That is right only where the cluster
is the same without them. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from controlplane.cluster.digest import canonical
from controlplane.cluster.evolve import evolve
from controlplane.cluster.state import ClusterState
from events.codec import Recorded, SkippedEvent
from events.errors import VerificationFailed
from events.log import BATCH_LIMIT
from events.types import EventsParked, NodeFenced, RangeAdopted, SharedTokenUsed
from events.types.releases import follows, known_since

SHOWN = 8
_FIRST_FACTS = 17
"""So many parts of the canonical text are what every release has; then come gateways, backends and holders."""


class Obstacle(NamedTuple):
    """Why the way back is closed, and what opens it (empty: nothing does)."""

    what: str
    way_out: str = ""


class _Newer(NamedTuple):
    sequence: int
    id: str
    type: str


class Rollback:
    """Give it every event of the log in order; then it says what is in the way, and what has to be parked.

    ``release`` is the one to go back to. O(1) an event beyond two folds.
    """

    def __init__(self, cluster: str, release: str) -> None:
        self.release = release
        self.state = ClusterState(cluster)
        """The cluster as it is."""
        self.without = ClusterState(cluster)
        """The cluster as that release will have it."""
        self.left_out: Counter[str] = Counter()
        """How many events of which type it cannot follow."""
        self._newer: list[_Newer] = []
        self._broken: VerificationFailed | None = None
        self._adopted = self._fenced = 0
        self._fenced_who = ""
        self._tokens: dict[str, SharedTokenUsed] = {}  # the latest use of each

    def take(self, recorded: Recorded) -> None:
        """The next event. Raises VerificationFailed when this release cannot follow it either."""
        sequence, event = recorded.sequence, recorded.event
        evolve(self.state, sequence, event)
        if isinstance(event, SkippedEvent) or follows(self.release, known_since(event)):
            self._follow(sequence, event)
            return
        type_name = event.type_name()
        self.left_out[type_name] += 1
        self._newer.append(_Newer(sequence, recorded.envelope.id, type_name))
        self._follow(sequence, SkippedEvent(type=type_name, body=b""))
        if isinstance(event, RangeAdopted):
            self._adopted = self._adopted or sequence
        elif isinstance(event, NodeFenced):
            self._fenced, self._fenced_who = sequence, f"{event.uid} of {event.node}"
        elif isinstance(event, SharedTokenUsed):
            self._tokens[event.token] = event

    def _follow(self, sequence: int, event: Any) -> None:
        if self._broken is not None:
            return
        try:
            evolve(self.without, sequence, event)
        except VerificationFailed as error:
            self._broken = error

    # --- what is in the way ----------------------------------------------------------------------------------

    def obstacles(self, now: datetime, *, leave_behind_nat: bool = False) -> list[Obstacle]:
        """Why the cluster would not be the same without these events; none: the way back is open.

        ``leave_behind_nat``: nodes behind NAT may lose their ways to others.
        """
        found = [*self._for_ever(), *self._for_now(now)]
        if not leave_behind_nat:
            found += [
                Obstacle(
                    f"node {name} is behind NAT, and {self.release} knows no way through it",
                    f"`isthmus node remove {name}`, or --leave-behind-nat: it stays a member that others reach "
                    f"only where its address {self.state.nodes[name].announced} leads to it",
                )
                for name in _some(self.state.behind_nat)
            ]
        if found:
            return found
        shared = _same_address(self.without)
        if shared:
            return [
                Obstacle(f"{shared} announced the address of another member, of which {self.release} keeps one")
            ]
        if self._broken is not None:
            return [Obstacle(f"{self.release} could not follow the log without them: {self._broken.message}")]
        if _facts(self.state) != _facts(self.without):
            return [Obstacle("members, ranges, fences or reservations would not be what they are")]
        return []

    def _for_ever(self) -> Iterator[Obstacle]:
        if self._adopted:
            yield Obstacle(f"ranges were taken over from another network, first by event {self._adopted}")
        if self._fenced:
            yield Obstacle(
                f"event {self._fenced} fences {self._fenced_who}, which was no member any more: without it "
                f"that installation could come back"
            )

    def _for_now(self, now: datetime) -> Iterator[Obstacle]:
        if any(not one.off for one in self.state.encryption.values()):
            yield Obstacle(
                "packets between nodes are encrypted, or agents still change that",
                "`isthmus cluster encrypt off`, then wait until `isthmus cluster show` says so",
            )
        for name in _some(self.state.entries):
            yield Obstacle(
                f"entry {name} lets hosts outside of the overlay in", f"`isthmus entry remove {name} --yes`"
            )
        if self.state.adoption:
            yield Obstacle("an adoption is under way", "`isthmus adopt end`")
        for token in self._tokens.values():
            if token.until > now and token.use < token.uses:
                yield Obstacle(
                    f"a join token for several machines has {token.uses - token.use} uses left",
                    f"wait until it ends, at {token.until:%Y-%m-%d %H:%M:%S} UTC",
                )

    # --- what is written -------------------------------------------------------------------------------------

    def parkings(self) -> Sequence[EventsParked]:
        """One for each run of consecutive events, the latest first.

        Whatever part of them is in the log, from the first on, leaves a log that can be followed: it is as if
        nothing of the kind had been written lately.
        """
        runs: list[list[_Newer]] = []
        for one in self._newer:
            if runs and runs[-1][-1].sequence == one.sequence - 1 and len(runs[-1]) < BATCH_LIMIT:
                runs[-1].append(one)
            else:
                runs.append([one])
        return [self._parking(run) for run in reversed(runs)]

    def _parking(self, run: Sequence[_Newer]) -> EventsParked:
        first = run[0]
        return EventsParked(
            first=first.sequence,
            last=run[-1].sequence,
            poison=first.sequence,
            poison_id=first.id,
            poison_type=first.type,
            code="event_unknown",
            reason=f"{self.release} does not know this type, and the cluster is the same without it",
        )


def _facts(state: ClusterState) -> tuple[Any, Any]:
    text = msgspec.json.decode(canonical(state))
    return text[:_FIRST_FACTS], text[_FIRST_FACTS] if len(text) > _FIRST_FACTS else [[], [], []]


def _same_address(state: ClusterState) -> str:
    """A member that is not found by its address; empty: none. Behind different NATs several may have one."""
    return next(
        (one.name for one in state.nodes.values() if state.by_address.get(one.announced) != one.name), ""
    )


def _some(names: Any) -> list[str]:
    return sorted(names)[:SHOWN]
