"""The authority: makes, renews and revokes what principals hold. Files only; it never talks to a server.

After a change to an account, the servers learn it from :mod:`deploy.credentials.push`.

Keys, and what whoever steals one can do:

=========  ======================================================================================
operator   everything; kept off line, needed for every change to an account
control    make controllers
people     make users of existing operators' and auditors' accounts, within their permissions
nodes      make users of existing nodes' accounts, within their permissions (the issuer has it)
enrol      make join tokens for existing nodes' accounts
=========  ======================================================================================
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from deploy.credentials import claims, layout
from deploy.credentials.jwt import encode
from deploy.credentials.layout import TENANT_ROLES, Role
from deploy.credentials.store import AuthorityKeys, Principal, Store, TokenRecord, UserRecord
from events import subjects
from events.bus.access.creds import API_TAG, render, write_secret
from events.bus.access.nkeys import KeyPair, generate
from events.bus.enrolment import RENEW_TAG
from events.errors import BadRequest, Refused

DAY_S = 86_400
LIFETIME_DAYS: dict[Role, int] = {
    "node": 90,
    "operator": 30,
    "audit": 90,
    "kubernetes": 3650,
    "token": 7,
    "bridge": 365,
    "controller": 365,
    "site": 365,
    "issuer": 365,
    "system": 365,
}
CORE_KEYS: dict[Role, str] = {
    "controller": "control",
    "site": "control",
    "issuer": "issuer",
    "system": "system",
}
"""Roles whose users live in an account of the core, and that account's key."""
_TAGS = (f"{API_TAG}{layout.API_PREFIX}",)


def node_user(account: str, cluster: str, name: str) -> dict[str, Any]:
    """The claims of a node's user: it says where to renew itself; what it may do, its signing key says."""
    return claims.scoped_user(account, [*_TAGS, f"{RENEW_TAG}{subjects.renew(cluster, name)}"])


