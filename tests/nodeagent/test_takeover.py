"""Flannel's device, rows, rules and files become ours under traffic of real pods, and go back."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest

from deploy.lab.machines.flannel import DEVICE, FlannelNode, kubernetes_list
from events.errors import Refused
from nodeagent.dataplane import takeover
from nodeagent.netlink import links
from nodeagent.netlink.links import DeviceSpec
from tests.nodeagent.pods import PLUGINS
from tests.nodeagent.sandbox import inside, sh
from tests.nodeagent.site import ISTHMUS, Flow, Node, Site, site
from tests.waiting import wait_for as until

pytestmark = pytest.mark.slow


class OldSite(Site):
    """A site whose bus starts without a cluster: the adoption defines it."""

    def up(self, program: str = ISTHMUS) -> None:
        with (self.directory / "up.log").open("ab") as log:
            self.controller = subprocess.Popen(
                [program, "up", "--data", str(self.directory / "up"), "--host", "10.0.0.254", "--http", "off"],
                stdout=log, stderr=log,
            )  # fmt: skip


def old_node(node: Node) -> FlannelNode:
    return FlannelNode(node.name, node.number, node.underlay)


def install(node: Node, others: list[FlannelNode]) -> FlannelNode:
    """What flannel has done on this node by now."""
    old = old_node(node)
    ip, bridge = old.device(), list[str]()
    for other in others:
        if other.name != node.name:
            rows = old.rows_towards(other)
            ip += rows[0]
            bridge += rows[1]
    for program, lines in (("ip", ip), ("bridge", bridge)):
        batch(node, [program, "-batch", "-"], "\n".join(lines))
    write_rules(node, old)
    sh(f"ip netns exec {node.name} sysctl -qw net.ipv4.ip_forward=1")
    (node.directory / "cni").mkdir()
    (node.directory / "cni" / "10-flannel.conflist").write_text(old.conflist())
    return old


FORMS = {1: "iptables-nft", 2: "iptables-legacy", 3: "nft"}
"""By which program flannel wrote its rules on each node: the three ways that there are."""


def write_rules(node: Node, old: FlannelNode) -> None:
    form = FORMS[node.number]
    if form == "nft":
        batch(node, ["nft", "-f", "-"], old.nft_rules())
    else:
        batch(node, [f"{form}-restore", "--noflush"], old.rules())


def flannels_rules(node: Node) -> int:
    """How many rules of flannel masquerade, in whatever form it wrote them."""
    saved = node.run("iptables-nft-save") + node.run("iptables-legacy-save")
    own = node.run("nft list ruleset")
    table = own.partition("table ip flannel-ipv4")[2].partition("chain forward")[0]
    return saved.count("-A FLANNEL-POSTRTG") + table.count("return") + table.count("masquerade")


def batch(node: Node, command: list[str], text: str) -> str:
    done = subprocess.run(
        ["ip", "netns", "exec", node.name, *command],
        input=text + "\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def old_pod(node: Node, name: str) -> str:
    """A pod on flannel's bridge, by the real plugin; its address."""
    sh(f"ip netns add {name} && ip -n {name} link set lo up")
    config = old_node(node).bridge_configuration(str(node.directory / "networks"))
    return attach(node, name, config)


