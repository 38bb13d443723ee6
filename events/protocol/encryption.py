"""How packets between two members travel: plain or encrypted, and by which key a member is known.

What the log says of it means the same to the controllers and to every agent, so its meaning stands here. A pair
of nodes goes from one stage to the next only when every member has applied the one before; two neighbours in
this list understand each other, so no packet is lost on the way:

=============  ===================  ==========================
stage          sends                takes
=============  ===================  ==========================
``plain``      in the clear         what came in the clear
``accepting``  in the clear         both
``sending``    encrypted            both
``required``   encrypted            what came encrypted
=============  ===================  ==========================
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from typing import Self, get_args

import msgspec

from events.types import ClusterEncryptionChanged, EncryptionScope, EncryptionStage, NodeKeyChanged

STAGES: tuple[EncryptionStage, ...] = get_args(EncryptionStage)
SCOPES: tuple[EncryptionScope, ...] = get_args(EncryptionScope)
KEY_BYTES = 32
WIREGUARD_PORT, WIREGUARD_PORTS = 51820, 4
"""First UDP port of WireGuard unless a node says another one, and how many a node has: see
:mod:`nodeagent.wireguard.pairs`."""
WIREGUARD_PORT_MAX = 65535 - WIREGUARD_PORTS + 1


class Encryption(msgspec.Struct, frozen=True, gc=False):
    """What the cluster is to encrypt (``scope``), and how far it is for either kind of pairs.

    ``since`` is the sequence of the event that said so; 0: none has, and everything is plain.
    """

    scope: EncryptionScope = "off"
    within_sites: EncryptionStage = "plain"
    between_sites: EncryptionStage = "plain"
    since: int = 0

    @classmethod
    def of(cls, event: ClusterEncryptionChanged, sequence: int) -> Self:
        """What that event, stored there, says."""
        return cls(event.scope, event.within_sites, event.between_sites, sequence)

    def stage(self, site: str, other: str) -> EncryptionStage:
        """The stage of a pair of nodes at these sites; nodes without a site are at one."""
        return self.within_sites if site == other else self.between_sites

    @property
    def off(self) -> bool:
        """Whether nothing is encrypted, nor is to be."""
        return self.scope == "off" and self.within_sites == self.between_sites == "plain"

    @property
    def settled(self) -> bool:
        """Whether both kinds of pairs are where the scope wants them."""
        return (self.within_sites, self.between_sites) == self.wanted

    @property
    def wanted(self) -> tuple[EncryptionStage, EncryptionStage]:
        """Where pairs within sites and between sites are to end up."""
        within: EncryptionStage = "required" if self.scope == "all" else "plain"
        return within, "plain" if self.scope == "off" else "required"

    def next(self) -> tuple[EncryptionStage, EncryptionStage]:
        """Both stages one step nearer to where the scope wants them."""
        within, between = self.wanted
        return _towards(self.within_sites, within), _towards(self.between_sites, between)


NO_ENCRYPTION = Encryption()
"""A cluster whose log says nothing of it."""


def _towards(stage: EncryptionStage, wanted: EncryptionStage) -> EncryptionStage:
    here, there = STAGES.index(stage), STAGES.index(wanted)
    return STAGES[here + (there > here) - (there < here)]


class NodeKey(msgspec.Struct, frozen=True, gc=False):
    """A member's public key (X25519, base64), and the UDP port of its WireGuard; 0: it cannot encrypt."""

    key: str
    port: int
    since: int
    beside: str = ""
    """The key before it, which is still valid; empty: there is none."""
    slot: int = 0
    """0 or 1; that of ``beside`` is the other one."""

    @classmethod
    def of(cls, event: NodeKeyChanged, sequence: int) -> Self:
        """The key that the event brings."""
        return cls(event.key, event.port, sequence, event.beside, event.slot)

    @property
    def valid(self) -> tuple[str, ...]:
        """All keys by which the member is known, the newest first."""
        return (self.key, self.beside) if self.beside else (self.key,)


def key_problem(text: str) -> str:
    """What is wrong with a public key in base64; empty when nothing is."""
    try:
        raw = b64decode(text, validate=True) if len(text) == 44 else b""
    except (Base64Error, ValueError):
        raw = b""
    if len(raw) != KEY_BYTES or b64encode(raw).decode() != text:
        return "is no X25519 public key (32 bytes in base64)"
    return "is all zeros" if not any(raw) else ""
