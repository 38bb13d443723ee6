"""Credentials from the first to the last day: joining by token, renewing, expiring, being shut out.

A real server, a real controller and a real issuer; nobody is restarted for anything that happens here.
"""

from __future__ import annotations

import asyncio
import signal
import ssl
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from deploy.credentials.authority import DAY_S
from deploy.credentials.certificates import issue_server
from deploy.credentials.prepare import prepare
from deploy.credentials.servers import jwt_block, limits_block, plain_block, tls_block
from deploy.credentials.tokens import make_token
from events import subjects
from events.bus.access import creds
from events.bus.access.nkeys import generate
from events.bus.client import ControllerClient
from events.bus.connection import connect
from events.bus.enrolment import EnrolReply, keep_fresh, read_token, redeem, renew, request
from events.bus.server.config import ServerOptions
from events.bus.server.process import EmbeddedServer
from events.errors import Refused
from events.protocol.commands import SCHEMA, JoinNode
from tests.security.conftest import CLUSTER, Place
from tests.waiting import until

pytestmark = pytest.mark.bus


def joining(node: str, number: int = 1) -> JoinNode:
    return JoinNode(node=node, uid=f"uid-{node}", kind="external", underlay=f"192.0.2.{number}")


async def test_a_token_makes_a_bare_machine_a_member(place: Place, tmp_path: Path) -> None:
    token = await place.token("new-1")
    got, options = await redeem(token.text(), tmp_path / "node")
    assert (got.node, got.cluster) == ("new-1", CLUSTER)
    assert sorted(file.name for file in (tmp_path / "node").iterdir()) == ["agent.creds", "ca.pem"]
    assert (tmp_path / "node" / "agent.creds").stat().st_mode & 0o777 == 0o600
    client = await connect(options, name="agent")
    place.stack.push_async_callback(client.close)
    reply = await ControllerClient(client, CLUSTER, actor="node/new-1").send(joining("new-1"))
    assert reply.result["cidr"] == "10.200.0.0/24"
    used = [body for name, body in await place.log() if name == "token.used.v1"]
    assert [(body["node"], body["public_key"]) for body in used] == [
        ("new-1", creds.load(options.credentials).key.public)
    ]
    assert token.seed not in str(await place.log())


async def test_a_token_is_good_once(place: Place, tmp_path: Path) -> None:
    token = await place.token("new-1")
    await redeem(token.text(), tmp_path / "first")
    with pytest.raises(Refused, match="was used before") as refused:
        await redeem(token.text(), tmp_path / "second")
    assert refused.value.code == "token_used"
    assert creds.load(tmp_path / "first" / "agent.creds").key.public[:12] in refused.value.message
    assert "`isthmus token show u" in refused.value.message
    assert not (tmp_path / "second" / "agent.creds").exists()


async def test_of_two_machines_with_one_token_one_gets_in(place: Place, tmp_path: Path) -> None:
    token = await place.token("new-1")
    results = await asyncio.gather(
        *(redeem(token.text(), tmp_path / name) for name in ("a", "b", "c")), return_exceptions=True
    )
    assert sum(isinstance(result, tuple) for result in results) == 1
    assert {r.code for r in results if isinstance(r, Refused)} == {"token_used"}
    assert len([name for name, _ in await place.log() if name == "token.used.v1"]) == 1


async def test_asking_again_after_a_lost_answer_is_answered_again(place: Place, tmp_path: Path) -> None:
    token = await place.token("new-1")
    path = tmp_path / "join.creds"
    creds.write_secret(path, creds.render(token.jwt, token.seed))
    client = await place.open(path)
    asked = request(CLUSTER, "new-1", generate("user").public, creds.load(path))
    for _ in range(2):
        message = await client.request(subjects.enrol(CLUSTER, "new-1"), msgspec.json.encode(asked), timeout=30)
        reply = msgspec.json.decode(message.data, type=EnrolReply)
        assert reply.code == ""
        assert creds.decode_claims(reply.jwt)["sub"] == asked.public_key