def attach(node: Node, name: str, config: dict[str, Any]) -> str:
    done = subprocess.run(
        ["ip", "netns", "exec", node.name, f"{PLUGINS}/{config['type']}"],
        input=json.dumps(config), capture_output=True, text=True, check=False,
        env={**os.environ, "CNI_COMMAND": "ADD", "CNI_CONTAINERID": name, "CNI_IFNAME": "eth0",
             "CNI_NETNS": f"/run/netns/{name}", "CNI_PATH": PLUGINS},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return str(json.loads(done.stdout)["ips"][0]["address"]).partition("/")[0]


def take(place: Site) -> str:
    """The line that starts an agent on a node, unless it runs."""
    own = f"{place.directory}/{{node}}"
    return (
        f"[ -e {own}/pid ] && kill -0 $(cat {own}/pid) 2>/dev/null || {{ "
        f"{ISTHMUS} agent --bus {place.bus} --node {{node}} --uid {{uid}} --kind {{kind}} --underlay eth0 "
        f"--take-over {{device}} --state-dir {own}/state --cni-dir {own}/cni --cni-data-dir {own}/networks "
        f"--metrics off --heartbeat 0.5 --resync 2 >>{own}/agent.log 2>&1 </dev/null & echo $! >{own}/pid; }}"
    )


def give_back(place: Site) -> str:
    own = f"{place.directory}/{{node}}"
    return f"{ISTHMUS} agent give-back --yes --state-dir {own}/state --cni-dir {own}/cni"


def adopting(place: Site, verb: str, *arguments: str) -> list[str]:
    """The command line of a verb that works on nodes: nothing but namespaces lies between."""
    own = f"{place.directory}/{{node}}"
    give = f"[ ! -e {own}/pid ] || kill $(cat {own}/pid); rm -f {own}/pid; "
    give += f"for i in 1 2 3 4 5 6 7 8 9; do {give_back(place)} && exit 0; sleep 0.3; done; exit 1"
    how = ("--on-node", "ip netns exec {node} sh -c", "--take", take(place), "--give", give, "--pings", "3")
    return [ISTHMUS, "adopt", verb, "--yes", "--bus", place.bus, *how, *arguments]


def adopt(place: Site, verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    line = adopting(place, verb, *arguments)
    return subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)


def progress(plan: Path, node: str) -> str:
    """What the run has noted of a node."""
    file = plan.with_name(f"{plan.name}.progress")
    found = json.loads(file.read_text())["nodes"] if file.exists() else {}
    return str(found.get(node, {}).get("state", ""))


def filled(place: Site, node: Node) -> str:
    words = {"node": node.name, "uid": old_node(node).uid, "kind": "external", "device": DEVICE}
    line = take(place)
    for key, value in words.items():
        line = line.replace("{" + key + "}", value)
    return line


def running(node: Node) -> bool:
    """Whether the agent that the pid file names runs (a process that nobody waits for stays as a zombie)."""
    stat = Path(f"/proc/{(node.directory / 'pid').read_text().strip()}/stat")
    return stat.exists() and stat.read_text().split()[2] != "Z"


def settled(node: Node) -> bool:
    """Every row is ours: the device, routes and neighbours with our mark, no rule of flannel."""
    routes = node.run("ip -4 route show").splitlines()
    neighbours = node.run("ip neigh show dev isthmus nud permanent").splitlines()
    over = [route for route in routes if " dev isthmus " in f"{route} "]
    return (
        bool(over)
        and all("proto 84" in route for route in over)
        and all("proto 84" in row for row in neighbours)
        and not flannels_rules(node)
        and (node.directory / "cni" / "10-isthmus.conflist").exists()
        and not (node.directory / "cni" / "10-flannel.conflist").exists()
    )


def device_of(node: Node, name: str) -> tuple[str, str]:
    """Index and MAC of the tunnel device, by any of its names."""
    shown = json.loads(node.run(f"ip -j -d link show {name}"))[0]
    return shown["ifindex"], shown["address"]


@inside
def test_three_nodes_are_taken_over_and_given_back_without_a_lost_packet() -> None:
    with site("a", "b", "c", start=False, kind=OldSite) as place:
        nodes = list(place.nodes.values())
        old = [old_node(node) for node in nodes]
        for node in nodes:
            install(node, old)
        pods = {node.name: (f"pod-{node.name}", old_pod(node, f"pod-{node.name}")) for node in nodes}
        devices = {node.name: device_of(node, DEVICE) for node in nodes}
        listed, plan = place.directory / "nodes.json", place.directory / "plan.json"
        listed.write_text(kubernetes_list(old))
        sh(f"{ISTHMUS} adopt plan --nodes {listed} --to {plan}")
        until(lambda: place.isthmus("cluster", "show").returncode == 0, "the controller answers")
        ran = place.isthmus("adopt", "run", str(plan), "--yes")
        assert ran.returncode == 0, ran.stdout + ran.stderr

        # A real loss, one way and in the middle: what comes out of the device by its new name is dropped.
        for way in ("PREROUTING -i", "POSTROUTING -o")[: 2 if os.environ.get("ISTHMUS_TEST_KILLS") else 1]:
            nodes[1].run(f"iptables -t mangle -A {way} isthmus -p icmp -j DROP")
            halted = adopt(place, "run", str(plan), "--node", "b")
            assert halted.returncode == 1
            assert "probes lost packets" in halted.stderr, halted.stderr
            assert "10.42.2.2 → 10.42." in halted.stderr  # from inside of the pod
            assert "it was given back" in halted.stderr
            assert device_of(nodes[1], DEVICE) == devices["b"]
            assert flannels_rules(nodes[1]) == 6
            assert "probes lost packets" in place.isthmus("adopt", "status", str(plan)).stdout
            assert progress(plan, "c") == ""
            nodes[1].run(f"iptables -t mangle -D {way} isthmus -p icmp -j DROP")
        # Without a single probe that passes, and on a node that is not reached, nothing is touched.
        deaf = adopt(place, "run", str(plan), "--node", "b", "--on-node", "false")
        assert "no line can be run on 1 of 1 nodes" in deaf.stderr
        nodes[1].run("iptables -t raw -I PREROUTING -p icmp -j DROP")
        blind = adopt(place, "run", str(plan), "--node", "b")
        assert "no loss could be seen" in blind.stderr
        nodes[1].run("iptables -t raw -D PREROUTING -p icmp -j DROP")
        assert device_of(nodes[1], DEVICE) == devices["b"]

        flows = {
            (one, other): Flow(pods[one][0], pods[one][1], pods[other][1], 0.01)
            for one in pods
            for other in pods
            if one != other
        }
        # No agent comes: the node is given back by itself, and the run halts.
        halted = adopt(place, "run", str(plan), "--node", "a", "--take", "true", "--within", "1")
        assert halted.returncode == 1
        assert "adopt_halted" in halted.stderr
        assert "not ready" in place.isthmus("adopt", "status", str(plan)).stdout
        # Cut off in the middle of a node, and run again.
        with subprocess.Popen(
            adopting(place, "run", str(plan)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as cut:
            until(lambda: progress(plan, "b") == "taking", "the second node is being taken over", 60)
            cut.kill()
        assert progress(plan, "a") == "over"
        # An agent that is killed leaves its rows, and the next one goes on.
        sh(f"kill -9 $(cat {nodes[0].directory}/pid)")
        until(lambda: not running(nodes[0]), "it is gone")
        line = filled(place, nodes[0])
        subprocess.run(["ip", "netns", "exec", "a", "sh", "-c", line], check=True, timeout=30)
        ran = adopt(place, "run", str(plan))
        assert ran.returncode == 0, ran.stdout + ran.stderr
        new: list[str] = []
        for node in nodes:
            until(lambda: settled(node), f"{node.name} is ours", 30)  # noqa: B023
            assert device_of(node, "isthmus") == device_of(node, DEVICE) == devices[node.name]
            new.append(new_pod(node))
        status = json.loads(place.isthmus("adopt", "status", str(plan), "--json").stdout)
        assert status["taken over"] == 3, status
        # A new pod speaks with the old one on its node and with all others, both ways.
        for node, address in zip(nodes, new, strict=True):
            for name, target in pods.values():
                sh(f"ip netns exec new-{node.name} ping -c1 -W2 {target}")
                sh(f"ip netns exec {name} ping -c1 -W2 {address}")
        back = adopt(place, "rollback", str(plan))
        assert back.returncode == 0, back.stdout + back.stderr
        assert "3 nodes were given back" in back.stdout
        for node in nodes:
            assert device_of(node, DEVICE) == devices[node.name]
            routes = node.run("ip -4 route show")
            assert "proto 84" not in routes
            assert len(re.findall(r"via 10\.42\.\d+\.0 dev flannel\.1 onlink", routes)) == 2
            assert flannels_rules(node) == 6
            assert node.run("nft list tables").count("inet isthmus") == 0
            assert [each.name for each in (node.directory / "cni").iterdir()] == ["10-flannel.conflist"]
            assert "nothing of ours" in node.run(give_back(place).replace("{node}", node.name))
        for (one, other), flow in flows.items():
            flow.stop()
            assert flow.lost == 0, f"{one} → {other} lost {flow.lost} of {flow.sent}"
            assert flow.sent > 100
        for name, address in pods.values():
            assert f"inet {address}/24" in sh(f"ip -n {name} addr show dev eth0")


def new_pod(node: Node) -> str:
    """A pod by our conflist; host-local gives it an address that no old pod has."""
    name = f"new-{node.name}"
    sh(f"ip netns add {name} && ip -n {name} link set lo up")
    document = json.loads((node.directory / "cni" / "10-isthmus.conflist").read_text())
    assert document["name"] == "cbr0"
    return attach(node, name, {**document["plugins"][0], "cniVersion": "1.0.0", "name": document["name"]})


@inside
def test_another_device_is_left_as_it_is_and_told() -> None:
    sh("ip link add eth0 type bridge && ip addr add 10.0.0.1/24 dev eth0 && ip link set eth0 up")
    for line in FlannelNode("a", 1, "10.0.0.1").device():
        sh(f"ip {line}")
    wanted = DeviceSpec(
        name="isthmus",
        vni=1,
        port=8472,
        mac="8a:f1:a0:00:00:01",
        local="10.0.0.1",
        address="10.42.1.0",
        mtu=1450,
    )
    others = {"mac": "8a:00:00:00:00:99", "vni": 7, "port": 4789, "local": "10.0.0.9"}
    for field, value in others.items():
        with pytest.raises(Refused) as refused:
            takeover.take(DEVICE, msgspec.structs.replace(wanted, **{field: value}))
        assert refused.value.code == "adopt_device_differs"
        assert str(value) in refused.value.message
        assert links.find("isthmus") is None
    before = links.find(DEVICE)
    assert before is not None
    assert takeover.take(DEVICE, wanted) == [f"{DEVICE} renamed isthmus", f"alternative name {DEVICE}"]
    assert takeover.take(DEVICE, wanted) == []
    links.drop_alternative_name(before.index, DEVICE)  # as if it had been killed between the two steps
    assert takeover.take(DEVICE, wanted) == [f"alternative name {DEVICE}"]
    after = links.find("isthmus")
    assert after is not None
    assert (after.index, after.mac, after.up) == (before.index, before.mac, True)
    assert "isthmus renamed flannel.1" in takeover.give_back("isthmus", DEVICE)
    assert takeover.give_back("isthmus", DEVICE) == []
    assert takeover.take("flannel.7", wanted) == []  # nothing of that name: ours is made as on any node
