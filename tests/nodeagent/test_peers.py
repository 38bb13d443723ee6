"""Peers, epochs and the rows that follow from them."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from events.bus.connection import BusOptions
from events.chain import Head
from nodeagent.conditions import Conditions
from nodeagent.config import AgentConfig
from nodeagent.dataplane.desired import Desired, difference
from nodeagent.dataplane.reconcile import apply_directly, digest_shift, reconcile, row_digest
from nodeagent.dataplane.reconciler import DIRECT_LIMIT, Reconciler
from nodeagent.membership.peers import Peer, PeerChange, PeerTable
from nodeagent.netlink.messages import Action
from nodeagent.netlink.rows import STRAY, Kind, Rows, mac_bytes
from nodeagent.netlink.socket import Engine, NetlinkChannel
from tests.nodeagent.kernel_suite import address, drop, mac, rows_of, underlay
from tests.nodeagent.logs import DEFINED, folded, joined
from tests.nodeagent.memory_kernel import MemoryKernel
from tests.nodeagent.sandbox import inside
from tests.waiting import until

RANGES = [f"172.16.0.{64 * n}/26" for n in range(4)]


def peer(
    node: str, epoch: int, cidr: str, *, uid: str = "", mac_index: int = 1, underlay_index: int = 1
) -> Peer:
    return Peer(
        node, uid or f"{node}-uid", epoch, cidr, f"66:00:00:00:00:{mac_index:02x}", f"10.0.0.{underlay_index}"
    )


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[str, Peer]]:
    """Legal histories: in each range one owner after another, each put before it is removed."""
    steps: list[tuple[str, Peer]] = []
    epoch = 0
    for cidr in RANGES:
        for _ in range(draw(st.integers(0, 4))):
            epoch += 1
            owner = peer(
                draw(st.sampled_from("abcd")),
                epoch,
                cidr,
                mac_index=draw(st.integers(1, 6)),
                underlay_index=draw(st.integers(1, 6)),
            )
            steps.append(("put", owner))
            if draw(st.booleans()):
                steps.append(("remove", owner))
            else:
                # the next owner of this range, if any, is there without a removal having been seen
                pass
    return steps


def newest(steps: list[tuple[str, Peer]]) -> dict[str, Peer]:
    """What must be left, whatever the order: the highest epoch of each range, unless it was removed."""
    last: dict[str, Peer] = {}
    removed = {owner.epoch for verb, owner in steps if verb == "remove"}
    for verb, owner in steps:
        if verb == "put" and (owner.cidr not in last or owner.epoch > last[owner.cidr].epoch):
            last[owner.cidr] = owner
    return {cidr: owner for cidr, owner in last.items() if owner.epoch not in removed}


def expected_rows(peers: dict[str, Peer]) -> Rows:
    rows = Rows.empty()
    for owner in sorted(peers.values(), key=lambda item: item.epoch):
        for table, more in zip(rows, owner.rows(), strict=True):
            table.update(more)
    return rows


@given(histories(), st.randoms(use_true_random=False))
def test_in_any_order_the_newest_owner_remains(steps: list[tuple[str, Peer]], random: object) -> None:
    """Additions and removals of twin owners in every order: the kernel ends with the newest owner's rows."""
    shuffled = list(steps)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    table, desired = PeerTable(), Desired()
    kernel = MemoryKernel()
    kernel.add_device(5)
    engine = Engine(kernel)
    for verb, owner in shuffled:
        change = table.put(owner) if verb == "put" else table.remove(owner.cidr, owner.epoch)
        assert apply_directly(engine, 5, desired.apply(change)) == []
        assert engine.read(5) == desired.rows
    assert {owner.cidr: owner for owner in table} == newest(steps)
    assert desired.rows == expected_rows(newest(steps))


