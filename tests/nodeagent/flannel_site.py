"""A site whose nodes are as flannel left them, each with its rules in another form; the operator's lines."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from deploy.lab.machines.flannel import DEVICE, FlannelNode
from tests.nodeagent.pods import PLUGINS
from tests.nodeagent.sandbox import sh
from tests.nodeagent.site import ISTHMUS, Node, Site


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


def take(place: Site, program: str = ISTHMUS) -> str:
    """The line that starts an agent on a node, unless it runs."""
    own = f"{place.directory}/{{node}}"
    return (
        f"[ -e {own}/pid ] && kill -0 $(cat {own}/pid) 2>/dev/null || {{ "
        f"{program} agent --bus {place.bus} --node {{node}} --uid {{uid}} --kind {{kind}} --underlay eth0 "
        f"--take-over {{device}} --state-dir {own}/state --cni-dir {own}/cni --cni-data-dir {own}/networks "
        f"--metrics off --heartbeat 0.5 --resync 2 >>{own}/agent.log 2>&1 </dev/null & echo $! >{own}/pid; }}"
    )


def give_back(place: Site, program: str = ISTHMUS) -> str:
    """The line that gives a node back, its agent being stopped."""
    own = f"{place.directory}/{{node}}"
    return f"{program} agent give-back --yes --state-dir {own}/state --cni-dir {own}/cni"


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


def filled(place: Site, node: Node, program: str = ISTHMUS) -> str:
    """The line that starts the agent, with the node's own words."""
    words = {"node": node.name, "uid": old_node(node).uid, "kind": "external", "device": DEVICE}
    line = take(place, program)
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


def new_pod(node: Node) -> str:
    """A pod by our conflist; host-local gives it an address that no old pod has."""
    name = f"new-{node.name}"
    sh(f"ip netns add {name} && ip -n {name} link set lo up")
    document = json.loads((node.directory / "cni" / "10-isthmus.conflist").read_text())
    assert document["name"] == "cbr0"
    return attach(node, name, {**document["plugins"][0], "cniVersion": "1.0.0", "name": document["name"]})
