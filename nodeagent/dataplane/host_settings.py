"""Settings of the host that the tunnel needs: forwarding, offloads, device sysctls.

Each function is idempotent and says what it changed. It needs CAP_NET_ADMIN only: the kernel allows its
holder to write ``/proc/sys/net`` of the namespace.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from nodeagent.netlink.constants import ADDRESSES_BY_HAND

_SIOCETHTOOL = 0x8946
_ETHTOOL_GTXCSUM, _ETHTOOL_STXCSUM = 0x16, 0x17
_ETHTOOL_GGRO, _ETHTOOL_SGRO = 0x2B, 0x2C
_ETHTOOL_GSSET_INFO, _ETHTOOL_GSTRINGS, _ETHTOOL_GFEATURES = 0x37, 0x1B, 0x3A
_FEATURE_NAMES, _NAME_BYTES, _NAMES_MAX = 4, 32, 1024
_IFREQ = struct.Struct("16sP16x")
_VALUE = struct.Struct("=II")

CHECKSUM_FIXED_IN = (5, 7)
"""Kernels before it compute a wrong outer checksum for some NICs (kernel commit ea64d8d6c675)."""


def kernel_version(release: str = "") -> tuple[int, int]:
    """Major and minor of a kernel release (the running one by default)."""
    parts = (release or os.uname().release).split(".")
    digits = [int("".join(c for c in part if c.isdigit()) or 0) for part in parts[:2]]
    return digits[0], digits[1] if len(digits) > 1 else 0


def needs_software_checksum(*, behind_nat: bool, release: str = "") -> bool:
    """Whether TX checksum offload of the tunnel must be off: old kernels, and NAT on the way."""
    return behind_nat or kernel_version(release) < CHECKSUM_FIXED_IN


def set_tx_checksum(device: str, *, on: bool) -> bool:
    """Switch TX checksum offload; True if it was different. Raises OSError."""
    return _offload(device, _ETHTOOL_GTXCSUM, _ETHTOOL_STXCSUM, on)


def set_gro(device: str, *, on: bool) -> bool:
    """Switch generic receive offload; True if it was different. Raises OSError."""
    return _offload(device, _ETHTOOL_GGRO, _ETHTOOL_SGRO, on)


def _offload(device: str, read: int, write: int, wanted: bool) -> bool:
    value = ctypes.create_string_buffer(_VALUE.pack(read, 0))
    ethtool(device, value)
    if bool(_VALUE.unpack(value.raw[: _VALUE.size])[1]) == wanted:
        return False
    value.raw = _VALUE.pack(write, int(wanted)) + value.raw[_VALUE.size :]
    ethtool(device, value)
    return True


def feature(device: str, name: str) -> tuple[bool, bool]:
    """Whether a feature of ``ethtool -k`` is on, and whether it can be switched; (False, False): unknown there.

    Raises OSError.
    """
    asked = ctypes.create_string_buffer(struct.pack("=IIQI", _ETHTOOL_GSSET_INFO, 0, 1 << _FEATURE_NAMES, 0))
    ethtool(device, asked)
    (count,) = struct.unpack_from("=I", asked.raw, 16)
    count = min(count, _NAMES_MAX)
    head = struct.pack("=III", _ETHTOOL_GSTRINGS, _FEATURE_NAMES, count)
    names = ctypes.create_string_buffer(head + bytes(count * _NAME_BYTES))
    ethtool(device, names)
    known = [
        names.raw[at : at + _NAME_BYTES].partition(b"\0")[0].decode()
        for at in range(len(head), len(head) + count * _NAME_BYTES, _NAME_BYTES)
    ]
    if name not in known:
        return False, False
    words = (count + 31) // 32
    values = ctypes.create_string_buffer(struct.pack("=II", _ETHTOOL_GFEATURES, words) + bytes(words * 16))
    ethtool(device, values)
    place = known.index(name)
    available, _, active, fixed = struct.unpack_from("=4I", values.raw, 8 + place // 32 * 16)
    bit = 1 << place % 32
    return bool(active & bit), bool(available & ~fixed & bit)


def ethtool(device: str, record: ctypes.Array[ctypes.c_char]) -> None:
    """Put a question to the device's driver, which answers in the same ``record``. Raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCETHTOOL, _IFREQ.pack(device.encode(), ctypes.addressof(record)))


