"""The recorded node churn, replayed by us and by the ``eventsourcing`` library.

The same 26,168 events of the same 8,736 joins and leaves. The library rebuilds one aggregate out of
its own store, in memory (its fastest); ours are read from an archive file on disk, through zstd, and
folded by the controller's fold. A second row, without a target, gives the library a model that knows
no drains and quarantines and needs a third of the events.
"""

from __future__ import annotations

import gc
import os
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

import msgspec


def run() -> list[dict[str, Any]]:
    """Two rows: churns replayed a second, against the same events and against the lean model."""
    from controlplane.cluster.evolve import fold
    from controlplane.cluster.state import ClusterState
    from replay.archive.reader import ArchiveLog
    from tests.replay.churned import CLUSTER, churn_history, write

    messages = churn_history()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "churn.isthmus", messages)

        def ours() -> int:
            log = ArchiveLog(path)
            state = ClusterState(CLUSTER)
            for place in log.places:
                fold(state, [(fact.seq, fact.body) for fact in log.facts(place)])
            log.close()
            return len(state.nodes)

        for name, (rebuild, nodes), target in (
            ("the same events", _library(messages, lean=False), 10),
            ("a lean model with a third of the events", _library(messages, lean=True), None),
        ):
            assert ours() == nodes
            assert rebuild() == nodes
            mine, theirs = _fastest(ours), _fastest(rebuild)
            rows.append(
                {
                    "name": f"replay of the recorded node churn / the eventsourcing library, {name}",
                    "ours": round(1 / mine, 2),
                    "baseline": round(1 / theirs, 3),
                    "unit": "churns/s",
                    "ratio": round(theirs / mine, 2),
                    "target": target,
                    "better": "higher",
                    "ok": target is None or theirs / mine >= target,
                }
            )
    return rows


def _fastest(work: Callable[[], Any]) -> float:
    took = []
    for _ in range(3):
        gc.collect()
        began = time.perf_counter()
        work()
        took.append(time.perf_counter() - began)
    return min(took)


def _library(messages: list[Any], *, lean: bool) -> tuple[Callable[[], int], int]:
    """A function that rebuilds the pool by the library, and how many nodes live at the end."""
    from eventsourcing.application import Application

    pool_class = _pool_class()
    application: Application[UUID] = Application()
    pool = pool_class(1020, lean)
    joining: dict[str, Any] = {}
    for message in messages[1:]:
        verb = message.subject.rsplit(".", 1)[1]
        fields = msgspec.json.decode(message.body)
        for name in ("announced", "cidr"):
            fields.pop(name, None)
        if not lean:
            getattr(pool, verb)(**fields)
        elif verb == "joined":
            joining = fields
        elif verb == "allocated":
            joining.pop("vtep_mac")
            pool.came(**joining, index=fields["index"])
        elif verb == "left":
            pool.went(fields["node"])
        if len(pool.pending_events) > 500:
            application.save(pool)
    application.save(pool)
    live = len(pool.nodes)

    def rebuild() -> int:
        copy: Any = application.repository.get(pool.id)
        return len(copy.nodes)

    return rebuild, live


@cache
def _pool_class() -> Any:
    os.environ.setdefault("PERSISTENCE_MODULE", "eventsourcing.popo")
    from eventsourcing.domain import Aggregate, event

    class Pool(Aggregate):
        """The product's pool, written the way the library's guide writes aggregates."""

        @event("Defined")
        def __init__(self, capacity: int, lean: bool) -> None:
            self.capacity = capacity
            self.cursor = 0
            self.nodes: dict[str, str] = {}
            self.owned: dict[str, int] = {}
            self.phases: dict[int, str] = {}

        @staticmethod
        def create_id(capacity: int, lean: bool) -> UUID:
            return uuid5(NAMESPACE_URL, f"pool-{lean}")

        @event("Joined")
        def joined(self, node: str, uid: str, kind: str, underlay: str, vtep_mac: str, site: str) -> None:
            self.nodes[node] = uid

        @event("Allocated")
        def allocated(self, index: int, node: str, uid: str, cursor_after: int) -> None:
            self.owned[node] = index
            self.phases[index] = "allocated"
            self.cursor = cursor_after

        @event("Left")
        def left(self, node: str, uid: str, reason: str) -> None:
            del self.nodes[node]

        @event("Draining")
        def draining(self, index: int, node: str, uid: str, epoch: int) -> None:
            del self.owned[node]
            self.phases[index] = "draining"

        @event("Quarantined")
        def quarantined(self, index: int, epoch: int, watermark: int, until: str) -> None:
            self.phases[index] = "quarantined"

        @event("Freed")
        def freed(self, index: int, epoch: int) -> None:
            del self.phases[index]

        @event("Came")
        def came(self, node: str, uid: str, kind: str, underlay: str, site: str, index: int) -> None:
            self.nodes[node] = uid
            self.owned[node] = index

        @event("Went")
        def went(self, node: str) -> None:
            del self.nodes[node]
            del self.owned[node]

    return Pool


if __name__ == "__main__":
    print(run())
