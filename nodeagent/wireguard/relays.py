"""Where WireGuard reaches peers behind NAT, and with which ranges a gateway that relays to them. Pure.

Two nodes behind different NATs have no session with each other. What one sends the other goes, encrypted, to
the gateway that forwards between them (:func:`events.protocol.ways.preferred_relay`): at both ends the other's
range is one of the gateway's, so that cryptokey routing leads there, and takes what comes from there. The
gateway has each range with its own node, as everybody has, and so knows whose a packet is before it encrypts it
anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from events.protocol.ways import way_between
from nodeagent.membership.peers import Peer
from nodeagent.membership.view import View
from nodeagent.wireguard.device import KEEPALIVE_S

KEEPALIVE_MIN_S = 3
"""Between two packets that keep a mapping, and make one anew that the router has lost, where peers are few."""
KEPT_PER_S = 40
"""Most of these a second: with 1,000 peers under 20 kbit/s, and with 120 a mapping is made anew within 3 s."""
SETTLED_S = 5.0
"""How long the same gateway has relayed to a peer before the cluster may go on: both ends have noticed by then.
While they prefer different ones, each drops what comes from the other's."""
NOWHERE = ("", 0)
NAMED = 4
"""Most gateways that a condition names."""


class Settled:
    """Since when the same gateway relays to each peer; monotonic seconds."""

    def __init__(self) -> None:
        self._since: dict[tuple[int, int], float] = {}  # epochs of both

    def follow(self, relays: Mapping[int, Peer], now: float) -> None:
        """Who relays now, by the peer's epoch. O(these)."""
        pairs = ((epoch, relay.epoch) for epoch, relay in relays.items())
        self._since = {pair: self._since.get(pair, now) for pair in pairs}

    def fresh(self, peers: Iterable[Peer], relays: Mapping[int, Peer], now: float) -> int:
        """How many of the peers that take both are relayed by another gateway than :data:`SETTLED_S` ago."""
        return sum(
            now - self._since.get((peer.epoch, relay.epoch), now) < SETTLED_S
            for peer in peers
            if peer.stage == "accepting" and (relay := relays.get(peer.epoch)) is not None
        )


def able(peer: Peer) -> bool:
    """Whether WireGuard must and can know the peer."""
    return peer.encrypts and bool(peer.key) and bool(peer.port)


def ranges_of(peers: Iterable[Peer], relays: Mapping[int, Peer]) -> dict[int, tuple[str, ...]]:
    """Which ranges are to be reached with each peer's key, by its epoch: its own, but not if somebody relays to
    it, and those to which it relays. ``relays``: who does, by the peer's epoch. O(peers).
    """
    found: dict[int, list[str]] = {}
    for peer in peers:
        found.setdefault(peer.epoch, [])
        found.setdefault(relays.get(peer.epoch, peer).epoch, []).append(peer.cidr)
    return {epoch: tuple(ranges) for epoch, ranges in found.items()}


def place_of(view: View, peer: Peer, port: int, relays: Mapping[int, Peer]) -> tuple[str, int]:
    """Where a peer's WireGuard is that listens on the port; as with :data:`NOWHERE`, its packets say so."""
    if peer.epoch in relays or out_of_sight(view, peer):
        return NOWHERE
    return peer.underlay, port


def kept_s(view: View, peer: Peer, peers: int, relays: Mapping[int, Peer]) -> int:
    """Seconds between two packets that only keep the session with one of so many peers; 0: none are sent."""
    if peer.epoch in relays:
        return 0
    own = view.members.get(view.node)
    if own is not None and own.behind_nat:
        return min(KEEPALIVE_S, max(KEEPALIVE_MIN_S, peers // KEPT_PER_S))
    return KEEPALIVE_S if peer.stage == "accepting" else 0


def out_of_sight(view: View, peer: Peer) -> bool:
    """Whether nobody here knows where the peer's packets come from until they do.

    Behind one router, which is one site, two nodes are on one link, and know each other's own address.
    """
    own, member = view.members.get(view.node), view.members.get(peer.node)
    if member is None or not member.behind_nat:
        return False
    return own is None or way_between(own.behind_nat, True, one_site=own.site == member.site) != "tunnel"


def needs_relay(view: View, peer: Peer) -> bool:
    """Whether, as the log has it, the peer and this node are behind different NATs."""
    own, member = view.members.get(view.node), view.members.get(peer.node)
    if own is None or member is None:
        return False
    return way_between(own.behind_nat, member.behind_nat, one_site=own.site == member.site) == "relayed"


def carries(view: View, relay: Peer, peer: Peer) -> bool:
    """Whether the relay has the peer encrypted where this node does: else its packets went on in the clear."""
    if not peer.encrypts:
        return True
    member, between = view.members.get(peer.node), view.members.get(relay.node)
    if member is None or between is None or not able(relay):
        return False
    return view.encryption.stage(member.site, between.site) != "plain"


def waiting_for(
    view: View, relays: Mapping[int, Peer], session: Callable[[Peer], bool]
) -> tuple[list[Peer], list[Peer]]:
    """The peers that take both, and with which no session can be used yet: to whom there should be one, and
    those to whom there is none because nobody relays. O(peers).
    """
    if view.encryption.scope == "off":
        return [], []
    closed: list[Peer] = []
    unrelayed: list[Peer] = []
    for peer in view.peers:
        if peer.stage != "accepting" or session(peer):
            continue
        relay = relays.get(peer.epoch)
        if needs_relay(view, peer) and (relay is None or not carries(view, relay, peer)):
            unrelayed.append(peer)
        elif relay is None or not session(relay):
            closed.append(peer)
    return closed, unrelayed


def in_words(view: View, closed: Sequence[Peer], unrelayed: Sequence[Peer]) -> str:
    """What keeps the cluster from encrypting, and what to do."""
    said: list[str] = []
    if unrelayed:
        count, first = len(unrelayed), unrelayed[0].node
        gateways = sorted(view.traffic.gateways)
        said.append(
            f"{count} peers are behind other NATs than this node, the first: {first}, and nobody relays "
            "between them: " + (_no_gateway() if not gateways else _unreached(view, gateways))
        )
    if closed:
        said.append(
            f"{len(closed)} peers take no encrypted packets yet, the first: {closed[0].node}. Is UDP "
            f"port {closed[0].port} open between the nodes?"
        )
    return f"{' '.join(said)} Until then packets go as before"


def _no_gateway() -> str:
    return (
        "the cluster has no gateway. Start the agent of a node that is not behind NAT with --gateway, then: "
        "isthmus clb gateway add NODE."
    )


def _unreached(view: View, gateways: Sequence[str]) -> str:
    hidden = [name for name in gateways if name in view.members and view.members[name].behind_nat]
    names = ", ".join(gateways[:NAMED]) + (", …" if len(gateways) > NAMED else "")
    if len(hidden) == len(gateways):
        return (
            f"all gateways ({names}) are behind NAT themselves. Start the agent of a node that is not with "
            f"--gateway, then: isthmus clb gateway add NODE."
        )
    port = view.plan.port if view.plan is not None else 0
    return (
        f"none of the gateways ({names}) answers this node and encrypts to both ends. Do their agents run, is "
        f"UDP port {port} open from here to them, and is one at a third site?"
    )
