"""The main job as a user runs it: the command, what it proves, and what it leaves behind: nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import urllib.request
from pathlib import Path

import pytest

from deploy.lab.traffic.kills import schedule
from tests.e2e.labs import (
    AS_USER,
    CHURN,
    DEADLINE_S,
    ISTHMUS,
    footprint,
    isthmus,
    lab,
    processes_in,
    proven,
    read_until,
    remains,
)
from tests.ports import free_ports
from tests.waiting import patient, wait_for

pytestmark = [pytest.mark.netns, pytest.mark.bus]


def test_the_main_job_with_tls_and_credentials_as_an_ordinary_user(
    where: dict[str, str], tmp_path: Path
) -> None:
    """With TLS and credentials, which run as root in the lab of everything together and in `.ci/run`."""
    prefix = AS_USER if os.getuid() == 0 else []
    done = subprocess.run(
        [*prefix, ISTHMUS, "lab", "--json", "--secure"],
        env=where,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    checks = proven(json.loads(done.stdout))
    assert len(checks) == 14
    assert "A way is traced on demand by the agents of both ends" in checks
    assert remains(tmp_path) == []


def test_the_main_job_as_root_then_explored_then_taken_down_and_nothing_is_left(
    where: dict[str, str], tmp_path: Path
) -> None:
    before = footprint()
    (port,) = free_ports(1)
    with lab("--keep", "--json", "--http", str(port), env=where) as process:
        document = json.loads(read_until(process, "\n}\n"))
        checks = proven(document)
        assert document["seconds"] < patient(30)
        assert checks["Every pod reaches every pod on every other node"]["measured"] == {
            "pairs": 80, "sent": 800, "received": 800,
        }  # fmt: skip
        ranges = document["tables"]["Ranges in the order they were given"]
        assert [row["index"] for row in ranges] == ["0", "1", "2", "3", "4"]
        assert {row["kind"] for row in ranges} == {"cloud", "external"}
        assert len(checks) == 13
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/nodes", timeout=60) as answer:
            listed = json.load(answer)
        assert {node["name"] for node in listed["nodes"]} == {
            "cloud-1",
            "cloud-2",
            "cloud-3",
            "cloud-4",
            "idc-1",
        }
        routes = isthmus("lab", "exec", "cloud-1", "ip", "route", env=where)
        assert "10.200." in routes.stdout
        assert isthmus("lab", "exec", "router", "hostname", env=where).stdout == "router\n"
        nodes = isthmus("lab", "exec", "controller", "isthmus", "node", "list", "--json", env=where)
        assert "cloud-4" in nodes.stdout, nodes.stderr
        address = isthmus("lab", "exec", "cloud-1-a", "ip", "-br", "address", "show", "eth0", env=where)
        assert "10.200." in address.stdout
        assert isthmus("lab", "exec", "cloud-1", "false", env=where).returncode == 1
        unknown = isthmus("lab", "exec", "cloud-99", "true", env=where)
        assert unknown.returncode == 2
        assert "cloud-1" in unknown.stderr
        second = isthmus("lab", "--once", env=where)
        assert second.returncode == 1
        assert "lab_running" in second.stderr
        assert "isthmus lab down" in second.stderr
        assert isthmus("lab", "down", env=where).returncode == 0
        assert process.wait(timeout=60) == 0
    assert footprint() == before
    assert processes_in(tmp_path) == []
    assert remains(tmp_path) == []
    assert isthmus("lab", "exec", "cloud-1", "true", env=where).returncode == 2


@pytest.mark.parametrize(
    ("moment", "number"), [("Bus and controller are up", signal.SIGINT), ("Ranges are given", signal.SIGTERM)]
)
def test_a_stop_signal_at_any_moment_cleans_up(
    where: dict[str, str], tmp_path: Path, moment: str, number: int
) -> None:
    before = footprint()
    with lab("--once", env=where) as process:
        read_until(process, moment)
        os.killpg(process.pid, number)  # as a terminal does with Ctrl-C: to the whole foreground group
        assert process.wait(timeout=60) == 128 + number
    assert footprint() == before
    assert processes_in(tmp_path) == []
    assert remains(tmp_path) == []


def test_a_killed_lab_leaves_no_process_and_the_next_run_clears_its_files(
    where: dict[str, str], tmp_path: Path
) -> None:
    before = footprint()
    with lab("--once", env=where) as process:
        read_until(process, "Pods are attached")
        process.kill()
        process.wait(timeout=60)
    wait_for(lambda: processes_in(tmp_path) == [])
    assert footprint() == before
    assert remains(tmp_path) != []
    down = isthmus("lab", "down", env=where)
    assert "crashed" in down.stdout
    assert remains(tmp_path) == []


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("ISTHMUS_TEST_KILLS"), reason="ISTHMUS_TEST_KILLS=all")
def test_processes_killed_at_random_points_under_churn_lose_and_double_nothing(where: dict[str, str]) -> None:
    """Bus, controller and agents die by SIGKILL while recorded churn runs; the lab itself compares what was
    acknowledged with the log, every kernel with the log, and counts the packets of the pods meanwhile.

    Seed 1 is that of the lab with three servers (test_lab_bus.py); `make soak` takes others.
    """
    done = isthmus("lab", "--json", "--churn", str(CHURN), "--kills", "4", "--seed", "5", env=where)
    assert done.returncode == 0, done.stdout + done.stderr
    measured = next(
        check["measured"]
        for name, check in proven(json.loads(done.stdout)).items()
        if name.startswith("Recorded churn")
    )
    assert len(measured["killed"]) == 4
    assert {"bus", "controller"} <= set(measured["killed"])
    assert (measured["joins"], measured["leaves"]) == (77, 75)
    assert measured["flows"]["sent"] == measured["flows"]["received"] > 0


def test_kills_are_chosen_by_the_seed_and_begin_with_one_of_each_kind() -> None:
    agents = ["cloud-1", "idc-1"]
    for seed in range(20):
        plan = schedule(100, 6, agents, seed)
        assert plan == schedule(100, 6, agents, seed)
        assert [at for at, _ in plan] == sorted(at for at, _ in plan)
        assert len(plan) == 6
        assert all(0 < at <= 100 for at, _ in plan)
        first = {victim if victim in {"bus", "controller"} else "agent" for _, victim in plan[:3]}
        assert first == {"bus", "controller", "agent"}
    assert len({str(schedule(100, 6, agents, seed)) for seed in range(20)}) > 15


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["lab", "--once", "--keep"], 2, "one of them"),
        (["lab", "--churn", "absent.json"], 2, "absent.json"),
        (["lab", "--kills", "3"], 2, "--churn"),
        (["lab", "--secure", "--churn", str(CHURN)], 2, "without --secure"),
        (["lab", "--cloud", "1"], 2, "--cloud"),
        (["lab", "--name", "Not A Label"], 1, "DNS-1123"),
        (["lab", "sideways"], 2, "sideways"),
        (["lab", "status"], 2, "no lab"),
    ],
)
def test_wrong_usage_says_what_is_wrong(
    where: dict[str, str], arguments: list[str], code: int, text: str
) -> None:
    done = isthmus(*arguments, env=where)
    assert (done.returncode, text in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr
