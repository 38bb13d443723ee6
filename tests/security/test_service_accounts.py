"""Agents in pods: credentials of exactly the Node on which the pod runs, for its ServiceAccount token.

A real server, a real controller and a real issuer; the API server is the tests' own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from controlplane.kubernetes.api import KubernetesClient
from controlplane.kubernetes.tokens import ReviewedUser, ReviewStatus, TokenReview, pod_of
from deploy.credentials.issuers.pods import PodIssuer
from events import subjects
from events.bus import service_account
from events.bus.access import creds
from events.bus.access.nkeys import generate
from events.bus.client import ControllerClient
from events.bus.connection import connect
from events.bus.enrolment import EnrolReply, renew
from events.bus.service_account import PodRequest, enrol
from events.errors import Refused, Unavailable
from events.protocol.commands import JoinNode
from tests.kubernetes.apiserver import ApiServer
from tests.security.conftest import CLUSTER, Kube, Place

pytestmark = pytest.mark.bus


@pytest.fixture
async def kube(place: Place, tmp_path: Path) -> AsyncIterator[Kube]:
    authority = place.authority
    principal = authority.add("kubernetes", CLUSTER, "pods")
    await place.push(principal.account)
    bus = place.options(authority.issue(principal))
    api = ApiServer()
    async with api.serving(tmp_path) as kubeconfig:
        reviewer = await KubernetesClient.open(kubeconfig)
        issuer = PodIssuer(
            await place.open(place.files.issuer), await place.open(place.files.system),
            authority.store.path, CLUSTER, reviewer,
        )  # fmt: skip
        await issuer.start()
        try:
            yield Kube(api, issuer, bus, tmp_path)
        finally:
            await issuer.close()
            await reviewer.close()


async def test_a_pods_token_makes_its_node_a_member(place: Place, kube: Kube) -> None:
    token = kube.api.project("n1.example")
    assert await kube.enrol("n1.example", token) is True
    folder = kube.folder / "node"
    assert sorted(file.name for file in folder.iterdir()) == ["agent.creds", "ca.pem"]
    held = folder / "agent.creds"
    client = await place.open(held)
    reply = await ControllerClient(client, CLUSTER, actor="node/n1.example").send(
        JoinNode(node="n1.example", uid="uid-1", kind="external", underlay="192.0.2.1")
    )
    assert reply.result["cidr"] == "10.200.0.0/24"
    # The log says which pod got them, and no secret of either side.
    used = [body for name, body in await place.log() if name == "token.used.v1"]
    assert [(body["node"], body["public_key"]) for body in used] == [
        ("n1.example", creds.load(held).key.public)
    ]
    assert used[0]["pod"].startswith("isthmus-system/isthmus-agent/pod-") is False
    assert used[0]["pod"].startswith("isthmus-system/pod-")
    assert token not in str(await place.log())
    # What is there and good stays; the issuer of join tokens renews it like any other.
    assert await kube.enrol("n1.example", "unused.token.here") is False
    fresh = await renew(client, held)
    assert fresh.name == "n1.example"
    # Another bus (another authority), or another node's: fetched anew.
    (folder / "ca.pem").write_text("another")
    assert await kube.enrol("n1.example", kube.api.project("n1.example")) is True
    assert await kube.enrol("n2", kube.api.project("n2")) is True
    assert creds.load(held).name == "n2"


async def test_whoever_is_no_agent_of_that_node_gets_nothing(
    kube: Kube, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_account, "_AGAIN", set())
    cases = {
        "another audience": (kube.api.project("n1", audience="other"), "service_account_invalid", "other"),
        "unknown or expired": ("head.body.signature", "service_account_invalid", "lookup failed"),
        "another account": (
            kube.api.project("n1", account="default:isthmus-agent"),
            "service_account_forbidden",
            "default:isthmus-agent",
        ),
        "another account's name": (
            kube.api.project("n1", account="isthmus-system:isthmus-agent2"),
            "service_account_forbidden",
            "isthmus-agent2",
        ),
        "another node": (kube.api.project("n2"), "service_account_forbidden", "n2"),
        "no pod": (kube.api.project("n1", bound=False), "service_account_forbidden", "1.30"),
        "let in without Kubernetes": (kube.api.project("old-1"), "service_account_forbidden", "--adopt"),
        "no token": ("", "credentials_invalid", "no ServiceAccount token"),
    }
    for what, (token, code, words) in cases.items():
        with pytest.raises(Refused) as refused:
            await kube.enrol("old-1" if "without" in what else "n1", token)
        assert refused.value.code == code, what
        assert words in refused.value.message, what
    assert not (kube.folder / "node").exists()
    assert kube.issuer.answering.issued == 0
    kube.api.broken = True
    with pytest.raises(Unavailable):
        await kube.enrol("n1", kube.api.project("n1"), within_s=1.0)


async def test_who_was_shut_out_stays_out(place: Place, kube: Kube) -> None:
    await kube.enrol("n1", kube.api.project("n1"))
    place.authority.revoke("node", CLUSTER, "n1")
    with pytest.raises(Refused) as refused:
        await kube.enrol("n1", kube.api.project("n1"), to="again")
    assert refused.value.code == "credentials_revoked"


async def test_the_credentials_of_pods_open_nothing_but_the_question(place: Place, kube: Kube) -> None:
    client = await connect(kube.bus, name="pod")
    place.stack.push_async_callback(client.close)
    live = await client.subscribe(subjects.live_wildcard(CLUSTER))
    for subject in (
        subjects.node_command(CLUSTER, "old-1", "join"),
        subjects.enrol(CLUSTER, "old-1"),
        subjects.renew(CLUSTER, "old-1"),
        subjects.enrol_pod("other", "old-1"),
        subjects.command(CLUSTER, "use-token"),
        f"ISTHMUS.API.DIRECT.GET.{subjects.stream(CLUSTER)}",
    ):
        with pytest.raises((TimeoutError, Exception)) as refused:
            await client.request(subject, b"{}", timeout=0.2)
        assert "timeout" in str(refused.value) or "no responders" in str(refused.value), subject
    assert live.pending_msgs == 0
    # What cannot be read, and what asks on another node's subject, is answered with a code.
    subject = subjects.enrol_pod(CLUSTER, "n1")
    good = PodRequest(
        cluster=CLUSTER, node="n1", public_key=generate("user").public, token=kube.api.project("n1")
    )
    replace = msgspec.structs.replace
    bodies = [
        msgspec.json.encode(asked)
        for asked in (
            replace(good, node="n2"), replace(good, cluster="other"), replace(good, node="*"),
            replace(good, public_key=generate("account").public),
        )
    ]  # fmt: skip
    for body in (*bodies, b"", b"{", b"[" * 5000, b"x" * 40_000):
        reply = msgspec.json.decode((await client.request(subject, body, timeout=30)).data, type=EnrolReply)
        assert reply.code, body[:60]
        assert not reply.jwt
    assert kube.api.reviews == 0


async def test_many_nodes_at_once_each_get_their_own(kube: Kube) -> None:
    async def one(number: int) -> str:
        name, file = f"n{number}", kube.folder / f"token-{number}"
        file.write_text(kube.api.project(name))
        folder = kube.folder / f"node-{number}"
        await enrol(kube.bus, CLUSTER, name, token_file=file, folder=folder, within_s=60)
        return creds.load(folder / "agent.creds").name

    assert await asyncio.gather(*(one(number) for number in range(12))) == [f"n{n}" for n in range(12)]


def test_an_api_server_that_does_not_look_at_audiences_is_not_believed() -> None:
    said = ReviewStatus(
        authenticated=True, user=ReviewedUser("system:serviceaccount:isthmus-system:isthmus-agent")
    )
    with pytest.raises(Refused) as refused:
        pod_of(TokenReview(said), "n1")
    assert refused.value.code == "service_account_invalid"
