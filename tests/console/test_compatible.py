"""Release 0.2.0 and this one understand each other: the HTTP API's document, and the answers on the bus."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import msgspec

from controlplane.console.server import create_app
from controlplane.controller.answers import answer, ask
from events.protocol.queries import ClbAnswer, ClusterView, ListRanges, PoolView, RangePage, ShowCluster
from tests.controlplane.world import World

GOLDEN = Path(__file__).parent / "openapi-0.2.0.json.gz"


def _document() -> dict[str, Any]:
    app = create_app(None, None)  # type: ignore[arg-type]  # no route is called
    document: dict[str, Any] = json.loads(json.dumps(app.openapi_schema.to_schema(), default=str))
    return document


def test_the_http_api_has_every_path_parameter_and_field_of_0_2_0() -> None:
    old, new = json.loads(gzip.decompress(GOLDEN.read_bytes())), _document()
    for path, methods in old["paths"].items():
        for method, operation in methods.items():
            now = new["paths"][path][method]
            parameters = {item["name"]: item for item in now.get("parameters", ())}
            for item in operation.get("parameters", ()):
                assert item["name"] in parameters, (path, item["name"])
                assert parameters[item["name"]].get("required", False) <= item.get("required", False)
            for status in operation["responses"]:
                assert status in now["responses"], (path, status)
    for name, schema in old["components"]["schemas"].items():
        missing = set(schema.get("properties", ())) - set(new["components"]["schemas"][name]["properties"])
        assert not missing, (name, missing)


class OldPool(msgspec.Struct, forbid_unknown_fields=False):
    """What a command line of 0.2.0 reads of the pool."""

    capacity: int
    allocated: int
    draining: int
    quarantined: int
    free: int
    cursor: int
    next_range: str = ""


class OldRange(msgspec.Struct):
    """What it reads of a range."""

    index: int
    cidr: str
    phase: str
    node: str
    uid: str
    epoch: int
    draining_since: int | None = None
    watermark: int | None = None


def test_a_command_line_of_0_2_0_reads_the_answers_of_this_controller() -> None:
    world = World(container_cidr="10.0.0.0/24", pods_per_node=64)
    world.join(1)
    pool = msgspec.json.decode(answer(world.state, "cluster", b"{}"), type=dict[str, Any])["pool"]
    assert msgspec.convert(pool, OldPool).allocated == 1
    ranges = msgspec.json.decode(answer(world.state, "ranges", b"{}"), type=dict[str, Any])["ranges"]
    (old,) = msgspec.convert(ranges, list[OldRange])
    # It says of a range with a draining sequence, 0 included, that it waits for the agents.
    assert (old.draining_since, old.watermark) == (None, None)


def test_this_command_line_reads_the_answers_of_a_controller_of_0_2_0() -> None:
    pool = (
        b'{"capacity":3,"allocated":1,"draining":0,"quarantined":0,"free":2,"cursor":1,'
        b'"next_range":"10.0.0.64/26","earliest_free":null}'
    )
    assert msgspec.json.decode(pool, type=PoolView).next_range == "10.0.0.64/26"
    page = (
        b'{"sequence":3,"ranges":[{"index":0,"cidr":"10.0.0.0/26","phase":"allocated","node":"n1","uid":"u",'
        b'"epoch":3}],"total":1,"next_after":null}'
    )
    assert msgspec.json.decode(page, type=RangePage).ranges[0].draining_since is None
    backend = (
        b'{"sequence":9,"reservation":{"name":"main","subnet":"10.0.8.0/28","gateway":"10.0.8.1",'
        b'"addresses":[{"purpose":"apiserver","address":"10.0.8.2"},'
        b'{"purpose":"x","address":"10.0.8.3"}],"excluded":[]},"holders":[],'
        b'"backends":[{"purpose":"apiserver","protocol":"tcp","port":443,"address":"10.0.1.1",'
        b'"backend_port":6443,"affinity":"none","check":"tcp","healthy":true,"since":0,"reason":""}]}'
    )
    assert msgspec.json.decode(backend, type=ClbAnswer).backends[0].since_at is None


def test_bus_and_http_describe_the_pool_with_the_same_words() -> None:
    world = World(container_cidr="10.0.0.0/24", pods_per_node=64)
    world.join(1)
    view = ask(world.state, ShowCluster())
    assert isinstance(view, ClusterView)
    assert view.pool.cidrs == list(view.cidrs)
    assert isinstance(ask(world.state, ListRanges()), RangePage)
