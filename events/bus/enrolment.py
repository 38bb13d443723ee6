"""How a machine comes by its credentials and keeps them: join tokens, redeeming, renewing.

A join token is bound to one node, ends soon and is good once. It carries what a bare machine needs
to reach the bus and nothing that outlives it: credentials that may do one thing, to ask the issuer.
The machine makes its own key pair; only the public half travels. Each request is signed by the key
of the credentials that it presents, over what it asks for, so that nobody on the way can put in a
key of his own.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from nats.aio.client import Client
from nats.errors import Error as NatsError

from events import subjects
from events.bus.access import creds
from events.bus.access.nkeys import KeyPair, generate
from events.bus.connection import BusOptions, connect
from events.bus.retry import jittered_s, pauses
from events.errors import IsthmusError, Refused, Unavailable, from_wire

TOKEN_PREFIX = "isthmus1."  # noqa: S105  how a token begins, not one
_TOKEN_LIMIT = 16 * 1024
RENEW_AT = 2 / 3
"""The share of its lifetime after which a credential is renewed."""
RETRY_S = 600.0
RENEW_TAG = "renew:"
"""A user's tag that names the subject where it may renew itself."""

log = logging.getLogger("isthmus.credentials")


class JoinToken(msgspec.Struct, frozen=True, kw_only=True):
    """What is in a token. ``seed`` is secret while the token lives."""

    cluster: str
    node: str
    servers: tuple[str, ...]
    jwt: str = ""
    seed: str = ""
    """Both empty for a bus that asks for no credentials."""
    ca: str = ""
    """The bus's certificate authority (PEM); empty when it is a public one or there is no TLS."""
    kind: str = ""
    site: str = ""
    """What the node is to join as, so that nobody types it there; empty: said on the node."""

    def __repr__(self) -> str:
        return f"JoinToken(cluster={self.cluster!r}, node={self.node!r})"

    def text(self) -> str:
        """The token as one word."""
        return TOKEN_PREFIX + base64.urlsafe_b64encode(msgspec.json.encode(self)).rstrip(b"=").decode()


class EnrolRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Asks for credentials for ``public_key``, on the strength of ``jwt``; see :func:`statement`."""

    cluster: str
    node: str
    public_key: str
    jwt: str
    signature: str


class EnrolReply(msgspec.Struct, frozen=True, kw_only=True):
    """The new JWT, or why not."""

    jwt: str = ""
    code: str = ""
    message: str = ""


def statement(cluster: str, node: str, public_key: str, jwt: str) -> bytes:
    """What a request's signature is made over."""
    return f"isthmus-enrolment-1\n{cluster}\n{node}\n{public_key}\n{jwt}".encode()


def request(cluster: str, node: str, public_key: str, presented: creds.Credentials) -> EnrolRequest:
    """A request signed by the presented credentials' key."""
    signature = presented.key.sign(statement(cluster, node, public_key, presented.jwt))
    return EnrolRequest(
        cluster=cluster,
        node=node,
        public_key=public_key,
        jwt=presented.jwt,
        signature=base64.b64encode(signature).decode(),
    )


def read_token(text: str, *, now: datetime | None = None, accept_expired: bool = False) -> JoinToken:
    """Read a token's text. Raises Refused(token_invalid), never repeating it.

    ``accept_expired`` is for a machine that may have redeemed it already; the issuer refuses it otherwise.
    """
    word = text.strip()
    try:
        if not word.startswith(TOKEN_PREFIX) or len(word) > _TOKEN_LIMIT:
            raise ValueError(f"a token begins with {TOKEN_PREFIX} and is one word")  # noqa: TRY301
        body = word[len(TOKEN_PREFIX) :]
        raw = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
        token = msgspec.json.decode(raw, type=JoinToken)
        found = creds.parse(creds.render(token.jwt, token.seed), "the token") if token.jwt else None
        if not token.servers:
            raise ValueError("it names no server of the bus")  # noqa: TRY301
        subjects.check_node_name(token.node)
        subjects.check_label(token.cluster, "cluster")
    except (ValueError, msgspec.MsgspecError, IsthmusError) as error:
        reason = error.message if isinstance(error, IsthmusError) else str(error)
        raise Refused("token_invalid", f"the join token cannot be read: {reason}") from error
    if accept_expired or found is None:
        return token
    if found.expires is not None and found.expires <= (now or datetime.now(UTC)):
        raise Refused(
            "token_invalid",
            f"the join token for node {token.node!r} expired at {found.expires:%Y-%m-%d %H:%M} UTC: "
            f"make a new one with `isthmus token create {token.node} --bus URL`",
            node=token.node,
        )
    return token


