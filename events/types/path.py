"""Events about paths between nodes: what the agents could not reach, as the leading controller judged it."""

from __future__ import annotations

import re
from datetime import datetime
from typing import ClassVar

from events.types.base import Event


class _PathEvent(Event, frozen=True, kw_only=True, gc=False):
    """``scope`` is ``cluster``, ``site``, ``sites``, ``node`` or ``pair``; ``a`` and ``b`` are sites or nodes.

    ``b`` is empty where one is meant, and both are where everything is.
    """

    aggregate: ClassVar[str] = "path"
    scope: str
    a: str
    b: str = ""

    @property
    def entity(self) -> str:
        return re.sub(
            r"[^a-z0-9._-]", "-", "-to-".join(filter(None, (f"{self.scope}-{self.a}", self.b))).lower()
        )


class PathLost(_PathEvent, frozen=True, kw_only=True, gc=False):
    """Packets of pods do not pass there: the smallest explanation of what several agents measured.

    ``fault``: ``silent`` (nothing passes), ``direction`` (nothing passes from ``broken_from`` to
    ``broken_to``; an empty one stands for all others), ``part`` (a node and some of the others do not reach
    each other), ``large`` (small packets pass) or ``pods`` (kernels answer, pods do not). ``since`` is when it
    began, ``evidence`` in words.
    """

    verb: ClassVar[str] = "lost"
    fault: str = "silent"
    broken_from: str = ""
    broken_to: str = ""
    since: datetime | None = None
    evidence: tuple[str, ...] = ()


class PathRestored(_PathEvent, frozen=True, kw_only=True, gc=False):
    """Packets pass there again. ``lost`` is the sequence at which it had been lost."""

    verb: ClassVar[str] = "restored"
    lost: int = 0
