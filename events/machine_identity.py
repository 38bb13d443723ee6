"""One identity for a machine, derived the same way by its agent and by whoever imports it.

A machine is named by its machine id (``/etc/machine-id``, which Kubernetes shows as
``status.nodeInfo.machineID``), else by its firmware's UUID (``status.nodeInfo.systemUUID``). A reinstalled
machine has another machine id, and so another uid. What names no machine, for example because it is an
image's placeholder, gives no uid: then a random one is made (:func:`events.ids.new_id`).
"""

from __future__ import annotations

import re
from pathlib import Path

MACHINE_ID_FILES = ("etc/machine-id", "var/lib/dbus/machine-id")
"""Where the kubelet reads ``machineID``, in its order, below ``/``."""

SYSTEM_UUID_FILE = "sys/class/dmi/id/product_uuid"
READ_LIMIT = 256

_HEX = re.compile(r"[0-9a-f]{32}")
_PLACEHOLDERS = frozenset({"0" * 32, "f" * 32, "03000200040005000006000700080009"})
"""Ids that many machines share: zeros, ones, and the number that firmware vendors forget to replace."""


def machine_uid(machine_id: object, system_uuid: object = "") -> str:
    """The uid of the machine with that id, else with that firmware UUID; empty when neither names one.

    Pure, and total: anything that is no such text names nothing. The uid is the id itself, 32 hexadecimal
    digits in lower case, so that people recognise it.
    """
    for value in (machine_id, system_uuid):
        text = value.strip().lower().replace("-", "") if isinstance(value, str) else ""
        if _HEX.fullmatch(text) and text not in _PLACEHOLDERS:
            return text
    return ""


def read_machine_uid(root: Path = Path("/")) -> str:
    """The uid of this machine; empty when nothing names it. What cannot be read names nothing."""
    machine_id = next((found for name in MACHINE_ID_FILES if (found := machine_uid(_text(root / name)))), "")
    return machine_id or machine_uid("", _text(root / SYSTEM_UUID_FILE))


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(READ_LIMIT).decode("ascii", "replace")
    except OSError:
        return ""
