"""Backends of the reserved ``apiserver`` address follow the EndpointSlices of the Service ``kubernetes``.

API servers keep these slices themselves, so that a replaced control-plane node needs nobody who tells the CLB.
Only backends that a controller added for this purpose are ever removed; an operator's stay. Which are whose
stands in the log: in the actor and the command id of the event that added them. Sources:
``discovery.k8s.io/v1 EndpointSlice`` of Kubernetes 1.36.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from ipaddress import IPv4Address
from typing import NamedTuple, Protocol

from controlplane.kubernetes.api import KubernetesApi
from controlplane.kubernetes.objects import EndpointSlice
from events.bus.retry import jittered_s
from events.errors import IsthmusError

log = logging.getLogger("isthmus.kubernetes")

SERVICE = ("default", "kubernetes")
"""Namespace and name of the Service of the API server itself."""
PURPOSE, PORT_NAME, PORT = "apiserver", "https", 443
"""Of the reserved pair; the name of the Service's port; the port that external nodes connect to."""
POLL_S, POLL_LONGEST_S = 5.0, 60.0
"""Health checks take a dead API server out within seconds; this is for those that are replaced."""


class Endpoint(NamedTuple):
    """Where an API server listens."""

    address: str
    port: int


class Backends(Protocol):
    """What is needed of the controller: the backends of one port of one reservation."""

    @property
    def leading(self) -> bool:
        """Whether this controller leads; only then is anything written."""
        ...

    def found(self) -> Mapping[Endpoint, int]:
        """Each backend there is → the sequence of the event that added it (or changed it last)."""
        ...

    async def followed(self, added: int) -> bool:
        """Whether the event of this sequence was written for Kubernetes, and not by an operator.

        Raises IsthmusError. Cancelled, it leaves nothing behind.
        """
        ...

    async def add(self, endpoint: Endpoint) -> None:
        """Add a backend. Raises IsthmusError. Cancelled, it may be added all the same."""
        ...

    async def remove(self, endpoint: Endpoint) -> None:
        """Remove a backend. Raises IsthmusError. Cancelled, it may be removed all the same."""
        ...


class EndpointBackends:
    """Keeps the backends in step. :meth:`run` until cancelled."""

    def __init__(self, api: KubernetesApi, backends: Backends) -> None:
        self._api = api
        self._backends = backends
        self._followed: dict[int, bool] = {}
        """Sequence → what the log says of that event, which never changes."""
        self.problem = ""
        """What keeps it from its work, in words; empty while nothing does."""

    async def run(self) -> None:
        """Compare and write, for ever. Cancelled, what was written stands, and another one goes on."""
        pause_s = POLL_S
        while True:
            try:
                if self._backends.leading:
                    await self.settle()
            except IsthmusError as error:
                if self.problem != error.message:  # one line a change, not one a try
                    log.warning("backends of %s: %s [%s]", PURPOSE, error.message, error.code)
                self.problem = error.message
                pause_s = min(POLL_LONGEST_S, pause_s * 2)
            else:
                self.problem, pause_s = "", POLL_S
            await asyncio.sleep(jittered_s(pause_s, 0.2))

    async def settle(self) -> None:
        """Make the backends what the slices say. Raises IsthmusError; what was written before it stands.

        Slices without a single ready address change nothing: somebody did answer. Cancelled, a part may be
        written.
        """
        wanted = addresses(await self._api.list_endpoint_slices(*SERVICE))
        if not wanted:
            return
        found = self._backends.found()
        kept = set(found.values())
        self._followed = {added: says for added, says in self._followed.items() if added in kept}
        for endpoint in sorted(wanted - found.keys()):
            await self._backends.add(endpoint)
            log.info("backend %s:%d of %s added, as Kubernetes says", *endpoint, PURPOSE)
        for endpoint in sorted(found.keys() - wanted):
            added = found[endpoint]
            if added not in self._followed:
                self._followed[added] = await self._backends.followed(added)
            if self._followed[added]:
                await self._backends.remove(endpoint)
                log.info("backend %s:%d of %s removed, as Kubernetes says", *endpoint, PURPOSE)


def addresses(slices: Iterable[EndpointSlice]) -> set[Endpoint]:
    """Where the Service is served: IPv4, ready (unknown counts as ready, as the API defines it)."""
    found = set()
    for each in slices:
        ports = [port.port for port in each.ports or () if port.name == PORT_NAME and port.port]
        if each.address_type != "IPv4":
            continue
        for endpoint in each.endpoints or ():
            if endpoint.conditions.ready is False:
                continue
            for text in endpoint.addresses:
                with suppress(ValueError):
                    found |= {Endpoint(str(IPv4Address(text)), port) for port in ports}
    return found
