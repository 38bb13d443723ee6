"""Events about entries: who from outside of the overlay may reach pods, through gateway nodes."""

from __future__ import annotations

from typing import ClassVar

from events.types.base import Event


class _EntryEvent(Event, frozen=True, kw_only=True, gc=False):
    """``sources`` are CIDRs of hosts elsewhere, ``address`` is the CLB address by which they come

    Their routers send what is for the container network to that address, which a gateway holds.
    """

    aggregate: ClassVar[str] = "entry"
    name: str
    sources: tuple[str, ...]
    address: str

    @property
    def entity(self) -> str:
        return self.name


class EntryAdded(_EntryEvent, frozen=True, kw_only=True, gc=False):
    """These sources may open connections to pods and ClusterIPs, through gateways only.

    Repeated for an entry that exists, it takes the place of what was said before: a source that is not named
    any more is shut out at once.
    """

    verb: ClassVar[str] = "added"


class EntryRemoved(_EntryEvent, frozen=True, kw_only=True, gc=False):
    """They may not any more, and their connections end."""

    verb: ClassVar[str] = "removed"
