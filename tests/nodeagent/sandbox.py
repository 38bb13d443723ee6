"""Runs a test function inside namespaces of its own, so that nothing can leak to the host.

``@inside`` makes of a function without arguments (plain or async) a test that runs in a fresh Python
process with its own network, mount and process namespaces, as root or in a user namespace. When the
process ends, so does everything it made.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

_MARK = "ISTHMUS_TEST_INSIDE"
LIMIT_S = 300


def inside(function: Callable[[], Any], limit_s: float = LIMIT_S) -> Callable[[], None]:
    """See the module. What the function prints is printed."""

    @pytest.mark.netns
    @functools.wraps(function)
    def test() -> None:
        flags = "-nmpf" if os.geteuid() == 0 else "-Urnmpf"
        finished = subprocess.run(
            [
                "unshare",
                flags,
                "--kill-child",
                "--mount-proc",
                sys.executable,
                "-W",
                "error",
                "-m",
                __name__,
                function.__module__,
                function.__qualname__,
            ],
            env={**os.environ, _MARK: "1", "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"},
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )
        sys.stdout.write(finished.stdout)
        if finished.returncode:
            pytest.fail(
                f"inside the sandbox:\n{finished.stdout[-6000:]}\n{finished.stderr[-12000:]}", pytrace=False
            )

    # functools.wraps would make pytest look at an async function's signature.
    del test.__wrapped__  # type: ignore[attr-defined]
    test.inner = function  # type: ignore[attr-defined]
    return test


def sh(command: str) -> str:
    """Run a shell line; its output. Raises with its words when it fails."""
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        raise AssertionError(f"{command}\n{done.stdout}{done.stderr}")
    return done.stdout


def _main(module: str, name: str) -> None:
    sh("mount --make-rprivate / && mount -t tmpfs none /run && mkdir -p /run/netns && ip link set lo up")
    test = getattr(importlib.import_module(module), name)
    result = test.inner()
    if inspect.isawaitable(result):

        async def run() -> None:
            async with asyncio.timeout(LIMIT_S - 10):
                await result

        asyncio.run(run())


if __name__ == "__main__":
    _main(*sys.argv[1:])
