"""Everything that a node's credentials should not allow, tried against a real server with the shipped rules.

Each attempt is refused, and each time the cluster goes on: the log has gained nothing and another
node is served.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import NoRespondersError
from nats.errors import TimeoutError as NatsTimeoutError

from deploy.credentials import layout
from events import subjects
from events.bus.connection import connect
from events.errors import Refused
from tests.security.conftest import CLUSTER, NODES, Site, stored
from tests.waiting import until

pytestmark = pytest.mark.bus

MALLORY, ALICE = NODES[0], NODES[1]
STREAM = subjects.stream(CLUSTER)
EVENT = subjects.event(CLUSTER, "node", ALICE, "left")


ANSWER_S = 30.0
"""How long an answer may take that has to come; never reached unless it does not come at all."""


async def ask(client: Client, subject: str, body: Any = b"", timeout_s: float = 0.5) -> Msg | None:
    """The answer, or None when the server lets the request reach nobody: for what must not be answered."""
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    try:
        return await client.request(subject, data, timeout=timeout_s)
    except (NoRespondersError, NatsTimeoutError):
        return None


async def answered(client: Client, subject: str, body: Any = b"") -> Msg:
    """The answer, which has to come. How fast is the machine's business: a fsync or a handshake of others may
    stand before it."""
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return await client.request(subject, data, timeout=ANSWER_S)


async def serve(control: Client, cluster: str = CLUSTER) -> list[Msg]:
    """A stand-in for the controller at its place on the bus: answers every command, keeps what it saw."""
    seen: list[Msg] = []

    async def answer(message: Msg) -> None:
        seen.append(message)
        if message.reply:
            await message.respond(b'{"sequence": 1}')

    await control.subscribe(f"isthmus.{cluster}.command.>", cb=answer)
    await control.flush()
    return seen


async def publish_event(control: Client, cluster: str = CLUSTER) -> None:
    await control.jetstream().publish(
        subjects.event(cluster, "node", ALICE, "left"), b'{"node":"idc-2","uid":"u"}'
    )


async def test_an_agent_can_do_what_it_needs(site: Site) -> None:
    """The counter-proof: the same client that is refused below is served here."""
    control, agent = await site.controller(), await site.node(MALLORY)
    await serve(control)
    live = await agent.subscribe(subjects.live_wildcard(CLUSTER))
    await agent.flush()
    await publish_event(control)
    assert (await live.next_msg(timeout=ANSWER_S)).headers["Nats-Sequence"] == "1"
    await answered(agent, subjects.node_command(CLUSTER, MALLORY, "join"))
    ack = await answered(agent, subjects.status(CLUSTER, MALLORY), {"node": MALLORY})
    assert b'"stream":"ISTHMUS_prod_STATUS"' in ack.data
    found = await answered(agent, f"{layout.API_PREFIX}.DIRECT.GET.{STREAM}", {"seq": 1})
    assert found.data == b'{"node":"idc-2","uid":"u"}'


async def test_a_name_with_dots_has_credentials_that_fit(site: Site) -> None:
    control, agent = await site.controller(), await site.node(NODES[2])
    await serve(control)
    await answered(agent, subjects.node_command(CLUSTER, NODES[2], "join"))


async def test_an_event_cannot_be_published(site: Site) -> None:
    control, agent = await site.controller(), await site.node(MALLORY)
    assert await ask(agent, EVENT, b"{}") is None
    assert await ask(agent, subjects.event(CLUSTER, "node", MALLORY, "joined"), b"{}") is None
    assert await stored(control) == 0


async def test_nothing_can_be_forged_through_a_reply_subject(site: Site) -> None:
    """The server sends answers to whatever subject the asker named; here that leads nowhere."""
    control, agent = await site.controller(), await site.node(MALLORY)
    seen = await serve(control)
    await publish_event(control)
    targets = (
        EVENT,
        subjects.node_command(CLUSTER, ALICE, "leave"),
        subjects.status(CLUSTER, ALICE),
        f"$JS.API.STREAM.PURGE.{STREAM}",
    )
    hostile = [
        (f"{layout.API_PREFIX}.DIRECT.GET.{STREAM}", b'{"seq":1}'),
        (f"{layout.API_PREFIX}.STREAM.MSG.GET.{STREAM}", b'{"seq":1}'),
        (subjects.node_command(CLUSTER, MALLORY, "leave"), b"{}"),
        (subjects.status(CLUSTER, MALLORY), b"{}"),
    ]
    for target in targets:
        for subject, body in hostile:
            await agent.publish(subject, body, reply=target)
    await agent.flush()
    await answered(agent, subjects.node_command(CLUSTER, MALLORY, "join"))  # all of it has arrived
    assert await stored(control) == 1
    assert {m.subject for m in seen} == {
        subjects.node_command(CLUSTER, MALLORY, verb) for verb in ("leave", "join")
    }
    statuses = await control.jetstream().stream_info(
        subjects.status_stream(CLUSTER), subjects_filter=subjects.status_wildcard(CLUSTER)
    )
    assert set(statuses.state.subjects or {}) == {subjects.status(CLUSTER, MALLORY)}


async def test_another_cluster_cannot_be_read_or_commanded(site: Site) -> None:
    control, agent = await site.controller(), await site.node(MALLORY)
    seen = await serve(control, "other")
    other = await agent.subscribe(subjects.live_wildcard("other"))
    everything = await agent.subscribe(">")
    await agent.flush()
    await publish_event(control, "other")
    for call in ("DIRECT.GET", "STREAM.MSG.GET", "STREAM.INFO"):
        for prefix in (layout.API_PREFIX, "$JS.API"):
            answer = await ask(agent, f"{prefix}.{call}.{subjects.stream('other')}", {"seq": 1}, 0.3)
            assert answer is None or b"error" in answer.data or answer.headers
            assert answer is None or b"idc-2" not in answer.data
    assert await ask(agent, subjects.node_command("other", MALLORY, "join")) is None
    assert await ask(agent, subjects.status("other", MALLORY)) is None
    assert not seen
    assert other.pending_msgs == 0
    assert everything.pending_msgs == 0


async def test_nobody_acts_for_another_node(site: Site) -> None:
    control, agent = await site.controller(), await site.node(MALLORY)
    seen = await serve(control)
    assert await ask(agent, subjects.node_command(CLUSTER, ALICE, "leave")) is None
    assert await ask(agent, subjects.command(CLUSTER, "remove-node"), {"node": ALICE}) is None
    assert await ask(agent, subjects.status(CLUSTER, ALICE), {"node": ALICE}) is None
    assert await ask(agent, f"isthmus.{CLUSTER}.renew.{ALICE}") is None
    assert not seen
    info = await control.jetstream().stream_info(subjects.status_stream(CLUSTER))
    assert info.state.messages == 0


async def test_other_nodes_requests_and_inboxes_cannot_be_heard(site: Site) -> None:
    control, mallory, alice = await site.controller(), await site.node(MALLORY), await site.node(ALICE)
    await serve(control)
    taps = [
        await mallory.subscribe(subject)
        for subject in (
            "_INBOX.>",
            f"isthmus.{CLUSTER}.command.>",
            subjects.status_wildcard(CLUSTER),
            "_R_.>",
            "$JS.>",
        )
    ]
    await mallory.flush()
    await answered(alice, subjects.node_command(CLUSTER, ALICE, "join"))
    await answered(alice, subjects.status(CLUSTER, ALICE), b"{}")
    await answered(mallory, subjects.node_command(CLUSTER, MALLORY, "join"))
    heard = [(await tap.next_msg(timeout=0.5)).subject for tap in taps if tap.pending_msgs]
    assert [subject for subject in heard if not subject.startswith(mallory._inbox_prefix.decode())] == []


FORBIDDEN_CALLS: list[tuple[str, dict[str, Any]]] = [
    (f"STREAM.DELETE.{STREAM}", {}),
    (f"STREAM.PURGE.{STREAM}", {}),
    (f"STREAM.MSG.DELETE.{STREAM}", {"seq": 1}),
    (f"STREAM.UPDATE.{STREAM}", {"name": STREAM, "max_msgs": 1}),
    (f"STREAM.RESTORE.{STREAM}", {"config": {"name": STREAM}}),
    (f"STREAM.SNAPSHOT.{STREAM}", {"deliver_subject": EVENT}),
    ("STREAM.CREATE.MINE", {"name": "MINE", "subjects": ["mine.>"]}),
    (f"CONSUMER.CREATE.{STREAM}", {"stream_name": STREAM, "config": {"deliver_subject": EVENT}}),
    (f"CONSUMER.CREATE.{STREAM}.mine", {"stream_name": STREAM, "config": {"name": "mine"}}),
    (f"CONSUMER.DURABLE.CREATE.{STREAM}.mine", {"stream_name": STREAM, "config": {"durable_name": "mine"}}),
    (f"CONSUMER.LIST.{STREAM}", {}),
    ("ACCOUNT.PURGE.CONTROL", {}),
]


async def test_streams_and_consumers_are_out_of_reach(site: Site) -> None:
    control, agent = await site.controller(), await site.node(MALLORY)
    await publish_event(control)
    for prefix in ("$JS.API", layout.API_PREFIX):
        answers = await asyncio.gather(
            *(ask(agent, f"{prefix}.{call}", body) for call, body in FORBIDDEN_CALLS)
        )
        for (call, _), answer in zip(FORBIDDEN_CALLS, answers, strict=True):
            assert answer is None or b'"error"' in answer.data, call
    info = await control.jetstream().stream_info(STREAM)
    assert (info.state.messages, info.state.consumer_count) == (1, 0)
    assert info.config.max_msgs == -1


async def test_the_servers_own_subjects_are_out_of_reach(site: Site) -> None:
    await site.controller()
    agent = await site.node(MALLORY)
    for subject in (
        "$SYS.REQ.SERVER.PING",
        "$SYS.REQ.CLAIMS.UPDATE",
        "$SYS.REQ.CLAIMS.LIST",
        "$SYS.REQ.SERVER.PING.CONNZ",
    ):
        assert await ask(agent, subject, b"", 0.2) is None


async def test_connections_are_bounded_and_cost_others_nothing(site: Site) -> None:
    control = await site.controller()
    await serve(control)
    refused = 0
    for _ in range(layout.NODE_CONNECTION_LIMIT + 4):
        try:
            await site.node(MALLORY)
        except Refused:
            refused += 1
    assert refused >= 4
    alice = await site.node(ALICE)
    await answered(alice, subjects.node_command(CLUSTER, ALICE, "join"))


async def test_subscriptions_are_bounded(site: Site) -> None:
    await site.controller()
    agent = await site.node(MALLORY)
    for index in range(layout.NODE_SUBSCRIPTION_LIMIT + 40):
        await agent.subscribe(f"_INBOX.flood.{index}")
    await until(lambda: agent.is_closed)
    assert "maximum subscriptions exceeded" in str(agent.last_error)


async def test_an_oversized_message_is_refused(site: Site) -> None:
    control = await site.controller()
    seen = await serve(control)
    too_much = b"x" * (layout.NODE_PAYLOAD_LIMIT_BYTES + 1)
    for subject in (subjects.node_command(CLUSTER, MALLORY, "join"), subjects.status(CLUSTER, MALLORY)):
        agent = await site.node(MALLORY)
        await agent.publish(subject, too_much)
        await until(lambda agent=agent: not agent.is_connected)  # the server hangs up
    assert not seen
    alice = await site.node(ALICE)
    await answered(alice, subjects.node_command(CLUSTER, ALICE, "join"))
    info = await control.jetstream().stream_info(subjects.status_stream(CLUSTER))
    assert info.state.messages == 0


async def test_a_flood_keeps_nobody_out(site: Site) -> None:
    """5,000 statuses and more, until another node was answered 20 times meanwhile; one of them is kept."""
    control, mallory, alice = await site.controller(), await site.node(MALLORY), await site.node(ALICE)
    await serve(control)
    served = asyncio.Event()

    async def flood() -> None:
        sent = 0
        while sent < 5_000 or not served.is_set():
            await mallory.publish(subjects.status(CLUSTER, MALLORY), b"x" * 256)
            sent += 1
            if sent % 100 == 0:
                await mallory.flush(timeout=int(ANSWER_S))

    flooding = asyncio.create_task(flood())
    for _ in range(20):
        await answered(alice, subjects.node_command(CLUSTER, ALICE, "join"))
        assert not flooding.done()
    served.set()
    await flooding
    info = await control.jetstream().stream_info(subjects.status_stream(CLUSTER))
    assert info.state.messages <= 1
    assert await stored(control) == 0


async def test_auditors_read_and_change_nothing(site: Site) -> None:
    control, auditor = await site.controller(), await site.open(site.files.audit)
    seen = await serve(control)
    await publish_event(control)
    found = await answered(auditor, f"{layout.API_PREFIX}.DIRECT.GET.{STREAM}", {"seq": 1})
    assert found.data == b'{"node":"idc-2","uid":"u"}'
    assert await ask(auditor, EVENT, b"{}") is None
    assert await ask(auditor, subjects.command(CLUSTER, "remove-node"), b"{}") is None
    assert await ask(auditor, subjects.node_command(CLUSTER, ALICE, "leave"), b"{}") is None
    assert await ask(auditor, subjects.status(CLUSTER, ALICE), b"{}") is None
    await auditor.publish(f"{layout.API_PREFIX}.DIRECT.GET.{STREAM}", b'{"seq":1}', reply=EVENT)
    await auditor.flush()
    assert await stored(control) == 1
    assert not seen


async def test_operators_command_but_do_not_write_events(site: Site) -> None:
    control, person = await site.controller(), await site.open(site.files.operator)
    await serve(control)
    await answered(person, subjects.command(CLUSTER, "remove-node"), b"{}")
    assert await ask(person, EVENT, b"{}") is None
    await person.publish(subjects.command(CLUSTER, "remove-node"), b"{}", reply=EVENT)
    answer = await ask(person, f"$JS.API.STREAM.PURGE.{STREAM}")
    assert answer is None or b'"error"' in answer.data
    await person.flush()
    assert await stored(control) == 0


async def test_a_kubernetes_bridge_sends_its_own_commands_and_no_others(site: Site) -> None:
    control, bridge = await site.controller(), await site.open(site.files.bridge)
    person = await site.open(site.files.operator)
    await serve(control)
    binding = subjects.bridge_command(CLUSTER, "bind-nodes")
    await answered(bridge, binding, b"{}")
    for client, subject in (
        (bridge, subjects.bridge_command(CLUSTER, "define-cluster")),
        (bridge, subjects.bridge_command("other", "bind-nodes")),
        (bridge, subjects.command(CLUSTER, "fence-node")),
        (bridge, subjects.node_command(CLUSTER, ALICE, "leave")),
        (bridge, EVENT),
        (person, binding),
    ):
        assert await ask(client, subject, b"{}") is None, subject
    await bridge.publish(binding, b"{}", reply=EVENT)
    await bridge.flush()
    assert await stored(control) == 0


async def test_without_credentials_or_with_anothers_authority_nobody_gets_in(
    site: Site, tmp_path: Path
) -> None:
    from deploy.credentials.prepare import prepare

    with pytest.raises(Refused, match="demands credentials"):
        await connect(
            type(site.files.options(Path()))(servers=(site.server.url,), ca=str(site.files.ca)), name="stranger"
        )
    foreign = prepare(tmp_path / "foreign", cluster=CLUSTER, nodes=[MALLORY], hosts=["127.0.0.1"])
    stranger = site.files.options(foreign.nodes[MALLORY], site.server.url)
    with pytest.raises(Refused, match="revoked, or made for another bus"):
        await connect(stranger, name="stranger")


async def test_a_server_with_anothers_certificate_is_not_trusted(site: Site, tmp_path: Path) -> None:
    from deploy.credentials.prepare import prepare
    from events.errors import Unavailable

    foreign = prepare(tmp_path / "foreign", cluster=CLUSTER, nodes=[], hosts=["127.0.0.1"])
    options = foreign.options(site.files.nodes[MALLORY], site.server.url)
    with pytest.raises(Unavailable, match="certificate"):
        await connect(options, name="victim")
