"""Events about CLB reservations: their addresses, backends and holders."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar, Literal

import msgspec

from events.types.base import Affinity, CheckKind, Event, Protocol


class ClbAddress(msgspec.Struct, frozen=True, kw_only=True):
    """One reserved address and what it serves, for example ``apiserver``."""

    purpose: str
    address: str


class _ClbEvent(Event, frozen=True, kw_only=True, gc=False):
    aggregate: ClassVar[str] = "clb"
    name: str

    @property
    def entity(self) -> str:
        return self.name


class ClbReserved(_ClbEvent, frozen=True, kw_only=True, gc=False):
    """Exactly two addresses of a subnet are set aside for a private load balancer.

    ``excluded`` are the addresses that the operator said are in use; ``gateway`` is the subnet's
    own router. ``provider`` says who realises the addresses.
    """

    verb: ClassVar[str] = "reserved"
    subnet: str
    addresses: tuple[ClbAddress, ClbAddress]
    gateway: str = ""
    excluded: tuple[str, ...] = ()
    provider: str = "reserve-only"


class ClbReleased(_ClbEvent, frozen=True, kw_only=True, gc=False):
    """The two addresses are free again."""

    verb: ClassVar[str] = "released"
    subnet: str
    addresses: tuple[ClbAddress, ClbAddress]


class ClbRefused(_ClbEvent, frozen=True, kw_only=True, gc=False):
    """A reservation was asked for and refused: one event per reservation and cause until it changes."""

    verb: ClassVar[str] = "refused"
    subnet: str
    code: str
    message: str


class _BackendEvent(_ClbEvent, frozen=True, kw_only=True, gc=False):
    """One backend of one port of one address: the six fields together are its identity."""

    purpose: str
    protocol: Protocol
    port: int
    address: str
    backend_port: int


class ClbBackendAdded(_BackendEvent, frozen=True, kw_only=True, gc=False):
    """Connections to ``port`` of the address that serves ``purpose`` may go to ``address:backend_port``.

    Repeated for a backend that exists, it changes its settings. ``affinity`` is of the whole port:
    that of the backend added last. A check counts ``rise`` good answers in a row as healthy and
    ``fall`` bad ones as unhealthy; ``check_port`` 0 is the backend's own port.
    """

    verb: ClassVar[str] = "backend-added"
    affinity: Affinity = "none"
    check: CheckKind = "tcp"
    check_path: str = "/"
    check_port: int = 0
    check_interval_s: float = 1.0
    check_timeout_s: float = 1.0
    rise: int = 2
    fall: int = 2


class ClbBackendRemoved(_BackendEvent, frozen=True, kw_only=True, gc=False):
    """No new connection goes to the backend; those in progress stay with it."""

    verb: ClassVar[str] = "backend-removed"


class ClbBackendHealthChanged(_BackendEvent, frozen=True, kw_only=True, gc=False):
    """The address's holder finds the backend healthy or not. ``epoch`` is the holder's; ``at`` the decision's.

    ``reason`` is what the last check said.
    """

    verb: ClassVar[str] = "backend-health-changed"
    healthy: bool
    node: str
    epoch: int
    at: datetime
    reason: str = ""


class _HolderEvent(_ClbEvent, frozen=True, kw_only=True, gc=False):
    purpose: str
    address: str
    node: str
    uid: str


class ClbHolderAssigned(_HolderEvent, frozen=True, kw_only=True, gc=False):
    """This gateway holds the address. **The sequence of this event is the holder's epoch.**

    ``previous`` is who held it before, if anybody did; the withdrawing event stands just before.
    """

    verb: ClassVar[str] = "holder-assigned"
    previous: str = ""
    previous_epoch: int = 0


class ClbHolderWithdrawn(_HolderEvent, frozen=True, kw_only=True, gc=False):
    """This gateway, since ``epoch`` the holder, holds the address no longer.

    ``silent``: nothing was heard of it as a holder. With a ``reason`` its agent is heard, but says that it
    cannot hold addresses, and why.
    """

    verb: ClassVar[str] = "holder-withdrawn"
    epoch: int
    cause: Literal["left", "unmarked", "silent", "fenced", "released"]
    reason: str = ""
