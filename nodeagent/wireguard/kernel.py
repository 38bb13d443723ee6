"""A WireGuard device of the kernel's module, by generic netlink."""

from __future__ import annotations

import errno
import socket
import struct
from base64 import b64decode, b64encode
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pyroute2 import IPRoute, WireGuard
from pyroute2.netlink import NLM_F_ACK, NLM_F_REQUEST
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic.wireguard import (
    WG_CMD_SET_DEVICE,
    WG_GENL_VERSION,
    WGPEER_F_REMOVE_ME,
    WGPEER_F_REPLACE_ALLOWEDIPS,
    wgmsg,
)

from nodeagent.netlink.constants import NLMSG_ERROR
from nodeagent.wireguard.device import DeviceState, PeerSettings, PeerState

_NETLINK_GENERIC, _CONTROLLER, _GET_FAMILY, _FAMILY_NAME = 16, 16, 3, 2
ANSWER_S = 5.0
WGPEER_F_UPDATE_ONLY = 4
"""Of linux/wireguard.h: change a peer that is there, and make none."""
PEERS_AT_ONCE = 200
"""Peers in one message: about 25 KiB."""


@contextmanager
def _module() -> Iterator[Any]:
    """A socket. What the kernel refuses is an OSError; ENOENT: it has no WireGuard."""
    try:
        with WireGuard() as opened:
            yield opened
    except NetlinkError as error:
        raise OSError(error.code, str(error)) from error


def missing() -> str:
    """Why no such device can be made here; empty when one can. Asking lets the kernel load its module."""
    name = b"wireguard\0\0\0"
    attribute = struct.pack("=HH", 4 + len("wireguard") + 1, _FAMILY_NAME) + name
    body = struct.pack("=BBH", _GET_FAMILY, 1, 0) + attribute
    try:
        # By a socket of our own: pyroute2 leaves some open when there is no such family.
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_GENERIC) as asking:
            asking.settimeout(ANSWER_S)
            asking.bind((0, 0))
            asking.send(struct.pack("=IHHII", 16 + len(body), _CONTROLLER, NLM_F_REQUEST, 1, 0) + body)
            answer = asking.recv(65536)
    except OSError as error:
        return f"the kernel's WireGuard does not answer: {error.strerror or error}"
    kind = struct.unpack_from("=H", answer, 4)[0] if len(answer) >= 20 else NLMSG_ERROR
    return "the kernel has no WireGuard: modprobe wireguard" if kind == NLMSG_ERROR else ""


