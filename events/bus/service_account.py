"""How an agent in a pod comes by its node's credentials: by the pod's own ServiceAccount token.

The kubelet puts a short-lived token into the pod (a projected volume with the audience ``isthmus``); the
issuer has the API server say whose it is, and on which Node. The key pair is made here; only its public half
travels. The credentials by which the question reaches the bus open nothing but the question.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from nats.errors import Error as NatsError

from events import subjects
from events.bus.access import creds
from events.bus.access.nkeys import generate
from events.bus.connection import BusOptions, connect
from events.bus.enrolment import EnrolReply
from events.bus.retry import pauses
from events.errors import IsthmusError, Overloaded, Refused, Unavailable, from_wire
from events.input_files import read_whole

TOKEN_LIMIT = 16 * 1024
ANSWER_S = 10.0
"""The API server is asked, and every server of the bus is told of a new account."""
_AGAIN = {"cluster_not_defined", "service_account_invalid", "forbidden"}
"""Refusals that end by themselves while a cluster comes up: it is defined a moment later, a token is renewed by
the kubelet, the bus learns its accounts."""


class PodRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Asks for a node's credentials for ``public_key``, on the strength of a pod's ``token``."""

    cluster: str
    node: str
    public_key: str
    token: str

    def __repr__(self) -> str:
        return f"PodRequest(cluster={self.cluster!r}, node={self.node!r})"


def held(folder: Path, node: str, ca: str) -> bool:
    """Whether ``folder`` has good credentials of ``node``, of the bus whose authority is ``ca``."""
    try:
        found = creds.load(folder / "agent.creds")
        same = not ca or (folder / "ca.pem").read_bytes() == Path(ca).read_bytes()
    except (IsthmusError, OSError):
        return False
    return same and found.name == node and (found.expires is None or found.expires > datetime.now(UTC))


async def enrol(
    bus: BusOptions, cluster: str, node: str, *, token_file: Path, folder: Path, within_s: float
) -> bool:
    """Have ``agent.creds`` and ``ca.pem`` in ``folder``; whether they had to be fetched.

    ``bus`` carries the credentials that open the question. Asks again for ``within_s`` seconds while the bus,
    the issuer or the API server is not there yet. Raises what the last answer said: Unavailable, or Refused
    (``service_account_invalid``, ``service_account_forbidden``, ``credentials_revoked``,
    ``credentials_missing`` for a token that cannot be read). Cancelled, it leaves what was there.
    """
    if held(folder, node, bus.ca):
        return False
    pair = generate("user")
    error: IsthmusError = Unavailable("no_controller", "nobody was asked")
    async for left_s in pauses(asyncio.get_running_loop().time() + within_s, first_s=0.2, longest_s=3.0):
        asked = PodRequest(cluster=cluster, node=node, public_key=pair.public, token=_token(token_file))
        try:
            jwt = await _ask(bus, asked, min(ANSWER_S, left_s))
        except (Unavailable, Overloaded) as met:
            error = met
            continue
        except Refused as met:
            if met.code not in _AGAIN:
                raise
            error = met
            pair = generate("user")  # a recorded question keeps its answer: ask another one
            continue
        _keep(folder, creds.render(jwt, pair.seed), bus.ca)
        return True
    raise error


def _keep(folder: Path, text: str, ca: str) -> None:
    creds.write_secret(folder / "agent.creds", text)
    if ca:  # last: by it credentials of another bus are known
        creds.write_secret(folder / "ca.pem", Path(ca).read_bytes())
        (folder / "ca.pem").chmod(0o644)


def _token(file: Path) -> str:
    try:
        text = read_whole(file).decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(
            "credentials_missing",
            f"the pod's ServiceAccount token {file} cannot be read: {error}. It comes from a projected volume "
            f"with the audience isthmus",
        ) from error
    if not text or len(text) > TOKEN_LIMIT:
        raise Refused("credentials_invalid", f"{file} holds no ServiceAccount token")
    return text


async def _ask(bus: BusOptions, asked: PodRequest, within_s: float) -> str:
    subject = subjects.enrol_pod(asked.cluster, asked.node)
    client = await connect(bus, name=f"isthmus-enrol/{asked.node}")
    try:
        message = await client.request(subject, msgspec.json.encode(asked), timeout=within_s)
        reply = msgspec.json.decode(message.data, type=EnrolReply)
    except (NatsError, TimeoutError) as error:
        raise Unavailable("no_controller", f"no issuer of credentials answers {subject}") from error
    except msgspec.MsgspecError as error:
        raise IsthmusError("internal", f"the issuer's answer is unreadable: {error}") from error
    finally:
        await client.close()
    if reply.code:
        raise from_wire(reply.code, reply.message)
    if creds.decode_claims(reply.jwt).get("sub") != asked.public_key:
        raise Refused("credentials_invalid", "the issuer's answer is for another key than this machine's")
    return reply.jwt
