"""What a nats-server has to be told so that it enforces the layout: text for its configuration file.

Two forms of the same rules. ``jwt_block``: the server trusts the operator's key and learns accounts
from signed JWTs, so that nodes come and go without touching its configuration. ``plain_block``: for
small sites, every account in the file; a change is a new file and a reload (SIGHUP). Neither form
holds a secret: both name public keys only.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from deploy.credentials import layout
from deploy.credentials.certificates import ServerFiles
from deploy.credentials.expiry import mark
from deploy.credentials.layout import Permissions, Role, Share, Tenant
from deploy.credentials.store import Store, UserRecord
from events.errors import Refused

CONNECTIONS_MAX = 65_536
AUTH_TIMEOUT_S = 5
"""10,000 agents that come back at once share the server's cores for their handshakes."""
CONTROL_LINE_BYTES_MAX = 4096
PAYLOAD_BYTES_MAX = 1024 * 1024
PENDING_BYTES_MAX = 64 * 1024 * 1024
PING_INTERVAL_S = 20


def _text(value: object) -> str:
    return json.dumps(str(value))


def limits_block() -> str:
    """Bounds on everything that a stranger or a broken client could pile up."""
    return (
        f"max_connections: {CONNECTIONS_MAX}\n"
        f"max_control_line: {CONTROL_LINE_BYTES_MAX}\n"
        f"max_payload: {PAYLOAD_BYTES_MAX}\n"
        f"max_pending: {PENDING_BYTES_MAX}\n"
        f'ping_interval: "{PING_INTERVAL_S}s"\n'
        "ping_max: 2\n"
        'write_deadline: "10s"\n'
    )


def tls_block(files: ServerFiles, *, mutual: bool = False, indent: str = "") -> str:
    """A ``tls`` block. ``mutual`` demands a certificate of our authority from the other side too."""
    lines = [
        "tls {",
        f"  cert_file: {_text(files.certificate)}",
        f"  key_file: {_text(files.key)}",
        f"  ca_file: {_text(files.ca)}",
        *(["  verify: true"] if mutual else []),
        f"  timeout: {AUTH_TIMEOUT_S}",
        '  min_version: "1.3"',
        "}",
    ]
    return "".join(f"{indent}{line}\n" for line in lines)


def jwt_block(store: Store, *, accounts_dir: Path, operator: str = "") -> str:
    """Trust in the operator, and a resolver that keeps account JWTs in ``accounts_dir`` (the server's own).

    The core's accounts are in the text, so that the first start needs nothing else. ``operator`` is its JWT
    [the path of its file]. Raises Refused(credentials_missing) without an authority.
    """
    keys = store.load().keys
    preload = "".join(f"  {keys[name]}: {store.jwt(keys[name])}\n" for name in ("system", "control", "issuer"))
    return (
        f"operator: {operator or _text(store.path / 'nats' / 'operator.jwt')}\n"
        f"system_account: {keys['system']}\n"
        "resolver {\n"
        "  type: full\n"
        f"  dir: {_text(accounts_dir)}\n"
        "  allow_delete: false\n"
        '  interval: "2m"\n'
        '  timeout: "1s"\n'
        "}\n"
        f"resolver_preload {{\n{preload}}}\n"
    )


# --- the plain form ----------------------------------------------------------------------------------


def _user(user: UserRecord, permissions: Permissions | None) -> str:
    """One user on a line of its own, with its end behind it (see :mod:`deploy.credentials.expiry`)."""
    rights = (
        f", permissions: {{ publish: {{ allow: {json.dumps(permissions.publish)}, "
        f"deny: {json.dumps(permissions.never_publish)} }}, "
        f"subscribe: {{ allow: {json.dumps(permissions.subscribe)} }} }}"
        if permissions
        else ""
    )
    return f"      {{ nkey: {user.public}{rights} }} {mark(user.expires)}\n"


def _users(users: Iterable[str]) -> str:
    return f"    users: [\n{''.join(users)}    ]\n"


def _exports(shares: Iterable[Share]) -> str:
    lines = []
    for share in shares:
        if share.kind == "stream":
            lines.append(f"      {{ stream: {_text(share.subject)} }}")
        else:
            kind = "Stream" if share.streamed else "Singleton"
            lines.append(
                f"      {{ service: {_text(share.subject)}, response_type: {kind}, "
                f'response_threshold: "{layout.RESPONSE_THRESHOLD_S}s" }}'
            )
    return "    exports: [\n" + "\n".join(lines) + "\n    ]\n"


def _imports(pairs: Iterable[tuple[str, Share]]) -> str:
    lines = [
        f"      {{ {share.kind}: {{ account: {account}, subject: {_text(share.subject)} }}"
        + (f", to: {_text(share.local)}" if share.local else "")
        + " }"
        for account, share in pairs
    ]
    return "    imports: [\n" + "\n".join(lines) + "\n    ]\n"


def _tenant(tenant: Tenant, users: Sequence[UserRecord]) -> str:
    limits = tenant.limits
    imports = [
        *(("CONTROL", share) for share in tenant.control),
        *(("ISSUER", share) for share in tenant.issuer),
    ]
    return (
        f"  {_text(tenant.name)} {{\n"
        f"{_users(_user(user, tenant.permissions) for user in users)}"
        f"{_imports(imports)}"
        f"    limits {{ max_connections: {limits.connections}, max_subscriptions: {limits.subscriptions}, "
        f"max_payload: {limits.payload_bytes}, max_leafnodes: 0 }}\n"
        "  }\n"
    )


def plain_block(store: Store, *, now: float | None = None) -> str:
    """All accounts as plain configuration, without users whose time was over at ``now`` (Unix seconds).

    Raises Refused without a controller's credentials.
    """
    moment = time.time() if now is None else now
    core: dict[Role, list[UserRecord]] = {"system": [], "controller": [], "issuer": []}
    sites: list[UserRecord] = []
    tenants = []
    for principal in store.principals():
        users = [user for user in principal.users if user.expires > moment]
        if principal.role in core:
            core[principal.role] += users
        elif principal.role == "site":
            sites += users
        elif users and not principal.revoked_at:
            entry = layout.tenant(principal.role, principal.cluster, principal.name)
            tenants.append(_tenant(entry, users))
    if not core["controller"]:
        raise Refused(
            "credentials_missing",
            "no controller has valid credentials: a server with this configuration would serve nobody; "
            "make some with `isthmus credentials controller NAME`",
        )
    system = f"  SYSTEM {{\n{_users(_user(user, None) for user in core['system'])}  }}\n"
    members = [*(_user(u, None) for u in core["controller"]), *(_user(u, layout.SITE) for u in sites)]
    control = f"  CONTROL {{\n    jetstream: enabled\n{_users(members)}{_exports(layout.CONTROL_EXPORTS)}  }}\n"
    issuers = _users(_user(user, layout.ISSUER.permissions) for user in core["issuer"])
    issuer = (
        f"  ISSUER {{\n{issuers}"
        f"{_exports(layout.ISSUER_EXPORTS)}"
        f"{_imports(('CONTROL', share) for share in layout.ISSUER.control)}  }}\n"
    )
    return f"accounts {{\n{system}{control}{issuer}{''.join(tenants)}}}\nsystem_account: SYSTEM\n"
