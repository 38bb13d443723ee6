"""What the agent's kernel side has done so far, counted."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from nodeagent.netlink.messages import Action, Operation
from nodeagent.netlink.rows import Kind


class Counters(msgspec.Struct):
    """Counters and last values, for the status and the metrics. Durations are seconds."""

    resyncs: int = 0
    direct: int = 0
    repaired: int = 0
    written: int = 0
    removed: int = 0
    refused: int = 0
    overflows: int = 0
    last_resync_s: float = 0.0
    last_resync_at: float = 0.0
    last_direct_s: float = 0.0
    drift_found_neighbour: int = 0
    drift_found_fdb: int = 0
    drift_found_route: int = 0
    drift_found_link: int = 0
    drift_repaired_neighbour: int = 0
    drift_repaired_fdb: int = 0
    drift_repaired_route: int = 0
    drift_repaired_link: int = 0

    def record_direct(self, operations: Sequence[Operation], refused: int, seconds: float) -> None:
        """A direct change; of refused ones it is not known which, and a comparison follows that counts."""
        self.direct += 1
        self.last_direct_s = seconds
        if not refused:
            puts = sum(operation.action is Action.PUT for operation in operations)
            self.written += puts
            self.removed += len(operations) - puts

    def record_drift(self, found: Sequence[int], left: Sequence[int]) -> None:
        """Rows that something else changed were found, and all but those ``left`` repaired; by kind."""
        for kind, before, after in zip(Kind, found, left, strict=True):
            for name, count in (("found", before), ("repaired", max(0, before - after))):
                field = f"drift_{name}_{kind.name.lower()}"
                setattr(self, field, getattr(self, field) + count)
