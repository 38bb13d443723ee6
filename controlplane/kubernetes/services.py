"""Services with the annotation ``isthmus.io/public-services: RESERVATION`` → backends of its second address.

A Service of type NodePort or LoadBalancer is served by kube-proxy on every node; the backends are the members
with a ready endpoint of it, so that its packets take no second hop and ``externalTrafficPolicy: Local``
holds. A port that an operator has given backends is his, and one that two Services ask for is the elder's.
Sources: ``core/v1 Service`` and ``discovery.k8s.io/v1 EndpointSlice`` of Kubernetes 1.36.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

from controlplane.kubernetes.api import KubernetesApi
from controlplane.kubernetes.endpoints import PURPOSE, Backends, Following
from controlplane.kubernetes.objects import CLB, EndpointSlice, Service, ServicePort
from events.protocol.clb import BackendKey
from events.protocol.commands import AddBackend

log = logging.getLogger("isthmus.kubernetes")

Listener = tuple[str, str, str, int]
_PROTOCOLS: Mapping[str, Literal["tcp", "udp"]] = {"TCP": "tcp", "UDP": "udp"}


class PublicServices:
    """All annotated Services. Anybody who may annotate a Service reaches the address by it."""

    def __init__(self, api: KubernetesApi, backends: Backends) -> None:
        self._api = api
        self._backends = backends
        self._told: tuple[str, ...] = ()

    async def following(self) -> Following | None:
        """Ports that cannot be had are told once in the log, and leave all others as they are.

        Raises IsthmusError. Cancelled, it leaves nothing behind.
        """
        services = [each for each in await self._api.list_services() if each.metadata.annotations.get(CLB)]
        services.sort(key=lambda each: (each.metadata.creation_timestamp, each.metadata.uid))
        nodes = {
            each.metadata.uid: serving(
                await self._api.list_endpoint_slices(each.metadata.namespace, each.metadata.name)
            )
            for each in services
        }
        theirs = await self._operators()
        wanted: dict[BackendKey, AddBackend] = {}
        taken: dict[Listener, str] = {}
        told: list[str] = []
        for service in services:
            name = f"{service.metadata.namespace}/{service.metadata.name}"
            reservation = service.metadata.annotations[CLB]
            purpose = next((p for p in self._backends.purposes(reservation) if p != PURPOSE), "")
            if not purpose:
                told.append(
                    f"{name}: no reservation {reservation!r} with addresses on gateways: "
                    f"`isthmus clb list` names those there are"
                )
                continue
            for port in service.spec.ports or ():
                protocol = _PROTOCOLS.get(port.protocol)
                if protocol is None or not port.node_port:
                    told.append(f"{name}: port {port.port} is no TCP or UDP port of a NodePort or LoadBalancer")
                    continue
                listener = (reservation, purpose, protocol, port.port)
                other = taken.get(listener) or ("an operator" if listener in theirs else "")
                if other:
                    told.append(f"{name}: {protocol} port {port.port} of {reservation!r} is that of {other}")
                    continue
                taken[listener] = name
                for node in nodes[service.metadata.uid]:
                    if address := self._backends.underlay(node):
                        key = BackendKey(*listener, address, port.node_port)
                        wanted[key] = _backend(key, service, port)
        if tuple(told) != self._told:
            for line in told:
                log.warning("Service %s", line)
            self._told = tuple(told)
        return Following(wanted, lambda key: key.purpose != PURPOSE and key.listener not in theirs)

    async def _operators(self) -> set[Listener]:
        """Ports that an operator gave a backend."""
        return {
            key.listener
            for key, added in self._backends.found().items()
            if key.purpose != PURPOSE and not await self._backends.followed(added)
        }


def serving(slices: Iterable[EndpointSlice]) -> list[str]:
    """The Nodes on which a ready endpoint runs (unknown counts as ready), in order."""
    return sorted(
        {
            endpoint.node_name
            for each in slices
            for endpoint in each.endpoints or ()
            if endpoint.node_name and endpoint.conditions.ready is not False
        }
    )


def _backend(key: BackendKey, service: Service, port: ServicePort) -> AddBackend:
    made = AddBackend(
        reservation=key.name,
        purpose=key.purpose,
        port=key.port,
        protocol=key.protocol,
        address=key.address,
        backend_port=port.node_port,
        affinity="source" if service.spec.session_affinity == "ClientIP" else "none",
    )
    if health := service.spec.health_check_node_port:
        return msgspec.structs.replace(made, check="http", check_path="/healthz", check_port=health)
    return msgspec.structs.replace(made, check="none") if key.protocol == "udp" else made
