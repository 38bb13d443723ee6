"""Logs of a few nodes, for what both the controller and an agent make of them."""

from __future__ import annotations

from hypothesis import strategies as st

from events.chain import Head
from events.types import (
    ClusterDefined,
    Event,
    NodeJoined,
    NodeLeft,
    NodeNatChanged,
    NodeUnderlayChanged,
    RangeAllocated,
    RangeDraining,
)
from nodeagent.membership.view import View

DEFINED = ClusterDefined(
    cluster="c", container_cidr="172.16.0.0/16", max_pods_per_node=64, max_services=256, range_size=64,
    service_size=256, service_cidr="172.16.255.0/24", capacity=1020,
)  # fmt: skip


def joined(index: int) -> list[Event]:
    underlay = f"10.0.0.{index + 1}"
    mac = f"66:00:00:00:00:{index:02x}"
    return [
        NodeJoined(
            node=f"n{index}", uid=f"u{index}", kind="cloud", underlay=underlay, announced=underlay, vtep_mac=mac
        ),
        RangeAllocated(
            cidr=f"172.16.{index}.0/26", index=index * 4, node=f"n{index}", uid=f"u{index}", cursor_after=1
        ),
    ]


def folded(log: list[Event], *, node: str = "n0", uid: str = "u0") -> View:
    """The view behind the whole log."""
    view = View("c", node, uid)
    for sequence, event in enumerate(log, 1):
        view.apply(sequence, event)
        view.head = Head(sequence, bytes([sequence % 256]) * 32)
    return view


@st.composite
def logs(draw: st.DrawFn) -> list[Event]:
    """Joins, changes of addresses and leaves of up to six nodes; n0 joins first and stays."""
    events: list[Event] = [DEFINED, *joined(0)]
    members: dict[int, int] = {0: 3}  # node → epoch
    behind_nat: set[int] = set()
    for index in draw(st.lists(st.integers(1, 5), max_size=14)):
        if index not in members:
            events += joined(index)
            members[index] = len(events)
        elif draw(st.integers(0, 3)) == 0:
            behind_nat ^= {index}
            events.append(NodeNatChanged(node=f"n{index}", uid=f"u{index}", behind=index in behind_nat))
        elif draw(st.booleans()):
            address = f"10.0.{index}.{draw(st.integers(1, 200))}"
            events.append(
                NodeUnderlayChanged(node=f"n{index}", uid=f"u{index}", underlay=address, announced=address)
            )
        else:
            epoch = members.pop(index)
            events += [
                NodeLeft(node=f"n{index}", uid=f"u{index}"),
                RangeDraining(
                    cidr=f"172.16.{index}.0/26", index=index * 4, node=f"n{index}", uid=f"u{index}", epoch=epoch
                ),
            ]
            break  # the range rests; a further join would need another one
    return events
