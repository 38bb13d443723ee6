"""What an API server answers to the bridge's requests: one suite, held against the real one and against ours.

So that the API server of the tests' own answers as Kubernetes does, and is believed only as far as that.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from controlplane.kubernetes import tokens
from controlplane.kubernetes.tokens import TokenReview
from events.errors import Refused
from tests.kubernetes.apiserver import TOKEN, ApiServer
from tests.kubernetes.real import ADMIN, ASSETS, KUBELET, RealApiServer, serving

MERGE, STRATEGIC = "application/merge-patch+json", "application/strategic-merge-patch+json"
Ask = Callable[..., Awaitable[tuple[int, Any]]]


class Server:
    """Either of them, by the same words. ``token``: one of the agents' ServiceAccount, for an audience."""

    def __init__(
        self,
        ask: Ask,
        add: Callable[..., Awaitable[dict[str, Any]]],
        token: Callable[[str], Awaitable[str]],
    ) -> None:
        self.ask, self.add, self.token = ask, add, token

    async def patch(
        self, name: str, patch: dict[str, Any], kind: str = MERGE, part: str = ""
    ) -> tuple[int, Any]:
        return await self.ask("PATCH", f"/api/v1/nodes/{name}{part}", patch, kind=kind)


@pytest.fixture(params=["ours", "real"])
async def server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Server]:
    if request.param == "real":
        if not ASSETS:
            pytest.skip("KUBEBUILDER_ASSETS names no folder with kube-apiserver and etcd")
        async with serving(tmp_path) as real:
            yield Server(real.ask, real.add, partial(account_token, real))
        return
    ours = ApiServer()
    async with ours.serving(tmp_path) as kubeconfig, aiohttp.ClientSession() as session:
        import json

        url = json.loads(kubeconfig.read_text())["clusters"][0]["cluster"]["server"]

        async def ask(
            method: str, path: str, body: Any = None, *, kind: str = "application/json", token: str = TOKEN
        ) -> tuple[int, Any]:
            headers = {"Authorization": f"Bearer {token}", "Content-Type": kind}
            data = None if body is None else json.dumps(body)
            async with session.request(method, url + path, data=data, headers=headers) as answer:
                text = await answer.text()
                return answer.status, json.loads(text.splitlines()[0])

        async def add(name: str, **spec: Any) -> dict[str, Any]:
            return ours.add(name, **spec)

        async def token(audience: str) -> str:
            return ours.project("n1", audience=audience, bound=False)

        yield Server(ask, add, token)


async def account_token(real: RealApiServer, audience: str) -> str:
    """By the TokenRequest of a ServiceAccount that is made for it."""
    namespaces = "/api/v1/namespaces"
    accounts = f"{namespaces}/isthmus-system/serviceaccounts"
    for path, name in ((namespaces, "isthmus-system"), (accounts, "isthmus-agent")):
        code, said = await real.ask("POST", path, {"metadata": {"name": name}})
        assert code in {201, 409}, said
    asked = {"spec": {"audiences": [audience]}}
    code, said = await real.ask("POST", f"{accounts}/isthmus-agent/token", asked)
    assert code == 201, said
    return str(said["status"]["token"])


def spec(cidr: str, uid: str = "") -> dict[str, Any]:
    return {**({"metadata": {"uid": uid}} if uid else {}), "spec": {"podCIDR": cidr, "podCIDRs": [cidr]}}


