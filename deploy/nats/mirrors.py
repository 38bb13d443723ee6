"""A site's mirrors: the log and the snapshots, kept at the site so that it can read without the cloud.

Cancelled, only the waiting ends, and a mirror that was made stays; all of it may be repeated.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from nats.aio.client import Client

from events import subjects
from events.bus.retry import pauses
from events.errors import Unavailable
from events.jetstream.api import DEFAULT_PREFIX, STREAM_NOT_FOUND, ApiError, call, prefix_of
from events.jetstream.snapshots import snapshot_stream_settings
from events.jetstream.stream import ensure_stream, event_stream_settings, mirror_settings

SILENT_MAX_S = 5.0
"""A mirror hears from its source at least every second; beyond this the link counts as down."""


class MirrorState(msgspec.Struct, frozen=True, kw_only=True):
    """``lag`` is in messages, as last heard from the hub ``silent_s`` seconds ago (-1: never)."""

    stream: str
    exists: bool
    sequence: int = 0
    lag: int = 0
    silent_s: float = -1.0
    error: str = ""

    @property
    def level(self) -> bool:
        """Whether it holds everything, as far as a hub that speaks says."""
        return self.exists and 0 <= self.silent_s <= SILENT_MAX_S and self.lag == 0


async def make_mirrors(client: Client, cluster: str, *, hub_domain: str) -> None:
    """Make both mirrors on the site's server, or check them.

    Raises Refused(log_settings_differ), Unavailable.
    """
    for settings in (event_stream_settings(cluster), snapshot_stream_settings(cluster)):
        await ensure_stream(client, mirror_settings(settings, hub_domain=hub_domain), timeout_s=15.0)


async def mirror_states(client: Client, cluster: str) -> list[MirrorState]:
    """The state of both mirrors as the site's server sees it. Raises Unavailable."""
    return [
        await _state(client, stream) for stream in (subjects.stream(cluster), subjects.snapshot_stream(cluster))
    ]


async def wait_caught_up(client: Client, cluster: str, *, timeout_s: float) -> list[MirrorState]:
    """Wait until both mirrors are level with the hub. Raises Unavailable, naming one that is not."""
    states: list[MirrorState] = []
    async for _ in pauses(asyncio.get_running_loop().time() + timeout_s, longest_s=0.5):
        states = await mirror_states(client, cluster)
        if all(state.level for state in states):
            return states
    behind = next(state for state in states if not state.level)
    raise Unavailable(
        "log_unavailable",
        f"mirror {behind.stream} is not level with the hub after {timeout_s:g} s "
        f"({behind.error or f'{behind.lag} messages behind'}): "
        f"is the leaf connection up, and the hub's domain right?",
        stream=behind.stream,
        lag=behind.lag,
    )


async def _state(client: Client, stream: str) -> MirrorState:
    try:
        info = await call(client, f"{prefix_of(client, DEFAULT_PREFIX)}.STREAM.INFO.{stream}", timeout_s=3)
    except ApiError as error:
        if error.err_code == STREAM_NOT_FOUND:
            return MirrorState(stream=stream, exists=False, error="no such stream: run `isthmus site init`")
        raise Unavailable("log_unavailable", f"stream {stream}: {error}", stream=stream) from error
    mirror: dict[str, Any] | None = info.get("mirror")
    if mirror is None:
        return MirrorState(
            stream=stream,
            exists=True,
            sequence=info["state"]["last_seq"],
            error="not a mirror: is this the hub?",
        )
    silent_ns = mirror.get("active", -1)
    silent_s = silent_ns / 1e9 if silent_ns >= 0 else -1.0
    trouble = (mirror.get("error") or {}).get("description", "")
    if not trouble and not 0 <= silent_s <= SILENT_MAX_S:
        trouble = "the hub is not heard: is the leaf connection up?"
    return MirrorState(
        stream=stream,
        exists=True,
        sequence=info["state"]["last_seq"],
        lag=int(mirror.get("lag", 0)),
        silent_s=silent_s,
        error=trouble,
    )
