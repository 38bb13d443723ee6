"""Which plugins a pod passes on this host: the standard ones, and ours at the end where it is installed.

A host without it keeps the configuration that it always had. Versions of the CNI specification are asked of the
programs themselves: the file promises one only if every plugin of the chain knows it.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec

from events.errors import Refused
from nodeagent.local_files import write_atomically

OUR_PLUGIN, SHAPER = "isthmus", "bandwidth"
DIRECTORIES = ("/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni")
"""Where container runtimes look, the usual one first."""
VERSION_TIMEOUT_S = 2.0
VERSION_LIMIT_BYTES = 64 * 1024
OFFERED = ("1.0.0", "1.1.0")
"""Versions of the specification that our file may promise, ascending; the first is always there."""
SOCKET_FILE = "cni.sock"
SOCKET_PATH_MAX = 107  # bytes; sun_path of unix(7), its end left out


class Chain(msgspec.Struct, frozen=True):
    """What follows the plugin that attaches a pod; ``versions`` is empty where the file says none."""

    tail: tuple[dict[str, Any], ...] = ()
    versions: tuple[str, ...] = ()
    directory: str = ""
    """Where ours was found; empty without it."""
    unchecked: bool = False
    """Whether runtimes must not call CHECK: ``bandwidth`` 1.1.1 crashes there for a pod without limits."""


STANDARD = Chain()


def socket_path(state_dir: Path) -> Path:
    """Where the agent with this state directory listens."""
    return state_dir.absolute() / SOCKET_FILE


def directories(chosen: str) -> tuple[str, ...]:
    """Where to look for plugins: in the one that was named, or in the usual ones."""
    return (chosen,) if chosen else DIRECTORIES


def look(main: str, places: Sequence[str], socket: Path, *, shaping: bool = False) -> Chain:
    """In a worker thread: what is installed now. ``main`` is ptp or bridge, ``shaping`` adds bandwidth."""
    if len(os.fsencode(socket)) > SOCKET_PATH_MAX:
        return STANDARD
    for place in places:
        if all(_is_program(Path(place, name)) for name in (main, "portmap", OUR_PLUGIN)):
            known = {name: versions(Path(place, name)) for name in (main, "host-local", "portmap", OUR_PLUGIN)}
            if OFFERED[0] not in known[OUR_PLUGIN]:
                continue  # something else of that name
            tail: list[dict[str, Any]] = []
            if shaping and _is_program(Path(place, SHAPER)):
                known[SHAPER] = versions(Path(place, SHAPER))
                tail.append({"type": SHAPER, "capabilities": {"bandwidth": True}})
            tail.append({"type": OUR_PLUGIN, "socket": str(socket)})
            common = tuple(each for each in OFFERED if all(each in found for found in known.values()))
            return Chain(tuple(tail), common if len(common) > 1 else (), place, len(tail) > 1)
    return STANDARD


def _is_program(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def versions(program: Path) -> tuple[str, ...]:
    """What a plugin says to VERSION; empty when it says nothing of sense within :data:`VERSION_TIMEOUT_S`."""
    try:
        done = subprocess.run(
            [program],
            input=b'{"cniVersion":"1.0.0"}',
            capture_output=True,
            env={"CNI_COMMAND": "VERSION", "PATH": "/usr/bin:/bin"},
            timeout=VERSION_TIMEOUT_S,
            check=False,
        )
        if done.returncode or len(done.stdout) > VERSION_LIMIT_BYTES:
            return ()
        found = json.loads(done.stdout)["supportedVersions"]
        return tuple(each for each in found if isinstance(each, str))
    except (OSError, subprocess.SubprocessError, ValueError, LookupError, TypeError, RecursionError):
        return ()


# --- installing ---


def shipped() -> bytes:
    """The program for this machine's processor. Raises Refused(prerequisite_missing) where there is none."""
    processor = {"arm64": "aarch64", "amd64": "x86_64"}.get(platform.machine(), platform.machine())
    try:
        return (files("nodeagent.pods.plugin") / f"isthmus-{processor}").read_bytes()
    except OSError as error:
        raise Refused(
            "prerequisite_missing",
            f"the CNI plugin is not shipped for {processor}: pods start without it; build it on a machine with "
            "clang and lld (nodeagent/pods/plugin/build.sh) if it is wanted",
            program="isthmus",
        ) from error


def install(places: Sequence[str]) -> list[str]:
    """Put our plugin beside each ``portmap``; says where it was written. Raises OSError, Refused."""
    content, written = shipped(), []
    for place in places:
        path = Path(place, OUR_PLUGIN)
        if not _is_program(Path(place, "portmap")) or current(path, content):
            continue
        write_atomically(path, content, mode=0o755)
        written.append(str(path))
    return written


def current(path: Path, content: bytes) -> bool:
    """Whether the program there is this one."""
    with contextlib.suppress(OSError):
        return os.access(path, os.X_OK) and path.stat().st_size == len(content) and path.read_bytes() == content
    return False
