"""The packed encoders write, byte for byte, what pyroute2 writes."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from nodeagent.netlink import constants as c
from nodeagent.netlink import dump, messages
from nodeagent.netlink.messages import Action, Operation, Run
from nodeagent.netlink.rows import Kind, mac_text, route_key, route_value, side_route_value

ifindexes = st.integers(1, 2**31 - 1)
sequences = st.integers(0, 2**32 - 1)
addresses = st.binary(min_size=4, max_size=4)
macs = st.binary(min_size=6, max_size=6)
destinations = st.one_of(addresses, st.binary(min_size=16, max_size=16))
lengths = st.integers(0, 32)
metrics = st.integers(0, 2**32 - 1)

PUT = c.NLM_F_REQUEST | c.NLM_F_CREATE | c.NLM_F_REPLACE


def v4(value: bytes) -> str:
    return str(IPv4Address(value))


def reference(
    cls: type[Any], kind: int, nl_flags: int, sequence: int, attrs: list[tuple[str, Any]], **fields: int
) -> bytes:
    message = cls()
    for name, value in fields.items():
        message[name] = value
    message["attrs"] = attrs
    message["header"]["type"] = kind
    message["header"]["flags"] = nl_flags
    message["header"]["sequence_number"] = sequence
    message["header"]["pid"] = 0
    message.encode()
    return bytes(message.data)


@given(ifindexes, sequences, addresses, macs)
def test_put_neighbour(ifindex: int, sequence: int, address: bytes, mac: bytes) -> None:
    attrs = [("NDA_DST", v4(address)), ("NDA_LLADDR", mac_text(mac)), ("NDA_PROTOCOL", c.PROTOCOL)]
    expected = reference(
        ndmsg, c.RTM_NEWNEIGH, PUT, sequence, attrs, family=2, ifindex=ifindex, state=c.NUD_PERMANENT, flags=0
    )
    assert messages.put_neighbour(ifindex, sequence, address, mac) == expected


@given(ifindexes, sequences, addresses)
def test_drop_and_get_neighbour(ifindex: int, sequence: int, address: bytes) -> None:
    for kind, encode in ((c.RTM_DELNEIGH, messages.drop_neighbour), (c.RTM_GETNEIGH, messages.get_neighbour)):
        expected = reference(
            ndmsg, kind, c.NLM_F_REQUEST, sequence, [("NDA_DST", v4(address))], family=2, ifindex=ifindex
        )
        assert encode(ifindex, sequence, address) == expected


@given(ifindexes, sequences, macs, destinations)
def test_put_and_drop_fdb(ifindex: int, sequence: int, mac: bytes, destination: bytes) -> None:
    # pyroute2 chooses the width of NDA_DST by the text of the address.
    text = v4(destination) if len(destination) == 4 else str(IPv6Address(destination))
    attrs = [("NDA_LLADDR", mac_text(mac)), ("NDA_DST", text)]
    fields = {"family": 7, "ifindex": ifindex, "state": c.FDB_STATE, "flags": c.NTF_SELF}
    assert messages.put_fdb(ifindex, sequence, mac, destination) == reference(
        ndmsg, c.RTM_NEWNEIGH, PUT, sequence, attrs, **fields
    )
    assert messages.drop_fdb(ifindex, sequence, mac, destination) == reference(
        ndmsg, c.RTM_DELNEIGH, c.NLM_F_REQUEST, sequence, attrs, **fields
    )


@given(ifindexes, sequences, macs, addresses, st.integers(1, 65535))
def test_put_and_drop_fdb_with_a_port(
    ifindex: int, sequence: int, mac: bytes, address: bytes, port: int
) -> None:
    attrs = [("NDA_LLADDR", mac_text(mac)), ("NDA_DST", v4(address)), ("NDA_PORT", port)]
    fields = {"family": 7, "ifindex": ifindex, "state": c.FDB_STATE, "flags": c.NTF_SELF}
    destination = address + port.to_bytes(2, "big")
    put = messages.put_fdb(ifindex, sequence, mac, destination)
    assert put == reference(ndmsg, c.RTM_NEWNEIGH, PUT, sequence, attrs, **fields)
    assert messages.drop_fdb(ifindex, sequence, mac, destination) == reference(
        ndmsg, c.RTM_DELNEIGH, c.NLM_F_REQUEST, sequence, attrs, **fields
    )
    read: dict[bytes, bytes] = {}
    dump.read_fdb(put, ifindex, read)
    assert read == {mac: destination}


@given(ifindexes, sequences, macs)
def test_drop_and_get_fdb_by_mac_alone(ifindex: int, sequence: int, mac: bytes) -> None:
    attrs = [("NDA_LLADDR", mac_text(mac))]
    assert messages.drop_fdb(ifindex, sequence, mac, b"") == reference(
        ndmsg, c.RTM_DELNEIGH, c.NLM_F_REQUEST, sequence, attrs,
        family=7, ifindex=ifindex, state=c.FDB_STATE, flags=c.NTF_SELF,
    )  # fmt: skip
    assert messages.get_fdb(ifindex, sequence, mac) == reference(
        ndmsg, c.RTM_GETNEIGH, c.NLM_F_REQUEST, sequence, attrs, family=7, ifindex=ifindex, flags=c.NTF_SELF
    )


@given(ifindexes, sequences, addresses, lengths, metrics, addresses)
def test_put_route(
    ifindex: int, sequence: int, network: bytes, length: int, metric: int, gateway: bytes
) -> None:
    attrs = [
        ("RTA_DST", v4(network)),
        ("RTA_GATEWAY", v4(gateway)),
        ("RTA_OIF", ifindex),
        ("RTA_PRIORITY", metric),
    ]
    expected = reference(
        rtmsg, c.RTM_NEWROUTE, PUT, sequence, attrs,
        family=2, dst_len=length, table=254, proto=84, scope=0, type=1, flags=4,
    )  # fmt: skip
    assert messages.put_route(ifindex, sequence, route_key(network, length, metric), gateway) == expected


@given(ifindexes, sequences, addresses, lengths, metrics, addresses, st.integers(1, 65535))
def test_put_route_of_a_narrower_way(
    ifindex: int, sequence: int, network: bytes, length: int, metric: int, gateway: bytes, mtu: int
) -> None:
    attrs = [
        ("RTA_DST", v4(network)),
        ("RTA_GATEWAY", v4(gateway)),
        ("RTA_OIF", ifindex),
        ("RTA_PRIORITY", metric),
        ("RTA_METRICS", {"attrs": [("RTAX_MTU", mtu)]}),
    ]
    expected = reference(
        rtmsg, c.RTM_NEWROUTE, PUT, sequence, attrs,
        family=2, dst_len=length, table=254, proto=84, scope=0, type=1, flags=4,
    )  # fmt: skip
    value = route_value(gateway, mtu)
    assert messages.put_route(ifindex, sequence, route_key(network, length, metric), value) == expected


@given(ifindexes, sequences, addresses, lengths, metrics, addresses, st.integers(1, 65535), addresses)
def test_put_route_over_another_device(
    device: int,
    sequence: int,
    network: bytes,
    length: int,
    metric: int,
    gateway: bytes,
    mtu: int,
    source: bytes,
) -> None:
    via = [("RTA_GATEWAY", v4(gateway))] if any(gateway) else []
    attrs = [
        ("RTA_DST", v4(network)),
        *via,
        ("RTA_OIF", device),
        ("RTA_PRIORITY", metric),
        *([("RTA_PREFSRC", v4(source))] if any(source) else []),
        ("RTA_METRICS", {"attrs": [("RTAX_MTU", mtu)]}),
    ]
    expected = reference(
        rtmsg, c.RTM_NEWROUTE, PUT, sequence, attrs,
        family=2, dst_len=length, table=254, proto=84, scope=0 if via else 253, type=1, flags=4 if via else 0,
    )  # fmt: skip
    key, value = route_key(network, length, metric), side_route_value(gateway, mtu, device, source)
    written = messages.put_route(9, sequence, key, value)
    assert written == expected
    read: dict[bytes, bytes] = {}
    dump.read_routes(written, 9 if device != 9 else 8, read)
    assert read == {key: value}


@given(ifindexes, sequences, addresses, lengths, metrics)
def test_blackhole_and_drop_route(
    ifindex: int, sequence: int, network: bytes, length: int, metric: int
) -> None:
    attrs = [("RTA_DST", v4(network)), ("RTA_PRIORITY", metric)]
    key = route_key(network, length, metric)
    assert messages.put_route(ifindex, sequence, key, b"") == reference(
        rtmsg, c.RTM_NEWROUTE, PUT, sequence, attrs, family=2, dst_len=length, table=254, proto=84, type=6
    )
    assert messages.drop_route(sequence, key) == reference(
        rtmsg, c.RTM_DELROUTE, c.NLM_F_REQUEST, sequence, attrs,
        family=2, dst_len=length, table=254, proto=84, scope=255,
    )  # fmt: skip


@given(ifindexes, sequences)
def test_dump_requests(ifindex: int, sequence: int) -> None:
    flags = c.NLM_F_REQUEST | c.NLM_F_DUMP
    attrs = [("NDA_IFINDEX", ifindex)]
    assert messages.dump_neighbours(ifindex, sequence) == reference(
        ndmsg, c.RTM_GETNEIGH, flags, sequence, attrs, family=2
    )
    assert messages.dump_fdb(ifindex, sequence) == reference(
        ndmsg, c.RTM_GETNEIGH, flags, sequence, attrs, family=7
    )
    assert messages.dump_routes(sequence) == reference(
        rtmsg, c.RTM_GETROUTE, flags, sequence, [], family=2, table=254, proto=84
    )


@given(ifindexes, sequences, addresses, macs, addresses)
def test_operations_choose_their_message(
    ifindex: int, sequence: int, address: bytes, mac: bytes, dst: bytes
) -> None:
    key = route_key(address, 26)
    pairs = [
        (
            Operation(Action.PUT, Kind.NEIGHBOUR, address, mac),
            messages.put_neighbour(ifindex, sequence, address, mac),
        ),
        (
            Operation(Action.DROP, Kind.NEIGHBOUR, address, mac),
            messages.drop_neighbour(ifindex, sequence, address),
        ),
        (Operation(Action.PUT, Kind.FDB, mac, dst), messages.put_fdb(ifindex, sequence, mac, dst)),
        (Operation(Action.DROP, Kind.FDB, mac, dst), messages.drop_fdb(ifindex, sequence, mac, dst)),
        (Operation(Action.PUT, Kind.ROUTE, key, dst), messages.put_route(ifindex, sequence, key, dst)),
        (Operation(Action.DROP, Kind.ROUTE, key, dst), messages.drop_route(sequence, key)),
    ]
    for operation, message in pairs:
        assert messages.ENCODERS[operation.action][operation.kind](ifindex, sequence, *operation[2:]) == message


def rows_of(kind: Kind) -> st.SearchStrategy[tuple[bytes, bytes]]:
    """A key and a value of each length that rows of this kind have."""
    if kind is Kind.NEIGHBOUR:
        return st.tuples(addresses, macs)
    if kind is Kind.FDB:
        return st.tuples(macs, st.one_of(destinations, st.binary(min_size=6, max_size=6)))
    ranges = st.builds(route_key, addresses, lengths, metrics)
    narrow = st.builds(route_value, addresses, st.integers(1, 65535))
    aside = st.builds(side_route_value, addresses, st.integers(1, 65535), ifindexes, addresses)
    return st.tuples(ranges, st.one_of(st.just(b""), addresses, narrow, aside))


@given(st.data(), st.sampled_from(Action), st.sampled_from(Kind), ifindexes, st.integers(1, 2**31))
def test_many_at_once_are_the_same_bytes_as_one_by_one(
    data: st.DataObject, action: Action, kind: Kind, ifindex: int, sequence: int
) -> None:
    # Each is repeated, so that there are stretches of one length that are long enough to be written at once.
    stretches = st.tuples(rows_of(kind), rows_of(kind), st.integers(1, 20))
    drawn = data.draw(st.lists(stretches, min_size=1, max_size=4))
    pairs = [pair for one, two, times in drawn for _ in range(times) for pair in (one, two)]
    run = Run(action, kind, [key for key, _ in pairs], [value for _, value in pairs])
    expected = messages.encode(run.operations(), sequence, ifindex)
    assert messages.encode_run(run, sequence, ifindex) == expected
