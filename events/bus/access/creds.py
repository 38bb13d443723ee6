"""A ``.creds`` file: the JWT that says what its holder may do, and the seed that proves the holder.

The file is read again at every connection, so that rotated credentials are taken up by the next
reconnect, without a restart. Claims are read without checking the signature: the server checks it,
and nothing here grants anything. The seed is never part of a message, a log line or a ``repr``.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from events.bus.access.nkeys import KeyPair, from_seed
from events.bus.access.temporaries import drop_left, pattern
from events.errors import Refused
from events.input_files import read_up_to

_BLOCK = re.compile(r"-----BEGIN (?P<what>[A-Z ]+)-----\s*(?P<text>\S+)\s+-+END (?P=what)-+")
_LIMIT_BYTES = 64 * 1024
NEVER_S = 253402300799.0
"""The end of the year 9999: metrics carry no infinity."""
API_TAG = "api:"
"""A user's tag that names the prefix of JetStream's API."""


class Credentials(msgspec.Struct, frozen=True):
    """What one file holds. ``seed`` is secret."""

    jwt: str
    seed: str

    def __repr__(self) -> str:
        return f"Credentials({self.name})"

    @property
    def claims(self) -> dict[str, Any]:
        """The payload of the JWT, unverified."""
        return decode_claims(self.jwt)

    @property
    def name(self) -> str:
        return str(self.claims.get("name", ""))

    @property
    def expires(self) -> datetime | None:
        """When the server stops accepting it (UTC); None is never."""
        seconds = self.claims.get("exp")
        return datetime.fromtimestamp(int(seconds), UTC) if seconds else None

    def tag(self, name: str) -> str:
        """What follows ``name`` in the first tag that begins with it; empty without one."""
        tags = self.claims["nats"].get("tags") or []
        return next((str(tag)[len(name) :] for tag in tags if str(tag).startswith(name)), "")

    @property
    def api_prefix(self) -> str:
        """Where its holder finds JetStream's API: tenants have it under a name of their own."""
        return self.tag(API_TAG) or "$JS.API"

    @property
    def key(self) -> KeyPair:
        """The key pair of the seed. Raises Refused(credentials_invalid)."""
        return from_seed(self.seed)


def decode_claims(jwt: str) -> dict[str, Any]:
    """The payload of a NATS JWT, unverified. Raises Refused(credentials_invalid)."""
    parts = jwt.split(".")
    try:
        raw = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)) if len(parts) == 3 else b""
        claims = msgspec.json.decode(raw, type=dict[str, Any])
    except (ValueError, msgspec.MsgspecError) as error:
        raise Refused("credentials_invalid", f"the text is no NATS JWT: {error}") from error
    if not isinstance(claims.get("nats"), dict):
        raise Refused("credentials_invalid", "the text is no NATS JWT: it has no nats claims")
    return claims


def parse(text: str, source: str = "the credentials") -> Credentials:
    """Read the text of a ``.creds`` file. Raises Refused(credentials_invalid), naming ``source`` only."""
    blocks = {match["what"]: match["text"] for match in _BLOCK.finditer(text)}
    jwt, seed = blocks.get("NATS USER JWT"), blocks.get("USER NKEY SEED")
    if jwt is None or seed is None:
        raise Refused(
            "credentials_invalid", f"{source} is no complete credentials file: a part is missing or cut off"
        )
    found = Credentials(jwt, seed)
    decode_claims(jwt)
    if found.key.kind != "user":
        raise Refused("credentials_invalid", f"{source} holds the seed of an {found.key.kind}, not of a user")
    return found


def load(path: str | Path) -> Credentials:
    """Read a file. Raises Refused: ``credentials_missing`` when it cannot be read, ``credentials_invalid``."""
    try:
        text = read_up_to(path, _LIMIT_BYTES).decode("ascii", errors="replace")
    except OSError as error:
        raise Refused(
            "credentials_missing",
            f"the credentials file {path} cannot be read: {error.strerror}",
            path=str(path),
        ) from error
    return parse(text, f"the file {path}")


def ends_at(path: str) -> float:
    """When the credentials in the file end, in seconds since 1970; NEVER_S without a file or an end."""
    try:
        moment = load(path).expires if path else None
    except Refused:
        return 0.0  # none that the bus would take: as good as ended
    return moment.timestamp() if moment is not None else NEVER_S


def render(jwt: str, seed: str) -> str:
    """The text of a ``.creds`` file, in the form that every NATS client reads."""
    return (
        f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
        "************************* IMPORTANT *************************\n"
        "The seed below is the private key: whoever has it is this user.\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n\n"
        "*************************************************************\n"
    )


def write_secret(
    path: Path, text: str | bytes, *, like: os.stat_result | None = None, tidy: bool = True
) -> None:
    """Replace ``path`` atomically with a file of mode 0600, so that a reader sees the old or the new one.

    With ``like`` it has that file's mode and, where that is allowed, its owner. Raises OSError, which names
    ``path``; then, and interrupted, nothing half is left. What a process left of it that was killed is removed,
    unless ``tidy`` is false: where many files are written, who writes them looks once.
    """
    data = text.encode() if isinstance(text, str) else text
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if tidy:
        drop_left(path.parent, pattern(path.name))
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")  # known before a signal can come
    try:
        with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(data)
            if like is not None:
                with contextlib.suppress(PermissionError):
                    os.fchown(file.fileno(), like.st_uid, like.st_gid)
                os.fchmod(file.fileno(), like.st_mode & 0o777)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):  # of the file that was asked for, not of the one beside it
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
