"""The agent's settings, checked once at the start."""

from __future__ import annotations

import shlex
from ipaddress import IPv4Address
from pathlib import Path
from typing import Literal

import msgspec

from events.bus.connection import DEFAULT_BUS, BusOptions
from events.errors import Usage
from events.protocol.encryption import WIREGUARD_PORT, WIREGUARD_PORT_MAX, WIREGUARD_PORTS
from events.status import NatMode
from events.subjects import check_site
from events.types import NodeKind

CniPlugin = Literal["ptp", "bridge"]
WireGuardMode = Literal["auto", "kernel", "userspace", "off"]
FastPathMode = Literal["auto", "off", "require"]
DirectMode = Literal["off", "auto", "on"]
DEFAULT_STATE_DIR = "/var/lib/isthmus/agent"
DEFAULT_CNI_DIR = "/etc/cni/net.d"
DEFAULT_DEVICE = "isthmus"
DEFAULT_NETWORK, FLANNEL_NETWORK = "isthmus", "cbr0"
HOST_LOCAL_DIR = "/var/lib/cni/networks"
"""Where the host-local plugin keeps addresses when nobody says another folder."""
DEVICE_NAME_LIMIT = 15  # IFNAMSIZ − 1
IPV4_ONLY = "the tunnels run over IPv4 only"


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True):
    """``underlay`` is ``auto`` (the device of the default route), a device, or an IPv4 address.

    ``announced`` is the address by which peers reach this node when a NAT stands between. Times are
    seconds; ``mtu`` 0 follows the underlay.
    """

    cluster: str
    node: str
    kind: NodeKind
    bus: BusOptions
    site: str = ""
    underlay: str = "auto"
    announced: str = ""
    state_dir: Path = Path(DEFAULT_STATE_DIR)
    cni_dir: Path = Path(DEFAULT_CNI_DIR)
    cni_plugin: CniPlugin = "ptp"
    cni_data_dir: str = ""
    """Where host-local remembers the pods' addresses; empty is below ``state_dir``."""
    cni_network: str = ""
    """Name of the network in the CNI file, and of host-local's folder; empty: see :meth:`network`."""
    cni_bin_dir: str = ""
    """Where the CNI plugins are; empty: the usual folders."""
    cni_own_plugin: Literal["auto", "off"] = "auto"
    """Whether our own plugin ends the chain where it is installed."""
    cni_bandwidth: bool = False
    """Whether the standard ``bandwidth`` plugin shapes pods that ask for it; only where ours ends the chain."""
    pod_facts: bool = True
    """Whether it is noted which pod had which address."""
    take_over: str = ""
    """The tunnel device of a network that was here before: ours from now on, with its rows; empty: none."""
    device: str = DEFAULT_DEVICE
    mtu: int = 0
    gro: bool | None = None
    """Receive offload on the tunnel; None finds out whether it is worth it: ``nodeagent.dataplane.merging``."""
    firewall: bool = True
    accept_in_others: bool = False
    """Whether others' forward chains that drop the rest get rules that let the overlay's packets through."""
    fastpath: FastPathMode = "auto"
    """Whether flows that the stack has let through may bypass it, where the kernel can; or must."""
    direct: DirectMode = "off"
    """Whether peers on the same link may be reached without the tunnel; ``on``: or it is a condition."""
    nat: NatMode = "auto"
    """Behind NAT: found out by what others see of this node, ``on`` from the start, ``off`` never."""
    wireguard: WireGuardMode = "auto"
    """What encrypts where the cluster says so: the kernel's module, or a program where that is missing."""
    wireguard_port: int = WIREGUARD_PORT
    rotate_key_days: int = 0
    """Age at which the node's key is replaced; 0: only by command."""
    gateway: bool = False
    """Whether this node may hold CLB addresses: keeps CAP_NET_RAW, for announcing them."""
    resync_s: float = 75.0
    heartbeat_s: float = 5.0
    bus_patience_s: float = 3.0
    """How long a starting agent waits for the bus before it goes on with what it remembers."""

    def quote(self, command: str, *, asks: bool = False) -> str:
        """A command of this node as it works here: with its directories, device and, if it ``asks``, bus.

        What is the default, or nothing, is left out.
        """
        more: list[tuple[str, object, object]] = [("state-dir", self.state_dir, Path(DEFAULT_STATE_DIR))]
        if command.startswith(("isthmus agent clean", "isthmus agent leave")):
            more.append(("cni-dir", self.cni_dir, Path(DEFAULT_CNI_DIR)))
        if command.startswith("isthmus agent clean"):
            more.append(("device", self.device, DEFAULT_DEVICE))
        if command.startswith("isthmus agent end-pods"):
            more.append(("cni-data-dir", self.cni_data_dir, ""))
        if asks:
            bus = self.bus
            more += [("bus", ",".join(bus.servers), DEFAULT_BUS), ("cluster", self.cluster, "default")]
            more += [("creds", bus.credentials, ""), ("ca", bus.ca, "")]
            more += [("tls-cert", bus.certificate, ""), ("tls-key", bus.key, "")]
        said = [f"--{name} {shlex.quote(str(value))}" for name, value, default in more if value != default]
        return " ".join([command, *said])

    @property
    def network(self) -> str:
        """The CNI network's name: that of flannel where its pods run on, so that no address is given twice."""
        return self.cni_network or (FLANNEL_NETWORK if self.take_over else DEFAULT_NETWORK)

    @property
    def pod_directory(self) -> Path:
        """Below which host-local keeps the pods' addresses."""
        if self.cni_data_dir:
            return Path(self.cni_data_dir)
        return Path(HOST_LOCAL_DIR) if self.take_over else self.state_dir / "pod-addresses"

    @property
    def behind_nat(self) -> bool:
        """Whether peers reach this node by another address than its own."""
        return bool(self.announced) and self.announced != self.underlay


