"""The units are valid, start commands that exist, and are as closed as they can be."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from deploy.cli import deploy
from deploy.credentials.cli_keep import credentials
from events.cli.config import ROLES
from events.cli.config_command import command_of

GATEWAY = Path("isthmus-agent.service.d", "gateway.conf")
UNITS = sorted((Path(__file__).parents[2] / "deploy" / "systemd").glob("*.service"))
EXPOSURE_MAX = {"isthmus-agent.service": 2.3}  # two sockets for ways through NAT are opened at its start
"""By `systemd-analyze security`, 0 closed … 10 open; the agent needs netlink and a capability."""

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="Debian's package systemd is not installed"
)


@needs_systemd
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_each_unit_is_valid(unit: Path, tmp_path: Path) -> None:
    text = re.sub(r"/opt/isthmus/bin/\S+", "/bin/true", unit.read_text())
    (tmp_path / unit.name).write_text(text)
    found = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / unit.name)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    own = [line for line in found.stderr.splitlines() if unit.name in line or str(tmp_path) in line]
    assert own == []


@needs_systemd
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_each_unit_is_hardened(unit: Path) -> None:
    found = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(unit)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    score = re.search(r"exposure level for \S+: ([0-9.]+)", found.stdout)
    assert score, found.stdout + found.stderr
    assert float(score[1]) <= EXPOSURE_MAX.get(unit.name, 1.5)


def test_the_units_run_roles_that_read_a_file() -> None:
    for unit in UNITS:
        start = re.search(r"^ExecStart=/opt/isthmus/bin/(\S+) (.*)$", unit.read_text(), re.MULTILINE)
        assert start, unit.name
        if start[1] != "isthmus":
            assert start[1] == "nats-server"
            continue
        words = start[2].split()
        if "--config" not in words:  # a job, not a role
            assert words[:2] == ["credentials", "prune"]
            assert "prune" in credentials.commands
            continue
        path = tuple(words[: words.index("--config")])
        role = next(role for role, known in ROLES.items() if known == path)
        assert any(param.name == "config" for param in command_of(role).params)


def test_no_unit_but_the_agents_has_a_capability() -> None:
    for unit in UNITS:
        granted = re.findall(r"^(?:Ambient|CapabilityBounding)\w*=(.+)$", unit.read_text(), re.MULTILINE)
        assert granted == (["CAP_NET_ADMIN CAP_NET_RAW CAP_BPF"] * 2 if "agent" in unit.name else []), unit.name
        assert "User=isthmus" in unit.read_text()


@pytest.mark.skipif(
    shutil.which("systemd-sysusers") is None or os.geteuid() != 0, reason="needs systemd-sysusers, and root"
)
def test_account_and_folders_are_made_for_the_units(tmp_path: Path) -> None:
    source = UNITS[0].parent
    (tmp_path / "etc").mkdir()
    for command in (
        ["systemd-sysusers", f"--root={tmp_path}", str(source / "isthmus-sysusers.conf")],
        ["systemd-tmpfiles", f"--root={tmp_path}", "--create", str(source / "isthmus-tmpfiles.conf")],
    ):
        subprocess.run(command, check=True, timeout=60, capture_output=True)
    group = re.search(r"^isthmus:[^:]*:(\d+):", (tmp_path / "etc" / "group").read_text(), re.MULTILINE)
    assert group
    for folder, mode in (("etc/isthmus", 0o770), ("etc/cni/net.d", 0o775)):
        found = (tmp_path / folder).stat()
        assert (found.st_gid, found.st_mode & 0o777) == (int(group[1]), mode)


def test_each_unit_takes_over_the_files_that_an_administrator_put_there() -> None:
    """Keys and credentials have mode 0600 and were copied by root; the units' account has to read them."""
    for unit in UNITS:
        assert "ExecStartPre=+/bin/chown -R --no-dereference isthmus:isthmus /etc/isthmus\n" in unit.read_text()


@needs_systemd
def test_the_timer_is_valid_and_starts_its_unit(tmp_path: Path) -> None:
    timer = UNITS[0].parent / "isthmus-nats-expiry.timer"
    assert timer.with_suffix(".service") in UNITS
    shutil.copy(timer, tmp_path)
    unit = timer.with_suffix(".service")
    (tmp_path / unit.name).write_text(re.sub(r"/opt/isthmus/bin/\S+", "/bin/true", unit.read_text()))
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / timer.name)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert [line for line in verified.stderr.splitlines() if "isthmus-nats-expiry" in line] == []


@needs_systemd
def test_a_gateways_agent_gets_one_capability_and_one_kind_of_socket_more(tmp_path: Path) -> None:
    for arguments in ([], ["--gateway"]):
        result = CliRunner().invoke(deploy, ["systemd", "--to", str(tmp_path), *arguments])
        assert result.exit_code == 0, result.output
        assert (tmp_path / GATEWAY).exists() == bool(arguments)
    unit = tmp_path / "isthmus-agent.service"
    unit.write_text(re.sub(r"/opt/isthmus/bin/\S+", "/bin/true", unit.read_text()))
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert [line for line in verified.stderr.splitlines() if "gateway.conf" in line] == []
    exposed = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(unit)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    score = re.search(r"exposure level for \S+: ([0-9.]+)", exposed.stdout)
    assert score, exposed.stdout + exposed.stderr
    assert float(score[1]) <= EXPOSURE_MAX[unit.name] + 0.3
    settings = dict(re.findall(r"^(\w+)=(.+)$", (tmp_path / GATEWAY).read_text(), re.MULTILINE))
    assert settings == {
        "AmbientCapabilities": "CAP_NET_RAW",
        "CapabilityBoundingSet": "CAP_NET_RAW",
        "RestrictAddressFamilies": "AF_PACKET",
    }, "systemd adds these to what the unit has"
