"""Whether packets of a size reach a host: a UDP datagram to a closed port, forbidden to be fragmented.

The answer is the host's own "port unreachable". That needs neither raw sockets nor anything listening on
the other side. ICMP is rate-limited by hosts, so silence is only believed after several tries.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Literal

PROBE_PORT = 33434  # traceroute's first port: closed on any sane host
HEADERS = 28  # IPv4 20 + UDP 8
TRIES = 3
WAIT_S = 0.7

_IP_MTU_DISCOVER, _IP_PMTUDISC_PROBE = 10, 3


Reach = Literal["full", "small", "none"]


async def probe_path(address: str, size: int) -> Reach:
    """``full``: packets of ``size`` bytes (with IP header) arrive; ``small``: only small ones do."""
    if await answers(address, size):
        return "full"
    return "small" if await answers(address, 100) else "none"


async def answers(address: str, size: int) -> bool:
    """Whether the host answers a packet of ``size`` bytes that must not be fragmented."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_PROBE)
        sock.connect((address, PROBE_PORT))
        for _ in range(TRIES):
            try:
                sock.send(bytes(max(0, size - HEADERS)))
                async with asyncio.timeout(WAIT_S):
                    await loop.sock_recv(sock, 1)
            except ConnectionRefusedError:
                return True
            except TimeoutError:
                continue
            except OSError as error:
                if error.errno == errno.EMSGSIZE:
                    return False
                continue
    return False
