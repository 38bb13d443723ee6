"""The same small network twice, with and without the fast path, and packets sent into both byte by byte.

A pod on host 1, two on host 2, one on a third host, to which things happen, and a stranger (10.0.0.66) on
the same underlay. Everything runs on one CPU, so that a packet and its answers have arrived when the
marker does that follows it through the slowest way.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from nodeagent.fastpath.programs import Programs
from nodeagent.membership.peers import Peer, PeerChange
from tests.nodeagent import host
from tests.nodeagent.sandbox import sh

ETH_IP, ETH_ARP = 0x0800, 0x0806
MAPPED_PORT = 40000
"""Where host 3 is seen, when it is behind a NAT."""
_ETH_ALL = 3
_MARKER = b"marker of the twins"
QUIET = "table ip quiet { chain out { type filter hook output priority 0; drop; }; }"
WIREGUARD = "isthmus-wg0"
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 1, 0x1000
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def within(name: str) -> Iterator[None]:
    """This thread in another network namespace."""
    own = Path("/proc/thread-self/ns/net")
    with own.open("rb") as here, Path(f"/run/netns/{name}").open("rb") as there:
        assert _libc.setns(there.fileno(), _CLONE_NEWNET) == 0
        try:
            yield
        finally:
            assert _libc.setns(here.fileno(), _CLONE_NEWNET) == 0


def _tun(name: str) -> int:
    """A device whose packets this process gets and gives."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return device


def checksum(data: bytes) -> int:
    """The Internet checksum."""
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ipv4(
    source: str,
    target: str,
    payload: bytes,
    *,
    protocol: int = 17,
    ttl: int = 64,
    tos: int = 0,
    fragment: int = 0,
    options: bytes = b"",
    length: int | None = None,
    broken: bool = False,
) -> bytes:
    """An IP packet; ``fragment`` is the field with its flags, ``length`` another total length than true."""
    size = 20 + len(options)
    total = size + len(payload) if length is None else length
    head = struct.pack(
        "!BBHHHBBH4s4s", 0x40 | size // 4, tos, total, 7, fragment, ttl, protocol, 0,
        socket.inet_aton(source), socket.inet_aton(target),
    )  # fmt: skip
    whole = head + options
    sum_ = checksum(whole) ^ (0x1111 if broken else 0)
    return whole[:10] + sum_.to_bytes(2, "big") + whole[12:] + payload


def _sealed(source: str, target: str, protocol: int, segment: bytes, place: int) -> bytes:
    pseudo = (
        socket.inet_aton(source) + socket.inet_aton(target) + struct.pack("!BBH", 0, protocol, len(segment))
    )
    found = checksum(pseudo + segment) or 0xFFFF
    return segment[:place] + found.to_bytes(2, "big") + segment[place + 2 :]


def udp(source: str, target: str, ports: tuple[int, int], data: bytes, *, sealed: bool = True) -> bytes:
    """A UDP datagram; without a checksum if not ``sealed``."""
    segment = struct.pack("!HHHH", *ports, 8 + len(data), 0) + data
    return _sealed(source, target, 17, segment, 6) if sealed else segment


def tcp(source: str, target: str, ports: tuple[int, int], flags: int, data: bytes, sequence: int = 1) -> bytes:
    """A TCP segment."""
    segment = struct.pack("!HHIIBBHHH", *ports, sequence, 1, 0x50, flags, 65535, 0, 0) + data
    return _sealed(source, target, 6, segment, 16)


def vxlan(
    inner: bytes, *, source_mac: str, target_mac: str, vni: int = host.VNI, flags: int = 0x08000000
) -> bytes:
    """The payload of an outer UDP datagram."""
    ethernet = _mac(target_mac) + _mac(source_mac) + ETH_IP.to_bytes(2, "big")
    return struct.pack("!II", flags, vni << 8) + ethernet + inner


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _comparable(packet: bytes) -> bytes:
    """A packet without what the kernel draws by lot: the identifier of its answers, and so the checksum."""
    if packet[9] != socket.IPPROTO_ICMP:
        return packet
    return packet[:4] + bytes(2) + packet[6:10] + bytes(2) + packet[12:]


