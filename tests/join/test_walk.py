"""A newcomer's walk: bare Debians, and nothing but the README's own lines under "On real machines".

To two nodes on two networks whose pods reach each other, a question about the past answered, and an alert that
fires and is explained. Makes and boots three machines, and waits for Prometheus as long as its rule says: only
with ISTHMUS_SYSTEMD=1 (``make systemd``), which prints the number of commands and the minutes.

Not in the README are two things that others do: this is the container runtime, which attaches pods as
/etc/cni/net.d says, and the packages are installed while the machines are not booted yet, because their
networks lead nowhere else.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.join.machine import Machine, booted, install, make_package, make_system
from tests.nodeagent.sandbox import inside, sh
from tests.nodeagent.site import until

pytestmark = [pytest.mark.netns, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
PLACE = "ISTHMUS_TEST_WALK"
MACHINES = {"10.0.0.2": "bus", "10.0.0.11": "cloud-1", "192.168.50.11": "idc-1"}
INSTALL = "apt install "
EXPECTED = {"isthmus status": "2 of 2 up", "isthmus replay who": "idc-1", "isthmus replay verify": "SOUND"}
"""What a command of the README has to answer before the walk goes on."""
ALERT = "IsthmusManyNodesUnreachable"

RUNTIME = """
import json, os, subprocess, sys
name, listed = sys.argv[1], json.load(open("/etc/cni/net.d/10-isthmus.conflist"))
subprocess.run(["ip", "netns", "add", name], check=True)
result = None
for plugin in listed["plugins"]:
    told = {"cniVersion": listed["cniVersion"], "name": listed["name"], **plugin}
    told |= {"prevResult": result} if result else {}
    place = "/usr/lib/cni"
    result = json.loads(subprocess.run(
        [f"{place}/{plugin['type']}"], input=json.dumps(told), text=True, check=True, capture_output=True,
        env={"CNI_COMMAND": "ADD", "CNI_CONTAINERID": name, "CNI_NETNS": f"/run/netns/{name}",
             "CNI_IFNAME": "eth0", "CNI_PATH": place, "PATH": os.environ["PATH"]},
    ).stdout)
print(result["ips"][0]["address"].split("/")[0])
"""
ASK = "import urllib.request as u; print(u.urlopen('http://{}:8080/', timeout=5).status)"


def lines() -> Iterator[tuple[str, str]]:
    """Machine ("all" for each) and command line of everything that the section says to type."""
    text = (ROOT / "README.md").read_text().split("\n## On real machines\n")[1].split("\n### ")[0]
    where = ""
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("# on "):
                address = line.removeprefix("# on ").split(" ")[0].rstrip(":,")
                where = "all" if address == "each" else MACHINES[address]
            elif line.strip():
                yield where, line.split(" #")[0].strip()


def test_the_walk_is_one_command_for_bus_and_controller_and_one_for_a_node() -> None:
    typed = [(where, line) for where, line in lines() if not line.startswith(INSTALL)]
    assert [line.split()[:2] for where, line in typed if where != "bus"] == [["isthmus", "agent"]] * 2
    assert typed[0][0] == "bus"
    assert typed[0][1].startswith("isthmus up ")
    assert {where for where, _ in typed} == set(MACHINES.values())


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Three bare Debians, on which is installed what the README says."""
    if not os.environ.get("ISTHMUS_SYSTEMD"):
        pytest.skip("makes and boots three Debians for some minutes: only with ISTHMUS_SYSTEMD=1")
    for program in ("mmdebstrap", "systemd-nspawn"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    folder = tmp_path_factory.mktemp("walk")
    suite = os.environ.get("ISTHMUS_TEST_SUITE", "bookworm")
    given = os.environ.get("ISTHMUS_TEST_PACKAGE")
    package = Path(given) if given else make_package(folder, {"bookworm": 12, "trixie": 13}[suite])
    make_system(folder / "bus", suite)
    for name in ("cloud-1", "idc-1"):
        subprocess.run(["cp", "-a", str(folder / "bus"), str(folder / name)], check=True)
    started, typed = time.monotonic(), 0
    for where, line in lines():
        if line.startswith(INSTALL):
            what = line.split()[-1]
            for name in MACHINES.values() if where == "all" else [where]:
                install(folder / name, package if what.startswith("./") else what)
                typed += 1
    for name in MACHINES.values():
        (folder / name / "etc" / "hostname").write_text(f"{name}\n")
        (folder / name / "root" / "runtime.py").write_text(RUNTIME)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PLACE, json.dumps([str(folder), started, typed]))
        yield


