"""The Kubernetes cluster of the lab: two sites, a kubelet on each node, the network from the one file.

    cloud-1                    etcd, API server, controller manager, scheduler; a node, too
    cloud-2 …, idc-1 …         nodes; those of the data centre are labelled external
    every node                 containerd, kubelet, kube-proxy; agents are pods of a DaemonSet

Nothing but the API is used to get a network: `kubectl apply` of what `isthmus deploy kubernetes` renders.
"""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import msgspec

from deploy.kubernetes.all_in_one import NAMESPACE, OPERATOR, render
from deploy.kubernetes.values import Bus, Routed, Values
from deploy.kubernetes.variants import RESTRICTED
from deploy.lab.failures import CommandFailedError
from deploy.lab.kubernetes import image
from deploy.lab.kubernetes.control import ADMIN, PROXY, ControlPlane
from deploy.lab.kubernetes.nodes import KubernetesNode, group
from deploy.lab.kubernetes.programs import PLUGINS, Programs
from deploy.lab.machines.machine import Fabric
from deploy.lab.machines.probing import PROBER, Probing
from deploy.lab.machines.shell import SEARCH_PATH, run
from deploy.lab.topology.layout import CONTAINER_CIDR, MAX_PODS_PER_NODE, MAX_SERVICES, Topology
from nodeagent.pods import chain

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from ipaddress import IPv4Network

    from deploy.lab.reports.run_directory import RunDirectory

READY_LIMIT_S = 180.0
POLL_S = 0.25
ATTACH_S = 5.0
APPLY = ("apply", "--validate=ignore", "-f")
"""Not every build of kube-apiserver serves its OpenAPI document, which validation wants."""
APP = "prober"
PORT = 7007  # the prober's
CONTROL_PLANE = "node-role.kubernetes.io/control-plane"
RESERVATION = "main"
"""The CLB pair whose `apiserver` address leads to the API servers."""


def services() -> IPv4Network:
    """The Service range: the last segment of the container CIDR."""
    size = MAX_SERVICES.bit_length() - 1
    return list(CONTAINER_CIDR.subnets(new_prefix=32 - size))[-1]


@dataclass(slots=True)
class ScheduledPod(Probing):
    """A pod of the lab's own Deployment, asked through ``kubectl attach``."""

    node: str = ""


