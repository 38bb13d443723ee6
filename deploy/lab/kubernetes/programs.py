"""The programs of others that a Kubernetes cluster is made of: found, or named as missing; never fetched."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.lab.machines.shell import SEARCH_PATH
from events.errors import Usage

if TYPE_CHECKING:
    from collections.abc import Mapping

KUBERNETES = (
    "etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl",
)  # fmt: skip
RUNTIME = ("containerd", "containerd-shim-runc-v2", "ctr", "runc")
PLUGINS = ("ptp", "bridge", "host-local", "portmap", "bandwidth", "loopback")
"""What the product's image carries of the standard CNI plugins."""
ASSETS = "KUBEBUILDER_ASSETS"
CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Programs:
    """Where each program is, by its name."""

    found: Mapping[str, str]
    plugins: str

    def __getitem__(self, name: str) -> str:
        return self.found[name]


def require(folder: Path | None, plugins: str, environment: Mapping[str, str]) -> Programs:
    """Find them in ``folder`` (or the one that KUBEBUILDER_ASSETS names), then on PATH.

    Raises Usage(usage) with all that is missing in one sentence.
    """
    given = folder or (Path(environment[ASSETS]) if environment.get(ASSETS) else None)
    places = SEARCH_PATH if given is None else f"{given}{os.pathsep}{SEARCH_PATH}"
    found = {name: shutil.which(name, path=places) for name in (*KUBERNETES, *RUNTIME)}
    missing = [name for name, path in found.items() if path is None]
    missing += [f"the CNI plugin {name}" for name in PLUGINS if not os.access(f"{plugins}/{name}", os.X_OK)]
    if os.geteuid() or not os.access(CGROUPS, os.W_OK):
        missing.append(f"root, with {CGROUPS} writable")
    if missing:
        where = str(given) if given else f"the folder of --binaries or {ASSETS}"
        raise Usage(
            "usage",
            f"a Kubernetes lab lacks (looked in {where}, then on PATH): {', '.join(missing)}",
            missing=missing,
        )
    return Programs({name: path for name, path in found.items() if path is not None}, plugins)
