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
import socket
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from nats.aio.client import Client
from nats.errors import Error as NatsError

from events import subjects
from events.bus.access import creds
from events.bus.access.nkeys import KeyPair, from_seed, generate
from events.bus.connection import BusOptions, connect
from events.bus.names import check_names, fits, name_of, numbered
from events.bus.retry import jittered_s, pauses
from events.errors import IsthmusError, Overloaded, Refused, Unavailable, from_wire

TOKEN_PREFIX = "isthmus1."  # noqa: S105  how a token begins, not one
_TOKEN_LIMIT = 16 * 1024
PENDING_KEY = "join.key"
"""File with the key for which credentials are being asked."""
RENEW_AT = 2 / 3
"""The share of its lifetime after which a credential is renewed."""
RETRY_S = 600.0
SHARED_TAG = "shared-token:"
"""A join token's tag that says that several machines may redeem it."""
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
    names: str = ""
    """For several machines: the pattern of their names (:mod:`events.bus.names`); ``node`` is then empty."""
    kind: str = ""
    site: str = ""
    """What the node is to join as, so that nobody types it there; empty: said on the node."""

    def __repr__(self) -> str:
        return f"JoinToken(cluster={self.cluster!r}, node={self.node or self.names!r})"

    def for_node(self, hostname: str, node: str = "") -> JoinToken:
        """The token as this machine uses it: with the name that it asks for (``node``, if one is wanted).

        Raises Refused(token_invalid) when ``node`` is none that it gives, BadRequest(node_name_invalid).
        """
        if self.names and node and not fits(self.names, node):
            raise Refused(
                "token_invalid",
                f"the join token is for nodes named {self.names!r}, this machine is to be {node!r}",
                node=node,
            )
        if not self.names:
            if node and node != self.node:
                raise Refused(
                    "token_invalid",
                    f"the join token is for node {self.node!r}, this machine is to be {node!r}",
                    node=node,
                )
            return self
        return msgspec.structs.replace(
            self, node=node or name_of(self.names, "1" if numbered(self.names) else hostname)
        )

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
    node: str = ""
    """Whose credentials they are; empty from an issuer of 0.2.0."""
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
        if token.names:
            check_names(token.names)
        if token.node or not token.names:
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
            f"the join token for {token.node or token.names!r} expired at {found.expires:%Y-%m-%d %H:%M} UTC, "
            f"and this machine's clock says {now or datetime.now(UTC):%Y-%m-%d %H:%M}. If the clock is right, "
            f"make a new one with `isthmus token create {token.node or 'NODE'} --bus URL`",
            node=token.node,
        )
    return token


async def redeem(
    text: str, folder: Path, *, node: str = "", timeout_s: float = 15.0
) -> tuple[JoinToken, BusOptions]:
    """Turn a token into ``agent.creds`` (and ``ca.pem``) in ``folder``.

    Raises Refused: ``token_invalid`` (damaged, expired, another node's than ``node``), ``token_used``,
    ``forbidden`` (the bus refuses it); Unavailable when the bus or the issuer does not answer. Cancelled or
    killed at any moment, the same call goes on: the key is written before the question is asked, and the same
    question has the same answer.
    """
    token = read_token(text).for_node(socket.gethostname().lower(), node)
    path, ca, borrowed = folder / "agent.creds", folder / "ca.pem", folder / "join.creds"
    presented = creds.parse(creds.render(token.jwt, token.seed), "the token")
    pair = _pending(folder / PENDING_KEY, presented.key.public)
    if token.ca:
        creds.write_secret(ca, token.ca)
        ca.chmod(0o644)
    creds.write_secret(borrowed, creds.render(token.jwt, token.seed))
    try:
        options = BusOptions(servers=token.servers, credentials=str(borrowed), ca=str(ca) if token.ca else "")
        client = await connect(options, name=f"isthmus-join/{token.node}")
        try:
            subject = subjects.enrol(token.cluster, token.node)
            asked = request(token.cluster, token.node, pair.public, presented)
            reply = await _ask(client, subject, asked, timeout_s)
        finally:
            await client.close()
        creds.write_secret(path, creds.render(reply.jwt, pair.seed))
    finally:
        borrowed.unlink(missing_ok=True)
    (folder / PENDING_KEY).unlink(missing_ok=True)
    given = msgspec.structs.replace(token, node=reply.node or token.node)
    return given, msgspec.structs.replace(options, credentials=str(path))


def _pending(file: Path, token: str) -> KeyPair:
    """The key for which an earlier try has asked with this token, or a new one, which is written down."""
    try:
        asked_with, _, seed = file.read_text("ascii").partition("\n")
        if asked_with == token:
            return from_seed(seed.strip())
    except (OSError, UnicodeDecodeError, IsthmusError):
        pass  # none, or none that can be used
    pair = generate("user")
    creds.write_secret(file, f"{token}\n{pair.seed}\n")
    return pair


async def _ask(client: Client, subject: str, asked: EnrolRequest, timeout_s: float) -> EnrolReply:
    """Ask until answered; the same question has the same answer, so that asking again is safe."""
    error: IsthmusError = Unavailable("no_controller", f"no issuer of credentials answers {subject}")
    async for left_s in pauses(asyncio.get_running_loop().time() + timeout_s, first_s=0.1, longest_s=2.0):
        try:
            message = await client.request(subject, msgspec.json.encode(asked), timeout=min(3.0, left_s))
            reply = msgspec.json.decode(message.data, type=EnrolReply)
            if not reply.code:
                return _fitting(reply, asked)
            error = from_wire(reply.code, reply.message)
            if not isinstance(error, Unavailable | Overloaded):
                raise error
        except (NatsError, TimeoutError):
            error = Unavailable("no_controller", f"no issuer of credentials answers {subject}")
        except msgspec.MsgspecError as bad:
            raise IsthmusError("internal", f"the issuer's answer is unreadable: {bad}") from bad
    raise error


def _fitting(reply: EnrolReply, asked: EnrolRequest) -> EnrolReply:
    claims = creds.decode_claims(reply.jwt)
    if claims.get("sub") != asked.public_key:
        raise Refused("credentials_invalid", "the issuer's answer is for another key than this machine's")
    if claims.get("name") != (reply.node or asked.node):
        raise Refused("credentials_invalid", "the issuer's answer is for another node than it says")
    return reply


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
    reply = await _ask(client, subject, request(cluster, node, pair.public, old), timeout_s)
    creds.write_secret(path, creds.render(reply.jwt, pair.seed))
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
