"""What commands came to that wrote nothing: refusals that are no events, and "it is so already".

The log tells for ever what a command wrote, but a command that wrote nothing leaves no trace there, and
must not: a noisy node could flood it. Yet one command id has one outcome, also when a copy of the request
turns up at another leader, or at this one after a restart, when what stood in its way is gone. So the
outcomes of such commands are kept beside the log, in a bounded stream of the bus, before they are told.

The same stream fences terms. A leader begins its term by writing into it, and every later record carries
the sequence that its writer knows as the last one. A leader that was paused and has been succeeded learns
so from the refusal of its next record, and tells nobody what it thinks.

The newest :data:`KEPT_BYTES` bytes of them are kept; the oldest give way. No clock has a say in that: an age
would be judged by each server's wall clock, and one that is set ahead would forget what clients were told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol
from uuid import uuid4

import msgspec
from nats.aio.client import Client
from nats.errors import Error as NatsError

from events import subjects
from events.bus.retry import pauses
from events.errors import IsthmusError, Refused, Unavailable, from_wire
from events.jetstream.api import (
    DEFAULT_PREFIX,
    STREAM_NOT_FOUND,
    WRONG_LAST_SEQUENCE,
    WRONG_LAST_SEQUENCE_IN_FLIGHT,
    ApiError,
    call,
    error_in,
    message_at,
)
from events.jetstream.direct import DirectReader
from events.jetstream.stream import ensure_stream
from events.protocol.commands import CommandReply

KEPT_BYTES = 32 << 20
"""About a hundred thousand outcomes; one node that uses its whole budget of requests needs a day for them."""
RECORD_BYTES = 256 << 10
"""Of one message: a group of commands may need several."""
READ_S = 10.0
"""Longest reading of what earlier leaders kept."""
TIMEOUT_S = 2.0
"""Of one question to the bus."""
_TRIES = 4


class Outcome:
    """What a command came to, as it was told: a reply without events, or a refusal.

    Held as it is stored: hardly any of a hundred thousand is ever asked for.
    """

    __slots__ = ("command_id", "reply")

    def __init__(self, command_id: str, told: CommandReply | IsthmusError) -> None:
        self.command_id = command_id
        self.reply = told if isinstance(told, CommandReply) else _as_reply(told)

    @property
    def told(self) -> CommandReply | IsthmusError:
        """The answer."""
        reply = self.reply
        return from_wire(reply.code, reply.message, reply.details) if reply.code else reply


class Succeeded(Exception):
    """Another controller has begun its term: this one's is over, and nothing was recorded."""


class OutcomeLog(Protocol):
    """The port. Implementations: on the bus, and in memory for the simulation."""

    async def begin(self) -> Sequence[Outcome]:
        """Begin a term: whoever had the one before records nothing any more. What is known, oldest first.

        Raises Unavailable; when cancelled, the term has begun or not, and may be begun again.
        """
        ...

    async def record(self, outcomes: Sequence[Outcome]) -> None:
        """Keep these, all or (when cancelled or failing) perhaps a part of them.

        Raises Succeeded when the term is over, and Unavailable when they may or may not be kept.
        """
        ...


class _Record(msgspec.Struct, frozen=True):
    """One message; the beginning of a term has no outcomes."""

    holder: str
    outcomes: list[tuple[str, CommandReply]] = []


MARK = "Isthmus-Record"
"""Header: the record's own random name, by which its writer knows it again."""

_encode = msgspec.json.Encoder(enc_hook=str).encode
_decode = msgspec.json.Decoder(_Record).decode


def outcome_stream(cluster: str) -> str:
    """The stream's name."""
    return f"ISTHMUS_{cluster}_OUTCOMES"


def outcome_stream_settings(cluster: str) -> dict[str, Any]:
    """On disk, so that a restart of the bus forgets nothing; bounded by size, and by no clock."""
    return {
        "name": outcome_stream(cluster),
        "subjects": [f"isthmus.{cluster}.outcomes"],
        "description": f"Isthmus: what commands to cluster {cluster} came to that wrote no event.",
        "retention": "limits",
        "storage": "file",
        "discard": "old",
        "max_age": 0,
        "max_bytes": KEPT_BYTES,
        "allow_direct": True,
        "duplicate_window": 1_000_000_000,
    }


