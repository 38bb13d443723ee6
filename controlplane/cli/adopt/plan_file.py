"""The file of a plan: written whole or not at all, and read no further than a plan can be large."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from controlplane.cli.adopt.planning import AdoptionPlan, opened
from events.bus.access.temporaries import drop_left, pattern
from events.errors import BadRequest

SIZE_MAX_BYTES = 64 * 1024 * 1024
"""More than the plan of 100,000 nodes."""


def save(path: Path, plan: AdoptionPlan) -> None:
    """Write it, past a loss of power. Raises OSError."""
    drop_left(path.parent, pattern(path.name, r"\d+"))
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(plan), indent=2) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:  # of the file that was asked for, not of the one beside it
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        beside.unlink(missing_ok=True)


def load(path: Path) -> AdoptionPlan:
    """Read it. Raises BadRequest(adopt_plan_invalid), OSError."""
    with path.open("rb") as file:
        content = file.read(SIZE_MAX_BYTES + 1)
    if len(content) > SIZE_MAX_BYTES:
        raise BadRequest(
            "adopt_plan_invalid", f"{path} is larger than {SIZE_MAX_BYTES // 2**20} MiB: it is no plan"
        )
    try:
        return opened(content)
    except BadRequest as error:
        error.message = f"{path}: {error.message}"
        raise