def test_an_older_epoch_never_comes_back() -> None:
    table = PeerTable()
    new = peer("b", 9, RANGES[0])
    table.put(new)
    assert table.put(peer("a", 4, RANGES[0])) == PeerChange(None, None)
    assert table.remove(RANGES[0], 4) == PeerChange(None, None)
    assert table.get(RANGES[0]) == new
    table.remove(RANGES[0], 9)
    assert table.put(peer("a", 4, RANGES[0])) == PeerChange(None, None)
    assert table.put(peer("c", 10, RANGES[0])).after is not None


def test_a_shared_mac_outlives_the_older_claim() -> None:
    """A node that left and joined again under its uid: the new range's FDB row survives the old one's end."""
    table, desired = PeerTable(), Desired()
    old = peer("a", 1, RANGES[0], mac_index=7, underlay_index=7)
    new = peer("a", 5, RANGES[1], mac_index=7, underlay_index=8)
    for change in (table.put(old), table.put(new), table.remove(old.cidr, 1)):
        desired.apply(change)
    assert desired.rows == new.rows()
    desired.apply(table.remove(new.cidr, 5))
    assert not any(desired.rows)


def test_a_new_mac_is_known_to_the_fdb_before_the_neighbour_points_to_it() -> None:
    table, desired = PeerTable(), Desired()
    desired.apply(table.put(peer("a", 1, RANGES[0], mac_index=1)))
    operations = desired.apply(table.put(peer("b", 2, RANGES[0], mac_index=2)))
    assert [(op.action, op.kind) for op in operations] == [
        (Action.PUT, Kind.FDB),
        (Action.PUT, Kind.NEIGHBOUR),
        (Action.DROP, Kind.FDB),
    ]
    assert operations[-1].key == mac_bytes("66:00:00:00:00:01")


def test_a_peer_is_written_neighbour_fdb_route_and_removed_in_reverse() -> None:
    table, desired = PeerTable(), Desired()
    forward = desired.apply(table.put(peer("a", 1, RANGES[0])))
    assert [(op.action, op.kind) for op in forward] == [
        (Action.PUT, Kind.NEIGHBOUR),
        (Action.PUT, Kind.FDB),
        (Action.PUT, Kind.ROUTE),
    ]
    backward = desired.apply(table.remove(RANGES[0], 1))
    assert [(op.action, op.kind) for op in backward] == [
        (Action.DROP, Kind.ROUTE),
        (Action.DROP, Kind.FDB),
        (Action.DROP, Kind.NEIGHBOUR),
    ]


tables = st.dictionaries(st.integers(0, 8).map(address), st.integers(0, 4).map(mac), max_size=8)
fdbs = st.dictionaries(st.integers(0, 8).map(mac), st.integers(0, 4).map(underlay), max_size=8)


@given(tables, fdbs, tables, fdbs)
def test_reconciliation_reaches_any_state_from_any_state(
    wanted: dict[bytes, bytes],
    wanted_fdb: dict[bytes, bytes],
    there: dict[bytes, bytes],
    fdb: dict[bytes, bytes],
) -> None:
    kernel = MemoryKernel()
    kernel.add_device(5)
    for key, value in there.items():
        kernel.neighbours[5, key] = (value, 0x80, 84)
    for key, value in fdb.items():
        kernel.fdb[5, key] = (value, 0xC0)
    desired = Rows(wanted, wanted_fdb, {})
    engine = Engine(kernel)
    outcome = reconcile(engine, 5, desired)
    assert outcome.clean
    assert outcome.digest_shift == 0
    assert engine.read(5) == desired
    before = kernel.sent
    assert reconcile(engine, 5, desired).written == 0
    assert kernel.sent - before == 3, "nothing to do: three dumps and no write"


@given(tables, tables)
def test_the_digest_shift_is_what_the_kernel_has_more_or_less(
    wanted: dict[bytes, bytes], there: dict[bytes, bytes]
) -> None:
    desired, kernel = Rows(wanted, {}, {}), Rows(there, {}, {})
    total = {
        name: sum(row_digest(Kind.NEIGHBOUR, key, value) for key, value in table.items())
        for name, table in (("desired", wanted), ("kernel", there))
    }
    shift = digest_shift(kernel, difference(desired, kernel))
    assert (total["desired"] + shift - total["kernel"]) % (1 << 256) == 0


