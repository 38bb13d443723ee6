"""Every metric of an agent, in one place. Read from the agent's own figures when somebody scrapes.

The rates that matter on a node: is its view current, does the kernel agree, what was healed, how long
did it take. No label names a peer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

from opentelemetry.metrics import CallbackOptions, Observation

from events.telemetry.role import Telemetry
from nodeagent.dataplane.rows import Kind

if TYPE_CHECKING:
    from nodeagent.agent import Agent
    from nodeagent.dataplane.counters import Figures
    from nodeagent.firewall.reconciler import Shield
    from nodeagent.membership.log_follower import Contact

STATES = ("starting", "ready", "degraded", "stopping", "fenced")
Read = Callable[[], Iterable[Observation]]


def bind(agent: Agent, telemetry: Telemetry) -> None:
    """Register the instruments. Call once per agent, before it runs."""
    meter = telemetry.meter

    def gauge(name: str, description: str, read: Read, unit: str = "") -> None:
        meter.create_observable_gauge(name, [_guarded(agent, read)], unit=unit, description=description)

    def counters(name: str, description: str, read: Read) -> None:
        meter.create_observable_counter(name, [_guarded(agent, read)], description=description)

    def counter(name: str, description: str, value: Callable[[], float]) -> None:
        counters(name, description, lambda: [Observation(value())])

    def one(name: str, description: str, value: Callable[[], float], unit: str = "") -> None:
        gauge(name, description, lambda: [Observation(value())], unit)

    def contact() -> Contact:
        return agent.follower.contact

    keeper, shield = agent.keeper, agent.shield
    figures = keeper.figures
    gauge(
        "isthmus.agent.state",
        "1 for the state that the agent is in.",
        lambda: [Observation(int(agent.state() == state), {"state": state}) for state in STATES],
    )
    one("isthmus.agent.sequence", "Last sequence of the view.", lambda: agent.view.sequence)
    one("isthmus.agent.applied", "Last sequence that the kernel holds.", lambda: keeper.applied)
    one(
        "isthmus.agent.behind",
        "Events that are known and not yet in the kernel.",
        lambda: contact().pending + max(0, agent.view.sequence - keeper.applied),
    )
    one(
        "isthmus.agent.bus.connected",
        "1 while the bus is connected.",
        lambda: int(contact().connected),
    )
    one(
        "isthmus.agent.view.age",
        "Time since the log last brought an event or said that there is none; asked every 10 to 30 s.",
        lambda: max(0.0, time.time() - contact().last_at),
        "s",
    )
    one("isthmus.agent.peers", "Other nodes of the view.", lambda: len(agent.view.peers))
    gauge("isthmus.agent.rows", "Desired kernel rows, by kind.", lambda: rows_by_kind(agent))
    one(
        "isthmus.agent.mtu",
        "MTU of the tunnel device.",
        lambda: keeper.ground.spec.mtu if keeper.ground.spec else 0,
        "By",
    )
    one(
        "isthmus.agent.kernel.agrees",
        "1 when the kernel has exactly the desired rows.",
        lambda: int(keeper.clean),
    )
    one(
        "isthmus.agent.conditions",
        "Things that the agent complains of.",
        lambda: len(agent.conditions.sentences()),
    )
    one(
        "isthmus.agent.resync.duration",
        "The last comparison with the kernel.",
        lambda: figures.last_resync_s,
        "s",
    )
    one(
        "isthmus.agent.apply.duration",
        "The last direct change of the kernel.",
        lambda: figures.last_direct_s,
        "s",
    )
    counter("isthmus.agent.resyncs", "Comparisons with the kernel.", lambda: figures.resyncs)
    counter("isthmus.agent.applies", "Direct changes of the kernel.", lambda: figures.direct)
    counters(
        "isthmus.agent.rows.changed",
        "Rows written, removed and refused by the kernel.",
        lambda: [
            Observation(figures.written, {"change": "written"}),
            Observation(figures.removed, {"change": "removed"}),
            Observation(figures.refused, {"change": "refused"}),
        ],
    )
    for done, what in (("found", "found"), ("healed", "found and healed")):
        counters(
            f"isthmus.agent.drift.{done}",
            f"Differences that others made and the agent {what}: rows by kind, the device, the firewall.",
            partial(_drift, done, figures, shield),
        )
    counter(
        "isthmus.agent.monitor.overflows",
        "Losses of the kernel's change monitor.",
        lambda: figures.overflows,
    )


def rows_by_kind(agent: Agent) -> list[Observation]:
    """The desired rows: a neighbour, an FDB row and a route for each peer, and the own range's blackhole."""
    desired = agent.keeper.desired
    counts = [len(table) for table in desired.rows] if desired is not None else [0] * len(Kind)
    return [Observation(count, {"kind": kind.name.lower()}) for kind, count in zip(Kind, counts, strict=True)]


def _drift(done: str, figures: Figures, shield: Shield) -> list[Observation]:
    """One series for each kind of thing; a changed firewall is always healed whole."""
    rows = [
        Observation(getattr(figures, f"{done}_{kind}"), {"kind": kind})
        for kind in ("neighbour", "fdb", "route", "link")
    ]
    return [*rows, Observation(shield.repairs, {"kind": "firewall"})]


def _guarded(agent: Agent, read: Read) -> Callable[[CallbackOptions], Iterable[Observation]]:
    """Before the agent has its view there is nothing to say."""

    def callback(_options: CallbackOptions) -> Iterable[Observation]:
        return read() if hasattr(agent, "follower") else []

    return callback
