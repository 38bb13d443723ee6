"""Every metric of an agent, in one place. Read from the agent's own counters when somebody scrapes.

The rates that matter on a node: is its view current, does the kernel agree, what was repaired, how long
did it take. No label names a peer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

from opentelemetry.metrics import Observation

from events.bus.access.creds import ends_at
from events.status import KINDS
from events.telemetry.role import Telemetry
from nodeagent.fastpath.layout import REASONS
from nodeagent.netlink.rows import Kind

if TYPE_CHECKING:
    from nodeagent.agent import Agent
    from nodeagent.dataplane.counters import Counters
    from nodeagent.fastpath.reconciler import FastPath
    from nodeagent.firewall.reconciler import FirewallReconciler

STATES = ("starting", "ready", "degraded", "stopping", "fenced")
Read = Callable[[], Iterable[Observation]]


def bind(agent: Agent, telemetry: Telemetry) -> None:
    """Register the instruments. Call once per agent, before it runs."""
    meter = telemetry.meter

    def gauge(name: str, description: str, read: Read, unit: str = "") -> None:
        meter.create_observable_gauge(name, [lambda _options: read()], unit=unit, description=description)

    def counters(name: str, description: str, read: Read) -> None:
        meter.create_observable_counter(name, [lambda _options: read()], description=description)

    def counter(name: str, description: str, value: Callable[[], float]) -> None:
        counters(name, description, lambda: [Observation(value())])

    def one(name: str, description: str, value: Callable[[], float], unit: str = "") -> None:
        gauge(name, description, lambda: [Observation(value())], unit)

    session = agent.session
    reconciler, firewall = agent.reconciler, agent.firewall
    totals = reconciler.counters
    gauge(
        "isthmus.agent.state",
        "1 for the state that the agent is in.",
        lambda: [Observation(int(agent.reporter.state() == state), {"state": state}) for state in STATES],
    )
    one("isthmus.agent.sequence", "Last sequence of the view.", lambda: agent.view.sequence)
    one("isthmus.agent.applied", "Last sequence that the kernel holds.", lambda: agent.reporter.applied)
    one(
        "isthmus.agent.behind",
        "Events that are known and not yet in the kernel.",
        lambda: session.pending + max(0, agent.view.sequence - agent.reporter.applied),
    )
    one(
        "isthmus.agent.bus.connected",
        "1 while the bus is connected.",
        lambda: int(session.connected),
    )
    one(
        "isthmus.agent.view.age",
        "Time since the log last brought an event or said that there is none; asked every 10 to 30 s.",
        lambda: time.monotonic() - session.last_at,
        "s",
    )
    one(
        "isthmus.credentials.expire.time",
        "When the credentials end, in seconds since 1970; the year 9999 without any.",
        lambda: ends_at(agent.config.bus.credentials),
        "s",
    )
    one("isthmus.agent.peers", "Other nodes of the view.", lambda: len(agent.view.peers))
    gauge(
        "isthmus.agent.ways",
        "Peers by the way that packets take to them, encrypted or not.",
        lambda: _ways(agent),
    )
    gauge(
        "isthmus.agent.ways.age",
        "Time since packets to any peer began to take another way, or to be encrypted or not; nothing before.",
        lambda: [Observation(time.monotonic() - at)] if (at := agent.ways.changed_at) is not None else [],
        "s",
    )
    gauge("isthmus.agent.rows", "Desired kernel rows, by kind.", lambda: rows_by_kind(agent))
    one(
        "isthmus.agent.mtu",
        "MTU of the tunnel device.",
        lambda: reconciler.tunnel.spec.mtu if reconciler.tunnel.spec else 0,
        "By",
    )
    one(
        "isthmus.agent.kernel.agrees",
        "1 when the kernel has exactly the desired rows.",
        lambda: int(reconciler.clean),
    )
    one(
        "isthmus.agent.conditions",
        "Conditions of the agent.",
        lambda: len(agent.conditions.sentences()),
    )
    one(
        "isthmus.agent.resync.duration",
        "The last comparison with the kernel.",
        lambda: totals.last_resync_s,
        "s",
    )
    one(
        "isthmus.agent.apply.duration",
        "The last direct change of the kernel.",
        lambda: totals.last_direct_s,
        "s",
    )
    counter("isthmus.agent.resyncs", "Comparisons with the kernel.", lambda: totals.resyncs)
    counter("isthmus.agent.applies", "Direct changes of the kernel.", lambda: totals.direct)
    counters(
        "isthmus.agent.rows.changed",
        "Rows written, removed and refused by the kernel.",
        lambda: [
            Observation(totals.written, {"change": "written"}),
            Observation(totals.removed, {"change": "removed"}),
            Observation(totals.refused, {"change": "refused"}),
        ],
    )
    for done, what in (("found", "found"), ("healed", "found and repaired")):
        counters(
            f"isthmus.agent.drift.{done}",
            f"Differences that others made and the agent {what}: rows by kind, the device, the firewall.",
            partial(_drift, "found" if done == "found" else "repaired", totals, firewall),
        )
    path = agent.fastpath
    one("isthmus.agent.fastpath.on", "1 while flows may bypass the stack by eBPF.", lambda: int(path.on))
    counters(
        "isthmus.agent.fastpath.packets",
        "Packets between pods and peers, by way and direction; a merged packet counts once.",
        lambda: _packets(path),
    )
    counters(
        "isthmus.agent.fastpath.bytes",
        "Bytes of inner packets that bypassed the stack.",
        lambda: [
            Observation(path.counters().get(f"fast_{way}_bytes", 0), {"direction": way})
            for way in ("out", "in")
        ],
    )
    counters(
        "isthmus.agent.fastpath.refused",
        "Packets of peers that took the stack, by reason.",
        lambda: [Observation(path.counters().get(reason, 0), {"reason": reason}) for reason in REASONS],
    )
    counter(
        "isthmus.agent.fastpath.repaired",
        "Programs and map entries of the fast path that others removed or changed.",
        lambda: path.counted.repaired,
    )
    counters(
        "isthmus.agent.nat",
        "Ways through NAT: questions asked, packets that keep mappings, places that moved, messages refused.",
        lambda: [Observation(count, {"what": what}) for what, count in agent.nat.book.counted.items()],
    )
    counter(
        "isthmus.agent.monitor.overflows",
        "Losses of the kernel's change monitor.",
        lambda: totals.overflows,
    )


def _packets(path: FastPath) -> list[Observation]:
    found = path.counters()
    return [
        Observation(found.get(f"{way}_{direction}", 0), {"way": way, "direction": direction})
        for way in ("fast", "slow")
        for direction in ("out", "in")
    ]


def _ways(agent: Agent) -> list[Observation]:
    counts = agent.ways.counts(len(agent.view.peers))
    return [
        Observation(counts.get((kind, encrypted), 0), {"way": kind, "encrypted": word})
        for kind in KINDS
        for encrypted, word in ((False, "no"), (True, "yes"))
    ]


def rows_by_kind(agent: Agent) -> list[Observation]:
    """The desired rows: a neighbour, an FDB row and a route for each peer, and the own range's blackhole."""
    desired = agent.reconciler.desired
    counts = [len(table) for table in desired.rows] if desired is not None else [0] * len(Kind)
    return [Observation(count, {"kind": kind.name.lower()}) for kind, count in zip(Kind, counts, strict=True)]


def _drift(done: str, counters: Counters, firewall: FirewallReconciler) -> list[Observation]:
    """One series for each kind of thing; a changed firewall is always repaired whole."""
    rows = [
        Observation(getattr(counters, f"drift_{done}_{kind}"), {"kind": kind})
        for kind in ("neighbour", "fdb", "route", "link")
    ]
    return [*rows, Observation(firewall.repairs, {"kind": "firewall"})]
