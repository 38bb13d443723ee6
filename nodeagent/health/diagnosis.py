"""Names what is in the way of packets: a chain, a rule, a file, and the program that makes it.

Looks only when something is wrong, with the system's own programs, each with a deadline; it changes nothing,
and what cannot be looked at is left out rather than guessed. Cancelled, it leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from nodeagent import system

TIMEOUT_S = 5.0
OWN_TABLES = frozenset({"isthmus", "isthmus_clb"})
SYSCTL_FOLDERS = ("/etc/sysctl.d", "/run/sysctl.d", "/usr/local/lib/sysctl.d", "/usr/lib/sysctl.d")
CNI_SUFFIXES = (".conf", ".conflist", ".json")
"""Files that container runtimes read, in the order of their names; the first one counts."""

PROGRAMS = {
    "DOCKER": "Docker",
    "ufw-": "ufw",
    "CNI-": "podman or another CNI",
    "KUBE-ROUTER": "kube-router",
    "cali-": "Calico",
    "CILIUM": "Cilium",
    "FLANNEL": "flannel",
    "LIBVIRT": "libvirt",
    "filter_FORWARD": "firewalld",
}
"""Chain name prefix → who makes it."""


class Chain(msgspec.Struct, frozen=True, kw_only=True):
    """A base chain of the forward hook that drops what no rule of it accepts."""

    family: str
    table: str
    name: str
    program: str = ""
    legacy: bool = False
    """Of the older iptables, which nft does not see."""
    how: str = "policy drop"

    def __str__(self) -> str:
        who = f", made by {self.program}" if self.program else ""
        return f"chain {self.name} of table {self.family} {self.table} ({self.how}{who})"

    @property
    def cure(self) -> str:
        """What lets the node's pods through."""
        if self.name == "FORWARD" and self.table == "filter":
            where = "DOCKER-USER" if self.program == "Docker" else "FORWARD"
            tool = "iptables-legacy" if self.legacy else "iptables"
            return f"{tool} -I {where} -j ACCEPT -s POD_NETWORK; {tool} -I {where} -j ACCEPT -d POD_NETWORK"
        chain = f"{self.family} {self.table} {self.name}"
        return "; ".join(f"nft insert rule {chain} ip {end} POD_NETWORK accept" for end in ("daddr", "saddr"))


async def dropping_chains() -> list[Chain]:
    """Forward chains with policy drop that nft sees, those of the newer iptables among them.

    Cancelled, it leaves nothing behind.
    """
    return parse_chains(await run_program("nft", "--json", "list", "chains"))


def parse_chains(document: str) -> list[Chain]:
    """The forward chains with policy drop in nft's JSON; ours are not among them."""
    with contextlib.suppress(ValueError, TypeError, AttributeError, KeyError):
        entries = [
            entry["chain"] for entry in json.loads(document or "{}").get("nftables", []) if "chain" in entry
        ]
        return [
            Chain(
                family=chain["family"],
                table=chain["table"],
                name=chain["name"],
                program=maker_of(other["name"] for other in entries if other["table"] == chain["table"]),
            )
            for chain in entries
            if chain.get("hook") == "forward"
            and chain.get("policy") == "drop"
            and chain["table"] not in OWN_TABLES
        ]
    return []


def maker_of(chains: Iterable[str]) -> str:
    """Which program makes chains of such names; empty when that is not known."""
    names = list(chains)
    return next((who for prefix, who in PROGRAMS.items() if any(name.startswith(prefix) for name in names)), "")


async def dropping_rules(port: int) -> list[str]:
    """Rules that drop or reject UDP to the tunnel's port, in nft's words."""
    listing = await run_program("nft", "-s", "list", "ruleset")
    table = chain = ""
    found: list[str] = []
    for raw in listing.splitlines():
        line = raw.strip()
        if raw.startswith("table "):
            table = " ".join(line.split()[1:3])
        elif line.startswith("chain "):
            chain = line.split()[1]
        elif _drops(line, port) and not any(table.endswith(f" {own}") for own in OWN_TABLES):
            found.append(f"`{line}` in chain {chain} of table {table}")
    found += [
        f"`{line}` (iptables-legacy)"
        for line in (await run_program("iptables-legacy-save")).splitlines()
        if (f"--dport {port} " in f"{line} " and line.endswith(("-j DROP", "-j REJECT")))
        or f"--dport {port} -j REJECT" in line
    ]
    return found


async def dropped_packets() -> dict[str, int]:
    """Packets that nftables rules which drop or reject, and count, have taken so far, by chain; ours too."""
    return counted_drops(await run_program("nft", "--json", "list", "ruleset"))


