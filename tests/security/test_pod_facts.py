"""What nodes tell of their pods: taken from who may tell it, about its own addresses, and read by who may."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import NoRespondersError
from nats.errors import TimeoutError as NatsTimeoutError

from deploy.credentials import layout
from events import subjects
from events.bus.client import ControllerClient
from events.errors import BadRequest, IsthmusError, Overloaded, Refused
from events.protocol.commands import JoinNode, RemoveNode
from events.protocol.pods import FACTS_A_REQUEST, PodFact, PodName, PodsView, ReportPods, ShowPods
from tests.security.conftest import CLUSTER, Place

pytestmark = pytest.mark.bus

MALLORY, ALICE = "old-1", "old-2"
NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)


def joining(node: str, number: int) -> JoinNode:
    return JoinNode(node=node, uid=f"uid-{node}", kind="external", underlay=f"192.0.2.{number}")


async def as_node(place: Place, name: str) -> tuple[Client, ControllerClient]:
    client = await place.open(place.files.nodes[name])
    return client, ControllerClient(client, CLUSTER, actor=f"node/{name}")


async def ask(client: Client, subject: str, body: bytes, timeout_s: float = 0.5) -> Msg | None:
    """The answer, or None when the server lets the request reach nobody."""
    try:
        return await client.request(subject, body, timeout=timeout_s)
    except (NoRespondersError, NatsTimeoutError):
        return None


def fact(address: str, epoch: int, **more: Any) -> PodFact:
    told: dict[str, Any] = {
        "container": "c-1",
        "interface": "eth0",
        "since": NOON,
        "pod": PodName(namespace="shop", name="web-1", uid="u-1"),
    }
    return PodFact(address=address, epoch=epoch, **{**told, **more})


async def refusals(client: ControllerClient, report: ReportPods) -> dict[str, str]:
    found: dict[str, str] = (await client.send(report)).result["refused"]
    return found


async def test_a_node_tells_of_its_own_pods_and_of_nothing_else(place: Place) -> None:
    mallory, as_mallory = await as_node(place, MALLORY)
    _, as_alice = await as_node(place, ALICE)
    hers = (await as_alice.send(joining(ALICE, 2))).result
    his = (await as_mallory.send(joining(MALLORY, 1))).result
    mine, epoch = str(his["cidr"]).rpartition(".")[0] + ".5", int(his["epoch"])
    operator = await place.operator()

    def report(*facts: PodFact, node: str = MALLORY, uid: str = f"uid-{MALLORY}") -> ReportPods:
        return ReportPods(node=node, uid=uid, facts=facts)

    before = await operator.ask(ShowPods(address=mine), PodsView)
    assert (before.kept, before.facts) == (False, ())
    # Its own: taken, read by an operator and an auditor, and a repetition changes nothing.
    good = fact(mine, epoch)
    ended = msgspec.structs.replace(good, until=NOON + timedelta(hours=1))
    for _ in range(2):
        assert (await as_mallory.send(report(good, ended))).result == {"stored": 2, "refused": {}}
    auditor = ControllerClient(await place.open(place.files.audit), CLUSTER, actor="audit")
    for reader in (operator, auditor):
        view = await reader.ask(ShowPods(address=mine, node=MALLORY), PodsView)
        assert [(each.node, each.uid, each.fact) for each in view.facts] == [
            (MALLORY, f"uid-{MALLORY}", good),
            (MALLORY, f"uid-{MALLORY}", ended),
        ]
        assert view.since is not None
    # Others' addresses, other epochs, and what is no fact.
    strange = [
        fact(str(hers["cidr"]).rpartition(".")[0] + ".5", int(hers["epoch"])),
        fact(mine, int(hers["epoch"])),
        fact("10.0.0.1", epoch),
        fact("x\x1b[2J", epoch),
        fact(mine, epoch, container="../x"),
        fact(mine, epoch, interface="e\n"),
        fact(mine, epoch, pod=PodName(namespace="shop", name="\x1b[31mweb")),
        fact(mine, epoch, pod=PodName(namespace="shop")),
        fact(mine, epoch, since=NOON.replace(tzinfo=None)),
        fact(mine, epoch, until=NOON - timedelta(seconds=1)),
    ]
    refused = await refusals(as_mallory, report(*strange))
    assert set(refused) == {str(index) for index in range(len(strange))}
    assert all(why.isprintable() for why in refused.values())
    # In another's name: by the body, by the uid, by the subject.
    for hostile in (report(good, node=ALICE, uid=f"uid-{ALICE}"), report(good, uid="other")):
        body = msgspec.json.encode(hostile)
        answer = await ask(mallory, subjects.node_command(CLUSTER, MALLORY, "report-pods"), body, 5)
        assert answer is not None
        assert b'"forbidden"' in answer.data
    with pytest.raises(BadRequest, match="at most"):
        await as_mallory.send(report(*[good] * (FACTS_A_REQUEST + 1)))
    body = msgspec.json.encode(report(good, node=ALICE, uid=f"uid-{ALICE}"))
    assert await ask(mallory, subjects.node_command(CLUSTER, ALICE, "report-pods"), body) is None
    # The stream itself is the controllers': nodes neither write nor read it.
    stream = subjects.pods_stream(CLUSTER)
    for subject, data in (
        (subjects.pods(CLUSTER, MALLORY, mine), b"{}"),
        (subjects.query(CLUSTER, ShowPods.name), msgspec.json.encode(ShowPods(address=mine))),
        (f"{layout.API_PREFIX}.DIRECT.GET.{stream}", b'{"seq":1}'),
        (f"{layout.API_PREFIX}.STREAM.INFO.{stream}", b""),
        (f"{layout.API_PREFIX}.STREAM.PURGE.{stream}", b""),
    ):
        assert await ask(mallory, subject, data) is None, subject
    with pytest.raises(IsthmusError):
        await operator.send(report(good), timeout_s=0.6)  # an operator does not speak for a node
    view = await operator.ask(ShowPods(address=mine), PodsView)
    assert len(view.facts) == 2
    # A removed node may not tell any more.
    await operator.send(RemoveNode(node=MALLORY))
    with pytest.raises(Refused, match="no member"):
        await as_mallory.send(report(good))


async def test_a_node_that_tells_too_much_is_slowed_and_named(place: Place) -> None:
    _, as_mallory = await as_node(place, MALLORY)
    his = (await as_mallory.send(joining(MALLORY, 1))).result
    foreign = tuple(fact("10.0.0.1", int(his["epoch"])) for _ in range(FACTS_A_REQUEST))
    told = ReportPods(node=MALLORY, uid=f"uid-{MALLORY}", facts=foreign)

    async def flood() -> None:
        for _ in range(2 * 2000 // FACTS_A_REQUEST):
            await as_mallory.send(told, timeout_s=0.3)

    with pytest.raises(Overloaded):
        await flood()
    assert any(each.code == "node_over_budget" for each in place.controller.budgets.conditions())