def test_what_the_guard_holds_back_is_reported_and_left() -> None:
    kernel = MemoryKernel()
    kernel.add_device(5)
    desired = Rows({address(0): mac(0), address(1): mac(1)}, {}, {})
    outcome = reconcile(Engine(kernel), 5, desired, allow=lambda op: op.key != address(0))
    assert [op.key for op in outcome.withheld] == [address(0)]
    assert outcome.remaining == outcome.withheld
    assert outcome.digest_shift != 0
    assert Engine(kernel).read(5).neighbours == {address(1): mac(1)}


def test_the_kernels_own_entries_are_left_alone_unless_we_want_their_key() -> None:
    stray = Rows({address(0): STRAY, address(1): STRAY}, {}, {})
    operations = difference(Rows({address(1): mac(1)}, {}, {}), stray)
    assert [(op.action, op.key) for op in operations] == [(Action.PUT, address(1))]


def test_rows_that_are_only_added_are_not_read_back_at_once_and_all_others_are() -> None:
    kernel = MemoryKernel()
    kernel.add_device(5)
    engine = Engine(kernel)
    assert not reconcile(engine, 5, Rows.empty()).unread
    for wanted, unread in (
        (rows_of(3), True),  # a start
        (rows_of(4), True),  # one more
        (rows_of(2), False),  # removals
        (Rows({**rows_of(3).neighbours, address(0): mac(7)}, rows_of(3).fdb, rows_of(3).routes), False),
    ):
        before = kernel.sent
        outcome = reconcile(engine, 5, wanted)
        assert (outcome.clean, outcome.unread) == (True, unread)
        assert kernel.sent - before == (4 if unread else 7), "the dumps, a batch, and the dumps again"
        assert engine.read(5) == wanted
    kernel.remove_device(5)
    refused = reconcile(engine, 5, rows_of(2))
    assert not refused.unread
    assert len(refused.refusals) == len(refused.remaining) == 6


@inside
async def test_a_row_that_the_kernel_acknowledged_and_lost_is_found_soon() -> None:
    """Lost by the agent's own socket, which of routes sends it no notice; and the timer is far."""
    config = AgentConfig(cluster="c", node="n0", kind="cloud", bus=BusOptions(), underlay="192.0.2.1", mtu=1450)
    reconciler, view = Reconciler(config, Conditions()), folded([DEFINED, *joined(0)])
    tunnel, written = reconciler.tunnel, reconciler.counters
    lost: list[int] = []

    def lose() -> None:
        if reconciler.desired is None or written.written < 3 * DIRECT_LIMIT or lost:
            return
        routes, engine = [*reconciler.desired.rows.routes.items()], tunnel._engine
        assert engine is not None
        assert engine.execute([drop(Kind.ROUTE, *route) for route in routes[-2:]], tunnel.ifindex) == []
        lost.append(reconciler.applied)

    await reconciler.follow(view, ())
    assert await reconciler.resync({"start"})  # what the kernel tells of the new device, nobody hears
    reconciler.notify(lose)
    running = asyncio.create_task(reconciler.run())
    await until(lambda: written.resyncs == 2, "the reasons that there were are handled")
    changes = []
    for sequence, event in enumerate((event for n in range(1, 70) for event in joined(n)), view.sequence + 1):
        changes += view.apply(sequence, event)
        view.head = Head(sequence, bytes(32))
    await reconciler.follow(view, changes)
    with Engine(NetlinkChannel()) as engine:
        await until(lambda: lost and written.repaired == 2, "what was lost is found")
        assert lost == [view.sequence]
        assert engine.read(tunnel.ifindex) == reconciler.desired.rows
    running.cancel()