async def test_a_token_opens_nothing_but_the_issuer(place: Place, tmp_path: Path) -> None:
    token = await place.token("new-1")
    path = tmp_path / "join.creds"
    creds.write_secret(path, creds.render(token.jwt, token.seed))
    client = await place.open(path)
    live = await client.subscribe(subjects.live_wildcard(CLUSTER))
    for subject in (
        subjects.node_command(CLUSTER, "new-1", "join"),
        subjects.renew(CLUSTER, "new-1"),
        subjects.status(CLUSTER, "new-1"),
        f"ISTHMUS.API.DIRECT.GET.{subjects.stream(CLUSTER)}",
        subjects.enrol(CLUSTER, "old-1"),
    ):
        with pytest.raises((TimeoutError, Exception)) as refused:
            await client.request(subject, b"{}", timeout=0.3)
        assert "timeout" in str(refused.value) or "no responders" in str(refused.value), subject
    assert live.pending_msgs == 0


async def test_what_is_presented_must_fit_what_is_asked(place: Place, tmp_path: Path) -> None:
    token = await place.token("new-1")
    path = tmp_path / "join.creds"
    creds.write_secret(path, creds.render(token.jwt, token.seed))
    client, mine = await place.open(path), creds.load(path)
    good = request(CLUSTER, "new-1", generate("user").public, mine)
    replace = msgspec.structs.replace
    wrong = {
        "another node": replace(good, node="old-1"),
        "another cluster": replace(good, cluster="other"),
        "another key than was signed": replace(good, public_key=generate("user").public),
        "an account's key": request(CLUSTER, "new-1", generate("account").public, mine),
        "a node's credentials instead of a token": request(
            CLUSTER, "new-1", good.public_key, creds.load(place.files.nodes["old-1"])
        ),
        "a changed token": replace(good, jwt=good.jwt[:-4] + "AAAA"),
        "no signature": replace(good, signature=""),
    }
    bodies = {what: msgspec.json.encode(asked) for what, asked in wrong.items()}
    bodies |= {"nothing": b"", "no JSON": b"{", "deep": b"[" * 5000, "long": b"x" * 20_000}
    for what, body in bodies.items():
        message = await client.request(subjects.enrol(CLUSTER, "new-1"), body, timeout=30)
        reply = msgspec.json.decode(message.data, type=EnrolReply)
        assert reply.code, what
        assert not reply.jwt
        assert token.seed not in reply.message
    assert not [name for name, _ in await place.log() if name == "token.used.v1"]


async def test_an_expired_or_foreign_token_is_refused_with_a_reason(place: Place, tmp_path: Path) -> None:
    token = await place.token("new-1", minutes=1)
    later = datetime.fromtimestamp(time.time() + 61, UTC)
    with pytest.raises(Refused, match="expired at"):
        read_token(token.text(), now=later)
    with pytest.raises(Refused, match="this machine is to be 'new-2'"):
        await redeem(token.text(), tmp_path / "n", node="new-2")
    for text in ("", "hello", token.text()[:-20], token.text().replace("isthmus1.", "isthmus2.")):
        with pytest.raises(Refused) as refused:
            read_token(text)
        assert refused.value.code == "token_invalid"
        assert token.seed not in refused.value.message


async def test_a_node_renews_itself_and_the_old_session_goes_on(place: Place) -> None:
    path = place.files.nodes["old-1"]
    client = await place.open(path)
    before = creds.load(path)
    fresh = await renew(client, path)
    assert fresh.key.public != before.key.public
    assert fresh.expires is not None
    assert client.stats["reconnects"] == 0
    again = await place.open(path)
    reply = await ControllerClient(again, CLUSTER, actor="node/old-1").send(joining("old-1"))
    assert reply.result["cidr"]
    assert (await renew(again, path)).key.public != fresh.key.public


