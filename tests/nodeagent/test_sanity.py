"""What the log says is not yet sane: whatever an event holds, the rows and scripts of a node make sense."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from events.chain import Head
from events.errors import VerificationFailed
from events.types import (
    EVENT_TYPES,
    CidrAppended,
    Event,
    NodeUnderlayChanged,
)
from nodeagent.dataplane.desired import Desired, desired_of
from nodeagent.firewall import ruleset
from nodeagent.gateway import rules as gateway_rules
from nodeagent.membership.sanity import mac_problem, network_of, unicast_problem
from nodeagent.membership.view import View
from nodeagent.netlink.rows import BLACKHOLE
from tests.budget import examples
from tests.nodeagent.logs import DEFINED, joined

SENSELESS = (
    "not-an-ip", "", "0.0.0.0", "0.1.2.3", "127.0.0.1", "169.254.169.254", "224.0.0.1", "255.255.255.255",
    "240.0.0.1", "::1", "10.0.0.1\n", "10.0.0.1 }; flush ruleset; {", "010.0.0.7", "1.2.3", "\0", "९.9.9.9",
)  # fmt: skip
CIDRS = (
    "172.16.7.0", "172.16.7.1/26", "172.16.7.0/33", "172.16.7.0/-1", "172.16.7.0/0", "0.0.0.0/0", "/26",
    "10.99.0.0/26", "172.16.0.0/16", "172.16.7.0/25", "172.16.255.0/26", "172.16.7.0/ 26", "172.16.7.0/026",
    "169.254.169.192/26", "::/64", "x",
)  # fmt: skip
MACS = ("", "00:11:22:33:44:55", "67:00:00:00:00:01", "ff:ff:ff:ff:ff:ff", "66:00:00:00:00",
        "zz:00:00:00:00:00",         "66:00:00:00:00:00", "66-00-00-00-00-01", "66:00:00:00:00:0١")  # fmt: skip
"""The next to last but one is this node's own."""


def view_of(*events: Event) -> View:
    view = View("c", "n0", "u0")
    for sequence, event in enumerate([DEFINED, *joined(0), *joined(1), *events], 1):
        view.apply(sequence, event)
        view.head = Head(sequence, bytes(32))
    return view


def newcomer(**fields: str) -> list[Event]:
    """Node n7 with one field out of order."""
    join, take = joined(7)
    of_join = {name: value for name, value in fields.items() if name != "cidr"}
    return [
        msgspec.structs.replace(join, **of_join),
        msgspec.structs.replace(take, **{name: fields[name] for name in fields if name == "cidr"}),
    ]


def check(view: View) -> None:
    """Everything that this node would write makes sense."""
    own, plan = view.own, view.plan
    vteps = view.vteps()
    assert not [address for address in vteps if unicast_problem(address)]
    if own is None or plan is None:
        return
    view.expected_digest()
    containers = [IPv4Network(cidr) for cidr in plan.cidrs]
    rows = desired_of(own, view).rows
    mine = IPv4Network(own.cidr)
    for key, value in rows.routes.items():
        network = IPv4Network((key[:4], key[4]))  # raises for host bits
        assert any(network.subnet_of(container) for container in containers)
        sealed = (peer := view.peers.get(str(network))) is not None and peer.sealed
        assert (network == mine or sealed) == (value == BLACKHOLE)
    for mac, destination in rows.fdb.items():
        assert not mac_problem(mac.hex(":"))
        assert not unicast_problem(str(IPv4Address(destination)))
        assert str(IPv4Address(destination)) != own.underlay
    table = ruleset.Rules(device="isthmus", port=plan.port, own_range=own.cidr, cidrs=plan.cidrs)
    assert plain(ruleset.render(table, vteps), {own.cidr, *plan.cidrs, *vteps, str(plan.port)})
    traffic = view.traffic
    listeners = [
        gateway_rules.Listener(h.address, k.protocol, k.port, b.affinity, ((k.address, k.backend_port),))
        for h in traffic.holders.values()
        for k, b in traffic.behind(h).items()
    ]
    known = {h.address for h in traffic.holders.values()} | {text for one in listeners for text in words(one)}
    assert plain(gateway_rules.render(sorted(traffic.holders), listeners, plan.port), known)
    saved = view.save()
    assert View.restore(msgspec.json.decode(msgspec.json.encode(saved), type=type(saved))).head == view.head


def words(listener: gateway_rules.Listener) -> set[str]:
    (address, port), *_ = listener.targets
    return {listener.address, listener.protocol, str(listener.port), address, str(port)}


def plain(script: str, values: set[str]) -> bool:
    """The script is the one without values, but for these: nothing in them was read as a rule."""
    return all(re.fullmatch(r"[\w./-]+", value) for value in values) and script.isascii()


@pytest.mark.parametrize("address", SENSELESS)
def test_an_address_where_no_tunnel_ends_gets_no_row(address: str) -> None:
    view = view_of(*newcomer(announced=address))
    check(view)
    assert [peer.node for peer in view.peers] == ["n1"], "the others live on"
    assert "n7" in view.nonsense()
    (moved,) = view.apply(
        99, NodeUnderlayChanged(node="n7", uid="u7", underlay="10.0.0.8", announced="10.0.0.8")
    )
    assert (moved.before, moved.after.node if moved.after else "") == (None, "n7"), "mended by a later event"
    assert not view.nonsense()


