"""Members said by the test, in the place of a controller's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import msgspec

from controlplane.kubernetes.desired import Member


class Table:
    """Members said by the test."""

    def __init__(self) -> None:
        self.leading = True
        self.fenced: list[str] = []
        self.adopting = ""
        self.adopted: list[Mapping[str, Any]] = []
        self.members: dict[str, Member] = {}
        self.names: asyncio.Queue[str] = asyncio.Queue()
        self.refused: dict[str, str] = {}
        self.nodes: dict[str, str] = {}

    def say(self, name: str, number: int, agent: str = "ready") -> None:
        cidr = f"10.{200 + number // 1024}.{number // 4 % 256}.{number % 4 * 64}/26"
        self.members[name] = Member(uid=f"m-{name}", cidr=cidr, epoch=number + 2, agent=agent)  # type: ignore[arg-type]
        self.names.put_nowait(name)

    def strand(self, name: str, *ranges: str) -> None:
        """Its agent says that pods still have addresses of these former ranges."""
        self.members[name] = msgspec.structs.replace(self.members[name], stray_ranges=ranges)
        self.names.put_nowait(name)

    def remove(self, name: str) -> None:
        del self.members[name]
        self.nodes.pop(name, None)
        self.names.put_nowait(name)

    def member(self, name: str) -> Member | None:
        found = self.members.get(name)
        return found and msgspec.structs.replace(found, node_uid=self.nodes.get(name, ""))

    def bound(self) -> Mapping[str, str]:
        return self.nodes

    async def bind(self, nodes: Sequence[tuple[str, str, str]]) -> None:
        for name, uid, node_uid in nodes:
            if name in self.members and self.members[name].uid == uid:
                self.nodes[name] = node_uid

    def refusal(self, name: str) -> str:
        return self.refused.get(name, "")

    async def still(self, name: str, cidr: str) -> bool:
        return name in self.members and self.members[name].cidr == cidr

    def owner(self, cidr: str) -> str:
        return next((name for name, member in self.members.items() if member.cidr == cidr), "")

    async def adopt(self, item: Mapping[str, Any]) -> None:
        self.adopted.append(item)

    async def take_out(self, name: str, uid: str, reason: str) -> None:
        assert uid == self.members[name].uid
        assert "flannel" in reason
        del self.members[name]

    async def fence(self, name: str, uid: str, reason: str) -> None:
        assert uid == self.members[name].uid
        assert "deleted" in reason
        self.fenced.append(name)
        del self.members[name], self.nodes[name]

    async def moved(self) -> AsyncIterator[str]:
        while True:
            yield await self.names.get()
