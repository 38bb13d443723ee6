"""What a kernel does with our messages: one suite for the real one and the one in memory.

A place is a context with a fresh ``engine`` and the index of a vxlan device that is up and has an
address; ``down``, ``up``, ``new_mac`` do things to that device.
"""

from __future__ import annotations

import errno
from typing import Protocol

from nodeagent.dataplane.desired import changes, difference
from nodeagent.netlink.messages import Action, Operation
from nodeagent.netlink.rows import BLACKHOLE, Kind, Rows, Table, route_key, route_value
from nodeagent.netlink.socket import Engine


def put(kind: Kind, key: bytes, value: bytes) -> Operation:
    """Write a row."""
    return Operation(Action.PUT, kind, key, value)


def drop(kind: Kind, key: bytes, value: bytes) -> Operation:
    """Remove a row."""
    return Operation(Action.DROP, kind, key, value)


class Place(Protocol):
    engine: Engine
    ifindex: int

    def down(self) -> None: ...
    def up(self) -> None: ...
    def new_mac(self) -> None: ...


def address(index: int) -> bytes:
    return (0xAC100040 + index * 64).to_bytes(4, "big")


def mac(index: int) -> bytes:
    return b"\x66" + index.to_bytes(5, "big")


def underlay(index: int) -> bytes:
    return (0x0A000002 + index).to_bytes(4, "big")


def rows_of(count: int) -> Rows:
    rows = Rows.empty()
    for index in range(count):
        rows.neighbours[address(index)] = mac(index)
        rows.fdb[mac(index)] = underlay(index)
        rows.routes[route_key(address(index), 26)] = address(index)
    return rows


def write(place: Place, rows: Rows) -> None:
    assert place.engine.execute(changes(rows, place.engine.read(place.ifindex)), place.ifindex) == []


def nothing_is_there_at_first(place: Place) -> None:
    assert not any(place.engine.read(place.ifindex))


def what_is_written_is_read_back(place: Place) -> None:
    rows = rows_of(3000)
    rows.routes[route_key(bytes([172, 16, 0, 0]), 26)] = BLACKHOLE
    write(place, rows)
    assert place.engine.read(place.ifindex) == rows
    assert difference(rows, place.engine.read(place.ifindex)) == []


def writing_twice_changes_nothing(place: Place) -> None:
    rows = rows_of(3)
    everything = difference(rows, Rows.empty())
    assert place.engine.execute(everything, place.ifindex) == []
    assert place.engine.execute(everything, place.ifindex) == []
    assert place.engine.read(place.ifindex) == rows


def a_put_replaces(place: Place) -> None:
    write(place, rows_of(2))
    changed = rows_of(2)
    changed.neighbours[address(0)] = mac(77)
    changed.fdb[mac(1)] = underlay(99)
    write(place, changed)
    assert place.engine.read(place.ifindex) == changed
    for destination in (underlay(99) + b"\x50\x01", underlay(98) + b"\x50\x02", underlay(98)):
        changed.fdb[mac(1)] = destination  # with the port at which a peer behind NAT is seen
        write(place, changed)
        assert place.engine.read(place.ifindex) == changed


def a_route_carries_the_mtu_of_a_narrower_way_and_loses_it_again(place: Place) -> None:
    write(place, rows_of(3))
    narrow = rows_of(3)
    narrow.routes[route_key(address(1), 26)] = route_value(address(1), 1350)
    for wanted in (narrow, rows_of(3), narrow):
        write(place, wanted)
        assert place.engine.read(place.ifindex) == wanted
    gone = [drop(Kind.ROUTE, route_key(address(1), 26), route_value(address(1), 1350))]
    assert place.engine.execute(gone, place.ifindex) == []


def removals_of_absent_rows_are_refused_one_by_one(place: Place) -> None:
    write(place, rows_of(1))
    operations = [
        drop(Kind.ROUTE, route_key(address(5), 26), address(5)),
        drop(Kind.FDB, mac(5), underlay(5)),
        put(Kind.NEIGHBOUR, address(6), mac(6)),
        drop(Kind.NEIGHBOUR, address(5), mac(5)),
    ]
    refusals = place.engine.execute(operations, place.ifindex)
    assert [(r.operation, r.errno) for r in refusals] == [
        (operations[0], errno.ESRCH),
        (operations[1], errno.ENOENT),
        (operations[3], errno.ENOENT),
    ]
    assert place.engine.read(place.ifindex).neighbours == {address(0): mac(0), address(6): mac(6)}


