"""Entries: who may be listed, by which address they come, and what hangs together with them."""

from __future__ import annotations

from typing import Any

import pytest

from controlplane.cluster.decide import EMPTY_CONTEXT, Decision, decide
from controlplane.cluster.decisions.entries import ENTRIES_LIMIT, SOURCES_LIMIT
from controlplane.cluster.evolve import evolve
from controlplane.cluster.invariants import check, violation
from controlplane.cluster.state import ClusterState
from controlplane.controller.publishing.snapshots import snapshot_of
from events.chain import Head
from events.errors import IsthmusError
from events.protocol.commands import (
    AddEntry,
    AppendCidr,
    DefineCluster,
    DeleteCluster,
    MarkGateway,
    ReleaseClb,
    RemoveEntry,
    ReserveClb,
)
from events.types import EntryAdded, EntryRemoved
from nodeagent.membership.sanity import sound_sources
from nodeagent.membership.view import View
from tests.controlplane.world import START, joining

LISTED = ("203.0.113.0/28", "203.0.113.64/32")


def do(state: ClusterState, command: Any) -> Decision:
    decision = decide(state, command, START, EMPTY_CONTEXT)
    for event in decision.events:
        assert violation(state, state.sequence + 1, event) is None
        evolve(state, state.sequence + 1, event)
    assert check(state) == []
    return decision


def refused(state: ClusterState, command: Any) -> IsthmusError:
    decision = do(state, command)
    assert decision.refusal is not None
    return decision.refusal


def cluster(*, pair: bool = True) -> ClusterState:
    state = ClusterState("prod")
    do(state, DefineCluster(container_cidr="172.16.0.0/16", pods_per_node=64))
    if pair:
        do(state, ReserveClb(reservation="gw", subnet="10.0.8.0/28", provider="gateway"))
    return state


def test_what_shuts_sources_out_says_which_gateways_have_to_close() -> None:
    state = cluster()
    do(state, joining(1))
    do(state, MarkGateway(node="n1"))
    first = do(state, AddEntry(entry="x", sources=("203.0.113.0/28", "203.0.113.32/28")))
    assert "shut_out" not in first.result
    less = do(state, AddEntry(entry="x", sources=("203.0.113.0/28",)))
    assert (less.result["shut_out"], less.result["gateways"]) == (["203.0.113.32/28"], ["n1"])
    gone = do(state, RemoveEntry(entry="x"))
    assert (gone.result["shut_out"], gone.result["gateways"]) == (["203.0.113.0/28"], ["n1"])


def test_sources_come_by_an_address_of_the_pair_and_are_kept_in_order() -> None:
    state = cluster()
    decision = do(state, AddEntry(entry="apiserver", sources=(*LISTED[::-1], LISTED[0])))
    assert decision.events == (EntryAdded(name="apiserver", sources=LISTED, address="10.0.8.2"),)
    assert not do(state, AddEntry(entry="apiserver", sources=LISTED)).events, "the same again"
    moved = do(state, AddEntry(entry="apiserver", sources=LISTED, address="10.0.8.3"))
    assert moved.events[0].address == "10.0.8.3"  # type: ignore[attr-defined]
    narrowed = do(state, AddEntry(entry="apiserver", sources=LISTED[:1]))
    assert narrowed.events == (EntryAdded(name="apiserver", sources=LISTED[:1], address="10.0.8.3"),)
    assert refused(state, RemoveEntry(entry="apisrever")).code == "entry_unknown"
    gone = do(state, RemoveEntry(entry="apiserver"))
    assert gone.events == (EntryRemoved(name="apiserver", sources=LISTED[:1], address="10.0.8.3"),)
    assert not state.entries


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("172.16.0.0/16", "cidr_conflict_with_entry"),
        ("172.16.9.9/32", "cidr_conflict_with_entry"),
        ("172.0.0.0/8", "cidr_conflict_with_entry"),
        ("172.16.255.10/32", "cidr_conflict_with_entry"),  # a Service's
        ("0.0.0.0/0", "bad_request"),
        ("128.0.0.0/1", "bad_request"),
        ("127.0.0.1/32", "bad_request"),
        ("224.0.0.1/32", "bad_request"),
        ("255.255.255.255/32", "bad_request"),
        ("169.254.169.254/32", "bad_request"),
        ("0.0.0.0/8", "bad_request"),
        ("10.0.0.1/28", "cidr_invalid"),
        ("10.0.0.1", "cidr_invalid"),
        ("fd00::/64", "cidr_invalid"),
        ("10.0.0.0/28; drop", "cidr_invalid"),
        ("", "cidr_invalid"),
    ],
)
def test_what_is_no_host_outside_is_refused_and_changes_nothing(source: str, code: str) -> None:
    state = cluster()
    found = refused(state, AddEntry(entry="x", sources=(LISTED[0], source)))
    assert found.code == code
    assert not state.entries


