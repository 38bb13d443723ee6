"""Asks every 50 ms who has an address, and writes each answer as a line of JSON, [when, MAC], until SIGTERM.

    python -m deploy.lab.traffic.arp DEVICE ADDRESS

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
from itertools import pairwise

from nodeagent.gateway.link import ETHERTYPE_ARP, frame

PAUSE_S = 0.05
APART_S = 1.0
"""An announcement is due every second: answers of both that are rarer are not one dispute."""


def both_answered_s(answers: Iterable[tuple[float, str]]) -> float:
    """The longest time during which two machines kept answering for one address, seconds.

    Both answered at a moment when two answers within one question's time came from different machines;
    such moments belong together when they are less than :data:`APART_S` apart.
    """
    longest, began, last = 0.0, 0.0, float("-inf")
    for (before, one), (after, other) in pairwise(sorted(answers)):
        if one == other or after - before > PAUSE_S:
            continue
        if after - last > APART_S:
            began = before
        last = after
        longest = max(longest, last - began)
    return longest


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
