"""The values of a rendering: named as people know them from flannel's and Cilium's charts. Pure.

A file is TOML, JSON or YAML (by PyYAML, where it is installed); it is checked as a whole, and every fault is
told at once.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import msgspec

from controlplane.cluster.decision import DecisionContext
from controlplane.cluster.decisions.cluster import define
from controlplane.cluster.state import ClusterState
from events.cli.config import Fault, refuse
from events.errors import IsthmusError, Usage
from events.protocol.commands import DefineCluster
from events.subjects import check_label
from events.types.base import Network, NetworkKind

FILE_LIMIT_BYTES = 256 * 1024
_WORD = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._:/@-"


class _Values(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """Values of one part."""


class Image(_Values, frozen=True, kw_only=True):
    """The image of all roles."""

    repository: str = "isthmus"
    tag: str = version("isthmus")
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"

    @property
    def name(self) -> str:
        return f"{self.repository}:{self.tag}"


class Bus(_Values, frozen=True, kw_only=True):
    """One's own bus by its ``urls``; without any, one server on a node of ``nodeSelector``."""

    urls: tuple[str, ...] = ()
    node_selector: dict[str, str] = msgspec.field(
        default_factory=lambda: {"node-role.kubernetes.io/control-plane": ""}
    )
    storage_path: str = "/var/lib/isthmus-control"
    port: int = 4222


class Routed(_Values, frozen=True, kw_only=True):
    """A network that pods' addresses must stay clear of."""

    kind: NetworkKind
    cidr: str
    name: str = ""


class Quantities(_Values, frozen=True, kw_only=True):
    """Requests or limits of a container."""

    cpu: str = ""
    memory: str = ""


class Resources(_Values, frozen=True, kw_only=True):
    """Of one container; what is not said stays as it is shipped."""

    requests: Quantities = Quantities()
    limits: Quantities = Quantities()


class RoleResources(_Values, frozen=True, kw_only=True):
    """Of each role's container."""

    agent: Resources = Resources()
    controller: Resources = Resources()
    bridge: Resources = Resources()
    bus: Resources = Resources()
    issuer: Resources = Resources()


class Toleration(_Values, frozen=True, kw_only=True, omit_defaults=True):
    """One of ``tolerations``."""

    key: str = ""
    operator: Literal["", "Exists", "Equal"] = ""
    value: str = ""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""
    toleration_seconds: int | None = None


class Values(_Values, frozen=True, kw_only=True):
    """All of them. Numbers are in the units of the names; 0 of ``mtu``: found out."""

    cluster_name: str = "prod"
    pod_cidr: str = "10.200.0.0/16"
    pods_per_node: int = 64
    services: int = 256
    networks: tuple[Routed, ...] = ()
    vni: int = 100
    backend_port: int = 8472
    quarantine_s: float = msgspec.field(default=60.0, name="quarantineSeconds")
    mtu: int = 0
    accept_in_others: bool = False
    underlay: str = "auto"
    cni_bin_dir: str = "/opt/cni/bin"
    cni_conf_dir: str = "/etc/cni/net.d"
    cni_plugin: Literal["ptp", "bridge"] = "ptp"
    fastpath: Literal["auto", "off", "require"] = "auto"
    direct: Literal["off", "auto", "on"] = "off"
    nat: Literal["auto", "on", "off"] = "auto"
    tolerations: tuple[Toleration, ...] = (Toleration(operator="Exists"),)
    node_selector: dict[str, str] = {}
    resources: RoleResources = RoleResources()
    image_pull_secrets: tuple[str, ...] = ()
    image: Image = Image()
    bus: Bus = Bus()
    external_sites: tuple[str, ...] = ()
    evict_stale_pods: bool = False
    bridge: Literal["controller", "beside"] = "controller"
    apiserver_backends: str = ""
    service_backends: bool = False
    fence_deleted_s: float = msgspec.field(default=0.0, name="fenceDeletedSeconds")
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @property
    def definition(self) -> DefineCluster:
        """How the cluster is defined when its log is new."""
        return DefineCluster(
            container_cidr=self.pod_cidr,
            pods_per_node=self.pods_per_node,
            services=self.services,
            networks=tuple(Network(cidr=n.cidr, kind=n.kind, name=n.name) for n in self.networks),
            vni=self.vni,
            vxlan_port=self.backend_port,
            quarantine_s=self.quarantine_s,
        )