def counted_drops(document: str) -> dict[str, int]:
    """The same out of nft's JSON; what a newer nft says in another form is left out: it is only evidence."""
    found: dict[str, int] = {}
    with contextlib.suppress(ValueError, TypeError, AttributeError, KeyError):
        for entry in json.loads(document or "{}").get("nftables", []):
            rule = entry.get("rule")
            if rule is None:
                continue
            terms = [term for term in rule.get("expr", []) if isinstance(term, dict)]
            if any("drop" in term or "reject" in term for term in terms):
                chain = f"chain {rule['chain']} of table {rule['family']} {rule['table']}"
                counters = (term["counter"] for term in terms if isinstance(term.get("counter"), dict))
                taken = sum(counter["packets"] for counter in counters)
                found[chain] = found.get(chain, 0) + taken
    return found


def _drops(line: str, port: int) -> bool:
    words = line.split()
    names = {str(port), *({"otv"} if port == 8472 else ())}
    named = "dport" in words and any(word.strip("{},") in names for word in words)
    return named and ("drop" in words or "reject" in words or "DROP" in line)


async def policy_rules() -> list[str]:
    """Policy routing rules of others, as ``ip rule`` prints them."""
    try:
        rules: list[dict[str, Any]] = json.loads(await run_program("ip", "-4", "-j", "rule") or "[]")
    except json.JSONDecodeError:
        return []
    return [
        f"{rule.get('priority')}: from {rule.get('src', 'all')}"
        + (f"/{rule['srclen']}" if "srclen" in rule else "")
        + (f" to {rule['dst']}" + (f"/{rule['dstlen']}" if "dstlen" in rule else "") if "dst" in rule else "")
        + (f" iif {rule['iif']}" if "iif" in rule else "")
        + f" lookup {rule.get('table', '?')}"
        for rule in rules
        if rule.get("table") not in {"local", "main", "default"} or rule.get("src", "all") != "all"
    ]


async def explain(fault: str, port: int, cidrs: Iterable[str]) -> str:
    """What is in the way of packets that fail so (see :mod:`nodeagent.health.path_judge`); empty if unknown."""
    if fault == "route":
        rules = await policy_rules()
        return f"Policy rules that may lead elsewhere: {'; '.join(rules[:3])} (see `ip rule`)" if rules else ""
    if fault in {"forwarding", "incoming"}:
        chains = await dropping_chains()
        if chains:
            network = next(iter(cidrs), "POD_NETWORK")
            return f"{chains[0]} drops them. Let them pass: {chains[0].cure.replace('POD_NETWORK', network)}"
    if fault in {"tunnel", "silence"}:
        rules = await dropping_rules(port)
        if rules:
            return f"UDP port {port} is dropped here: {rules[0]}"
        return f"Is UDP port {port} dropped on this host, or on the way (firewall, security group)?"
    return (
        "A filter of this host drops them (see `nft list ruleset`, `iptables-save`)"
        if fault == "forwarding"
        else ""
    )


def sysctl_files(name: str, value: str) -> list[str]:
    """Configuration files that set a setting (``net.ipv4.ip_forward``) to a value."""
    files = [
        Path("/etc/sysctl.conf"),
        *(file for folder in SYSCTL_FOLDERS for file in sorted(Path(folder).glob("*.conf"))),
    ]
    found = []
    for file in files:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            for line in file.read_text().splitlines():
                key, _, given = line.partition("=")
                if key.strip().lstrip("-").replace("/", ".") == name and given.strip() == value:
                    found.append(str(file))
                    break
    return found


def cni_before(directory: Path, own: str) -> str:
    """A CNI configuration that runtimes take instead of ours, in words; empty when ours is the first.

    Also empty while ours is not there. Raises OSError when the directory cannot be read.
    """
    names = sorted(entry.name for entry in directory.iterdir() if entry.suffix in CNI_SUFFIXES)
    if own not in names or names[0] == own:
        return ""
    path = directory / names[0]
    what = ""
    with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
        document = json.loads(path.read_bytes())
        plugins = [str(plugin.get("type", "?")) for plugin in document.get("plugins", [document])]
        what = f" (network {document.get('name', '?')}, plugins {', '.join(plugins)})"
    return (
        f"{path}{what} sorts before {own}: new pods get their addresses from it. "
        f"Move it away: mv {shlex.quote(str(path))} /root/"
    )


async def run_program(program: str, *arguments: str) -> str:
    """Standard output of a program; empty when it is not there, fails, or takes too long.

    Cancelled, the program is killed.
    """
    found = system.find(program)
    if found is None:
        return ""
    try:
        ended = await system.run(found, *arguments, timeout_s=TIMEOUT_S)
    except TimeoutError:
        return ""
    return "" if ended.code else ended.out
