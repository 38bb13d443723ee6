"""An installation that was made by hand before: what of it a join keeps, and what it leaves to somebody else.

A node that was set up with 0.2.0's guide has settings and a unit of its own. A join by a token of the same
node takes them over: what they say goes on unless the join says otherwise, so that the node keeps its folder of
state and with it its uid and range. What was there is kept beside, under another name. Pure but for reading.
"""

from __future__ import annotations

import re
import shlex
import socket
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy.join import host
from deploy.join.files import MARK
from events.cli.config import read, refuse
from events.errors import Refused
from nodeagent.cli import run_command

SUFFIX = ".before-join"
_AGENT = re.compile(r"^ExecStart=.*\bisthmus\b.*\bagent\b", re.MULTILINE)


class Identity:
    """Which node of which cluster some settings are for."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.node = str(values.get("node") or socket.gethostname().lower())
        self.cluster = str(values.get("cluster") or "default")


def identity(config: Path) -> Identity | None:
    """Who this machine is by its settings, whoever wrote them; None without any.

    Raises Usage(config_invalid) for what nobody could start an agent with.
    """
    there = host.current(config)
    if there is None:
        return None
    values, faults = read(there, run_command)
    if faults and not there.startswith(MARK):
        raise refuse(faults, f"{config}, which no join has written (`mv` it away to begin anew),")
    return Identity(values)


def settings_by_hand(config: Path) -> dict[str, Any]:
    """What settings that no join has written say, by their names in the file; empty without any."""
    there = host.current(config)
    if there is None or there.startswith(MARK):
        return {}
    return {key.replace("_", "-"): value for key, value in tomllib.loads(there).items()}


def require_agents_unit(unit: Path) -> None:
    """Raises Refused(file_exists) for a unit of that name that no join wrote and that starts something else."""
    there = host.current(unit)
    if there is None or there.startswith(MARK) or _AGENT.search(there):
        return
    raise Refused(
        "file_exists",
        f"{unit} is there, was not written by a join and starts no agent of ours: move it away "
        f"(`mv {shlex.quote(str(unit))} {shlex.quote(f'{unit}{SUFFIX}')}`) and repeat the same command",
        path=str(unit),
    )
