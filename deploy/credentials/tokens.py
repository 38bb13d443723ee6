"""Making join tokens. Needs the ``enrol`` key, not the operator's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deploy.credentials.authority import Authority
from deploy.credentials.claims import scoped_user
from deploy.credentials.jwt import encode
from events.bus.access.nkeys import generate
from events.bus.enrolment import JoinToken
from events.errors import BadRequest, Refused

MINUTES = 60
MINUTES_MAX = 7 * 24 * 60


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
    if not 0 < minutes <= MINUTES_MAX:
        raise BadRequest(
            "bad_request", f"a token lives for more than 0 and at most {MINUTES_MAX:,} minutes, not {minutes:g}"
        )
    if not servers:
        raise BadRequest("bad_request", "a token needs at least one server to go to", field="bus")
    pair = generate("user")
    now = authority.now()
    jwt = encode(
        authority.store.key("enrol"),
        pair.public,
        node,
        scoped_user(principal.account, []),
        expires=now + max(1, int(minutes * 60)),
        issued=now,
    )
    return JoinToken(
        cluster=cluster,
        node=node,
        servers=tuple(servers),
        jwt=jwt,
        seed=pair.seed,
        ca=ca.read_text("ascii") if ca is not None else "",
        kind=kind,
        site=site,
    )
