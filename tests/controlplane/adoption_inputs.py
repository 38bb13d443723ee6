"""Node objects in the form in which the distributions write them, with neutral names and addresses.

Only what a reader could stumble over is here: addresses, labels, annotations, machine ids, providers, ranges.
"""

from __future__ import annotations

import base64
import json
from typing import Any

FLANNEL = "flannel.alpha.coreos.com"


def node(name: str, number: int, **parts: Any) -> dict[str, Any]:
    """A Node with one InternalIP, 192.0.2.<number>; ``parts``: ranges, annotations, labels and the like."""
    ranges = parts.get("ranges", [])
    spec: dict[str, Any] = {"podCIDR": ranges[0], "podCIDRs": ranges} if ranges else {}
    if parts.get("provider"):
        spec["providerID"] = parts["provider"]
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "uid": f"00000000-0000-4000-8000-{number:012d}",
            "labels": {"kubernetes.io/os": "linux", "kubernetes.io/hostname": name} | parts.get("labels", {}),
            "annotations": {"volumes.kubernetes.io/controller-managed-attach-detach": "true"}
            | parts.get("annotations", {}),
        },
        "spec": spec,
        "status": {
            "addresses": parts.get("addresses", [internal(f"192.0.2.{number}"), hostname(name)]),
            "nodeInfo": {
                "machineID": f"b{number:031x}",
                "systemUUID": f"{number:08d}-0000-4000-8000-000000000000",
                "kubeletVersion": "v1.33.0",
            },
        },
    }


def internal(address: str) -> dict[str, str]:
    return {"type": "InternalIP", "address": address}


def hostname(name: str) -> dict[str, str]:
    return {"type": "Hostname", "address": name}


def flannel(number: int, **changes: str) -> dict[str, str]:
    """The annotations of flannel's vxlan backend; a value of "-" leaves that one out."""
    said = {
        "backend-data": json.dumps(
            {"VNI": 1, "VtepMAC": f"8a:00:00:00:00:{number:02x}"}, separators=(",", ":")
        ),
        "backend-type": "vxlan",
        "kube-subnet-manager": "true",
        "public-ip": f"192.0.2.{number}",
    } | {key.replace("_", "-"): value for key, value in changes.items()}
    return {f"{FLANNEL}/{key}": value for key, value in said.items() if value != "-"}


def listed(*nodes: dict[str, Any]) -> str:
    """As ``kubectl get nodes -o json`` prints them."""
    return json.dumps(
        {"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": list(nodes)}
    )


def k3s(count: int = 3) -> str:
    """k3s: flannel inside of the binary, its own annotations, a provider of its own."""
    return listed(
        *(
            node(
                f"k3s-{n}", n, ranges=[f"10.42.{n - 1}.0/24"], provider=f"k3s://k3s-{n}",
                labels={"node.kubernetes.io/instance-type": "k3s"},
                annotations=flannel(n) | {
                    "alpha.kubernetes.io/provided-node-ip": f"192.0.2.{n}",
                    "k3s.io/hostname": f"k3s-{n}",
                    "k3s.io/internal-ip": f"192.0.2.{n}",
                    "k3s.io/node-args": '["agent"]',
                },
            )
            for n in range(1, count + 1)
        )
    )  # fmt: skip


def kubeadm() -> str:
    """kubeadm with kube-flannel: no provider; the oldest node still has backend-data without a VNI."""
    old = json.dumps({"VtepMAC": "ce:00:00:00:00:01"})
    return listed(
        node("control", 1, ranges=["10.244.0.0/24"], annotations=flannel(1, backend_data=old)),
        node("worker-a", 2, ranges=["10.244.1.0/24"], annotations=flannel(2)),
        node("worker-b", 3, ranges=["10.244.4.0/24"], annotations=flannel(3)),
    )


def kind() -> str:
    """kind: kindnet, an IPv6 address beside the other, no annotation of a network."""
    return listed(
        *(
            node(
                name, n, ranges=[f"10.244.{n}.0/24"], provider=f"kind://docker/kind/{name}",
                addresses=[internal(f"172.18.0.{n + 2}"), internal(f"fc00:f853::{n}"), hostname(name)],
            )
            for n, name in enumerate(("kind-control-plane", "kind-worker"))
        )
    )  # fmt: skip


def eks() -> str:
    """EKS: the VPC gives pods their addresses, so no node has a range."""
    return listed(
        *(
            node(
                f"ip-10-0-0-{n}.eu-west-1.compute.internal", n, provider=f"aws:///eu-west-1a/i-00000{n:02d}",
                labels={"topology.kubernetes.io/zone": "eu-west-1a"},
                addresses=[internal(f"10.0.0.{n}"), {"type": "InternalDNS", "address": f"ip-{n}.internal"}],
            )
            for n in (11, 12)
        )
    )  # fmt: skip


