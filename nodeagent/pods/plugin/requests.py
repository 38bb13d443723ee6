"""What the plugin passes on: bytes → a checked request, or BadRequest. Pure.

Names of pods come from whoever may create pods, and are shown to people: what is not a name by Kubernetes' own
rules counts as not given. Nothing of it makes an ADD fail.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Interface
from typing import Any

import msgspec

from events.errors import BadRequest
from events.protocol.pods import CONTAINER, INTERFACE, PodName

HEAD = b"isthmus-cni/1"
HEAD_MAX_BYTES, INPUT_MAX_BYTES = 6 * 8192, 1 << 20
REQUEST_MAX_BYTES = HEAD_MAX_BYTES + INPUT_MAX_BYTES
ATTACHMENTS_MAX = 65_536
COMMANDS = frozenset({"ADD", "DEL", "CHECK", "GC", "STATUS"})
_FIELDS = {"K8S_POD_NAMESPACE": "namespace", "K8S_POD_NAME": "name", "K8S_POD_UID": "uid"}
_VERSION = re.compile(r"[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}")


class PluginRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One call of the plugin. ``addresses`` are those of ``prevResult``, IPv4 only, in its order."""

    command: str
    version: str
    container: str = ""
    interface: str = ""
    pod: PodName = PodName()
    addresses: tuple[str, ...] = ()
    valid: frozenset[tuple[str, str]] | None = None
    """GC: container and interface of every attachment that the runtime knows; None when it does not say."""


def parse(frame: bytes) -> PluginRequest:
    """Raises BadRequest(bad_request)."""
    head, separator, body = frame.partition(b"\0\0")
    magic, *variables = head.split(b"\0")
    if not separator or magic != HEAD or len(head) > HEAD_MAX_BYTES or len(body) > INPUT_MAX_BYTES:
        raise BadRequest("bad_request", "this is no request of the plugin")
    given = dict(each.decode("utf-8", "replace").partition("=")[::2] for each in variables)
    command = given.get("CNI_COMMAND", "")
    if command not in COMMANDS:
        raise BadRequest("bad_request", f"CNI_COMMAND is {command[:32]!r}")
    try:
        config = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest("bad_request", f"the configuration cannot be read: {error}") from error
    version = config.get("cniVersion")
    container, interface = given.get("CNI_CONTAINERID", ""), given.get("CNI_IFNAME", "")
    if command in {"ADD", "DEL", "CHECK"} and not (
        CONTAINER.fullmatch(container) and INTERFACE.fullmatch(interface)
    ):
        raise BadRequest("bad_request", f"CNI_CONTAINERID {container[:40]!r}, CNI_IFNAME {interface[:20]!r}")
    return PluginRequest(
        command=command,
        version=version if isinstance(version, str) and _VERSION.fullmatch(version) else "1.0.0",
        container=container,
        interface=interface,
        pod=pod_of(given.get("CNI_ARGS", "")),
        addresses=addresses_of(config.get("prevResult")),
        valid=_valid(config.get("cni.dev/valid-attachments")),
    )


def pod_of(arguments: str) -> PodName:
    """The pod that ``CNI_ARGS`` names (``K8S_POD_NAMESPACE=a;K8S_POD_NAME=b;…``)."""
    pairs = (each.partition("=") for each in arguments[:8192].split(";"))
    return PodName.of({_FIELDS[key]: value for key, _, value in pairs if key in _FIELDS})


def addresses_of(result: object) -> tuple[str, ...]:
    """The IPv4 addresses of a CNI result (0.3.0 … 1.1.0); none of what makes no sense."""
    ips = result.get("ips") if isinstance(result, dict) else None
    found = []
    for each in ips[:16] if isinstance(ips, list) else ():
        try:
            found.append(str(IPv4Interface(each["address"]).ip))
        except (ValueError, LookupError, TypeError):
            continue  # IPv6, or nonsense
    return tuple(dict.fromkeys(str(IPv4Address(each)) for each in found))


def _valid(attachments: object) -> frozenset[tuple[str, str]] | None:
    if not isinstance(attachments, list) or len(attachments) > ATTACHMENTS_MAX:
        return None
    try:
        return frozenset((str(each["containerID"]), str(each["ifname"])) for each in attachments)
    except (LookupError, TypeError):
        return None
