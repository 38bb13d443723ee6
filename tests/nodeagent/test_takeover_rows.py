"""What of another network's rows stays, and what ours supersede. Pure."""

from __future__ import annotations

from ipaddress import IPv4Address

from nodeagent.dataplane.desired import difference
from nodeagent.dataplane.takeover import Foreign, spared, superseded
from nodeagent.netlink.messages import Action
from nodeagent.netlink.rows import ODD, Rows, route_key

BOOT = 3


def address(number: int) -> bytes:
    return IPv4Address(f"10.42.{number}.0").packed


def mac(number: int) -> bytes:
    return bytes([0x8A, 0, 0, 0, 0, number])


def foreign(number: int, gateway: bytes | None = None) -> Foreign:
    return Foreign(address(number), 24, address(number) if gateway is None else gateway, BOOT, 0)


def rows(*numbers: int) -> Rows:
    """The log's rows towards these ranges."""
    return Rows(
        {address(n): mac(n) for n in numbers},
        {mac(n): bytes([192, 0, 2, n]) for n in numbers},
        {route_key(address(n), 24): address(n) for n in numbers},
    )


def flannels(*numbers: int) -> Rows:
    """The kernel's rows as flannel writes them: neighbours without our mark, routes that are not dumped."""
    return Rows(
        {address(n): ODD + mac(n) for n in numbers}, {mac(n): bytes([192, 0, 2, n]) for n in numbers}, {}
    )


def test_what_both_know_is_written_over_and_flannels_route_goes() -> None:
    desired, kernel, routes = rows(1, 2), flannels(1, 2), [foreign(1), foreign(2)]
    assert spared(desired, kernel, routes) == kernel
    operations = difference(desired, spared(desired, kernel, routes))
    assert operations
    assert all(operation.action is Action.PUT for operation in operations)
    assert superseded(desired, routes) == routes


def test_a_range_that_the_log_does_not_know_keeps_its_rows() -> None:
    desired, kernel, routes = rows(1), flannels(1, 7), [foreign(1), foreign(7)]
    operations = difference(desired, spared(desired, kernel, routes))
    assert all(operation.action is Action.PUT for operation in operations)
    assert superseded(desired, routes) == [foreign(1)]


def test_rows_that_serve_no_route_go_as_on_any_device_of_ours() -> None:
    desired, kernel = rows(1), flannels(1, 7)
    dropped = {
        op.key for op in difference(desired, spared(desired, kernel, [foreign(1)])) if op.action is Action.DROP
    }
    assert dropped == {address(7), mac(7)}


def test_a_route_without_a_gateway_spares_nothing() -> None:
    desired, kernel = rows(1), flannels(1, 7)
    assert spared(desired, kernel, [foreign(7, b"")]) == kernel
