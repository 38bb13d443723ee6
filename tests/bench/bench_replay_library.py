"""The recorded node churn, replayed by us and by the ``eventsourcing`` library.

The same 8,736 joins and leaves. The library rebuilds one aggregate out of its own store, in memory
(its fastest); ours are read from an archive file on disk, through zstd, and folded by the
controller's fold. The library's aggregate keeps less (a node is a name, a range is an index), and
needs one event for a join where our log has two, so the comparison is by the whole churn.
"""

from __future__ import annotations

import gc
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5


def run() -> list[dict[str, Any]]:
    """One row: churns replayed a second."""
    from controlplane.evolve import fold
    from controlplane.state import ClusterState
    from replay.archive.reader import ArchiveLog
    from tests.replay.churned import CLUSTER, churn_history, write

    rebuild, nodes = _library()
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "churn.isthmus", churn_history())

        def ours() -> int:
            log = ArchiveLog(path)
            state = ClusterState(CLUSTER)
            for place in log.places:
                fold(state, [(fact.seq, fact.body) for fact in log.facts(place)])
            log.close()
            return len(state.nodes)

        assert ours() == nodes
        assert rebuild() == nodes
        mine, theirs = _fastest(ours), _fastest(rebuild)
    ratio = theirs / mine
    return [
        {
            "name": "replay of the recorded node churn / the eventsourcing library's",
            "ours": round(1 / mine, 2),
            "baseline": round(1 / theirs, 3),
            "unit": "churns/s",
            "ratio": round(ratio, 2),
            "target": 10,
            "better": "higher",
            "ok": ratio >= 10,
        }
    ]


def _fastest(work: Callable[[], Any]) -> float:
    took = []
    for _ in range(3):
        gc.collect()
        began = time.perf_counter()
        work()
        took.append(time.perf_counter() - began)
    return min(took)


def _library() -> tuple[Callable[[], int], int]:
    """A function that rebuilds the pool by the library, and how many nodes live at the end."""
    os.environ.setdefault("PERSISTENCE_MODULE", "eventsourcing.popo")
    from eventsourcing.application import Application
    from eventsourcing.domain import Aggregate, event

    from tests.replay.churned import recorded_changes

    class Pool(Aggregate):
        """Cyclic allocation as in the product, written the way the library's guide writes aggregates."""

        @event("Defined")
        def __init__(self, capacity: int) -> None:
            self.capacity = capacity
            self.cursor = 0
            self.nodes: dict[str, int] = {}
            self.taken: set[int] = set()

        @staticmethod
        def create_id() -> UUID:
            return uuid5(NAMESPACE_URL, "pool")

        @event("Joined")
        def joined(self, name: str, uid: str, kind: str, site: str, underlay: str, index: int) -> None:
            self.nodes[name] = index
            self.taken.add(index)
            self.cursor = (index + 1) % self.capacity

        @event("Left")
        def left(self, name: str) -> None:
            self.taken.discard(self.nodes.pop(name))

    application: Application[UUID] = Application()
    pool = Pool(1020)
    for _, joins, name, uid, kind, site, underlay in recorded_changes():
        if not joins:
            pool.left(name)
            continue
        index = pool.cursor
        while index in pool.taken:
            index = (index + 1) % pool.capacity
        pool.joined(name, uid, kind, site, underlay, index)
        if len(pool.pending_events) > 500:
            application.save(pool)
    application.save(pool)
    live = len(pool.nodes)

    def rebuild() -> int:
        copy: Any = application.repository.get(pool.id)
        return len(copy.nodes)

    return rebuild, live


if __name__ == "__main__":
    print(run())
