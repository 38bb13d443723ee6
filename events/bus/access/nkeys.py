"""NATS keys: Ed25519 key pairs written as text, and the signatures that prove who holds them.

A public key is base32 of one prefix byte (whose first letter tells the kind: O operator, A account,
U user), the 32 bytes of the key and a CRC-16; a seed has two prefix bytes and starts with ``S``
(github.com/nats-io/nkeys). Private keys live in ``bytes`` of this process only: nothing here logs,
formats or stores one; ``repr`` shows the public half.
"""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Literal

from events.errors import Refused

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

Kind = Literal["operator", "account", "user"]

_PREFIX: dict[Kind, int] = {"operator": 14 << 3, "account": 0, "user": 20 << 3}
_KIND = {prefix: kind for kind, prefix in _PREFIX.items()}
_SEED_PREFIX = 18 << 3
_KEY_BYTES = 32


def _seal(raw: bytes) -> str:
    # CRC-16/XMODEM, little endian, as the nkeys format demands.
    return base64.b32encode(raw + binascii.crc_hqx(raw, 0).to_bytes(2, "little")).rstrip(b"=").decode()


def _open(text: str, what: str) -> bytes:
    """The bytes under the checksum. The message never repeats the text: it may be a seed."""
    try:
        raw = base64.b32decode(text + "=" * (-len(text) % 8))
    except (ValueError, binascii.Error) as error:
        raise Refused("credentials_invalid", f"{what} is not base32 text") from error
    if len(raw) < 3 or binascii.crc_hqx(raw[:-2], 0).to_bytes(2, "little") != raw[-2:]:
        raise Refused("credentials_invalid", f"the checksum of {what} is wrong: it is damaged or cut off")
    return raw[:-2]


class KeyPair:
    """A private key and its public name. Made by :func:`generate` or :func:`from_seed`."""

    __slots__ = ("_private", "kind", "public")

    def __init__(self, kind: Kind, private: Ed25519PrivateKey) -> None:
        self.kind: Kind = kind
        self._private = private
        self.public = _seal(bytes([_PREFIX[kind]]) + private.public_key().public_bytes_raw())

    def __repr__(self) -> str:
        return f"KeyPair({self.public})"

    @property
    def seed(self) -> str:
        """The private half as text. Whoever has it is the holder: write it to files of mode 0600 only."""
        prefix = _PREFIX[self.kind]
        head = bytes([_SEED_PREFIX | prefix >> 5, (prefix & 31) << 3])
        return _seal(head + self._private.private_bytes_raw())

    def sign(self, data: bytes) -> bytes:
        """The 64-byte Ed25519 signature of ``data``."""
        return self._private.sign(data)


def generate(kind: Kind) -> KeyPair:
    """A new key pair from the operating system's randomness."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return KeyPair(kind, Ed25519PrivateKey.generate())


def from_seed(seed: str) -> KeyPair:
    """Read a seed. Raises Refused(credentials_invalid), never naming the seed."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    raw = _open(seed.strip(), "the seed")
    if len(raw) != _KEY_BYTES + 2 or raw[0] & 0xF8 != _SEED_PREFIX:
        raise Refused("credentials_invalid", "the text is no NATS seed (one starts with S)")
    kind = _KIND.get((raw[0] & 7) << 5 | raw[1] >> 3)
    if kind is None:
        raise Refused("credentials_invalid", "the seed is of a kind other than operator, account or user")
    return KeyPair(kind, Ed25519PrivateKey.from_private_bytes(raw[2:]))


def kind_of(public: str) -> Kind:
    """The kind of a public key. Raises Refused(credentials_invalid) when it is none."""
    raw = _open(public, "the public key")
    kind = _KIND.get(raw[0])
    if kind is None or len(raw) != _KEY_BYTES + 1:
        raise Refused(
            "credentials_invalid", f"{public[:60]!r} is no public key of an operator, account or user"
        )
    return kind


def verify(public: str, data: bytes, signature: bytes) -> bool:
    """Whether ``signature`` over ``data`` was made by the holder of ``public``."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    kind_of(public)
    try:
        Ed25519PublicKey.from_public_bytes(_open(public, "the public key")[1:]).verify(signature, data)
    except InvalidSignature:
        return False
    return True
