"""Services work through our rules, whoever asks and however kube-proxy is set; ClusterIPs are for the inside.

Sources (pods and nodes on both sides, a node's process bound to its InternalIP, the outside through either
node) times kinds (pod, ClusterIP, NodePort, LoadBalancer, hostPort; externalTrafficPolicy Cluster and Local;
session affinity; hairpin) times detect-local modes times kube-proxy's two backends, with and without the
fast path.
"""

from __future__ import annotations

from tests.nodeagent.sandbox import inside, sh
from tests.nodeagent.service_matrix import CLUSTER, HOST_PORT, NODES, SERVICES, run
from tests.nodeagent.service_network import Question, network


@inside
def test_a_masquerade_that_chose_the_vxlan_port_gets_its_replies() -> None:
    """Other programs' masquerades choose among all ports: through the tunnel, and from a member's address."""
    place = network()
    place.proxy("nftables", "ClusterCIDR", SERVICES, (HOST_PORT,))
    sh("""ip netns exec n2 nft 'add table ip other
        add chain ip other post { type nat hook postrouting priority srcnat - 5; }
        add rule ip other post meta l4proto udp masquerade to :8472'""")
    through = Question("n2", CLUSTER.cluster_ip)
    members = [Question("n2", NODES[1], HOST_PORT.port), Question("q2", NODES[1], CLUSTER.node_port)]
    found = place.ask("udp", [through, *members])
    assert {answer.pod for answer in found.values()} == {"p1"}


@inside
def test_every_service_is_reached_with_kube_proxys_iptables() -> None:
    place = network()
    run(place, lambda mode: place.proxy("iptables", mode, SERVICES, (HOST_PORT,)))


@inside
def test_every_service_is_reached_with_kube_proxys_nftables() -> None:
    place = network()
    run(place, lambda mode: place.proxy("nftables", mode, SERVICES, (HOST_PORT,)))
