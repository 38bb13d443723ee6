"""Asks every 50 ms who has an address, and writes each answer as a line of JSON, [when, MAC], until SIGTERM.

    python -m deploy.lab.arp DEVICE ADDRESS

Runs in a namespace on the same link as the gateways: what it hears is what any machine there hears.
"""

from __future__ import annotations

import json
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterable
from ipaddress import IPv4Address

from nodeagent.gateway.link import ETHERTYPE_ARP, frame

PAUSE_S = 0.05


def both_answered_s(answers: Iterable[tuple[float, str]]) -> float:
    """How long two machines answered for one address: from the newer one's first to the older one's last."""
    by_mac: dict[str, list[float]] = {}
    for moment, mac in answers:
        by_mac.setdefault(mac, []).append(moment)
    if len(by_mac) < 2:
        return 0.0
    old, new = sorted(by_mac.values(), key=min)[:2]
    return max(0.0, max(old) - min(new))


def main(device: str, address: str) -> None:
    """Ask with a sender address of zeros (RFC 5227), so that nobody takes it for a claim."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    wanted = IPv4Address(address).packed
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE_ARP)) as wire:
        wire.bind((device, ETHERTYPE_ARP))
        mac: bytes = wire.getsockname()[4]
        while True:
            wire.send(frame(mac, 1, b"\0" * 4, b"\0" * 6, wanted))
            until = time.monotonic() + PAUSE_S
            while (left := until - time.monotonic()) > 0:
                if not select.select([wire], [], [], left)[0]:
                    break
                heard = wire.recv(128)
                (operation,) = struct.unpack("!H", heard[20:22])
                if operation == 2 and heard[28:32] == wanted and heard[0:6] == mac:
                    sys.stdout.write(json.dumps([time.time(), heard[22:28].hex(":")]) + "\n")
                    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
