"""How far the adoption has come on the nodes: a file beside the plan, written before and after each step.

So whoever was cut off goes on where it stopped: a node whose takeover had begun is judged by the probes that
were taken before it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import msgspec

from events.bus.access.temporaries import drop_left, pattern
from events.errors import BadRequest

State = Literal["waiting", "taking", "over", "giving", "given"]
SIZE_MAX_BYTES = 256 * 1024 * 1024

Pair = tuple[str, str, str]
"""A node; the address of the pod on it that asks, empty for the node itself; whom it asks."""


class NodeProgress(msgspec.Struct, frozen=True, kw_only=True):
    """Where one node is.

    ``passing`` are the probes that passed before its present step; ``finding`` is why it halted.
    """

    state: State = "waiting"
    passing: tuple[Pair, ...] = ()
    finding: str = ""


class _File(msgspec.Struct, frozen=True, kw_only=True):
    plan: str
    nodes: dict[str, NodeProgress] = {}


class Progress:
    """The file ``PLAN.progress`` of the plan with that digest."""

    def __init__(self, plan: Path, digest: str) -> None:
        """Raises BadRequest(adopt_plan_invalid) for one of another plan, OSError."""
        self._path = plan.with_name(f"{plan.name}.progress")
        self._plan = digest
        self.nodes: dict[str, NodeProgress] = {}
        try:
            with self._path.open("rb") as file:
                known = msgspec.json.decode(file.read(SIZE_MAX_BYTES), type=_File)
        except FileNotFoundError:
            return
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadRequest("adopt_plan_invalid", f"{self._path} is unreadable: {error}") from error
        # A plan that was made anew (a node came) goes on with what the earlier one has done.
        self.nodes = known.nodes

    def of(self, node: str) -> NodeProgress:
        """Where the node is."""
        return self.nodes.get(node, NodeProgress())

    def note(self, node: str, progress: NodeProgress) -> None:
        """Write it down, past a loss of power. Raises OSError."""
        self.nodes[node] = progress
        drop_left(self._path.parent, pattern(self._path.name, r"\d+"))
        beside = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            with beside.open("wb") as file:
                file.write(msgspec.json.encode(_File(plan=self._plan, nodes=self.nodes)))
                file.flush()
                os.fsync(file.fileno())
            beside.replace(self._path)
        finally:
            beside.unlink(missing_ok=True)
