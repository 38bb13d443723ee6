"""The port between the HTTP API and a controller: what the API may know, and nothing else.

The API only reads. An implementation answers from the live state and the read model; it never
blocks the event loop, and raises only :class:`events.errors.IsthmusError`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Protocol

from controlplane.changes import Changes
from controlplane.cluster.state import ClusterState
from controlplane.console.schemas import TimelineBucket
from controlplane.controller.agents.agent_history.store import Coverage
from controlplane.controller.agents.convergence import Convergence, ConvergenceTracker
from controlplane.controller.agents.records import Alarm
from controlplane.controller.agents.reports import Reports
from controlplane.controller.observability.span_store import SpanStore
from events.codec import Recorded
from events.protocol.mesh import MeshView, ShowMesh
from events.protocol.queries import Condition


class Source(Protocol):
    """A controller, as the API sees it. A cancelled question leaves nothing behind."""

    @property
    def cluster(self) -> str:
        """The cluster's name."""
        ...

    @property
    def state(self) -> ClusterState:
        """The live state. Valid until the next await: whoever reads it reads it in one go."""
        ...

    @property
    def head_time(self) -> datetime | None:
        """When the last event was decided; None in an empty log."""
        ...

    @property
    def leading(self) -> bool:
        """Whether this controller leads."""
        ...

    @property
    def watermark(self) -> int:
        """The lowest applied sequence of the live agents; 0 without any."""
        ...

    @property
    def changes(self) -> Changes:
        """Every event as it is stored."""
        ...

    @property
    def convergence(self) -> ConvergenceTracker:
        """How the agents follow."""
        ...

    def latest_convergence(self, limit: int) -> list[Convergence]:
        """The latest transactions, newest first; before this process' own those that were recorded."""
        ...

    @property
    def spans(self) -> SpanStore:
        """Recent traces."""
        ...

    def reports(self) -> Reports:
        """What the agents last said."""
        ...

    def mesh(self, query: ShowMesh) -> MeshView:
        """What the agents measure of each other now. Raises Refused(node_unknown)."""
        ...

    def hear(self, callback: Callable[[str], None]) -> Callable[[], None]:
        """Call with the uid of each agent that reports, until the function returned is called."""
        ...

    @property
    def alarms_raised(self) -> int:
        """Alarms since this controller's start."""
        ...

    def not_working_reason(self) -> str:
        """Why this controller does not do its work; empty when it does."""
        ...

    def own_conditions(self) -> list[Condition]:
        """What a person should know of this controller itself."""
        ...

    def metrics(self) -> bytes:
        """The metrics in Prometheus' text format."""
        ...

    async def state_at(self, sequence: int) -> ClusterState:
        """The state as it was directly after ``sequence``, for the caller alone. 0 is the empty state."""
        ...

    async def time_of(self, sequence: int) -> datetime | None:
        """When the event was decided; None when there is no such event (yet) in the read model."""
        ...

    async def command_of(self, sequence: int) -> tuple[int, int] | None:
        """The first and the last event of the command that an event belongs to; None when none is known.

        Cancelled, it leaves nothing behind.
        """
        ...

    async def reports_at(self, state: ClusterState, moment: datetime) -> Reports:
        """What was known of that state's members then."""
        ...

    async def recorded(self, moment: datetime) -> Coverage:
        """Whether the agents' reports were recorded at that moment."""
        ...

    async def convergence_at(self, sequence: int, moment: datetime, limit: int) -> list[Convergence]:
        """The latest transactions up to a sequence as they were known then, newest first."""
        ...

    async def convergence_of(self, sequence: int, moment: datetime | None) -> Convergence | None:
        """The transaction that contains a sequence, at that moment (None: now); None when not recorded."""
        ...

    async def alarms(self, moment: datetime, limit: int) -> list[Alarm]:
        """The latest alarms up to a moment, newest first."""
        ...

    async def clb_events(self, name: str, *, until: int, kind: str, limit: int) -> Sequence[Recorded]:
        """Events of a reservation whose verb begins with ``kind``, at most so many, newest first."""
        ...

    async def until(self, sequence: int) -> datetime | None:
        """When the next event was decided; None when there is none yet."""
        ...

    async def sequence_at(self, moment: datetime) -> int:
        """The last sequence decided at or before the moment; 0 when there is none."""
        ...

    async def events(
        self, *, before: int, limit: int, entity: str, aggregate: str
    ) -> tuple[Sequence[Recorded], int]:
        """At most ``limit`` events with a sequence below ``before``, newest first.

        ``entity`` and ``aggregate`` narrow them (empty: all). The number is where to go on; 0 at the beginning.
        """
        ...

    async def event(self, sequence: int) -> Recorded | None:
        """One event; None beyond the head."""
        ...

    async def timeline(self, *, buckets: int) -> Sequence[TimelineBucket]:
        """The log from its beginning to the read model's checkpoint, evenly cut by sequence."""
        ...