class KubernetesLab:
    """Use as an async context manager. Leaving it ends what it started; the sandbox's end takes the rest.

    Cancelled, its coroutines only stop waiting: what they started runs until the lab is left, and what they
    asked of the API server may take effect.
    """

    def __init__(self, topology: Topology, directory: RunDirectory, programs: Programs) -> None:
        self.topology, self.directory, self.programs = topology, directory, programs
        self.fabric = Fabric(topology)
        self.nodes: dict[str, KubernetesNode] = {}
        self.pods: list[ScheduledPod] = []
        self.service = ""
        """The address of the Service before the pods."""
        self._control: ControlPlane | None = None
        self._count = 0
        self._group = group(directory.path.name)
        self._values = values(topology)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(pod.kill() for pod in self.pods))
        await asyncio.gather(*(node.stop() for node in self.nodes.values()))
        if self._control is not None:
            await self._control.stop()
        await self.fabric.close()

    @property
    def control(self) -> ControlPlane:
        """The control plane, once it was started. Raises RuntimeError before."""
        if self._control is None:
            raise RuntimeError("the control plane is started first")
        return self._control

    @property
    def first(self) -> KubernetesNode:
        """The node with the control plane."""
        return self.nodes[self.topology.nodes[0].name]

    @property
    def gateways(self) -> list[str]:
        """The last two cloud nodes."""
        return [node.name for node in self.topology.nodes if node.kind == "cloud"][-2:]

    @property
    def machines(self) -> dict[str, int]:
        """PIDs that `isthmus lab exec` enters."""
        return {name: machine.pid for name, machine in self.fabric.machines.items()}

    @property
    def environment(self) -> dict[str, str]:
        """What makes kubectl find the cluster."""
        return {"KUBECONFIG": str(self.control.kubeconfig(ADMIN))} if self._control else {}

    # --- bringing it up ---

    async def build(self) -> None:
        """The machines, their runtimes and the image. Cancelled, what was made stays until the sandbox ends."""
        folder = self.directory.path
        image.copy_plugins(self.programs.plugins, chain.shipped(), folder / "plugins", PLUGINS)
        spec, archive = folder / "runtime.json", folder / "image.tar"
        spec.write_text(
            image.runtime_spec(await run([self.programs["ctr"], "oci", "spec"]), folder / "plugins")
        )
        image.archive(archive, f"docker.io/library/{self._values.image.name}")
        await self.fabric.build()
        for node in self.topology.nodes:
            machine = await self.fabric.add_node(node)
            own = self.directory.node(node.name)
            own.mkdir(parents=True)
            self.nodes[node.name] = KubernetesNode(
                node, machine, self.programs, own, f"/{self._group}/{node.name}"
            )
        await asyncio.gather(*(node.prepare(spec, archive) for node in self.nodes.values()))

    async def start_control_plane(self) -> None:
        """Until the API server is ready. Raises TimeoutError. Cancelled, what was started runs on."""
        folder = self.directory.path / "control-plane"
        folder.mkdir()
        address = str(self.first.node.underlay)
        self._control = ControlPlane(self.first.machine, address, services(), self.programs, folder)
        self._control.prepare([*self.nodes])
        await self._control.start()
        await self.until(self._api_ready, "the API server to be ready")

    async def _api_ready(self) -> bool:
        return "ok" in await self.kubectl("get", "--raw", "/readyz", quiet=True)

    async def join_nodes(self) -> None:
        """Kubelets register their Nodes; the operator labels them. Raises TimeoutError."""
        for node in self.nodes.values():
            kubelet = self.control.kubeconfig(f"system:node:{node.name}")
            pods = MAX_PODS_PER_NODE - 3
            await node.join(kubelet, self.control.kubeconfig(PROXY), str(CONTAINER_CIDR), pods)
        for name in self.nodes:
            await self.label(name)

    async def label(self, name: str) -> None:
        """What an operator says of a Node, once it has registered. Raises TimeoutError."""
        node = self.nodes[name]
        labels = [f"{CONTROL_PLANE}="] if node is self.first else []
        if name in self.gateways:
            labels.append(f"{RESTRICTED}/gateway=")
        if node.node.kind == "external":
            labels += [f"{RESTRICTED}/kind=external", f"{RESTRICTED}/site={node.node.site.name}"]

        async def registered() -> bool:
            return name in await self.pod_cidrs()

        await self.until(registered, f"{name} to register")
        if labels:
            await self.kubectl("label", "node", name, *labels)

    async def apply_network(self) -> float:
        """`kubectl apply` of the one file; seconds until every Node is Ready. Raises TimeoutError."""
        file = self.directory.path / "isthmus.yaml"
        file.write_text(render(self._values))
        started = time.monotonic()
        await self.kubectl(*APPLY, str(file))
        await self.until(self.ready, "all Nodes to be Ready", explain=self._why_not_ready)
        return time.monotonic() - started

    async def _why_not_ready(self) -> str:
        nodes = await self.kubectl("get", "nodes", quiet=True)
        pods = await self.kubectl("-n", NAMESPACE, "get", "pods", "-o", "wide", quiet=True)
        events = await self.kubectl("get", "events", "-A", "--sort-by=.lastTimestamp", quiet=True)
        return "\n".join([nodes, pods, *events.splitlines()[-20:]])

    async def start_pods(self, per_node: int) -> None:
        """A Deployment, placed by the scheduler, with a Service before it. Raises TimeoutError."""
        self._count = per_node * len(self.nodes)
        for document in workload(self._count, self._values.image.name):
            await self.kubectl(*APPLY, "-", stdin=json.dumps(document))
        await self.attach_pods()
        self.service = (await self._object("service", APP))["spec"]["clusterIP"]

    async def attach_pods(self) -> None:
        """To those that run now, once all do: some may have been replaced. Raises TimeoutError."""
        await self.until(self._running, "all pods to run", explain=self._why_no_pods)
        await asyncio.gather(*(pod.kill() for pod in self.pods))
        self.pods.clear()
        items = (await self._object("pods", "-l", f"app={APP}"))["items"]
        await asyncio.gather(*(self._attach(item) for item in items))

    async def _running(self) -> bool:
        items = (await self._object("pods", "-l", f"app={APP}"))["items"]
        return len(items) == self._count and all(condition(each, "Ready") == "True" for each in items)

    async def _why_no_pods(self) -> str:
        return await self.kubectl("get", "pods,events", "-o", "wide", quiet=True)

    async def _attach(self, item: dict[str, Any]) -> None:
        name = item["metadata"]["name"]
        pod = ScheduledPod(
            name=name, process=await self._attached(name), address=item["status"]["podIP"],
            node=item["spec"]["nodeName"],
        )  # fmt: skip
        self.pods.append(pod)
        pod.listen()
        await self.attach_again(pod)

    async def _attached(self, name: str) -> asyncio.subprocess.Process:
        with self.directory.log(f"attach-{name}").open("ab") as log:
            return await asyncio.create_subprocess_exec(
                *self._kubectl("attach", "-i", "-q", name),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log,
                env=self._environment(), start_new_session=True,
            )  # fmt: skip

    async def attach_again(self, pod: ScheduledPod) -> None:
        """Until it answers: Kubernetes counts a container as ready when it was started, not when it listens.

        The pod's own process goes on while a kubelet or the API server is away. Raises TimeoutError.
        """

        async def answers() -> bool:
            try:
                async with asyncio.timeout(ATTACH_S):
                    await pod.probe([pod.address], count=1)
            except (CommandFailedError, TimeoutError):
                await pod.kill()
                pod.process = await self._attached(pod.name)
                pod.listen()
                return False
            return True

        await self.until(answers, f"{pod.name} to answer through kubectl attach")

    # --- asking it ---

    async def kubectl(self, *words: str, stdin: str = "", quiet: bool = False) -> str:
        """What kubectl prints. Raises CommandFailedError, unless ``quiet``: then empty."""
        command = self._kubectl(*words)
        if quiet:
            command = ["sh", "-c", '"$@" 2>/dev/null || true', "sh", *command]
        return await run(command, stdin=stdin, env=self._environment(), timeout_s=60)

    def _kubectl(self, *words: str) -> list[str]:
        return self.first.machine.inside(self.programs["kubectl"], *words)

    def _environment(self) -> dict[str, str]:
        return {"PATH": SEARCH_PATH, "HOME": str(self.directory.path), **self.environment}

    async def _object(self, *words: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(await self.kubectl("get", *words, "-o", "json", quiet=True) or "{}")
        return found or {"items": []}

    async def node_objects(self) -> list[dict[str, Any]]:
        """The Nodes as the API server has them; empty while it does not answer."""
        items: list[dict[str, Any]] = (await self._object("nodes"))["items"]
        return items

    async def kill_container(self, name: str, node: str = "") -> None:
        """SIGKILL for a container of Isthmus' own, on ``node`` or wherever it is, once one runs there.

        Raises TimeoutError.
        """

        async def killed() -> bool:
            for place, container in await self._containers(name):
                if node in {"", place}:
                    client = [self.programs["ctr"], "--namespace", "k8s.io"]
                    with suppress(CommandFailedError):  # it has just ended, with its Node's old pod
                        await self.nodes[place].machine.run(*client, "task", "kill", "-s", "SIGKILL", container)
                        return True
            return False

        await self.until(killed, f"a container {name} to run {f'on {node}' if node else 'anywhere'}")

    async def _containers(self, name: str) -> list[tuple[str, str]]:
        """Those that run: where, and which."""
        found = []
        for pod in (await self._object("-n", NAMESPACE, "pods"))["items"]:
            status = pod["status"]
            found += [
                (str(pod["spec"]["nodeName"]), each["containerID"].removeprefix("containerd://"))
                for each in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ()))
                if each["name"] == name and "running" in each["state"]
            ]
        return found

    async def network_is_up(self) -> bool:
        """Whether every pod of Isthmus' own is ready."""
        items = (await self._object("-n", NAMESPACE, "pods"))["items"]
        return bool(items) and all(condition(each, "Ready") == "True" for each in items)

    async def pod_cidrs(self) -> dict[str, str]:
        """Of every Node that has one."""
        nodes = await self.node_objects()
        return {each["metadata"]["name"]: each["spec"].get("podCIDR", "") for each in nodes}

    async def ready(self) -> bool:
        """Whether every Node is Ready and has its network."""
        found = await self.node_objects()
        return len(found) == len(self.nodes) and all(
            condition(each, "Ready") == "True" and condition(each, "NetworkUnavailable") == "False"
            for each in found
        )

    async def isthmus(self, *words: str) -> str:
        """What an operator types on the control plane's node, with the credentials of the Secret."""
        folder = self.directory.path / "operator"
        if not folder.exists():
            folder.mkdir(mode=0o700)
            found = await self._object("-n", NAMESPACE, "secret", OPERATOR)
            for key, value in found["data"].items():
                (folder / key).write_bytes(msgspec.convert(value, bytes, strict=False))
                (folder / key).chmod(0o600)
        from deploy.lab.commands import ISTHMUS

        bus = f"tls://{self.first.node.underlay}:{self._values.bus.port}"
        access = {"ISTHMUS_BUS": bus, "ISTHMUS_CLUSTER": self._values.cluster_name}
        files = ("--creds", str(folder / "operator.creds"), "--ca", str(folder / "ca.pem"))
        return await run(self.first.machine.inside(ISTHMUS, *words, *files), env=access, timeout_s=60)

    async def until(
        self,
        true: Callable[[], Awaitable[bool]],
        what: str,
        *,
        explain: Callable[[], Awaitable[str]] | None = None,
    ) -> None:
        """Raises TimeoutError that names ``what``, with what ``explain`` says."""
        try:
            async with asyncio.timeout(READY_LIMIT_S):
                while not await true():  # noqa: ASYNC110 - asked of a server of others, by its own client
                    await asyncio.sleep(POLL_S)
        except TimeoutError as error:
            said = await explain() if explain else ""
            raise TimeoutError(f"waited {READY_LIMIT_S:g} s for {what}\n{said}") from error


