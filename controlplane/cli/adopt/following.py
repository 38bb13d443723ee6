"""What the network before has changed since a plan was made: nodes that it added, changed or removed. Pure.

The plan's own constants (container CIDR, range size, VNI, port, MTU) stand; a node that is over, or on its way,
is Isthmus's and no longer judged by what that network says.
"""

from __future__ import annotations

from collections.abc import Container

import msgspec

from controlplane.cli.adopt.planning import AdoptionPlan, Report, Wish, make
from controlplane.cli.adopt.reading import Found
from controlplane.cluster.decisions.adoption import refused
from controlplane.kubernetes.flannel_nodes import Candidate
from events.errors import Refused
from events.protocol.commands import AdoptedNode


class Changes(msgspec.Struct, frozen=True, kw_only=True):
    """``plan`` is the plan as it is now. ``unfit`` are findings about nodes that came and cannot be taken."""

    plan: AdoptionPlan
    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    unfit: tuple[dict[str, str], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed)


def follow(plan: AdoptionPlan, found: Found, over: Container[str]) -> Changes:
    """Lay what was read upon the plan. ``over``: nodes that are Isthmus's, or on the way from or to it.

    Raises Refused(adoption_refused) when a node of the plan no longer fits, or when none of them is there any
    more: then another cluster was read.
    """
    known = {node.node: node for node in plan.nodes}
    skipped = {*plan.skipped}
    read = {each.node: each for each in found.candidates if each.node not in skipped}
    if known and not known.keys() & read.keys():
        raise Refused(
            "adoption_refused",
            f"none of the {len(known):,} nodes of the plan is among the {len(read):,} that were read: is that "
            f"the same cluster? To go on with the plan as it is: --no-follow",
        )
    here = [_own(node) if name in over else read[name] for name, node in known.items()
            if name in over or name in read]  # fmt: skip
    new = [each for name, each in read.items() if name not in known]
    report = _judged(plan, found, [*here, *new])
    unfit = tuple(entry for entry in report.findings if entry["node"] not in known)
    blamed = {entry["node"] for entry in unfit}
    if blamed:
        new = [each for each in new if each.node not in blamed]
        report = _judged(plan, found, [*here, *new])
    if report.plan is None:
        raise refused(report.findings)
    now = {node.node: node for node in report.plan.nodes}
    return Changes(
        plan=report.plan,
        added=tuple(each.node for each in new),
        changed=tuple(name for name, node in now.items() if name in known and node != known[name]),
        removed=tuple(name for name in known if name not in now),
        unfit=unfit,
    )


def _judged(plan: AdoptionPlan, found: Found, nodes: list[Candidate]) -> Report:
    define = plan.define
    wish = Wish(
        cluster=plan.cluster,
        source=plan.source,
        cidr=define.container_cidr,
        range_size=define.pods_per_node,
        services=define.services,
        service_cidr=define.networks[0].cidr if define.networks else "",
        vni=define.vni,
        port=define.vxlan_port,
        mtu=plan.mtu,
        keep_name=plan.keep_name,
        skip=plan.skipped,
    )
    return make(nodes, wish, configured=found.configured, origin=plan.origin, again=True)


def _own(node: AdoptedNode) -> Candidate:
    """A node of the plan as it stands there."""
    return Candidate(
        node=node.node,
        uid=node.uid,
        kind=node.kind,
        site=node.site,
        underlay=node.underlay,
        announced=node.announced,
        range=node.range,
        mac=node.vtep_mac,
        backend="plan",
        findings=[],
    )
