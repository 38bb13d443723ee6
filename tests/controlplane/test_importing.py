"""Files of nodes: the three forms, and every way in which they can be wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.cli.node_file import parse
from events.errors import BadRequest
from events.protocol.commands import JoinNode

CSV = """\
# racks of row 4
Node, UID, Kind, IP, Public-IP, Site
c1, u1, cloud, 10.0.0.1, ,

"idc-1.sz.example.com", u2, external, 192.168.1.5, 203.0.113.9, sz
"""


def test_csv_with_comments_blanks_and_friendly_column_names() -> None:
    lines = parse(CSV)
    assert [line.number for line in lines] == [3, 5]
    assert [line.command for line in lines] == [
        JoinNode(node="c1", uid="u1", kind="cloud", underlay="10.0.0.1"),
        JoinNode(
            node="idc-1.sz.example.com",
            uid="u2",
            kind="external",
            underlay="192.168.1.5",
            announced="203.0.113.9",
            site="sz",
        ),
    ]


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm() -> None:
    assert [line.command.node for line in parse("\ufeff" + CSV.replace("\n", "\r\n"))] == [
        "c1",
        "idc-1.sz.example.com",
    ]


def test_the_kind_can_be_said_once_for_all() -> None:
    lines = parse("name,uid,underlay,kind\na,u1,10.0.0.1,\nb,u2,10.0.0.2,cloud\n", kind="external")
    assert [line.command.kind for line in lines] == ["external", "cloud"]


def test_json_as_a_list_or_under_nodes() -> None:
    nodes = [{"node": "a", "uid": "u", "kind": "cloud", "underlay": "10.0.0.1", "site": "gz"}]
    expected = [JoinNode(node="a", uid="u", kind="cloud", underlay="10.0.0.1", site="gz")]
    for document in (nodes, {"nodes": nodes}):
        assert [line.command for line in parse(json.dumps(document))] == expected


def kubernetes_node(name: str, **change: Any) -> dict[str, Any]:
    """As ``kubectl get nodes -o json`` prints one, the parts that matter."""
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "uid": "api-object-uid",
            "labels": {"topology.kubernetes.io/region": "gz", **change.get("labels", {})},
            "annotations": change.get("annotations", {}),
        },
        "spec": {
            "podCIDR": "10.42.0.0/24",
            **({"providerID": change["provider"]} if "provider" in change else {}),
        },
        "status": {
            "addresses": [
                {"type": "Hostname", "address": name},
                {"type": "InternalIP", "address": "fd00::7"},
                {"type": "InternalIP", "address": "10.0.0.7"},
                {"type": "ExternalIP", "address": "203.0.113.7"},
            ],
            "nodeInfo": {"machineID": f"machine-{name}", "systemUUID": "SYSTEM"},
        },
    }


def test_kubernetes_nodes() -> None:
    document = {
        "apiVersion": "v1",
        "kind": "List",
        "items": [
            kubernetes_node("c1", provider="qcloud:///100003/ins-1"),
            kubernetes_node("idc-1"),
            kubernetes_node(
                "idc-2",
                labels={"isthmus.io/kind": "cloud", "isthmus.io/site": "sz"},
                annotations={"isthmus.io/uid": "mine", "isthmus.io/announced": "203.0.113.7"},
            ),
        ],
    }
    commands = [line.command for line in parse(json.dumps(document), kind="external")]
    assert commands == [
        JoinNode(node="c1", uid="machine-c1", kind="cloud", underlay="10.0.0.7", site="gz"),
        JoinNode(node="idc-1", uid="machine-idc-1", kind="external", underlay="10.0.0.7", site="gz"),
        JoinNode(
            node="idc-2", uid="mine", kind="cloud", underlay="10.0.0.7", announced="203.0.113.7", site="sz"
        ),
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no node"),
        ("node,uid,underlay\n", "holds no node"),
        ("[]", "holds no node"),
        ("node,uid\na,u\n", "missing: underlay"),
        ("node,uid,underlay,colour\n", "unknown: colour"),
        ("node,uid,underlay,kind\na,u,10.0.0.1,cloud,x\n", "line 2 has 5 cells, the header 4"),
        ('node,uid,underlay,kind\n"a,u\n', "line 2"),
        ("node,uid,underlay\na,u,10.0.0.1\n", "--kind cloud or --kind external"),
        ("node,uid,underlay,kind\na,u,10.0.0.1,moon\n", "line 2 (a)"),
        (
            "node,uid,underlay,kind\na,u,1.1.1.1,cloud\na,v,1.1.1.2,cloud\n",
            "line 3 (a): the same node is on line 2",
        ),
        ("{", "is not JSON"),
        ("{}", "neither a list of nodes"),
        ('{"nodes": 3}', "neither a list of nodes"),
        ("[1, 2]", "neither a list of nodes"),
        ('[{"node": "a"}]', "line 1 (a)"),
        ('[{"node": "a", "uid": "u", "kind": "cloud", "underlay": "1.1.1.1", "x": 1}]', "`x`"),
        ('{"items": [{"metadata": 3}]}', "line 1 (no name)"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(text: str, says: str) -> None:
    with pytest.raises(BadRequest) as refused:
        parse(text)
    assert refused.value.code == "import_unreadable"
    assert says in refused.value.message


def test_all_problems_are_reported_at_once() -> None:
    text = "node,uid,underlay,kind\n" + "".join(f"n{number},u,1.1.1.1,moon\n" for number in range(9))
    with pytest.raises(BadRequest) as refused:
        parse(text)
    assert len(refused.value.details["problems"]) == 9


@given(st.one_of(st.text(), st.text(alphabet='{}[]",:\n#ab1.'), st.text(alphabet="node,uid\n\"'; ")))
def test_no_text_at_all_crashes_the_reader(text: str) -> None:
    try:
        parse(text)
    except BadRequest as refused:
        assert refused.code == "import_unreadable"  # noqa: PT017  either outcome is fine, a crash is not
