"""Packets of every kind into two equal networks, one without the fast path: both must do the same with them."""

from __future__ import annotations

import random

from hypothesis import strategies as st

from tests.nodeagent.twins import Network, ipv4, tcp, udp

ONE, TWO, OTHER, THIRD = (address for _, address in Network.PODS.values())
ACK, PUSH, SYN, FIN, RST = 0x10, 0x18, 0x02, 0x11, 0x04
OUTSIDE = "198.51.100.9"


def both(
    pair: tuple[Network, Network], send: str, *arguments: object, **more: object
) -> dict[str, list[bytes]]:
    """Send into both; they must agree on what arrives, to the byte."""
    slow, fast = (_counted(getattr(network, send)(*arguments, **more)) for network in pair)
    assert slow == fast, f"{send} {arguments} {more}\nslow {_hex(slow)}\nfast {_hex(fast)}"
    return dict(slow)


def _counted(found: dict[str, list[bytes]]) -> dict[str, list[bytes]]:
    """Without the stack's "network unreachable": how many of them it sends is limited for the whole machine.

    (``ip_error`` in net/ipv4/route.c; its burst and cost are settings of the initial network namespace alone.)
    """
    kept = {
        place: [
            packet
            for packet in packets
            if not (packet[9] == 1 and packet[(packet[0] & 15) * 4 :][:2] == b"\3\0")
        ]
        for place, packets in found.items()
    }
    return {place: packets for place, packets in kept.items() if packets}


def _hex(found: dict[str, list[bytes]]) -> dict[str, list[str]]:
    return {place: [packet.hex() for packet in packets] for place, packets in found.items()}


def warm(pair: tuple[Network, Network], ports: tuple[int, int], protocol: str = "udp", to: str = "two") -> None:
    """A flow between pod one and another that the stack has let through in both directions."""
    there = Network.PODS[to][1]
    for source, target, ends, pod in ((ONE, there, ports, "one"), (there, ONE, ports[::-1], to)):
        for _ in range(3):
            if protocol == "udp":
                packet = ipv4(source, target, udp(source, target, ends, b"warm" * 300))
            else:
                packet = ipv4(source, target, tcp(source, target, ends, ACK, b"warm" * 300), protocol=6)
            assert both(pair, "from_pod", pod, packet)


def used(network: Network, number: int, name: str) -> int:
    return network.counters(number)[name]


packets = st.fixed_dictionaries(
    {
        "protocol": st.sampled_from(["udp", "udp", "tcp", "icmp"]),
        "flags": st.sampled_from([ACK, ACK, PUSH, SYN, FIN, RST, ACK | 0x20, 0, SYN | ACK, 0xD0]),
        "size": st.sampled_from(
            [0, 1, 3, 100, 1394, 1395, 1396, 1397, 1409, 1410, 1411, 1421, 1422, 1423, 1460]
        ),
        "ttl": st.sampled_from([64, 64, 64, 1, 2, 3, 255, 0]),
        "tos": st.sampled_from([0, 0, 1, 2, 3, 0x10, 0xB8, 0xBB]),
        "fragment": st.sampled_from([0, 0, 0x4000, 0x4000, 0x2000, 0x0001, 0x2010, 0x8000]),
        "options": st.sampled_from([b"", b"", b"", b"\x01" * 4, b"\x94\x04\0\0"]),
        "target": st.sampled_from([TWO, TWO, OTHER, "172.16.2.99", "172.16.200.9", "172.16.3.2", OUTSIDE]),
        "source": st.sampled_from([ONE, ONE, ONE, "172.16.1.9", TWO, "10.0.0.1", OUTSIDE]),
        "sealed": st.booleans(),
        "length": st.sampled_from([None, None, None, None, 30, 60]),
        "broken": st.sampled_from([False, False, False, True]),
        "stranger": st.sampled_from([False, False, False, True]),
        "port": st.sampled_from([2000, 2001, 8472]),
    }
)


def made(what: dict[str, object], ports: tuple[int, int]) -> bytes:
    source, target = str(what["source"]), str(what["target"])
    data = random.Random(7).randbytes(int(str(what["size"])))
    if what["protocol"] == "udp":
        number, payload = 17, udp(source, target, ports, data, sealed=bool(what["sealed"]))
    elif what["protocol"] == "tcp":
        number, payload = 6, tcp(source, target, ports, int(str(what["flags"])), data)
    else:
        number, payload = 1, b"\x08\0\xf7\xff\0\0\0\0"
    return ipv4(
        source, target, payload, protocol=number, ttl=int(str(what["ttl"])), tos=int(str(what["tos"])),
        fragment=int(str(what["fragment"])), options=what["options"], length=what["length"],  # type: ignore[arg-type]
        broken=bool(what["broken"]),
    )  # fmt: skip


RULES = {
    "none": "",
    "drops a port": "tcp dport 2001 drop; udp dport 2000 drop",
    "changes the mark of service": "ip dscp set cs3",
    "changes the TTL": "ip ttl set 40",
    "drops a class": "ip dscp ef drop",
    "drops what has come far": "ip ttl < 60 drop",
    "drops what is large": "meta length > 1000 drop",
}


def rules(network: Network, number: int, name: str) -> None:
    """A table of somebody else; the fast path hears of it as the agent does."""
    chain = f"chain f {{ type filter hook forward priority 10; {RULES[name]}; }}"
    text = f"add table inet other; delete table inet other; add table inet other {{ {chain}; }}"
    network.run(f"h{number}", f"nft '{text}'")
    network.void()
