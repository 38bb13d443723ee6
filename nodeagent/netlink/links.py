"""The vxlan device, its address, and what the agent must know of other links: the rare work, by pyroute2.

Every function opens its own socket: calls come from worker threads, seconds or minutes apart. Nothing
here touches a device that is not ours; a device is ours if it has our name and is a vxlan device.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Any

import msgspec
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from events.errors import Refused
from nodeagent.netlink.constants import IFF_LOWER_UP, IFF_NOARP, IFF_UP, RTM_F_LOOKUP_TABLE

VXLAN_OVERHEAD_V4 = 50
"""Outer IPv4 20 + UDP 8 + VXLAN 8 + inner Ethernet 14 bytes."""

MTU_MINIMUM = 576
_NUD_INCOMPLETE, _NUD_FAILED, _NUD_NOARP = 0x01, 0x20, 0x40


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """A network device. ``carrier``: somebody is at the other end. ``vni`` and below: of vxlan devices."""

    index: int
    name: str
    up: bool
    mtu: int
    mac: str
    kind: str = ""
    master: int = 0
    """Index of the bridge, bond or VRF that takes its packets; 0: none."""
    arp: bool = True
    carrier: bool = True
    vni: int | None = None
    port: int | None = None
    local: str = ""
    learning: bool = False
    metadata: bool = False
    source_ports: tuple[int, ...] = ()
    """From which port on (and before which) it takes source ports; zeros: the kernel chooses."""


class DeviceSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What our device must be. ``local`` is this node's own underlay address, ``address`` its VTEP address."""

    name: str
    vni: int
    port: int
    mac: str
    local: str
    address: str
    mtu: int
    fixed_source: bool = False
    """Whether the source port of every packet is ``port``."""


class DeviceOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """The device as it is now, and what had to be done (empty: nothing)."""

    index: int
    actions: tuple[str, ...] = ()
    withheld: tuple[str, ...] = ()
    """Properties that are not as specified and were left so, see :func:`ensure_device`."""


@contextmanager
def kernel() -> Iterator[Any]:
    """A socket. Raises OSError for what the kernel refuses: a device may vanish between any two calls."""
    try:
        with IPRoute() as socket:
            yield socket
    except NetlinkError as error:
        raise OSError(error.code, str(error)) from error


def _link(message: Any) -> Link:
    info = message.get_attr("IFLA_LINKINFO")
    kind = (info.get_attr("IFLA_INFO_KIND") or "") if info else ""
    data = info.get_attr("IFLA_INFO_DATA") if info and kind == "vxlan" else None
    get = data.get_attr if data else lambda _: None
    return Link(
        index=message["index"],
        name=message.get_attr("IFLA_IFNAME") or "",
        up=bool(message["flags"] & IFF_UP),
        mtu=message.get_attr("IFLA_MTU") or 0,
        mac=message.get_attr("IFLA_ADDRESS") or "",
        kind=kind,
        master=message.get_attr("IFLA_MASTER") or 0,
        arp=not message["flags"] & IFF_NOARP,
        carrier=bool(message["flags"] & IFF_LOWER_UP),
        vni=get("IFLA_VXLAN_ID"),
        port=get("IFLA_VXLAN_PORT"),
        local=get("IFLA_VXLAN_LOCAL") or get("IFLA_VXLAN_LOCAL6") or "",
        learning=bool(get("IFLA_VXLAN_LEARNING")),
        metadata=bool(get("IFLA_VXLAN_COLLECT_METADATA")),
        source_ports=tuple((get("IFLA_VXLAN_PORT_RANGE") or {}).values()),
    )


def links() -> list[Link]:
    """Every device of this network namespace."""
    with kernel() as socket:
        return [_link(message) for message in socket.get_links()]


def find(name: str) -> Link | None:
    """The device of that name."""
    with kernel() as socket:
        return _find(socket, name)


def _find(socket: Any, name: str) -> Link | None:
    try:
        found = socket.link("get", ifname=name)
    except NetlinkError as error:
        if error.code == errno.ENODEV:
            return None
        raise
    return _link(found[0])


