"""This node's private key (X25519): in the agent's own folder, for its account alone, the same after a restart.

Members know the public one by the log. WireGuard encrypts with it where the node has WireGuard, and two nodes
prove who they are by the secret that only they can compute.
"""

from __future__ import annotations

import os
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from events.errors import Refused
from events.input_files import read_regular
from events.status import NatMode
from nodeagent.local_files import write_atomically

KEY_FILE = "node.key"
KEY_BYTES = 32
READ_LIMIT = 4096


class OwnKey:
    """A private key (32 bytes) with its public one as base64, which is how the log has it."""

    def __init__(self, private: bytes) -> None:
        self.private = private
        self._secret = X25519PrivateKey.from_private_bytes(private)
        self.public = public_of(private)

    def shared_secret(self, peer_public: str) -> bytes:
        """The 32 bytes that this node and the one with that public key (base64) share, and nobody else has.

        Derive keys from it (HKDF), and do not use it as one. About 100 µs: remember what is derived. Raises
        ValueError for what is no key, also for one of the few by which every secret is the same.
        """
        return self._secret.exchange(X25519PublicKey.from_public_bytes(b64decode(peer_public, validate=True)))


def public_of(private: bytes) -> str:
    """The public key that belongs to a private one, as base64."""
    public = X25519PrivateKey.from_private_bytes(private).public_key()
    return b64encode(public.public_bytes_raw()).decode()


def own_key(directory: Path) -> OwnKey:
    """The key in that folder, made if there is none.

    Raises Refused(identity_unreadable) for a file that holds no key: a new one in its place would cut the node
    off from every peer that knows the old one, until all have heard of it. Raises OSError.
    """
    path = directory / KEY_FILE
    try:
        text = read_regular(path, READ_LIMIT).strip()
    except FileNotFoundError:
        return new_key(directory)
    try:
        private = b64decode(text, validate=True)
    except (Base64Error, ValueError):
        private = b""
    if len(private) != KEY_BYTES:
        raise Refused(
            "identity_unreadable",
            f"{path} holds no key of a node: remove it, and the agent makes another one: rm {path}",
            path=str(path),
        )
    if path.stat().st_mode & 0o077:
        path.chmod(0o600)
    return OwnKey(private)


def new_key(directory: Path) -> OwnKey:
    """Another key in place of the one that is there. Raises OSError."""
    made = OwnKey(X25519PrivateKey.generate().private_bytes_raw())
    previous = os.umask(0o077)
    try:
        write_atomically(directory / KEY_FILE, b64encode(made.private) + b"\n", durable=True, mode=0o600)
    finally:
        os.umask(previous)
    return made


def join_fields(key: str, port: int, nat: NatMode) -> dict[str, Any]:
    """What of it a join says; controllers before 0.3 know none of these fields."""
    fields = {"node_key": key, "wireguard_port": port, "nat": nat if nat == "on" else ""}
    return {name: value for name, value in fields.items() if value}