def digitalocean() -> str:
    """DigitalOcean: Cilium, ranges of half a /24, a public address beside the private one."""
    return listed(
        *(
            node(
                f"pool-{n}", n, ranges=[f"10.244.0.{128 * n}/25"], provider=f"digitalocean://30000000{n}",
                labels={"topology.kubernetes.io/region": "ams3"},
                annotations={"network.cilium.io/ipv4-cilium-host": f"10.244.0.{128 * n + 9}"},
                addresses=[
                    hostname(f"pool-{n}"), internal(f"10.110.0.{n + 2}"),
                    {"type": "ExternalIP", "address": f"203.0.113.{n + 1}"},
                ],
            )
            for n in range(2)
        )
    )  # fmt: skip


def rke2_canal() -> str:
    """RKE2: flannel carries, Calico attaches pods and keeps policies."""
    return listed(
        *(
            node(
                f"rke2-{n}", n, ranges=[f"10.42.{n}.0/24"], provider=f"rke2://rke2-{n}",
                labels={"node.kubernetes.io/instance-type": "rke2"},
                annotations=flannel(n) | {
                    "rke2.io/node-args": '["agent"]',
                    "projectcalico.org/IPv4Address": f"192.0.2.{n}/24",
                    "projectcalico.org/IPv4IPIPTunnelAddr": f"10.42.{n}.1",
                },
            )
            for n in (1, 2)
        )
    )  # fmt: skip


def microk8s() -> str:
    """MicroK8s: Calico with its own blocks, so that no Node has a range."""
    return listed(
        *(
            node(
                f"micro-{n}", n, labels={"microk8s.io/cluster": "true"},
                annotations={
                    "projectcalico.org/IPv4Address": f"192.0.2.{n}/24",
                    "projectcalico.org/IPv4VXLANTunnelAddr": f"10.1.{n}.128",
                },
            )
            for n in (1, 2)
        )
    )  # fmt: skip


def talos() -> str:
    """Talos: flannel by its own manifests, no provider, several addresses of which one is flannel's."""
    return listed(
        *(
            node(
                f"talos-{n}", n, ranges=[f"10.244.{n}.0/24"],
                labels={"node-role.kubernetes.io/control-plane": ""} if n == 1 else {},
                annotations=flannel(n) | {
                    "talos.dev/owned-labels": "[]",
                    "networking.talos.dev/self-ips": f"192.0.2.{n},198.51.100.{n}",
                },
                addresses=[internal(f"192.0.2.{n}"), internal(f"198.51.100.{n}"), hostname(f"talos-{n}")],
            )
            for n in (1, 2, 3)
        )
    )  # fmt: skip


def kops() -> str:
    """kops on AWS: flannel in ranges of the shared address space, which carriers' NAT uses, too."""
    return listed(
        *(
            node(
                f"i-0000{n}", n, ranges=[f"100.96.{n}.0/24"], provider=f"aws:///eu-west-1a/i-0000{n}",
                labels={"kops.k8s.io/instancegroup": "nodes", "topology.kubernetes.io/zone": "eu-west-1a"},
                annotations=flannel(n),
                addresses=[
                    internal(f"192.0.2.{n}"), {"type": "InternalDNS", "address": f"i-{n}.internal"},
                    {"type": "ExternalIP", "address": f"203.0.113.{n}"},
                ],
            )
            for n in (1, 2, 3)
        )
    )  # fmt: skip


def leases(*numbers: int, **changes: Any) -> dict[str, Any]:
    """Flannel's configuration and its leases in etcd: of 192.0.2.<number> the range 10.5.<number>.0/24."""
    found: dict[str, Any] = {
        "/coreos.com/network/config": {
            "Network": "10.5.0.0/16", "SubnetLen": 24, "Backend": {"Type": "vxlan", "Port": 8472},
        }
    }  # fmt: skip
    for n in numbers:
        found[f"/coreos.com/network/subnets/10.5.{n}.0-24"] = {
            "PublicIP": f"192.0.2.{n}",
            "PublicIPv6": None,
            "BackendType": "vxlan",
            "BackendData": {"VNI": 1, "VtepMAC": f"8a:00:00:00:00:{n:02x}"},
        } | changes
    return found


def as_etcd(found: dict[str, Any]) -> str:
    """As `etcdctl get --prefix … -w json` prints them."""

    def coded(text: str) -> str:
        return base64.b64encode(text.encode()).decode()

    return json.dumps({"count": len(found), "kvs": [
        {"key": coded(key), "value": coded(json.dumps(value)), "lease": 7} for key, value in found.items()
    ]})  # fmt: skip