def an_fdb_removal_with_a_wrong_destination_succeeds_and_deletes_nothing(place: Place) -> None:
    write(place, rows_of(1))
    assert place.engine.execute([drop(Kind.FDB, mac(0), underlay(44))], place.ifindex) == []
    assert place.engine.read_one(Kind.FDB, mac(0), place.ifindex) == underlay(0)
    assert place.engine.execute([drop(Kind.FDB, mac(0), underlay(0))], place.ifindex) == []
    assert place.engine.read_one(Kind.FDB, mac(0), place.ifindex) is None
    mapped = underlay(0) + b"\x50\x01"
    assert place.engine.execute([put(Kind.FDB, mac(0), mapped)], place.ifindex) == []
    for wrong in (underlay(0), underlay(0) + b"\x50\x02"):
        assert place.engine.execute([drop(Kind.FDB, mac(0), wrong)], place.ifindex) == []
        assert place.engine.read_one(Kind.FDB, mac(0), place.ifindex) == mapped
    assert place.engine.execute([drop(Kind.FDB, mac(0), mapped)], place.ifindex) == []
    assert place.engine.read_one(Kind.FDB, mac(0), place.ifindex) is None


def an_fdb_removal_without_destination_removes_the_row(place: Place) -> None:
    write(place, rows_of(1))
    assert place.engine.execute([drop(Kind.FDB, mac(0), b"")], place.ifindex) == []
    assert place.engine.read(place.ifindex).fdb == {}


def one_row_can_be_read_alone(place: Place) -> None:
    write(place, rows_of(2))
    assert place.engine.read_one(Kind.NEIGHBOUR, address(1), place.ifindex) == mac(1)
    assert place.engine.read_one(Kind.NEIGHBOUR, address(9), place.ifindex) is None
    assert place.engine.read_one(Kind.FDB, mac(1), place.ifindex) == underlay(1)


def another_metric_makes_a_second_route(place: Place) -> None:
    write(place, rows_of(1))
    second = route_key(address(0), 26, 7)
    assert place.engine.execute([put(Kind.ROUTE, second, address(0))], place.ifindex) == []
    routes = place.engine.read(place.ifindex).routes
    assert routes == {route_key(address(0), 26): address(0), second: address(0)}
    cleaned = difference(rows_of(1), place.engine.read(place.ifindex))
    assert cleaned == [Operation(Action.DROP, Kind.ROUTE, second, address(0))]


def a_device_that_is_not_there_is_an_error_for_each_row(place: Place) -> None:
    refusals = place.engine.execute(difference(rows_of(2), Rows.empty()), 4711)
    assert len(refusals) == 6
    assert all(refusal.errno in {errno.ENODEV, errno.EINVAL} for refusal in refusals)


def host_bits_in_a_route_are_refused(place: Place) -> None:
    wrong = bytes([172, 16, 0, 65])
    refusals = place.engine.execute([put(Kind.ROUTE, route_key(wrong, 26), wrong)], place.ifindex)
    assert [refusal.errno for refusal in refusals] == [errno.EINVAL]


def link_down_flushes_neighbours_and_routes_and_keeps_the_fdb(place: Place) -> None:
    rows = rows_of(5)
    write(place, rows)
    place.down()
    after = place.engine.read(place.ifindex)
    assert (after.neighbours, after.routes, after.fdb) == ({}, {}, rows.fdb)
    place.up()
    assert place.engine.read(place.ifindex) == after
    write(place, rows)
    assert place.engine.read(place.ifindex) == rows


def another_mac_flushes_the_neighbours_only(place: Place) -> None:
    rows = rows_of(5)
    write(place, rows)
    place.new_mac()
    after = place.engine.read(place.ifindex)
    empty: Table = {}
    assert (after.neighbours, after.routes, after.fdb) == (empty, rows.routes, rows.fdb)


SUITE = (
    nothing_is_there_at_first,
    what_is_written_is_read_back,
    writing_twice_changes_nothing,
    a_put_replaces,
    a_route_carries_the_mtu_of_a_narrower_way_and_loses_it_again,
    removals_of_absent_rows_are_refused_one_by_one,
    an_fdb_removal_with_a_wrong_destination_succeeds_and_deletes_nothing,
    an_fdb_removal_without_destination_removes_the_row,
    one_row_can_be_read_alone,
    another_metric_makes_a_second_route,
    a_device_that_is_not_there_is_an_error_for_each_row,
    host_bits_in_a_route_are_refused,
    link_down_flushes_neighbours_and_routes_and_keeps_the_fdb,
    another_mac_flushes_the_neighbours_only,
)
