"""The lease by which one of several controllers leads: held, renewed, given up, never trusted for safety.

It only avoids contention: whoever believes to lead may write, and the append's condition decides
whether he could. One message in a bucket of its own on the bus says who leads; it expires by
itself ``ttl_s`` after its last renewal. Every write of it is conditional on the revision that was
read, on one literal subject.

The bus judges its age by a server's wall clock. When that was ahead at the last renewal and is set right again,
the message would outlive its holder by as much as the clock was ahead. So whoever waits for the lease also
watches its revision: one that has not been renewed for longer than its lifetime, by the watcher's own monotonic
clock, is nobody's.

The bucket can lose its leader for good (:func:`events.jetstream.stream.Absence`). Nothing in it is worth
keeping, so whoever waits for the lease makes it anew.
"""

from __future__ import annotations

import time
from typing import Any, Protocol

import msgspec
from nats.aio.client import Client
from nats.errors import Error as NatsError

from events.errors import Refused, Unavailable
from events.jetstream.api import DEFAULT_PREFIX, ApiError, call, error_in, last_message
from events.jetstream.stream import Absence, ensure_stream

LEASE_TTL_S = 2.0
"""A takeover after SIGKILL takes this long plus one poll (a fifth of it); the bus needs a third to be slow."""

UNRENEWED_TTLS = 2.0
"""Lifetimes after which a lease that was not renewed is taken, whatever its age is by the bus."""


_WRONG_REVISION = frozenset({10071, 10164})


class Lease(Protocol):
    """The port. Implementations: on the bus, and in memory for the simulation."""

    @property
    def ttl_s(self) -> float:
        """Seconds after its last renewal at which the lease is free again."""
        ...

    async def acquire(self) -> bool:
        """Take the lease if it is free. False when another holds it. Raises Unavailable.

        Cancelled, it may be held: it runs out by itself.
        """
        ...

    async def renew(self) -> bool:
        """Hold it for another ``ttl_s``. False when it was lost, however shortly. Raises Unavailable.

        Cancelled, it may have been renewed.
        """
        ...

    async def release(self) -> None:
        """Give it up at once, if it is held. Raises Unavailable. Cancelled, it runs out by itself."""
        ...


def lease_stream(cluster: str) -> str:
    """The stream of the bucket; readable as the key-value bucket ``ISTHMUS_<cluster>_LEADER``."""
    return f"KV_ISTHMUS_{cluster}_LEADER"


class BusLease:
    """The lease in a bucket in the servers' memory. ``holder`` names this controller to people."""

    def __init__(
        self,
        client: Client,
        cluster: str,
        holder: str,
        *,
        ttl_s: float = LEASE_TTL_S,
        replicas: int | None = None,
    ) -> None:
        self._client = client
        self._stream = lease_stream(cluster)
        self._subject = f"$KV.ISTHMUS_{cluster}_LEADER.leader"
        self._body = msgspec.json.encode({"holder": holder})
        self.ttl_s = ttl_s
        self._replicas = replicas
        self._revision = 0
        self._ensured = False
        self._watched = (0, 0.0)
        """The revision that another holds, and since when at least, by the monotonic clock."""
        self._absence = Absence(client, self._stream)

    async def acquire(self) -> bool:
        try:
            acquired = await self._acquire()
        except Unavailable:
            self._ensured = False
            await self._absence.lasts()
            raise
        self._absence.over()
        return acquired

    async def _acquire(self) -> bool:
        await self._ensure()
        revision = await self._write(0)
        if revision is None:
            unrenewed = await self._unrenewed()
            revision = await self._write(unrenewed) if unrenewed else None
        if revision is None:
            return False
        self._revision = revision
        return True

    async def _unrenewed(self) -> int:
        """The revision of a lease that has outlived its term; 0 when its holder may lead still.

        Both looks saw the same revision, so that nothing was renewed between them, however long this process
        stood still; and a renewal that is on its way meets the condition of whichever write comes first.
        """
        try:
            found = await last_message(self._client, DEFAULT_PREFIX, self._stream, self._subject, timeout_s=1.0)
        except ApiError as error:
            raise Unavailable("log_unavailable", f"the lease on the bus: {error}") from error
        revision, now_s = found[0] if found else 0, time.monotonic()
        if revision != self._watched[0]:
            self._watched = revision, now_s
        return revision if now_s - self._watched[1] > UNRENEWED_TTLS * self.ttl_s else 0

    async def renew(self) -> bool:
        revision = await self._write(self._revision)
        if revision is None:
            # Another took it, or it ran out, or the servers' memory was lost in a restart. Were it free again:
            # somebody may have had it in between, so that it can only be the beginning of another term.
            self._ensured = False
            self._revision = 0
            return False
        self._revision = revision
        return True

    async def release(self) -> None:
        """Give the lease up, if it is ours. Raises Unavailable(log_unavailable).

        Cancelled, it runs out by itself.
        """
        revision, self._revision = self._revision, 0
        if revision:
            try:
                await call(
                    self._client,
                    f"{DEFAULT_PREFIX}.STREAM.MSG.DELETE.{self._stream}",
                    {"seq": revision, "no_erase": True},
                    timeout_s=1.0,
                )
            except ApiError as error:
                if error.passing:
                    raise Unavailable("log_unavailable", f"the lease could not be released: {error}") from error

    async def _ensure(self) -> None:
        if self._ensured:
            return
        await ensure_stream(
            self._client,
            {
                "name": self._stream,
                "subjects": [self._subject],
                "description": "Isthmus: which controller leads.",
                "retention": "limits",
                "storage": "memory",
                "discard": "new",
                "max_msgs_per_subject": 1,
                "max_age": int(self.ttl_s * 1_000_000_000),
                "duplicate_window": min(int(self.ttl_s * 1_000_000_000), 1_000_000_000),
                "deny_delete": False,
                "allow_direct": False,
            },
            replicas=self._replicas,
            timeout_s=5.0,
        )
        self._ensured = True

    async def _write(self, revision: int) -> int | None:
        """The new revision; None when the condition failed."""
        headers = {"Nats-Expected-Last-Subject-Sequence": str(revision)}
        try:
            reply = await self._client.request(
                self._subject, self._body, timeout=min(1.0, self.ttl_s / 2), headers=headers
            )
        except (NatsError, TimeoutError) as error:
            self._ensured = False
            raise Unavailable("log_unavailable", f"the lease on the bus did not answer: {error}") from error
        answer: dict[str, Any] = msgspec.json.decode(reply.data)
        refusal = error_in(answer)
        if refusal is None:
            return int(answer["seq"])
        if refusal.err_code in _WRONG_REVISION:
            return None
        if refusal.passing:
            raise Unavailable("log_unavailable", f"the lease on the bus: {refusal}")
        raise Refused("internal", f"the lease on the bus refuses its writer: {refusal}")
