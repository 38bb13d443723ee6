"""What a running network says of its nodes → candidates, each with everything that is wrong with it.

Kubernetes Node objects with flannel's annotations, flannel's leases as etcd shows them, CiliumNode objects, and
flannel's ``subnet.env``. Never raises for what is in an object; a file that is no such file is refused by name.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from controlplane.cli.node_import.encoding import unreadable
from controlplane.cluster.addressing.addresses import address_value
from controlplane.kubernetes.flannel_nodes import (
    Candidate,
    as_dict,
    as_list,
    as_text,
    backend_data,
    ranges_text,
    read_candidate,
)
from controlplane.kubernetes.node_objects import Rules

NODES_MAX = 100_000


class Network(NamedTuple):
    """What flannel's configuration says of the whole; empty or None where it does not."""

    cidr: str = ""
    length: int | None = None
    vni: int | None = None
    port: int | None = None


class SubnetEnv(NamedTuple):
    """``/run/flannel/subnet.env`` of one node. ``range`` is the network of FLANNEL_SUBNET; ``mtu`` is bytes."""

    cidr: str
    range: str
    mtu: int


def nodes_of(text: str, rules: Rules) -> list[Candidate]:
    """The Nodes of ``kubectl get nodes -o json`` (a list, or one). Raises BadRequest(import_unreadable)."""
    return nodes_in(objects(text, "Node"), rules)


def nodes_in(items: Sequence[Mapping[str, Any]], rules: Rules) -> list[Candidate]:
    """These Node objects."""
    return [read_candidate(item, number, rules) for number, item in enumerate(items, 1)]


def cilium_of(text: str, known: Sequence[Candidate]) -> list[Candidate]:
    """Those of ``kubectl get ciliumnodes -o json``. Raises BadRequest(import_unreadable)."""
    return cilium_in(objects(text, "CiliumNode"), known)


def cilium_in(items: Sequence[Mapping[str, Any]], known: Sequence[Candidate]) -> list[Candidate]:
    """CiliumNode objects: the range of each node that ``known`` has by name."""
    by_name = {candidate.node: candidate for candidate in known}
    told: set[str] = set()
    extra: list[Candidate] = []
    for number, item in enumerate(items, 1):
        name = as_text(as_dict(item.get("metadata")).get("name")) or f"item {number}"
        told.add(name)
        candidate = by_name.get(name)
        if candidate is None:
            candidate = Candidate(node=name, findings=[])
            candidate.found("adopt_node_unnamed", "it is a CiliumNode, and no Node has its name")
            extra.append(candidate)
        candidate.backend = "cilium"
        candidate.range = ranges_text(as_dict(as_dict(item.get("spec")).get("ipam")))
    for candidate in known:
        if candidate.node not in told:
            candidate.range = ""
    return [*known, *extra]


def leases_of(text: str, known: Sequence[Candidate]) -> tuple[list[Candidate], Network]:
    """Flannel's leases and configuration out of a dump of etcd, laid upon the nodes that ``known`` has.

    A lease knows its node by the public address only. Raises BadRequest(import_unreadable).
    """
    by_address = {
        address: candidate
        for candidate in known
        for address in (*candidate.addresses, candidate.underlay, candidate.announced)
        if address
    }
    network, extra, seen = Network(), [], 0
    for key, value in _pairs(text):
        if key.endswith("/config"):
            network = _network(value)
            continue
        head, slash, lease = key.rpartition("/")
        if not slash or not head.endswith("/subnets"):
            continue
        seen += 1
        first, _, wide = lease.partition("&")
        public = as_text(value.get("PublicIP"))
        candidate = by_address.get(public)
        if candidate is None:
            candidate = Candidate(node=f"lease {first}", underlay=public, findings=[])
            candidate.found(
                "adopt_node_unnamed", f"its lease is that of {public or 'nobody'}, which is no node here"
            )
            extra.append(candidate)
        had = f"{candidate.range}," if candidate.range and candidate.backend == "lease" else ""
        candidate.range = had + first.replace("-", "/") + (f",{wide.replace('-', '/')}" if wide else "")
        candidate.backend = "lease"
        backend = as_text(value.get("BackendType"))
        backend_data(candidate, value.get("BackendData"))
        if backend != "vxlan":
            candidate.found(
                "adopt_backend",
                f"its lease {first} is of flannel's backend {backend or 'unknown'!r}, not vxlan",
            )
    if not seen:
        raise unreadable("the dump holds no lease of flannel (keys …/subnets/10.5.34.0-24)")
    return [*known, *extra], network


