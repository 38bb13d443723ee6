"""The issuer for the agents of a Kubernetes cluster: a pod's ServiceAccount token → its node's credentials.

Unlike the issuer of join tokens it lets in nodes that nobody made an account for: it needs the operator key
and the system credentials. It speaks for one cluster, the one whose API server it asks.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg

from controlplane.kubernetes import tokens
from deploy.credentials.authority import DAY_S, LIFETIME_DAYS, Authority
from deploy.credentials.issuers.answering import QUEUE, Answering
from deploy.credentials.issuers.tokens import REQUEST_LIMIT_BYTES
from deploy.credentials.push import push_account
from events import subjects
from events.bus.access.nkeys import kind_of
from events.bus.client import ControllerClient
from events.bus.enrolment import EnrolReply
from events.bus.service_account import PodRequest
from events.errors import Refused
from events.protocol.commands import UseToken, token_command_id

log = logging.getLogger("isthmus.issuer")

_decode = msgspec.json.Decoder(PodRequest).decode


class PodIssuer:
    """Answers ``isthmus.<cluster>.enrol-pod.*``. Several may run on one store; each request reaches one.

    ``system`` is a connection with the system credentials. ``adopt``: names that were let in without
    Kubernetes, too. Coroutines: cancelled, a request may have been carried out; its asker asks again.
    """

    def __init__(
        self,
        client: Client,
        system: Client,
        store: Path,
        cluster: str,
        reviewer: tokens.Reviewer,
        *,
        account: str = tokens.ACCOUNT,
        audience: str = tokens.AUDIENCE,
        days: float = LIFETIME_DAYS["node"],
        adopt: bool = False,
    ) -> None:
        self._client, self._system = client, system
        self._store, self._cluster = store, subjects.check_label(cluster, "cluster")
        self._reviewer, self._account, self._audience = reviewer, account, audience
        self._days = days
        self._adopt = adopt
        self.answering = Answering()

    async def start(self) -> None:
        """Subscribe; requests are answered until :meth:`close`. Raises Refused without an authority."""
        Authority.open(self._store).store.key("operator")
        await self._client.subscribe(subjects.enrol_pod(self._cluster, "*"), queue=QUEUE, cb=self._take)
        await self._client.flush()

    async def close(self) -> None:
        """Give up what is being answered."""
        await self.answering.close()

    async def _take(self, message: Msg) -> None:
        await self.answering.take(message, self._answer)

    async def _answer(self, message: Msg) -> EnrolReply:
        return EnrolReply(jwt=await self._issued(self._checked(message)))

    def _checked(self, message: Msg) -> PodRequest:
        if len(message.data) > REQUEST_LIMIT_BYTES * 2:
            raise Refused("payload_too_large", f"the request has {len(message.data):,} bytes")
        try:
            asked = _decode(message.data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise Refused("bad_request", f"the request is unreadable: {error}") from error
        subjects.check_node_name(asked.node)
        if (asked.cluster, subjects.enrol_pod(asked.cluster, asked.node)) != (self._cluster, message.subject):
            raise Refused(
                "forbidden",
                f"a request on {message.subject} of {self._cluster} asks for {asked.cluster}/{asked.node}",
            )
        if kind_of(asked.public_key) != "user":
            raise Refused("bad_request", "the new key is no user's key")
        return asked

    async def _issued(self, asked: PodRequest) -> str:
        found = await self._reviewer.review_token(asked.token, self._audience)
        pod = tokens.pod_of(found, asked.node, audience=self._audience, account=self._account)
        authority = await asyncio.to_thread(self._admit, asked.node)
        principal = authority.find("node", self._cluster, asked.node)
        # Each time: it may have been made by one that ended before the servers knew it.
        await push_account(self._system, principal.account, authority.store.jwt(principal.account))
        expires = authority.now() + int(self._days * DAY_S)
        controller = ControllerClient(self._client, self._cluster, actor="issuer")
        await controller.send(
            UseToken(
                token=asked.public_key,
                node=asked.node,
                public_key=asked.public_key,
                expires=datetime.fromtimestamp(expires, UTC),
                pod=f"{pod.name} {pod.uid}",
            ),
            command_id=token_command_id(asked.public_key),
            timeout_s=2.5,
        )
        jwt = await asyncio.to_thread(authority.sign_user, principal, asked.public_key, days=self._days)
        log.info("%s: credentials for pod %s on Node %s", asked.node, pod.name, pod.node_uid)
        return jwt

    def _admit(self, node: str) -> Authority:
        """The node's account, made if it is new. Raises Refused."""
        authority = Authority.open(self._store)
        known = authority.store.principal("node", self._cluster, node)
        if known is not None and not known.kubernetes and not self._adopt:
            raise Refused(
                "service_account_forbidden",
                f"{node} was let in without Kubernetes, so a pod cannot have its credentials: put a token of "
                f"`isthmus token create {node} --bus URL` on it, or run the issuer with --adopt",
                node=node,
            )
        authority.add("node", self._cluster, node, kubernetes=True)
        return authority
