"""Least privilege: of all capabilities the agent keeps CAP_NET_ADMIN, for itself and for ``nft``.

A gateway keeps CAP_NET_RAW too, for itself only; a node that is taken over, or whose agent enters others'
filters, keeps it, where it has it, for ``iptables-legacy``, by which their rules may have been written.

See capabilities(7). The bounding set is reduced too, so that not even a set-uid program started from
here gets more. A uid of 0 remains where it was one (it owns the files), but without its powers.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from pathlib import Path

from events.errors import Refused

CAP_NET_ADMIN = 12
CAP_NET_RAW = 13
CAP_SETPCAP = 8

_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 47, 2
_VERSION_3 = 0x20080522


def effective() -> int:
    """The effective capabilities of this process as a bit set."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def keep_only_net_admin(*, raw: bool = False, legacy: bool = False) -> None:
    """Drop every capability but CAP_NET_ADMIN (and CAP_NET_RAW with ``raw``), for ever.

    ``legacy``: CAP_NET_RAW is kept for programs that are started, too, if it is there.

    Raises Refused(not_permitted) if one that is needed is missing.
    """
    have = effective()
    legacy = legacy and bool(have >> CAP_NET_RAW & 1)
    needed = {CAP_NET_ADMIN, CAP_NET_RAW} if raw or legacy else {CAP_NET_ADMIN}
    if not have >> CAP_NET_ADMIN & 1:
        raise Refused(
            "not_permitted",
            f"the agent programs the kernel's network tables and needs CAP_NET_ADMIN, which uid {os.getuid()} "
            f"does not have: run it as root, as the shipped systemd unit, or with `setcap cap_net_admin+ep`",
            capability="CAP_NET_ADMIN",
        )
    if raw and not have >> CAP_NET_RAW & 1:
        raise Refused(
            "not_permitted",
            "a gateway announces addresses by ARP and needs CAP_NET_RAW besides CAP_NET_ADMIN: add it to the "
            "unit (AmbientCapabilities, CapabilityBoundingSet), or run without --gateway",
            capability="CAP_NET_RAW",
        )
    libc = ctypes.CDLL(None, use_errno=True)
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    if have >> CAP_SETPCAP & 1:
        for number in range(last + 1):
            if number not in needed:
                _prctl(libc, _PR_CAPBSET_DROP, number)
    keep = sum(1 << number for number in needed)
    header = struct.pack("=Ii", _VERSION_3, 0)
    data = struct.pack(
        "=IIIIII", keep, keep, keep, 0, 0, 0
    )  # effective, permitted, inheritable; then the high half
    if libc.capset(header, data) != 0:
        raise Refused("not_permitted", f"capset: {os.strerror(ctypes.get_errno())}")
    _prctl(libc, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, CAP_NET_ADMIN)
    if legacy:
        _prctl(libc, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, CAP_NET_RAW)
    _prctl(libc, _PR_SET_NO_NEW_PRIVS, 1)


def _prctl(libc: ctypes.CDLL, option: int, *arguments: int) -> None:
    padded = [ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:4]]
    if libc.prctl(option, *padded) != 0 and ctypes.get_errno() != errno.EINVAL:
        raise Refused("not_permitted", f"prctl({option}): {os.strerror(ctypes.get_errno())}")
