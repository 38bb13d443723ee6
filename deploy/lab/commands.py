"""The command lines that the lab types, as an operator would; the one machine that knows their options."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from controlplane.console.address import CONSOLE_PORT
from events.protocol.commands import DefineCluster
from events.types import Network

if TYPE_CHECKING:
    from collections.abc import Iterable
    from ipaddress import IPv4Network

    from deploy.lab.topology.layout import Node, Site

BUS_PORT = 4222
SETTINGS = "agent.toml"
ISTHMUS = str(Path(sys.executable).with_name("isthmus"))


def up(data: Path, host: str, extra: Iterable[str] = ()) -> list[str]:
    """Bus and controller in one process."""
    return [ISTHMUS, "up", "--data", str(data), "--host", host, "--port", str(BUS_PORT),
        "--http", f"127.0.0.1:{CONSOLE_PORT}", "--log-level", "info", *extra]  # fmt: skip


def controller(data: Path, replicas: int) -> list[str]:
    """A controller on its own; the bus runs elsewhere."""
    return [ISTHMUS, "controller", "--data", str(data), "--name", "controller", "--replicas", str(replicas),
        "--http", f"127.0.0.1:{CONSOLE_PORT}", "--log-level", "info"]  # fmt: skip


def forward(descriptor: int) -> list[str]:
    """Carries connections of a socket of the host to the console on the controller's loopback."""
    return [sys.executable, "-m", "deploy.lab.machines.forward", str(descriptor), str(CONSOLE_PORT)]


def agent(node: Node, directory: Path) -> list[str]:
    """The agent of one node; everything that it writes goes below `directory`."""
    return [
        ISTHMUS, "agent",
        "--node", node.name,
        "--kind", node.kind,
        "--site", node.site.name,
        "--underlay", str(node.underlay),
        "--machine-id", "none",  # all nodes of the lab are this machine
        "--state-dir", str(directory / "state"),
        "--cni-dir", str(directory / "cni"),
        "--cni-data-dir", str(directory / "pods"),
    ]  # fmt: skip


def join(node: Node, directory: Path, token: str) -> list[str]:
    """What makes the machine a node by a token. What only a lab needs is in a file that is there before:

    all nodes of the lab are this machine, whose /etc is not ours.
    """
    config = directory / "etc" / SETTINGS
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(
        f'node = "{node.name}"\ncluster = "lab"\nmachine-id = "none"\n'
        f'cni-dir = "{directory / "cni"}"\ncni-data-dir = "{directory / "pods"}"\n'
    )
    return [ISTHMUS, "join", token, "--foreground", "--underlay", "eth0", *folders(directory)]


def folders(directory: Path) -> list[str]:
    """Where a join and a leave of a lab's machine find what is its own."""
    return ["--folder", str(directory / "etc"), "--state-dir", str(directory / "state")]


def define(
    container: IPv4Network, pods: int, services: int, sites: Iterable[Site], quarantine_s: float
) -> DefineCluster:
    """The cluster of the lab: both sites' networks are known, so overlaps would be refused."""
    return DefineCluster(
        container_cidr=str(container),
        pods_per_node=pods,
        services=services,
        networks=tuple(
            Network(cidr=str(site.subnet), kind="vpc" if site.kind == "cloud" else "idc", name=site.name)
            for site in sites
            if site.outside is None  # which means something at that site alone
        ),
        quarantine_s=quarantine_s,
        unreachable_after_s=10.0,
    )


def conflist(directory: Path) -> Path | None:
    """The CNI configuration that the agent wrote, once it is there."""
    return next(iter(sorted((directory / "cni").glob("*.conflist"))), None)
