"""This node's private key (X25519): in the agent's own folder, for its account alone, the same after a restart.

Members know the public one by the log. WireGuard encrypts with it where the node has WireGuard, and two nodes
prove who they are by the secret that only they can compute.
"""

from __future__ import annotations

import os
import time
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from events.errors import Refused
from events.input_files import read_regular
from events.status import NatMode
from nodeagent.local_files import write_atomically

KEY_FILE, NEXT_FILE = "node.key", "node.next.key"
KEY_BYTES = 32
READ_LIMIT = 4096


class OwnKey:
    """A private key (32 bytes) with its public one as base64, which is how the log has it.

    ``next`` is the one that is to take its place: it is announced, and used as soon as the log has it.
    """

    def __init__(self, private: bytes, following: bytes = b"") -> None:
        self._become(private)
        self.next: OwnKey | None = OwnKey(following) if following else None

    def _become(self, private: bytes) -> None:
        self.private = private
        self._secret = X25519PrivateKey.from_private_bytes(private)
        self.public = public_of(private)

    @property
    def announced(self) -> str:
        """The public key that members are to know."""
        return self.next.public if self.next is not None else self.public

    def look(self, directory: Path) -> None:
        """Take in the next key, if one was asked for. Raises Refused(identity_unreadable), OSError."""
        if self.next is None and (directory / NEXT_FILE).exists():
            self.next = _read(directory / NEXT_FILE)

    def take_next(self, directory: Path) -> None:
        """The log has the next key: it is the key from now on, after a restart, too. Raises OSError."""
        if self.next is not None:
            (directory / NEXT_FILE).replace(directory / KEY_FILE)
            self._become(self.next.private)
            self.next = None

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
    try:
        key = _read(directory / KEY_FILE)
    except FileNotFoundError:
        return new_key(directory)
    key.look(directory)
    return key


def _read(path: Path) -> OwnKey:
    text = read_regular(path, READ_LIMIT).strip()
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


def age_s(directory: Path) -> float:
    """Seconds since the key was made, by the file's time. Raises OSError."""
    return time.time() - (directory / KEY_FILE).stat().st_mtime


def ask_for_another(directory: Path) -> str:
    """Make the key that is to follow this one, unless one is to follow already; its public key. Raises Refused,
    OSError.
    """
    if (directory / NEXT_FILE).exists():
        return _read(directory / NEXT_FILE).public
    return new_key(directory, NEXT_FILE).public


def new_key(directory: Path, name: str = KEY_FILE) -> OwnKey:
    """Another key in place of the one that is there. Raises OSError."""
    made = OwnKey(X25519PrivateKey.generate().private_bytes_raw())
    previous = os.umask(0o077)
    try:
        write_atomically(directory / name, b64encode(made.private) + b"\n", durable=True, mode=0o600)
    finally:
        os.umask(previous)
    return made


def join_fields(key: str, port: int, nat: NatMode) -> dict[str, Any]:
    """What of it a join says; controllers before 0.3 know none of these fields."""
    fields = {"node_key": key, "wireguard_port": port, "nat": nat if nat == "on" else ""}
    return {name: value for name, value in fields.items() if value}
