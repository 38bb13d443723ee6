"""Files of nodes: the three forms, and every way in which they can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.cli.node_import import encoding
from controlplane.cli.node_import.encoding import text_of
from controlplane.cli.node_import.parse import NodeFile, parse, read_file
from controlplane.kubernetes.node_objects import Rules
from events.errors import BadRequest
from events.machine_identity import machine_uid, read_machine_uid
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


def machine(name: str) -> str:
    """A machine id for each name."""
    return f"{sum(ord(c) << 8 * i for i, c in enumerate(name)) + 1:032x}"


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
                {"type": "InternalIP", "address": change.get("internal", "10.0.0.7")},
                {"type": "ExternalIP", "address": "203.0.113.7"},
            ],
            "nodeInfo": {"machineID": machine(name), "systemUUID": "SYSTEM"},
        },
    }


def test_kubernetes_nodes() -> None:
    document = {
        "apiVersion": "v1",
        "kind": "List",
        "items": [
            kubernetes_node("c1", provider="qcloud:///100003/ins-1"),
            kubernetes_node("idc-1", internal="10.0.0.8"),
            kubernetes_node(
                "idc-2",
                internal="10.0.0.9",
                labels={"isthmus.io/kind": "cloud", "isthmus.io/site": "sz"},
                annotations={"isthmus.io/uid": "mine", "isthmus.io/announced": "203.0.113.7"},
            ),
        ],
    }
    commands = [line.command for line in parse(json.dumps(document), kind="external")]
    assert commands == [
        JoinNode(node="c1", uid=machine("c1"), kind="cloud", underlay="10.0.0.7", site="gz"),
        JoinNode(node="idc-1", uid=machine("idc-1"), kind="external", underlay="10.0.0.8", site="gz"),
        JoinNode(
            node="idc-2", uid="mine", kind="cloud", underlay="10.0.0.9", announced="203.0.113.7", site="sz"
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


# --- bytes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"], ids=str
)
@pytest.mark.parametrize(
    "document",
    [CSV, '[{"node": "c1", "uid": "深", "kind": "cloud", "underlay": "10.0.0.1"}]'],
    ids=["csv", "json"],
)
def test_every_encoding_with_a_mark_is_read(encoding: str, document: str) -> None:
    data = document.encode(encoding)
    if encoding in {"utf-16-le", "utf-16-be"}:
        data = "\ufeff".encode(encoding) + data
    assert parse(text_of(data))[0].command.node == "c1"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (CSV.encode("utf-16-le"), "UTF-16 without a byte order mark"),
        (CSV.encode("utf-16-be"), "UTF-16 without a byte order mark"),
        ("node,uid,underlay\nzürich,u,1.1.1.1\n".encode("latin-1"), "is not UTF-8: byte 20 (0xfc)"),
        (b"node,uid,underlay\na,\x00,1.1.1.1\n", "line 2 holds a NUL"),
        (b"\xff\xfea", "is not UTF-16-LE"),
        (b"", "holds no node"),
        (b"\xef\xbb\xbf", "holds no node"),
        (b" \n\n", "holds no node"),
    ],
)
def test_bytes_that_are_no_text_are_refused_by_name(data: bytes, says: str) -> None:
    with pytest.raises(BadRequest) as refused:
        parse(text_of(data))
    assert refused.value.code == "import_unreadable"
    assert says in refused.value.message


def test_a_file_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "SIZE_MAX_BYTES", 1 << 20)
    with pytest.raises(BadRequest, match="larger than 1 MiB"):
        text_of(b"x" * ((1 << 20) + 1))


@given(st.binary(max_size=300))
def test_no_bytes_at_all_crash_the_reader(data: bytes) -> None:
    try:
        parse(text_of(data))
    except BadRequest as refused:
        assert refused.code == "import_unreadable"  # noqa: PT017  either outcome is fine, a crash is not


NODE = '{"node":"a","uid":"u","kind":"cloud","underlay":"10.0.0.1"}'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"[\n{NODE},\n]", "(line 3, column"),
        (f"[{NODE}", "is not JSON"),
        (f"[{NODE}] x", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('[{"node":"a","uid":"u","uid":"v","kind":"cloud","underlay":"1.1.1.1"}]', "'uid' is given twice"),
        ("node,uid,ip,address\na,u,1.1.1.1,2.2.2.2\n", "the columns ip and address both mean underlay"),
        ("name,hostname,uid,ip\na,b,u,1.1.1.1\n", "the columns name and hostname both mean node"),
        ("node;uid;underlay\na;u;1.1.1.1\n", "separated by commas"),
        ("apiVersion: v1\nitems:\n- kind: Node\n", "kubectl get nodes -o json"),
        ("NAME   STATUS   ROLES\nc1 Ready none\n", "kubectl get nodes -o json"),
        ("node,uid,underlay,kind\na,u,1.1.1.1,cloud\nb,u,1.1.1.2,cloud\n", "uid u is also that of line 2 (a)"),
        ("node,uid,underlay,kind\na,u,1.1.1.1,cloud\nb,v,1.1.1.1,cloud\n", "address 1.1.1.1 is also that of"),
        ('{"items": [{"kind": "Pod", "metadata": {"name": "p"}}]}', "it is a Pod, not a Node"),
    ],
)  # fmt: skip
def test_other_ways_to_be_wrong(text: str, says: str) -> None:
    with pytest.raises(BadRequest) as refused:
        parse(text)
    assert refused.value.code == "import_unreadable"
    assert says in refused.value.message


# --- Kubernetes ----------------------------------------------------------------------------------------


def read(*items: dict[str, Any], **rules: Any) -> NodeFile:
    return read_file(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}), Rules(**rules))


def test_a_single_node_is_read_like_a_list_of_one() -> None:
    one = kubernetes_node("c1", provider="qcloud:///1/ins-1")
    assert parse(json.dumps(one)) == parse(json.dumps({"items": [one]}))


def test_every_finding_of_every_node_is_told_and_the_others_can_join() -> None:
    hostname = kubernetes_node("h", provider="aws:///x")
    hostname["status"]["addresses"] = [{"type": "Hostname", "address": "h"}]
    six = kubernetes_node("six", provider="aws:///x")
    six["status"]["addresses"] = [{"type": "InternalIP", "address": "fd00::7"}]
    nameless = kubernetes_node("anon", provider="aws:///x", internal="10.0.0.20")
    nameless["status"]["nodeInfo"] = {"machineID": "", "systemUUID": ""}
    several = kubernetes_node("two", provider="aws:///x")
    several["status"]["addresses"].append({"type": "InternalIP", "address": "192.168.0.2"})
    everything = kubernetes_node("all", labels={"isthmus.io/kind": "moon"})
    everything["status"] = {}
    found = read(hostname, six, nameless, several, everything, kubernetes_node("good", provider="aws:///x"))
    assert [line.command.node for line in found.lines] == ["good"]
    told = [str(problem) for problem in found.problems]
    assert len(told) == 4 + 3
    for text, says in zip(
        told, ["hostname only", "IPv6 addresses only", "machineID", "2 InternalIPs"], strict=False
    ):
        assert says in text
    assert all("line 5 (all)" in text for text in told[4:])
    assert {word for word in ("machineID", "InternalIP", "moon") if word in " ".join(told[4:])} == {
        "machineID", "InternalIP", "moon",
    }  # fmt: skip


def test_the_address_is_chosen_by_network_or_annotation() -> None:
    several = kubernetes_node("two", provider="aws:///x")
    several["status"]["addresses"].append({"type": "InternalIP", "address": "192.168.0.2"})
    assert read(several, underlay_cidrs=("192.168.0.0/16",)).lines[0].command.underlay == "192.168.0.2"
    assert "none of its addresses" in str(read(several, underlay_cidrs=("172.31.0.0/16",)).problems[0])
    assert "2 of its addresses" in str(read(several, underlay_cidrs=("0.0.0.0/1", "192.0.0.0/8")).problems[0])
    several["metadata"]["annotations"] = {"isthmus.io/underlay": "10.0.0.99"}
    assert read(several).lines[0].command.underlay == "10.0.0.99"


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"provider": "aws:///x"}, "cloud"),
        ({"provider": "openstack:///x"}, "external"),
        ({"provider": "vsphere://x"}, "external"),
        ({"provider": "eks-hybrid:///eu/x"}, "external"),
        ({"provider": "qcloud:///x", "labels": {"node.kubernetes.io/instance-type": "external"}}, "external"),
        ({"labels": {"eks.amazonaws.com/compute-type": "hybrid"}}, "external"),
        ({"labels": {"isthmus.io/kind": "cloud", "eks.amazonaws.com/compute-type": "hybrid"}}, "cloud"),
        (
            {"labels": {"isthmus.node-restriction.kubernetes.io/kind": "external", "isthmus.io/kind": "cloud"}},
            "external",
        ),
    ],
)
def test_the_kind_follows_labels_first_and_then_the_provider(change: dict[str, Any], kind: str) -> None:
    assert read(kubernetes_node("n", **change)).lines[0].command.kind == kind


def test_labels_and_providers_are_configurable() -> None:
    node = kubernetes_node("n", provider="openstack:///x", labels={"rack": "r4", "what": "external"})
    assert read(node, providers={"openstack": "cloud"}, site_labels=("rack",)).lines[0].command == JoinNode(
        node="n", uid=machine("n"), kind="cloud", underlay="10.0.0.7", site="r4"
    )
    assert read(node, kind_labels=("what",), providers={}).lines[0].command.kind == "external"
    assert read(node, external_labels=(("rack", "r4"),), providers={}).lines[0].command.kind == "external"
    unknown = kubernetes_node("n", provider="martian:///x")
    assert "no known provider" in str(read(unknown).problems[0])
    assert read(unknown, kind="cloud").lines[0].command.kind == "cloud"


def test_a_preset_pod_cidr_is_named() -> None:
    line = read(kubernetes_node("n", provider="aws:///x")).lines[0]
    assert "10.42.0.0/24" in line.notes[0]


@pytest.mark.parametrize("only", ["machineID", "systemUUID"])
def test_the_uid_is_the_one_that_the_machine_derives_itself(tmp_path: Path, only: str) -> None:
    known = {
        "machineID": "3d1219c7c4c5404aaa1f6d2a48adfda4",
        "systemUUID": "4C4C4544-0042-3110-8054-B4C04F564C31",
    }
    for file, key in (("etc/machine-id", "machineID"), ("sys/class/dmi/id/product_uuid", "systemUUID")):
        (tmp_path / file).parent.mkdir(parents=True)
        if key == only:
            (tmp_path / file).write_text(f"{known[key]}\n")
    node = kubernetes_node("n", provider="aws:///x")
    node["status"]["nodeInfo"] = {key: known[key] if key == only else "" for key in known}
    assert read(node).lines[0].command.uid == read_machine_uid(tmp_path) == machine_uid(known[only])


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["metadata", "status", "spec", "labels", "annotations", "addresses", "type",
                             "address", "nodeInfo", "machineID", "name", "kind", "providerID"]),
            inner, max_size=4,
        ),
        max_leaves=25,
    )
)  # fmt: skip
def test_no_object_at_all_crashes_the_reader(item: Any) -> None:
    if isinstance(item, dict):
        found = read(item, kind="cloud", underlay_cidrs=("10.0.0.0/8",))
        assert found.lines or found.problems
