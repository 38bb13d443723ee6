"""The state at a sequence: from the read model when there is one, else by folding.

Both give the same state, digest and all; the read model gives it in milliseconds. The read model is
opened read-only and never waited for.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from controlplane.cluster.evolve import evolve, fold
from controlplane.cluster.state import ClusterState
from controlplane.readmodel.asof import DAMAGE
from events.errors import Refused, VerificationFailed
from replay.history import History, Progress

_MAPPED_BYTES = 2 * 1024**3


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """How a state was found: by folding ``folded`` events, or from the read model."""

    method: Literal["fold", "read model"]
    folded: int = 0
    file: str = ""


class ReadModel:
    """A read model's current file, read-only. ``checkpoint`` is the last sequence it holds."""

    def __init__(self, path: Path, connection: sqlite3.Connection, checkpoint: int, chain: str) -> None:
        self.path, self.connection, self.checkpoint, self.chain = path, connection, checkpoint, chain

    @classmethod
    def open(cls, place: str | Path, cluster: str) -> ReadModel:
        """Open a read model's directory or file. Raises Refused when it is none of ``cluster``,
        VerificationFailed(read_model_damaged) when it cannot be read."""
        from controlplane.readmodel.schema import VERSION
        from controlplane.readmodel.store import current_generation, generation_file

        path = Path(place)
        if not path.exists():
            raise Refused(
                "not_in_history", f"there is no read model at {path}: name a controller's data directory"
            )
        if path.is_dir():
            if (path / "readmodel").is_dir():  # a controller's data directory
                path /= "readmodel"
            path = generation_file(path, current_generation(path))
        try:
            connection = sqlite3.connect(
                f"file:{path}?mode=ro", uri=True, check_same_thread=False, isolation_level=None
            )
            # Mapped, not read page by page: a state is some thousand rows from all over a file that may
            # be larger than any cache. A generation's file is never truncated, so that the map holds.
            connection.execute(f"PRAGMA mmap_size = {_MAPPED_BYTES}")
            found = dict(connection.execute("SELECT key, value FROM meta"))
            checkpoint, chain = connection.execute("SELECT sequence, chain FROM checkpoint").fetchone()
        except (sqlite3.Error, TypeError, ValueError) as error:
            raise VerificationFailed(
                "read_model_damaged", f"no read model can be opened at {path}: {error}"
            ) from error
        if found.get("version") != str(VERSION):
            connection.close()
            raise Refused(
                "not_in_history",
                f"the read model at {path} is of version {found.get('version')}, this program reads {VERSION}: "
                f"its controller makes it anew when it starts",
            )
        if cluster and found.get("cluster") != cluster:
            connection.close()
            raise Refused(
                "archive_mismatch",
                f"the read model at {path} is of cluster {found.get('cluster')!r}, the log of {cluster!r}",
            )
        return cls(path, connection, int(checkpoint), str(chain))

    def state(self, sequence: int) -> ClusterState:
        """The state at ``sequence``. Raises Refused beyond the checkpoint, VerificationFailed."""
        from controlplane.readmodel.asof import load_state

        return load_state(self.connection, sequence)

    def close(self) -> None:
        """Release the file."""
        self.connection.close()


class States:
    """States of one history."""

    def __init__(
        self,
        history: History,
        read_model: ReadModel | None = None,
        *,
        on_damage: Callable[[str], None] = lambda _why: None,
    ) -> None:
        """``on_damage`` is told why a read model is used no more: the log has the same answers, more slowly."""
        self.history = history
        self.read_model = read_model
        self._on_damage = on_damage

    def distrust(self, error: Exception) -> None:
        """The read model is damaged: fold from now on."""
        if self.read_model is not None:
            self._on_damage(f"the read model {self.read_model.path} is damaged ({error}): the log is folded")
            self.read_model = None

    async def at(self, sequence: int, progress: Progress | None = None) -> tuple[ClusterState, Origin]:
        """The state behind ``sequence``. Raises VerificationFailed for a log that cannot be folded."""
        model = self.read_model
        if model is not None and sequence <= model.checkpoint:
            try:
                return model.state(sequence), Origin(method="read model", file=str(model.path))
            except DAMAGE as error:
                self.distrust(error)
        state = base(self.history)
        begun = state.sequence
        await advance(self.history, state, sequence, progress)
        return state, Origin(method="fold", folded=state.sequence - begun)


def base(history: History) -> ClusterState:
    """The state before the first event of the history: empty, or what a capsule carries.

    Raises Refused(not_in_history) for an incremental archive on its own.
    """
    if history.start == 0:
        return ClusterState(history.cluster)
    text = history.base
    if text is None:
        raise Refused(
            "not_in_history",
            f"{history.source} begins behind event {history.start}, and this question needs what came before: "
            f"give the archive that it continues, too (--archive, once more)",
            start=history.start,
        )
    from controlplane.cluster.state_decoder import decode_state

    state = decode_state(text)
    state.parked = frozenset(n for n in history.parked if n <= history.start)
    return state


async def advance(history: History, state: ClusterState, until: int, progress: Progress | None = None) -> None:
    """Fold ``history`` into ``state`` up to ``until``. Raises VerificationFailed.

    Cancelled, ``state`` stands behind a whole batch.
    """
    async for batch in history.facts(after=state.sequence, until=until, progress=progress):
        try:
            fold(state, [(fact.seq, fact.body) for fact in batch])
        except VerificationFailed:
            raise
        except LookupError as error:  # the fold itself names it; this is for a defect in a handler
            evolve(state, batch[-1].seq, batch[-1].body)
            raise VerificationFailed("invariant_violated", f"the fold stopped: {error}") from error
