"""Namespaces that act as machines: each a network, mount and host name of its own, and their links.

    br-vpc ──┬── cloud-1 … cloud-4           br-idc ──┬── idc-1, idc-2          br-mgmt ── every node
             └────────── router (Cloud Connect Network) ──────────┘                 └── controller
                                  │ br-wan
    br-branch ── branch-router (masquerade) ── …    a site behind NAT: the router knows no way to its addresses

The bridges are switches in the sandbox's own namespace; only the management network's has an address, the
operator's. The router is the only way from the VPC to the IDC; the management network leads to the bus.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from deploy.lab.failures import CommandFailedError
from deploy.lab.machines.shell import SEARCH_PATH, run
from deploy.lab.topology.layout import WAN

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from ipaddress import IPv4Address

    from deploy.lab.topology.layout import Node, Site, Topology

# A machine of its own: what it keeps in /run, its host name and its links are not those of the others.
_SET_UP_MACHINE = (
    'mount -t tmpfs isthmus /run && hostname "$1" && ip link set lo up && echo ready && exec sleep infinity'
)

MASQUERADE = """
table ip lab {
  chain out { type nat hook postrouting priority srcnat; oifname "wan" masquerade; }
}
"""

BRIDGE_MAC = "02:00:00:00:00:fe"
"""A bridge without an address of its own takes the lowest of its ports': a machine plugged in could change
it, and for some seconds everybody's neighbour entry for the operator would be wrong. One per segment."""


@dataclass(slots=True)
class Machine:
    """A machine of the lab: the process that keeps its namespaces open."""

    name: str
    process: asyncio.subprocess.Process

    @property
    def pid(self) -> int:
        return self.process.pid

    def inside(self, *arguments: str) -> list[str]:
        """The command line that runs `arguments` on this machine."""
        return ["nsenter", "-t", str(self.pid), "-n", "-m", "-u", "--", *arguments]

    async def run(self, *arguments: str, stdin: str = "") -> str:
        """What the command writes to standard output; raises what `shell.run` raises.

        Cancelled, the command is killed; what it changed by then stays.
        """
        return await run(self.inside(*arguments), stdin=stdin)

    async def close(self) -> None:
        """End it, and the programs on it. Cancelled, it is killed, and may not have ended."""
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()


async def start_machine(name: str) -> Machine:
    """Raises CommandFailedError when the namespaces cannot be made.

    Cancelled while the namespaces are made, the process that keeps them stays, known to nobody, until the
    sandbox ends.
    """
    process = await asyncio.create_subprocess_exec(
        "unshare", "--net", "--mount", "--uts", "--propagation", "private",
        "sh", "-c", _SET_UP_MACHINE, "sh", name,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": SEARCH_PATH},
        start_new_session=True,
    )  # fmt: skip
    if process.stdout is None or process.stderr is None:
        raise RuntimeError("pipes were asked for")
    if await process.stdout.readline() != b"ready\n":
        said = (await process.stderr.read()).decode(errors="replace").strip()
        await process.wait()
        raise CommandFailedError(f"no namespaces for {name}: {said}")
    return Machine(name, process)