def test_bounds() -> None:
    state = cluster()
    many = tuple(f"203.0.113.{number}/32" for number in range(SOURCES_LIMIT + 1))
    assert refused(state, AddEntry(entry="x", sources=many)).code == "bad_request"
    assert refused(state, AddEntry(entry="x", sources=())).code == "bad_request"
    assert refused(state, AddEntry(entry="no label!", sources=LISTED)).code
    for number in range(ENTRIES_LIMIT):
        do(state, AddEntry(entry=f"e{number}", sources=LISTED))
    assert str(ENTRIES_LIMIT) in refused(state, AddEntry(entry="one-more", sources=LISTED)).message
    assert do(state, AddEntry(entry="e0", sources=LISTED[:1])).events, "one that is there may change"


def test_the_address_is_one_that_gateways_hold() -> None:
    state = cluster(pair=False)
    none = refused(state, AddEntry(entry="x", sources=LISTED))
    assert (none.code, "isthmus clb reserve" in none.message) == ("entry_address_unknown", True)
    do(state, ReserveClb(reservation="cloud", subnet="10.0.9.0/28"))
    for address in ("10.0.9.2", "10.0.7.7", "nonsense"):
        found = refused(state, AddEntry(entry="x", sources=LISTED, address=address))
        assert (found.code, "10.0.8" in found.message) == ("entry_address_unknown", False)
    for number in (1, 2):
        subnet = f"10.0.{number}0.0/28"
        do(state, ReserveClb(reservation=f"gw{number}", subnet=subnet, provider="gateway"))
    several = refused(state, AddEntry(entry="x", sources=LISTED))
    assert "--address" in several.message
    do(state, AddEntry(entry="x", sources=LISTED, address="10.0.20.3"))
    assert state.entries["x"].address == "10.0.20.3"


def test_what_an_entry_rests_on_stays_while_it_is_there() -> None:
    state = cluster()
    do(state, AddEntry(entry="x", sources=("10.5.0.0/24",)))
    held = refused(state, ReleaseClb(reservation="gw"))
    assert (held.code, "isthmus entry remove x --yes" in held.message) == ("clb_in_use", True)
    overlap = refused(state, AppendCidr(cidr="10.5.0.0/16"))
    assert overlap.code == "cidr_conflict_with_entry"
    assert "'x'" in overlap.message
    ended = do(state, DeleteCluster()).events
    assert [type(event).__name__ for event in ended] == ["EntryRemoved", "ClbReleased", "ClusterDeleted"]


@pytest.mark.parametrize(
    "event",
    [
        EntryAdded(name="x", sources=("172.16.0.0/24",), address="10.0.8.2"),
        EntryAdded(name="x", sources=("127.0.0.0/8",), address="10.0.8.2"),
        EntryAdded(name="x", sources=("0.0.0.0/0",), address="10.0.8.2"),
        EntryAdded(name="x", sources=("no network",), address="10.0.8.2"),
        EntryAdded(name="x", sources=LISTED, address="10.0.8.9"),
    ],
)
def test_a_log_that_says_otherwise_is_found_out(event: EntryAdded) -> None:
    found = violation(cluster(), 9, event)
    assert found is not None
    assert found.invariant == 19


def test_an_agent_lets_in_what_makes_sense_and_forgets_what_an_event_without_sense_replaces() -> None:
    view = View("prod", "g1", "u1")
    view.apply(1, EntryAdded(name="a", sources=("10.0.0.0/24", "10.0.0.0/28"), address="10.0.8.2"))
    view.apply(2, EntryAdded(name="b", sources=("10.0.1.0/24", "172.16.3.0/24"), address="10.0.8.2"))

    def let_in() -> tuple[str, ...]:
        return sound_sources(view.traffic.entries.values(), ("172.16.0.0/16",))

    assert let_in() == ("10.0.0.0/23",)
    assert sound_sources(view.traffic.entries.values(), ("10.0.0.0/24",)) == ("10.0.1.0/24", "172.16.3.0/24")
    for number, source in enumerate(("0.0.0.0/0", "10.0.0.0/28 }; flush ruleset", "127.0.0.1/32"), 3):
        view.apply(number, EntryAdded(name="a", sources=("10.0.0.0/28", source), address="10.0.8.2"))
        assert let_in() == ("10.0.1.0/24",)
        assert "left out" in view.nonsense()
    again = View.restore(view.save())
    assert again.traffic.entries == view.traffic.entries
    view.apply(9, EntryRemoved(name="b", sources=(), address="10.0.8.2"))
    assert let_in() == ()


def test_agents_learn_of_entries_by_the_snapshot() -> None:
    state = cluster()
    do(state, AddEntry(entry="x", sources=LISTED))
    view = View("prod", "g1", "u1")
    view.leap(snapshot_of(state, Head(state.sequence, bytes(32)), START))
    assert view.traffic.entries == dict(state.entries)
