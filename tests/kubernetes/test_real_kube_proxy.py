"""A real kube-proxy on both nodes, and the real ``portmap``: the matrix that our generator passes, too.

So what :mod:`tests.nodeagent.kube_proxy` makes is held to what kube-proxy makes: the same questions, the same
answers, in both backends and every detect-local mode.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.kubernetes.real import ASSETS, BOUND, KUBE_PROXY, RealApiServer, serving
from tests.nodeagent import host
from tests.nodeagent.kube_proxy import HostPort, Service
from tests.nodeagent.sandbox import inside, sh
from tests.nodeagent.service_matrix import HOST_PORT, SERVICES, run
from tests.nodeagent.service_network import PODS, Network, network
from tests.nodeagent.twins import within

pytestmark = pytest.mark.skipif(not KUBE_PROXY, reason="KUBEBUILDER_ASSETS names no folder with kube-proxy")
API = "10.0.0.250"
RULES_S = 60.0
MODES = {
    "ClusterCIDR": ("--detect-local-mode=ClusterCIDR", f"--cluster-cidr={host.CONTAINERS}"),
    "NodeCIDR": ("--detect-local-mode=NodeCIDR",),
    "InterfaceNamePrefix": ("--detect-local-mode=InterfaceNamePrefix", "--pod-interface-name-prefix=veth"),
    "none": (),
}
WRITTEN = {"iptables": "iptables-nft-save -t nat", "nftables": "nft list table ip kube-proxy"}
PLUGINS = next((each for each in ("/opt/cni/bin", "/usr/lib/cni") if Path(each, "portmap").exists()), "")


async def post(api: RealApiServer, path: str, thing: dict[str, Any]) -> None:
    code, said = await api.ask("POST", path, thing)
    assert code == 201, said


async def status(api: RealApiServer, path: str, found: dict[str, Any]) -> None:
    code, said = await api.ask(
        "PATCH", f"{path}/status", {"status": found}, kind="application/merge-patch+json"
    )
    assert code == 200, said


async def fill(api: RealApiServer) -> None:
    """Nodes and Services as the API has them."""
    for number in (1, 2):
        cidr = host.own_range(number)
        await api.add(f"n{number}", podCIDR=cidr, podCIDRs=[cidr])
        addresses = [{"type": "InternalIP", "address": Network.ADDRESSES[f"n{number}"]}]
        await status(api, f"/api/v1/nodes/n{number}", {"addresses": addresses})
    for service in SERVICES:
        await offer(api, service)


async def offer(api: RealApiServer, service: Service) -> None:
    """A Service without a selector and the endpoints behind it."""
    protocols = [(kind.lower(), kind) for kind in ("TCP", "UDP")]
    spec: dict[str, Any] = {
        "type": "LoadBalancer", "clusterIP": service.cluster_ip, "allocateLoadBalancerNodePorts": True,
        "externalTrafficPolicy": "Local" if service.local else "Cluster",
        "sessionAffinity": "ClientIP" if service.affinity else "None",
        "ports": [
            {"name": name, "protocol": kind, "port": service.port, "targetPort": 80,
             "nodePort": service.node_port}
            for name, kind in protocols
        ],
    }  # fmt: skip
    path = "/api/v1/namespaces/default/services"
    await post(api, path, {"metadata": {"name": service.name}, "spec": spec})
    await status(api, f"{path}/{service.name}", {"loadBalancer": {"ingress": [{"ip": service.balancer}]}})
    slices = {
        "metadata": {"name": service.name, "labels": {"kubernetes.io/service-name": service.name}},
        "addressType": "IPv4",
        "ports": [{"name": name, "protocol": kind, "port": 80} for name, kind in protocols],
        "endpoints": [
            {"addresses": [address], "nodeName": f"n{number}", "conditions": {"ready": True}}
            for number, address in service.backends
        ],
    }  # fmt: skip
    await post(api, "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", slices)


class Proxies:
    """The kube-proxies of both nodes."""

    def __init__(self, folder: Path, kubeconfig: Path, backend: str) -> None:
        self._folder, self._kubeconfig, self._backend = folder, kubeconfig, backend
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self, mode: str) -> None:
        """Both anew, in a mode, on what the kernel has; returns when their rules are there."""
        self.stop()
        for name in ("n1", "n2"):
            with within(name):
                self._clean()
                self._running.append(self._start(name, mode))
        for name in ("n1", "n2"):
            self._wait(name)

    def _clean(self) -> None:
        words = [f"{ASSETS}/kube-proxy", "--cleanup", f"--proxy-mode={self._backend}"]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
        assert "KUBE-SVC" not in sh("iptables-nft-save"), done.stderr
        assert "kube-proxy" not in sh("nft list tables"), done.stderr

    def _start(self, name: str, mode: str) -> subprocess.Popen[bytes]:
        words = [
            *BOUND, f"{ASSETS}/kube-proxy", f"--kubeconfig={self._kubeconfig}", f"--hostname-override={name}",
            f"--proxy-mode={self._backend}", "--conntrack-max-per-core=0", "--conntrack-min=0",
            "--conntrack-tcp-timeout-established=0s", "--conntrack-tcp-timeout-close-wait=0s", *MODES[mode],
        ]  # fmt: skip
        with (self._folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(words, stdout=log, stderr=log)

    def _wait(self, name: str) -> None:
        wanted = [str(each.node_port) for each in SERVICES]
        deadline = time.monotonic() + RULES_S
        while True:
            command = WRITTEN[self._backend]
            done = subprocess.run(
                ["ip", "netns", "exec", name, *command.split()], capture_output=True, text=True, check=False
            )
            if all(word in done.stdout for word in wanted):
                return
            log = (self._folder / f"{name}.log").read_text()[-3000:]
            assert time.monotonic() < deadline, f"{name} has no rules:\n{done.stdout[-2000:]}\n{log}"
            time.sleep(0.1)

    def stop(self) -> None:
        """SIGKILL; what they wrote stays."""
        while self._running:
            process = self._running.pop()
            process.kill()
            process.wait(30)


def attach_host_port(port: HostPort) -> None:
    """As the runtime lets ``portmap`` do it for a pod that was attached."""
    (number,) = (number for number, address in PODS.values() if address == port.address)
    mappings = [
        {"hostPort": port.port, "containerPort": port.pod_port, "protocol": kind} for kind in ("tcp", "udp")
    ]
    configuration = {
        "cniVersion": "1.0.0", "name": "isthmus", "type": "portmap", "snat": True,
        "runtimeConfig": {"portMappings": mappings},
        "prevResult": {"cniVersion": "1.0.0", "interfaces": [], "ips": [{"address": f"{port.address}/32"}]},
    }  # fmt: skip
    environment = {
        "CNI_COMMAND": "ADD", "CNI_CONTAINERID": "p1", "CNI_NETNS": "/run/netns/p1", "CNI_IFNAME": "eth0",
        "CNI_PATH": PLUGINS,
    }  # fmt: skip
    done = subprocess.run(
        ["ip", "netns", "exec", f"n{number}", f"{PLUGINS}/portmap"], input=json.dumps(configuration),
        env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert not done.returncode, done.stdout + done.stderr


@contextmanager
def api_host() -> Iterator[None]:
    """The API server has a host of its own on the underlay; the block is there."""
    sh(f"""set -e; ip netns add api; ip -n api link set lo up
        ip link add vapi netns wire type veth peer name u netns api
        ip -n wire link set vapi master w up; ip -n api link set u up; ip -n api addr add {API}/24 dev u""")
    with within("api"):
        yield


async def matrix(place: Network, backend: str) -> None:
    """All of it with one of kube-proxy's backends."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with api_host():
            async with serving(folder, address=API, services="172.16.255.0/24") as api:
                await fill(api)
                proxies = Proxies(folder, api.kubeconfig(), backend)
                attach_host_port(HOST_PORT)
                try:
                    run(place, proxies.start)
                finally:
                    proxies.stop()


@inside
def test_a_real_kube_proxy_in_its_iptables_mode() -> None:
    asyncio.run(matrix(network(), "iptables"))


@inside
def test_a_real_kube_proxy_in_its_nftables_mode() -> None:
    asyncio.run(matrix(network(), "nftables"))
