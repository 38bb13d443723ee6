"""The port to the controller that the bridge uses: members as the log and the agents' reports have them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol

from controlplane.kubernetes.desired import Member


class Members(Protocol):
    """What the bridge needs of the controller."""

    @property
    def leading(self) -> bool:
        """Whether this controller leads; only then is anything written."""
        ...

    def member(self, name: str) -> Member | None:
        """The member of this name, as the log and the reports have it now."""
        ...

    def refusal(self, name: str) -> str:
        """Why the node of this name has no range, as recorded; empty when nothing is."""
        ...

    def owner(self, cidr: str) -> str:
        """The name of the member whose range this is; empty when it is nobody's."""
        ...

    async def still(self, name: str, cidr: str) -> bool:
        """Whether the range is that member's by the log's last word: a podCIDR is written once and for good.

        Raises IsthmusError when nobody can say. Cancelled, it leaves nothing behind.
        """
        ...

    @property
    def adopting(self) -> str:
        """What is being adopted (``flannel``, …); empty when nothing is."""
        ...

    async def adopt(self, item: Mapping[str, Any]) -> None:
        """Bring what flannel says on a Node (the whole object) into the log. Raises IsthmusError.

        Cancelled, the decision may be in the log all the same.
        """
        ...

    async def take_out(self, name: str, uid: str, reason: str) -> None:
        """Take the member with this uid out, by a decision in the log that names it. Raises IsthmusError.

        Cancelled, the decision may be in the log all the same.
        """
        ...

    async def fence(self, name: str, uid: str, reason: str) -> None:
        """Fence the member with this uid by a decision in the log that names it. Raises IsthmusError.

        Cancelled, the decision may be in the log all the same.
        """
        ...

    def bound(self) -> Mapping[str, str]:
        """Name of a member → UID of the Kubernetes Node that it is, as the log has it."""
        ...

    async def bind(self, nodes: Sequence[tuple[str, str, str]]) -> None:
        """Record which members are which Nodes: (name, member's uid, Node's UID). Raises IsthmusError.

        Cancelled, it may be recorded all the same.
        """
        ...

    def moved(self) -> AsyncIterator[str]:
        """For ever: names of members of which something changed. An empty name: anything may have."""
        ...