@dataclass(slots=True)
class Fabric:
    """Every machine of the lab by name, and the links between them.

    Cancelled, what was made stays until the sandbox ends; machines in ``machines`` are ended by `close`.
    """

    topology: Topology
    machines: dict[str, Machine] = field(default_factory=dict)

    async def build(self) -> None:
        """Makes the switches, the routers and the controller's machine; nodes come by `add_node`."""
        router, controller = await asyncio.gather(start_machine("router"), start_machine("controller"))
        self.machines |= {"router": router, "controller": controller}
        sites = self.topology.sites
        lines = ["link set lo up"]
        for bridge in (*(site.bridge for site in sites), "br-mgmt"):
            lines += [f"link add {bridge} address {BRIDGE_MAC} type bridge", f"link set {bridge} up"]
        lines += [f"addr add {self.topology.operator}/24 dev br-mgmt"]
        hidden = [site for site in sites if site.outside is not None]
        sites = tuple(site for site in sites if site.outside is None)
        for site in sites:
            lines += link_lines(f"r-{site.name}", site.bridge, site.name, router)
        lines += link_lines("m-controller", "br-mgmt", "mgmt0", controller)
        await ip_batch([], lines)
        await ip_batch(
            router.inside(),
            [
                line
                for site in sites
                for line in (
                    f"addr add {site.gateway}/{site.subnet.prefixlen} dev {site.name}",
                    f"link set {site.name} up",
                )
            ],
        )
        await router.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        await ip_batch(
            controller.inside(), [f"addr add {self.topology.controller}/24 dev mgmt0", "link set mgmt0 up"]
        )
        if hidden:
            await self._hide(router, hidden)

    async def _hide(self, router: Machine, sites: Iterable[Site]) -> None:
        """Give each of the sites a router that masquerades it, on a network behind the common router."""
        await ip_batch(
            [],
            [
                f"link add br-wan address {BRIDGE_MAC} type bridge",
                "link set br-wan up",
                *link_lines("r-wan", "br-wan", "wan", router),
            ],
        )
        await ip_batch(router.inside(), [f"addr add {WAN[1]}/{WAN.prefixlen} dev wan", "link set wan up"])
        for site in sites:
            machine = await start_machine(f"{site.name}-router")
            self.machines[machine.name] = machine
            await ip_batch(
                [],
                [
                    *link_lines(f"w-{site.name}", "br-wan", "wan", machine),
                    *link_lines(f"r-{site.name}", site.bridge, "lan", machine),
                ],
            )
            await ip_batch(
                machine.inside(),
                [
                    f"addr add {site.outside}/{WAN.prefixlen} dev wan",
                    "link set wan up",
                    f"addr add {site.gateway}/{site.subnet.prefixlen} dev lan",
                    "link set lan up",
                    f"route add default via {WAN[1]}",
                ],
            )
            await machine.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
            await machine.run("nft", "-f", "-", stdin=MASQUERADE)

    async def add_node(self, node: Node) -> Machine:
        """Makes the node's machine and connects it to its site and to the management network."""
        machine = await start_machine(node.name)
        self.machines[node.name] = machine
        await ip_batch(
            [],
            [
                *link_lines(f"u-{node.name}", node.site.bridge, "eth0", machine),
                *link_lines(f"m-{node.name}", "br-mgmt", "mgmt0", machine),
            ],
        )
        await ip_batch(
            machine.inside(),
            [
                f"addr add {node.underlay}/{node.site.subnet.prefixlen} dev eth0",
                "link set eth0 up",
                f"addr add {node.management}/24 dev mgmt0",
                "link set mgmt0 up",
                f"route add default via {node.site.gateway}",
            ],
        )
        # The lab's operator prepares a machine the way the README asks for it.
        await machine.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        return machine

    async def add_server(
        self, name: str, management: IPv4Address, site: Site | None = None, inside: IPv4Address | None = None
    ) -> Machine:
        """Makes a machine on the management network; with ``site`` also one in that site, at ``inside``."""
        machine = await start_machine(name)
        self.machines[name] = machine
        links = link_lines(f"m-{name}", "br-mgmt", "mgmt0", machine)
        lines = [f"addr add {management}/24 dev mgmt0", "link set mgmt0 up"]
        if site is not None:
            links += link_lines(f"u-{name}", site.bridge, "eth0", machine)
            lines += [f"addr add {inside}/{site.subnet.prefixlen} dev eth0", "link set eth0 up"]
        await ip_batch([], links)
        await ip_batch(machine.inside(), lines)
        return machine

    async def close(self) -> None:
        await asyncio.gather(*(machine.close() for machine in self.machines.values()))
        self.machines.clear()


def link_lines(switch_end: str, bridge: str, far_end: str, machine: Machine) -> list[str]:
    """Lines of ``ip -batch`` that plug a machine into a switch."""
    return [
        f"link add {switch_end} type veth peer name {far_end} netns {machine.pid}",
        f"link set {switch_end} master {bridge} up",
    ]


async def ip_batch(prefix: Sequence[str], lines: Iterable[str]) -> None:
    """Run lines of ``ip -batch``; ``prefix`` leads to the machine. Cancelled, some may have been done."""
    await run([*prefix, "ip", "-batch", "-"], stdin="\n".join(lines) + "\n")
