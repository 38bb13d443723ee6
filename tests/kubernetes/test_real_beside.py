"""Two bridges as processes on a real API server: one is stopped and wakes up, one is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from events.protocol.commands import RemoveNode
from tests.kubernetes.cluster import Cluster, started
from tests.kubernetes.manifests import apply, token_of
from tests.kubernetes.real import ASSETS, RealApiServer
from tests.waiting import until

pytestmark = [
    pytest.mark.bus,
    pytest.mark.skipif(not ASSETS, reason="KUBEBUILDER_ASSETS names no folder with kube-apiserver and etcd"),
]
ISTHMUS = str(Path(sys.executable).with_name("isthmus"))
LEASE = "/apis/coordination.k8s.io/v1/namespaces/isthmus-system/leases/isthmus-bridge"


@asynccontextmanager
async def processes(
    cluster: Cluster, access: Path, *names: str
) -> AsyncIterator[dict[str, subprocess.Popen[bytes]]]:
    """Bridges as processes, until the block is left."""
    url = cluster.running.options.bus.servers[0]
    started_: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name in names:
            started_[name] = subprocess.Popen(  # noqa: ASYNC220  starting is short
                [ISTHMUS, "kubernetes", "--bus", url, "--cluster", cluster.running.options.cluster,
                 "--name", name, "--kubeconfig", str(access), "--log-level", "warning"],
                stdout=subprocess.DEVNULL,
            )  # fmt: skip
        yield started_
    finally:
        for process in started_.values():
            process.kill()
            process.wait(30)


async def rights(api: RealApiServer, folder: Path) -> Path:
    """What the manifests give a bridge, and no more."""
    import yaml

    from tests.kubernetes.manifests import MANIFESTS, PATHS

    await apply(api)
    for document in yaml.safe_load_all((MANIFESTS / "beside" / "bridge.yaml").read_text()):
        code, said = await api.ask("POST", f"{PATHS[document['kind']]}?fieldValidation=Strict", document)
        assert code == 201, said
    del folder
    return api.kubeconfig(await token_of(api, "isthmus-controller"))


async def test_a_stopped_bridge_wakes_up_to_nothing_and_a_killed_one_is_followed(tmp_path: Path) -> None:
    access: list[Path] = []

    async def nobody(api: RealApiServer) -> Path:
        access.append(await rights(api, tmp_path))
        return access[0]

    async with started(tmp_path, nobody, bridge=False) as cluster:
        api, agents = cluster.api, cluster.agents
        for number in (1, 2, 3):
            await api.add(f"n{number}")
        ranges = {f"n{n}": await agents.join(f"n{n}", f"uid-{n}", n) for n in (1, 2)}

        async def holder() -> str:
            code, lease = await api.ask("GET", LEASE)
            return str(lease["spec"]["holderIdentity"]).partition("_")[0] if code == 200 else ""

        async with processes(cluster, access[0], "one", "two") as running:
            for name, cidr in ranges.items():
                await cluster.says(name, "False", "IsthmusIsUp")
                assert await cluster.pod_cidr(name) == cidr
            first = await holder()
            other = {"one": "two", "two": "one"}[first]
            running[first].send_signal(signal.SIGSTOP)

            async def taken() -> bool:
                return await holder() == other

            await until(taken, "the other holds the Lease", within_s=60)
            agents.alive.pop("n2")
            await cluster.operator.send(RemoveNode(node="n2"))
            await cluster.says("n2", "True", "IsthmusNoRange")
            cidr = await agents.join("n3", "uid-3", 3)
            await cluster.says("n3", "False", "IsthmusIsUp")
            assert await cluster.pod_cidr("n3") == cidr
            before: dict[str, Any] = {name: await api.node(name) for name in ("n1", "n2", "n3")}
            running[first].send_signal(signal.SIGCONT)
            renewed = [(await api.ask("GET", LEASE))[1]["spec"]["renewTime"]]

            async def went_on() -> bool:
                now = (await api.ask("GET", LEASE))[1]["spec"]["renewTime"]
                if now != renewed[-1]:
                    renewed.append(now)
                return len(renewed) > 4

            await until(went_on, "the Lease is renewed", within_s=60)
            assert await holder() == other
            for name, node in before.items():
                assert (await api.node(name))["metadata"]["resourceVersion"] == node["metadata"][
                    "resourceVersion"
                ]

            running[other].kill()

            async def back() -> bool:
                return await holder() == first

            await until(back, "the first one holds it again", within_s=60)
            agents.alive.pop("n1")
            await cluster.operator.send(RemoveNode(node="n1"))
            await cluster.says("n1", "True", "IsthmusNoRange")
            running[first].send_signal(signal.SIGTERM)
            assert running[first].wait(30) == 0
            assert await holder() == ""