def check(config: AgentConfig) -> AgentConfig:
    """Return the settings if they make sense. Raises Usage(usage), BadRequest(bad_request) for the site."""
    check_site(config.site)
    for option, name in (("--device", config.device), ("--take-over", config.take_over or "-")):
        if not 1 <= len(name) <= DEVICE_NAME_LIMIT or "/" in name or " " in name:
            raise Usage("usage", f"{option} {name!r}: a device name has 1 to {DEVICE_NAME_LIMIT} characters")
    if config.cni_network and not all(c.isalnum() or c in "-_." for c in config.cni_network):
        raise Usage("usage", f"--cni-network {config.cni_network[:64]!r} is no name of a network")
    if config.announced:
        try:
            IPv4Address(config.announced)
        except ValueError as error:
            raise Usage(
                "usage", f"--announced {config.announced!r} is no IPv4 address, and {IPV4_ONLY}"
            ) from error
    if config.accept_in_others and not config.firewall:
        raise Usage(
            "usage",
            "--accept-in-others goes with --firewall: what others let through, our own table must judge",
        )
    if config.mtu and not 576 <= config.mtu <= 65485:
        raise Usage("usage", f"--mtu {config.mtu} is outside 576 … 65485 bytes")
    if not 1 <= config.wireguard_port <= WIREGUARD_PORT_MAX:
        raise Usage(
            "usage",
            f"--wireguard-port {config.wireguard_port} is outside 1 … {WIREGUARD_PORT_MAX}: it is the first of "
            f"{WIREGUARD_PORTS}",
        )
    if not 0 <= config.rotate_key_days <= 3650:
        raise Usage("usage", f"--rotate-key {config.rotate_key_days} is outside 0 … 3650 days")
    if not 1 <= config.resync_s <= 3600 or not 0.2 <= config.heartbeat_s <= 300:
        raise Usage("usage", "--resync is 1 … 3600 s, --heartbeat 0.2 … 300 s")
    return config
