"""Runs the system's programs (ip, bridge, nsenter, CNI plugins) and says plainly why one failed."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING, Any

from deploy.lab.failures import CommandFailedError
from events.errors import Refused
from nodeagent import system

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Debian keeps ip, bridge and nft where an ordinary user's PATH does not look.
SEARCH_PATH = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"

PACKAGE_OF = {
    "ip": "iproute2",
    "bridge": "iproute2",
    "nft": "nftables",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "mount": "mount",
}

# What the agent's conflist names.
CNI_PLUGINS = ("ptp", "host-local", "portmap")


async def run(
    arguments: Sequence[str], *, stdin: str = "", env: Mapping[str, str] | None = None, timeout_s: float = 30.0
) -> str:
    """Standard output of the command.

    Raises CommandFailedError when it fails and TimeoutError when it takes longer than `timeout_s`. Cancelled,
    it kills the command and waits for its end; what the command changed by then stays.
    """
    environment = {"PATH": SEARCH_PATH, **(env or {})}
    try:
        ended = await system.run(*arguments, stdin=stdin, env=environment, timeout_s=timeout_s)
    except TimeoutError as error:
        raise TimeoutError(f"{' '.join(arguments)} took longer than {timeout_s:g} s") from error
    if ended.code:
        said = (ended.err + ended.out).strip()
        raise CommandFailedError(f"{' '.join(arguments)} ended with {ended.code}: {said}")
    return ended.out


async def run_json(arguments: Sequence[str]) -> Any:
    """Standard output of the command, parsed as JSON; an empty output is an empty list.

    Cancelled, the command is killed; what it changed by then stays.
    """
    return json.loads(await run(arguments) or "[]")


def find_cni_plugins(environment: Mapping[str, str]) -> str | None:
    """The first directory that holds the CNI plugins that the lab uses, or None."""
    given = environment.get("CNI_PATH", "")
    for directory in (*given.split(":"), "/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"):
        if directory and all(os.access(f"{directory}/{plugin}", os.X_OK) for plugin in CNI_PLUGINS):
            return directory
    return None


def require_for_flannel(plugins: str) -> None:
    """What a lab with flannel's rules and bridge needs beyond that. Raises Refused(prerequisite_missing)."""
    missing = [
        name for name in ("iptables-restore", "iptables-save") if shutil.which(name, path=SEARCH_PATH) is None
    ]
    if not os.access(f"{plugins}/bridge", os.X_OK):
        missing.append("the CNI plugin bridge")
    if missing:
        raise Refused(
            "prerequisite_missing",
            f"not found: {', '.join(missing)}. On Debian or Ubuntu type:  "
            f"sudo apt-get install -y iptables containernetworking-plugins",
            missing=missing,
        )


def require_programs() -> str:
    """The directory of the CNI plugins, once every program that the lab starts is found.

    Raises Refused(prerequisite_missing) with the exact command that installs what is missing.
    """
    missing = [name for name in PACKAGE_OF if shutil.which(name, path=SEARCH_PATH) is None]
    packages = {PACKAGE_OF[name] for name in missing}
    plugins = find_cni_plugins(os.environ)
    if plugins is None:
        missing.append(f"the CNI plugins {', '.join(CNI_PLUGINS)}")
        packages.add("containernetworking-plugins")
    if missing or plugins is None:
        raise Refused(
            "prerequisite_missing",
            f"not found: {', '.join(missing)}. On Debian or Ubuntu type:  "
            f"sudo apt-get install -y {' '.join(sorted(packages))}",
            missing=missing,
        )
    return plugins