def read_sysctl(name: str) -> str | None:
    """A setting such as ``net/ipv4/ip_forward``; None when the kernel has none of that name."""
    try:
        return (Path("/proc/sys") / name).read_text().strip()
    except OSError:
        return None


def set_sysctl(name: str, value: str) -> bool:
    """Write a setting if it differs; True if it did. Raises OSError."""
    if read_sysctl(name) == value:
        return False
    (Path("/proc/sys") / name).write_text(value)
    return True


def answer_for_others(bridge: str) -> bool:
    """Pods of a bridge take the whole range for their link: the host answers for those that are not on it.

    False where there is no such bridge, or nothing to do. Raises OSError.
    """
    name = f"net/ipv4/conf/{bridge}/proxy_arp"
    return read_sysctl(name) is not None and set_sysctl(name, "1")


def switch_ipv6_off(device: str) -> bool:
    """Nothing of IPv6 is sent by itself on our device; False where there is nothing to do. Raises OSError."""
    name = f"net/ipv6/conf/{device}/disable_ipv6"
    if read_sysctl(name) in {None, "1"}:
        return False
    try:
        return set_sysctl(name, "1")
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        return _without_ipv6_addresses(device)


def _without_ipv6_addresses(device: str) -> bool:
    """Let it make no address by itself, and take away what it made. In a container ``/proc/sys`` is read-only;
    this needs CAP_NET_ADMIN and nothing else."""
    try:
        with IPRoute() as route:
            index = socket.if_nametoindex(device)
            family = route.get_links(index)[0].get_attr("IFLA_AF_SPEC").get_attr("AF_INET6")
            if family is None or family.get_attr("IFLA_INET6_ADDR_GEN_MODE") == ADDRESSES_BY_HAND:
                return False
            mode = {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", ADDRESSES_BY_HAND)]}
            route.link("set", index=index, IFLA_AF_SPEC={"attrs": [("AF_INET6", mode)]})
            route.flush_addr(index=index, family=socket.AF_INET6)
    except NetlinkError as error:
        raise OSError(error.code, str(error)) from error
    return True


def loosen_reverse_path(device: str) -> bool:
    """Let packets of a pod come in by a device although the way back to it is another one (rp_filter 1 → 2).

    True if something was changed. Raises OSError.
    """
    strict = {read_sysctl(f"net/ipv4/conf/{name}/rp_filter") for name in ("all", device)}
    if "1" not in strict or "2" in strict:
        return False
    return set_sysctl(f"net/ipv4/conf/{device}/rp_filter", "2")


def prepare_host(device: str, *, behind_nat: bool, gro: bool) -> tuple[list[str], list[str]]:
    """Everything that the tunnel device and the host need; what was done, and what could not be done."""
    done: list[str] = []
    failed: list[str] = []

    def attempt(what: str, action: Callable[[], bool]) -> None:
        try:
            if action():
                done.append(what)
        except OSError as error:
            failed.append(f"{what}: {error.strerror or error}")

    attempt("forwarding on", lambda: set_sysctl("net/ipv4/ip_forward", "1"))
    attempt("IPv6 off on the tunnel", lambda: switch_ipv6_off(device))
    if needs_software_checksum(behind_nat=behind_nat):
        attempt("TX checksum offload off", lambda: set_tx_checksum(device, on=False))
    with contextlib.suppress(OSError):  # a kernel without it has nothing to switch
        if set_gro(device, on=gro):
            done.append(f"GRO {'on' if gro else 'off'}")
    return done, failed
