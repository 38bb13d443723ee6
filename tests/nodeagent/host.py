"""One host's device, rows, table and, if wished, fast path by the agent's own parts, without agent and bus."""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from collections.abc import Mapping

import msgspec

from nodeagent.conditions import Conditions
from nodeagent.dataplane import host_settings
from nodeagent.dataplane.desired import Desired, difference
from nodeagent.dataplane.second_device import SecondDevice, second_name, second_vni
from nodeagent.fastpath import layout, programs
from nodeagent.fastpath.layout import Side
from nodeagent.fastpath.programs import Programs
from nodeagent.firewall import elements, ruleset
from nodeagent.membership.peers import Peer, PeerChange
from nodeagent.netlink import links, neighbourhood
from nodeagent.netlink.rows import Rows, address_bytes, mac_bytes, mac_text, side_route_value
from nodeagent.netlink.socket import Engine, NetlinkChannel

VNI, PORT, MTU = 100, 8472, 1450
CONTAINERS = "172.16.0.0/16"
DEVICE = "isthmus"


def own_range(number: int) -> str:
    """The range of host ``number``, whose underlay address is 10.0.0.``number``."""
    return f"172.16.{number}.0/24"


def mac(number: int) -> str:
    """The MAC of a host's VTEP."""
    return f"66:00:00:00:{0x10 + (number >> 8):02x}:{number & 255:02x}"


def peer(number: int) -> Peer:
    """A host as others see it."""
    return Peer(f"n{number}", f"u{number}", number, own_range(number), mac(number), f"10.0.0.{number}")


def prepare(number: int, *others: int, fast: bool, pods: Mapping[str, str] | None = None) -> Programs | None:
    """In the present namespace, whose underlay device is ``u``; ``pods`` are host sides, by default ``p``.

    The programs stay when the process ends.
    """
    spec = links.DeviceSpec(
        name=DEVICE, vni=VNI, port=PORT, mac=mac(number),
        local=f"10.0.0.{number}", address=f"172.16.{number}.0", mtu=MTU,
    )  # fmt: skip
    index = links.ensure_device(spec).index
    _, failed = host_settings.prepare_host(spec.name, behind_nat=False, gro=True)
    assert not failed, failed
    write_rows(number, *others, index=index)
    protect(number, *others)
    host_settings.set_sysctl("net/netfilter/nf_conntrack_tcp_be_liberal", "1")
    if not fast:
        return None
    entries = dict(layout.peer_entry(peer(other), MTU, PORT) for other in others)
    return _hang(number, entries, ["p"] if pods is None else list(pods.values()))


def _hang(number: int, peers: dict[bytes, bytes], names: list[str]) -> Programs:
    loaded = programs.load()
    loaded.put_peers(peers)
    index, underlay = socket.if_nametoindex(DEVICE), socket.if_nametoindex("u")
    loaded.tell(record(number, index, underlay, generation=1)._replace(direct=1))
    for hook in programs.hooks(underlay, [socket.if_nametoindex(name) for name in names]):
        loaded.hang(hook)
    return loaded


def lead_directly(
    number: int, other: int, *further: int, fast: bool = False, loaded: Programs | None = None
) -> None:
    """The other host is a neighbour on ``u``, reached without the tunnel. Its MAC must be known.

    ``further`` are members beside it. ``fast`` loads programs, ``loaded`` are those that hang already.
    """
    device = socket.if_nametoindex("u")
    near = {own_range(other): mac_text(neighbourhood.macs(device)[f"10.0.0.{other}"])}
    rules = ruleset.Rules(
        device=DEVICE, port=PORT, own_range=own_range(number), cidrs=(CONTAINERS,),
        ifindex=socket.if_nametoindex(DEVICE), underlay=f"10.0.0.{number}", direct=device,
    )  # fmt: skip
    asyncio.run(ruleset.replace(rules, [f"10.0.0.{each}" for each in (other, *further)], near=near))
    desired = Desired()
    desired.apply(PeerChange(None, peer(other)))
    way = side_route_value(address_bytes(f"10.0.0.{other}"), MTU, device, address_bytes(f"172.16.{number}.0"))
    with Engine(NetlinkChannel()) as engine:
        assert not engine.execute(desired.prefer(peer(other), way), 0)
    side = Side(layout.DIRECT, address_bytes(f"10.0.0.{other}"), PORT, mac_bytes(near[own_range(other)]))
    entry = dict([layout.peer_entry(peer(other), MTU, PORT, side)])
    if fast:
        _hang(number, entry, ["p"])
    elif loaded is not None:
        loaded.put_peers(entry)
        generation, tunnel, underlay = struct.unpack_from("=III", loaded.told())
        loaded.tell(record(number, tunnel, underlay, generation=generation + 1)._replace(direct=1))


