"""The issuer: redeems join tokens and renews nodes' credentials, on line, with the least of the keys.

It holds the ``nodes`` signing key, which can make users of existing nodes' accounts and nothing
else, and the public keys. A token's use is recorded by the controllers before anything is handed
out; whoever comes second with the same token meets the record.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg

from deploy.credentials.authority import DAY_S, LIFETIME_DAYS, node_user
from deploy.credentials.issuers.admission import TRIES, Admission
from deploy.credentials.issuers.answering import QUEUE, Answering
from deploy.credentials.jwt import check, encode
from deploy.credentials.store import Store, token_id
from events import subjects
from events.bus.access.nkeys import kind_of, verify
from events.bus.client import ControllerClient
from events.bus.enrolment import SHARED_TAG, EnrolReply, EnrolRequest, statement
from events.bus.names import numbered
from events.errors import Refused, Unavailable
from events.protocol.commands import SharedUse, UseToken, token_command_id

log = logging.getLogger("isthmus.issuer")

REQUEST_LIMIT_BYTES = 16 * 1024
_decode = msgspec.json.Decoder(EnrolRequest).decode


def _shared(claims: dict[str, Any]) -> bool:
    """Whether these are the claims of a join token for several machines."""
    tags = claims["nats"].get("tags") or []
    return any(str(tag).startswith(SHARED_TAG) for tag in tags)


class Issuer:
    """Answers ``isthmus.*.enrol.*`` and ``isthmus.*.renew.*``. Several may run; each request reaches one.

    ``days`` is the lifetime of what it issues. With ``admission`` it also serves tokens for several machines.
    """

    def __init__(
        self,
        client: Client,
        store: Store,
        *,
        days: float = LIFETIME_DAYS["node"],
        admission: Admission | None = None,
    ) -> None:
        self._client = client
        self._key = store.key("nodes")
        self._book = store.load()
        self._days = days
        self._admission = admission
        self.answering = Answering()

    async def start(self) -> None:
        """Subscribe; from then on requests are answered until the connection is closed.

        Cancelled, it may answer some requests until the connection is closed.
        """
        await self._client.subscribe("isthmus.*.enrol.*", queue=QUEUE, cb=self._enrol)
        await self._client.subscribe("isthmus.*.renew.*", queue=QUEUE, cb=self._renew)
        await self._client.flush()

    async def close(self) -> None:
        """Give up what is being answered; its askers ask again. Cancelled, some of it may go on."""
        await self.answering.close()

    async def _enrol(self, message: Msg) -> None:
        await self.answering.take(message, partial(self._answer, "enrol", self._redeemed))

    async def _renew(self, message: Msg) -> None:
        await self.answering.take(message, partial(self._answer, "nodes", self._renewed))

    async def _answer(
        self,
        key: str,
        use: Callable[[EnrolRequest, dict[str, Any]], Awaitable[EnrolReply]],
        message: Msg,
    ) -> EnrolReply:
        asked, claims = self._checked(message, key)
        reply = await use(asked, claims)
        log.info("%s: credentials issued for %s", message.subject, asked.public_key)
        return reply

    def _checked(self, message: Msg, key: str) -> tuple[EnrolRequest, dict[str, Any]]:
        """The request and the claims of what it presents, if everything fits together."""
        if len(message.data) > REQUEST_LIMIT_BYTES:
            raise Refused("payload_too_large", f"the request has {len(message.data):,} bytes")
        try:
            asked = _decode(message.data)
            signature = base64.b64decode(asked.signature, validate=True)
        except (msgspec.MsgspecError, ValueError, UnicodeDecodeError, RecursionError) as error:
            raise Refused("bad_request", f"the request is unreadable: {error}") from error
        _, cluster, _, node = message.subject.split(".")
        if (asked.cluster, subjects.token(asked.node)) != (cluster, node):
            raise Refused(
                "forbidden",
                f"a request on the subject of {cluster}/{node} asks for {asked.cluster}/{asked.node}",
            )
        issuers = {self._book.keys[key], *([self._book.retired[key]] if key in self._book.retired else [])}
        claims = check(asked.jwt, issuers)
        if kind_of(asked.public_key) != "user":
            raise Refused("bad_request", "the new key is no user's key")
        if claims.get("name") != asked.node and not _shared(claims):
            raise Refused("forbidden", f"credentials of {claims.get('name')!r} ask for node {asked.node!r}")
        if int(claims.get("exp", 0)) <= time.time():
            raise Refused("token_invalid", "the presented token or credentials have expired")
        said = statement(asked.cluster, asked.node, asked.public_key, asked.jwt)
        if not verify(str(claims["sub"]), said, signature):
            raise Refused("forbidden", "the request is not signed by the key that it presents")
        return asked, claims

    async def _redeemed(self, asked: EnrolRequest, claims: dict[str, Any]) -> EnrolReply:
        if _shared(claims):
            return await self._let_in(asked, str(claims["sub"]))
        token = str(claims["sub"])
        expires = int(time.time() + self._days * DAY_S)
        controller = ControllerClient(self._client, asked.cluster, actor="issuer")
        reply = await controller.send(
            UseToken(
                token=token,
                node=asked.node,
                public_key=asked.public_key,
                expires=datetime.fromtimestamp(expires, UTC),
            ),
            command_id=token_command_id(token),
            timeout_s=2.5,
        )
        if reply.result.get("public_key") != asked.public_key:
            raise Refused(
                "token_used",
                f"the join token for node {asked.node!r} was used before (event {reply.sequence}) by the "
                f"machine with key {str(reply.result.get('public_key', ''))[:12]}…; `isthmus token show "
                f"{token_id(token)}` says when. If that was not you, revoke the node: `isthmus credentials "
                f"revoke node {asked.node} --yes`",
                node=asked.node,
            )
        return EnrolReply(jwt=self._sign(asked, claims, expires), node=asked.node)

    async def _let_in(self, asked: EnrolRequest, token: str) -> EnrolReply:
        """One of the uses of a token for several machines. A repeated question has the same answer."""
        admission = self._admission
        if admission is None:
            raise Unavailable(
                "no_admission",
                "the issuer that answered has no right to make nodes' accounts, which a join token for several "
                "machines wants: run one with `isthmus credentials serve --admit`",
            )
        controller = ControllerClient(self._client, asked.cluster, actor="issuer")
        command_id = token_command_id(token, asked.public_key)
        for _ in range(TRIES):
            record, node = await asyncio.to_thread(
                admission.reserve, asked.cluster, token, asked.node, asked.public_key
            )
            use = UseToken(
                token=token,
                node=node,
                public_key=asked.public_key,
                expires=datetime.fromtimestamp(int(time.time() + self._days * DAY_S), UTC),
                shared=SharedUse(
                    uses=record.uses,
                    until=datetime.fromtimestamp(record.until, UTC),
                    kind=record.kind,
                    site=record.site,
                ),
            )
            try:
                reply = await controller.send(use, command_id=command_id, timeout_s=2.5)
            except Refused as error:
                if error.code == "node_name_taken":
                    await asyncio.to_thread(admission.taken_elsewhere, asked.cluster, token, asked.public_key)
                    if numbered(record.names):
                        continue
                raise
            given = str(reply.result.get("node", ""))  # by an earlier answer perhaps, which did not arrive
            jwt = await admission.sign(record, given, asked.public_key, self._days)
            return EnrolReply(jwt=jwt, node=given)
        raise Refused("node_name_taken", f"{TRIES} numbers in a row are names of others: take another pattern")

    async def _renewed(self, asked: EnrolRequest, claims: dict[str, Any]) -> EnrolReply:
        return EnrolReply(jwt=self._sign(asked, claims, int(time.time() + self._days * DAY_S)))

    def _sign(self, asked: EnrolRequest, claims: dict[str, Any], expires: int) -> str:
        account = str(claims["nats"].get("issuer_account", ""))
        return encode(
            self._key,
            asked.public_key,
            asked.node,
            node_user(account, asked.cluster, asked.node),
            expires=expires,
            issued=int(time.time()),
        )