async def test_the_answers_that_the_bridge_rests_on(server: Server) -> None:
    """All in one, because a real server takes seconds to start."""
    n1 = await server.add("n1", taints=[{"key": "a", "effect": "NoSchedule"}])
    uid = n1["metadata"]["uid"]

    # The uid is a precondition.
    code, said = await server.patch("n1", spec("10.200.0.0/26", "another-uid"))
    assert (code, said["reason"]) == (422, "Invalid")
    assert "metadata.uid" in said["message"]

    # podCIDR: once, by merge patch; the same again changes nothing; another one is refused.
    code, said = await server.patch("n1", spec("10.200.0.0/26", uid))
    assert code == 200
    assert (said["spec"]["podCIDR"], said["spec"]["podCIDRs"]) == ("10.200.0.0/26", ["10.200.0.0/26"])
    version = said["metadata"]["resourceVersion"]
    code, said = await server.patch("n1", spec("10.200.0.0/26", uid))
    assert (code, said["metadata"]["resourceVersion"]) == (200, version)
    code, said = await server.patch("n1", spec("10.200.0.64/26", uid))
    assert (code, said["reason"]) == (422, "Invalid")
    assert 'node updates may not change podCIDR except from "" to valid' in said["message"]

    # Two Nodes with one podCIDR are taken: it is for the log to say whose it is.
    await server.add("n2")
    assert (await server.patch("n2", spec("10.200.0.0/26")))[0] == 200

    # Taints are a list: the version is a precondition, too.
    kept = {"metadata": {"uid": uid, "resourceVersion": "1"}, "spec": {"taints": None}}
    code, said = await server.patch("n1", kept)
    assert (code, said["reason"]) == (409, "Conflict")

    # Conditions merge by their type; others' stay.
    moment = "2026-11-29T00:00:00Z"
    for kind, value in (("Other", "True"), ("NetworkUnavailable", "True"), ("NetworkUnavailable", "False")):
        condition = {
            "type": kind, "status": value, "reason": "R", "message": "m",
            "lastHeartbeatTime": moment, "lastTransitionTime": moment,
        }  # fmt: skip
        code, said = await server.patch("n1", {"status": {"conditions": [condition]}}, STRATEGIC, "/status")
        assert code == 200, said
    found = {c["type"]: c["status"] for c in said["status"]["conditions"]}
    assert found["Other"] == "True"
    assert found["NetworkUnavailable"] == "False"
    # The status subresource changes no spec, and the other way round.
    code, said = await server.patch("n1", {"spec": {"unschedulable": True}}, STRATEGIC, "/status")
    assert code == 200
    assert not said["spec"].get("unschedulable")

    # Who is not there, and who may not ask.
    code, said = await server.patch("nobody", spec("10.200.1.0/26"))
    assert (code, said["reason"]) == (404, "NotFound")
    code, said = await server.ask("GET", "/api/v1/nodes", token="wrong")
    assert (code, said["reason"]) == (401, "Unauthorized")

    # Pages.
    code, page = await server.ask("GET", "/api/v1/nodes?limit=1")
    assert (code, len(page["items"])) == (200, 1)
    assert page["metadata"]["resourceVersion"]
    following = page["metadata"]["continue"]
    code, rest = await server.ask("GET", f"/api/v1/nodes?limit=1&continue={following}")
    assert [each["metadata"]["name"] for each in (*page["items"], *rest["items"])] == ["n1", "n2"]
    assert not rest["metadata"].get("continue")

    # Events.
    event = {
        "apiVersion": "events.k8s.io/v1", "kind": "Event",
        "metadata": {"name": "n1.1", "namespace": "default"}, "eventTime": "2026-11-29T00:00:00.000000Z",
        "reportingController": "isthmus.io/controller", "reportingInstance": "c1", "action": "WritePodCIDR",
        "reason": "IsthmusRangeConflict", "regarding": {"kind": "Node", "name": "n1", "uid": "n1"},
        "note": "n", "type": "Warning",
    }  # fmt: skip
    path = "/apis/events.k8s.io/v1/namespaces/default/events"
    assert (await server.ask("POST", path, event))[0] == 201
    code, said = await server.ask("POST", path, event)
    assert (code, said["reason"]) == (409, "AlreadyExists")
    code, said = await server.ask("POST", path, {**event, "metadata": {"name": "n1.2"}, "note": "n" * 1025})
    assert (code, said["reason"]) == (422, "Invalid")
    code, said = await server.ask("POST", path, {**event, "metadata": {"name": "n1.3"}, "action": ""})
    assert (code, said["reason"]) == (422, "Invalid")


async def test_the_review_of_a_token(server: Server) -> None:
    async def review(token: str, audience: str) -> TokenReview:
        code, said = await server.ask(
            "POST", "/apis/authentication.k8s.io/v1/tokenreviews", tokens.review(token, audience)
        )
        assert code == 201, said
        return msgspec.convert(said, TokenReview)

    own = await server.token("isthmus")
    found = (await review(own, "isthmus")).status
    assert (found.authenticated, found.audiences) == (True, ("isthmus",))
    assert found.user.username == "system:serviceaccount:isthmus-system:isthmus-agent"
    for token, audience in ((own, "other"), (await server.token("other"), "isthmus"), ("a.b.c", "isthmus")):
        assert not (await review(token, audience)).status.authenticated
    # It is bound to no pod, so that it says nothing of a Node.
    with pytest.raises(Refused) as said:
        tokens.pod_of(await review(own, "isthmus"), "n1")
    assert said.value.code == "service_account_forbidden"


async def test_what_a_kubelet_may_not_say_of_itself(tmp_path: Path) -> None:
    """Labels below our settled prefix are refused to a kubelet: they may say what a node is."""
    if not ASSETS:
        pytest.skip("KUBEBUILDER_ASSETS names no folder with kube-apiserver and etcd")
    async with serving(tmp_path) as real:
        assert isinstance(real, RealApiServer)
        await real.add("n1")
        path = "/api/v1/nodes/n1"
        settled = {"metadata": {"labels": {"isthmus.node-restriction.kubernetes.io/kind": "cloud"}}}
        own = {"metadata": {"labels": {"isthmus.io/kind": "cloud"}}}
        assert (await real.ask("PATCH", path, settled, kind=MERGE, token=KUBELET))[0] == 403
        assert (await real.ask("PATCH", path, own, kind=MERGE, token=KUBELET))[0] == 200
        assert (await real.ask("PATCH", path, settled, kind=MERGE, token=ADMIN))[0] == 200