def lead_through_nat(
    number: int,
    other: int,
    *further: int,
    seen: str = "",
    port: int = PORT,
    fast: bool = False,
    loaded: Programs | None = None,
) -> None:
    """The other host is reached by the second device, as a peer behind NAT is, where it is seen.

    ``further`` are members beside it. ``fast`` loads programs, ``loaded`` are those that hang already.
    """
    spec = links.DeviceSpec(
        name=DEVICE, vni=VNI, port=PORT, mac=mac(number),
        local=f"10.0.0.{number}", address=f"172.16.{number}.0", mtu=MTU,
    )  # fmt: skip
    second = SecondDevice(DEVICE, Conditions())
    second.wanted = True
    second.prepare(spec, lambda _: True)
    first, address, destination, _ = peer(other).packed()
    if seen or port != PORT:
        destination = address_bytes(seen or f"10.0.0.{other}") + port.to_bytes(2, "big") * (port != PORT)
    second.rows = Rows({first: address}, {address: destination}, {})
    desired = Desired()
    desired.apply(PeerChange(None, peer(other)))
    way = side_route_value(first, MTU, second.ifindex, address_bytes(f"172.16.{number}.0"))
    with Engine(NetlinkChannel()) as engine:
        assert second.compare(engine, None) is not None
        assert not engine.execute(desired.prefer(peer(other), way), 0)
    rules = ruleset.Rules(
        device=DEVICE, port=PORT, own_range=own_range(number), cidrs=(CONTAINERS,),
        ifindex=socket.if_nametoindex(DEVICE), underlay=f"10.0.0.{number}",
        second=elements.Second(second.name, second.ifindex, second_vni(VNI)),
    )  # fmt: skip
    place = Side(layout.MAPPED, address_bytes(seen or peer(other).underlay), port, mac_bytes(mac(other)))
    asyncio.run(
        ruleset.replace(
            rules,
            [f"10.0.0.{each}" for each in (other, *further)],
            mapped=[f"{seen or peer(other).underlay} . {port}"],
        )
    )
    entry = dict([layout.peer_entry(peer(other), MTU, PORT, place)])
    if fast:
        loaded = _hang(number, {}, ["p"])
    if loaded is not None:
        loaded.put_peers(entry)
        (generation,) = struct.unpack_from("=I", loaded.told())
        there = record(
            number, socket.if_nametoindex(DEVICE), socket.if_nametoindex("u"), generation=generation + 1
        )
        loaded.tell(there)


def lead_into_wireguard(
    number: int,
    other: int,
    *further: int,
    name: str,
    ports: str = "51820-51823",
    fast: bool = False,
    loaded: Programs | None = None,
) -> None:
    """The other host is reached by the device of that name alone, as an encrypted peer is.

    ``further`` are members beside it. ``fast`` loads programs, ``loaded`` are those that hang already.
    """
    index, source = socket.if_nametoindex(name), address_bytes(f"172.16.{number}.0")
    rules = ruleset.Rules(
        device=DEVICE, port=PORT, own_range=own_range(number), cidrs=(CONTAINERS,),
        ifindex=socket.if_nametoindex(DEVICE), underlay=f"10.0.0.{number}", wireguard=name,
        wireguard_ports=ports,
    )  # fmt: skip
    asyncio.run(ruleset.replace(rules, [f"10.0.0.{each}" for each in further]))
    sealed = msgspec.structs.replace(peer(other), stage="required")
    desired = Desired()
    desired.apply(PeerChange(None, peer(other)))
    with Engine(NetlinkChannel()) as engine:
        operations = desired.apply(PeerChange(peer(other), sealed))
        operations += desired.prefer(sealed, side_route_value(bytes(4), MTU - 10, index, source))
        assert not engine.execute(operations, socket.if_nametoindex(DEVICE))
    if fast:
        loaded = _hang(number, {}, ["p"])
    if loaded is not None:
        way = Side(layout.SEALED, index.to_bytes(4, sys.byteorder), 0, bytes(6))
        loaded.put_peers(dict([layout.peer_entry(sealed, MTU - 10, 0, way)]))
        for direction, program in programs.WIREGUARD:
            loaded.hang(programs.Hook(index, direction, program))
        words = struct.unpack_from("=III", loaded.told())
        loaded.tell(record(number, words[1], words[2], generation=words[0] + 1))