def addresses() -> list[tuple[int, str, int]]:
    """(device index, IPv4 address, prefix length) of every address."""
    with kernel() as socket:
        return [
            (
                message["index"],
                message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS"),
                message["prefixlen"],
            )
            for message in socket.get_addr(family=2)
            if not str(message.get_attr("IFA_LABEL") or "").endswith(":clb")  # a CLB's, not the node's
        ]


def own_addresses() -> frozenset[str]:
    """This machine's IPv4 addresses outside the tunnel, and its links' broadcast addresses. Raises OSError."""
    found: set[str] = set()
    for _, address, length in addresses():
        found.add(address)
        if length < 31:
            found.add(str(IPv4Interface(f"{address}/{length}").network.broadcast_address))
    return frozenset(found)


def default_device() -> str:
    """The device of the best default route, one with a carrier if there is any; empty without one."""
    with kernel() as socket:
        routes = [
            (message.get_attr("RTA_PRIORITY") or 0, message.get_attr("RTA_OIF") or 0)
            for message in socket.get_default_routes(family=2, table=254)
        ]
        found = [_link(socket.link("get", index=index)[0]) for _, index in sorted(routes) if index]
        return next((link.name for link in sorted(found, key=lambda link: not link.carrier)), "")


def devices_towards(cidr: str, among: set[int]) -> dict[str, int]:
    """Name → index of those devices that have a route into the network: for a range, its pods' devices."""
    network = IPv4Network(cidr)
    found: dict[str, int] = {}
    with kernel() as socket:
        for index in sorted(among):
            # Filtered by the kernel: other nodes' routes may be thousands.
            for message in socket.get_routes(family=2, oif=index, table=254):
                target = message.get_attr("RTA_DST")
                if target and IPv4Address(target) in network:
                    found[str(socket.link("get", index=index)[0].get_attr("IFLA_IFNAME"))] = index
                    break
    return found


class KernelRoute(msgspec.Struct, frozen=True, kw_only=True):
    """Where the kernel sends packets to an address: device, table, and the source that it would give them."""

    index: int
    device: str
    source: str = ""
    table: int = 0


def route_to(target: str, *, source: str = "", incoming: int = 0) -> KernelRoute:
    """Ask the kernel where a packet would go, with its policy rules.

    ``incoming``: the device by which it comes to be forwarded (its index); without it, a packet of the host
    itself. Raises OSError as the kernel answers: EHOSTUNREACH where it would not forward, ENETUNREACH.
    """
    wanted: dict[str, Any] = {"dst": target, "flags": RTM_F_LOOKUP_TABLE}
    if source:
        wanted["src"] = source
    if incoming:
        wanted["iif"] = incoming
    with kernel() as socket:
        try:
            (found,) = socket.route("get", **wanted)
            index = int(found.get_attr("RTA_OIF") or 0)
            name = str(socket.link("get", index=index)[0].get_attr("IFLA_IFNAME")) if index else ""
        except NetlinkError as error:
            raise OSError(error.code, str(error)) from error
        return KernelRoute(
            index=index,
            device=name,
            source=str(found.get_attr("RTA_PREFSRC") or ""),
            table=int(found.get_attr("RTA_TABLE") or found["table"]),
        )


def route_mtu(address: str) -> int:
    """The MTU of the route to an address, if it has one of its own; else 0. Raises OSError (NetlinkError)."""
    with kernel() as socket:
        (found,) = socket.route("get", dst=address)
        metrics = found.get_attr("RTA_METRICS")
        return int((metrics.get_attr("RTAX_MTU") if metrics else 0) or 0)


