"""Whether what is known is a stream's last word, and since when that is certain.

A leader that was cut off from the other servers goes on answering for about ten seconds with what it
knew, while the others elect a new one after four and take appends (measured with nats-server 2.15.1,
three servers, the leader's links to the other two cut). It says, though, when it last heard each of them,
and until then there was no other leader.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from nats.aio.client import Client

from events.bus.retry import pauses
from events.errors import Unavailable, VerificationFailed
from events.jetstream.api import DEFAULT_PREFIX, ApiError, call, last_message, message_at, prefix_of
from events.jetstream.direct import recorded_ns

CERTAIN_S = 3.0
"""How long after the last answer of a majority nothing can have been appended elsewhere: a follower waits
for at least 4 s before it stands for election (minElectionTimeout of the server's raft.go), less a second
for clocks and pauses. A mirror's word is taken for as long after its last contact with its source."""

LEADER_ANSWERS_S = 3.0
"""Longest wait for the leader's word on one event."""

SAME_CONTACT_S = 0.05
"""A server tells a contact's age and its own time a moment apart."""


class LastWord(NamedTuple):
    """``sequence`` was the last one ``age_s`` seconds ago, at most; infinite when nobody can say so."""

    sequence: int
    age_s: float

    @property
    def certain_s(self) -> float:
        """For how many seconds from now it may be relied on."""
        return max(0.0, CERTAIN_S - self.age_s)


class MirrorContact:
    """How old a mirror's last contact with its source is at least, by this process's monotonic clock.

    Its server tells the age by its own wall clock: set back after the contact was lost, it makes the age small
    again. The moment of the contact itself, by the same clock, stays what it was, and shows that nothing came.
    """

    def __init__(self) -> None:
        self._contact_s = 0.0
        self._since_s = 0.0

    def unchanged_s(self, info: Mapping[str, Any], now_s: float) -> float:
        """For how long the contact of this answer (STREAM.INFO) has been the last one; 0 for no mirror's."""
        mirror, stamp = info.get("mirror"), info.get("ts")
        if mirror is None or not stamp:
            return 0.0
        contact_s = recorded_ns(stamp) / 1e9 - int(mirror.get("active", 0)) / 1e9
        if abs(contact_s - self._contact_s) > SAME_CONTACT_S:
            self._contact_s, self._since_s = contact_s, now_s
        return now_s - self._since_s


async def last_word(
    client: Client, stream: str, subject: str, *, known: int, contact: MirrorContact, timeout_s: float
) -> LastWord:
    """The last message's sequence on ``subject``, or of the whole stream where that is not beyond ``known``.

    ``contact`` is the caller's memory of this stream's mirror, where it is one. Raises Unavailable. Cancelled,
    it leaves nothing behind.
    """
    prefix, started = prefix_of(client, DEFAULT_PREFIX), time.monotonic()
    try:
        info = await call(client, f"{prefix}.STREAM.INFO.{stream}", timeout_s=timeout_s)
        sequence = int(info["state"]["last_seq"])
        if sequence > known:
            found = await last_message(client, prefix, stream, subject, timeout_s=timeout_s)
            sequence = found[0] if found else 0
    except ApiError as error:
        raise Unavailable("log_unavailable", f"stream {stream} answers: {error}", stream=stream) from error
    age_s = max(evidence_age_s(info), contact.unchanged_s(info, started))
    return LastWord(sequence, age_s + time.monotonic() - started)


async def vouched_end(client: Client, prefix: str, stream: str, *, timeout_s: float) -> int:
    """The stream's last sequence at some moment after the call began, vouched for by a majority.

    A server that takes itself for the leader is believed only if it heard a majority so lately that no other
    leader can have been elected before it answered. Raises Unavailable when no such answer came in time.
    Cancelled, it leaves nothing behind.
    """
    problem = "it did not answer"
    async for left_s in pauses(asyncio.get_running_loop().time() + timeout_s):
        try:
            info = await call(client, f"{prefix}.STREAM.INFO.{stream}", timeout_s=min(2.0, left_s))
        except ApiError as error:
            problem = str(error)
            continue
        except Unavailable as error:
            problem = error.message
            continue
        age_s = evidence_age_s(info)
        if age_s <= CERTAIN_S:
            return int(info["state"]["last_seq"])
        problem = f"its leader last heard a majority of the servers {age_s:.1f} s ago"
    raise Unavailable(
        "log_unavailable",
        f"no majority confirms the end of stream {stream} ({problem}; asked for {timeout_s:g} s): "
        f"an answer now could be an old one; ask again when a majority of the bus is up",
        stream=stream,
    )


async def only_behind(client: Client, prefix: str, stream: str, gap: VerificationFailed) -> bool:
    """Whether only the replica that answered lacks what ``gap`` (``sequence_gap``) says is missing.

    Any replica answers a direct get or keeps a reader's consumer, and one that catches up after its disk was
    full, or from a snapshot, has holes for a while (seen with nats-server 2.15.1). The stream's leader has
    none: what it holds was not lost, and what nobody can ask it about now is not known to be. Cancelled, it
    leaves nothing behind.
    """
    expected, found = int(gap.details["expected"]), int(gap.details["found"])
    # A replica that ends before the reader's position offers older events: the reader's own is looked for.
    sequence = expected if found > expected else expected - 1
    try:
        return await message_at(client, prefix, stream, sequence, timeout_s=LEADER_ANSWERS_S) is not None
    except (ApiError, Unavailable):
        return True


def evidence_age_s(info: Mapping[str, Any]) -> float:
    """How long before its answer (STREAM.INFO) a server certainly had the last word, seconds."""
    mirror = info.get("mirror")
    if mirror is not None:
        return math.inf if mirror.get("error") or mirror.get("lag") else _ago_s(mirror)
    cluster = info.get("cluster") or {}
    replicas = cluster.get("replicas") or ()
    if not replicas:
        return 0.0  # one server, or one copy
    if not cluster.get("leader"):
        return math.inf
    majority_without_the_leader = (len(replicas) + 1) // 2
    return sorted(map(_ago_s, replicas))[majority_without_the_leader - 1]


def _ago_s(peer: Mapping[str, Any]) -> float:
    """``active`` is in nanoseconds; −1 or 0 where there was no contact yet."""
    active_ns = int(peer.get("active", 0))
    return active_ns / 1e9 if active_ns > 0 else math.inf
