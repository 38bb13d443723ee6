"""The CNI configuration of this node: the standard plugins with the node's own range.

``ptp`` (default: the faster one) or ``bridge`` attaches a pod, ``host-local`` gives it an address out
of the node's range, ``portmap`` serves host ports; where our own plugin is installed it ends the chain
(:mod:`.chain`). The first address of the range is the VTEP's and
the second the gateway's, so neither is given to a pod; nobody can ask for a particular one.
"""

from __future__ import annotations

import logging
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import msgspec

from events.input_files import read_regular
from nodeagent.config import DEFAULT_NETWORK, CniPlugin
from nodeagent.local_files import write_atomically
from nodeagent.pods.chain import STANDARD, Chain

log = logging.getLogger("isthmus.agent")

FILE_NAME = "10-isthmus.conflist"
FLANNEL_FILE, FLANNEL_ASIDE = "10-flannel.conflist", "10-flannel.conflist.before-isthmus"
CNI_VERSION = "1.0.0"
BRIDGE, FLANNEL_BRIDGE = "isthmus-br0", "cni0"


def conflist(
    *,
    cidr: str,
    mtu: int,
    plugin: CniPlugin,
    data_dir: str = "",
    dns: tuple[str, ...] = (),
    name: str = DEFAULT_NETWORK,
    chain: Chain = STANDARD,
) -> bytes:
    """The file's content. ``mtu`` is bytes; ``data_dir`` is host-local's directory (empty: its default).

    ``chain`` is what a pod passes behind ``portmap``, and which versions every plugin knows.
    """
    subnet = IPv4Network(cidr)
    gateway = str(subnet.network_address + 1)
    ipam: dict[str, Any] = {
        "type": "host-local",
        "ranges": [
            [
                {
                    "subnet": cidr,
                    "rangeStart": str(subnet.network_address + 2),
                    "rangeEnd": str(subnet.broadcast_address - 1),
                    "gateway": gateway,
                }
            ]
        ],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    if data_dir:
        ipam["dataDir"] = data_dir
    main: dict[str, Any] = {"type": plugin, "mtu": mtu, "ipMasq": False, "ipam": ipam}
    if plugin == "bridge":
        main |= {"bridge": BRIDGE, "isGateway": True, "forceAddress": True, "hairpinMode": True}
    if dns:
        main["dns"] = {"nameservers": list(dns)}
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True}
    document: dict[str, Any] = {"cniVersion": CNI_VERSION}
    if chain.versions:
        document["cniVersions"] = list(chain.versions)
    if chain.unchecked:
        document["disableCheck"] = True
    document |= {"name": name, "plugins": [main, portmap, *chain.tail]}
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def read(directory: Path) -> bytes:
    """What our file holds; nothing when it cannot be read."""
    try:
        return read_regular(directory / FILE_NAME)
    except OSError:
        return b""


def write(directory: Path, content: bytes) -> bool:
    """Write the file if its content differs; say whether it did. Running pods are not touched.

    Raises OSError.
    """
    path = directory / FILE_NAME
    try:
        if read_regular(path) == content:
            return False
    except FileNotFoundError:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # something else in its place is replaced; a folder cannot be
        log.warning("%s cannot be read (%s) and is written anew", path, error.strerror)
    write_atomically(path, content)
    return True


def range_of(directory: Path) -> str:
    """The range that our file gives to pods; empty when there is none."""
    try:
        document = msgspec.json.decode(read_regular(directory / FILE_NAME))
        return str(document["plugins"][0]["ipam"]["ranges"][0][0]["subnet"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return ""


def set_aside(directory: Path) -> bool:
    """Flannel's file gets a name that no runtime reads, once ours is there; False when that is done.

    Raises OSError.
    """
    if not (directory / FILE_NAME).exists() or not (directory / FLANNEL_FILE).exists():
        return False
    (directory / FLANNEL_FILE).replace(directory / FLANNEL_ASIDE)
    return True


def put_back(directory: Path) -> bool:
    """Flannel's file gets its name back, and ours goes behind it; False when there is none. Raises OSError."""
    try:
        (directory / FLANNEL_ASIDE).replace(directory / FLANNEL_FILE)
    except FileNotFoundError:
        return False
    return True


def remove(directory: Path) -> bool:
    """Remove the file; False when it is not there."""
    try:
        (directory / FILE_NAME).unlink()
    except FileNotFoundError:
        return False
    return True
