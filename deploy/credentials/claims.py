"""The layout as claims: what :mod:`deploy.credentials.layout` says, in the words of NATS JWTs. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from deploy.credentials.layout import RESPONSE_THRESHOLD_S, Limits, Permissions, Share, Tenant

_UNLIMITED = {"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": True}
_JETSTREAM = {"mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1, "max_ack_pending": -1}
EVERYBODY = "*"
"""In an account's revocations: every user issued up to that moment."""


def exported(shares: Iterable[Share]) -> list[dict[str, Any]]:
    """The exports of an account."""
    result: list[dict[str, Any]] = []
    for share in shares:
        claim: dict[str, Any] = {"name": share.subject, "subject": share.subject, "type": share.kind}
        if share.kind == "service":
            claim["response_type"] = "Stream" if share.streamed else "Singleton"
            claim["response_threshold"] = RESPONSE_THRESHOLD_S * 1_000_000_000
        result.append(claim)
    return result


def imported(account: str, shares: Iterable[Share]) -> list[dict[str, Any]]:
    """What an account takes from the account with that public key."""
    return [
        {
            "name": share.subject,
            "subject": share.subject,
            "account": account,
            "type": share.kind,
            **({"local_subject": share.local} if share.local else {}),
        }
        for share in shares
    ]


def permitted(permissions: Permissions) -> dict[str, Any]:
    """A user's ``pub`` and ``sub`` claims."""
    publish = {"allow": list(permissions.publish)}
    if permissions.never_publish:
        publish["deny"] = list(permissions.never_publish)
    return {"pub": publish, "sub": {"allow": list(permissions.subscribe)}}


def scope(key: str, role: str, permissions: Permissions, limits: Limits) -> dict[str, Any]:
    """A signing key that can only make users with exactly these permissions."""
    return {
        "kind": "user_scope",
        "key": key,
        "role": role,
        "template": {
            **permitted(permissions),
            "subs": limits.subscriptions,
            "data": -1,
            "payload": limits.payload_bytes,
        },
    }


def account(
    *,
    exports: Iterable[Share] = (),
    imports: Iterable[Mapping[str, Any]] = (),
    limits: Limits | None = None,
    signing_keys: Iterable[Mapping[str, Any]] = (),
    revocations: Mapping[str, int] | None = None,
    jetstream: bool = False,
) -> dict[str, Any]:
    """The claims of an account. JetStream storage belongs to CONTROL alone."""
    bounds = limits or Limits()
    return {
        "type": "account",
        "exports": exported(exports),
        "imports": [dict(claim) for claim in imports],
        "limits": {
            **_UNLIMITED,
            "conn": bounds.connections,
            "payload": bounds.payload_bytes,
            "leaf": -1 if jetstream else 0,
            **(_JETSTREAM if jetstream else {}),
        },
        "signing_keys": [dict(key) for key in signing_keys],
        **({"revocations": dict(revocations)} if revocations else {}),
        "default_permissions": {"pub": {}, "sub": {}},
        "authorization": {},
    }


def tenant(
    layout: Tenant,
    *,
    control: str,
    issuer: str,
    signing_keys: Iterable[Mapping[str, Any]],
    revocations: Mapping[str, int] | None = None,
    closed: bool = False,
) -> dict[str, Any]:
    """The account of a tenant. ``closed`` leaves it nothing: no imports, no connection."""
    if closed:
        return account(limits=Limits(connections=0), revocations=revocations)
    return account(
        imports=[*imported(control, layout.control), *imported(issuer, layout.issuer)],
        limits=layout.limits,
        signing_keys=signing_keys,
        revocations=revocations,
    )


def user(permissions: Permissions | None) -> dict[str, Any]:
    """The claims of a user signed by an account's own key; None permits the whole account."""
    claims = permitted(permissions) if permissions else {"pub": {}, "sub": {}}
    return {"type": "user", **claims, "subs": -1, "data": -1, "payload": -1}


def scoped_user(account_key: str, tags: Iterable[str]) -> dict[str, Any]:
    """The claims of a user signed by a scoped key: it may say nothing about permissions itself."""
    return {"type": "user", "issuer_account": account_key, "tags": list(tags)}
