"""Ways to peers: preferred routes above the tunnel's rows, and what is told of them."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from events.errors import BadRequest
from events.status import NAMED_MAX, AgentStatus, PeerWay, WaysReport, checked
from nodeagent.dataplane.desired import Desired, difference
from nodeagent.dataplane.own_findings import OwnFindings
from nodeagent.local_files import (
    STATUS_FILE,
    LocalStatus,
    LocalWay,
    boot_id,
    running_s,
    write_atomically,
)
from nodeagent.membership.peers import Peer, PeerChange
from nodeagent.membership.view import View
from nodeagent.netlink.messages import Action, Operation
from nodeagent.netlink.rows import Kind, Rows, is_preferred, preferred_key, route_value, split_cidr
from nodeagent.ways.before import Before
from nodeagent.ways.table import TUNNEL, Exit, Way, WayTable


def peer(number: int, epoch: int = 0, underlay: int = 0) -> Peer:
    return Peer(
        f"n{number}", f"u{number}", epoch or number + 10, f"10.200.{number}.64/26",
        f"66:00:00:00:00:{number:02x}", f"192.168.0.{underlay or number + 1}",
    )  # fmt: skip


def executed(rows: Rows, operations: list[Operation]) -> None:
    for action, kind, key, value in operations:
        if action is Action.PUT:
            rows[kind][key] = value
        else:
            assert rows[kind].pop(key) == value, "only what is there is removed"


steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 4), st.integers(1, 3), st.integers(1, 5)),
        st.tuples(st.just("remove"), st.integers(0, 4), st.just(0), st.just(0)),
        st.tuples(st.just("prefer"), st.integers(0, 4), st.integers(0, 2), st.just(0)),
    ),
    max_size=30,
)


@given(steps)
def test_every_peer_keeps_its_rows_of_the_tunnel_whatever_way_is_preferred(found: list[tuple]) -> None:  # type: ignore[type-arg]
    plain, desired, kernel = Desired(), Desired(), Rows.empty()
    present: dict[int, Peer] = {}
    for what, number, one, other in found:
        if what == "prefer":
            who = present.get(number, peer(number))
            value = route_value(bytes([10, 9, 9, one])) if one else None
            executed(kernel, desired.prefer(who, value))
            key = preferred_key(*split_cidr(who.cidr))
            assert desired.rows.routes.get(key) == (value if number in present else None)
        else:
            before = present.pop(number, None)
            after = peer(number, one + 10 * number + 10, other) if what == "put" else None
            if after is not None:
                present[number] = after
            executed(kernel, desired.apply(PeerChange(before, after)))
            plain.apply(PeerChange(before, after))
            if before != after:
                key = preferred_key(*split_cidr(peer(number).cidr))
                assert key not in desired.rows.routes, "another peer, or address: the tunnel again"
        assert kernel == desired.rows
        tunnel = {key: value for key, value in desired.rows.routes.items() if not is_preferred(key)}
        assert (desired.rows.neighbours, desired.rows.fdb, tunnel) == plain.rows
    assert difference(desired.rows, kernel) == []


def test_metrics_of_preferred_routes_differ_and_win() -> None:
    keys = {preferred_key(bytes([10, 200, high, low]), 30) for high in range(8) for low in range(0, 256, 4)}
    assert len({key[5:] for key in keys}) == 512
    assert all(key[5:] < key[:4] and is_preferred(key) for key in keys)


def known(*peers: Peer) -> tuple[View, Desired]:
    view, desired = View("c", "n9", "u9"), Desired()
    for one in peers:
        desired.apply(view.peers.put(one))
    return view, desired


def test_a_route_that_the_kernel_refuses_is_given_up_and_the_tunnel_stays() -> None:
    one, other = peer(1), peer(2)
    view, desired = known(one, other)
    found = OwnFindings()
    found.device_mtu = 1450
    ways = {one: Exit(b"\xc0\xa8\0\2", device=3), other: Exit(b"\xc0\xa8\0\3", device=3)}
    written = found.prefer(ways, view, desired, by="direct")
    assert [operation.kind for operation in written] == [Kind.ROUTE, Kind.ROUTE]
    assert found.give_up(desired, [written[0]])
    assert found.exits == {other: ways[other]}
    assert sorted(map(is_preferred, desired.rows.routes)) == [False, False, True]
    again = Desired()
    for each in (one, other):
        again.apply(PeerChange(None, each))
    found.put_into(again, view)
    assert again.rows == desired.rows


def test_a_narrow_way_narrows_the_preferred_route_too() -> None:
    one = peer(1)
    view, desired = known(one)
    found = OwnFindings()
    found.device_mtu = 1450
    found.prefer({one: Exit(b"\xc0\xa8\0\2", device=3)}, view, desired, by="direct")
    assert len(found.narrow({one: 1380}, view, desired)) == 2
    assert {value[4:8] for value in desired.rows.routes.values()} == {(1380).to_bytes(4, "big")}


def test_the_table_counts_and_tells_the_newest_changes() -> None:
    table = WayTable()
    assert table.report(0.0, 0).sentence() == ""
    assert table.report(0.0, 3).sentence() == "3 tunnel"
    assert table.set(peer(1), Way("direct", "192.168.0.2"), 5.0)
    assert not table.set(peer(1), Way("direct", "192.168.0.2"), 6.0), "since when, not when last said"
    table.set(peer(2), Way("nat", "1.2.3.4:5678", encrypted=True), 7.0)
    table.set(peer(3), Way("direct"), 8.0)
    table.set(peer(3), TUNNEL, 9.0, "no answer")
    report = table.report(10.0, 4)
    assert report.sentence() == "1 direct, 1 nat, 2 tunnel; 1 of them encrypted"
    assert report.peers == (
        PeerWay(13, "tunnel", 1.0, "", False, "no answer"),
        PeerWay(12, "nat", 3.0, "1.2.3.4:5678", True),
        PeerWay(11, "direct", 5.0, "192.168.0.2"),
    )
    assert table.counts(4) == {("tunnel", False): 2, ("direct", False): 1, ("nat", True): 1}
    assert table.changed_at == 9.0
    assert table.of(peer(1, epoch=99)) == TUNNEL, "another peer with that range"
    table.forget(peer(1))
    assert table.report(10.0, 3).sentence() == "1 nat, 2 tunnel; 1 of them encrypted"


def test_it_is_since_when_also_after_the_agent_started_again(tmp_path: Path) -> None:
    """The kernel went on: what is found to be as it was is so since then, and not since the start."""
    relayed = Way("relayed", "n9", encrypted=True)
    told = (
        LocalWay("n1", "relayed", "n9", True, time.time() - 900),
        LocalWay("n2", "nat", "1.2.3.4:5", False, time.time() - 60),
    )
    for boot, expected in (("another", 0.0), (boot_id(), 900.0)):
        status = LocalStatus(
            node="n", uid="u", cluster="c", pid=1, started_at=0.0, written_at=time.time(), boot=boot,
            written_running_s=running_s(), peer_ways=told,
        )  # fmt: skip
        write_atomically(tmp_path / STATUS_FILE, msgspec.json.encode(status))
        table, now = WayTable(Before(tmp_path).since), time.monotonic()
        table.set(peer(1), relayed, now)
        table.set(peer(2), Way("nat", "9.9.9.9:5"), now)
        ages = {one.node: age for one, _, age, _ in table.newest(now, 5)}
        assert ages["n2"] == 0.0, "another place"
        assert ages["n1"] == pytest.approx(expected, abs=20)
    table.set(peer(1), Way("relayed", "n8"), now + 1)
    table.set(peer(1), relayed, now + 2)
    assert table.newest(now + 2, 1)[0][2] == 0.0, "it was another one meanwhile"
    (tmp_path / STATUS_FILE).write_text("{")
    assert Before(tmp_path).since("n1", relayed, 5.0) == 5.0


def test_a_report_is_bounded_and_checked() -> None:
    table = WayTable()
    for number in range(200):
        table.set(peer(number), Way("direct"), float(number))
    report = table.report(500.0, 10_000)
    assert (len(report.peers), report.direct, report.tunnel) == (NAMED_MAX, 200, 9800)
    assert len(msgspec.json.encode(report)) < 2000
    said = {"node": "n", "uid": "u", "applied": 1, "sent_at": "2026-01-01T00:00:00Z"}

    def taken(**ways: object) -> WaysReport:
        status = checked(msgspec.convert({**said, "ways": ways}, AgentStatus, strict=True))
        assert status.ways is not None
        return status.ways

    long = taken(direct=1, peers=[[7, "direct", 1.0, "x" * 5000, False, "a\nb"]] * 100)
    assert len(long.peers) == NAMED_MAX
    assert len(long.peers[0].via) <= 300
    assert "\n" not in long.peers[0].why
    for wrong in ({"direct": -1}, {"peers": [[0, "nat"]]}, {"peers": [[1, "nat", -1.0]]}):
        with pytest.raises(BadRequest):
            taken(**wrong)


def test_a_way_lasts_while_its_peer_goes_from_one_stage_to_the_next() -> None:
    table = WayTable()
    for number, stage in enumerate(("sending", "required", "sending")):
        staged = msgspec.structs.replace(peer(1), stage=stage)
        assert table.set(staged, Way(encrypted=True), float(number)) == (number == 0)
        table.keep(lambda _: staged)  # noqa: B023  called at once
    assert table.report(10.0, 1).peers == (PeerWay(11, "tunnel", 10.0, encrypted=True),)
    elsewhere = msgspec.structs.replace(peer(1), epoch=99)
    table.set(elsewhere, Way(encrypted=True), 5.0)
    assert table.report(10.0, 1).encrypted == 1
    table.keep(lambda _: None)
    assert table.report(10.0, 1).encrypted == 0
