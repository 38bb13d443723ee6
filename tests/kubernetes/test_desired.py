"""What is to be written to a Node: each row of the table, and that writing it once is enough."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.kubernetes import objects
from controlplane.kubernetes.desired import NOTHING, Member, Wanted, wanted
from controlplane.kubernetes.objects import Condition, Meta, Node, Spec, Status, Taint

RANGE = "10.200.0.64/26"
STARTUP = Taint(key=objects.STARTUP_TAINT, effect="NoSchedule")
OTHERS = Taint(key="node.kubernetes.io/not-ready", effect="NoExecute")


def node(pod_cidr: str = "", *, taints: tuple[Taint, ...] = (), network: Condition | None = None) -> Node:
    conditions = (Condition("Ready", "True"), *([network] if network else []))
    spec = Spec(pod_cidr=pod_cidr, pod_cidrs=(pod_cidr,) if pod_cidr else (), taints=taints)
    return Node(Meta(name="n1", uid="u1", resource_version="7"), spec, Status(conditions))


def member(agent: Any = "ready", complaint: str = "") -> Member:
    return Member(uid="m1", cidr=RANGE, epoch=5, agent=agent, complaint=complaint)


def test_a_node_without_a_member_is_kept_from_pods_and_says_why() -> None:
    for pod_cidr in ("", RANGE):
        want = wanted(node(pod_cidr), None, refusal="no free range")
        assert (want.pod_cidr, want.untaint) == ("", False)
        assert want.condition is not None
        assert (want.condition.status, want.condition.reason) == ("True", "IsthmusNoRange")
        assert "no free range" in want.condition.message


def test_a_ready_member_gets_its_range_and_lets_pods_in() -> None:
    want = wanted(node(taints=(STARTUP, OTHERS)), member())
    assert (want.pod_cidr, want.untaint, want.annotate) == (RANGE, True, True)
    assert want.condition is not None
    assert (want.condition.status, want.condition.reason) == ("False", "IsthmusIsUp")


@pytest.mark.parametrize("agent", ["not ready", "never heard"])
def test_a_member_that_is_not_ready_has_its_range_and_no_pods_yet(agent: Any) -> None:
    want = wanted(node(taints=(STARTUP,)), member(agent, "the host does not forward"))
    assert (want.pod_cidr, want.untaint) == (RANGE, False)
    assert want.condition is not None
    assert (want.condition.status, want.condition.reason) == ("True", "IsthmusAgentNotReady")
    assert "the host does not forward" in want.condition.message


def test_an_agent_that_falls_silent_changes_nothing_that_was_said() -> None:
    up = Condition("NetworkUnavailable", "False", "IsthmusIsUp", f"pods have {RANGE}")
    want = wanted(node(RANGE, network=up), member("silent"))
    assert (want.condition, want.pod_cidr, want.warning) == (None, "", "")


def test_a_foreign_pod_cidr_is_never_touched_and_both_sides_are_named() -> None:
    want = wanted(node("10.200.9.0/26"), member(), taken_by="n7")
    assert want.pod_cidr == ""
    assert want.condition is not None
    assert want.condition.reason == "IsthmusRangeConflict"
    for word in ("10.200.9.0/26", RANGE, "n7", "kubectl delete node n1"):
        assert word in want.warning


def test_a_node_that_is_still_on_flannel_is_left_to_it() -> None:
    for agent in ("never heard", "silent", "ready"):
        still = Member(uid="m1", cidr=RANGE, epoch=5, agent=agent, elsewhere=True)  # type: ignore[arg-type]
        assert wanted(node(RANGE), still) is NOTHING
        assert wanted(node("10.200.9.0/26"), still) is NOTHING


def test_in_an_adoption_a_node_that_is_no_member_is_left_alone() -> None:
    said = dict(objects.flannel_annotations(1, "66:00:00:00:00:07", "192.0.2.7"))
    flannels = msgspec.structs.replace(node(RANGE), metadata=Meta(name="n1", uid="u1", annotations=said))
    for found in (node(), node(RANGE), flannels):
        assert wanted(found, None, adopting=True) is NOTHING
    assert wanted(flannels, None, adopting=True, refusal="no free range") is NOTHING
    assert wanted(node(), None, adopting=True, refusal="no free range").condition is not None
    assert wanted(flannels, None) is NOTHING  # before an adoption begins, too
    ours = msgspec.structs.replace(
        flannels, metadata=Meta(name="n1", uid="u1", annotations={**said, objects.RANGE: RANGE})
    )
    assert wanted(ours, None).condition is not None  # a former member


def test_a_new_node_shows_itself_to_flannels_nodes_while_any_is_left() -> None:
    said = objects.flannel_annotations(1, "66:00:00:00:00:07", "192.0.2.7")
    new = Member(uid="m1", cidr=RANGE, epoch=5, agent="ready", flannel=said)
    found = node(RANGE)
    assert wanted(found, new).annotate
    patch = objects.annotations_patch(found, new.cidr, new.epoch, new.uid, new.flannel)
    written = patch["metadata"]["annotations"]
    assert json.loads(written["flannel.alpha.coreos.com/backend-data"]) == {
        "VNI": 1,
        "VtepMAC": "66:00:00:00:00:07",
    }
    assert written["flannel.alpha.coreos.com/public-ip"] == "192.0.2.7"
    found = msgspec.structs.replace(
        found, metadata=msgspec.structs.replace(found.metadata, annotations=written)
    )
    assert not wanted(found, new).annotate


taints = st.lists(st.sampled_from([STARTUP, OTHERS]), max_size=2, unique=True).map(tuple)
members = st.none() | st.builds(
    Member, uid=st.just("m1"), cidr=st.sampled_from([RANGE, "10.200.1.0/26"]), epoch=st.integers(1, 9),
    agent=st.sampled_from(["ready", "not ready", "silent", "never heard"]),
    complaint=st.sampled_from(["", "why"]),
)  # fmt: skip


def after(found: Node, of: Member | None, want: Wanted) -> Node:
    """The Node as the API server would have it."""
    network = found.network
    if want.condition is not None:
        said = want.condition
        network = Condition("NetworkUnavailable", said.status, said.reason, said.message)
    cidr = want.pod_cidr or found.spec.pod_cidr
    left = tuple(
        taint for taint in found.spec.taints if not (want.untaint and taint.key == objects.STARTUP_TAINT)
    )
    meta = found.metadata
    if want.annotate and of is not None:
        said_of = {objects.RANGE: of.cidr, objects.EPOCH: str(of.epoch), objects.UID: of.uid}
        meta = Meta(name="n1", uid="u1", resource_version="8", annotations=said_of)
    made = node(cidr, taints=left, network=network)
    return Node(meta, made.spec, made.status)


@given(st.sampled_from(["", RANGE, "10.200.9.0/26"]), taints, members)
def test_writing_once_is_enough_and_a_pod_cidr_never_changes(
    pod_cidr: str, has: Any, of: Member | None
) -> None:
    first = node(pod_cidr, taints=has)
    want = wanted(first, of)
    assert not (want.pod_cidr and pod_cidr)
    assert not want.pod_cidr or (of is not None and want.pod_cidr == of.cidr)
    second = after(first, of, want)
    again = wanted(second, of)
    assert again == (Wanted(warning=again.warning) if again.warning else NOTHING)
    if second.network is not None and second.network.status == "False":
        assert of is not None
        assert (of.agent, second.spec.pod_cidr) == ("ready", of.cidr)
