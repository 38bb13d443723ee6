"""NATS JWTs, version 2: signing and checking. Nothing here decides what a claim should say.

The form is that of github.com/nats-io/jwt/v2: ``{"typ":"JWT","alg":"ed25519-nkey"}``, claims, and an
Ed25519 signature over both, all base64url without padding. The issuer is a public nkey in ``iss``.
"""

from __future__ import annotations

import base64
import hashlib
import time
from typing import Any

import msgspec

from events.bus.access.creds import decode_claims
from events.bus.access.nkeys import KeyPair, verify
from events.errors import Refused

_HEADER = msgspec.json.encode({"typ": "JWT", "alg": "ed25519-nkey"})


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def encode(
    issuer: KeyPair,
    subject: str,
    name: str,
    nats: dict[str, Any],
    *,
    expires: int = 0,
    issued: int | None = None,
) -> str:
    """Sign claims about ``subject`` (a public key). ``expires`` and ``issued`` are Unix seconds; 0 is never."""
    claims: dict[str, Any] = {
        "iat": int(time.time()) if issued is None else issued,
        "iss": issuer.public,
        "sub": subject,
        "name": name,
        "nats": {**nats, "version": 2},
        **({"exp": expires} if expires else {}),
    }
    digest = hashlib.sha256(msgspec.json.encode(claims)).digest()
    claims["jti"] = base64.b32encode(digest).rstrip(b"=").decode()
    signed = f"{_text(_HEADER)}.{_text(msgspec.json.encode(claims))}"
    return f"{signed}.{_text(issuer.sign(signed.encode()))}"


def check(token: str, issuers: set[str]) -> dict[str, Any]:
    """The claims of a token that one of ``issuers`` signed.

    Raises Refused(credentials_invalid) when it is damaged or signed by somebody else. Expiry is the
    caller's question.
    """
    claims = decode_claims(token)
    signed, _, signature = token.rpartition(".")
    issuer = str(claims.get("iss", ""))
    if issuer not in issuers:
        raise Refused(
            "credentials_invalid", f"the token is signed by {issuer[:12]}…, which is not trusted here"
        )
    try:
        raw = base64.urlsafe_b64decode(signature + "=" * (-len(signature) % 4))
    except ValueError as error:
        raise Refused("credentials_invalid", "the token's signature is not base64url") from error
    if not verify(issuer, signed.encode(), raw):
        raise Refused("credentials_invalid", "the token's signature does not fit its content: it was changed")
    return claims
