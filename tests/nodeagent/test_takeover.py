"""Flannel's device, rows, rules and files become ours under traffic of real pods, and go back."""

from __future__ import annotations

import json
import os
import re
import subprocess

import msgspec
import pytest

from deploy.lab.machines.flannel import DEVICE, FlannelNode, kubernetes_list
from events.errors import Refused
from nodeagent.dataplane import takeover
from nodeagent.netlink import links
from nodeagent.netlink.links import DeviceSpec
from tests.nodeagent.flannel_site import (
    OldSite,
    adopt,
    adopting,
    device_of,
    filled,
    flannels_rules,
    give_back,
    install,
    new_pod,
    old_node,
    old_pod,
    progress,
    running,
    settled,
)
from tests.nodeagent.sandbox import inside, sh
from tests.nodeagent.site import ISTHMUS, Flow, site
from tests.waiting import wait_for as until

pytestmark = pytest.mark.slow


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
        (nodes[0].directory / "pid").unlink()  # of a process that nobody waits for, and that seems to run
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