def read_values(path: Path) -> Values:
    """The values of a file. Raises Usage(config_invalid) with every fault."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise Usage("config_invalid", f"{path} cannot be read: {error.strerror}") from error
    if len(data) > FILE_LIMIT_BYTES:
        raise refuse([Fault(0, f"{len(data):,} bytes are more than {FILE_LIMIT_BYTES:,}")], str(path))
    try:
        document = _parsed(path, data.decode("utf-8-sig"))
    except (ValueError, RecursionError, UnicodeDecodeError) as error:
        raise refuse([Fault(0, str(error))], str(path)) from error
    return checked(document, str(path))


def checked(document: Any, source: str) -> Values:
    """The values of a decoded document. Raises Usage(config_invalid) with every fault."""
    faults = [Fault(0, text) for text in _shape(Values, document, "")]
    if not faults:
        values = msgspec.convert(document, Values)
        faults = [Fault(0, text) for text in _domain(values)]
        if not faults:
            return values
    raise refuse(faults, source)


def _parsed(path: Path, text: str) -> Any:
    """Raises ValueError."""
    if path.suffix == ".json":
        return msgspec.json.decode(text)
    if path.suffix in {".yaml", ".yml"}:
        try:
            import yaml
        except ModuleNotFoundError:
            raise ValueError("YAML needs PyYAML, which is not installed: write TOML or JSON") from None
        try:
            return yaml.safe_load(text) or {}
        except yaml.YAMLError as error:
            raise ValueError(f"no YAML: {error}") from error
    return tomllib.loads(text)


def _shape(kind: type[msgspec.Struct], found: Any, where: str) -> Iterator[str]:
    """Everything whose name or type is wrong."""
    if not isinstance(found, dict):
        yield f"{where or 'the file'} is a table of names and values, not {type(found).__name__}"
        return
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    prefix = f"{where}." if where else ""
    for name, value in found.items():
        field = fields.get(str(name))
        if field is None:
            near = difflib.get_close_matches(str(name), fields, 1)
            yield f"{prefix}{str(name)[:80]}: there is no such value; " + (
                f"did you mean {near[0]}?" if near else f"there are: {', '.join(fields)}"
            )
        elif isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            yield from _shape(field.type, value, f"{prefix}{name}")
        else:
            try:
                msgspec.convert(value, field.type)
            except msgspec.ValidationError as error:
                said = str(error).replace(" - at `$", f" at {name}").rstrip("`")
                yield f"{prefix}{name}: {said}"


def _domain(values: Values) -> Iterator[str]:
    """Everything that has the right type and is wrong all the same."""
    context, now, empty = DecisionContext(), datetime.now(UTC), ClusterState(name="c")
    checks: list[tuple[str, Callable[[], object]]] = [
        ("clusterName", lambda: check_label(values.cluster_name, "cluster")),
        ("podCidr", lambda: define(empty, values.definition, now, context)),
        *(("externalSites", partial(check_label, site, "site")) for site in values.external_sites),
    ]
    if values.apiserver_backends:
        checks.append(("apiserverBackends", lambda: check_label(values.apiserver_backends, "reservation")))
    for name, check in checks:
        try:
            check()
        except IsthmusError as error:
            yield f"{name}: {error.message}"
    for name, number, low, high in (
        ("mtu", values.mtu, 0, 65_535), ("bus.port", values.bus.port, 1, 65_535),
        ("fenceDeletedSeconds", values.fence_deleted_s, 0, 86_400),
    ):  # fmt: skip
        if not low <= number <= high:
            yield f"{name}: {number} is outside {low} … {high:,}"
    for name, path in (
        ("cniBinDir", values.cni_bin_dir), ("cniConfDir", values.cni_conf_dir),
        ("bus.storagePath", values.bus.storage_path),
    ):  # fmt: skip
        if not path.startswith("/") or not set(path) <= set(_WORD) or ".." in path:
            yield f"{name}: {path!r} is no absolute path of letters, digits and . _ : / @ -"
    words = {
        "image.repository": values.image.repository, "image.tag": values.image.tag, "underlay": values.underlay,
        **{f"imagePullSecrets[{n}]": name for n, name in enumerate(values.image_pull_secrets)},
        **{f"bus.urls[{n}]": url for n, url in enumerate(values.bus.urls)},
    }  # fmt: skip
    for name, text in words.items():
        if not text or not set(text) <= set(_WORD):
            yield f"{name}: {text[:80]!r} is none: letters, digits and . _ : / @ -"
    for name, found in (("nodeSelector", values.node_selector), ("bus.nodeSelector", values.bus.node_selector)):
        for key, value in found.items():
            if not key or not set(key + value) <= set(_WORD):
                yield f"{name}: {key[:80]!r}: {value[:80]!r} is no label"
