"""A Kubernetes Node object → the fields of a join, with everything that is wrong with it at once.

The uid is the annotation ``isthmus.io/uid``, else :func:`events.machine_identity.machine_uid` of machineID and
systemUUID, which name the installation (the object's own uid changes whenever the kubelet registers anew).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import netaddr

from events.machine_identity import machine_uid
from events.subjects import SITE_LIMIT

PREFIX, RESTRICTED = "isthmus.io", "isthmus.node-restriction.kubernetes.io"
"""Labels under the second one cannot be set by a kubelet itself, so they count first."""

KIND_LABELS = (f"{RESTRICTED}/kind", f"{PREFIX}/kind")
SITE_LABELS = (
    f"{RESTRICTED}/site",
    f"{PREFIX}/site",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
)
EXTERNAL_LABELS = (
    ("node.kubernetes.io/instance-type", "external"),
    ("eks.amazonaws.com/compute-type", "hybrid"),
)
"""How TKE and EKS mark nodes that are not the cloud's own."""

PROVIDERS: Mapping[str, str] = {
    **dict.fromkeys(
        ("alicloud", "aws", "azure", "baiducloud", "digitalocean", "gce", "hcloud", "huaweicloud", "ibm",
         "linode", "oci", "ovhcloud", "qcloud", "scaleway", "tencentcloud", "volcengine", "vultr", "yandex"),
        "cloud",
    ),
    **dict.fromkeys(
        ("baremetal", "eks-hybrid", "harvester", "k3s", "kind", "kubevirt", "maas", "metal3", "nutanix",
         "openstack", "ovirt", "proxmox", "rke2", "tinkerbell", "vsphere"),
        "external",
    ),
}  # fmt: skip
"""The scheme of a Node's providerID → the kind of its node: a public cloud's, or of one's own data centre."""

_SHOWN = 4


class Rules(NamedTuple):
    """How Nodes are read. ``kind`` is what a Node is that does not say it (empty: it must)."""

    kind: str = ""
    underlay_cidrs: tuple[str, ...] = ()
    kind_labels: tuple[str, ...] = KIND_LABELS
    site_labels: tuple[str, ...] = SITE_LABELS
    external_labels: tuple[tuple[str, str], ...] = EXTERNAL_LABELS
    providers: Mapping[str, str] = PROVIDERS


class Reading(NamedTuple):
    """What one Node says: fields of a join, why it cannot join, and what its owner should know."""

    fields: dict[str, Any]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read_node(item: Mapping[str, Any], rules: Rules) -> Reading:
    """Read one object of ``kubectl get nodes -o json``; never raises for what is in it."""
    if item.get("kind", "Node") != "Node":
        return Reading({}, (f"it is a {str(item['kind'])[:64]}, not a Node",))
    metadata, spec, status = (_dict(item.get(part)) for part in ("metadata", "spec", "status"))
    labels, annotations = _dict(metadata.get("labels")), _dict(metadata.get("annotations"))
    problems: list[str] = []
    notes: list[str] = []
    name = _text(metadata.get("name"))
    if not name:
        problems.append("it has no metadata.name")
    info = _dict(status.get("nodeInfo"))
    uid = _text(annotations.get(f"{PREFIX}/uid")) or machine_uid(info.get("machineID"), info.get("systemUUID"))
    if not uid:
        problems.append(
            "it has neither a machineID nor a systemUUID that names one machine: give it one "
            f"(systemd-machine-id-setup), or the annotation {PREFIX}/uid"
        )
    underlay, problem = _underlay(status, annotations, rules)
    if problem:
        problems.append(problem)
    kind, problem = _kind(labels, _text(spec.get("providerID")), rules)
    if problem:
        problems.append(problem)
    pod_cidr = _text(spec.get("podCIDR"))
    if pod_cidr:
        notes.append(
            f"its podCIDR {pod_cidr} was set by another allocator and cannot change, its range is another: "
            "end that allocator (kube-controller-manager --allocate-node-cidrs=false), create the Node anew"
        )
    fields = {
        "node": name,
        "uid": uid,
        "kind": kind,
        "underlay": underlay,
        "announced": _text(annotations.get(f"{PREFIX}/announced")),
        "site": next((_text(labels[key])[:SITE_LIMIT] for key in rules.site_labels if labels.get(key)), ""),
    }
    return Reading({key: value for key, value in fields.items() if value}, tuple(problems), tuple(notes))


def _kind(labels: Mapping[str, Any], provider_id: str, rules: Rules) -> tuple[str, str]:
    """cloud or external, or why it cannot be told: a label, the provider's mark, the provider, the default."""
    for key in rules.kind_labels:
        value = _text(labels.get(key))
        if value in {"cloud", "external"}:
            return value, ""
        if value:
            return "", f"its label {key} is {value[:64]!r}: it must be cloud or external"
    if any(_text(labels.get(key)) == value for key, value in rules.external_labels):
        return "external", ""
    scheme = provider_id.partition("://")[0].lower() if "://" in provider_id else ""
    known = rules.providers.get(scheme) or rules.kind
    if known:
        return known, ""
    what = (
        f"its providerID {provider_id[:64]!r} is of no known provider"
        if provider_id
        else "it has no providerID"
    )
    return (
        "",
        f"{what} and no label says its kind: label it {KIND_LABELS[0]}, or say --kind cloud or --kind external",
    )


def _underlay(status: Mapping[str, Any], annotations: Mapping[str, Any], rules: Rules) -> tuple[str, str]:
    """The address by which other nodes reach it, or why there is not exactly one."""
    given = _text(annotations.get(f"{PREFIX}/underlay"))
    if given:
        return given, ""
    listed = status.get("addresses")
    found = [
        (_text(entry.get("type")), _text(entry.get("address")))
        for entry in (listed if isinstance(listed, list) else ())
        if isinstance(entry, dict)
    ]
    shown = ", ".join(f"{kind} {address}" for kind, address in found[:_SHOWN]) or "none"
    way_out = f"say --underlay-cidr, or annotate it {PREFIX}/underlay"
    if rules.underlay_cidrs:
        inside = netaddr.IPSet(rules.underlay_cidrs)
        matching = sorted({a for _, a in found if netaddr.valid_ipv4(a) and a in inside})
        if len(matching) == 1:
            return matching[0], ""
        what = f"{len(matching)} of its addresses lie" if matching else "none of its addresses lies"
        return "", f"{what} in {', '.join(rules.underlay_cidrs)} (its addresses: {shown})"
    internal = sorted({a for kind, a in found if kind == "InternalIP" and netaddr.valid_ipv4(a)})
    if len(internal) == 1:
        return internal[0], ""
    if internal:
        return "", f"it has {len(internal)} InternalIPs ({', '.join(internal[:_SHOWN])}): {way_out}"
    only = {kind for kind, _ in found}
    if any(netaddr.valid_ipv6(a) for _, a in found):
        return "", f"it has IPv6 addresses only ({shown}); the underlay is IPv4: {way_out}"
    if only and only <= {"Hostname", "InternalDNS", "ExternalDNS"}:
        return "", f"it has a hostname only ({shown}) and no InternalIP: {way_out}"
    return "", f"it has no IPv4 InternalIP (its addresses: {shown}): {way_out}"


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""
