"""The lab on three bus servers and with a leaf at the data centre, as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from deploy.lab.traffic.load import judge
from events.chain import genesis
from events.codec import Cause, Recorded, StoredMessage, decode, seal
from events.protocol.commands import CommandReply, WrittenEvent
from events.types import NodeLeft
from tests.e2e.labs import CHURN, footprint, isthmus, lab, proven, read_until, remains
from tests.ports import free_ports
from tests.waiting import patient

DEADLINE_S = 240

in_namespaces = [pytest.mark.netns, pytest.mark.bus, pytest.mark.slow]


def prove(*arguments: str, env: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Checks by name of a lab that ran to its end; every one of them held."""
    done = isthmus("lab", "--once", "--json", *arguments, env=env, timeout_s=DEADLINE_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return proven(json.loads(done.stdout))


def one(checks: dict[str, dict[str, Any]], beginning: str) -> dict[str, Any]:
    (found,) = [check["measured"] for name, check in checks.items() if name.startswith(beginning)]
    return dict(found)


class TestInNamespaces:
    pytestmark = in_namespaces

    def test_a_leaf_with_its_link_cut_on_three_servers_with_locks_then_explored(
        self, where: dict[str, str], tmp_path: Path
    ) -> None:
        (port,) = free_ports(1)
        options = ("--bus-servers", "3", "--leaf", "--secure", "--keep", "--json", "--http", str(port))
        with lab(*options, env=where) as process:
            document = json.loads(read_until(process, "\n}\n", seconds=DEADLINE_S))
            checks = proven(document)
            assert "A way is traced on demand by the agents of both ends" in checks
            cut = one(checks, "Link to the hub cut")
            assert cut["node"] == "idc-1"
            assert cut["hub"] > cut["mirror"]
            assert cut["flows"]["sent"] == cut["flows"]["received"] > 0
            rebooted = one(checks, "Link still cut: idc-1 reboots")
            assert rebooted["rows"] > 9
            assert rebooted["sent"] == rebooted["received"] > 0
            assert "new_events_s" in one(checks, "Link to the hub restored")
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/session", timeout=60) as answer:
                assert answer.status == 200
            mirror = isthmus(
                "lab", "exec", "idc-bus", "isthmus", "site", "status", "--bus", "tls://192.168.50.5:4222",
                "--json", env=where,
            )  # fmt: skip
            assert {each["lag"] for each in json.loads(mirror.stdout)} == {0}, mirror.stderr
            assert isthmus("lab", "exec", "bus-3", "hostname", env=where).stdout == "bus-3\n"
            status = isthmus("lab", "exec", "cloud-1", "isthmus", "agent", "status", "--json", env=where)
            assert json.loads(status.stdout)["node"] == "cloud-1", status.stderr
            # Who has nothing to show gets in nowhere, at the hub or at the site.
            for name, url in (("bus-1", "tls://100.64.0.241:4222"), ("idc-bus", "tls://192.168.50.5:4222")):
                stranger = isthmus(
                    "lab", "exec", name, "env", "-u", "ISTHMUS_CREDS", "isthmus", "node", "list", "--bus", url,
                    env=where,
                )  # fmt: skip
                assert stranger.returncode in {1, 3}, stranger.stdout
            nodes = isthmus("lab", "exec", "controller", "isthmus", "node", "list", "--json", env=where)
            assert "cloud-4" in nodes.stdout, nodes.stderr
            assert isthmus("lab", "down", env=where).returncode == 0
            assert process.wait(timeout=30) == 0
        assert remains(tmp_path) == []

    def test_three_servers_lose_nothing_when_theirs_die_alone_and_under_recorded_churn(
        self, where: dict[str, str], tmp_path: Path
    ) -> None:
        before = footprint()
        checks = prove("--bus-servers", "3", "--churn", str(CHURN), "--kills", "3", env=where)
        killed = one(checks, "The log's leading bus server killed")
        assert killed["killed"] in {"bus-1", "bus-2", "bus-3"}
        assert killed["leader_after"] != killed["killed"]
        assert killed["acknowledged_without_it"] >= 24
        assert killed["acknowledged"] >= 72
        assert killed["events"] >= killed["acknowledged"]
        assert killed["flows"]["sent"] == killed["flows"]["received"] > 0
        gone = one(checks, "Two of three bus servers killed")
        assert gone["code"] in {"log_unavailable", "no_controller", "outcome_unknown", "bus_unreachable"}
        assert gone["told_s"] < patient(8)
        churn = one(checks, "Recorded churn")
        assert len(churn["killed"]) == 3
        assert {"bus", "controller"} <= set(churn["killed"])
        assert (churn["joins"], churn["leaves"]) == (77, 75)
        assert footprint() == before
        assert remains(tmp_path) == []


def stored(command_id: str, count: int, first: int = 1) -> tuple[CommandReply, list[Recorded]]:
    """A command's answer and its events in the log, as they should be."""
    cause = Cause(command_id=command_id, actor="a", time=datetime.now(UTC), source="test")
    events = [NodeLeft(node=f"n-{i}", uid="u") for i in range(count)]
    messages, _ = seal("lab", genesis("lab"), [(cause, events)])
    records = [
        decode(StoredMessage(first + i, each.subject, each.headers, each.body, recorded_ns=1))
        for i, each in enumerate(messages)
    ]
    told = tuple(WrittenEvent(sequence=r.sequence, type=r.envelope.type, event={}) for r in records)
    return CommandReply(sequence=first + count - 1, events=told), records


def test_answers_that_agree_with_the_log_are_not_complained_about() -> None:
    reply, records = stored("c1", 2)
    assert judge({"c1": reply}, {"c1": records}) == []


def test_an_acknowledged_command_that_is_missing_doubled_or_different_is_named() -> None:
    reply, records = stored("c1", 2)
    _, later = stored("c1", 2, first=9)
    silent = CommandReply(sequence=reply.sequence)
    for found, answer in (([], reply), (records[:1], reply), (later, reply), (records + later, silent)):
        (line,) = judge({"c1": answer}, {"c1": found})
        assert "c1" in line


def test_help_shows_how_both_are_used() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("isthmus")), "lab", "--help"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "isthmus lab --bus-servers 3 " in done.stdout
    assert "isthmus lab --leaf " in done.stdout
