"""Backends of reserved addresses follow Kubernetes: those of ``apiserver``, and those of annotated Services.

The ``apiserver`` address follows the EndpointSlices of the Service ``kubernetes``: API servers keep these
themselves, so that a replaced control-plane node needs nobody who tells the CLB. The other address follows
:mod:`controlplane.kubernetes.services`. Only backends that a controller added for this are ever removed; an
operator's stay. Which are whose stands in the log: in the actor and the command id of the event that added
them. Sources: ``discovery.k8s.io/v1 EndpointSlice`` of Kubernetes 1.36.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from ipaddress import IPv4Address
from typing import NamedTuple, Protocol

from controlplane.kubernetes.api import KubernetesApi
from controlplane.kubernetes.objects import EndpointSlice
from events.bus.retry import jittered_s
from events.errors import IsthmusError
from events.protocol.clb import BackendKey
from events.protocol.commands import AddBackend

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
    """What is needed of the controller."""

    @property
    def leading(self) -> bool:
        """Whether this controller leads; only then is anything written."""
        ...

    def found(self) -> Mapping[BackendKey, int]:
        """Each backend there is → the sequence of the event that added it (or changed it last)."""
        ...

    def purposes(self, reservation: str) -> tuple[str, ...]:
        """What the addresses of a reservation serve; empty when there is none, or nobody here realises it."""
        ...

    def underlay(self, node: str) -> str:
        """The address of a member; empty when it is none."""
        ...

    async def followed(self, added: int) -> bool:
        """Whether the event of this sequence was written for Kubernetes, and not by an operator.

        Raises IsthmusError. Cancelled, it leaves nothing behind.
        """
        ...

    async def add(self, backend: AddBackend) -> None:
        """Add a backend. Raises IsthmusError. Cancelled, it may be added all the same."""
        ...

    async def remove(self, key: BackendKey) -> None:
        """Remove a backend. Raises IsthmusError. Cancelled, it may be removed all the same."""
        ...


class Following(NamedTuple):
    """What there should be. ``covers`` says of which backends this is all; others are left alone."""

    wanted: Mapping[BackendKey, AddBackend]
    covers: Callable[[BackendKey], bool]


class Source(Protocol):
    """What backends follow."""

    async def following(self) -> Following | None:
        """As Kubernetes says now; None: nothing follows from it. Raises IsthmusError.

        Cancelled, it leaves nothing behind.
        """
        ...


class ApiServers:
    """The API servers behind a reservation's ``apiserver`` address."""

    def __init__(self, api: KubernetesApi, reservation: str) -> None:
        self._api = api
        self._reservation = reservation

    async def following(self) -> Following | None:
        """Slices without a single ready address change nothing: somebody did answer.

        Raises IsthmusError. Cancelled, it leaves nothing behind.
        """
        found = addresses(await self._api.list_endpoint_slices(*SERVICE))
        listener = (self._reservation, PURPOSE, "tcp", PORT)
        wanted = {
            BackendKey(self._reservation, PURPOSE, "tcp", PORT, *endpoint): AddBackend(
                reservation=self._reservation,
                purpose=PURPOSE,
                port=PORT,
                address=endpoint.address,
                backend_port=endpoint.port,
            )
            for endpoint in found
        }
        return Following(wanted, lambda key: key.listener == listener) if wanted else None


class FollowingBackends:
    """Keeps backends in step with a source. :meth:`run` until cancelled."""

    def __init__(self, source: Source, backends: Backends, *, about: str) -> None:
        self._source = source
        self._backends = backends
        self._about = about
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
                    log.warning("backends of %s: %s [%s]", self._about, error.message, error.code)
                self.problem = error.message
                pause_s = min(POLL_LONGEST_S, pause_s * 2)
            else:
                self.problem, pause_s = "", POLL_S
            await asyncio.sleep(jittered_s(pause_s, 0.2))

    async def settle(self) -> None:
        """Make the backends what the source says. Raises IsthmusError; what was written before it stands.

        Cancelled, a part may be written.
        """
        following = await self._source.following()
        if following is None:
            return
        found = {key: added for key, added in self._backends.found().items() if following.covers(key)}
        kept = set(found.values())
        self._followed = {added: says for added, says in self._followed.items() if added in kept}
        for key in sorted(following.wanted.keys() - found.keys()):
            await self._backends.add(following.wanted[key])
            log.info(
                "backend %s:%d of %s added, as Kubernetes says", key.address, key.backend_port, key.purpose
            )
        for key in sorted(found.keys() - following.wanted.keys()):
            added = found[key]
            if added not in self._followed:
                self._followed[added] = await self._backends.followed(added)
            if self._followed[added]:
                await self._backends.remove(key)
                log.info(
                    "backend %s:%d of %s removed, as Kubernetes says",
                    key.address,
                    key.backend_port,
                    key.purpose,
                )


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
