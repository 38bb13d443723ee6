"""What all events share, and the words that their fields use."""

from __future__ import annotations

from functools import cache
from typing import ClassVar, Literal

import msgspec

NodeKind = Literal["cloud", "external"]
"""Where a node runs: an attribute of the node, never of its range."""

NetworkKind = Literal["vpc", "idc", "clb", "route"]
"""What a network that must stay clear of the container network is."""


Protocol = Literal["tcp", "udp"]
Affinity = Literal["none", "source"]
"""Whether a client's connections all go to one backend, by its address."""

CheckKind = Literal["tcp", "http", "https", "none"]


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """A routed network beside the container network: a VPC CIDR, an IDC network, a CLB subnet, a route."""

    cidr: str
    kind: NetworkKind
    name: str = ""


class Event(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Base of all events. ``aggregate``, ``verb`` and ``entity`` make the subject."""

    aggregate: ClassVar[str]
    verb: ClassVar[str]
    version: ClassVar[int] = 1

    @property
    def entity(self) -> str:
        """The name of the thing that this happened to: a cluster, node, range (CIDR) or reservation."""
        raise NotImplementedError

    @classmethod
    @cache
    def type_name(cls) -> str:
        """For example ``range.allocated.v1``."""
        return f"{cls.aggregate}.{cls.verb}.v{cls.version}"
