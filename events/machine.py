"""The identity of a machine, derived the same way by its own agent and by whoever lists it from outside.

The kubelet publishes ``/etc/machine-id`` as ``status.nodeInfo.machineID`` and the firmware's UUID as
``systemUUID``; an agent reads both from the machine itself. What identifies nobody (not set, or the same
on every machine of a vendor) gives no identity.
"""

from __future__ import annotations

import re
from pathlib import Path

UID_LIMIT = 128
_SEPARATORS = re.compile(r"[-\s{}]")
_NOBODY = {"uninitialized", "none", "unknown", "notspecified", "tobefilledbyo.e.m.", "defaultstring"}
_VENDOR = {"03000200040005000006000700080009", "00020003000400050006000700080009"}
"""Firmware UUIDs that vendors have put into many machines."""


def machine_uid(machine_id: str, system_uuid: str = "") -> str:
    """The uid of the machine with that machine id, else that firmware UUID; empty when neither names one.

    Case and surrounding space do not matter: both sides read the same file, but not by the same program.
    """
    for value in (machine_id, system_uuid):
        known = value.strip().lower()
        bare = _SEPARATORS.sub("", known)
        if not known or len(known) > UID_LIMIT or not known.isprintable():
            continue
        if bare in _NOBODY or bare in _VENDOR or len(set(bare)) < 2:
            continue
        return known
    return ""


def local_machine_uid(root: Path = Path("/")) -> str:
    """This machine's uid, of the files under ``root`` (a mounted host's, in a container); empty when unknown.

    A file that is there and cannot be read is not treated as absent. Raises OSError.
    """
    machine_id = _read(root / "etc/machine-id") or _read(root / "var/lib/dbus/machine-id")
    return machine_uid(machine_id) or machine_uid(_read(root / "sys/class/dmi/id/product_uuid"))


def _read(path: Path) -> str:
    try:
        return path.read_bytes()[: 2 * UID_LIMIT].decode("utf-8", "replace")
    except (FileNotFoundError, NotADirectoryError):
        return ""
