"""A join token for several machines on a real bus, with a real controller and two issuers on one authority."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from controlplane.cli.main import root
from deploy.credentials.issuers.admission import Admission
from deploy.credentials.issuers.tokens import Issuer
from deploy.credentials.tokens import make_shared_token
from events import subjects
from events.bus.access import creds
from events.bus.access.nkeys import generate
from events.bus.client import ControllerClient
from events.bus.connection import BusOptions, connect
from events.bus.enrolment import PENDING_KEY, EnrolReply, JoinToken, redeem, request
from events.errors import IsthmusError, Refused
from events.protocol.commands import JoinNode
from tests.security.conftest import CLUSTER, Place

pytestmark = pytest.mark.bus


@pytest.fixture
async def wide(place: Place) -> AsyncIterator[Place]:
    """Two issuers with the whole authority, besides the one that has the least of the keys."""
    system = await place.open(place.files.system)
    issuers = []
    for _ in range(2):
        admission = Admission(place.authority.store.path, system)
        issuer = Issuer(await place.open(place.files.issuer), place.authority.store, admission=admission)
        await issuer.start()
        issuers.append(issuer)
    yield place
    for issuer in issuers:
        await issuer.close()


async def shared(place: Place, names: str, uses: int, **more: str) -> JoinToken:
    token, account = make_shared_token(
        place.authority, CLUSTER, names, uses, servers=place.options(Path()).servers, ca=place.files.ca, **more
    )
    await place.push(account)
    return token


async def redeemed(token: JoinToken, folder: Path, node: str = "") -> tuple[JoinToken, BusOptions] | str:
    """What came of it, or the code of the refusal."""
    try:
        return await redeem(token.text(), folder, node=node)
    except IsthmusError as error:
        return error.code


async def test_racing_machines_get_names_of_their_own_and_no_more_than_the_token_allows(
    wide: Place, tmp_path: Path
) -> None:
    wide.authority.add("node", CLUSTER, "idc-2")  # somebody's already, though it never joined
    token = await shared(wide, "idc-{}", 3, kind="external", site="ams")
    results = await asyncio.gather(*(redeemed(token, tmp_path / str(number)) for number in range(7)))
    got = {result[0].node: result for result in results if isinstance(result, tuple)}
    assert sorted(got) == ["idc-1", "idc-3", "idc-4"]
    assert [result for result in results if isinstance(result, str)] == ["token_used"] * 4
    uses = [body for name, body in await wide.log() if name == "token.shared-used.v1"]
    assert sorted((body["node"], body["use"], body["uses"]) for body in uses) == sorted(
        (body["node"], number, 3) for number, body in enumerate(uses, 1)
    )
    # Each is its own node, within what the token says, and nobody else's.
    _, options = got["idc-3"]
    client = await connect(options, name="agent")
    wide.stack.push_async_callback(client.close)
    agent = ControllerClient(client, CLUSTER, actor="node/idc-3")
    with pytest.raises(Refused) as refused:
        await agent.send(JoinNode(node="idc-3", uid="u3", kind="cloud", underlay="192.0.2.3", site="ams"))
    assert refused.value.code == "token_limits"
    asked = JoinNode(node="idc-3", uid="u3", kind="external", underlay="192.0.2.3", site="ams")
    assert (await agent.send(asked)).result["cidr"]
    _list_show_and_revoke(wide, token)


def _list_show_and_revoke(wide: Place, token: JoinToken) -> None:
    store = ["--store", str(wide.authority.store.path), "--cluster", CLUSTER]
    name = creds.parse(creds.render(token.jwt, token.seed)).key.public[:12]

    def said(*words: str) -> str:
        result = CliRunner().invoke(root, ["token", *words, *store])
        assert result.exit_code == 0, result.output
        assert token.seed not in result.output
        return result.output

    (row,) = json.loads(said("list", "--offline", "--json"))
    assert (row["for"], row["uses"], row["used"], row["state"]) == ("idc-{}", 3, None, "good")
    assert "idc-{}" in said("show", name, "--offline")
    said("revoke", name, "--yes")
    assert json.loads(said("list", "--offline", "--json"))[0]["state"] == "revoked"


async def test_who_used_it_when_is_in_the_log(wide: Place, tmp_path: Path) -> None:
    from deploy.credentials.cli_token_kept import uses_in_log
    from events.cli.options import BusContext

    token = await shared(wide, "{hostname}", 2)
    await redeemed(token, tmp_path / "a", "host-a")
    single = await wide.token("single")
    await redeemed(single, tmp_path / "b")
    context = BusContext(cluster=CLUSTER, bus=wide.options(wide.files.audit), actor="test")
    used = await uses_in_log(context)
    assert [[use.node for use in uses] for uses in used.values()] == [["host-a"], ["single"]]


async def test_a_machine_has_its_own_name_and_takes_over_nobodys(wide: Place, tmp_path: Path) -> None:
    token = await shared(wide, "ams-{hostname}", 9)
    first = await redeemed(token, tmp_path / "a", "ams-web")
    assert isinstance(first, tuple)
    assert first[0].node == "ams-web"
    for name in ("ams-web", "old-1"):
        asked = name if name.startswith("ams-") else ""
        assert await redeemed(token, tmp_path / f"b{name}", asked) != first
    assert await redeemed(token, tmp_path / "c", "ams-web") == "node_name_taken"
    assert await redeemed(token, tmp_path / "d", "old-1") == "token_invalid"
    # A member that this authority has never heard of is known to the controllers.
    operator = await wide.operator()
    await operator.send(JoinNode(node="ams-db", uid="u", kind="external", underlay="192.0.2.9"))
    assert await redeemed(token, tmp_path / "e", "ams-db") == "node_name_taken"
    wide.authority.revoke("node", CLUSTER, "ams-web")
    assert await redeemed(token, tmp_path / "f", "ams-web") == "node_name_taken"


async def test_a_machine_that_was_interrupted_goes_on_with_its_name(wide: Place, tmp_path: Path) -> None:
    """Killed after the issuer has answered: the key was written down before, so the answer is the same."""
    token = await shared(wide, "n-{}", 1)
    folder = tmp_path / "node"
    first = await redeemed(token, folder)
    assert isinstance(first, tuple)
    seed = creds.load(folder / "agent.creds").seed
    public = creds.parse(creds.render(token.jwt, token.seed)).key.public
    (folder / "agent.creds").unlink()
    creds.write_secret(folder / PENDING_KEY, f"{public}\n{seed}\n")
    again = await redeemed(token, folder)
    assert isinstance(again, tuple)
    assert again[0].node == first[0].node
    assert creds.load(folder / "agent.creds").seed == seed
    assert await redeemed(token, tmp_path / "other") == "token_used"
    assert len([1 for name, _ in await wide.log() if name == "token.shared-used.v1"]) == 1


async def test_a_revoked_or_late_token_lets_nobody_in_and_its_nodes_stay(wide: Place, tmp_path: Path) -> None:
    token = await shared(wide, "n-{}", 5)
    first = await redeemed(token, tmp_path / "a")
    assert isinstance(first, tuple)
    public = creds.parse(creds.render(token.jwt, token.seed)).key.public
    record = wide.authority.store.token(CLUSTER, public)
    principal = wide.authority.revoke_token(CLUSTER, record)
    await wide.push(principal.account)
    assert await redeemed(token, tmp_path / "b") == "forbidden"
    client = await connect(first[1], name="agent")
    await client.close()
    # One whose record has ended, whatever the token's own words are.
    late = await shared(wide, "m-{}", 5)
    record = wide.authority.store.token(CLUSTER, creds.parse(creds.render(late.jwt, late.seed)).key.public)
    record.until = 1
    wide.authority.store.save_token(record)
    assert await redeemed(late, tmp_path / "c") == "token_invalid"
    single = await wide.token("one")
    record = wide.authority.store.token(CLUSTER, creds.parse(creds.render(single.jwt, single.seed)).key.public)
    await wide.push(wide.authority.revoke_token(CLUSTER, record).account)
    assert await redeemed(single, tmp_path / "d") == "forbidden"


async def test_it_opens_nothing_but_the_question(wide: Place, tmp_path: Path) -> None:
    token = await shared(wide, "n-{}", 5)
    path = tmp_path / "join.creds"
    creds.write_secret(path, creds.render(token.jwt, token.seed))
    client, mine = await wide.open(path), creds.load(path)
    for subject in (
        subjects.node_command(CLUSTER, "old-1", "join"),
        subjects.renew(CLUSTER, "old-1"),
        subjects.status(CLUSTER, "old-1"),
        subjects.enrol("other", "n-1"),
    ):
        with pytest.raises((TimeoutError, Exception)) as refused:
            await client.request(subject, b"{}", timeout=0.3)
        assert "timeout" in str(refused.value) or "no responders" in str(refused.value), subject
    # A token for one machine, presented where the one for several is good: it is still that machine's alone.
    single = await wide.token("one")
    other = creds.parse(creds.render(single.jwt, single.seed))
    asked = request(CLUSTER, "n-1", generate("user").public, other)
    for body in (asked, msgspec.structs.replace(asked, jwt=mine.jwt)):
        answer = await client.request(subjects.enrol(CLUSTER, "n-1"), msgspec.json.encode(body), timeout=30)
        assert msgspec.json.decode(answer.data, type=EnrolReply).code == "forbidden"
