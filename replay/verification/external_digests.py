"""What others know of a log: earlier archives, a read model, a head that somebody wrote down."""

from __future__ import annotations

from controlplane.cluster.digest import state_digest
from events.errors import Usage
from replay.archive.directory import ArchiveFile
from replay.queries.states import ReadModel

Known = tuple[str, int, str]
"""Who says it, of which sequence, which digest (64 hex digits)."""


def heads_of(path: str) -> list[Known]:
    """The chain digests behind each segment of an earlier archive: enough to locate a rewriting closely."""
    with ArchiveFile(path) as file:
        return [(path, segment.last, segment.head) for segment in file.events]


def head_of(text: str) -> Known:
    """``SEQ:DIGEST`` as written down. Raises Usage."""
    sequence, colon, digest = text.partition(":")
    digest = digest.strip().lower()
    if not colon or not sequence.isdigit() or len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise Usage("usage", f"--expect {text!r} is not of the form SEQUENCE:DIGEST (64 hex digits)")
    return "--expect", int(sequence), digest


def read_model_says(place: str, cluster: str) -> tuple[Known, Known]:
    """State digest and chain digest at a read model's checkpoint. Raises Refused, VerificationFailed."""
    model = ReadModel.open(place, cluster)
    try:
        who = f"the read model {model.path}"
        return (
            (who, model.checkpoint, state_digest(model.state(model.checkpoint))),
            (who, model.checkpoint, model.chain),
        )
    finally:
        model.close()
