"""Runs a benchmark's body in a process with network and mount namespaces of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any


def run_inside(module: str, function: str = "body") -> Any:
    """Call ``module.function()`` inside; it returns something that JSON can carry."""
    flags = "-nmpf" if os.geteuid() == 0 else "-Urnmpf"
    code = (
        "import importlib, json, subprocess; "
        "subprocess.run('mount --make-rprivate / && mount -t tmpfs none /run && mkdir -p /run/netns && "
        "ip link set lo up', shell=True, check=True); "
        f"value = importlib.import_module({module!r}).{function}(); print('\\n' + json.dumps(value))"
    )
    done = subprocess.run(
        ["unshare", flags, "--kill-child", "--mount-proc", sys.executable, "-c", code],
        env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=600,
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


def row(
    name: str, ours: float, baseline: float, unit: str, target: float | None, *, better: str = "lower"
) -> dict[str, Any]:
    """One line of the table; the ratio is ours by baseline."""
    ratio = ours / baseline if baseline else float("inf")
    good = target is None or (ratio <= target if better == "lower" else ratio >= target)
    return {
        "name": name,
        "ours": ours,
        "baseline": baseline,
        "unit": unit,
        "ratio": ratio,
        "target": target,
        "better": better,
        "ok": good,
    }
