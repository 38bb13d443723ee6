"""The other clusters on the same bus: which container CIDRs they use.

Read from their logs (two subjects each), remembered for a while, and read anew before a command that
chooses addresses for this cluster. Two clusters defined in the same instant by two controllers can
miss each other: they write to different logs, and no condition spans both.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence

import msgspec
from nats.aio.client import Client

from controlplane.cluster.decision import DecisionContext, Tick
from events import subjects
from events.errors import Unavailable
from events.jetstream.api import DEFAULT_PREFIX, NO_MESSAGE, STREAM_NOT_FOUND, ApiError, call
from events.protocol.commands import AppendCidr, Command, DefineCluster
from events.types import CidrAppended, ClusterDefined

FRESH_S = 30.0
"""How long the remembered answer serves commands that choose no addresses (joins)."""

_CHOOSING = frozenset({DefineCluster, AppendCidr})


class OtherClusters:
    """Asks the bus for its other clusters."""

    def __init__(self, client: Client, cluster: str) -> None:
        self._client = client
        self._cluster = cluster
        self._known = DecisionContext()
        self._read_s = float("-inf")

    async def context_for(self, commands: Sequence[Command | Tick]) -> DecisionContext:
        """The context. Raises Unavailable(log_unavailable) when they had to be read and could not be.

        Cancelled, what was known before stays known.
        """
        choosing = not _CHOOSING.isdisjoint(map(type, commands))
        now_s = asyncio.get_running_loop().time()
        if choosing or now_s - self._read_s > FRESH_S:
            try:
                self._known = await self._read()
            except (ApiError, Unavailable) as error:
                if choosing:
                    raise Unavailable(
                        "log_unavailable", f"the other clusters on this bus could not be read: {error}"
                    ) from error
            self._read_s = now_s
        return self._known

    async def _read(self) -> DecisionContext:
        clusters: dict[str, tuple[str, ...]] = {}
        for name in await self._names():
            cidrs = await self._cidrs(name)
            if cidrs:
                clusters[name] = cidrs
        return DecisionContext(clusters=clusters)

    async def _names(self) -> list[str]:
        names: list[str] = []
        while True:
            answer = await call(
                self._client,
                f"{DEFAULT_PREFIX}.STREAM.NAMES",
                {"subject": "isthmus.*.events.>", "offset": len(names)},
                timeout_s=2.0,
            )
            page = answer.get("streams") or []
            names += page
            if not page or len(names) >= int(answer.get("total", 0)):
                break
        prefix = subjects.stream("")
        return [n.removeprefix(prefix) for n in names if n.startswith(prefix) and n != prefix + self._cluster]

    async def _cidrs(self, cluster: str) -> tuple[str, ...]:
        """The container CIDRs of a live cluster; nothing for one that was deleted or is not defined."""
        base = f"isthmus.{cluster}.events.cluster.*"
        if await self._last(cluster, f"{base}.deleted") is not None:
            return ()
        defined = await self._last(cluster, f"{base}.defined")
        if defined is None:
            return ()
        cidrs = [msgspec.json.decode(defined[1], type=ClusterDefined).container_cidr]
        after = defined[0]
        while True:
            found = await self._next(cluster, f"{base}.cidr-appended", after)
            if found is None:
                return tuple(cidrs)
            after = found[0]
            cidrs.append(msgspec.json.decode(found[1], type=CidrAppended).cidr)

    async def _last(self, cluster: str, subject: str) -> tuple[int, bytes] | None:
        return await self._get(cluster, {"last_by_subj": subject})

    async def _next(self, cluster: str, subject: str, after: int) -> tuple[int, bytes] | None:
        return await self._get(cluster, {"seq": after + 1, "next_by_subj": subject})

    async def _get(self, cluster: str, which: dict[str, object]) -> tuple[int, bytes] | None:
        try:
            answer = await call(
                self._client,
                f"{DEFAULT_PREFIX}.STREAM.MSG.GET.{subjects.stream(cluster)}",
                which,
                timeout_s=2.0,
            )
        except ApiError as error:
            if error.err_code in {NO_MESSAGE, STREAM_NOT_FOUND}:
                return None
            raise
        message = answer["message"]
        return int(message["seq"]), base64.b64decode(message.get("data", ""))
