"""What an agent says about its node: the last one per node is kept on the status stream.

A status is an observation, not a fact of the log: it may be late, repeated or lost. The controller
takes from it liveness (``sent_at`` is the agent's clock; arrival is what counts), the applied
sequence (the drain watermark is the lowest of the live agents) and the kernel's digest.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

DRIFT_SHOWN = 10
SILENT_INTERVALS = 3.0
"""An agent counts as silent after this many of its own intervals without a word: what it said is what was."""


class AgentStatus(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Sent on every change of ``applied`` (coalesced) and at least once per heartbeat interval.

    ``applied`` is the last sequence whose effect has been read back from the kernel.
    ``kernel_digest`` is the attestation of the kernel's rows at ``applied``; empty when unknown.
    """

    node: str
    uid: str
    applied: int
    sent_at: datetime
    state: Literal["starting", "ready", "degraded", "stopping", "fenced"] = "ready"
    kernel_digest: str = ""
    peers: int = 0
    conditions: tuple[str, ...] = ()
    agent_version: str = ""
    drift: tuple[str, ...] = ()
    """Rows that differ from what the agent wants, in words; at most :data:`DRIFT_SHOWN` of them."""
    interval_s: float = 10.0
    """The agent's own heartbeat interval; silence is judged against it."""
    gateway: bool = False
    """Whether this agent is able to hold CLB addresses (it was started with ``--gateway``)."""
    path: str = ""
    """Whether packets of the node's pods pass: ``confirmed``, ``not confirmed``, ``failing`` or ``no peers``.

    Empty from agents before 0.3, which do not know.
    """
    passed_age_s: float = -1.0
    """Seconds before ``sent_at`` at which a packet last passed; −1: not since the agent started."""
    gateway_hindrance: str = ""
    """Why it is not, in words."""