def write_rows(number: int, *others: int, index: int) -> None:
    """All rows of a host, whatever of them is there already."""
    desired = Desired()
    desired.own_range(own_range(number))
    for other in others:
        desired.apply(PeerChange(None, peer(other)))
    with Engine(NetlinkChannel()) as engine:
        assert not engine.execute(difference(desired.rows, Rows.empty()), index)


def follow(change: PeerChange, loaded: Programs | None) -> None:
    """What an agent does in the present namespace when an event changes a peer, in its order."""
    before, after = change
    desired = Desired()
    if before is not None:
        desired.apply(PeerChange(None, before))
        if loaded is not None:
            loaded.drop_peers([layout.range_key(before.cidr)])
    with Engine(NetlinkChannel()) as engine:
        assert not engine.execute(desired.apply(change), socket.if_nametoindex(DEVICE))
    added, removed = ({each.underlay} if each is not None else set() for each in (after, before))
    asyncio.run(ruleset.nft(elements.render_members(added - removed, removed - added)))
    if after is not None and loaded is not None:
        loaded.put_peers(dict([layout.peer_entry(after, MTU, PORT)]))


def narrow(way: Peer, mtu: int, loaded: Programs | None) -> None:
    """What an agent does when it finds that a way passes no more than that; 0: as much as the device."""
    desired = Desired()
    desired.apply(PeerChange(None, way))
    if not mtu:
        desired.narrow(way, 1)
    with Engine(NetlinkChannel()) as engine:
        assert not engine.execute(desired.narrow(way, mtu), socket.if_nametoindex(DEVICE))
    if loaded is not None:
        loaded.put_peers(dict([layout.peer_entry(way, mtu or MTU, PORT)]))


def become(number: int, own: Peer, *others: int, loaded: Programs | None) -> None:
    """The node itself has another underlay address or identity from now on."""
    spec = links.DeviceSpec(
        name=DEVICE, vni=VNI, port=PORT, mac=own.vtep_mac,
        local=own.underlay, address=f"172.16.{number}.0", mtu=MTU,
    )  # fmt: skip
    index = links.ensure_device(spec).index
    write_rows(number, *others, index=index)  # a device that was down for another MAC has lost its routes
    protect(number, *others, underlay=own.underlay)
    if loaded is not None:
        (generation,) = struct.unpack_from("=I", loaded.told())
        there = record(number, index, socket.if_nametoindex("u"), generation=generation + 1)
        loaded.tell(there._replace(direct=1, local=address_bytes(own.underlay), mac=mac_bytes(own.vtep_mac)))


def protect(number: int, *others: int, entries: tuple[str, ...] = (), underlay: str = "") -> None:
    """The firewall's table as the agent writes it, with sources that are let in."""
    rules = ruleset.Rules(
        device=DEVICE, port=PORT, own_range=own_range(number), cidrs=(CONTAINERS,),
        ifindex=socket.if_nametoindex(DEVICE), underlay=underlay or f"10.0.0.{number}", entries=entries,
    )  # fmt: skip
    asyncio.run(ruleset.replace(rules, [f"10.0.0.{other}" for other in others]))


def record(number: int, tunnel: int, underlay: int, *, generation: int) -> layout.NodeRecord:
    """What the programs know of a host."""
    try:
        second = socket.if_nametoindex(second_name(DEVICE))
    except OSError:
        second = 0
    return layout.NodeRecord(
        generation, tunnel, underlay, address_bytes(f"10.0.0.{number}"), VNI, PORT, mac_bytes(mac(number)),
        second=second, second_vni=second_vni(VNI) if second else 0,
    )  # fmt: skip
