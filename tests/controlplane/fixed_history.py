"""One fixed history and its digests; other processes import this file without the test framework."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from controlplane.cluster.decide import AdvanceDrains, MarkLiveness, decide
from controlplane.cluster.digest import state_digest
from controlplane.cluster.evolve import evolve
from controlplane.cluster.state import ClusterState
from events.protocol.commands import AppendCidr, DefineCluster, FenceNode, JoinNode, RemoveNode, ReserveClb
from events.types import Network

GOLDEN = "4ea447d5b92bfd65"
"""The first digits of the last digest. It changes only together with controlplane.cluster.digest.FORMAT."""


def digests() -> str:
    """The digests after each of a few hundred commands, folded into one line."""
    state = ClusterState("golden")
    now = datetime(2026, 1, 1, tzinfo=UTC)
    shown: list[str] = []
    for number, command in enumerate(_commands()):
        now += timedelta(seconds=1.25)
        everybody = AdvanceDrains(applied=dict.fromkeys(state.by_uid, state.sequence))
        wanted = everybody if isinstance(command, AdvanceDrains) else command
        for event in decide(state, wanted, now).events:
            evolve(state, state.sequence + 1, event)
        if number % 25 == 0:
            shown.append(state_digest(state)[:8])
    return " ".join([*shown, state_digest(state)])


def _commands() -> list[Any]:
    commands: list[Any] = [
        DefineCluster(
            container_cidr="10.0.0.0/22",
            pods_per_node=20,
            services=40,
            quarantine_s=2.5,
            networks=(
                Network(cidr="192.168.0.0/16", kind="idc", name="深圳"),
                Network(cidr="100.64.0.0/10", kind="route"),
            ),
        )
    ]
    for number in range(150):
        name = f"n{number % 37}"
        kind: Any = "external" if number % 3 else "cloud"
        commands.append(
            JoinNode(node=name, uid=f"u{number % 41}", kind=kind, underlay=f"203.0.113.{number % 37 + 1}")
        )
        if number % 7 == 0:
            commands.append(RemoveNode(node=f"n{(number * 5) % 37}"))
        if number % 11 == 0:
            commands.append(FenceNode(node=f"n{(number * 3) % 37}", reason="dead"))
        if number % 5 == 0:
            commands.append(AdvanceDrains(applied={}))
        if number % 50 == 0:
            commands.append(AppendCidr(cidr=f"10.9.{number}.0/26"))
            commands.append(
                ReserveClb(reservation=f"clb-{number}", subnet=f"198.51.100.{number // 50 * 16}/28")
            )
            commands.append(MarkLiveness(last_seen={}, watching_since=datetime(2025, 1, 1, tzinfo=UTC)))
    return commands
