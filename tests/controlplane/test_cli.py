"""The operator's commands against a real bus and a real controller, and the exit codes of each ending."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml

from tests.controlplane.ran import Isthmus

pytestmark = pytest.mark.bus


def test_an_operators_day(isthmus: Isthmus, tmp_path: Path) -> None:
    """One story, in order: each step rests on the ones before."""
    assert "not defined yet" in isthmus("cluster", "show").out
    define = ("cluster", "define", "--cidr", "10.200.0.0/24", "--pods", "32", "--services", "32")

    clash = isthmus(*define, "--network", "vpc:prod=10.200.0.0/20")
    assert (clash.code, clash.out) == (1, "")
    assert "[cidr_conflict_with_vpc]" in clash.err
    assert "'prod' 10.200.0.0/20" in clash.err

    dry = isthmus(*define, "--dry-run")
    assert "cluster.defined.v1" in dry.out
    assert "not defined yet" in isthmus("cluster", "show").out

    assert "7 ranges" in isthmus(*define, "--network", "vpc:prod=10.0.0.0/16").out
    assert "already so" in isthmus(*define, "--network", "vpc:prod=10.0.0.0/16").out
    once, twice = (
        isthmus(
            "cluster", "network", "add", "172.31.0.0/16", "--kind", "idc", "--command-id", "me-1", "--json"
        ).json
        for _ in range(2)
    )
    assert (once["duplicate"], twice["duplicate"]) == (False, True)
    assert once["sequence"] == twice["sequence"]

    # nodes from a file: checked, written, repeated, refused as a whole
    file = tmp_path / "nodes.csv"
    file.write_text(
        "node,uid,kind,ip,public_ip\nc1,u1,cloud,10.0.0.11,\nidc-1,u2,external,192.168.1.5,203.0.113.9\n"
    )
    dry = isthmus("node", "import", str(file), "--dry-run", "--json")
    assert [line["cidr"] for line in dry.json["lines"]] == ["10.200.0.0/27", "10.200.0.32/27"]
    assert isthmus("node", "list", "--json").json["nodes"] == []
    assert isthmus("node", "import", str(file), "--json").json["joined"] == 2
    again = isthmus("node", "import", str(file), "--json")
    assert (again.code, again.json["unchanged"]) == (0, 2)
    header = file.read_text().splitlines()[0]
    file.write_text(f"{header}\nc7,u7,cloud,10.0.0.77,\nc8,u8,cloud,10.0.0.78,\nc9,u9,cloud,10.0.0.11,\n")
    bad = isthmus("node", "import", str(file))
    assert bad.code == 1
    assert "2 not written, 1 refused" in bad.out
    assert "underlay_address_in_use" in bad.out

    shown = isthmus("node", "show", "idc-1")
    for part in ("10.200.0.32/27", "203.0.113.9 (behind NAT)", "external"):
        assert part in shown.out
    assert isthmus("node", "show", "ghost").code == 1
    listed = isthmus("node", "list", "--kind", "external", "--json").json["nodes"]
    assert [node["node"] for node in listed] == ["idc-1"]

    # CLB
    reserved = isthmus("clb", "reserve", "main", "--subnet", "10.0.8.0/28", "--exclude", "10.0.8.2")
    assert "apiserver 10.0.8.3, public-services 10.0.8.4" in reserved.out
    assert "10.0.8.4" in isthmus("clb", "list").out
    assert "10.0.8.2" in isthmus("clb", "show", "main").out
    assert "[clb_subnet_too_small]" in isthmus("clb", "reserve", "tiny", "--subnet", "10.0.8.0/31").err
    assert isthmus("clb", "release", "main", "--yes").code == 0
    assert isthmus("clb", "release", "main", "--yes").code == 1

    # one that our gateways serve: holders, backends and what happened to it
    assert isthmus("clb", "reserve", "ours", "--subnet", "10.0.9.0/28", "--provider", "gateway").code == 0
    for address in ("10.0.1.5", "10.0.1.6"):
        assert isthmus("clb", "backend", "add", "ours", "apiserver", "443", address).code == 0
    shown = isthmus("clb", "show", "ours", "--history", "2")
    for part in ("nobody: isthmus clb gateway add", "10.0.1.6:443", "unknown: no holder checks it"):
        assert part in shown.out
    assert "its last 2 of 3 events" in shown.out
    assert "reserved for CLB" not in shown.out
    told = isthmus("clb", "show", "ours", "--json").json
    assert [holder["node"] for holder in told["holders"]] == ["", ""]
    assert [e["type"] for e in told["history"]] == ["clb.reserved.v1"] + ["clb.backend-added.v1"] * 2
    assert [e["event"].get("address") for e in told["history"]] == [None, "10.0.1.5", "10.0.1.6"]
    assert isthmus("clb", "show", "ours", "--json", "--history", "0").json["history"] == []
    # sources outside of the overlay, by an address of the pair
    listed = ("--from", "10.9.0.0/28,10.9.1.4/32")
    assert "add --yes to confirm" in isthmus("entry", "add", "api", *listed).err
    assert "entry.added.v1" in isthmus("entry", "add", "api", *listed, "--dry-run").out
    assert "nobody outside reaches pods" in isthmus("entry", "list").err
    added = isthmus("entry", "add", "api", *listed, "--yes").out
    for part in (
        "10.9.0.0/28, 10.9.1.4/32 may reach pods by 10.0.9.2",
        "ip route add 10.200.0.0/24 via 10.0.9.2",
    ):
        assert part in added
    assert "already so" in isthmus("entry", "add", "api", *listed, "--yes").out
    assert "[cidr_conflict_with_entry]" in isthmus("entry", "add", "b", "--from", "10.200.0.0/28", "--yes").err
    assert isthmus("entry", "list", "-o", "json").json["entries"][0]["sources"] == [
        "10.9.0.0/28",
        "10.9.1.4/32",
    ]
    assert isthmus("entry", "show", "api", "--json").json["history"][0]["type"] == "entry.added.v1"
    assert "10.0.9.2 (CLB ours)" in isthmus("entry", "show", "api").out
    assert "listed then by entry api" in isthmus("replay", "who", "--ip", "10.9.0.1").out
    assert "[clb_in_use]" in isthmus("clb", "release", "ours", "--yes").err
    assert "add --yes to confirm" in isthmus("entry", "remove", "api").err
    assert "reach pods no more" in isthmus("entry", "remove", "api", "--yes").out
    assert "[entry_unknown]" in isthmus("entry", "show", "api").err
    assert (
        isthmus("replay", "history", "entry", "api", "--json").json["steps"][-1]["stamp"]["type"]
        == "entry.removed.v1"
    )
    assert isthmus("clb", "release", "ours", "--yes").code == 0
    assert "[clb_unknown]" in isthmus("clb", "show", "ours").err

    # growth and networks
    assert "4 more ranges from index 7" in isthmus("cluster", "append", "10.200.1.0/25").out
    assert isthmus("cluster", "network", "add", "10.200.0.0/16", "--kind", "idc").code == 1
    accepted = isthmus(
        "cluster",
        "network",
        "add",
        "10.200.0.0/16",
        "--kind",
        "idc",
        "--override",
        "cidr_conflict_with_idc=a summary",
    )
    assert accepted.code == 0
    networks = isthmus("cluster", "network", "list", "--json").json
    assert [item["reason"] for item in networks["overrides"]] == ["a summary", "a summary"]
    assert isthmus("cluster", "network", "remove", "10.200.0.0/16").code == 0

    # leaving
    assert "10.200.0.0/27 drains" in isthmus("node", "remove", "--yes", "c1", "--reason", "returned").out
    assert "can never join again" in isthmus("node", "fence", "idc-1", "--yes").out
    assert "isthmus replay who" in isthmus("cluster", "who", "--help").out
    for address, says in (
        ("10.200.0.1", "its last owner was node c1"),
        ("10.200.0.100", "which is free"),
        ("10.200.0.230", "Service range"),
        ("8.8.8.8", "outside"),
    ):
        assert says in isthmus("cluster", "who", address).out
    phases = [view["phase"] for view in isthmus("cluster", "ranges", "--json").json["ranges"]]
    assert len(phases) == 2
    assert set(phases) <= {"draining", "quarantined"}
    view = isthmus("cluster", "show", "--json").json
    assert view["nodes"] == 0
    assert view["pool"]["allocated"] == 0
    assert {item["code"] for item in view["conditions"]} == {"conflict_overridden"}
    assert isthmus("cluster", "show").code == 0
    assert isthmus("cluster", "delete", "--yes").code == 0
    assert "[cluster_deleted]" in isthmus("cluster", "append", "10.201.0.0/16").err


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("nod", "list"), 2, "Did you mean 'node'?"),
        (("plan",), 2, "give --cidr"),
        (("plan", "--cidr", "10.0.0.0/16", "--pods", "x"), 2, "not a valid integer"),
        (("cluster", "define"), 2, "--cidr"),
        (("cluster", "define", "--cidr", "10.0.0.0/16", "--network", "vpn=10.0.0.0/8"), 2, "KIND one of"),
        (("cluster", "define", "--cidr", "10.0.0.0/16", "--override", "x"), 2, "NAME=VALUE"),
        (("clb", "reserve", "a", "--subnet", "10.0.0.0/28", "--purposes", "one"), 2, "exactly two"),
        (("node", "import", "/nonexistent"), 2, "No such file"),
        (("cluster", "delete"), 2, "--yes"),
        (("cluster", "show", "--cluster", "Not A Label"), 1, "[bad_request]"),
    ],
)
def test_wrong_usage_says_what_is_wrong(
    isthmus: Isthmus, arguments: tuple[str, ...], code: int, says: str
) -> None:
    ran = isthmus(*arguments)
    assert ran.code == code
    assert says in ran.err
    assert "Traceback" not in ran.err


def test_without_a_bus_the_exit_code_is_3(isthmus: Isthmus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISTHMUS_BUS", "nats://127.0.0.1:1")
    ran = isthmus("node", "list", "--json")
    assert ran.code == 3
    assert ran.json["error"]["code"] == "bus_unreachable"


def test_a_plan_says_what_kubeadm_must_be_told(isthmus: Isthmus) -> None:
    told = isthmus("plan", "--cidr", "10.200.0.0/16", "--pods", "64", "--services", "256", "--kubeadm")
    cluster, kubelet, proxy = yaml.safe_load_all(told.out)
    assert cluster["networking"] == {"serviceSubnet": "10.200.255.0/24"}
    assert cluster["controllerManager"]["extraArgs"] == [{"name": "allocate-node-cidrs", "value": "false"}]
    assert kubelet["maxPods"] == 61
    assert proxy["clusterCIDR"] == "10.200.0.0/16"
    proposed = isthmus("plan", "--pods", "64", "--nodes", "100", "--kubeadm").out
    assert next(yaml.safe_load_all(proposed))["networking"]["serviceSubnet"]


def test_plan_needs_no_bus(isthmus: Isthmus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISTHMUS_BUS", "nats://127.0.0.1:1")
    table = isthmus("plan", "--cidr", "172.16.0.0/16", "--pods", "64", "--services", "256")
    assert "1,020" in table.out
    assert "172.16.255.0/24" in table.out
    plan = isthmus("plan", "--cidr", "172.16.0.0/16", "--pods", "128", "--services", "1024", "--json").json
    assert (plan["capacity"], plan["service_cidr"]) == (504, "172.16.252.0/22")
    proposal = isthmus("plan", "--pods", "64", "--nodes", "5000", "--avoid", "10.0.0.0/12", "--json").json
    assert proposal["plan"]["container_cidr"] == "10.16.0.0/13"
    refused = isthmus("plan", "--cidr", "172.16.0.0/16", "--pods", "64", "--nodes", "2000", "--json")
    assert refused.code == 1
    assert len(refused.json["error"]["details"]["changes"]) == 2
    clash = isthmus("plan", "--cidr", "10.0.0.0/16", "--avoid", "10.0.3.0/24")
    assert clash.code == 1


def test_help_of_every_command_shows_an_example_or_says_what_it_does() -> None:
    script = str(Path(sys.executable).with_name("isthmus"))
    for arguments in (["plan"], ["cluster"], ["cluster", "define"], ["node"], ["node", "import"], ["clb"]):
        out = subprocess.run(
            [script, *arguments, "--help"],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "COLUMNS": "110"},
        ).stdout
        assert "isthmus " in out


def test_lists_of_commands_show_whole_sentences_under_known_headings() -> None:
    from controlplane.cli.main import root

    def listings(command: click.Command, path: str) -> Iterator[tuple[str, str]]:
        if isinstance(command, click.Group):
            context = click.Context(command, info_name=path, max_content_width=80, terminal_width=80)
            yield path, command.get_help(context)
            for name in command.list_commands(context):
                below = command.get_command(context, name)
                assert below is not None
                yield from listings(below, f"{path} {name}")

    found = dict(listings(root, "isthmus"))
    assert len(found) > 15
    assert "Others:" not in found["isthmus"], "name its section in controlplane/cli/main.py"
    for path, text in found.items():
        commands = text.partition("\nCommands:")[2] or text.partition("\nOperate:")[2]
        assert commands, path
        assert "..." not in commands, f"{path} --help cuts a sentence short:\n{commands}"