class Network:
    """One of the twins. Names of namespaces begin with ``name``."""

    PODS: ClassVar[dict[str, tuple[int, str]]] = {
        "one": (1, "172.16.1.2"),
        "two": (2, "172.16.2.2"),
        "other": (2, "172.16.2.3"),
        "third": (3, "172.16.3.5"),
    }

    def __init__(self, name: str, *, fast: bool) -> None:
        self.name, self.fast = name, fast
        self._markers = 20000
        self.programs: dict[int, Programs] = {}
        self._plugs: dict[str, socket.socket] = {}
        self._macs: dict[str, tuple[bytes, bytes]] = {}
        self._third: Peer | None = host.peer(3)
        self._tuns: dict[int, int] = {}
        wire = f"{name}wire"
        sh(f"ip netns add {wire} && ip -n {wire} link add w type bridge && ip -n {wire} link set w up")
        for number in (1, 2, 3, 66):
            here = self.host(number)
            sh(f"""set -e; ip netns add {here}; ip -n {here} link set lo up
                ip link add v{number} netns {wire} type veth peer name u netns {here}
                ip -n {wire} link set v{number} master w up; ip -n {here} link set u up
                ip -n {here} addr add 10.0.0.{number}/24 dev u
                ip netns exec {here} sysctl -qw net.ipv4.ip_forward=1 net.ipv4.icmp_ratelimit=0 \
                    net.ipv4.icmp_msgs_per_sec=100000 net.ipv4.icmp_msgs_burst=100000""")
        sh(f"ip -n {wire} link set v66 mtu 9000; ip -n {self.host(66)} link set u mtu 9000")
        for pod, (number, address) in self.PODS.items():
            here, there, gateway = self.host(number), name + pod, f"172.16.{number}.1"
            mtu = 1600 if number == 1 else 1450  # one sends what is too large for the tunnel
            sh(f"""set -e; ip netns add {there}; ip -n {there} link set lo up
                ip link add {pod} netns {here} type veth peer name eth0 netns {there}
                ip -n {here} link set {pod} mtu {mtu} up; ip -n {there} link set eth0 mtu {mtu} up
                ip -n {here} addr add {gateway}/32 dev {pod}; ip -n {here} route add {address}/32 dev {pod}
                ip -n {there} addr add {address}/32 dev eth0; ip -n {there} route add {gateway} dev eth0
                ip -n {there} route add default via {gateway}
                ip netns exec {there} nft '{QUIET}'
                """)  # pods send nothing of their own: no resets, no "port unreachable"
        for number in (1, 2, 3):
            pods = {pod: pod for pod, (place, _) in self.PODS.items() if place == number}
            with within(self.host(number)):
                loaded = host.prepare(number, *({1, 2, 3} - {number}), fast=fast, pods=pods)
            if loaded is not None:
                self.programs[number] = loaded
        for place, device in (
            *((name + pod, "eth0") for pod in self.PODS),
            (self.host(3), "u"),
            (self.host(66), "u"),
        ):
            with within(place):
                plug = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_ALL))
                plug.bind((device, 0))
                plug.setblocking(False)
                self._plugs[place.removeprefix(name)] = plug
        for pod, (number, _) in self.PODS.items():
            own = sh(f"ip netns exec {name}{pod} cat /sys/class/net/eth0/address").strip()
            gate = sh(f"ip netns exec {self.host(number)} cat /sys/class/net/{pod}/address").strip()
            self._macs[pod] = _mac(own), _mac(gate)
            address = f"172.16.{number}.1"
            sh(f"ip -n {name}{pod} neigh replace {address} lladdr {gate} dev eth0 nud permanent")
            there = self.PODS[pod][1]
            sh(f"ip -n {self.host(number)} neigh replace {there} lladdr {own} dev {pod} nud permanent")
        self._underlay = {
            number: _mac(sh(f"ip netns exec {self.host(number)} cat /sys/class/net/u/address").strip())
            for number in (1, 2, 3, 66)
        }
        for here in (1, 2, 3, 66):
            for there in {1, 2, 3, 66} - {here}:
                for address in (there, 30 + there):
                    sh(f"ip -n {self.host(here)} neigh replace 10.0.0.{address} lladdr "
                       f"{self._underlay[there].hex(':')} dev u nud permanent")  # fmt: skip
        sh(f"ip -n {self.host(3)} addr add 10.0.0.33/24 dev u")

    def host(self, number: int) -> str:
        """The namespace of a host."""
        return f"{self.name}h{number}"

    def run(self, place: str, command: str) -> str:
        """A shell line in one of its namespaces."""
        return sh(f"ip netns exec {self.name}{place} {command}")

    def void(self) -> None:
        """What the agent does when it hears of a change."""
        for number, loaded in self.programs.items():
            words = struct.unpack_from("=III", loaded.told())
            loaded.tell(host.record(number, words[1], words[2], generation=words[0] + 1))

    def third(self, peer: Peer | None) -> None:
        """What the log says of the third host from now on; None: it has left, or its range was taken."""
        if peer is not None:
            with within(self.host(3)):
                host.become(3, peer, 1, 2, loaded=self.programs.get(3))
        for number in (1, 2):
            with within(self.host(number)):
                host.follow(PeerChange(self._third, peer), self.programs.get(number))
        self._third = peer

    def narrow(self, mtu: int) -> None:
        """Host 1 finds that the way to the third passes no more than that; 0: as much as any."""
        if self._third is not None:
            with within(self.host(1)):
                host.narrow(self._third, mtu, self.programs.get(1))

    def protect_anew(self) -> None:
        """Host 1 deletes its table and writes it again, for the members of now."""
        members = [2, *([3] if self._third is not None and self._third.underlay == "10.0.0.3" else [])]
        further = [33] if self._third is not None and self._third.underlay == "10.0.0.33" else []
        with within(self.host(1)):
            sh("nft delete table inet isthmus")
            self.void()
            host.protect(1, *members, *further)
        self.void()

    def lead_by_another_link(self) -> None:
        """Hosts 1 and 2 send each other's packets by a device of their own beside ``u``."""
        one, two = self.host(1), self.host(2)
        sh(f"ip -n {one} link add more type veth peer name more netns {two}")
        for here, there, number in ((one, two, 2), (two, one, 1)):
            mac = sh(f"ip netns exec {there} cat /sys/class/net/more/address").strip()
            sh(f"""set -e; ip -n {here} link set more up; ip -n {here} route add 10.0.0.{number} dev more
                ip -n {here} neigh replace 10.0.0.{number} lladdr {mac} dev more nud permanent
                ip netns exec {here} sysctl -qw net.ipv4.conf.more.rp_filter=0""")

    def lead_directly(self) -> None:
        """Hosts 1 and 3 reach each other without the tunnel from now on."""
        for number, other in ((1, 3), (3, 1)):
            with within(self.host(number)):
                host.lead_directly(number, other, 2, loaded=self.programs.get(number))

    def lead_through_nat(self, seen: int = MAPPED_PORT) -> None:
        """Hosts 1 and 3 reach each other by the second device; host 1 sees the other at that port."""
        chain = f"""chain f {{ type filter hook forward priority 0;
            ip saddr 10.0.0.3 udp sport {host.PORT} udp dport {host.PORT} @th,0,16 set {seen};
            ip daddr 10.0.0.3 udp dport {seen} @th,16,16 set {host.PORT}; }}"""
        self.run("wire", f"nft 'table bridge nat; delete table bridge nat; table bridge nat {{ {chain}; }}'")
        for number, other, port in ((1, 3, seen), (3, 1, host.PORT)):
            with within(self.host(number)):
                host.lead_through_nat(number, other, 2, port=port, loaded=self.programs.get(number))

    def lead_into_wireguard(self) -> None:
        """Hosts 1 and 3 reach each other by a device without Ethernet, which :meth:`_carry` stands in for."""
        for number, other in ((1, 3), (3, 1)):
            with within(self.host(number)):
                self._tuns[number] = _tun(WIREGUARD)
                sh(f"ip link set {WIREGUARD} mtu 1440 up; ip addr add 172.16.{number}.0/32 dev {WIREGUARD}")
                host.lead_into_wireguard(number, other, 2, name=WIREGUARD, loaded=self.programs.get(number))

    def _carry(self) -> bool:
        """Give what one end's program would encrypt to the other end, as the key allows; whether any was."""
        found = False
        for number, other in ((1, 3), (3, 1)):
            with contextlib.suppress(BlockingIOError, KeyError):
                while True:
                    packet = os.read(self._tuns[number], 1 << 16)
                    found = True
                    if packet[12:15] == bytes((172, 16, number)):
                        os.write(self._tuns[other], packet)
        return found

    def from_wireguard(self, target: int, packet: bytes) -> dict[str, list[bytes]]:
        """A host's program has decrypted that; what arrives where."""
        self._drain()
        os.write(self._tuns[target], packet)
        return self._drain(marked=True)

    def counters(self, number: int) -> dict[str, int]:
        """The counters of a host's programs."""
        return self.programs[number].counters()

    def from_pod(
        self, pod: str, packet: bytes, *, stranger: bool = False, kind: int = ETH_IP
    ) -> dict[str, list[bytes]]:
        """A pod sends that; what arrives where. ``stranger``: to a MAC that is not the host's."""
        own, gate = self._macs[pod]
        target = bytes.fromhex("020000000009") if stranger else gate
        return self._send(pod, target + own + kind.to_bytes(2, "big") + packet)

    def from_underlay(self, sender: int, target: int, packet: bytes) -> dict[str, list[bytes]]:
        """A host's link carries that to another host; what arrives where."""
        head = self._underlay[target] + self._underlay[sender] + ETH_IP.to_bytes(2, "big")
        return self._send(f"h{sender}", head + packet)

    def _send(self, place: str, frame: bytes) -> dict[str, list[bytes]]:
        self._drain()
        self._plugs[place].send(frame)
        return self._drain(marked=True)

    def _drain(self, *, marked: bool = False) -> dict[str, list[bytes]]:
        """What has arrived in the pods, without Ethernet header; behind a marker, all that was under way."""
        if marked:
            self._markers = self._markers + 1 if self._markers < 60000 else 20000
            own, gate = self._macs["one"]
            source, target = self.PODS["one"][1], self.PODS["two"][1]
            packet = ipv4(source, target, udp(source, target, (self._markers, 9), _MARKER))
            self._plugs["one"].send(gate + own + ETH_IP.to_bytes(2, "big") + packet)
        found: dict[str, list[bytes]] = {}
        deadline = time.monotonic() + 5
        while marked is not None:
            for place, plug in self._plugs.items():
                while True:
                    assert time.monotonic() < deadline, f"packets go round in {self.name} and do not end"
                    try:
                        frame, about = plug.recvfrom(1 << 17)
                    except BlockingIOError:
                        break
                    if about[2] in {socket.PACKET_OUTGOING, socket.PACKET_OTHERHOST} or about[1] != ETH_IP:
                        continue
                    if _MARKER in frame:
                        marked = False
                    elif place in self.PODS:
                        found.setdefault(place, []).append(_comparable(frame[14:]))
            if not marked and self._carry():
                rest = self._drain(marked=True)  # what it was given to is behind another marker
                return {
                    place: found.get(place, []) + rest.get(place, []) for place in found.keys() | rest.keys()
                }
            if not marked:
                return found
            assert time.monotonic() < deadline, f"no marker came through {self.name}"
        return found


@contextlib.contextmanager
def twins() -> Iterator[tuple[Network, Network]]:
    """Without and with the fast path; the namespaces end with the sandbox."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    yield Network("s", fast=False), Network("f", fast=True)