class KernelDevice:
    """See :class:`~nodeagent.wireguard.device.WireGuardDevice`."""

    kind = "kernel"

    def __init__(self, name: str) -> None:
        self.name = name

    def create(self) -> None:
        """Add the link. Raises OSError."""
        try:
            with IPRoute() as route:
                route.link("add", ifname=self.name, kind="wireguard")
        except NetlinkError as error:
            raise OSError(error.code, str(error)) from error

    def read(self) -> DeviceState:
        """What it has now: a device with many peers comes in several messages."""
        own, port = "", 0
        peers: dict[str, PeerState] = {}
        with _module() as module:
            for message in module.info(self.name):
                own = _text(message.get_attr("WGDEVICE_A_PUBLIC_KEY")) or own
                port = message.get_attr("WGDEVICE_A_LISTEN_PORT") or port
                for peer in message.get_attr("WGDEVICE_A_PEERS") or ():
                    key = _text(peer.get_attr("WGPEER_A_PUBLIC_KEY"))
                    ranges = [one["addr"] for one in peer.get_attr("WGPEER_A_ALLOWEDIPS") or ()]
                    before = peers.get(key)
                    if before is not None:  # its ranges went on in this message
                        ranges += before.settings.allowed
                    end = peer.get_attr("WGPEER_A_ENDPOINT")
                    endpoint = (end["addr"], end["port"]) if end else ("", 0)
                    shaken = peer.get_attr("WGPEER_A_LAST_HANDSHAKE_TIME")
                    alive_s = peer.get_attr("WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL") or 0
                    peers[key] = PeerState(
                        PeerSettings(endpoint, tuple(sorted(ranges)), alive_s),
                        float(shaken["tv_sec"]) if shaken else 0.0,
                        peer.get_attr("WGPEER_A_RX_BYTES") or 0,
                        peer.get_attr("WGPEER_A_TX_BYTES") or 0,
                    )
        return DeviceState(own, port, peers)

    def configure(self, private_key: bytes, port: int) -> None:
        """Give it its own key and port."""
        self._set(("WGDEVICE_A_PRIVATE_KEY", b64encode(private_key).decode()), ("WGDEVICE_A_LISTEN_PORT", port))

    def change(
        self, put: Mapping[str, PeerSettings], drop: Iterable[str], *, losing: Collection[str] | None = None
    ) -> None:
        """Make these peers be so, and those be gone, many in one message."""
        peers = [
            {"attrs": [("WGPEER_A_PUBLIC_KEY", key), ("WGPEER_A_FLAGS", WGPEER_F_REMOVE_ME)]} for key in drop
        ]
        peers += [
            peer_attributes(key, settings, replace=losing is None or key in losing)
            for key, settings in put.items()
        ]
        for start in range(0, len(peers), PEERS_AT_ONCE):
            self._set(("WGDEVICE_A_PEERS", peers[start : start + PEERS_AT_ONCE]))

    def nudge(self, peers: Mapping[str, int]) -> None:
        """Switched on again, a keepalive is sent at once; the ranges stay untouched."""
        for often_s in (dict.fromkeys(peers, 0), peers):
            changes = [
                {
                    "attrs": [
                        ("WGPEER_A_PUBLIC_KEY", key),
                        ("WGPEER_A_FLAGS", WGPEER_F_UPDATE_ONLY),
                        ("WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL", seconds),
                    ]
                }
                for key, seconds in often_s.items()
            ]
            for start in range(0, len(changes), PEERS_AT_ONCE):
                self._set(("WGDEVICE_A_PEERS", changes[start : start + PEERS_AT_ONCE]))

    def leave_address(self) -> None:
        """The kernel looks itself whether the address that it sends from is still there."""

    def remove(self) -> None:
        """Delete the link. Raises OSError."""
        try:
            with IPRoute() as route:
                route.link("del", ifname=self.name)
        except NetlinkError as error:
            if error.code != errno.ENODEV:
                raise OSError(error.code, str(error)) from error

    def _set(self, *attributes: tuple[str, Any]) -> None:
        with _module() as module:
            module.nlm_request(
                set_message(self.name, *attributes), msg_type=module.prid, msg_flags=NLM_F_REQUEST | NLM_F_ACK
            )


def set_message(name: str, *attributes: tuple[str, Any]) -> Any:
    """WG_CMD_SET_DEVICE with these attributes, not yet encoded."""
    message = wgmsg()
    message["cmd"], message["version"] = WG_CMD_SET_DEVICE, WG_GENL_VERSION
    message["attrs"] = [("WGDEVICE_A_IFNAME", name), *attributes]
    return message


def peer_attributes(key: str, settings: PeerSettings, *, replace: bool = True) -> dict[str, Any]:
    """A peer as the module takes it, with all of its ranges; without ``replace`` it keeps others, too."""
    address, port = settings.endpoint
    ranges = []
    for cidr in settings.allowed:
        first, _, length = cidr.partition("/")
        ranges.append(
            {
                "attrs": [
                    ("WGALLOWEDIP_A_FAMILY", socket.AF_INET),
                    ("WGALLOWEDIP_A_IPADDR", socket.inet_aton(first)),
                    ("WGALLOWEDIP_A_CIDR_MASK", int(length)),
                ]
            }
        )
    return {
        "attrs": [
            ("WGPEER_A_PUBLIC_KEY", key),
            *([("WGPEER_A_FLAGS", WGPEER_F_REPLACE_ALLOWEDIPS)] if replace else ()),
            *([("WGPEER_A_ENDPOINT", {"addr": address, "port": port})] if port else ()),
            ("WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL", settings.keepalive_s),
            ("WGPEER_A_ALLOWEDIPS", ranges),
        ]
    }


def _text(raw: bytes | str | None) -> str:
    """A key as base64; empty for none, which the module writes as zeros."""
    text = raw.decode() if isinstance(raw, bytes) else raw or ""
    return text if text and any(b64decode(text)) else ""
