"""The ledger must accept every lawful history and name the event that breaks the law."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from deploy.churn.ledger import Ledger
from events import types
from events.codec import Recorded
from events.envelope import Envelope
from events.errors import VerificationFailed

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def fold(*events: types.Event) -> Ledger:
    ledger = Ledger()
    for sequence, event in enumerate(events, 1):
        envelope = Envelope(
            id=str(sequence), type=event.type_name(), source="t", time=NOW, actor="t", command_id=str(sequence)
        )
        ledger.take(Recorded(sequence, envelope, event, NOW))
    return ledger


DEFINED = types.ClusterDefined(
    cluster="c", container_cidr="10.0.0.0/24", max_pods_per_node=64, max_services=32, range_size=64,
    service_size=32, service_cidr="10.0.0.224/27", capacity=3,
)  # fmt: skip


def joined(node: str, uid: str = "") -> types.NodeJoined:
    return types.NodeJoined(
        node=node,
        uid=uid or node,
        kind="cloud",
        underlay="192.0.2.1",
        announced="192.0.2.1",
        vtep_mac="66:00:00:00:00:01",
    )


def left(node: str) -> types.NodeLeft:
    return types.NodeLeft(node=node, uid=node)


def allocated(node: str, cidr: str, index: int) -> types.RangeAllocated:
    return types.RangeAllocated(cidr=cidr, index=index, node=node, uid=node, cursor_after=index + 1)


A, B = "10.0.0.0/26", "10.0.0.64/26"


def drained(node: str, cidr: str, index: int, epoch: int) -> tuple[types.Event, types.Event]:
    return (
        types.RangeDraining(cidr=cidr, index=index, node=node, uid=node, epoch=epoch),
        types.RangeQuarantined(cidr=cidr, index=index, epoch=epoch, watermark=9, until=NOW),
    )


def test_a_lawful_history_is_accepted_and_counted() -> None:
    ledger = fold(
        DEFINED, joined("a"), allocated("a", A, 0), joined("b"), allocated("b", B, 1),
        left("a"), *drained("a", A, 0, 3), types.RangeFreed(cidr=A, index=0, epoch=3),
        joined("c"), allocated("c", A, 0),
    )  # fmt: skip
    assert ledger.pool() == {"capacity": 3, "allocated": 2, "draining": 0, "quarantined": 0, "free": 1}
    assert (ledger.joins, ledger.leaves, ledger.allocations, ledger.most_held, ledger.wraps) == (3, 1, 3, 2, 1)


def test_draining_and_quarantined_ranges_are_counted_apart() -> None:
    draining, quarantined = drained("a", A, 0, 3)
    history = (DEFINED, joined("a"), allocated("a", A, 0), left("a"), draining)
    assert fold(*history).pool()["draining"] == 1
    assert fold(*history, quarantined).pool() == {
        "capacity": 3, "allocated": 0, "draining": 0, "quarantined": 1, "free": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    "second", [A, "10.0.0.0/27", "10.0.0.32/27", "10.0.0.0/25"], ids=["same", "start", "end", "wider"]
)
def test_two_owners_of_one_address_are_found_at_the_event(second: str) -> None:
    with pytest.raises(VerificationFailed, match=r"event 5 gives .* to b while a holds"):
        fold(DEFINED, joined("a"), allocated("a", A, 0), joined("b"), allocated("b", second, 0))


def test_a_range_is_not_given_away_while_it_drains_or_rests() -> None:
    draining, quarantined = drained("a", A, 0, 3)
    before = (DEFINED, joined("a"), allocated("a", A, 0), left("a"))
    for upto in ((draining,), (draining, quarantined)):
        with pytest.raises(VerificationFailed, match="while a holds"):
            fold(*before, *upto, joined("b"), allocated("b", A, 0))


def test_a_range_inside_the_service_range_is_found() -> None:
    with pytest.raises(VerificationFailed, match="Service range"):
        fold(DEFINED, joined("a"), allocated("a", "10.0.0.192/26", 3))


def test_a_range_freed_under_a_living_owner_is_found() -> None:
    with pytest.raises(VerificationFailed, match="while its owner a lives"):
        fold(DEFINED, joined("a"), allocated("a", A, 0), types.RangeFreed(cidr=A, index=0, epoch=3))


def test_an_event_about_a_range_that_nobody_holds_is_found() -> None:
    with pytest.raises(VerificationFailed, match="nobody holds"):
        fold(DEFINED, types.RangeFreed(cidr=A, index=0, epoch=3))


def test_a_live_node_without_a_range_is_found_when_the_pool_is_counted() -> None:
    with pytest.raises(VerificationFailed, match="0 ranges are allocated to 1 live nodes"):
        fold(DEFINED, joined("a")).pool()