def test_an_address_that_is_ours_gets_no_row() -> None:
    view = view_of(*newcomer(announced="10.0.0.1"))
    check(view)
    assert "own" in view.nonsense()
    view = view_of(*newcomer(announced="192.0.2.9"))
    (gone,) = view.be_at(frozenset({"192.0.2.9", "192.0.2.255"}))
    assert gone.after is None
    (back,) = view.be_at(frozenset())
    assert back.after is not None


@pytest.mark.parametrize("cidr", CIDRS)
def test_a_range_outside_of_the_plan_gets_no_row(cidr: str) -> None:
    view = view_of(*newcomer(cidr=cidr))
    check(view)
    assert [peer.node for peer in view.peers] == ["n1"]
    assert "n7" in view.nonsense()


@pytest.mark.parametrize("mac", MACS)
def test_a_mac_that_no_tunnel_has_gets_no_row(mac: str) -> None:
    view = view_of(*newcomer(vtep_mac=mac))
    check(view)
    assert [peer.node for peer in view.peers] == ["n1"]


def test_a_member_that_moves_to_nonsense_loses_its_rows_and_nobody_else_does() -> None:
    view = view_of(*joined(2), NodeUnderlayChanged(node="n1", uid="u1", underlay="x", announced="127.0.0.1"))
    check(view)
    assert [peer.node for peer in view.peers] == ["n2"]
    desired = Desired()
    for change in view_of(*joined(2)).apply(
        9, NodeUnderlayChanged(node="n1", uid="u1", underlay="x", announced="127.0.0.1")
    ):
        assert change.before is not None
        assert change.after is None
        desired.apply(change)


@pytest.mark.parametrize("cidr", ["0.0.0.0/0", "127.0.0.0/8", "172.16.0.1/16", "172.16.0.0", "224.0.0.0/8", ""])
def test_a_plan_that_makes_no_sense_is_not_followed(cidr: str) -> None:
    view = View("c", "n0", "u0")
    view.apply(1, msgspec.structs.replace(DEFINED, container_cidr=cidr))
    assert view.plan is None
    assert view.nonsense()
    view = view_of(CidrAppended(cluster="c", cidr=cidr, first_index=1020, capacity=4))
    assert view.plan is not None
    assert view.plan.cidrs == ("172.16.0.0/16",)
    check(view)


ODD = st.one_of(
    st.sampled_from(
        [*SENSELESS, *CIDRS, *MACS, "10.0.0.9", "172.16.9.0/26", "66:00:00:00:00:09", "n1", "u1", "n0"]
    ),
    st.text(max_size=20),
)


def value_of(kind: Any) -> st.SearchStrategy[Any]:
    if kind is str:
        return ODD
    if get_origin(kind) is Literal:
        return st.sampled_from(get_args(kind))
    if get_origin(kind) is tuple and get_args(kind)[-1] is not Ellipsis:
        return st.tuples(*(value_of(argument) for argument in get_args(kind)))
    if get_origin(kind) is tuple:
        return st.lists(value_of(get_args(kind)[0]), max_size=2).map(tuple)
    if kind is int:
        return st.one_of(st.integers(-1, 70_000), st.integers(-(10**30), 10**30))
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return fields_of(kind)
    return st.from_type(kind)


def fields_of(kind: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    hints = {name: hint for name, hint in get_type_hints(kind).items() if name in kind.__struct_fields__}
    return st.builds(kind, **{name: value_of(hint) for name, hint in hints.items()})


@examples(300)
@given(st.lists(st.one_of(*map(fields_of, EVENT_TYPES)), max_size=6), st.booleans())
def test_no_field_of_any_event_harms_a_node(events: list[Any], from_the_start: bool) -> None:
    view = view_of()
    desired = desired_of(view.own, view) if view.own else Desired()
    if from_the_start:
        view, desired = View("c", "n0", "u0"), Desired()
    for sequence, event in enumerate(events, 10):
        try:
            changes = view.apply(sequence, event)
        except VerificationFailed:  # said by the log itself: events that were followed are parked
            continue
        if view.plan is not None and view.own is not None:
            for change in changes:
                desired.apply(change)
        check(view)
    assert len(view.nonsense()) < 2000


@examples(100)
@given(st.data())
def test_no_field_of_a_peers_events_harms_a_node(data: st.DataObject) -> None:
    """As above, with values that pass the first checks: one field of a sound log at a time is odd."""
    log: list[Any] = [*joined(2), *joined(3), *joined(0)]
    at = data.draw(st.integers(0, len(log) - 1))
    event = log[at]
    name = data.draw(st.sampled_from(event.__struct_fields__))
    hint = {"str": str, "int": int}.get(type(getattr(event, name)).__name__)
    if hint is not None:
        log[at] = msgspec.structs.replace(event, **{name: data.draw(value_of(hint))})
    view = view_of(*log)
    check(view)
    assert len(view.peers) >= 1, "the others live on"


NETWORKS = st.builds(
    lambda number, length: IPv4Network((number >> 32 - length << 32 - length, length)),
    st.one_of(st.integers(0, 2**32 - 1), st.integers(0, 255).map((10 << 24).__or__)),
    st.integers(1, 32),
)


@examples(300)
@given(NETWORKS, NETWORKS)
def test_networks_lie_within_one_another_as_the_standard_library_says(
    one: IPv4Network, other: IPv4Network
) -> None:
    ours, theirs = network_of(str(one)), network_of(str(other))
    assert ours is not None
    assert theirs is not None
    assert ours.holds(theirs) == other.subnet_of(one)
    assert ours.meets(theirs) == theirs.meets(ours) == one.overlaps(other)