class Authority:
    """The authority kept in one folder."""

    def __init__(self, store: Store, book: AuthorityKeys) -> None:
        self.store = store
        self.book = book

    def now(self) -> int:
        """Unix seconds."""
        return int(time.time())

    # --- beginning ---------------------------------------------------------------------------------

    @classmethod
    def create(cls, path: Path, *, name: str = "isthmus") -> Authority:
        """Make keys and the core's accounts in an empty folder.

        Raises Refused(credentials_exist) when the folder holds an authority already.
        """
        store = Store(path)
        with store.locked():
            if store.exists():
                raise Refused(
                    "credentials_exist",
                    f"{path} holds an authority already; replacing it would lock out everybody it issued "
                    f"credentials to. Name another folder, or remove this one by hand",
                    store=str(path),
                )
            pairs = {
                "operator": generate("operator"),
                **{key: generate("account") for key in ("system", "control", "issuer")},
                **{key: generate("account") for key in ("people", "nodes", "enrol")},
            }
            for key, pair in pairs.items():
                store.write_key(key, pair)
            book = AuthorityKeys(name=name, keys={key: pair.public for key, pair in pairs.items()})
            authority = cls(store, book)
            authority.write_core()
            store.save(book)
        return authority

    @classmethod
    def open(cls, path: Path) -> Authority:
        """Raises Refused(credentials_missing or credentials_invalid)."""
        store = Store(path)
        return cls(store, store.load())

    def write_core(self) -> None:
        """(Re)write the operator's and the core accounts' JWTs."""
        keys, operator = self.book.keys, self.store.key("operator")
        self.store.write_jwt(
            "operator",
            encode(
                operator,
                keys["operator"],
                self.book.name,
                {"type": "operator", "system_account": keys["system"]},
                issued=self.now(),
            ),
        )
        revoked = {role: self._revocations(role) for role in CORE_KEYS}
        self._account(operator, "system", "SYSTEM", claims.account(revocations=revoked["system"]))
        self._account(
            operator,
            "control",
            "CONTROL",
            claims.account(
                exports=layout.CONTROL_EXPORTS,
                revocations=revoked["controller"] | revoked["site"],
                jetstream=True,
            ),
        )
        self._account(
            operator,
            "issuer",
            "ISSUER",
            claims.account(
                exports=layout.ISSUER_EXPORTS,
                imports=claims.imported(keys["control"], layout.ISSUER.control),
                limits=layout.ISSUER.limits,
                revocations=revoked["issuer"],
            ),
        )

    def _revocations(self, role: Role) -> dict[str, int]:
        return {
            user: at
            for principal in self.store.principals(role=role, cluster="")
            for user, at in principal.revocations.items()
        }

    def _account(self, operator: KeyPair, key: str, name: str, nats: dict[str, Any]) -> None:
        public = self.book.keys.get(key, key)
        self.store.write_jwt(public, encode(operator, public, name, nats, issued=self.now()))

    # --- principals --------------------------------------------------------------------------------

    def find(self, role: Role, cluster: str, name: str) -> Principal:
        """Raises Refused(credentials_missing) for one that was never made."""
        principal = self.store.principal(role, cluster, name)
        if principal is None:
            raise Refused(
                "credentials_missing",
                f"there are no credentials of {role} {name!r} in cluster {cluster!r}; "
                f"`isthmus credentials list` shows what there is",
            )
        return principal

    def add(
        self,
        role: Role,
        cluster: str,
        name: str,
        *,
        again: bool = False,
        kubernetes: bool = False,
        shared_token: str = "",
    ) -> Principal:
        """Make the account of a tenant (or the entry of a core user), with no credentials yet.

        Idempotent. Raises BadRequest for a malformed name, and Refused(credentials_revoked) for a
        revoked one unless ``again``; then it gets a new account, so that nothing old opens it. ``kubernetes``:
        a node that is let in by the token of a pod; ``shared_token``: by that join token for several machines.
        """
        if role in TENANT_ROLES:
            layout.tenant(role, cluster, name)  # refuses a malformed name
        else:
            subjects.check_label(name, f"{role} name")
        with self.store.locked():
            principal = self.store.principal(role, cluster, name)
            if principal is not None and not principal.revoked_at:
                if principal.account and not self.store.has_jwt(principal.account):
                    self._write(principal)  # whoever made it was killed in between
                return principal
            if principal is not None and not again:
                raise Refused(
                    "credentials_revoked",
                    f"the credentials of {role} {name!r} were revoked; --again lets the name in anew",
                    name=name,
                )
            account = generate("account").public if role in TENANT_ROLES else ""
            # The account's own key is not kept: its users are made by scoped signing keys only.
            principal = Principal(
                role=role,
                cluster=cluster,
                name=name,
                account=account,
                kubernetes=kubernetes,
                shared_token=shared_token,
            )
            self._write(principal)
        return principal

    def _write(self, principal: Principal) -> None:
        """Write the principal and the account JWT that belongs to its present state."""
        self.store.save_principal(principal)
        if not principal.account:
            self.write_core()
            return
        if principal.role == "kubernetes":
            self.write_core()  # the issuer's account of an earlier release does not offer what this one asks
        tenant = layout.tenant(principal.role, principal.cluster, principal.name)
        self._account(
            self.store.key("operator"),
            principal.account,
            tenant.name,
            claims.tenant(
                tenant,
                control=self.book.keys["control"],
                issuer=self.book.keys["issuer"],
                signing_keys=self._scopes(tenant),
                revocations=principal.revocations,
                closed=bool(principal.revoked_at),
            ),
        )

    def _scopes(self, tenant: layout.Tenant) -> list[dict[str, Any]]:
        if tenant.enrolment is None:
            keys = [("people", tenant.permissions)]
        else:
            keys = [("nodes", tenant.permissions), ("enrol", tenant.enrolment)]
        return [
            claims.scope(public, name, permissions, tenant.limits)
            for name, permissions in keys
            for public in (
                self.book.keys[name],
                *([self.book.retired[name]] if name in self.book.retired else []),
            )
        ]

    def issue(self, principal: Principal, *, days: float | None = None) -> Path:
        """Make a key pair and a JWT for the principal and write its ``.creds`` file; return its path.

        What it held before stays valid until it expires or is retired. Raises Refused(credentials_revoked).
        """
        pair = generate("user")
        token = self.sign_user(principal, pair.public, days=days)
        path = self.store.creds(principal)
        write_secret(path, render(token, pair.seed), tidy=False)
        return path

    def sign_user(self, principal: Principal, public: str, *, days: float | None = None) -> str:
        """A JWT that makes the holder of ``public`` the principal, for ``days`` from now.

        Raises Refused(credentials_revoked), BadRequest(bad_request).
        """
        if principal.revoked_at:
            raise Refused(
                "credentials_revoked", f"the credentials of {principal.role} {principal.name!r} were revoked"
            )
        now = self.now()
        expires = now + int((LIFETIME_DAYS[principal.role] if days is None else days) * DAY_S)
        if expires <= now:
            raise BadRequest(
                "bad_request", f"credentials for {days:g} days would have expired already", field="days"
            )
        if principal.account:
            key = self.store.key("nodes" if principal.role == "node" else "people")
            nats = (
                node_user(principal.account, principal.cluster, principal.name)
                if principal.role == "node"
                else claims.scoped_user(principal.account, _TAGS)
            )
        else:
            key = self.store.key(CORE_KEYS[principal.role])
            permissions = {"issuer": layout.ISSUER.permissions, "site": layout.SITE}.get(principal.role)
            nats = claims.user(permissions)
        token = encode(key, public, principal.name, nats, expires=expires, issued=now)
        with self.store.locked():
            found = self.find(principal.role, principal.cluster, principal.name)
            found.users = [user for user in found.users if user.expires > now and user.public != public]
            found.users.append(UserRecord(public=public, issued=now, expires=expires))
            self.store.save_principal(found)
        return token

    # --- taking back -------------------------------------------------------------------------------

    def retire(self, principal: Principal) -> list[str]:
        """Revoke all but the newest credentials of a principal; return the revoked public keys.

        Of a tenant, also those that the issuer made and this folder has no record of.
        """
        with self.store.locked():
            found = self.find(principal.role, principal.cluster, principal.name)
            old = [user.public for user in found.users[:-1]]
            found.users = found.users[-1:]
            found.revocations |= dict.fromkeys(old, self.now())
            if found.account and found.users:
                found.revocations[claims.EVERYBODY] = found.users[0].issued - 1
            self._write(found)
        return old

    def revoke(self, role: Role, cluster: str, name: str) -> Principal:
        """Shut a principal out: every credential it ever had, and its account. Idempotent."""
        with self.store.locked():
            principal = self.find(role, cluster, name)
            if not principal.revoked_at:
                principal.revoked_at = self.now()
                if principal.account:
                    principal.revocations = {claims.EVERYBODY: self.now()}
                else:
                    principal.revocations |= {user.public: self.now() for user in principal.users}
                principal.users = []
            self._write(principal)  # again, too: whoever revoked it may have been killed on the way
            self.store.creds(principal).unlink(missing_ok=True)
        return principal

    def revoke_token(self, cluster: str, token: TokenRecord) -> Principal:
        """Let nobody in by a join token any more; who was let in stays. Idempotent.

        Raises Refused(credentials_missing). The servers learn it when the returned account is pushed.
        """
        if token.shared:
            principal = self.revoke("token", cluster, token.id)
        else:
            with self.store.locked():
                principal = self.find("node", cluster, token.names)
                if not principal.revoked_at:
                    principal.revocations.setdefault(token.public, self.now())
                    self._write(principal)
        with self.store.locked():
            kept = self.store.token(cluster, token.id)
            kept.revoked_at = kept.revoked_at or self.now()
            self.store.save_token(kept)
        return principal

    # --- signing keys ------------------------------------------------------------------------------

    def rotate_key(self, name: str, *, finish: bool = False) -> int:
        """Replace a signing key (``people``, ``nodes``, ``enrol``) in two steps; return the accounts rewritten.

        First a new key signs and both are accepted; with ``finish`` the old one is dropped, and with it
        everything that it signed. Killed on the way, it can be repeated: the book is written last, and says
        which key counts. Raises BadRequest(bad_request), Refused(credentials_missing, credentials_exist).
        """
        if name not in {"people", "nodes", "enrol"}:
            raise BadRequest("bad_request", f"{name!r} is no signing key; there are people, nodes and enrol")
        with self.store.locked():
            self.book = self.store.load()
            if finish:
                if self.book.retired.pop(name, None) is None:
                    raise Refused("credentials_missing", f"no rotation of the {name} key is under way")
            else:
                if name in self.book.retired:
                    raise Refused(
                        "credentials_exist",
                        f"a rotation of the {name} key is under way: once every server knows both keys "
                        f"(`isthmus credentials push`) and all that the old one signed is renewed, --finish "
                        f"ends it, and with it what was not",
                    )
                self.book.retired[name] = self.book.keys[name]
                self.book.keys[name] = self.store.next_key(name).public
            count = 0
            for principal in self.store.principals():
                if principal.account and not principal.revoked_at:
                    self._write(principal)
                    count += 1
            self.store.save(self.book)
            self.store.settle_keys(self.book)
        return count