async def test_an_expired_session_comes_back_with_the_renewed_file(place: Place) -> None:
    """Rotation without downtime: the server ends the old session, the client is back by itself."""
    principal = place.authority.find("node", CLUSTER, "old-1")
    path = place.authority.issue(principal, days=3 / DAY_S)
    client = await place.open(path)
    live = await client.subscribe(subjects.live_wildcard(CLUSTER))
    keeper = asyncio.create_task(keep_fresh(client, path))
    try:
        await until(lambda: client.stats["reconnects"] == 1 and client.is_connected)
        assert creds.load(path).expires > datetime.now(UTC)  # type: ignore[operator]
        other = ControllerClient(await place.open(place.files.nodes["old-2"]), CLUSTER, actor="node/old-2")
        await other.send(joining("old-2", 2))
        assert (await live.next_msg(timeout=30)).subject.startswith(f"isthmus.{CLUSTER}.live.")
    finally:
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)


async def test_expired_credentials_are_refused_with_their_date(place: Place) -> None:
    principal = place.authority.find("node", CLUSTER, "old-1")
    path = place.authority.issue(principal, days=1.5 / DAY_S)
    expires = creds.load(path).expires
    assert expires is not None
    await until(lambda: datetime.now(UTC) > expires + timedelta(seconds=1))
    with pytest.raises(Refused, match="it expired at"):
        await connect(place.options(path), name="late")


async def test_a_revoked_node_is_out_at_once_and_nobody_else_notices(place: Place) -> None:
    mallory, alice = await place.open(place.files.nodes["old-1"]), await place.open(place.files.nodes["old-2"])
    copied = place.files.nodes["old-1"].read_text()
    revoked = place.authority.revoke("node", CLUSTER, "old-1")
    await place.push(revoked.account)
    await until(lambda: not mallory.is_connected)
    stolen = place.files.nodes["old-1"].with_name("stolen.creds")
    creds.write_secret(stolen, copied)
    with pytest.raises(Refused, match="revoked"):
        await connect(place.options(stolen), name="stolen")
    reply = await ControllerClient(alice, CLUSTER, actor="node/old-2").send(joining("old-2"))
    assert reply.result["cidr"]
    assert alice.stats["reconnects"] == 0
    with pytest.raises(Refused) as refused:
        place.authority.add("node", CLUSTER, "old-1")
    assert refused.value.code == "credentials_revoked"
    back = place.authority.add("node", CLUSTER, "old-1", again=True)
    await place.push(back.account)
    await place.open(place.authority.issue(back))
    with pytest.raises(Refused):
        await connect(place.options(stolen), name="stolen")


async def test_retired_credentials_end_while_their_successor_goes_on(place: Place) -> None:
    path = place.files.nodes["old-1"]
    old = path.with_name("old.creds")
    creds.write_secret(old, path.read_text())
    holder = await place.open(old)
    principal = place.authority.find("node", CLUSTER, "old-1")
    place.authority.now = lambda: int(time.time()) + 2  # revocation is by the second of issue
    successor = await place.open(place.authority.issue(principal))
    assert place.authority.retire(principal) == [creds.load(old).key.public]
    await place.push(principal.account)
    await until(lambda: not holder.is_connected)
    with pytest.raises(Refused):
        await connect(place.options(old), name="old")
    await successor.flush()
    assert successor.stats["reconnects"] == 0


async def test_a_controllers_credentials_can_be_revoked_while_another_serves(place: Place) -> None:
    second = await place.open(place.files.controllers[1])
    place.authority.revoke("controller", "", "controller-2")
    await place.push(place.authority.book.keys["control"])
    await until(lambda: not second.is_connected)
    operator = await place.operator()
    assert (await operator.send(joining("old-1"))).result["cidr"]


async def test_a_signing_key_is_replaced_in_two_steps(place: Place) -> None:
    old = await place.open(place.files.nodes["old-1"])
    accounts = [p.account for p in place.authority.store.principals(role="node")]
    place.authority.rotate_key("nodes")
    await place.push(*accounts)
    principal = place.authority.find("node", CLUSTER, "old-2")
    new = await place.open(place.authority.issue(principal))
    await old.flush()
    assert old.is_connected
    place.authority.rotate_key("nodes", finish=True)
    await place.push(*accounts)
    await until(lambda: not old.is_connected)
    await new.flush()
    assert new.stats["reconnects"] == 0


