"""The chains that kube-proxy 1.36 and the ``portmap`` plugin write on a node, in the form and order of theirs.

``iptables`` makes input of ``iptables-nft-restore``, ``nftables`` a script of ``nft``. Only what decides about
packets is there: no health checks, no counters, of Services without endpoints only the drops that they need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

MODES = ("ClusterCIDR", "NodeCIDR", "InterfaceNamePrefix", "none")
"""How kube-proxy tells that traffic is from a pod of this node (``--detect-local-mode``)."""


@dataclass(frozen=True)
class Service:
    """One Service with one port; ``backends`` are (node number, pod address)."""

    name: str
    cluster_ip: str
    node_port: int
    balancer: str
    backends: tuple[tuple[int, str], ...]
    local: bool = False
    """``externalTrafficPolicy: Local``."""
    affinity: bool = False
    """``sessionAffinity: ClientIP``."""
    port: int = 80


@dataclass(frozen=True)
class HostPort:
    """A pod's ``hostPort``, as ``portmap`` serves it."""

    port: int
    address: str
    pod_port: int = 80


@dataclass(frozen=True)
class NodeSide:
    """Whose rules are made."""

    number: int
    mode: str
    cluster_cidr: str
    node_cidr: str
    node_ip: str
    prefix: str = "veth"


def _matches(node: NodeSide, nft: bool) -> tuple[str, str]:
    """Matches "from a pod here" and "from elsewhere"; empty where the mode cannot tell."""
    if node.mode == "none":
        return "", ""
    if node.mode == "InterfaceNamePrefix":
        if nft:
            return f'iifname "{node.prefix}*"', f'iifname != "{node.prefix}*"'
        return f"-i {node.prefix}+", f"! -i {node.prefix}+"
    cidr = node.cluster_cidr if node.mode == "ClusterCIDR" else node.node_cidr
    return (f"ip saddr {cidr}", f"ip saddr != {cidr}") if nft else (f"-s {cidr}", f"! -s {cidr}")


def iptables(node: NodeSide, services: tuple[Service, ...], ports: tuple[HostPort, ...]) -> str:
    """All of it for one node, both protocols."""
    rules: list[str] = []
    filtered: list[str] = []
    chains: list[str] = ["KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-POSTROUTING", "KUBE-MARK-MASQ"]
    chains += ["CNI-HOSTPORT-DNAT", "CNI-HOSTPORT-MASQ", "CNI-HOSTPORT-SETMARK"]
    for hook in ("PREROUTING", "OUTPUT"):
        rules.append(f"-A {hook} -j KUBE-SERVICES")
        rules.append(f"-A {hook} -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT")
    rules += ["-A POSTROUTING -j KUBE-POSTROUTING", "-A POSTROUTING -j CNI-HOSTPORT-MASQ"]
    rules += [
        "-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000",
        "-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN",
        "-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000",
        "-A KUBE-POSTROUTING -j MASQUERADE --random-fully",
        "-A CNI-HOSTPORT-SETMARK -j MARK --or-mark 0x2000",
        "-A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE",
    ]
    for number, each in enumerate(services):
        for protocol in ("tcp", "udp"):
            made = _Iptables(node, each, protocol, f"{number}{protocol.upper()}")
            rules += made.rules()
            filtered += made.drops()
            chains += made.chains
    rules.append("-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS")
    for port in ports:
        for protocol in ("tcp", "udp"):
            match = f"-p {protocol} -m {protocol} --dport {port.port}"
            rules += [
                f"-A CNI-HOSTPORT-DNAT -s {node.node_cidr} {match} -j CNI-HOSTPORT-SETMARK",
                f"-A CNI-HOSTPORT-DNAT {match} -j DNAT --to-destination {port.address}:{port.pod_port}",
            ]
    heads = "".join(f":{chain} - [0:0]\n" for chain in chains)
    forward = (
        "-A FORWARD -j KUBE-FORWARD\n"
        "-A INPUT -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES\n"
        "-A FORWARD -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES\n"
        "-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\n"
        "-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT\n"
        "-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n"
    )
    return (
        f"*nat\n{heads}{_lines(rules)}COMMIT\n"
        f"*filter\n:KUBE-FORWARD - [0:0]\n:KUBE-EXTERNAL-SERVICES - [0:0]\n{forward}{_lines(filtered)}COMMIT\n"
    )


def _lines(rules: list[str]) -> str:
    return "".join(f"{rule}\n" for rule in rules)


