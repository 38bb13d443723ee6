"""Telling running servers about changed accounts, through the system account.

A server that is down learns it from the others when it comes back (the resolver compares and
synchronises). Nothing is deleted there: a revoked account is replaced by one that may do nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import msgspec
from nats.aio.client import Client

from deploy.credentials.store import Store
from events.bus.connection import BusOptions, connect
from events.errors import Refused, Unavailable

UPDATE = "$SYS.REQ.CLAIMS.UPDATE"
_FIRST_S = 5.0
_NEXT_S = 0.3
"""How long to wait for the answers of further servers behind the first."""
AT_ONCE = 64


async def push_accounts(options: BusOptions, store: Store, accounts: Iterable[str]) -> int:
    """Send the JWTs of these accounts; return the number of servers that took the last of them.

    ``options`` carry the system credentials. Raises Unavailable(bus_unreachable), and
    Refused(credentials_invalid) with the server's words when it takes one not. Cancelled, some servers may have
    taken some of them; it may be repeated.
    """
    client = await connect(options, name="isthmus-credentials")
    try:
        pushing = asyncio.Semaphore(AT_ONCE)

        async def one(account: str) -> int:
            async with pushing:
                return await push_account(client, account, store.jwt(account))

        servers = await asyncio.gather(*(one(account) for account in accounts))
    finally:
        await client.close()
    return max(servers, default=0)


async def push_account(client: Client, account: str, jwt: str) -> int:
    """Send one account's JWT by a connection of the system account; return how many servers took it.

    Raises as :func:`push_accounts`. Cancelled, some servers may have taken it.
    """
    inbox = client.new_inbox()
    subscription = await client.subscribe(inbox)
    taken = 0
    try:
        await client.publish(UPDATE, jwt.encode(), reply=inbox)
        wait_s = _FIRST_S
        while True:
            try:
                message = await subscription.next_msg(timeout=wait_s)
            except TimeoutError:
                break
            if not message.data:  # no responders: the server resolves accounts otherwise
                break
            answer: dict[str, Any] = msgspec.json.decode(message.data)
            if "error" in answer:
                raise Refused(
                    "credentials_invalid",
                    f"the server refuses account {account[:12]}…: {answer['error'].get('description', answer)}",
                )
            taken, wait_s = taken + 1, _NEXT_S
    finally:
        await subscription.unsubscribe()
    if not taken:
        raise Unavailable(
            "bus_unreachable",
            f"no server took account {account[:12]}… within {_FIRST_S:g} s: are these system credentials, and "
            f"do the servers use the JWT resolver (a plain configuration is changed by rendering it anew)?",
        )
    return taken
