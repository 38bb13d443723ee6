"""Where a plan's nodes are read, so that the same can be read again: the Kubernetes API, files or pipes.

Reads only.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from controlplane.cli.adopt import sources
from controlplane.cli.adopt.planning import Origin
from controlplane.cli.adopt.sources import Network, SubnetEnv
from controlplane.cli.node_import.encoding import SIZE_MAX_BYTES, text_of
from controlplane.kubernetes.flannel_nodes import Candidate
from controlplane.kubernetes.node_objects import Rules
from events.errors import BadRequest

NODES, CILIUM = "/api/v1/nodes", "/apis/cilium.io/v2/ciliumnodes"
CONFIGURATIONS = tuple(
    f"/api/v1/namespaces/{namespace}/configmaps/{name}"
    for namespace, name in (
        ("kube-flannel", "kube-flannel-cfg"),
        ("kube-system", "kube-flannel-cfg"),
        ("kube-system", "canal-config"),
        ("kube-system", "rke2-canal-config"),
    )
)
"""Where flannel's own manifests, and those of canal, keep ``net-conf.json``."""
PIPE = "-"


class Found(NamedTuple):
    """What a source says: of each node, of the whole, and of single nodes' files."""

    candidates: list[Candidate]
    configured: Network
    subnet_envs: Mapping[str, SubnetEnv]

    @property
    def source(self) -> str:
        """What the nodes' ranges are of."""
        if any(each.backend == "cilium" for each in self.candidates):
            return "cilium"
        return "flannel" if any(each.backend for each in self.candidates) else "podcidr"


async def read(origin: Origin) -> Found:
    """Read all of it. Raises BadRequest(import_unreadable), Refused, Unavailable, OSError.

    Cancelled, it leaves nothing behind.
    """
    rules = Rules(kind=origin.kind, underlay_cidrs=origin.underlay_cidrs)
    configured = Network()
    cilium: Sequence[Mapping[str, Any]] = ()
    if origin.kubernetes:
        items, cilium, configured = await _from_api(origin)
        found = sources.nodes_in(items, rules)
    else:
        found = sources.nodes_of(_text(origin.nodes), rules) if origin.nodes else []
    if origin.hosts:
        found += sources.hosts_of(_text(origin.hosts), origin.kind)
    if origin.leases:
        found, configured = sources.leases_of(_text(origin.leases), found)
    if origin.cilium:
        cilium = sources.objects(_text(origin.cilium), "CiliumNode")
    if cilium:
        found = sources.cilium_in(cilium, found)
    envs = {path: sources.subnet_env_of(_text(path)) for path in origin.subnet_envs}
    return Found(found, configured, envs)


async def _from_api(
    origin: Origin,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], Network]:
    """Nodes, CiliumNodes where there are any, and flannel's configuration where it can be found."""
    from controlplane.kubernetes.api import KubernetesClient

    client = await KubernetesClient.open(access(origin.kubeconfig))
    try:
        nodes = await client.list_objects(NODES)
        cilium = await client.list_objects(CILIUM) if origin.source in {"", "cilium"} else None
        if origin.source == "cilium" and not cilium:
            raise BadRequest("import_unreadable", f"the API server has no CiliumNode (GET {CILIUM})")
        configured = Network()
        for path in CONFIGURATIONS if origin.source in {"", "flannel"} and not cilium else ():
            found = await client.read(path)
            if found is not None:
                configured = sources.configuration_of(found)
                break
    finally:
        await client.close()
    if not nodes:
        raise BadRequest("import_unreadable", f"the API server has no Node (GET {NODES})")
    return nodes, cilium or [], configured


def access(kubeconfig: str) -> Path | None:
    """The kubeconfig file that kubectl would take; None: as a pod, by its ServiceAccount."""
    if kubeconfig:
        return Path(kubeconfig)
    if os.environ.get("KUBERNETES_SERVICE_HOST"):
        return None
    named = os.environ.get("KUBECONFIG", "").split(os.pathsep)[0]
    usual = Path(named) if named else Path.home() / ".kube" / "config"
    return usual if named or usual.exists() else None


def repeatable(origin: Origin | None) -> bool:
    """Whether it can be read again: nothing of it came through a pipe, and its files are there."""
    if origin is None:
        return False
    files = [origin.nodes, origin.leases, origin.cilium, origin.hosts, *origin.subnet_envs]
    return all(file != PIPE and Path(file).is_file() for file in files if file)


def kept(origin: Origin) -> Origin:
    """The origin as a plan keeps it: with paths that hold from any directory."""

    def whole(path: str) -> str:
        return str(Path(path).absolute()) if path and path != PIPE else path

    return msgspec.structs.replace(
        origin,
        **{name: whole(getattr(origin, name)) for name in ("kubeconfig", "nodes", "leases", "cilium", "hosts")},
        subnet_envs=tuple(map(whole, origin.subnet_envs)),
    )


def _text(path: str) -> str:
    if path == PIPE:
        return text_of(sys.stdin.buffer.read(SIZE_MAX_BYTES + 1))
    with Path(path).open("rb") as file:
        return text_of(file.read(SIZE_MAX_BYTES + 1))
