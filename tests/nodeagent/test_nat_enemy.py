"""A member with valid keys, and a stranger without: whose place at a peer they can move, and what they get."""

from __future__ import annotations

import json
import sys

import msgspec
import pytest

from nodeagent.membership.cache import Cache
from tests.nodeagent.nat_enemy import Facts
from tests.nodeagent.nat_site import Branch, branch_nodes, mapped, place_of
from tests.nodeagent.pods import Pod
from tests.nodeagent.sandbox import inside
from tests.nodeagent.site import Node, site
from tests.nodeagent.talk import program_in, talk
from tests.waiting import wait_for as until

pytestmark = pytest.mark.slow

RECORD = """
import socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
s.bind(("eth0", 0x0800))
found = []
print("ready", flush=True)
while len(found) < 6:
    packet, where = s.recvfrom(2048)
    if packet[36:47] == b"isthmus-nat" and where[2] == 0 and packet[12:16] == socket.inet_aton(sys.argv[1]):
        found.append(packet.hex())
print("\\n".join(found))
"""


def facts(target: Node, victim: Node, me: Node) -> Facts:
    """As the log has it, of which every member has a copy."""
    view = Cache(target.directory / "state").load("isthmus", target.name, target.status()["uid"])
    members = {
        one.node: msgspec.structs.replace(one, key=view.members[one.node].key)
        for one in (*view.peers, *((view.own,) if view.own is not None else ()))
    }
    address, _, port = place_of(target, victim).partition(":")
    return Facts(
        me=members[me.name], key_file=str(me.directory / "state" / "node.key"),
        target=members[target.name], victim=members[victim.name], place=(address, int(port)),
    )  # fmt: skip


def attack(where: Node, known: Facts) -> dict[str, object]:
    text = msgspec.json.encode(known).decode()
    found: dict[str, object] = json.loads(where.run(f"{sys.executable} -m tests.nodeagent.nat_enemy '{text}'"))
    return found


@inside
def test_a_member_moves_its_own_mapping_and_nobody_elses() -> None:
    with site("a", "m", start=False) as place:
        router = Branch("r", 9)
        a, m = place.nodes.values()
        (b,) = branch_nodes(place, router, "b")
        recorder = program_in("a", RECORD, router.address, wait=True)
        for node in (a, m, b):
            node.start()
        for node in (a, m, b):
            node.ready(2)
        until(lambda: place_of(a, b), "b is seen through its router", 30)
        one, two = Pod(a, "pod-a"), Pod(b, "pod-b")
        recorded = recorder.communicate(timeout=60)[0].split()
        m.stop()  # who has taken m over speaks in its agent's place
        known = msgspec.structs.replace(facts(a, b, m), recorded=recorded)
        before, admitted = place_of(a, b), mapped(a)
        with talk(one, two) as flow:
            start = flow.now()
            found = attack(m, known)
            assert flow.lost(start) == [], "packets go on meanwhile"
        print(found)
        assert place_of(a, b) == before
        assert {name: found[name] for name in ("forged", "replayed", "from another's place", "reflected")} == {
            "forged": 0, "replayed": 0, "from another's place": 0, "reflected": 0
        }  # fmt: skip
        assert found["the same twice"] == 1
        assert found["moved"] is True
        until(lambda: mapped(a) == admitted | {f"{m.underlay}:9999"}, "its own it moves")
        assert place_of(a, m) == f"{m.underlay}:9999"
        assert place_of(a, b) == before
