"""Signed checkpoints: the controller's word, from time to time, on what the log and the state are.

A checkpoint binds a sequence to the chain's digest and to the state's digest there, with an Ed25519
signature (RFC 8032). The chain by itself proves that a log agrees with itself; whoever can write the
log could write another that does, too. A checkpoint kept elsewhere, or only its public key, makes
such a rewriting visible, offline, to anyone.

One JSON object per line, in a file that is only appended to, and last on the bus. This module never
reads the log.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from controlplane.cluster.digest import FORMAT
from events.bus.access.creds import write_secret
from events.envelope import format_time
from events.errors import Usage, VerificationFailed
from events.input_files import read_whole

MAGIC = "isthmus-checkpoint/1"
FILE_NAME = "checkpoints.jsonl"

_encode = msgspec.json.Encoder().encode

FILE_LIMIT_BYTES = 512 * 1024 * 1024
"""A million checkpoints: more than a controller signs in years."""


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One signed statement. ``chain`` and ``state`` are digests (64 hex digits) after event ``sequence``.

    ``time`` is the signing controller's clock (UTC), ``state_format`` the canonical text that was
    hashed, ``key`` the public key and ``signature`` the signature (hex).
    """

    cluster: str
    sequence: int
    chain: str
    state: str
    state_format: str
    time: datetime
    key: str
    signature: str = ""

    def text(self) -> bytes:
        """What is signed: one line each, in this order, for ever."""
        return "\n".join(
            (
                MAGIC,
                self.cluster,
                str(self.sequence),
                self.chain,
                self.state_format,
                self.state,
                format_time(self.time),
                "",
            )
        ).encode()


class SigningKey:
    """An Ed25519 private key, kept in a PEM file (PKCS #8) that only its owner can read."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public_hex = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()

    @classmethod
    def generate(cls) -> Self:
        """A new key."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a PEM file. Raises Usage when it cannot be read or holds another kind of key."""
        try:
            key = load_pem_private_key(read_whole(path), password=None)
        except (OSError, ValueError, TypeError) as error:
            raise Usage("usage", f"cannot read the signing key {path}: {error}") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise Usage("usage", f"the key in {path} is no Ed25519 key")
        return cls(key)

    @classmethod
    def load_or_generate(cls, path: str | Path) -> Self:
        """Read the key, or make one (mode 0600) with its public half beside it (``.pub``).

        Raises Usage for one that cannot be read, OSError for one that cannot be written.
        """
        target = Path(path)
        if target.is_symlink() or target.exists():
            return cls.load(target)
        made = cls.generate()
        # Whole or not at all: what a full disk cut short would be taken for a damaged key at the next start.
        write_secret(target, made._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))  # noqa: SLF001  its own
        target.with_name(target.name + ".pub").write_bytes(made.public_pem())
        return made

    def public_pem(self) -> bytes:
        """The public key, to be given to auditors."""
        return self._key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def sign(self, text: bytes) -> bytes:
        """64 bytes."""
        return self._key.sign(text)

    def checkpoint(self, *, cluster: str, sequence: int, chain: str, state: str, time: datetime) -> Checkpoint:
        """Sign a statement."""
        unsigned = Checkpoint(
            cluster=cluster,
            sequence=sequence,
            chain=chain,
            state=state,
            state_format=FORMAT,
            time=time.astimezone(UTC),
            key=self.public_hex,
        )
        return msgspec.structs.replace(unsigned, signature=self.sign(unsigned.text()).hex())


def load_public_key(source: str) -> str:
    """A public key as 64 hex digits, from such digits or from a PEM file. Raises Usage."""
    text = source.strip().lower()
    if len(text) == 64 and not set(text) - set("0123456789abcdef"):
        return text
    try:
        key = load_pem_public_key(read_whole(source))
    except (OSError, ValueError) as error:
        raise Usage("usage", f"{source!r} is neither 64 hex digits nor a readable PEM file: {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise Usage("usage", f"the key in {source} is no Ed25519 key")
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw).hex()


def signature_holds(key_hex: str, signature_hex: str, text: bytes) -> bool:
    """Whether ``signature`` over ``text`` is by ``key``; False for anything malformed."""
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key_hex)).verify(bytes.fromhex(signature_hex), text)
    except (InvalidSignature, ValueError):
        return False
    return True


def check_signature(checkpoint: Checkpoint, cluster: str, trusted: str) -> None:
    """Check that ``checkpoint`` is of ``cluster`` and signed by the key ``trusted`` (hex).

    Raises VerificationFailed(checkpoint_mismatch) otherwise.
    """
    if checkpoint.cluster != cluster:
        raise VerificationFailed(
            "checkpoint_mismatch",
            f"checkpoint {checkpoint.sequence} is of cluster {checkpoint.cluster!r}, the log of {cluster!r}",
            sequence=checkpoint.sequence,
        )
    if checkpoint.key != trusted:
        raise VerificationFailed(
            "checkpoint_mismatch",
            f"checkpoint {checkpoint.sequence} is signed by key {checkpoint.key[:16]}…, not by {trusted[:16]}…",
            sequence=checkpoint.sequence,
        )
    if not signature_holds(trusted, checkpoint.signature, checkpoint.text()):
        raise VerificationFailed(
            "checkpoint_mismatch",
            f"checkpoint {checkpoint.sequence}: its signature does not hold; it was altered after signing",
            sequence=checkpoint.sequence,
        )


def parse_checkpoints(data: bytes) -> list[Checkpoint]:
    """Checkpoints out of JSON lines. Raises VerificationFailed(checkpoint_mismatch) for unreadable ones."""
    try:
        return msgspec.json.Decoder(Checkpoint).decode_lines(data)
    except msgspec.MsgspecError as error:
        raise VerificationFailed("checkpoint_mismatch", f"a checkpoint is unreadable ({error})") from error


def read_checkpoints(path: str | Path) -> list[Checkpoint]:
    """The checkpoints of a file, oldest first. Raises Usage when it cannot be read, VerificationFailed."""
    try:
        data = read_whole(path, FILE_LIMIT_BYTES)
    except OSError as error:
        raise Usage("usage", f"cannot read checkpoints from {path}: {error.strerror}") from error
    if not data.endswith(b"\n"):  # the writer died inside its last line: that one was never given
        data = data[: data.rfind(b"\n") + 1]
    return parse_checkpoints(data)


def append_checkpoints(path: str | Path, checkpoints: Iterable[Checkpoint]) -> None:
    """Add lines to the file, durably; heals a torn last line."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("ab+") as file:
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        file.write(b"".join(_encode(checkpoint) + b"\n" for checkpoint in checkpoints))
        file.flush()
        os.fsync(file.fileno())
