"""Making join tokens: for one machine by the ``enrol`` key alone, for several by the operator's, too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deploy.credentials.authority import Authority
from deploy.credentials.claims import scoped_user
from deploy.credentials.jwt import encode
from deploy.credentials.store import TokenRecord, token_id
from events.bus.access.nkeys import KeyPair, generate
from events.bus.enrolment import SHARED_TAG, JoinToken
from events.bus.names import check_names
from events.errors import BadRequest, Refused

MINUTES = 60
MINUTES_MAX = 7 * 24 * 60
USES_MAX = 1000


def make_token(
    authority: Authority,
    cluster: str,
    node: str,
    *,
    servers: Sequence[str],
    ca: Path | None = None,
    minutes: float = MINUTES,
    kind: str = "",
    site: str = "",
) -> JoinToken:
    """A token for a node that has an account already. ``ca`` is the bus's certificate authority.

    ``kind`` and ``site`` travel to the node, which joins as that.

    Raises Refused(credentials_missing or credentials_revoked), and BadRequest for a lifetime outside
    0 … 7 days or no server.
    """
    principal = authority.find("node", cluster, node)
    if principal.revoked_at:
        raise Refused("credentials_revoked", f"the credentials of node {node!r} were revoked")
    _check(minutes, servers)
    pair = generate("user")
    record = _record(authority, cluster, pair, names=node, kind=kind, site=site, minutes=minutes)
    return _made(authority, principal.account, pair, record, servers=servers, ca=ca, node=node)


def make_shared_token(
    authority: Authority,
    cluster: str,
    names: str,
    uses: int,
    *,
    servers: Sequence[str],
    ca: Path | None = None,
    minutes: float = MINUTES,
    kind: str = "",
    site: str = "",
) -> tuple[JoinToken, str]:
    """A token for ``uses`` machines, and its account, which the servers must be told about.

    ``names`` is the pattern of their names: ``{}`` a number, ``{hostname}`` the machine's own. The controllers
    hold the nodes to ``kind`` and ``site``. It lets in only names that nobody has or had.

    Raises BadRequest for a lifetime outside 0 … 7 days, no server, uses outside 1 … 1,000 or a bad pattern.
    """
    check_names(names)
    _check(minutes, servers)
    if not 1 <= uses <= USES_MAX:
        raise BadRequest("bad_request", f"a join token has 1 to {USES_MAX:,} uses, not {uses:,}", field="uses")
    pair = generate("user")
    principal = authority.add("token", cluster, token_id(pair.public))
    record = _record(
        authority, cluster, pair, names=names, shared=True, uses=uses, kind=kind, site=site, minutes=minutes
    )
    made = _made(authority, principal.account, pair, record, servers=servers, ca=ca, names=names)
    return made, principal.account


def _check(minutes: float, servers: Sequence[str]) -> None:
    if not 0 < minutes <= MINUTES_MAX:
        raise BadRequest(
            "bad_request", f"a token lives for more than 0 and at most {MINUTES_MAX:,} minutes, not {minutes:g}"
        )
    if not servers:
        raise BadRequest("bad_request", "a token needs at least one server to go to", field="bus")


def _record(
    authority: Authority, cluster: str, pair: KeyPair, *, minutes: float, **allowed: Any
) -> TokenRecord:
    now = authority.now()
    until = now + max(1, int(minutes * 60))
    record = TokenRecord(
        id=token_id(pair.public), public=pair.public, cluster=cluster, made=now, until=until, **allowed
    )
    authority.store.save_token(record)
    return record


def _made(
    authority: Authority,
    account: str,
    pair: KeyPair,
    record: TokenRecord,
    *,
    servers: Sequence[str],
    ca: Path | None,
    node: str = "",
    names: str = "",
) -> JoinToken:
    jwt = encode(
        authority.store.key("enrol"),
        pair.public,
        node or record.id,
        scoped_user(account, [f"{SHARED_TAG}{record.id}"] if record.shared else []),
        expires=record.until,
        issued=record.made,
    )
    return JoinToken(
        cluster=record.cluster,
        node=node,
        names=names,
        servers=tuple(servers),
        jwt=jwt,
        seed=pair.seed,
        ca=ca.read_text("ascii") if ca is not None else "",
        kind=record.kind,
        site=record.site,
    )