def condition(thing: dict[str, Any], kind: str) -> str:
    """The status of a condition; empty without it."""
    found = thing.get("status", {}).get("conditions", [])
    return next((str(each["status"]) for each in found if each["type"] == kind), "")


def values(topology: Topology) -> Values:
    """What the one file is rendered from."""
    sites = topology.sites
    return Values(
        cluster_name="lab",
        pod_cidr=str(CONTAINER_CIDR),
        pods_per_node=MAX_PODS_PER_NODE,
        services=MAX_SERVICES,
        networks=tuple(
            Routed(kind="vpc" if site.kind == "cloud" else "idc", cidr=str(site.subnet), name=site.name)
            for site in sites
        ),
        quarantine_s=1.0,
        bus=Bus(),
        apiserver_backends=RESERVATION,
        external_sites=tuple(site.name for site in sites if site.kind == "external"),
    )


def workload(count: int, product: str) -> list[dict[str, Any]]:
    """Probers, spread over the nodes by the scheduler, and their Service."""
    labels = {"app": APP}
    spread = {
        "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": labels},
    }  # fmt: skip
    container = {
        "name": APP, "image": product, "imagePullPolicy": "IfNotPresent", "stdin": True,
        "command": ["python3", "-I", "-S", str(PROBER)],
    }  # fmt: skip
    pod = {
        "topologySpreadConstraints": [spread], "containers": [container], "terminationGracePeriodSeconds": 0,
        "automountServiceAccountToken": False,
    }  # fmt: skip
    return [
        {
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": APP},
            "spec": {
                "replicas": count, "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": pod},
            },
        },
        {
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": APP},
            "spec": {"selector": labels, "ports": [{"protocol": "UDP", "port": PORT, "targetPort": PORT}]},
        },
    ]  # fmt: skip
