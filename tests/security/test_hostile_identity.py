"""What the holder of one node's credentials may say in whose name: tried on a real bus with a real controller.

Each attempt was taken by release 0.2.0. What is refused has to leave a trace that an operator sees.
"""

from __future__ import annotations

import asyncio
import tracemalloc
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from nats.aio.client import Client
from nats.aio.msg import Msg

from events import subjects
from events.bus.access.nkeys import from_seed
from events.bus.client import ControllerClient
from events.bus.enrolment import redeem
from events.cli.traced_client import TracedClient
from events.codec import Recorded
from events.errors import BadRequest, Refused
from events.protocol.commands import ACTOR, COMMAND_ID, ChangeUnderlay, JoinNode, RemoveNode
from events.protocol.queries import ClusterView, ShowCluster
from events.status import AgentStatus
from events.types import NodeLeft
from nodeagent.cli import agent
from nodeagent.local_files import LocalStatus, write_status
from tests.security.conftest import CLUSTER, Place
from tests.waiting import until

pytestmark = pytest.mark.bus

MALLORY, ALICE = "old-1", "old-2"
ESC, BIDI = "\x1b[2J", "\N{RIGHT-TO-LEFT OVERRIDE}"


def joining(node: str, number: int, uid: str = "") -> JoinNode:
    return JoinNode(
        node=node,
        uid=uid or f"uid-{node}",
        kind="external",
        underlay=f"192.0.{2 + number // 200}.{1 + number % 200}",
    )


def report(node: str, uid: str, **fields: Any) -> dict[str, Any]:
    said = AgentStatus(node=node, uid=uid, applied=0, sent_at=datetime.now(UTC))
    return {**msgspec.to_builtins(said), **fields}


async def history(client: ControllerClient, aggregate: str, entity: str) -> list[Recorded]:
    reading = TracedClient(client._nats, CLUSTER, actor=client.actor)
    return await reading.history(aggregate, entity)


async def as_node(place: Place, name: str) -> tuple[Client, ControllerClient]:
    client = await place.open(place.files.nodes[name])
    return client, ControllerClient(client, CLUSTER, actor=f"node/{name}")


async def say(client: Client, node: str, body: dict[str, Any] | bytes) -> None:
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    await client.publish(subjects.status(CLUSTER, node), data)
    await client.flush()


async def conditions(place: Place) -> dict[str, str]:
    view = await (await place.operator()).ask(ShowCluster(), ClusterView)
    return {condition.code: condition.message for condition in view.conditions}


async def until_condition(place: Place, code: str, text: str) -> None:
    """Until an operator is told, in words that name what is asked for."""
    found: dict[str, str] = {}
    for _ in range(300):
        found = await conditions(place)
        if text in found.get(code, ""):
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{code} does not say {text!r}: {found}")


async def test_a_report_with_anothers_uid_counts_for_nobody_and_is_seen(place: Place) -> None:
    alice, as_alice = await as_node(place, ALICE)
    mallory, as_mallory = await as_node(place, MALLORY)
    await as_alice.send(joining(ALICE, 2))
    reply = await as_mallory.send(joining(MALLORY, 1))
    liveness = place.controller.liveness
    await say(mallory, MALLORY, report(MALLORY, f"uid-{ALICE}", applied=reply.sequence, conditions=["forged"]))
    await until_condition(place, "identity_mismatch", f"{MALLORY} (it reports with the uid of {ALICE}")
    assert f"uid-{ALICE}" not in liveness.applied
    assert f"uid-{ALICE}" not in liveness.statuses
    await say(alice, ALICE, report(ALICE, f"uid-{ALICE}", applied=reply.sequence))  # the counter-proof
    await until(lambda: liveness.applied.get(f"uid-{ALICE}") == reply.sequence)


async def test_a_stranger_under_a_members_name_is_seen_and_does_not_count(place: Place) -> None:
    mallory, as_mallory = await as_node(place, MALLORY)
    await as_mallory.send(joining(MALLORY, 1))
    await say(mallory, MALLORY, report(MALLORY, "a-clone"))
    await until_condition(place, "identity_mismatch", "another installation (uid a-clone)")
    assert "a-clone" not in place.controller.liveness.last_seen


