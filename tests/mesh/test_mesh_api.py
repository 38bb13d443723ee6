"""The mesh over HTTP: the matrix as it is measured now, and what was recorded at any sequence."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.console.conftest import Background


@pytest.fixture(scope="module")
def background(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Background]:
    with Background(tmp_path_factory.mktemp("mesh")) as made:
        made.do(made.rig.define(8))
        made.do(made.rig.fill(8))
        yield made


def mesh(background: Background, status: int = 200, **asked: Any) -> dict[str, Any]:
    answer = httpx.get(f"{background.rig.url}/api/v1/mesh", params=asked)
    assert answer.status_code == status, answer.text
    return dict(answer.json())


def test_the_matrix_is_by_site_and_on_demand_by_node(background: Background) -> None:
    background.do(_call(background.rig.measure))
    whole = mesh(background)
    assert whole["measured"]
    assert whole["mesh"]["findings"] == []
    assert whole["mesh"]["capable"] == whole["mesh"]["nodes"] == 8
    sites = {(one["a"], one["b"]): one for one in whole["mesh"]["sites"]}
    assert sum(one["measured"] for one in sites.values()) == 8 * 7
    near = [one for (a, b), one in sites.items() if a == b]
    far = [one for (a, b), one in sites.items() if a != b]
    assert max(one["rtt_us"] for one in near) < min(one["rtt_us"] for one in far)
    assert whole["mesh"]["paths"] == []

    name = min(background.rig.replica.state.nodes)
    of_one = mesh(background, node=name)["mesh"]["paths"]
    assert len(of_one) == 14
    assert all(name in {one["by"], one["of"]} and one["state"] == "ok" for one in of_one)
    other = sorted(background.rig.replica.state.nodes)[1]
    assert {(one["by"], one["of"]) for one in mesh(background, node=name, peer=other)["mesh"]["paths"]} == {
        (name, other),
        (other, name),
    }
    a, b = next(key for key in sites if key[0] != key[1])
    between = mesh(background, site=a, other=b)["mesh"]["paths"]
    assert len(between) == sites[a, b]["measured"] + sites[b, a]["measured"]
    assert len(mesh(background, nodes=True)["mesh"]["paths"]) == 8 * 7
    assert mesh(background, 404, node="nobody")["code"] == "node_unknown"
    assert "no node is at a site 'nowhere'" in mesh(background, 404, site="nowhere")["message"]


def test_the_past_shows_what_was_recorded_then(background: Background) -> None:
    name = sorted(background.rig.replica.state.nodes)[2]
    before = background.rig.replica.state.sequence
    background.do(background.rig.lose(name))
    lost = background.rig.replica.state.sequence
    assert lost == before + 1
    (now,) = mesh(background)["mesh"]["findings"]
    assert (now["scope"], now["a"], now["recorded"]) == ("node", name, lost)
    (event,) = httpx.get(f"{background.rig.url}/api/v1/events", params={"aggregate": "path"}).json()["events"]
    assert (event["sequence"], event["type"]) == (lost, "path.lost.v1")

    background.do(background.rig.restore())
    assert mesh(background)["mesh"]["findings"] == []
    (then,) = mesh(background, at=lost)["mesh"]["findings"]
    assert (then["sentence"], then["since"]) == (now["sentence"], event_since(background, lost))
    past = mesh(background, at=before)
    assert not past["measured"]
    assert past["mesh"]["findings"] == past["mesh"]["sites"] == []


def event_since(background: Background, sequence: int) -> str:
    data = httpx.get(f"{background.rig.url}/api/v1/events/{sequence}").json()["data"]
    return str(data["since"])


async def _call(function: Any) -> None:
    """On the controller's loop."""
    function()
