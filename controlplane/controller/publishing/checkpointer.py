"""The controller's habit of signing: a checkpoint whenever enough has happened, kept and told to whoever asks.

The leading controller signs; each has a key of its own in its data directory, made at its first start.
The file is only appended to and synced, so that what was once told stays told. Take copies of it, or
of the public key at least, to where the controller cannot write.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

import msgspec

from controlplane.cluster.digest import state_digest
from controlplane.controller.publishing.checkpoints import (
    FILE_NAME,
    Checkpoint,
    SigningKey,
    append_checkpoints,
    read_checkpoints,
)
from controlplane.controller.replication.replica import Replica
from events.errors import IsthmusError
from events.protocol.queries import Query

log = logging.getLogger("isthmus.controller")

KEY_NAME = "checkpoint-key.pem"
LISTED_MAX = 200
"""Most checkpoints in one answer: under 100 KB; the file has all."""

_encode = msgspec.json.Encoder().encode


class SigningSchedule(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint is due ``events`` after the last, or ``quiet_s`` after it if anything changed.

    Looked at every ``least_s`` seconds.
    """

    events: int = 10_000
    quiet_s: float = 300.0
    least_s: float = 5.0


class ListCheckpoints(Query, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The controller's signed checkpoints, the newest :data:`LISTED_MAX` → :class:`CheckpointList`."""

    name: ClassVar[str] = "checkpoints"


class CheckpointList(msgspec.Struct, frozen=True, kw_only=True):
    """The answer: oldest first, and the public key (hex) that this controller signs with."""

    key: str
    checkpoints: tuple[Checkpoint, ...]


class Checkpointer:
    """Signs while ``active`` says so. A file that cannot be written is logged and tried again in time."""

    def __init__(
        self,
        directory: Path,
        replica: Replica,
        *,
        active: Callable[[], bool],
        schedule: SigningSchedule | None = None,
    ) -> None:
        """Reads or makes the key. Raises Usage for an unreadable one, VerificationFailed for a bad file."""
        self._path = directory / FILE_NAME
        self._key = SigningKey.load_or_generate(directory / KEY_NAME)
        self._replica = replica
        self._active = active
        self._schedule = schedule or SigningSchedule()
        known = read_checkpoints(self._path) if self._path.exists() else []
        self._told = known[-LISTED_MAX:]

    @property
    def last(self) -> Checkpoint | None:
        """The newest checkpoint."""
        return self._told[-1] if self._told else None

    async def run(self) -> None:
        """Sign for ever. Cancelled, a checkpoint may be in the file that was not told."""
        loop = asyncio.get_running_loop()
        last_s = loop.time()
        while True:
            await asyncio.sleep(self._schedule.least_s)
            if self._active() and self._due(loop.time() - last_s):
                try:
                    await self.sign()
                except (IsthmusError, OSError) as error:
                    log.warning("no checkpoint signed: %s", error)
                last_s = loop.time()

    def _due(self, since_s: float) -> bool:
        unsigned = self._replica.state.sequence - (self.last.sequence if self.last else 0)
        return unsigned >= self._schedule.events or (unsigned > 0 and since_s >= self._schedule.quiet_s)

    async def sign(self) -> Checkpoint:
        """Sign the present and keep it. Raises OSError when the file cannot be written.

        Cancelled, the checkpoint may be in the file and is not told yet.
        """
        state, head = self._replica.state, self._replica.head
        checkpoint = self._key.checkpoint(
            cluster=state.name,
            sequence=head.sequence,
            chain=head.hex,
            state=state_digest(state),
            time=datetime.now(UTC),
        )
        await asyncio.to_thread(append_checkpoints, self._path, [checkpoint])
        self._told = [*self._told, checkpoint][-LISTED_MAX:]
        return checkpoint

    async def answer(self, _: bytes) -> bytes:
        """The answer to :class:`ListCheckpoints`. It never suspends: no cancellation comes inside of it."""
        return _encode(CheckpointList(key=self._key.public_hex, checkpoints=tuple(self._told)))
