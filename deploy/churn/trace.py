"""Recorded node counts → joins and leaves of named nodes. Pure: no clock, no network, no hidden randomness.

A trace says how many instances were there at each tick. A rise by k is k joins, a fall by k is k leaves,
between that tick and the one before; before the first tick there are none. The traces carry no identities,
so every joining instance gets a new name and uid, and who leaves is a stated choice: the longest-lived
first, or one drawn by a seed.
"""

from __future__ import annotations

import random
import re
import uuid
from collections import deque
from dataclasses import dataclass
from fnmatch import fnmatch
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from events.errors import Usage
from events.input_files import read_whole

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Sequence
    from pathlib import Path

    from events.types import NodeKind

LeaveOrder = Literal["longest-lived", "random"]

UNDERLAY = IPv4Network("198.18.0.0/15")
"""Simulated nodes have addresses of the range set aside for measurements (RFC 2544)."""


class _Metadata(msgspec.Struct):
    gap_seconds: float = 300.0


class _File(msgspec.Struct):
    data: list[Annotated[int, msgspec.Meta(ge=0)]]
    metadata: _Metadata = msgspec.field(default_factory=_Metadata)


@dataclass(frozen=True, slots=True)
class Trace:
    """One zone's recording: how many instances at each tick, `gap_s` seconds apart."""

    site: str
    kind: NodeKind
    gap_s: float
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Instance:
    """One simulated node. It lives once: a later join is another instance."""

    name: str
    uid: str
    kind: NodeKind
    site: str
    underlay: str


@dataclass(frozen=True, slots=True)
class ChurnStep:
    """One join or leave, `at_s` seconds after the recording's beginning."""

    at_s: float
    joins: bool
    instance: Instance


def site_name(filename: str) -> str:
    """`16-node_us-east-2b_v100_1.json` → `us-east-2b-16`; anything else becomes a DNS label."""
    stem = filename.removesuffix(".json")
    recorded = re.fullmatch(r"(\d+)-node_([a-z0-9-]+)_.*", stem)
    name = f"{recorded[2]}-{recorded[1]}" if recorded else re.sub(r"[^a-z0-9]+", "-", stem.lower())
    return name.strip("-")[:40].strip("-") or "site"


def find_files(paths: Sequence[Path]) -> list[Path]:
    """The traces named by `paths`, in the given order; a directory stands for its *.json files, sorted.

    Raises Usage(usage) for a path that is not there and a directory without traces.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(path.glob("*.json"))
            if not inside:
                raise Usage("usage", f"{path} holds no churn trace (*.json)", file=str(path))
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise Usage("usage", f"{path}: no such file", file=str(path))
    return found


def load(paths: Sequence[Path], external: Sequence[str] = ()) -> list[Trace]:
    """Reads the files. A site is external when it matches one of the patterns `external`;
    without patterns every second file is.

    Raises Usage(usage) when a file is missing or is no trace.
    """
    traces: list[Trace] = []
    for position, path in enumerate(paths):
        try:
            content = msgspec.json.decode(read_whole(path), type=_File)
        except OSError as error:
            raise Usage("usage", f"{path}: {error.strerror}", file=str(path)) from error
        except msgspec.MsgspecError as error:
            raise Usage(
                "usage",
                f"{path} is no churn trace: {error}. "
                'A trace is {"metadata": {"gap_seconds": 300}, "data": [0, 3, …]}',
                file=str(path),
            ) from error
        site = site_name(path.name)
        if any(trace.site == site for trace in traces):
            site = f"{site}-{position + 1}"
        is_external = any(fnmatch(site, pattern) for pattern in external) if external else position % 2 == 1
        kind: NodeKind = "external" if is_external else "cloud"
        traces.append(Trace(site, kind, content.metadata.gap_seconds, tuple(content.data)))
    return traces


def simulated_uid(name: str) -> str:
    """The uid of the simulated node of that name: derived, so that a later run knows them for simulated."""
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, f"churn.isthmus/{name}"))


def changes(
    traces: Sequence[Trace], *, run: str, order: LeaveOrder, seed: int, taken: Container[str] = ()
) -> Iterator[ChurnStep]:
    """Every join and leave of all traces in the order of time; within a tick a site's leaves come first.

    `run` makes names and uids differ from those of an earlier replay on the same cluster; `taken` are
    underlay addresses that its nodes still use.
    """
    # Any generator of good quality will do: the choice is reproducible, not secret.
    chance = random.Random(seed)  # noqa: S311
    live: list[deque[Instance]] = [deque() for _ in traces]
    born = [0] * len(traces)
    offset = [0] * len(traces)
    block = UNDERLAY.num_addresses // max(1, len(traces))
    moments = sorted({tick * trace.gap_s for trace in traces for tick in range(len(trace.counts))})
    position = [0] * len(traces)
    for at_s in moments:
        for index, trace in enumerate(traces):
            tick = position[index]
            if tick >= len(trace.counts) or tick * trace.gap_s != at_s:
                continue
            position[index] += 1
            wanted = trace.counts[tick]
            while len(live[index]) > wanted:
                if order == "random":
                    live[index].rotate(-chance.randrange(len(live[index])))
                yield ChurnStep(at_s, joins=False, instance=live[index].popleft())
            while len(live[index]) < wanted:
                born[index] += 1
                name = f"{trace.site}-{run}-{born[index]}"
                while True:
                    # The block outlives its instances by far: an address comes round long after its last use.
                    offset[index] = offset[index] % (block - 2) + 1
                    address = str(IPv4Address(int(UNDERLAY[0]) + index * block + offset[index]))
                    if address not in taken:
                        break
                instance = Instance(name, simulated_uid(name), trace.kind, trace.site, address)
                live[index].append(instance)
                yield ChurnStep(at_s, joins=True, instance=instance)