def ensure_device(spec: DeviceSpec, allow: Callable[[str], bool] = lambda _: True) -> DeviceOutcome:
    """Make our device be as specified, changing as little as possible.

    VNI and port cannot change on a living device: then it is made anew, and its rows with it. One that
    somebody renamed gets its name back. What is to be put right on a device that is there is asked of
    ``allow`` by its name (master, local, mac, mtu, arp, up, address), and left so where the answer is no.
    Raises Refused(overlay_conflict) when the name, the VNI or the port belongs to another device, and OSError
    (NetlinkError) for what the kernel refuses otherwise.
    """
    actions: list[str] = []
    with kernel() as socket:
        link = _find(socket, spec.name)
        if link is None and (renamed := _renamed(socket, spec)) is not None:
            socket.link("set", index=renamed.index, state="down")  # kernels rename few devices that are up
            socket.link("set", index=renamed.index, ifname=spec.name)
            actions.append(f"name {renamed.name} → {spec.name}")
            link = _find(socket, spec.name)
        if link is not None and link.kind != "vxlan":
            raise Refused(
                "overlay_conflict",
                f"device {spec.name} exists and is no vxlan device ({link.kind or 'physical'}): rename or "
                f"remove it, or start the agent with --device NAME",
                device=spec.name,
            )
        if link is not None and not _usable(link, spec):
            socket.link("del", index=link.index)
            actions.append(f"removed {spec.name} with vni {link.vni} port {link.port}")
            link = None
        made = link is None
        if link is None:
            _create(socket, spec)
            actions.append(f"created {spec.name}")
            link = _find(socket, spec.name)
        if link is None:
            raise OSError(errno.ENODEV, f"{spec.name} vanished while it was being made")
        withheld: list[str] = []

        def allowed(name: str) -> bool:
            if made or allow(name):
                return True
            withheld.append(name)
            return False

        actions += _adjust(socket, link, spec, allowed)
        actions += _address(socket, link.index, spec.address, allowed)
    return DeviceOutcome(index=link.index, actions=tuple(actions), withheld=tuple(withheld))


def _renamed(socket: Any, spec: DeviceSpec) -> Link | None:
    """Our device under a name that somebody else gave it: our VNI, port and MAC are nobody else's."""
    found = map(_link, socket.get_links())
    return next((link for link in found if _usable(link, spec) and link.mac == spec.mac), None)


def _usable(link: Link, spec: DeviceSpec) -> bool:
    fits = (link.vni, link.port, link.metadata) == (spec.vni, spec.port, False)
    return fits and (not spec.fixed_source or link.source_ports == (spec.port, spec.port + 1))


def _create(socket: Any, spec: DeviceSpec) -> None:
    source: dict[str, Any] = {}
    if spec.fixed_source:  # no outer checksum: where NAT changes it before it is computed, it is wrong
        source = {"vxlan_port_range": {"low": spec.port, "high": spec.port + 1}, "vxlan_udp_csum": 0}
    try:
        socket.link(
            "add",
            ifname=spec.name,
            kind="vxlan",
            address=spec.mac,
            mtu=spec.mtu,
            vxlan_id=spec.vni,
            vxlan_port=spec.port,
            vxlan_learning=0,
            vxlan_local=spec.local,
            **source,
        )
    except NetlinkError as error:
        raise _conflict(socket, spec, error) from error


def _adjust(socket: Any, link: Link, spec: DeviceSpec, allowed: Callable[[str], bool]) -> list[str]:
    actions: list[str] = []
    if link.master and allowed("master"):  # it would get every packet that arrives here
        socket.link("set", index=link.index, master=0)
        actions.append(f"taken out of device {link.master}")
    if (link.local != spec.local or link.learning) and allowed("local"):
        socket.link(
            "set", index=link.index, kind="vxlan", vxlan_id=spec.vni, vxlan_local=spec.local, vxlan_learning=0
        )
        actions.append(f"local {link.local} → {spec.local}")
    if link.mac != spec.mac and allowed("mac"):
        socket.link("set", index=link.index, address=spec.mac)
        actions.append(f"mac {link.mac} → {spec.mac}")
    if link.mtu != spec.mtu and allowed("mtu"):
        socket.link("set", index=link.index, mtu=spec.mtu)
        actions.append(f"mtu {link.mtu} → {spec.mtu}")
    if not link.arp and allowed("arp"):  # without it the kernel takes no MAC from the neighbour rows
        socket.link("set", index=link.index, flags=0, change=IFF_NOARP)
        actions.append("arp on")
    if not link.up and allowed("up"):
        try:
            socket.link("set", index=link.index, state="up")
        except NetlinkError as error:
            raise _conflict(socket, spec, error) from error
        actions.append("up")
    return actions


