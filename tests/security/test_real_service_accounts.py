"""Agents' credentials for real ServiceAccount tokens: bound to pods, and reviewed, by a real kube-apiserver."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from controlplane.kubernetes.api import KubernetesClient
from deploy.credentials.issuers.pods import PodIssuer
from events.bus import service_account
from events.bus.access import creds
from events.errors import Refused
from tests.kubernetes.manifests import MANIFESTS, PATHS, apply, token_of
from tests.kubernetes.real import ASSETS, RealApiServer, serving
from tests.security.conftest import CLUSTER, Kube, Place

pytestmark = [
    pytest.mark.bus,
    pytest.mark.skipif(not ASSETS, reason="KUBEBUILDER_ASSETS names no folder with kube-apiserver and etcd"),
]
NAMESPACE = "/api/v1/namespaces/isthmus-system"


async def token(
    api: RealApiServer, pod: str, node: str, *, audience: str = "isthmus", account: str = "isthmus-agent"
) -> str:
    """As the kubelet projects it into a pod on a Node."""
    made = {
        "metadata": {"name": pod},
        "spec": {"nodeName": node, "serviceAccountName": account, "hostNetwork": True,
                 "containers": [{"name": "c", "image": "none"}]},
    }  # fmt: skip
    code, said = await api.ask("POST", f"{NAMESPACE}/pods", made)
    assert code == 201, said
    bound = {"kind": "Pod", "apiVersion": "v1", "name": pod, "uid": said["metadata"]["uid"]}
    asked: dict[str, Any] = {"spec": {"audiences": [audience], "boundObjectRef": bound}}
    code, said = await api.ask("POST", f"{NAMESPACE}/serviceaccounts/{account}/token", asked)
    assert code == 201, said
    return str(said["status"]["token"])


@pytest.fixture
async def kube(place: Place, tmp_path: Path) -> AsyncIterator[tuple[Kube, RealApiServer]]:
    authority = place.authority
    principal = authority.add("kubernetes", CLUSTER, "pods")
    await place.push(principal.account)
    bus = place.options(authority.issue(principal))
    async with serving(tmp_path) as api:
        await apply(api)
        for document in yaml.safe_load_all((MANIFESTS / "all_in_one" / "rbac.yaml").read_text()):
            code, said = await api.ask("POST", PATHS[document["kind"]], document)
            assert code == 201, said
        # With the rights of the one file, and no more.
        reviewer = await KubernetesClient.open(api.kubeconfig(await token_of(api, "isthmus-controller")))
        issuer = PodIssuer(
            await place.open(place.files.issuer), await place.open(place.files.system),
            authority.store.path, CLUSTER, reviewer,
        )  # fmt: skip
        await issuer.start()
        try:
            yield Kube(api, issuer, bus, tmp_path), api
        finally:
            await issuer.close()
            await reviewer.close()


async def test_a_bound_token_gets_the_credentials_of_its_node_and_no_other(
    kube: tuple[Kube, RealApiServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_account, "_AGAIN", set())
    made, api = kube
    for name in ("n1", "n2"):
        await api.add(name)
    good = await token(api, "agent-1", "n1")
    assert await made.enrol("n1", good) is True
    assert creds.load(made.folder / "node" / "agent.creds").name == "n1"

    async def refused(node: str, said: str) -> str:
        with pytest.raises(Refused) as error:
            await made.enrol(node, said, to=f"refused-{node}")
        return error.value.code

    assert await refused("n2", good) == "service_account_forbidden"
    other = await token(api, "other-1", "n2", account="isthmus-credentials")
    assert await refused("n2", other) == "service_account_forbidden"
    audience = await token(api, "agent-2", "n2", audience="https://isthmus.test")
    assert await refused("n2", audience) == "service_account_invalid"
    # Its pod is gone: so is what its token is worth.
    gone = await token(api, "agent-3", "n2")
    await api.ask("DELETE", f"{NAMESPACE}/pods/agent-3?gracePeriodSeconds=0")
    assert await refused("n2", gone) == "service_account_invalid"
    assert (made.issuer.answering.issued, made.issuer.answering.refused) == (1, 4)
