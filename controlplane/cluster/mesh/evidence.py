"""What the agents saw, as a verdict needs it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal, NamedTuple

import msgspec

from controlplane.cluster.mesh.findings import SHOWN


class Missing(NamedTuple):
    """``by`` got no answer of ``of`` since the moment ``since``.

    ``only``: of what alone there is none: of ``large`` packets, or of ``pods``, while the kernel there answers.
    """

    by: str
    of: str
    since: float
    only: Literal["", "large", "pods"] = ""


class Passed(msgspec.Struct, frozen=True):
    """When an answer last came: to or from a node, between two sites (sorted), and by whom of whom."""

    nodes: Mapping[str, float] = {}
    sites: Mapping[tuple[str, str], float] = {}
    pairs: Mapping[tuple[str, str], float] = {}


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """Everything by node name; moments are seconds of one monotonic clock.

    ``sites`` are those of all members. ``passed`` is of any answer, ``pods`` of answers of pods' addresses, and
    ``large`` of those to packets as large as the path should carry. ``heard``: when ``by`` last heard a
    question of ``of``. ``kernel``: since when ``by`` gets answers of the kernel of ``of`` alone. ``quiet``
    agents do not report. ``steps``: where a trace of ``by`` to ``of`` stopped, in words.
    """

    sites: Mapping[str, str]
    missing: Collection[Missing]
    passed: Passed = Passed()
    pods: Passed = Passed()
    large: Passed = Passed()
    heard: Mapping[tuple[str, str], float] = {}
    kernel: Mapping[tuple[str, str], float] = {}
    quiet: Collection[str] = frozenset()
    steps: Mapping[tuple[str, str], str] = {}


def some(names: Collection[str]) -> str:
    """Names in order, the first few of them."""
    ordered = sorted(names)
    rest = len(ordered) - SHOWN
    return ", ".join(ordered[:SHOWN]) + (f" and {rest:,} more" if rest > 0 else "")