class _Iptables:
    def __init__(self, node: NodeSide, service: Service, protocol: str, key: str) -> None:
        self._node, self._service, self._protocol, self._key = node, service, protocol, key
        self._pods, self._elsewhere = _matches(node, nft=False)
        self.chains = [f"KUBE-SVC-{key}", f"KUBE-EXT-{key}"]
        self.chains += [f"KUBE-SEP-{key}-{i}" for i in range(len(service.backends))]
        self._here = [i for i, (place, _) in enumerate(service.backends) if place == node.number]
        if service.local and self._here:
            self.chains.append(f"KUBE-SVL-{key}")

    def _to(self, address: str, port: int) -> str:
        where = f"-d {address}/32 " if address else ""
        return f"{where}-p {self._protocol} -m {self._protocol} --dport {port}"

    def rules(self) -> list[str]:
        service, key = self._service, self._key
        own = self._to(service.cluster_ip, service.port)
        found = [
            f"-A KUBE-SERVICES {own} -j KUBE-SVC-{key}",
            f"-A KUBE-SERVICES {self._to(service.balancer, service.port)} -j KUBE-EXT-{key}",
            f"-A KUBE-NODEPORTS {self._to('', service.node_port)} -j KUBE-EXT-{key}",
        ]
        if service.local:
            if self._pods:
                found.append(f"-A KUBE-EXT-{key} {self._pods} -j KUBE-SVC-{key}")
            found.append(f"-A KUBE-EXT-{key} -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ")
            found.append(f"-A KUBE-EXT-{key} -m addrtype --src-type LOCAL -j KUBE-SVC-{key}")
            if self._here:
                found.append(f"-A KUBE-EXT-{key} -j KUBE-SVL-{key}")
                found += self._choose(f"KUBE-SVL-{key}", self._here)
        else:
            found += [f"-A KUBE-EXT-{key} -j KUBE-MARK-MASQ", f"-A KUBE-EXT-{key} -j KUBE-SVC-{key}"]
        if self._elsewhere:
            found.append(f"-A KUBE-SVC-{key} {self._elsewhere} {own} -j KUBE-MARK-MASQ")
        found += self._choose(f"KUBE-SVC-{key}", range(len(service.backends)))
        for i, (_, address) in enumerate(service.backends):
            chain = f"KUBE-SEP-{key}-{i}"
            keep = f"-m recent --name {chain} --set --rsource " if service.affinity else ""
            match = f"{keep}-p {self._protocol} -m {self._protocol}"
            found += [
                f"-A {chain} -s {address}/32 -j KUBE-MARK-MASQ",
                f"-A {chain} {match} -j DNAT --to-destination {address}:80",
            ]
        return found

    def _choose(self, chain: str, backends: list[int] | range) -> Iterator[str]:
        if self._service.affinity:
            for i in backends:
                end = f"KUBE-SEP-{self._key}-{i}"
                yield f"-A {chain} -m recent --name {end} --rcheck --seconds 10800 --reap --rsource -j {end}"
        for place, i in enumerate(backends):
            left = len(backends) - place
            chance = f"-m statistic --mode random --probability {1 / left:.5f} " if left > 1 else ""
            yield f"-A {chain} {chance}-j KUBE-SEP-{self._key}-{i}"

    def drops(self) -> list[str]:
        if not self._service.local or self._here:
            return []
        balancer, port = self._service.balancer, self._service.node_port
        return [
            f"-A KUBE-EXTERNAL-SERVICES {self._to(balancer, self._service.port)} -j DROP",
            f"-A KUBE-EXTERNAL-SERVICES -m addrtype --dst-type LOCAL {self._to('', port)} -j DROP",
        ]


