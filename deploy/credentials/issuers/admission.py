"""Names for the machines that come with a join token for several of them, and their accounts.

Needs the whole authority (the operator's key and the system credentials): nobody has made these nodes an
account beforehand. The record of the token says who has which name; the controllers' log has the last word on
how many were let in.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from nats.aio.client import Client

from deploy.credentials.authority import Authority
from deploy.credentials.push import push_account
from deploy.credentials.store import TokenRecord
from events.bus.names import fits, name_of, numbered
from events.errors import Refused

TRIES = 64
"""Numbers tried for one machine before it is told that they are taken."""


class Admission:
    """The authority in ``store``; ``system`` is a connection with its system credentials.

    Several may share one store: every change is made under its lock.
    """

    def __init__(self, store: Path, system: Client) -> None:
        self._store, self._system = store, system

    def reserve(self, cluster: str, token: str, asked: str, public_key: str) -> tuple[TokenRecord, str]:
        """The token's record, and the name for the holder of that key; the same one whenever it asks.

        ``asked`` is the name that the machine would have, which counts where names are the machines' own.
        Raises Refused(token_used, token_invalid, token_unknown, node_name_taken, forbidden).
        """
        authority = Authority.open(self._store)
        store = authority.store
        with store.locked():
            record = store.token(cluster, token)
            now = authority.now()
            if record.public != token or not record.shared:
                raise Refused(
                    "token_unknown", f"{self._store} knows of no such join token for several machines"
                )
            if record.revoked_at or record.until <= now:
                raise Refused("token_invalid", f"the join token {record.id} was revoked or has expired")
            known = record.taken.get(public_key)
            if known is not None:
                return record, known
            if len(record.taken) >= record.uses:
                raise Refused(
                    "token_used",
                    f"the join token is good for {record.uses} machines, and as many have used it: "
                    f"{', '.join(sorted(record.taken.values())[:10])}{' …' if record.uses > 10 else ''}; "
                    f"`isthmus token show {record.id}` says when",
                    uses=record.uses,
                )
            name = self._free(authority, record, asked)
            record.taken[public_key] = name
            store.save_token(record)
        return record, name

    def _free(self, authority: Authority, record: TokenRecord, asked: str) -> str:
        store, cluster = authority.store, record.cluster
        if not numbered(record.names):
            if not fits(record.names, asked):
                raise Refused(
                    "forbidden", f"the join token lets in nodes with names like {record.names!r}, not {asked!r}"
                )
            if asked in record.taken.values() or store.principal("node", cluster, asked) is not None:
                raise Refused(
                    "node_name_taken",
                    f"{asked!r} has or had credentials already: a join token for several machines takes "
                    f"over no name. Rename the machine, or make a token for that name alone: "
                    f"`isthmus token create {asked} --bus URL`",
                    node=asked,
                )
            return asked
        taken = {*record.taken.values(), *record.skipped}
        for number in range(1, record.uses + TRIES + 1):
            name = name_of(record.names, str(number))
            if name not in taken and store.principal("node", cluster, name) is None:
                return name
        raise Refused(
            "node_name_taken",
            f"the names {name_of(record.names, '1')} to {name} are taken: make a token with another pattern",
        )

    def taken_elsewhere(self, cluster: str, token: str, public_key: str) -> None:
        """The controllers know the name otherwise: it is not this machine's, and nobody gets it any more."""
        authority = Authority.open(self._store)
        with authority.store.locked():
            record = authority.store.token(cluster, token)
            name = record.taken.pop(public_key, None)
            if name is not None and numbered(record.names):
                record.skipped.append(name)
            authority.store.save_token(record)

    async def sign(self, record: TokenRecord, node: str, public_key: str, days: float) -> str:
        """The node's credentials, its account made and known to the servers. Raises Refused, Unavailable.

        Cancelled, the account may have been made; it may be repeated.
        """
        authority = await asyncio.to_thread(Authority.open, self._store)
        principal = await asyncio.to_thread(
            authority.add, "node", record.cluster, node, shared_token=record.public
        )
        if principal.shared_token != record.public:
            raise Refused(
                "node_name_taken",
                f"{node!r} has credentials that this token did not give",
                node=node,
            )
        await push_account(self._system, principal.account, authority.store.jwt(principal.account))
        return await asyncio.to_thread(authority.sign_user, principal, public_key, days=days)
