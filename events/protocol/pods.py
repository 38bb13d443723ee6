"""Pod facts: which pod had which address on which node, from when to when.

They are a node's word, apart from the cluster's log: bounded in number and age, and switchable off. What a fact
may be is said here once, for the agent that makes it, the controller that takes it and the reader who shows it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import ClassVar, Literal, Self

import msgspec

from events.protocol.commands import Command
from events.protocol.queries import Query

CONTAINER = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")
"""A container's id by the CNI specification, with a bound."""
INTERFACE = re.compile(r"[!-.0-9;-~]{1,15}")
"""A device's name (IFNAMSIZ − 1), printable, without ``/`` and ``:``."""
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_NAMESPACE = re.compile(_LABEL)
_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")
_UID = re.compile(r"[A-Za-z0-9-]{1,64}")

Certainty = Literal["told", "found"]
"""``told`` by the container runtime at that moment, or ``found`` later on the host: then it is not exact."""


class PodName(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A pod as Kubernetes names it; empty what is not known."""

    namespace: str = ""
    name: str = ""
    uid: str = ""

    @classmethod
    def of(cls, given: Mapping[str, object]) -> Self:
        """What of it is a name by Kubernetes' rules; a pod without namespace or name has neither."""
        namespace, name, uid = (str(given.get(key) or "") for key in ("namespace", "name", "uid"))
        named = bool(_NAMESPACE.fullmatch(namespace) and _NAME.fullmatch(name))
        return cls(
            namespace=namespace if named else "",
            name=name if named else "",
            uid=uid if _UID.fullmatch(uid) else "",
        )

    def problem(self) -> str:
        """Why it is none; empty for a sound one."""
        return "" if PodName.of(msgspec.structs.asdict(self)) == self else "it has no name of a pod"


class PodFact(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """``epoch`` is that of the range which the address is of. ``until`` None: the pod still has it."""

    address: str
    container: str
    interface: str
    epoch: int
    since: datetime
    pod: PodName = PodName()
    sure: Certainty = "told"
    until: datetime | None = None
    until_sure: Certainty = "told"

    @property
    def key(self) -> tuple[str, str, str]:
        """Which attachment it is of."""
        return (self.container, self.interface, self.address)


FACTS_A_REQUEST = 32
"""Facts in one report: at most half a kilobyte each, under a node's largest request."""


class ReportPods(Command, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A node says which pods began or ended. Nothing is decided by it, and nothing of it comes into the log.

    Answered with ``result``: ``stored``, how many facts are kept, and ``refused``, the others' index → why.
    """

    name: ClassVar[str] = "report-pods"
    node_scoped: ClassVar[bool] = True
    node: str
    uid: str
    facts: tuple[PodFact, ...]


class NodeFact(msgspec.Struct, frozen=True, kw_only=True):
    """A fact as it is kept: by which node of which uid."""

    node: str
    uid: str
    fact: PodFact


class KeptFact(NodeFact, frozen=True, kw_only=True):
    """A fact with its place in the stream that keeps them."""

    sequence: int


class ListPods(Query, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All pod facts that are kept behind a place, page by page → :class:`PodPage`."""

    name: ClassVar[str] = "list-pods"
    after: int = 0


class PodPage(msgspec.Struct, frozen=True, kw_only=True):
    """``kept``, ``since`` as in :class:`PodsView`. ``last``: the stream's end now; ``more`` is behind it."""

    kept: bool
    since: datetime | None = None
    last: int = 0
    facts: tuple[KeptFact, ...] = ()
    more: bool = False


class ShowPods(Query, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which pods had an address, by what a node said → :class:`PodsView`. Without ``node``: by any."""

    name: ClassVar[str] = "pods"
    address: str
    node: str = ""


class PodsView(msgspec.Struct, frozen=True, kw_only=True):
    """``kept``: whether this bus keeps any pod facts; ``since``: the oldest of them, of all addresses.

    ``facts`` are in the order in which they were taken: of one attachment the last one counts.
    """

    kept: bool
    since: datetime | None = None
    facts: tuple[NodeFact, ...] = ()