@pytest.mark.usefixtures("place")
@functools.partial(inside, limit_s=1800)
def test_from_bare_machines_to_an_alert_that_is_explained() -> None:
    place, started, typed = json.loads(os.environ[PLACE])
    folder = Path(place)
    sh("ip netns add bus && ip netns add cloud-1 && ip netns add idc-1 && ip netns add router")
    for name in ("bus", "cloud-1", "idc-1", "router"):
        sh(f"ip -n {name} link set lo up")
    sh("ip -n router link add vpc type bridge && ip -n router link set vpc up")
    sh("ip -n router addr add 10.0.0.1/16 dev vpc")
    for address, name in MACHINES.items():
        sh(f"ip link add eth0 netns {name} type veth peer name {name} netns router")
        cloud = address.startswith("10.")
        sh(f"ip -n {name} addr add {address}/{16 if cloud else 24} dev eth0 && ip -n {name} link set eth0 up")
        sh(f"ip -n router link set {name} up")
        sh(f"ip -n router link set {name} master vpc" if cloud else
           f"ip -n router addr add 192.168.50.1/24 dev {name}")  # fmt: skip
        sh(f"ip -n {name} route add default via {'10.0.0.1' if cloud else '192.168.50.1'}")
    sh("ip netns exec router sysctl -qw net.ipv4.ip_forward=1")

    # A terminal ends with its machine, and is waited for after that.
    with contextlib.ExitStack() as terminals, contextlib.ExitStack() as stack:
        machines = {name: stack.enter_context(booted(folder / name, name)) for name in MACHINES.values()}
        exported = ""
        for where, line in lines():
            if line.startswith(INSTALL):
                continue
            typed += 1
            if line.startswith(("isthmus up ", "isthmus agent ")):
                _terminal(terminals, machines[where], line)
            elif line.startswith("export "):
                exported = f"{line} && "
            else:
                # Repeated, as somebody does who is told that it is not yet so.
                wanted = next((text for begins, text in EXPECTED.items() if line.startswith(begins)), "")
                answer = functools.partial(_answered, machines[where], exported + line, wanted)
                print(f"$ {line}\n{until(answer, f'{where}: {line}', 120)}")

        here, there = machines["cloud-1"], machines["idc-1"]
        addresses = {m: m.ok(f"python3 runtime.py {m.folder.name}-a").strip() for m in (here, there)}
        for machine in (here, there):
            serve = f"ip netns exec {machine.folder.name}-a python3 -m http.server 8080"
            terminals.enter_context(machine.open(serve))
        for one, other in ((here, there), (there, here)):
            ask = f'ip netns exec {one.folder.name}-a python3 -c "{ASK.format(addresses[other])}"'
            until(
                functools.partial(_answered, one, ask, "200"), f"{one.folder.name} reaches the other's pod", 60
            )
        print(f"pods reach each other: {typed} commands, {(time.monotonic() - started) / 60:.1f} minutes")

        there.off()
        bus = machines["bus"]
        firing = until(lambda: _firing(bus), f"{ALERT} fires", 600)
        typed += 1
        assert "isthmus status" in firing["annotations"]["action"]
        page, _, section = firing["annotations"]["runbook_url"].partition("#")
        assert f"## {ALERT}" in bus.ok(f"cat /usr/share/doc/isthmus/{page}")
        assert section == ALERT.lower()
        status = bus.run(f"{exported}isthmus status")
        assert status.returncode == 1
        assert "nodes_unreachable" in status.stdout
        print(f"an alert fired and was explained:\n  {firing['annotations']['summary']}")
        print("\n".join(f"  {line}" for line in status.stdout.splitlines() if line.strip()))
        print(f"the walk: {typed} commands, {(time.monotonic() - started) / 60:.1f} minutes")


def _terminal(terminals: contextlib.ExitStack, machine: Machine, line: str) -> None:
    running = terminals.enter_context(machine.open(line))
    if line.startswith("isthmus up "):
        assert running.stdout is not None
        text = ""
        while not text.startswith("console "):  # it says so when it is ready
            text = running.stdout.readline()
            assert text, f"{line} ended"
            print(text, end="")
    else:  # ranges are given in the order in which nodes come, and the README asks for one by its address
        until(functools.partial(_answered, machine, "isthmus agent status", "/26"), f"{line}: a member", 120)


def _answered(machine: Machine, line: str, wanted: str) -> str:
    """What it printed; empty when it failed, or when what is wanted is not in it."""
    done = machine.run(line)
    return (done.stdout or "done") if done.returncode == 0 and wanted in done.stdout else ""


def _firing(bus: Machine) -> dict[str, dict[str, str]]:
    ask = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9090/api/v1/alerts').read().decode())"
    answer = json.loads(bus.run(f'python3 -c "{ask}"').stdout or "{}")
    alerts = answer.get("data", {}).get("alerts", [])
    found = [a for a in alerts if a["labels"]["alertname"] == ALERT and a["state"] == "firing"]
    return found[0] if found else {}