async def test_a_drain_waits_for_the_member_and_not_for_who_speaks_in_its_name(place: Place) -> None:
    """The range of a removed node is not freed because somebody else said that the member has applied it."""
    mallory, as_mallory = await as_node(place, MALLORY)
    _, as_alice = await as_node(place, ALICE)
    await as_alice.send(joining(ALICE, 2))
    await as_mallory.send(joining(MALLORY, 1))
    operator = await place.operator()
    gone = await operator.send(joining("gone", 3))
    removed = await operator.send(RemoveNode(node="gone"))
    await say(mallory, MALLORY, report(MALLORY, f"uid-{MALLORY}", applied=removed.sequence))
    await say(mallory, MALLORY, report(MALLORY, f"uid-{ALICE}", applied=removed.sequence))
    await until_condition(place, "identity_mismatch", ALICE)
    await until_condition(place, "drain_waiting", ALICE)
    assert gone.result["index"] in place.controller.replica.state.draining


async def test_a_sequence_that_the_log_does_not_have_holds_nothing_up(place: Place) -> None:
    mallory, as_mallory = await as_node(place, MALLORY)
    reply = await as_mallory.send(joining(MALLORY, 1))
    liveness, uid = place.controller.liveness, f"uid-{MALLORY}"
    await say(mallory, MALLORY, report(MALLORY, uid, applied=10**12))
    await until(lambda: uid in liveness.statuses)  # it lives …
    assert liveness.applied.get(uid, 0) == 0  # … and has confirmed nothing
    await say(mallory, MALLORY, report(MALLORY, uid, applied=reply.sequence))
    await until(lambda: liveness.applied.get(uid) == reply.sequence)


async def test_a_report_that_overtakes_the_fold_counts_when_the_log_has_come(place: Place) -> None:
    mallory, as_mallory = await as_node(place, MALLORY)
    reply = await as_mallory.send(joining(MALLORY, 1))
    liveness, uid = place.controller.liveness, f"uid-{MALLORY}"
    await say(mallory, MALLORY, report(MALLORY, uid, applied=reply.sequence + 2))
    await until(lambda: uid in liveness.statuses)
    assert liveness.applied.get(uid, 0) == 0
    await (await place.operator()).send(joining("n-3", 3))
    await until(lambda: liveness.applied.get(uid) == reply.sequence + 2)


ODD: list[dict[str, Any] | bytes] = [
    b'{"node":"old-1","uid":"uid-old-1","sent_at":"2026-01-01T00:00:00Z","applied":1%b}' % (b"0" * 400),
    b'{"node":"old-1","uid":"uid-old-1","sent_at":"2026-01-01T00:00:00Z","applied":1,"peers":1%b}'
    % (b"0" * 400),
    report(MALLORY, f"uid-{MALLORY}", applied=2**64),
    report(MALLORY, f"uid-{MALLORY}", applied=-1),
    report(MALLORY, f"uid-{MALLORY}", interval_s=-1.0),
    report(MALLORY, f"uid-{MALLORY}", interval_s=0),
    report(MALLORY, f"uid-{MALLORY}", interval_s=1e300),
    report(MALLORY, f"uid-{MALLORY}", sent_at="9999-12-31T23:59:59.999999-23:59"),
    report(MALLORY, f"uid-{MALLORY}", sent_at="2026-01-01T00:00:00"),
    report(MALLORY, "u" * 10_000),
    report(MALLORY, f"uid{ESC}"),
    report(MALLORY, ""),
    b'{"interval_s":NaN}',
    b"[" * 60_000,
    b"\xff\xfe",
]


async def test_numbers_without_bounds_are_refused_at_the_door_and_the_next_report_counts(place: Place) -> None:
    mallory, as_mallory = await as_node(place, MALLORY)
    reply = await as_mallory.send(joining(MALLORY, 1))
    for number, body in enumerate(ODD):
        before = place.controller.reports.refused
        await say(mallory, MALLORY, body)
        await until(lambda before=before: place.controller.reports.refused > before), number
    await until_condition(place, "report_refused", MALLORY)
    assert f"uid-{MALLORY}" not in place.controller.liveness.statuses
    await say(mallory, MALLORY, report(MALLORY, f"uid-{MALLORY}", applied=reply.sequence))
    await until(lambda: place.controller.liveness.applied.get(f"uid-{MALLORY}") == reply.sequence)


async def test_nothing_unprintable_of_a_report_is_kept(place: Place) -> None:
    mallory, as_mallory = await as_node(place, MALLORY)
    await as_mallory.send(joining(MALLORY, 1))
    odd = f"fine{ESC}{BIDI}\nnext"
    said = report(MALLORY, f"uid-{MALLORY}", conditions=[odd] * 500, drift=[odd], agent_version=odd)
    await say(mallory, MALLORY, {**said, "kernel_digest": odd, "gateway_hindrance": odd * 200})
    await until(lambda: f"uid-{MALLORY}" in place.controller.liveness.statuses)
    kept = place.controller.liveness.statuses[f"uid-{MALLORY}"]
    texts = [*kept.conditions, *kept.drift, kept.agent_version, kept.kernel_digest, kept.gateway_hindrance]
    assert all(text.isprintable() and len(text) <= 400 for text in texts)
    assert (len(kept.conditions), kept.drift[0][-4:]) == (20, "next")


async def test_invented_uids_cost_no_memory(place: Place) -> None:
    """2,500 of them, each with 40 KB of conditions, took 150 MB in release 0.2.0."""
    mallory, as_mallory = await as_node(place, MALLORY)
    await as_mallory.send(joining(MALLORY, 1))
    long = ["x" * 4000] * 10
    await say(mallory, MALLORY, report(MALLORY, "warm", conditions=long))
    await until_condition(place, "identity_mismatch", "warm")
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(2500):
            await say(mallory, MALLORY, report(MALLORY, f"invented-{number}", conditions=long))
        await until_condition(place, "identity_mismatch", "invented-2499")
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(place.controller.liveness.last_seen) == 1
    assert after - before < 8 * 1024 * 1024


async def test_one_node_cannot_burn_the_pool_by_joining_anew(place: Place) -> None:
    """240 rejoins with new uids; an honest reinstallation is served before, and another node afterwards."""
    mallory, as_mallory = await as_node(place, MALLORY)
    await as_mallory.send(joining(MALLORY, 1))
    await as_mallory.send(joining(MALLORY, 1, uid="reinstalled"))
    free = place.controller.replica.state.pool.free
    subject = subjects.node_command(CLUSTER, MALLORY, "join")
    bodies = [msgspec.json.encode(joining(MALLORY, 1, uid=f"new-{number}")) for number in range(240)]
    answers = await asyncio.gather(*(mallory.request(subject, body, timeout=60) for body in bodies))
    codes = [msgspec.json.decode(answer.data).get("code", "") for answer in answers]
    assert codes.count("overloaded") >= 230
    assert free - place.controller.replica.state.pool.free <= 10
    await until_condition(place, "node_over_budget", MALLORY)
    _, as_alice = await as_node(place, ALICE)
    await as_alice.send(joining(ALICE, 2))


async def test_one_node_cannot_fill_the_log(place: Place) -> None:
    mallory, as_mallory = await as_node(place, MALLORY)
    await as_mallory.send(joining(MALLORY, 1))
    before = place.controller.replica.head.sequence
    subject = subjects.node_command(CLUSTER, MALLORY, "change-underlay")
    answered = asyncio.Semaphore(0)
    inbox = mallory.new_inbox()

    async def count(_message: Msg) -> None:
        answered.release()

    await mallory.subscribe(inbox, cb=count)
    for number in range(8000):
        move = ChangeUnderlay(node=MALLORY, uid=f"uid-{MALLORY}", underlay=f"192.0.2.{1 + number % 2}")
        await mallory.publish(subject, msgspec.json.encode(move), reply=inbox)
    await mallory.flush()
    async with asyncio.timeout(60):
        for _ in range(8000):
            await answered.acquire()
    assert place.controller.replica.head.sequence - before <= 40
    await until_condition(place, "node_over_budget", MALLORY)


async def test_asking_again_and_again_for_the_same_costs_a_node_nothing(place: Place) -> None:
    """A node that reboots in a loop asks for what it has."""
    _, as_mallory = await as_node(place, MALLORY)
    first = await as_mallory.send(joining(MALLORY, 1))
    for _ in range(40):
        again = await as_mallory.send(joining(MALLORY, 1))
        assert again.result["cidr"] == first.result["cidr"]


async def test_nobody_uses_up_anothers_command_id(place: Place, tmp_path: Path) -> None:
    """The id of a token's use, and of another node's next command, are taken first by Mallory: to no effect."""
    token = await place.token("new-1")
    mallory, _ = await as_node(place, MALLORY)
    subject = subjects.node_command(CLUSTER, MALLORY, "join")
    public = from_seed(token.seed).public
    for command_id in (f"join-token/{public}", "alices-next"):
        body = msgspec.json.encode(joining(MALLORY, 1))
        answer = await mallory.request(subject, body, headers={COMMAND_ID: command_id}, timeout=30)
        assert not msgspec.json.decode(answer.data).get("code")
    _, as_alice = await as_node(place, ALICE)
    reply = await as_alice.send(joining(ALICE, 2), command_id="alices-next")
    assert (reply.result["node"], reply.duplicate) == (ALICE, False)
    got, _ = await redeem(token.text(), tmp_path / "new")
    assert got.node == "new-1"


async def test_an_operator_cannot_take_an_id_that_is_a_tokens_or_a_nodes(place: Place) -> None:
    operator = await place.operator()
    for command_id in ("join-token/KEY", f"node/{ALICE}/1", "tick-1", "park-1"):
        with pytest.raises(BadRequest):
            await operator.send(joining("n-9", 9), command_id=command_id)


