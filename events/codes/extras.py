"""The parts of the installation that a role needs, and how this copy gets one that it lacks."""

from __future__ import annotations

import shlex
import sys
from importlib.metadata import PackageNotFoundError, version

EXTRA_OF = {
    "aiosqlite": "controller",
    "cryptography": "controller",
    "kubernetes_asyncio": "kubernetes",
    "litestar": "console",
    "matplotlib": "plots",
    "pyroute2": "agent",
    "uvicorn": "console",
    "zstandard": "replay",
}
"""The extra that brings an importable module."""


def our_version() -> str:
    """The installed release."""
    try:
        return version("isthmus")
    except PackageNotFoundError:
        return "unknown"


def install_line(extra: str) -> str:
    """The command that adds an extra, from the wheel: the name on the public index is not ours."""
    wheel = f"./isthmus-{our_version()}-py3-none-any.whl[{extra}]"
    return f"{shlex.quote(sys.executable)} -m pip install {shlex.quote(wheel)}"
