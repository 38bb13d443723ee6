"""Which WireGuard device a node can have: the kernel's, a program's, or none, and why."""

from __future__ import annotations

from nodeagent.config import WireGuardMode
from nodeagent.wireguard import kernel, link, userspace

Kind = type[kernel.KernelDevice] | type[userspace.UserspaceDevice]


def choose(mode: WireGuardMode) -> tuple[Kind | None, str]:
    """The kind of devices to use, or why there is none. ``auto`` prefers the kernel's."""
    if mode == "off":
        return None, "it is switched off (--wireguard off)"
    reasons = []
    if mode in {"auto", "kernel"}:
        reasons.append(kernel.missing())
        if not reasons[-1]:
            return kernel.KernelDevice, ""
    if mode in {"auto", "userspace"}:
        reasons.append(userspace.missing())
        if not reasons[-1]:
            return userspace.UserspaceDevice, ""
    return None, "; ".join(reasons)


def remove(name: str) -> bool:
    """Take away a device of that name, whichever made it; whether there was one. Raises OSError."""
    there = bool(link.index_of(name))
    userspace.UserspaceDevice(name).remove()
    if there:
        kernel.KernelDevice(name).remove()
    return there
