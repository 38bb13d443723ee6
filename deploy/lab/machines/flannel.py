"""A node as flannel 0.28 leaves it: device, rows, annotations, files and rules, by our own code.

Made of flannel's documented behaviour (vxlan backend, bridge plugin, iptables), for a lab that has no flannel.
All of it is text: batches for ``ip`` and ``bridge``, a script for ``iptables-restore``, and files.
"""

from __future__ import annotations

import json
from ipaddress import IPv4Network
from typing import Any, NamedTuple

PREFIX = "flannel.alpha.coreos.com"
VNI, PORT = 1, 8472
DEVICE, BRIDGE, NETWORK = "flannel.1", "cni0", "cbr0"
OVERHEAD = 50


class FlannelNode(NamedTuple):
    """A node of a flannel cluster: ``number`` gives its range, its MAC and its place among the others."""

    name: str
    number: int
    underlay: str
    cluster: str = "10.42.0.0/16"
    mtu: int = 1500 - OVERHEAD

    @property
    def range(self) -> str:
        """The node's own /24 of the cluster's network."""
        return str(list(IPv4Network(self.cluster).subnets(new_prefix=24))[self.number])

    @property
    def vtep(self) -> str:
        """The address of the tunnel device: the first of the range."""
        return self.range.partition("/")[0]

    @property
    def gateway(self) -> str:
        """The address of the bridge."""
        return str(IPv4Network(self.range)[1])

    @property
    def mac(self) -> str:
        """A locally administered address, as flannel draws one."""
        return f"8a:f1:a0:00:{self.number >> 8:02x}:{self.number & 255:02x}"

    @property
    def uid(self) -> str:
        """The machine's id, as Kubernetes shows it."""
        return f"f1a{self.number:029x}"

    def annotations(self) -> dict[str, str]:
        """What flannel writes to the node's Node object."""
        data = json.dumps({"VNI": VNI, "VtepMAC": self.mac}, separators=(",", ":"))
        return {
            f"{PREFIX}/backend-data": data,
            f"{PREFIX}/backend-type": "vxlan",
            f"{PREFIX}/kube-subnet-manager": "true",
            f"{PREFIX}/public-ip": self.underlay,
        }

    def kubernetes(self) -> dict[str, Any]:
        """The Node object, as far as a network looks at it."""
        return {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": self.name, "annotations": self.annotations(), "labels": {}},
            "spec": {"podCIDR": self.range, "podCIDRs": [self.range], "providerID": f"k3s://{self.name}"},
            "status": {
                "addresses": [{"type": "InternalIP", "address": self.underlay}],
                "nodeInfo": {"machineID": self.uid, "systemUUID": ""},
            },
        }

    def device(self) -> list[str]:
        """``ip -batch``: the tunnel device."""
        return [
            (
                f"link add {DEVICE} address {self.mac} mtu {self.mtu} type vxlan id {VNI} "
                f"local {self.underlay} dev eth0 dstport {PORT} nolearning"
            ),
            f"addr add {self.vtep}/32 dev {DEVICE}",
            f"link set {DEVICE} up",
        ]

    def rows_towards(self, other: FlannelNode) -> tuple[list[str], list[str]]:
        """``ip -batch`` and ``bridge -batch``: what flannel writes for another node's lease."""
        return (
            [
                f"neigh replace {other.vtep} lladdr {other.mac} dev {DEVICE} nud permanent",
                f"route replace {other.range} via {other.vtep} dev {DEVICE} onlink",
            ],
            [f"fdb replace {other.mac} dev {DEVICE} dst {other.underlay} self permanent"],
        )

    def rules(self) -> str:
        """``iptables-restore --noflush``: masquerade and forwarding."""
        mine, all_ = self.range, self.cluster
        return "\n".join(
            [
                "*nat",
                ":FLANNEL-POSTRTG - [0:0]",
                '-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG',
                "-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -j RETURN",
                f"-A FLANNEL-POSTRTG -s {mine} -d {all_} -j RETURN",
                f"-A FLANNEL-POSTRTG -s {all_} -d {mine} -j RETURN",
                f"-A FLANNEL-POSTRTG ! -s {all_} -d {mine} -j RETURN",
                f"-A FLANNEL-POSTRTG -s {all_} ! -d 224.0.0.0/4 -j MASQUERADE --random-fully",
                f"-A FLANNEL-POSTRTG ! -s {all_} -d {all_} -j MASQUERADE --random-fully",
                "COMMIT",
                "*filter",
                ":FLANNEL-FWD - [0:0]",
                '-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD',
                f"-A FLANNEL-FWD -s {all_} -j ACCEPT",
                f"-A FLANNEL-FWD -d {all_} -j ACCEPT",
                "COMMIT",
                "",
            ]
        )

    def nft_rules(self) -> str:
        """``nft -f``: the same where flannel was asked for nftables (``EnableNFTables``)."""
        mine, all_ = self.range, self.cluster
        return f"""\
table ip flannel-ipv4 {{
  chain postrtg {{
    type nat hook postrouting priority srcnat; policy accept;
    meta mark & 0x4000 == 0x4000 return
    ip saddr {mine} ip daddr {all_} return
    ip saddr {all_} ip daddr {mine} return
    ip saddr != {all_} ip daddr {mine} return
    ip saddr {all_} ip daddr != 224.0.0.0/4 masquerade fully-random
    ip saddr != {all_} ip daddr {all_} masquerade fully-random
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    ip saddr {all_} accept
    ip daddr {all_} accept
  }}
}}
"""

    def subnet_env(self) -> str:
        """``/run/flannel/subnet.env``."""
        return (
            f"FLANNEL_NETWORK={self.cluster}\nFLANNEL_SUBNET={self.gateway}/24\n"
            f"FLANNEL_MTU={self.mtu}\nFLANNEL_IPMASQ=true\n"
        )

    def conflist(self) -> str:
        """``10-flannel.conflist``."""
        plugins = [
            {"type": "flannel", "delegate": {"hairpinMode": True, "isDefaultGateway": True}},
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ]
        return json.dumps({"name": NETWORK, "cniVersion": "0.3.1", "plugins": plugins}, indent=2) + "\n"

    def bridge_configuration(self, data_dir: str) -> dict[str, Any]:
        """What flannel's plugin asks of the bridge plugin for one pod."""
        return {
            "cniVersion": "0.3.1",
            "name": NETWORK,
            "type": "bridge",
            "bridge": BRIDGE,
            "mtu": self.mtu,
            "isGateway": True,
            "isDefaultGateway": True,
            "ipMasq": False,
            "hairpinMode": True,
            "ipam": {
                "type": "host-local",
                "dataDir": data_dir,
                "ranges": [[{"subnet": self.range}]],
                "routes": [{"dst": self.cluster}],
            },
        }


def kubernetes_list(nodes: list[FlannelNode]) -> str:
    """As ``kubectl get nodes -o json`` prints them."""
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": [node.kubernetes() for node in nodes]})
