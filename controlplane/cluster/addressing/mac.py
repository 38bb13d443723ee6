"""The MAC address of a node's VTEP: derived from its uid, so that a restart or a new kernel device keeps it.

Calico's construction (``0x66`` and five bytes of a hash; locally administered, unicast). 40 bits are
few enough that two of 100,000 nodes may meet; the controller then takes the next of the uid's
series, which is why the address is part of the event and nobody else derives it.

Every join derives one, so the text comes straight from the hash: netaddr's ``EUI`` gives the same text, and
would make a decided join about a third slower.
"""

from __future__ import annotations

from hashlib import sha256


def vtep_mac(uid: str, attempt: int = 0) -> str:
    """``66:xx:xx:xx:xx:xx`` for the uid; ``attempt`` counts the collisions met so far."""
    seed = uid if attempt == 0 else f"{uid}#{attempt}"
    return f"66:{sha256(seed.encode()).digest()[:5].hex(':')}"