async def test_the_servers_certificate_is_replaced_without_dropping_anybody(place: Place) -> None:
    client = await place.open(place.files.nodes["old-1"])
    folder = place.authority.store.path / "tls"
    before = await _serial(place)
    issue_server(folder, "server", ["127.0.0.1"])
    place.server.signal(signal.SIGHUP)

    async def changed() -> bool:
        return await _serial(place) != before

    await until(changed)
    await client.flush()
    assert client.stats["reconnects"] == 0
    await place.open(place.files.nodes["old-2"])


async def _serial(place: Place) -> bytes:
    context = ssl.create_default_context(cafile=place.files.ca)
    reader, writer = await asyncio.open_connection("127.0.0.1", place.server.port)
    await reader.readline()
    await writer.start_tls(context, server_hostname="127.0.0.1")
    found = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.transport.abort()
    return bytes(found)


async def test_an_agent_of_another_cluster_or_version_is_told_why(place: Place) -> None:
    agent = await place.open(place.files.nodes["old-1"])
    subject = subjects.node_command(CLUSTER, "old-1", "join")
    message = await agent.request(
        subject, msgspec.json.encode(joining("old-1")), headers={SCHEMA: "0"}, timeout=3
    )
    reply = msgspec.json.decode(message.data)
    assert reply["code"] == "unsupported_schema"
    assert "'0'" in reply["message"]
    elsewhere = ControllerClient(agent, "other", actor="node/old-1")
    with pytest.raises(Refused, match="for another cluster than 'other'"):
        await elsewhere.send(joining("old-1"), try_timeout_s=0.2)


async def test_plain_configuration_revokes_by_a_reload(tmp_path: Path) -> None:
    files = prepare(tmp_path / "a", cluster=CLUSTER, nodes=["n1", "n2"], hosts=["127.0.0.1"], form="plain")
    rules = tmp_path / "rules.conf"
    rules.write_text(files.server_extra)
    options = ServerOptions(store_dir=tmp_path / "bus", extra=f'include "{rules.name}"')
    (tmp_path / "bus").mkdir()
    (tmp_path / "bus" / rules.name).symlink_to(rules)
    async with EmbeddedServer(options) as server:
        bad = await connect(files.options(files.nodes["n1"], server.url), name="n1")
        good = await connect(files.options(files.nodes["n2"], server.url), name="n2")
        try:
            files.authority.revoke("node", CLUSTER, "n1")
            head = files.server_extra[: files.server_extra.index("accounts {")]
            rules.write_text(head + plain_block(files.authority.store))
            server.signal(signal.SIGHUP)
            await until(lambda: not bad.is_connected)
            await good.flush()
            assert good.stats["reconnects"] == 0
        finally:
            await bad.close()
            await good.close()


def test_rendered_server_text_holds_no_secret(tmp_path: Path) -> None:
    files = prepare(tmp_path / "a", cluster=CLUSTER, nodes=["n1"], hosts=["127.0.0.1"])
    store = files.authority.store
    text = limits_block() + plain_block(store) + jwt_block(store, accounts_dir=tmp_path)
    public = [p.read_text() for p in store.path.rglob("*") if p.is_file() and p.suffix in {".json", ".jwt"}]
    seeds = [p.read_text().strip() for p in (store.path / "keys").iterdir()]
    seeds += [creds.load(p).seed for p in (store.path / "creds").rglob("*.creds")]
    assert len(seeds) >= 12
    assert not [seed for seed in seeds for shown in (text, *public) if seed in shown]
    assert "BEGIN PRIVATE" not in text
    assert tls_block
    modes = {
        p.stat().st_mode & 0o077
        for p in (*(store.path / "keys").iterdir(), *(store.path / "creds").rglob("*.creds"))
    }
    assert modes == {0}


def test_secrets_do_not_show_in_representations(tmp_path: Path) -> None:
    pair = generate("user")
    files = prepare(tmp_path / "a", cluster=CLUSTER, nodes=["n1"], hosts=["127.0.0.1"])
    found = creds.load(files.nodes["n1"])
    token = make_token(files.authority, CLUSTER, "n1", servers=["tls://127.0.0.1:4222"])
    for shown in (repr(pair), repr(found), str(found), repr(token), f"{pair} {found} {token}"):
        assert pair.seed not in shown
        assert found.seed not in shown
        assert token.seed not in shown
