"""The node's firewall: one nftables table of our own, replaced as a whole in one transaction.

What it enforces, each by name in the table:

* ``received``: VXLAN only from the underlay addresses of members (``vteps``), and past connection
  tracking; nothing leaves the tunnel whose inner source is no container address.
* ``forwarded``, ``delivered``: a container address comes only from where its route leads (no
  spoofing), and nobody outside opens a connection to a container address. Replies pass, and what the
  Service proxy has translated (NodePort, hostPort).
* ``masqueraded``: pods that talk to the outside do it with the node's address, by source ports clear
  of the VXLAN port.
* ``leaving``: what would still carry a container address to the outside is dropped.

It never touches another table; rules of other programs still apply to what passes here.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterable
from ipaddress import ip_address

import msgspec

from events.errors import Refused

TABLE = "isthmus"
TIMEOUT_S = 30.0
INSTALL = "apt-get install nftables (or dnf install nftables)"


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """What the table depends on, apart from the members' addresses."""

    device: str
    port: int
    own_range: str
    cidrs: tuple[str, ...]


def source_ports(vxlan_port: int) -> str:
    """The larger side of the port space, without the VXLAN port and the privileged ports."""
    return f"1024-{vxlan_port - 1}" if vxlan_port > 32768 else f"{vxlan_port + 1}-65535"


def render(rules: Rules, vteps: Iterable[str]) -> str:
    """The transaction: make the table (so that deleting works), delete it, make it anew."""
    known = sorted(vteps, key=lambda text: ip_address(text).packed)
    ports = source_ports(rules.port)
    return f"""\
table inet {TABLE} {{}}
delete table inet {TABLE}
table inet {TABLE} {{
  set vteps {{
    type ipv4_addr
    {_elements(a for a in known if ":" not in a)}
  }}
  set vteps6 {{
    type ipv6_addr
    {_elements(a for a in known if ":" in a)}
  }}
  set containers {{
    type ipv4_addr
    flags interval
    {_elements(rules.cidrs)}
  }}
  chain received {{
    type filter hook prerouting priority raw; policy accept;
    iifname "{rules.device}" ip saddr != @containers counter drop
    udp dport {rules.port} fib daddr type local jump vxlan
  }}
  chain vxlan {{
    ip saddr @vteps notrack accept
    ip6 saddr @vteps6 notrack accept
    counter drop
  }}
  chain sent {{
    type filter hook output priority raw; policy accept;
    udp dport {rules.port} oifname != "lo" notrack
  }}
  chain forwarded {{
    type filter hook forward priority filter - 5; policy accept;
    ip saddr @containers fib saddr . iif oif missing counter drop
    ct state established,related accept
    ct status dnat accept
    ip daddr @containers ip saddr != @containers counter drop
  }}
  chain delivered {{
    type filter hook input priority filter - 5; policy accept;
    iifname "lo" accept
    ip saddr @containers fib saddr . iif oif missing counter drop
    ct state established,related accept
    ct status dnat accept
    ip daddr @containers ip saddr != @containers counter drop
  }}
  chain masqueraded {{
    type nat hook postrouting priority srcnat + 5; policy accept;
    ip saddr {rules.own_range} ip daddr != @containers jump outside
  }}
  chain outside {{
    ip daddr 224.0.0.0/4 return
    meta l4proto {{ tcp, udp }} counter masquerade to :{ports} fully-random
    counter masquerade
  }}
  chain leaving {{
    type filter hook postrouting priority srcnat + 50; policy accept;
    oifname != "lo" ip saddr @containers ip daddr != @containers counter drop
  }}
}}
"""


def render_members(added: Iterable[str], removed: Iterable[str]) -> str:
    """A transaction that only changes the set of known VTEPs."""
    lines = [
        f"{verb} element inet {TABLE} {'vteps6' if ':' in address else 'vteps'} {{ {address} }}\n"
        for verb, addresses in (("add", added), ("delete", removed))
        for address in sorted(addresses)
    ]
    return "".join(lines)


def _elements(values: Iterable[str]) -> str:
    joined = ", ".join(values)
    return f"elements = {{ {joined} }}" if joined else ""


async def nft(script: str) -> None:
    """Run one transaction: all of it takes effect or nothing.

    Raises Refused: ``prerequisite_missing`` without the program, ``firewall_refused`` with its words.
    """
    await _run("-f", "-", stdin=script)


async def listing() -> str:
    """The table as the kernel has it, without counters' values; empty when it is not there."""
    try:
        return await _run("--stateless", "list", "table", "inet", TABLE)
    except Refused as error:
        if error.code == "prerequisite_missing":
            raise
        return ""


async def remove() -> bool:
    """Remove our table; False when there was none."""
    if not await listing():
        return False
    await nft(f"delete table inet {TABLE}\n")
    return True


async def _run(*arguments: str, stdin: str = "") -> str:
    program = shutil.which("nft", path="/usr/sbin:/sbin:/usr/bin:/bin:/usr/local/sbin:/usr/local/bin")
    if program is None:
        raise Refused(
            "prerequisite_missing",
            f"the program nft is not installed, so pods are not shielded from outside: {INSTALL}",
            program="nft",
        )
    process = await asyncio.create_subprocess_exec(
        program,
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(TIMEOUT_S):
            out, err = await process.communicate(stdin.encode())
    except BaseException:
        if process.returncode is None:
            process.kill()
            await process.wait()
        raise
    if process.returncode != 0:
        words = err.decode(errors="replace").strip().splitlines()
        raise Refused(
            "firewall_refused",
            f"nft refused the table inet {TABLE}: {words[0] if words else process.returncode}. "
            f"`isthmus doctor` checks for missing kernel features",
        )
    return out.decode(errors="replace")
