"""The tunnel device of a network that was here before (flannel's): taken over in flow, and given back.

The device gets our name and keeps the old one as an alternative name; index, MAC, VNI, port, MTU, address and
every row stay. Neighbours and FDB rows become ours by being written over. A route of the other network is
removed only when ours for the same range stands; one towards a range that the log does not know stays, with its
neighbour and FDB row, because packets may need it. Each step looks at what is there, so that any of them may be
the last before a crash. Everything blocks for milliseconds.
"""

from __future__ import annotations

import errno
import struct
from typing import NamedTuple

from events.errors import Refused
from nodeagent.netlink import dump, links, messages, plain_routes
from nodeagent.netlink.constants import (
    AF_INET,
    PROTOCOL,
    RT_TABLE_MAIN,
    RTA_DST,
    RTA_GATEWAY,
    RTA_OIF,
    RTA_PRIORITY,
    RTM_NEWROUTE,
)
from nodeagent.netlink.links import DeviceSpec
from nodeagent.netlink.messages import Action, Operation
from nodeagent.netlink.rows import Kind, Rows, is_preferred, split_route_key
from nodeagent.netlink.socket import Engine, NetlinkChannel, dumped

_RTMSG = struct.Struct("=BBBBBBBBI")
BY_KERNEL = 2
"""Protocol number of routes that the kernel makes of addresses."""


class Foreign(NamedTuple):
    """A route of somebody else over our device."""

    network: bytes
    length: int
    gateway: bytes
    protocol: int
    metric: int


def take(old: str, spec: DeviceSpec) -> list[str]:
    """Give the device ``old`` our name, unless that is done; what was done, in words.

    Raises Refused(adopt_device_differs) when it is another device than the plan says, OSError.
    """
    ours = links.find(spec.name)
    done: list[str] = []
    if ours is None or spec.name == old:
        there = links.find(old)
        if there is None:
            return done  # nothing to take over: ours is made as on any node
        wanted = {"kind": "vxlan", "VNI": spec.vni, "port": spec.port, "MAC": spec.mac}
        has = {"kind": there.kind, "VNI": there.vni, "port": there.port, "MAC": there.mac}
        if spec.name != old:  # one that keeps its name is followed to another address, too, once it is ours
            wanted["local"], has["local"] = spec.local, there.local
        differing = [
            f"{what} {has[what]} (the log: {wanted[what]})" for what in wanted if has[what] != wanted[what]
        ]
        if differing:
            raise Refused(
                "adopt_device_differs",
                f"device {old} is not the one that the log knows of this node: {', '.join(differing)}. It is "
                f"left as it is; plan the adoption anew",
                device=old,
            )
        if spec.name == old:
            return done
        try:
            links.rename(there.index, spec.name)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            raise Refused(
                "adopt_device_differs",
                f"this kernel renames no device that is up (Linux 6.2 and later do): start the agent with "
                f"--device {old} and it is taken over under its own name",
                device=old,
            ) from error
        done.append(f"{old} renamed {spec.name}")
        ours = links.find(spec.name)
    if ours is not None and links.find(old) is None:
        links.add_alternative_name(ours.index, old)
        done.append(f"alternative name {old}")
    return done


def foreign_routes(ifindex: int) -> list[Foreign]:
    """Routes over our device that are neither ours nor the kernel's. Raises OSError."""
    found = []
    for data, start, end in dumped(messages.dump_routes(1, protocol=0), RTM_NEWROUTE):
        family, length, _, _, table, protocol, _, _, _ = _RTMSG.unpack_from(data, start)
        if family != AF_INET or table != RT_TABLE_MAIN or protocol in {PROTOCOL, BY_KERNEL}:
            continue
        attributes = dump.attributes(data, start + _RTMSG.size, end)
        if int.from_bytes(attributes.get(RTA_OIF, b""), "little") == ifindex:
            metric = int.from_bytes(attributes.get(RTA_PRIORITY, b""), "little")
            gateway = attributes.get(RTA_GATEWAY, b"")
            found.append(Foreign(attributes.get(RTA_DST, bytes(4)), length, gateway, protocol, metric))
    return found


def spared(rows: Rows, kernel: Rows, foreign: list[Foreign]) -> Rows:
    """``kernel`` without what serves ranges that the log does not know: nobody else would keep it. Pure."""
    ranges = {split_route_key(key)[:2] for key in rows.routes}
    lost = [
        route for route in foreign if (route.network, route.length) not in ranges and len(route.gateway) == 4
    ]
    if not lost:
        return kernel
    gateways = {route.gateway for route in lost} - rows.neighbours.keys()
    macs = {_mac(kernel.neighbours.get(gateway, b"")) for gateway in gateways} - rows.fdb.keys()
    unknown = kernel.fdb.keys() - rows.fdb.keys() if b"" in macs else set()
    return Rows(
        {key: value for key, value in kernel.neighbours.items() if key not in gateways},
        {key: value for key, value in kernel.fdb.items() if key not in macs and key not in unknown},
        kernel.routes,
    )


def _mac(value: bytes) -> bytes:
    return value if len(value) == 6 else b""


def superseded(rows: Rows, foreign: list[Foreign]) -> list[Foreign]:
    """Routes of the other network for which ours stand. Pure."""
    ranges = {split_route_key(key)[:2] for key in rows.routes}
    return [route for route in foreign if (route.network, route.length) in ranges]


def sweep(ifindex: int, routes: list[Foreign]) -> None:
    """Remove these routes. Raises OSError."""
    plain_routes.drop_routes(
        ifindex, [(route.network, route.length, route.protocol, route.metric) for route in routes]
    )


def give_back(name: str, old: str) -> list[str]:
    """Our rows become such as the other network writes, and the device gets its name back; what was done, in
    words.

    Repeating it goes on from what is there. Raises OSError.
    """
    done: list[str] = []
    device = links.find(name)
    if device is None:
        return done
    with Engine(NetlinkChannel()) as engine:
        routes = engine.read(device.index).routes
        through = [(key, v) for key, v in routes.items() if len(v) in {4, 8} and not is_preferred(key)]
        there = {(route.network, route.length) for route in foreign_routes(device.index)}
        missing = [
            (network, length, value[:4])
            for key, value in through
            for network, length, _ in (split_route_key(key),)
            if (network, length) not in there
        ]
        plain_routes.put_plain_routes(device.index, missing)
        engine.execute(
            [Operation(Action.DROP, Kind.ROUTE, key, value) for key, value in routes.items()], device.index
        )
    if routes:
        done.append(f"{len(missing)} routes given back, {len(routes)} of ours removed")
    if name != old:
        if old in links.alternative_names(device.index):
            links.drop_alternative_name(device.index, old)
        links.rename(device.index, old)
        done.append(f"{name} renamed {old}")
    return done
