"""Asks every 50 ms who has an address, and writes each answer: time and MAC as JSON lines, until SIGTERM.

python arp.py DEVICE ADDRESS
"""

from __future__ import annotations

import json
import select
import signal
import socket
import struct
import sys
import time
from ipaddress import IPv4Address

from nodeagent.gateway.link import _ARP, _frame


def main(device: str, address: str) -> None:
    """Ask with a sender address of zeros (RFC 5227), so that nobody takes it for a claim."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    wanted = IPv4Address(address).packed
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ARP)) as wire:
        wire.bind((device, _ARP))
        mac: bytes = wire.getsockname()[4]
        while True:
            wire.send(_frame(mac, 1, b"\0" * 4, b"\0" * 6, wanted))
            until = time.monotonic() + 0.05
            while (left := until - time.monotonic()) > 0:
                if not select.select([wire], [], [], left)[0]:
                    break
                frame = wire.recv(128)
                (operation,) = struct.unpack("!H", frame[20:22])
                if operation == 2 and frame[28:32] == wanted and frame[0:6] == mac:
                    print(json.dumps([time.time(), frame[22:28].hex(":")]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