async def redeem(
    text: str, folder: Path, *, node: str = "", timeout_s: float = 15.0
) -> tuple[JoinToken, BusOptions]:
    """Turn a token into ``agent.creds`` (and ``ca.pem``) in ``folder``.

    Raises Refused: ``token_invalid`` (damaged, expired, another node's than ``node``), ``token_used``,
    ``forbidden`` (the bus refuses it); Unavailable when the bus or the issuer does not answer. Cancelled after
    the issuer has answered, the token is used up and no credentials are written: ask for another token.
    """
    token = read_token(text)
    if node and node != token.node:
        raise Refused(
            "token_invalid",
            f"the join token is for node {token.node!r}, this machine is to be {node!r}",
            node=node,
        )
    path, ca, borrowed = folder / "agent.creds", folder / "ca.pem", folder / "join.creds"
    if token.ca:
        creds.write_secret(ca, token.ca)
        ca.chmod(0o644)
    creds.write_secret(borrowed, creds.render(token.jwt, token.seed))
    try:
        options = BusOptions(servers=token.servers, credentials=str(borrowed), ca=str(ca) if token.ca else "")
        client = await connect(options, name=f"isthmus-join/{token.node}")
        try:
            pair = generate("user")
            subject = subjects.enrol(token.cluster, token.node)
            asked = request(token.cluster, token.node, pair.public, creds.load(borrowed))
            jwt = await _ask(client, subject, asked, timeout_s)
        finally:
            await client.close()
        creds.write_secret(path, creds.render(jwt, pair.seed))
    finally:
        borrowed.unlink(missing_ok=True)
    return token, msgspec.structs.replace(options, credentials=str(path))


async def _ask(client: Client, subject: str, asked: EnrolRequest, timeout_s: float) -> str:
    """Ask until answered; the same question has the same answer, so that asking again is safe."""
    error: IsthmusError = Unavailable("no_controller", f"no issuer of credentials answers {subject}")
    async for left_s in pauses(asyncio.get_running_loop().time() + timeout_s, first_s=0.1, longest_s=2.0):
        try:
            message = await client.request(subject, msgspec.json.encode(asked), timeout=min(3.0, left_s))
            reply = msgspec.json.decode(message.data, type=EnrolReply)
            if not reply.code:
                return _fitting(reply.jwt, asked.public_key)
            error = from_wire(reply.code, reply.message)
            if not isinstance(error, Unavailable):
                raise error
        except (NatsError, TimeoutError):
            error = Unavailable("no_controller", f"no issuer of credentials answers {subject}")
        except msgspec.MsgspecError as bad:
            raise IsthmusError("internal", f"the issuer's answer is unreadable: {bad}") from bad
    raise error


def _fitting(jwt: str, public_key: str) -> str:
    if creds.decode_claims(jwt).get("sub") != public_key:
        raise Refused("credentials_invalid", "the issuer's answer is for another key than this machine's")
    return jwt


def renewal_due(found: creds.Credentials) -> datetime | None:
    """When the credentials should be renewed; None when they cannot be or never end."""
    issued = found.claims.get("iat")
    if found.expires is None or not isinstance(issued, int) or not found.tag(RENEW_TAG):
        return None
    begin = datetime.fromtimestamp(issued, UTC)
    return begin + (found.expires - begin) * RENEW_AT


async def renew(client: Client, path: Path, *, timeout_s: float = 15.0) -> creds.Credentials:
    """Replace the credentials in ``path`` by fresh ones; the session goes on, the next one uses them.

    Raises Refused and Unavailable; the file is then as it was. Cancelled, the file is as it was.
    """
    old = creds.load(path)
    subject = old.tag(RENEW_TAG)
    cluster, node = subject.split(".")[1], old.name
    pair: KeyPair = generate("user")
    jwt = await _ask(client, subject, request(cluster, node, pair.public, old), timeout_s)
    creds.write_secret(path, creds.render(jwt, pair.seed))
    return creds.load(path)


async def keep_fresh(client: Client, path: Path) -> None:
    """Renew the credentials in ``path`` whenever they are due, for ever. Owned and cancelled by the caller."""
    while True:
        try:
            due = renewal_due(creds.load(path))
        except IsthmusError as error:  # being replaced by somebody, or gone: the session goes on meanwhile
            log.warning("credentials cannot be read: %s [%s]", error.message, error.code)
            await asyncio.sleep(jittered_s(RETRY_S))
            continue
        if due is None:
            return
        wait_s = (due - datetime.now(UTC)).total_seconds()
        if wait_s > 0:
            # In steps of an hour: a laptop's or a virtual machine's clock may have jumped meanwhile.
            await asyncio.sleep(jittered_s(min(wait_s, 3600), 0.05))
            continue
        try:
            fresh = await renew(client, path)
            log.info("credentials renewed; they end at %s", fresh.expires)
        except IsthmusError as error:
            log.warning("credentials not renewed yet: %s [%s]", error.message, error.code)
            await asyncio.sleep(jittered_s(RETRY_S))
