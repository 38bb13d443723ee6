"""Whom WireGuard knows with which ranges, where a gateway relays, and what is said where none does. Pure."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from events.protocol.ways import preferred_relay
from events.types import ClusterEncryptionChanged, EncryptionStage, Event, NodeKeyChanged, NodeNatChanged
from nodeagent.membership.peers import Peer
from nodeagent.membership.view import View
from nodeagent.nat.book import MISSED, NatBook
from nodeagent.wireguard import relays
from nodeagent.wireguard.device import PeerSettings
from tests.nodeagent.logs import DEFINED, folded, joined

SITES = ("cloud", "cloud", "branch", "branch", "home")
"""Of the nodes n0 … n4; those at the last two sites are behind NAT."""


def view_of(node: int, stage: EncryptionStage = "required", *, within: EncryptionStage = "required") -> View:
    log: list[Event] = [DEFINED]
    for index, site in enumerate(SITES):
        join, allocated = joined(index)
        assert isinstance(join, msgspec.Struct)
        log += [msgspec.structs.replace(join, site=site), allocated]  # type: ignore[type-var]
        name, uid = f"n{index}", f"u{index}"
        log.append(NodeKeyChanged(node=name, uid=uid, key=f"k{index}", port=51820))
        if site != "cloud":
            log.append(NodeNatChanged(node=name, uid=uid, behind=True))
    log.append(ClusterEncryptionChanged(cluster="c", scope="all", within_sites=within, between_sites=stage))
    return folded(log, node=f"n{node}", uid=f"u{node}")


def peer(view: View, index: int) -> Peer:
    found = view.peers.of_node(f"n{index}")
    assert found is not None
    return found


def device(view: View, by: dict[int, int]) -> dict[str, PeerSettings]:
    """What WireGuard has to have, by key, where ``by`` says who relays to whom."""
    relayed = by_epoch(view, by)
    ranges = relays.ranges_of(view.peers, relayed)
    return {
        one.key: PeerSettings(
            relays.place_of(view, one, one.port, relayed),
            ranges[one.epoch],
            relays.kept_s(view, one, len(view.peers), relayed),
        )
        for one in view.peers
    }


def by_epoch(view: View, by: dict[int, int]) -> dict[int, Peer]:
    return {peer(view, index).epoch: peer(view, relay) for index, relay in by.items()}


@given(node=st.sampled_from([2, 3, 4]), gateways=st.sets(st.sampled_from([0, 1]), min_size=1))
def test_each_range_has_one_key_and_both_ends_choose_the_same_gateway(node: int, gateways: set[int]) -> None:
    view = view_of(node)
    others = [index for index in range(5) if index != node]
    by: dict[int, int] = {}
    for index in others:
        if relays.needs_relay(view, peer(view, index)):
            epochs = {peer(view, gateway).epoch: gateway for gateway in gateways}
            own = view.own
            assert own is not None
            by[index] = epochs[preferred_relay(own.epoch, peer(view, index).epoch, epochs) or 0]
            there = view_of(index)
            chosen = preferred_relay(
                own.epoch, peer(view, index).epoch, [peer(there, g).epoch for g in gateways]
            )
            assert epochs[chosen or 0] == by[index]
    found = device(view, by)
    by_range = {cidr: key for key, settings in found.items() for cidr in settings.allowed}
    assert sum(len(settings.allowed) for settings in found.values()) == len(by_range) == len(others)
    for index in others:
        assert by_range[peer(view, index).cidr] == f"k{by.get(index, index)}"
        if index in by:
            assert found[f"k{index}"] == PeerSettings(("", 0), ()), (
                "no session that nobody can make is tried for"
            )


def test_nodes_behind_one_router_know_each_others_own_address() -> None:
    """Else neither could begin, and a cluster with two nodes at one branch would never encrypt."""
    found = device(view_of(2), {4: 0})
    assert found["k3"].endpoint == ("10.0.0.4", 51820)
    assert found["k0"].endpoint == ("10.0.0.1", 51820)
    assert device(view_of(0), {})["k2"].endpoint == ("", 0), "its own packets say where it is"


def test_mappings_are_kept_within_a_budget() -> None:
    few = device(view_of(2), {4: 0})
    assert {few[key].keepalive_s for key in ("k0", "k1", "k3")} == {relays.KEEPALIVE_MIN_S}
    assert few["k4"].keepalive_s == 0
    assert {one.keepalive_s for one in device(view_of(0), {}).values()} == {0}


@pytest.mark.parametrize(
    ("known", "by", "closed", "unrelayed"),
    [
        ({"k0", "k1", "k3"}, {4: 0}, [], []),
        ({"k0", "k1", "k3"}, {}, [], ["n4"]),
        ({"k1", "k3"}, {4: 0}, ["n0", "n4"], []),
        (set[str](), {4: 1}, ["n0", "n1", "n3", "n4"], []),
    ],
)
def test_a_relayed_peer_counts_by_its_gateways_session(
    known: set[str], by: dict[int, int], closed: list[str], unrelayed: list[str]
) -> None:
    view = view_of(2, "accepting", within="accepting")
    found = relays.waiting_for(view, by_epoch(view, by), lambda one: one.key in known)
    assert [[one.node for one in peers] for peers in found] == [closed, unrelayed]


def test_what_keeps_a_cluster_from_encrypting_is_said_with_what_to_do() -> None:
    view = view_of(2, "accepting", within="accepting")
    none = relays.in_words(view, [], [peer(view, 4)])
    assert "the cluster has no gateway" in none
    assert "isthmus clb gateway add NODE" in none
    assert "51820" not in none
    view.traffic.gateways["n3"] = 9
    assert "all gateways (n3) are behind NAT themselves" in relays.in_words(view, [], [peer(view, 4)])
    view.traffic.gateways["n0"] = 9
    away = relays.in_words(view, [], [peer(view, 4)])
    assert "none of the gateways (n0, n3) answers this node" in away
    assert "UDP port 8472" in away
    both = relays.in_words(view, [peer(view, 1)], [peer(view, 4)])
    assert "the first: n1. Is UDP port 51820 open" in both


def test_no_gateway_carries_on_in_the_clear_what_was_encrypted() -> None:
    """With ``sites``, a gateway at the site of one end has that one plain."""
    view = view_of(2, "required", within="plain")
    assert relays.carries(view, peer(view, 0), peer(view, 4))
    assert not relays.carries(view, peer(view, 3), peer(view, 4))
    there = view_of(4, "required", within="plain")
    assert not relays.carries(there, peer(there, 3), peer(there, 2)), "both ends say so"
    plain = view_of(2, "plain", within="plain")
    assert relays.carries(plain, peer(plain, 3), peer(plain, 4))
    # Until packets are encrypted they go on by that gateway, and the cluster does not go on.
    accepting = view_of(2, "accepting", within="plain")
    found = relays.waiting_for(accepting, by_epoch(accepting, {4: 3}), lambda one: one.key in {"k0", "k1"})
    assert [[one.node for one in peers] for peers in found] == [[], ["n4"]]


def test_gateways_whose_agents_are_all_away_go_on_forwarding() -> None:
    view, book = view_of(2), NatBook(entropy=bytes, seed=1)
    own, gateways = view.own, [peer(view, 0), peer(view, 1)]
    assert own is not None
    book.be(own, 8472, 0.0)
    book.follow({one.epoch: one for one in view.peers}, list(view.peers), 0.0, relays=gateways)
    silent = book._pair(peer(view, 4))
    silent.missed = MISSED
    for gateway in gateways:
        pair = book._pair(gateway)
        pair.seen_as = book._announced(peer(view, 3))
        book._outside[gateway.epoch] = pair.seen_as
    chosen = book.ways()[peer(view, 4)].relay
    assert chosen is not None
    first = book._pair(chosen)
    first.missed = MISSED
    other = book.ways()[peer(view, 4)].relay
    assert other is not None
    assert other != chosen
    book._pair(other).missed = MISSED
    assert book.ways()[peer(view, 4)].relay == chosen, "none answers: the one that both ends prefer"


def test_the_cluster_waits_until_both_ends_have_noticed_who_relays() -> None:
    view = view_of(2, "accepting")
    settled, far = relays.Settled(), by_epoch(view, {4: 0})

    def fresh(relayed: dict[int, Peer], now: float) -> int:
        settled.follow(relayed, now)
        return settled.fresh(view.peers, relayed, now)

    assert fresh({}, 1000.0) == 0
    assert fresh(far, 1001.0) == 1
    assert fresh(far, 1001.0 + relays.SETTLED_S) == 0
    assert fresh(by_epoch(view, {4: 1}), 1010.0) == 1, "another one"
    assert fresh(far, 1011.0) == 1, "and back"
    sealed = view_of(2)
    assert settled.fresh(sealed.peers, by_epoch(sealed, {4: 1}), 1012.0) == 0, "the step is taken"