def _address(socket: Any, index: int, address: str, allowed: Callable[[str], bool]) -> list[str]:
    actions: list[str] = []
    present = False
    others: list[tuple[str, int]] = []
    for message in socket.get_addr(family=2, index=index):
        local, length = message.get_attr("IFA_LOCAL"), message["prefixlen"]
        if (local, length) == (address, 32):
            present = True
        else:
            others.append((local, length))
    if (present and not others) or not allowed("address"):
        return actions
    for local, length in others:
        socket.addr("del", index=index, address=local, prefixlen=length)
        actions.append(f"address {local}/{length} removed")
    if not present:
        socket.addr("add", index=index, address=address, prefixlen=32)
        actions.append(f"address {address}/32")
    return actions


def _conflict(socket: Any, spec: DeviceSpec, error: NetlinkError) -> Exception:
    """EEXIST: VNI and port belong to another device; EADDRINUSE: its port is bound by another one."""
    if error.code not in (errno.EEXIST, errno.EADDRINUSE):
        return OSError(error.code, str(error))
    present = (_link(message) for message in socket.get_links())
    others = (
        link for link in present if link.kind == "vxlan" and link.name != spec.name and link.port == spec.port
    )
    for other in sorted(others, key=lambda link: link.vni != spec.vni and not link.metadata):
        return Refused(
            "overlay_conflict",
            f"vni {spec.vni} on port {spec.port} cannot be used: device {other.name} holds vni {other.vni} "
            f"on port {other.port}{' for all VNIs' if other.metadata else ''}. Remove {other.name}, or "
            f"define the cluster with another port or VNI",
            device=other.name,
            vni=spec.vni,
            port=spec.port,
        )
    return Refused(
        "overlay_conflict",
        f"UDP port {spec.port} is bound by another program or device (see `ss -lun`): stop it, or define the "
        f"cluster with another port",
        port=spec.port,
    )


def rename(index: int, name: str) -> None:
    """Give a device another name; its addresses, rows and routes stay. Raises OSError."""
    with kernel() as socket:
        socket.link("set", index=index, ifname=name)


def alternative_names(index: int) -> list[str]:
    """By what other names a device can be found."""
    with kernel() as socket:
        found = socket.get_links(index)
        listed = found[0].get_attr("IFLA_PROP_LIST") if found else None
        return [str(name) for name in listed.get_attrs("IFLA_ALT_IFNAME")] if listed else []


def add_alternative_name(index: int, name: str) -> None:
    """Let a device be found by that name, too. Raises OSError."""
    with kernel() as socket:
        socket.link("property_add", index=index, altname=name)


def drop_alternative_name(index: int, name: str) -> None:
    """Take one of its other names from a device. Raises OSError."""
    with kernel() as socket:
        socket.link("property_del", index=index, altname=name)


def has_ports(bridge: int) -> bool:
    """Whether any device hangs on that bridge (by index)."""
    with kernel() as socket:
        return any(True for _ in socket.get_links(master=bridge))


def neighbours(index: int) -> list[str]:
    """IPv4 addresses that have answered on that device."""
    with kernel() as socket:
        return [
            str(message.get_attr("NDA_DST"))
            for message in socket.get_neighbours(family=2, ifindex=index)
            if not message["state"] & (_NUD_INCOMPLETE | _NUD_FAILED | _NUD_NOARP)
        ]


def remove_veth(index: int) -> bool:
    """Remove a veth device, and with it its other end; False when there is none of that index and kind."""
    with kernel() as socket:
        try:
            link = _link(socket.get_links(index)[0])
        except (NetlinkError, IndexError):
            return False
        if link.kind == "veth":
            socket.link("del", index=index)
        return link.kind == "veth"


def remove_device(name: str) -> bool:
    """Remove our device (rows go with it); False when there is none of that name and kind."""
    with kernel() as socket:
        if (link := _find(socket, name)) is None or link.kind != "vxlan":
            return False
        socket.link("del", index=link.index)
    return True
