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
from events.protocol.queries import Condition, Query

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
        """Reads or makes the key. Signing never stops a controller: what is damaged is set aside and said."""
        self._path = directory / FILE_NAME
        self._faults: list[str] = []
        self._key = self._own_key(directory / KEY_NAME)
        self._replica = replica
        self._active = active
        self._schedule = schedule or SigningSchedule()
        self._told = self._known()[-LISTED_MAX:]

    def _own_key(self, path: Path) -> SigningKey:
        try:
            return SigningKey.load_or_generate(path)
        except (IsthmusError, OSError) as error:
            try:
                if isinstance(error, PermissionError) or isinstance(error.__cause__, PermissionError):
                    raise error from None  # it may be sound: who has the right to read it can go on with it
                aside = _set_aside(path)
                made, how = (
                    SigningKey.load_or_generate(path),
                    f"it is set aside as {aside}, and a new one signs",
                )
            except (IsthmusError, OSError):
                made, how = SigningKey.generate(), "one in memory signs until this controller ends"
            self._fault(
                f"the key that signs checkpoints cannot be used ({error}): {how}. Give auditors its public "
                f"half {made.public_hex} beside the earlier one's, or restore {path} from a copy and restart"
            )
            return made

    def _known(self) -> list[Checkpoint]:
        try:
            return read_checkpoints(self._path) if self._path.exists() else []
        except (IsthmusError, OSError) as error:
            try:
                how = f"it is set aside as {_set_aside(self._path)}, and begins anew"
            except OSError as further:
                how = f"nothing is added to it ({further.strerror})"
            self._fault(f"the checkpoints in {self._path} cannot be read ({error}): {how}")
            return []

    def _fault(self, message: str) -> None:
        log.warning("%s", message)
        self._faults.append(f"{message}. This is said until the controller restarts")

    def conditions(self) -> list[Condition]:
        """That the key or the file was damaged and began anew."""
        return [
            Condition(code="record_incomplete", severity="warning", message=message) for message in self._faults
        ]

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


def _set_aside(path: Path) -> Path:
    """Rename what is there, whatever it is. Raises OSError."""
    aside = path.with_name(f"{path.name}.damaged")
    number = 1
    while aside.is_symlink() or aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.damaged-{number}")
    path.rename(aside)
    return aside
