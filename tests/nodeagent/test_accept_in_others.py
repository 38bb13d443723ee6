"""Rules of ours in others' forward chains that drop the rest; what is dropped by name stays dropped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket

from nodeagent.conditions import Conditions
from nodeagent.health import accept_in_others, findings
from nodeagent.health.accept_in_others import AcceptInOthers
from nodeagent.privileges import keep_only_net_admin
from tests.nodeagent.sandbox import inside, sh
from tests.nodeagent.twins import within

CONTAINERS = ("172.16.0.0/16",)
POD, OUTSIDE = "172.16.1.2", "192.0.2.2"
FORWARD = "type filter hook forward priority 0;"


def place() -> None:
    """A pod and a host elsewhere, with this namespace between them."""
    sh("sysctl -qw net.ipv4.ip_forward=1")
    for name, address, router in (("pod", POD, "172.16.1.1"), ("far", OUTSIDE, "192.0.2.1")):
        sh(f"""set -e; ip netns add {name}; ip link add v{name} type veth peer name eth0 netns {name}
            ip addr add {router}/24 dev v{name}; ip link set v{name} up
            ip -n {name} addr add {address}/24 dev eth0; ip -n {name} link set eth0 up
            ip -n {name} route add default via {router}""")


def passes(port: int = 80, *, patience_s: float = 0.2) -> bool:
    """Whether a datagram of the pod arrives, and the answer."""
    with within("far"):
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with within("pod"):
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with server, client:
        server.bind((OUTSIDE, port))
        client.settimeout(patience_s)
        server.settimeout(patience_s)
        with contextlib.suppress(OSError):
            client.sendto(b"?", (OUTSIDE, port))
            _, peer = server.recvfrom(10)
            server.sendto(b"!", peer)
            return client.recv(10) == b"!"
    return False


def ours(conditions: Conditions, *, enabled: bool = True) -> AcceptInOthers:
    return AcceptInOthers(conditions, enabled=enabled, containers=lambda: CONTAINERS)


@inside
async def test_packets_pass_where_the_policy_or_the_last_rule_drops() -> None:
    place()
    conditions = Conditions()
    accepting = ours(conditions)
    assert passes(patience_s=5)
    for made, gone in (
        (f"nft 'table inet corp {{ chain fw {{ {FORWARD} policy drop; }}; }}'", "nft delete table inet corp"),
        (
            f"nft 'table inet corp {{ chain fw {{ {FORWARD} udp dport 7 drop; counter reject; }}; }}'",
            "nft delete table inet corp",
        ),
        ("iptables-nft -P FORWARD DROP", "iptables-nft -P FORWARD ACCEPT; iptables-nft -F FORWARD"),
        (
            "iptables-nft -N DOCKER-USER; iptables-nft -A FORWARD -j DOCKER-USER; iptables-nft -P FORWARD DROP",
            "iptables-nft -P FORWARD ACCEPT; iptables-nft -F FORWARD",
        ),
        ("iptables-legacy -P FORWARD DROP", "iptables-legacy -P FORWARD ACCEPT; iptables-legacy -F FORWARD"),
        (
            "iptables-legacy -A FORWARD -p udp --dport 7 -j DROP; iptables-legacy -A FORWARD -j REJECT",
            "iptables-legacy -F FORWARD",
        ),
    ):
        sh(made)
        assert not passes(), made
        (told,) = await findings.filters(CONTAINERS)
        assert (told.level, "--accept-in-others" in told.text) == ("warning", True)
        await accepting.step()
        assert passes(patience_s=5), made
        (told,) = await findings.filters(CONTAINERS)
        assert (told.level, "our rules" in told.text) == ("ok", True)
        before = sh("nft list ruleset")
        await accepting.step()
        written = sh("nft -s list ruleset").count('comment "isthmus"')
        assert written + sh("iptables-legacy-save").count("--comment isthmus") == 2, before
        if "dport 7" in made:
            assert not passes(7), "what is dropped by name stays dropped"
        if "iptables-nft" in made:
            assert "-s 172.16.0.0/16" in sh("iptables-nft -S FORWARD"), "its own tool still reads it"
        assert len(await accept_in_others.remove()) == 1
        assert not passes()
        assert await accept_in_others.remove() == []
        sh(gone)
    assert not conditions.has("other filters")


@inside
async def test_what_is_taken_away_comes_back_but_there_is_no_fight() -> None:
    place()
    sh(f"nft 'table inet corp {{ chain fw {{ {FORWARD} policy drop; }}; }}'")
    conditions = Conditions()
    accepting = ours(conditions)
    for _ in range(3):
        await accepting.step()
        assert not conditions.has("other filters")
        sh("nft flush chain inet corp fw")
    await accepting.step()  # the last that is done at once
    sh("nft flush chain inet corp fw")
    await accepting.step()
    assert conditions.has("other filters")
    assert 'comment "isthmus"' not in sh("nft list ruleset")
    sh("nft delete table inet corp; iptables-legacy -P FORWARD DROP")
    conditions = Conditions()
    accepting = ours(conditions)
    for _ in range(3):
        await accepting.step()
        assert not conditions.has("other filters")
        sh("iptables-legacy -F FORWARD")
    for _ in range(2):
        await accepting.step()
        sh("iptables-legacy -F FORWARD")
    assert conditions.has("other filters")
    sh(f"nft 'table inet corp {{ chain fw {{ {FORWARD} policy drop; }}; }}'")
    sh("nft add rule inet corp fw ip saddr 172.16.0.0/16 counter accept comment isthmus")
    await ours(
        Conditions(), enabled=False
    ).run()  # an agent without the option takes back what one with it left
    assert 'comment "isthmus"' not in sh("nft list ruleset")


@inside
def test_the_older_iptables_is_entered_with_what_the_agent_keeps_and_told_without() -> None:
    place()
    sh("iptables-legacy -P FORWARD DROP")
    pid = os.fork()
    if not pid:
        keep_only_net_admin(legacy=True)
        asyncio.run(ours(Conditions()).step())
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert passes(patience_s=5)
    sh("iptables-legacy -F FORWARD")
    keep_only_net_admin()
    conditions = Conditions()
    asyncio.run(ours(conditions).step())
    assert any("CAP_NET_RAW" in text for text in conditions.sentences())


@inside
async def test_chains_that_drop_nothing_by_themselves_and_our_own_are_left_alone() -> None:
    place()
    sh(f"""nft 'table inet corp {{ chain fw {{ {FORWARD} udp dport 7 drop; accept; }}; }}
        table inet isthmus {{ chain forwarded {{ {FORWARD} policy drop; }}; }}
        table ip6 six {{ chain fw {{ {FORWARD} policy drop; }}; }}'""")
    await ours(Conditions()).step()
    assert "comment" not in sh("nft list ruleset")
    assert [str(chain) for chain in await accept_in_others.look()] == ["chain fw of table inet corp"]