class BusOutcomes:
    """The stream on the bus, for the controller ``holder``."""

    def __init__(
        self,
        client: Client,
        cluster: str,
        holder: str,
        *,
        replicas: int | None = None,
    ) -> None:
        self._client = client
        self._cluster = cluster
        self._stream = outcome_stream(cluster)
        self._settings = outcome_stream_settings(cluster)
        self._subject = f"isthmus.{cluster}.outcomes"
        self._holder = holder
        self._replicas = replicas
        self._last = 0
        self._read = 0
        self._ensured = False

    async def begin(self) -> Sequence[Outcome]:
        if not self._ensured:
            await self._ensure()
            self._ensured = True
        for _ in range(_TRIES):
            try:
                info = await self._info(self._stream)
                self._last = await self._publish(_Record(self._holder), int(info["state"]["last_seq"]))
            except Succeeded:
                continue
            except ApiError as error:
                self._ensured = False
                raise Unavailable("log_unavailable", f"stream {self._stream}: {error}") from error
            return await self._known()
        raise Unavailable("log_unavailable", f"stream {self._stream}: another controller begins a term, too")

    async def _ensure(self) -> None:
        """Make the stream when it is missing, on as many servers as keep the log, unless told on how many."""
        replicas = self._replicas
        if replicas is None:
            replicas = await self._replicas_of(self._stream) or await self._replicas_of(
                subjects.stream(self._cluster)
            )
        await ensure_stream(self._client, self._settings, replicas=replicas or 1, timeout_s=5.0)

    async def _replicas_of(self, stream: str) -> int:
        """On how many servers it is; 0 when it is missing. Raises Unavailable."""
        try:
            return int((await self._info(stream))["config"].get("num_replicas", 1))
        except ApiError as error:
            if error.err_code == STREAM_NOT_FOUND:
                return 0
            raise Unavailable("log_unavailable", f"stream {stream}: {error}") from error

    async def _info(self, stream: str) -> dict[str, Any]:
        return await call(self._client, f"{DEFAULT_PREFIX}.STREAM.INFO.{stream}", timeout_s=TIMEOUT_S)

    async def record(self, outcomes: Sequence[Outcome]) -> None:
        batch: list[tuple[str, CommandReply]] = []
        size = 0
        for outcome in outcomes:
            size += len(outcome.command_id) + len(_encode(outcome.reply))
            if batch and size > RECORD_BYTES:
                await self._keep(batch)
                batch, size = [], 0
            batch.append((outcome.command_id, outcome.reply))
        if batch:
            await self._keep(batch)

    async def _keep(self, batch: list[tuple[str, CommandReply]]) -> None:
        self._last = await self._publish(_Record(self._holder, batch), self._last)

    async def _publish(self, record: _Record, last: int) -> int:
        """Store it directly after ``last``; its sequence. Raises Succeeded and Unavailable."""
        body, mark = _encode(record), uuid4().hex
        headers = {"Nats-Expected-Last-Sequence": str(last), MARK: mark}
        problem: Exception | None = None
        async for _ in pauses(asyncio.get_running_loop().time() + TIMEOUT_S):
            try:
                refusal = await self._try(body, headers)
                if refusal is None or await self._stands(mark, last + 1):
                    return last + 1
                if refusal.err_code == WRONG_LAST_SEQUENCE:
                    raise Succeeded
                if not refusal.passing and refusal.err_code != WRONG_LAST_SEQUENCE_IN_FLIGHT:
                    raise Refused("internal", f"stream {self._stream} refuses its writer: {refusal}")
                problem = refusal
            except (NatsError, TimeoutError, Unavailable) as error:
                problem = error
        raise Unavailable(
            "log_unavailable", f"stream {self._stream} did not acknowledge a record: {problem}"
        ) from problem

    async def _try(self, body: bytes, headers: dict[str, str]) -> ApiError | None:
        if not self._client.is_connected:
            # nats-py would keep the message and send it at some later time, unasked.
            raise Unavailable("bus_unreachable", "the connection to the bus is down; it is being restored")
        reply = await self._client.request(self._subject, body, timeout=TIMEOUT_S, headers=dict(headers))
        return error_in(msgspec.json.decode(reply.data))

    async def _stands(self, mark: str, sequence: int) -> bool:
        """Whether the message there is the one with that mark: its acknowledgement was lost."""
        try:
            found = await message_at(self._client, DEFAULT_PREFIX, self._stream, sequence, timeout_s=TIMEOUT_S)
        except ApiError as error:
            raise Unavailable("log_unavailable", f"stream {self._stream}: {error}") from error
        return found is not None and found[1].get(MARK) == mark

    async def _known(self) -> list[Outcome]:
        """What was kept since this controller last read it, up to the own beginning.

        A replica that has not got so far is asked again.
        """
        reader = DirectReader(self._client, self._stream)
        found: list[Outcome] = []
        position = self._read
        try:
            async for _ in pauses(asyncio.get_running_loop().time() + READ_S):
                answer = await reader.after(position, self._subject)
                while answer.messages:
                    found += [
                        Outcome(command_id, reply)
                        for message in answer.messages
                        for command_id, reply in _decode(message.body).outcomes
                    ]
                    position = answer.messages[-1].sequence
                    if position >= self._last:
                        self._read = position
                        return found
                    answer = await reader.after(position, self._subject)
        finally:
            await reader.close()
        raise Unavailable(
            "log_unavailable", f"stream {self._stream} was not read up to {self._last} in {READ_S:g} s"
        )


def _as_reply(told: IsthmusError) -> CommandReply:
    return CommandReply(code=told.code, message=told.message, details=told.details)
