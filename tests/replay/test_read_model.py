"""As-of answers from the read model equal the fold at every sequence, and read only what they must."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane.cluster.digest import state_digest
from controlplane.cluster.evolve import evolve
from controlplane.cluster.state import ClusterState
from controlplane.readmodel import asof, schema, store
from controlplane.readmodel.store import Store
from events.codec import decode
from events.errors import Refused
from replay.history import History
from replay.queries.bisect import bisect
from replay.queries.states import ReadModel, States
from tests.replay.histories import CLUSTER, ListLog, history

MESSAGES = history(21, 200)


@pytest.fixture(params=["short lives", "long lives"])
def model(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ReadModel]:
    """The projection of the history; "long" makes a life of more than seven sequences a long one."""
    if request.param == "long lives":
        old, new = str(schema.LONG), "7"
        monkeypatch.setattr(store, "SCHEMA", schema.SCHEMA.replace(old, new))
        monkeypatch.setattr(asof, "_NODES_ALIVE", asof._NODES_ALIVE.replace(old, new))
        monkeypatch.setattr(asof, "_RANGES_ALIVE", asof._RANGES_ALIVE.replace(old, new))

    async def project() -> None:
        made = await Store.open(tmp_path / "model", CLUSTER)
        await made.apply([decode(message) for message in MESSAGES])
        await made.close()

    asyncio.run(project())
    opened = ReadModel.open(tmp_path / "model", CLUSTER)
    yield opened
    opened.close()


def test_the_state_at_every_sequence_equals_the_fold(model: ReadModel) -> None:
    state = ClusterState(CLUSTER)
    for message in MESSAGES:
        recorded = decode(message)
        evolve(state, recorded.sequence, recorded.event)
        assert state_digest(model.state(recorded.sequence)) == state_digest(state)


async def test_a_monotone_condition_is_searched_by_halves_and_found_where_the_fold_finds_it(
    model: ReadModel,
) -> None:
    past = await History.open(ListLog(MESSAGES))
    for condition in (
        "joins < 30",
        "fenced <= 5 and leaves < 100",
        "not (allocations >= 17)",
        "sequence < 5000",
    ):
        halves = await bisect(States(past, model), condition)
        linear = await bisect(States(past), condition)
        assert (halves.method, linear.method) == ("by halves", "every event")
        assert halves.looked_at <= 12
        assert halves.failed == linear.failed
    recovering = await bisect(States(past, model), "nodes < 5")
    assert recovering.method == "every event"


def test_a_read_model_of_another_cluster_or_nowhere_is_refused(model: ReadModel, tmp_path: Path) -> None:
    for place, cluster in ((model.path, "other"), (tmp_path / "nothing", CLUSTER)):
        with pytest.raises(Refused):
            ReadModel.open(place, cluster)