def nftables(node: NodeSide, services: tuple[Service, ...], ports: tuple[HostPort, ...]) -> str:
    """The same in the nftables mode's form: maps of verdicts, a chain for each Service and each endpoint."""
    chains: list[str] = []
    addresses: list[str] = []
    node_ports: list[str] = []
    dropped_addresses: list[str] = []
    dropped_ports: list[str] = []
    pods, elsewhere = _matches(node, nft=True)
    for number, each in enumerate(services):
        here = [i for i, (place, _) in enumerate(each.backends) if place == node.number]
        for protocol in ("tcp", "udp"):
            key = f"{number}-{protocol}"
            own = f"{protocol} dport {each.port}"
            addresses += [
                f"{each.cluster_ip} . {protocol} . {each.port} : goto service-{key}",
                f"{each.balancer} . {protocol} . {each.port} : goto external-{key}",
            ]
            node_ports.append(f"{protocol} . {each.node_port} : goto external-{key}")
            everywhere = list(range(len(each.backends)))
            mark = f"ip daddr {each.cluster_ip} {own} {elsewhere} jump mark-for-masquerade" if elsewhere else ""
            chains.append(_chain(f"service-{key}", mark, *_choice(each, key, everywhere)))
            if each.local:
                short = [f"{pods} goto service-{key}"] if pods else []
                short.append("fib saddr type local jump mark-for-masquerade")
                short.append(f"fib saddr type local goto service-{key}")
                chains.append(_chain(f"external-{key}", *short, *_choice(each, key, here)))
                if not here:
                    dropped_addresses.append(f"{each.balancer} . {protocol} . {each.port} : drop")
                    dropped_ports.append(f"{protocol} . {each.node_port} : drop")
            else:
                chains.append(_chain(f"external-{key}", "jump mark-for-masquerade", f"goto service-{key}"))
            for i, (_, address) in enumerate(each.backends):
                hairpin = f"ip saddr {address} jump mark-for-masquerade"
                keep = f"update @affinity-{key}-{i} {{ ip saddr }}" if each.affinity else ""
                chain = _chain(
                    f"endpoint-{key}-{i}", hairpin, keep, f"meta l4proto {protocol} dnat to {address}:80"
                )
                if each.affinity:
                    chains.insert(
                        0, f"set affinity-{key}-{i} {{ type ipv4_addr; flags dynamic,timeout; timeout 3h; }}"
                    )
                chains.insert(1 if each.affinity else 0, chain)
    sets = [line for line in chains if line.startswith("set ")]
    ends = [line for line in chains if line.startswith("chain endpoint-")]
    inner = [line for line in chains if line.startswith("chain service-")]
    outer = [line for line in chains if line.startswith("chain external-")]
    mapped = "type ipv4_addr . inet_proto . inet_service : verdict"
    by_port = "type inet_proto . inet_service : verdict"
    host = [
        line
        for port in ports
        for protocol in ("tcp", "udp")
        for line in (
            f"ip saddr {node.node_cidr} {protocol} dport {port.port} meta mark set meta mark | 0x2000",
            f"{protocol} dport {port.port} dnat to {port.address}:{port.pod_port}",
        )
    ]
    body = "\n".join(
        [
            *sets,
            _chain("mark-for-masquerade", "meta mark set meta mark | 0x4000"),
            *ends,
            *inner,
            *outer,
            f"map service-ips {{ {mapped}; {_elements(addresses)} }}",
            f"map service-nodeports {{ {by_port}; {_elements(node_ports)} }}",
            f"map no-endpoint-services {{ {mapped}; {_elements(dropped_addresses)} }}",
            f"map no-endpoint-nodeports {{ {by_port}; {_elements(dropped_ports)} }}",
            f"set nodeport-ips {{ type ipv4_addr; {_elements([node.node_ip])} }}",
            _chain(
                "services",
                "ip daddr . meta l4proto . th dport vmap @service-ips",
                "ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports",
            ),
            _chain(
                "service-endpoints-check",
                "ip daddr . meta l4proto . th dport vmap @no-endpoint-services",
                "ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports",
            ),
            _chain("nat-prerouting", "type nat hook prerouting priority dstnat; jump services"),
            _chain("nat-output", "type nat hook output priority -100; jump services"),
            _chain(
                "nat-postrouting",
                "type nat hook postrouting priority srcnat",
                "meta mark & 0x4000 == 0 return",
                "meta mark set meta mark ^ 0x4000",
                "masquerade fully-random",
            ),
            _chain(
                "filter-input", "type filter hook input priority 0; ct state new jump service-endpoints-check"
            ),
            _chain(
                "filter-forward",
                "type filter hook forward priority 0; ct state new jump service-endpoints-check",
            ),
        ]
    )
    mapping = _chain("hostports", *host)
    return (
        f"table ip kube-proxy {{\n{body}\n}}\n"
        f"table ip cni_hostport {{\n{mapping}\n"
        + _chain("prerouting", "type nat hook prerouting priority dstnat; fib daddr type local jump hostports")
        + "\n"
        + _chain("output", "type nat hook output priority -100; fib daddr type local jump hostports")
        + "\n"
        + _chain(
            "masquerading",
            "type nat hook postrouting priority srcnat",
            "meta mark & 0x2000 == 0x2000 masquerade",
        )
        + "\n}\n"
    )


def _choice(service: Service, key: str, backends: list[int]) -> Iterator[str]:
    if service.affinity:
        for i in backends:
            yield f"ip saddr @affinity-{key}-{i} goto endpoint-{key}-{i}"
    if backends:
        ends = ", ".join(f"{place} : goto endpoint-{key}-{i}" for place, i in enumerate(backends))
        yield f"numgen random mod {len(backends)} vmap {{ {ends} }}"


def _chain(name: str, *rules: str) -> str:
    return f"chain {name} {{ {'; '.join(rule for rule in rules if rule)}; }}"


def _elements(values: list[str]) -> str:
    return f"elements = {{ {', '.join(values)} }};" if values else ""


REMOVE = {
    "iptables": "iptables-nft -t nat -F; iptables-nft -t nat -X; iptables-nft -F; iptables-nft -X",
    "nftables": "nft delete table ip kube-proxy; nft delete table ip cni_hostport",
}
BACKENDS: dict[str, tuple[str, Callable[[NodeSide, tuple[Service, ...], tuple[HostPort, ...]], str]]] = {
    "iptables": ("iptables-nft-restore", iptables),
    "nftables": ("nft -f -", nftables),
}
