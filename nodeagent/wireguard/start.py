"""Which WireGuard device a node can have: the kernel's, a program's, or none, and why."""

from __future__ import annotations

from nodeagent.config import WireGuardMode
from nodeagent.wireguard import kernel, link, userspace
from nodeagent.wireguard.device import WireGuardDevice


def choose(mode: WireGuardMode, name: str) -> tuple[WireGuardDevice | None, str]:
    """The device to use, or why there is none. ``auto`` prefers the kernel's."""
    if mode == "off":
        return None, "it is switched off (--wireguard off)"
    reasons = []
    if mode in {"auto", "kernel"}:
        reasons.append(kernel.missing())
        if not reasons[-1]:
            return kernel.KernelDevice(name), ""
    if mode in {"auto", "userspace"}:
        reasons.append(userspace.missing())
        if not reasons[-1]:
            return userspace.UserspaceDevice(name), ""
    return None, "; ".join(reasons)


def remove(name: str) -> bool:
    """Take away a device of that name, whichever made it; whether there was one. Raises OSError."""
    there = bool(link.index_of(name))
    userspace.UserspaceDevice(name).remove()
    if there:
        kernel.KernelDevice(name).remove()
    return there