def configuration_of(item: Mapping[str, Any]) -> Network:
    """``net-conf.json`` of flannel's ConfigMap; empty where there is none."""
    return _network(_object(as_dict(item.get("data")).get("net-conf.json")))


def _network(value: Mapping[str, Any]) -> Network:
    backend, length = as_dict(value.get("Backend")), value.get("SubnetLen")
    vni, port = backend.get("VNI"), backend.get("Port")
    return Network(
        as_text(value.get("Network")),
        length if isinstance(length, int) and length else None,
        vni if isinstance(vni, int) and vni else None,
        port if isinstance(port, int) and port else None,
    )


def _pairs(text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Keys and values of ``etcdctl get --prefix … -w json``, of the v2 API's answer, or of a plain object."""
    document = _json(text)
    if not isinstance(document, dict):
        raise unreadable("the dump of etcd is no JSON object")
    if isinstance(document.get("kvs"), list):
        for entry in document["kvs"]:
            key, value = (_decoded(as_dict(entry).get(part)) for part in ("key", "value"))
            yield key, _object(value)
    elif isinstance(document.get("node"), dict):
        pending: list[Any] = [document["node"]]
        while pending:
            entry = as_dict(pending.pop())
            pending += as_list(entry.get("nodes"))
            if isinstance(entry.get("value"), str):
                yield as_text(entry.get("key")), _object(entry["value"])
    else:
        for key, value in document.items():
            yield key, value if isinstance(value, dict) else _object(value)


def _decoded(value: Any) -> str:
    try:
        return base64.b64decode(value, validate=True).decode() if isinstance(value, str) else ""
    except (binascii.Error, ValueError):
        return ""


def _object(value: Any) -> dict[str, Any]:
    try:
        return as_dict(json.loads(value)) if isinstance(value, str) else {}
    except (ValueError, RecursionError):
        return {}


def hosts_of(text: str, kind: str) -> list[Candidate]:
    """Lines of ADDRESS NODE UID: for networks without Kubernetes. Raises BadRequest(import_unreadable)."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 3 or address_value(words[0]) is None:
            raise unreadable(f"line {number}: ADDRESS NODE UID, not {line.strip()[:80]!r}")
        address, node, uid = words
        found.append(
            Candidate(node=node, uid=uid, kind=kind, underlay=address, addresses=(address,), findings=[])
        )
    if not found:
        raise unreadable("the file of hosts names nobody")
    return found


def subnet_env_of(text: str) -> SubnetEnv:
    """Flannel's own file on a node. Raises BadRequest(import_unreadable)."""
    said = dict(line.strip().split("=", 1) for line in text.splitlines() if "=" in line)
    subnet, mtu = said.get("FLANNEL_SUBNET", ""), said.get("FLANNEL_MTU", "")
    quad, _, length = subnet.partition("/")
    value = address_value(quad)
    if value is None or not length.isdecimal() or not 0 < int(length) <= 32 or not mtu.isdecimal():
        raise unreadable("no subnet.env: FLANNEL_SUBNET=10.42.3.1/24 and FLANNEL_MTU=1450 are wanted")
    first = value & ~((1 << (32 - int(length))) - 1)
    quad = ".".join(str(first >> shift & 255) for shift in (24, 16, 8, 0))
    return SubnetEnv(said.get("FLANNEL_NETWORK", "").partition(",")[0], f"{quad}/{length}", int(mtu))


def objects(text: str, kind: str) -> list[dict[str, Any]]:
    """The objects of a list of ``kubectl get … -o json``, or the one. Raises BadRequest(import_unreadable)."""
    document = _json(text)
    listed = document.get("items") if isinstance(document, dict) and "items" in document else document
    items: list[Any] = listed if isinstance(listed, list) else [listed]
    if len(items) > NODES_MAX:
        raise unreadable(f"the file holds {len(items):,} objects, the limit is {NODES_MAX:,}")
    wrong = next((n for n, item in enumerate(items, 1) if not isinstance(item, dict)), 0)
    if not items or wrong:
        raise unreadable(f"object {wrong} is no {kind}" if wrong else f"the file holds no {kind}")
    other = next((str(item["kind"]) for item in items if item.get("kind", kind) != kind), "")
    if other:
        raise unreadable(f"the file holds objects of kind {other[:64]!r}, {kind} is wanted")
    return items


def _json(text: str) -> Any:
    try:
        return json.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        raise unreadable(f"it is no JSON: {error}") from error
