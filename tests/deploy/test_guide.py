"""The operations guide is run, word by word: real server, controller and issuer; only systemd is stood in for.

The stand-in for `systemctl` starts what the unit's ExecStart says, so that the units are proven too.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest

from controlplane.cli.main import root
from events.codes import CODES
from tests.ports import free_ports

pytestmark = [pytest.mark.bus, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "deploy" / "README.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL)

SYSTEMCTL = r"""#!/usr/bin/env bash
# systemctl enable --now | start | stop | restart | reload UNIT, by what the unit says.
set -euo pipefail
verb=$1; unit=${!#}
file=$SANDBOX/etc/systemd/system/$unit
pidfile=$SANDBOX/run/$unit.pid
here() { sed "s#/opt/isthmus/bin/#$BIN/#; s#/etc/isthmus#$SANDBOX/etc/isthmus#g"; }
run_of() { sed -n "s/^$1=//p" "$file" | head -1 | here; }
start() {  # with a clean environment, as systemd does
  environment=$(run_of EnvironmentFile)
  setsid env -i PATH="$PATH" ISTHMUS_HTTP=off bash -c 'set -a; [ -z "$1" ] || . "$1"; set +a; exec $2' \
    unit "$environment" "$(run_of ExecStart)" >>"$SANDBOX/run/$unit.log" 2>&1 </dev/null &
  echo $! >"$pidfile"
}
stop() {
  kill -TERM "$(cat "$pidfile")"
  for _ in $(seq 100); do kill -0 "$(cat "$pidfile")" 2>/dev/null || { rm "$pidfile"; return; }; sleep 0.1; done
  echo "$unit did not stop" >&2; exit 1
}
case $verb in
  enable|start) start ;;
  stop) stop ;;
  restart) stop; start ;;
  reload) kill -HUP "$(cat "$pidfile")" ;;
  *) echo "systemctl $verb?" >&2; exit 1 ;;
esac
"""


# These two make an account and folders of the machine; here they only have to find their files
# (tests/deploy/test_systemd.py runs the real ones in a root of its own).
FINDS_ITS_FILE = '#!/bin/sh\ntest -s "$(eval echo "\\${$#}")"\n'


def end(pid: int, named: str) -> None:
    """End that process and its group, if it is still the one whose command line names the test's folder."""
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # it has ended
        if named in Path(f"/proc/{pid}/cmdline").read_text():
            os.killpg(pid, signal.SIGTERM)


def script(sandbox: Path) -> str:
    """All blocks as one script, with the places of this test in the place of the guide's."""
    ports = free_ports(3, "127.0.0.1")
    text = "".join(f"echo '== {number}'\n{block}\n" for number, block in enumerate(BLOCKS, 1))
    text = text.replace("10.0.0.5:4222", f"127.0.0.1:{ports[0]}").replace("10.0.0.5", "127.0.0.1")
    text = text.replace(
        "--to out/bus-1",
        f"--to out/bus-1 --listen 127.0.0.1 "
        f"--at {sandbox}/etc/isthmus/nats --data {sandbox}/var/lib/isthmus/nats "
        f"--port {ports[0]} --leaf-port {ports[1]} --monitor 127.0.0.1:{ports[2]}",
    )
    for folder in ("/etc/isthmus", "/etc/systemd", "/var/lib/isthmus"):
        text = re.sub(rf"(?<![\w}}]){re.escape(folder)}(?!/nats --data)", f"{sandbox}{folder}", text)
    return text.replace(f"{sandbox}{sandbox}", str(sandbox))


def test_every_command_of_the_guide_works(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "bin").mkdir()
    (tmp_path / "etc").mkdir()
    shim = tmp_path / "bin" / "systemctl"
    shim.write_text(SYSTEMCTL)
    shim.chmod(0o755)
    for name in ("systemd-sysusers", "systemd-tmpfiles"):
        (tmp_path / "bin" / name).write_text(FINDS_ITS_FILE)
        (tmp_path / "bin" / name).chmod(0o755)
    bin_dir = Path(sys.executable).parent
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("ISTHMUS_")},
        "SANDBOX": str(tmp_path),
        "BIN": str(bin_dir),
        "PATH": f"{tmp_path / 'bin'}:{bin_dir}:{os.environ['PATH']}",
        "ISTHMUS_HTTP": "off",
    }
    try:
        ran = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script(tmp_path)],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
    finally:
        for pidfile in (tmp_path / "run").glob("*.pid"):
            end(int(pidfile.read_text()), str(tmp_path))
    logs = {file.name: file.read_text()[-1500:] for file in (tmp_path / "run").glob("*.log")}
    assert ran.returncode == 0, f"{ran.stdout[-3000:]}\n{ran.stderr[-3000:]}\n{logs}"
    assert ran.stdout.count("== ") == len(BLOCKS) >= 12
    assert "idc-7" in ran.stdout
    everything = ran.stdout + ran.stderr + "".join(logs.values())
    seeds = [file.read_text().strip() for file in (tmp_path / "authority" / "keys").iterdir()]
    assert not [seed for seed in seeds if seed in everything]


def test_no_block_of_the_guide_is_left_out() -> None:
    """Whatever is fenced is run: a block of another kind, or an indented one, would not be."""
    fences = re.findall(r"^([ \t>]*)(`{3,}|~{3,})(.*)$", GUIDE, re.MULTILINE)
    assert [fence for fence in fences if fence[0] or fence[1] != "```"] == []
    assert [kind for _, _, kind in fences] == ["sh", ""] * len(BLOCKS)


def test_commands_within_the_text_exist_with_their_options() -> None:
    """What is not run (it would end the guide's own cluster, or needs Kubernetes) is at least spelled right."""
    prose = re.sub(r"```sh\n.*?```", "", GUIDE, flags=re.DOTALL)
    spoken = [part.strip() for span in re.findall(r"`([^`]+)`", prose) for part in span.split("&&")]
    found = 0
    for line in spoken:
        words = line.split()
        if words[0] != "isthmus" or len(words) < 2:
            continue
        found += 1
        command: click.Command = root
        context = click.Context(command)
        rest = words[1:]
        while rest and isinstance(command, click.Group):
            if rest[0].startswith("-"):  # the group's own, or those of what it runs without a command
                command = command.commands.get("run", command)
                break
            following = command.get_command(context, rest.pop(0))
            assert following is not None, line
            command, context = following, click.Context(following, parent=context)
        options = {option for param in command.params for option in (*param.opts, *param.secondary_opts)}
        assert {word.partition("=")[0] for word in rest if word.startswith("--")} <= options, line
    assert found >= 10


def test_the_table_of_failures_names_codes_and_conditions_that_exist() -> None:
    table = GUIDE[GUIDE.index("## Troubleshooting") :]
    source = "".join(file.read_text() for file in (ROOT / "controlplane").rglob("*.py"))
    for name in re.findall(r"`([a-z]+_[a-z_]+)`", table):
        assert name in CODES or f'"{name}"' in source, name


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!#)([^)#]+)", GUIDE):
        assert (ROOT / "deploy" / target).exists(), target
    headings = {
        re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-")
        for h in re.findall(r"^## (.+)$", GUIDE, re.MULTILINE)
    }
    for anchor in re.findall(r"\]\(#([^)]+)\)", GUIDE):
        assert anchor in headings, anchor
