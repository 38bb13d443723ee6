"""What the host needs of the WireGuard device beside its keys and peers: MTU, address, and being up."""

from __future__ import annotations

import contextlib
import errno
import socket

import msgspec
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from nodeagent.dataplane.host_settings import read_sysctl, set_sysctl
from nodeagent.netlink.constants import IFF_UP

HOST_BITS = 32


class Wanted(msgspec.Struct, frozen=True):
    """``address`` is the node's VTEP address: its own packets and masqueraded ones carry it, and no other."""

    mtu: int
    address: str
    tunnel: str = ""
    """The tunnel device: while the other way changes, packets come by one and leave by the other."""
    underlay: str = ""
    """The address that encrypted packets leave from; empty: it is not known."""


def index_of(name: str) -> int:
    """The device's index; 0 when there is none."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return 0


def settle(name: str, wanted: Wanted) -> tuple[int, bool]:
    """Bring the device into that state: its index, and whether anything was done. Raises OSError."""
    done = False
    try:
        with IPRoute() as route:
            (link,) = route.link("get", ifname=name)
            index = int(link["index"])
            no_ipv6 = f"net/ipv6/conf/{name}/disable_ipv6"
            if read_sysctl(no_ipv6) == "0":
                with contextlib.suppress(OSError):  # /proc/sys is read-only in a container
                    done |= set_sysctl(no_ipv6, "1")
            for device in filter(None, (name, wanted.tunnel)):
                strict = "1" in {read_sysctl(f"net/ipv4/conf/{one}/rp_filter") for one in ("all", device)}
                with contextlib.suppress(OSError):  # our own filter judges sources
                    done |= strict and set_sysctl(f"net/ipv4/conf/{device}/rp_filter", "2")
            there = {
                (message.get_attr("IFA_LOCAL"), message["prefixlen"])
                for message in route.get_addr(family=socket.AF_INET, index=index)
            }
            for address, length in there - {(wanted.address, HOST_BITS)}:
                route.addr("del", index=index, address=address, prefixlen=length)
                done = True
            if (wanted.address, HOST_BITS) not in there:
                route.addr("add", index=index, address=wanted.address, prefixlen=HOST_BITS)
                done = True
            if link.get_attr("IFLA_MTU") != wanted.mtu:
                route.link("set", index=index, mtu=wanted.mtu)
                done = True
            if not link["flags"] & IFF_UP:
                route.link("set", index=index, state="up")
                done = True
    except NetlinkError as error:
        raise OSError(error.code, str(error)) from error
    except ValueError as error:
        raise OSError(errno.ENODEV, f"there is no device {name}") from error
    return index, done