async def test_an_operator_cannot_speak_in_a_nodes_name_unrecorded(place: Place) -> None:
    client = await place.open(place.files.operator)
    pretending = ControllerClient(client, CLUSTER, actor=f"node/{ALICE}")
    with pytest.raises(Refused, match="do not reach"):  # the node's own subject is not the operator's
        await pretending.send(joining(ALICE, 2), timeout_s=2, try_timeout_s=1)
    body = msgspec.json.encode(joining(ALICE, 2))
    subject = subjects.command(CLUSTER, "join")
    await client.request(subject, body, headers={ACTOR: f"node/{ALICE}"}, timeout=30)
    actors = {recorded.envelope.actor for recorded in await history(pretending, "node", ALICE)}
    assert actors == {f"operator as node/{ALICE}"}


async def test_an_actor_is_stored_printable(place: Place) -> None:
    client = await place.open(place.files.nodes[MALLORY])
    body = msgspec.json.encode(joining(MALLORY, 1))
    headers = {ACTOR: f"root{BIDI}\x1b]0;x\x07", "ce-correlationid": f"c{BIDI}"}
    await client.request(subjects.node_command(CLUSTER, MALLORY, "join"), body, headers=headers, timeout=30)
    reader = await place.operator()
    [joined] = await history(reader, "node", MALLORY)
    assert joined.envelope.actor.isprintable()
    assert joined.envelope.actor.endswith(f"via node/{MALLORY}")
    assert joined.envelope.correlation_id.isprintable()


async def test_a_flood_of_reports_is_named(place: Place) -> None:
    mallory, as_mallory = await as_node(place, MALLORY)
    await as_mallory.send(joining(MALLORY, 1))

    over = False

    async def flood() -> None:
        number = 0
        while not over:  # a cancellation can be lost in the client's flush: it ends by a word
            number += 1
            await say(mallory, MALLORY, report(MALLORY, f"uid-{MALLORY}", peers=number))

    flooding = asyncio.create_task(flood())
    try:
        await until_condition(place, "node_over_budget", f"{MALLORY} (reports)")
    finally:
        over = True
        await flooding


async def test_a_whole_site_that_joins_at_once_is_served(place: Place) -> None:
    """Every node asks at the same moment, from a subject of its own; the site's server speaks for them."""
    control = await place.open(place.files.controllers[0])
    asked = [
        control.request(
            subjects.node_command(CLUSTER, f"s-{number}", "join"),
            msgspec.json.encode(joining(f"s-{number}", number)),
            timeout=60,
        )
        for number in range(250)
    ]
    answers = await asyncio.gather(*asked)
    assert [msgspec.json.decode(answer.data).get("code", "") for answer in answers] == [""] * 250
    assert "node_over_budget" not in await conditions(place)


async def test_too_much_of_one_request_is_refused(place: Place) -> None:
    client, _ = await as_node(place, MALLORY)
    body = msgspec.json.encode({**msgspec.to_builtins(joining(MALLORY, 1)), "site": "s" * 20_000})
    answer = await client.request(subjects.node_command(CLUSTER, MALLORY, "join"), body, timeout=30)
    assert msgspec.json.decode(answer.data)["code"] == "payload_too_large"


@pytest.mark.parametrize("who", ["the node", "an operator"])
async def test_a_node_is_taken_out_with_its_own_credentials_or_an_operators(
    place: Place, tmp_path: Path, who: str
) -> None:
    """The counter-proof: `isthmus agent leave` on the machine itself, recorded as what it was."""
    _, as_alice = await as_node(place, ALICE)
    await as_alice.send(joining(ALICE, 2))
    status = LocalStatus(node=ALICE, uid=f"uid-{ALICE}", cluster=CLUSTER, pid=1, started_at=0.0, written_at=0.0)
    write_status(tmp_path, status)
    files = place.files.nodes[ALICE] if who == "the node" else place.files.operator
    options = place.options(files)
    arguments = ["leave", "--yes", "--state-dir", str(tmp_path), "--cluster", CLUSTER, "--actor", "alice@host"]
    arguments += ["--bus", options.servers[0], "--creds", str(files), "--ca", options.ca]
    ended = await asyncio.to_thread(CliRunner().invoke, agent, arguments, catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    reader = await place.operator()
    events = await history(reader, "node", ALICE)
    said = f"alice@host via node/{ALICE}" if who == "the node" else "alice@host"
    assert [one.envelope.actor for one in events if isinstance(one.event, NodeLeft)] == [said]
