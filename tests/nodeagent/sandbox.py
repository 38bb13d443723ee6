"""Runs a test function inside namespaces of its own, so that nothing can leak to the host.

``@inside`` makes of a function without arguments (plain or async) a test that runs in a process of its own
with its own network, mount and process namespaces, as root or in a user namespace. When the process ends, so
does everything it made.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import inspect
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from tests import prepared

_MARK = "ISTHMUS_TEST_INSIDE"
LIMIT_S = 300


def inside(function: Callable[[], Any], limit_s: float = LIMIT_S) -> Callable[[], None]:
    """See the module. What the function prints is printed."""

    @pytest.mark.netns
    @functools.wraps(function)
    def test() -> None:
        env = {**os.environ, _MARK: "1", "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
        run = prepared.sandbox if os.geteuid() == 0 else _started
        done = run(function.__module__, function.__qualname__, env, limit_s)
        sys.stdout.write(done.stdout)
        if done.returncode:
            pytest.fail(f"inside the sandbox:\n{done.stdout[-6000:]}\n{done.stderr[-12000:]}", pytrace=False)

    # functools.wraps would make pytest look at an async function's signature.
    del test.__wrapped__  # type: ignore[attr-defined]
    test.inner = function  # type: ignore[attr-defined]
    return test


def _started(
    module: str, name: str, env: Mapping[str, str], limit_s: float
) -> subprocess.CompletedProcess[str]:
    unshare = ["unshare", "-Urnmpf", "--kill-child", "--mount-proc"]
    python = [sys.executable, "-W", "error", "-m", __name__, module, name]
    return subprocess.run(
        [*unshare, "setsid", "--wait", *python], env=env, capture_output=True, text=True, timeout=limit_s,
        check=False,
    )  # fmt: skip


def sh(command: str) -> str:
    """Run a shell line; its output. Raises with its words when it fails."""
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        raise AssertionError(f"{command}\n{done.stdout}{done.stderr}")
    return done.stdout


def run_inner(module: str, name: str) -> None:
    """Run that function: in the sandbox, whose process this is."""
    sh("mount --make-rprivate / && mount -t tmpfs none /run && mkdir -p /run/netns && ip link set lo up")
    sh("[ ! -d /etc/cni ] || mount -t tmpfs none /etc/cni")  # a join writes there; others look at the host's
    test = getattr(importlib.import_module(module), name)
    result = test.inner()
    if inspect.isawaitable(result):

        async def run() -> None:
            async with asyncio.timeout(LIMIT_S - 10):
                await result

        asyncio.run(run())


if __name__ == "__main__":
    run_inner(*sys.argv[1:])
