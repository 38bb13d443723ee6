"""Asking every peer through the tunnel whether it answers: one ICMP echo to each VTEP address, twice at most.

The packet leaves with the node's own VTEP address through its own rows and is answered by the peer's kernel
through the peer's, so an answer means that both directions of that pair of tunnels work.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Collection, Iterable, Sequence

from nodeagent.health.packets import icmp

ROUND_S = 2.0
"""How long answers of one round are waited for."""
BURST = 64
"""Requests sent before the loop gives way: no burst of thousands from one node."""
_HEADER = struct.Struct("!BBHHH")


def echo(identifier: int, sequence: int) -> bytes:
    """An ICMP echo request."""
    return icmp(8, identifier, sequence)


def answered(packet: bytes, identifier: int) -> bool:
    """Whether an IPv4 packet is an echo reply to one of ours."""
    start = (packet[0] & 0x0F) * 4 if packet else 0
    if len(packet) < start + 8:
        return False
    kind, code, _, found, _ = _HEADER.unpack_from(packet, start)
    return (kind, code, found) == (0, 0, identifier)


async def silent(own: str, peers: Sequence[str], *, rounds: int = 2) -> list[str]:
    """Those of the peers' VTEP addresses that did not answer ``own``, after at most ``rounds`` rounds.

    Raises OSError when this machine may not open a raw socket or lacks the address. Cancelled, it leaves
    nothing behind.
    """
    missing = list(dict.fromkeys(peers))
    identifier = os.getpid() & 0xFFFF
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        raw.setblocking(False)
        raw.bind((own, 0))
        for number in range(rounds):
            if not missing:
                break
            heard: set[str] = set()
            listening = asyncio.create_task(_listen(raw, identifier, set(missing), heard))
            try:
                await _send(raw, echo(identifier, number), missing)
                async with asyncio.timeout(ROUND_S):
                    await asyncio.shield(listening)
            except TimeoutError:
                pass
            finally:
                listening.cancel()
                await asyncio.wait({listening})
            missing = [address for address in missing if address not in heard]
    return missing


async def _listen(raw: socket.socket, identifier: int, wanted: Collection[str], heard: set[str]) -> None:
    loop = asyncio.get_running_loop()
    while not heard >= set(wanted):
        packet, (source, _) = await loop.sock_recvfrom(raw, 2048)
        if source in wanted and answered(packet, identifier):
            heard.add(source)


async def _send(raw: socket.socket, packet: bytes, addresses: Iterable[str]) -> None:
    loop = asyncio.get_running_loop()
    for number, address in enumerate(addresses, 1):
        try:
            await loop.sock_sendto(raw, packet, (address, 0))
        except OSError:
            continue  # unreachable is silent, and is said so
        if number % BURST == 0:
            await asyncio.sleep(0)
