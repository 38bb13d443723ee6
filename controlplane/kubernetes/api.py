"""The API server: the port that the bridge uses, and its implementation on kubernetes_asyncio.

The library brings what is hard to get right elsewhere (kubeconfig files with all their credential helpers,
in-cluster tokens that rotate, TLS, proxies); answers are decoded by msgspec into the few fields that are
looked at, since building the library's models of 5,000 whole Nodes takes seconds of CPU and hundreds of MB.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec

from controlplane.kubernetes.objects import (
    EndpointSlice,
    EndpointSliceList,
    Failure,
    Node,
    NodeList,
    ObjectList,
    Service,
    ServiceList,
    WatchLine,
)
from controlplane.kubernetes.pods import Pod, PodList, eviction
from controlplane.kubernetes.tokens import TokenReview, review
from events.errors import IsthmusError, Refused, Unavailable

PAGE = 500
"""Nodes asked for at a time: the page size of Kubernetes' own clients."""
REQUEST_S = 30.0
WATCH_S = 300
"""A watch is ended by the server after this long, and begun anew behind what was seen."""
SILENCE_S = WATCH_S + 30.0
LINE_BYTES = 4 * 1024 * 1024
"""Longest line of a watch: above etcd's limit of 1.5 MiB for an object."""
MERGE, STRATEGIC = "application/merge-patch+json", "application/strategic-merge-patch+json"
_RETRIED = frozenset({429, 500, 502, 503, 504})

_nodes = msgspec.json.Decoder(NodeList).decode
_objects = msgspec.json.Decoder(ObjectList).decode
_pods = msgspec.json.Decoder(PodList).decode
_services = msgspec.json.Decoder(ServiceList).decode
_slices = msgspec.json.Decoder(EndpointSliceList).decode
_node = msgspec.json.Decoder(Node).decode
_line = msgspec.json.Decoder(WatchLine).decode
_failure = msgspec.json.Decoder(Failure).decode
_review = msgspec.json.Decoder(TokenReview).decode


class Change(NamedTuple):
    """What a watch says: a Node as it is now, or that it is gone; neither for a bookmark.

    ``version`` is where a watch begun anew goes on.
    """

    node: Node | None
    deleted: bool
    version: str


class WatchExpiredError(Exception):
    """The version to go on from is too old (410): list anew."""


class KubernetesApi(Protocol):
    """What the bridge needs of the API server.

    Every method raises Unavailable(kubernetes_unreachable) when nobody answers in time, and
    Refused(kubernetes_refused) when the server says no (RBAC, validation). A cancelled call may have happened.
    """

    async def list_nodes(self) -> tuple[list[Node], str]:
        """All Nodes, and the version to watch from. Cancelled, it leaves nothing behind."""
        ...

    def watch_nodes(self, version: str) -> AsyncIterator[Change]:
        """Changes behind ``version``, until the server ends the watch. Raises WatchExpiredError."""
        ...

    async def read(self, path: str) -> dict[str, Any] | None:
        """Any object, whole; None when there is none. Cancelled, it leaves nothing behind."""
        ...

    async def patch_node(self, name: str, patch: Mapping[str, Any], *, status: bool = False) -> Node | None:
        """Patch a Node (its ``status`` by strategic merge). None: it is gone, or another one by now.

        Cancelled, it may have been patched.
        """
        ...

    async def create_event(self, event: Mapping[str, Any]) -> None:
        """Store an events.k8s.io/v1 Event. One that is there already is no error.

        Cancelled, it may be stored.
        """
        ...

    async def list_endpoint_slices(self, namespace: str, service: str) -> list[EndpointSlice]:
        """Those of a Service. Cancelled, it leaves nothing behind."""
        ...

    async def list_services(self) -> list[Service]:
        """Those of all namespaces. Cancelled, it leaves nothing behind."""
        ...

    async def list_pods(self, node: str) -> list[Pod]:
        """All pods on a Node. Cancelled, it leaves nothing behind."""
        ...

    async def evict(self, pod: Pod) -> None:
        """Evict exactly this pod; one that is gone, or another one by now, is no error.

        Raises Unavailable(kubernetes_unreachable) also while a disruption budget forbids it. Cancelled, it may
        be evicted.
        """
        ...


class KubernetesClient:
    """The API server by HTTPS. Made by :meth:`open`; :meth:`close` it."""

    def __init__(self, client: Any) -> None:
        self._client = client

    @classmethod
    async def open(cls, kubeconfig: Path | None = None) -> KubernetesClient:
        """By a kubeconfig file, or as a pod by its ServiceAccount.

        Raises Refused(kubernetes_config) when neither is there or readable. Cancelled, it leaves nothing
        behind.
        """
        from kubernetes_asyncio import client, config

        settings = client.Configuration()
        try:
            if kubeconfig is not None:
                await config.load_kube_config(config_file=str(kubeconfig), client_configuration=settings)
            else:
                config.load_incluster_config(  # type: ignore[no-untyped-call]
                    client_configuration=settings
                )
        except Exception as error:  # the library passes on whatever its YAML and credential helpers raise
            raise Refused(
                "kubernetes_config",
                f"no access to a Kubernetes API server: {error}. Inside a cluster the pod needs its "
                f"ServiceAccount's token; elsewhere say --kubeconfig FILE",
            ) from error
        return cls(client.ApiClient(configuration=settings))

    async def close(self) -> None:
        """Close every connection. Cancelled, some may stay open until the process ends."""
        await self._client.close()

    async def list_nodes(self) -> tuple[list[Node], str]:
        return await self._listed("/api/v1/nodes", _nodes)

    async def list_endpoint_slices(self, namespace: str, service: str) -> list[EndpointSlice]:
        path = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
        found, _ = await self._listed(path, _slices, ("labelSelector", f"kubernetes.io/service-name={service}"))
        return found

    async def list_services(self) -> list[Service]:
        return (await self._listed("/api/v1/services", _services))[0]

    async def list_pods(self, node: str) -> list[Pod]:
        found, _ = await self._listed("/api/v1/pods", _pods, ("fieldSelector", f"spec.nodeName={node}"))
        return found

    async def evict(self, pod: Pod) -> None:
        meta = pod.metadata
        path = f"/api/v1/namespaces/{meta.namespace}/pods/{meta.name}/eviction"
        try:
            await self._decoded("POST", path, msgspec.Raw, body=eviction(pod))
        except Refused as error:
            if error.details.get("status") not in {404, 409}:
                raise

    async def review_token(self, token: str, audience: str) -> TokenReview:
        """Whose ServiceAccount token it is. Raises Unavailable(kubernetes_unreachable), Refused.

        Cancelled, it leaves nothing behind.
        """
        path = "/apis/authentication.k8s.io/v1/tokenreviews"
        found: TokenReview = await self._decoded("POST", path, _review, body=review(token, audience))
        return found

    async def read(self, path: str) -> dict[str, Any] | None:
        """Any object; None when there is none. Raises Unavailable, Refused.

        Cancelled, it leaves nothing behind.
        """
        try:
            found: dict[str, Any] = await self._decoded("GET", path, msgspec.json.decode)
        except Refused as error:
            if error.details.get("status") == 404:
                return None
            raise
        return found

    async def list_objects(self, path: str) -> list[dict[str, Any]] | None:
        """All objects of a list, whole; None when the server knows no such. Raises Unavailable, Refused.

        Cancelled, it leaves nothing behind.
        """
        try:
            found, _ = await self._listed(path, _objects)
        except Refused as error:
            if error.details.get("status") == 404:
                return None
            raise
        return found

    async def create(self, path: str, thing: Mapping[str, Any]) -> bool:
        """Create an object; False when it is there already. Raises Unavailable, Refused.

        Cancelled, it may be there.
        """
        try:
            await self._decoded("POST", path, msgspec.Raw, body=thing)
        except Refused as error:
            if error.details.get("status") == 409:
                return False
            raise
        return True

    async def replace(self, path: str, thing: Mapping[str, Any]) -> dict[str, Any] | None:
        """Replace an object of the version that it names; None when that is another one by now, or gone.

        Raises Unavailable, Refused. Cancelled, it may be replaced.
        """
        try:
            found: dict[str, Any] = await self._decoded("PUT", path, msgspec.json.decode, body=thing)
        except Refused as error:
            if error.details.get("status") in {404, 409}:
                return None
            raise
        return found

    async def merge(self, path: str, patch: Mapping[str, Any]) -> None:
        """Merge into an object. Raises Unavailable, Refused. Cancelled, it may have been patched."""
        await self._decoded("PATCH", path, msgspec.Raw, body=patch, kind=MERGE)

    async def _listed(self, path: str, decode: Any, *selected: tuple[str, str]) -> tuple[list[Any], str]:
        """All pages of a list, and its version."""
        found: list[Any] = []
        following = ""
        while True:
            query = [("limit", str(PAGE)), *selected, *([("continue", following)] if following else [])]
            page = await self._decoded("GET", path, decode, query=query)
            found += page.items
            following = page.metadata.next
            if not following:
                return found, page.metadata.resource_version

    async def watch_nodes(self, version: str) -> AsyncIterator[Change]:
        """Changes of Nodes from a version on. Raises Unavailable(kubernetes_unreachable).

        Cancelled, the watch is closed.
        """
        query = [
            ("watch", "true"), ("allowWatchBookmarks", "true"), ("resourceVersion", version),
            ("timeoutSeconds", str(WATCH_S)),
        ]  # fmt: skip
        response = await self._request("GET", "/api/v1/nodes", query=query, within_s=(REQUEST_S, SILENCE_S))
        try:
            async for line in _lines(response.content):
                yield _change(line)
        except (OSError, TimeoutError, _errors()) as error:
            raise Unavailable("kubernetes_unreachable", f"the watch of Nodes broke off: {error}") from error
        finally:
            response.close()

    async def patch_node(self, name: str, patch: Mapping[str, Any], *, status: bool = False) -> Node | None:
        path = f"/api/v1/nodes/{name}{'/status' if status else ''}"
        kind = STRATEGIC if status else MERGE
        try:
            patched: Node = await self._decoded("PATCH", path, _node, body=patch, kind=kind)
        except Refused as error:
            # Gone; another version of its taints (409); another Node by now: its uid is immutable (422).
            status_code = error.details.get("status")
            if status_code in {404, 409} or (status_code == 422 and "metadata.uid" in error.message):
                return None
            raise
        return patched

    async def create_event(self, event: Mapping[str, Any]) -> None:
        path = f"/apis/events.k8s.io/v1/namespaces/{event['metadata']['namespace']}/events"
        try:
            await self._decoded("POST", path, msgspec.Raw, body=event)
        except Refused as error:
            if error.details.get("status") != 409:
                raise

    async def _decoded(self, method: str, path: str, decode: Any, **more: Any) -> Any:
        response = await self._request(method, path, **more)
        try:
            body = await response.read()
        except (OSError, TimeoutError, _errors()) as error:
            raise Unavailable("kubernetes_unreachable", f"{method} {path}: {error}") from error
        finally:
            response.release()
        try:
            return decode(body)
        except msgspec.MsgspecError as error:
            raise Refused(
                "kubernetes_refused", f"the answer to {method} {path} is unreadable: {error}"
            ) from error

    async def _request(
        self, method: str, path: str, *, query: Sequence[tuple[str, str]] = (), body: Any = None,
        kind: str = "application/json", within_s: float | tuple[float, float] = REQUEST_S,
    ) -> Any:  # fmt: skip
        headers = {"Accept": "application/json", "Content-Type": kind}
        try:
            response = await self._client.call_api(
                path, method, query_params=list(query), header_params=headers, body=body,
                auth_settings=["BearerToken"], _preload_content=False, _return_http_data_only=True,
                _request_timeout=within_s,
            )  # fmt: skip
        except (OSError, TimeoutError, asyncio.IncompleteReadError, _errors()) as error:
            raise Unavailable(
                "kubernetes_unreachable", f"the API server does not answer {method} {path}: {error}"
            ) from error
        if 200 <= response.status < 300:
            return response
        with contextlib.suppress(OSError, TimeoutError, _errors()):
            raise _refusal(method, path, response.status, await response.read())
        raise Unavailable("kubernetes_unreachable", f"{method} {path}: {response.status}")


def _errors() -> type[Exception]:
    """The base of what the HTTP library raises; imported late, since only the bridge needs it."""
    from aiohttp import ClientError

    return ClientError


async def _lines(content: Any) -> AsyncIterator[bytes]:
    """The lines of a watch, each at most LINE_BYTES long."""
    held = b""
    async for chunk, _ in content.iter_chunks():
        *whole, held = (held + chunk).split(b"\n")
        for line in whole:
            if line.strip():
                yield line
        if len(held) > LINE_BYTES:
            raise OSError(f"a line of the watch is longer than {LINE_BYTES:,} bytes")


def _change(line: bytes) -> Change:
    """One line of a watch. Raises WatchExpiredError, Unavailable for anything that is no watch's."""
    try:
        found = _line(line)
        if found.type == "ERROR":
            failure = _failure(found.object)
            if failure.code == 410:
                raise WatchExpiredError
            raise Unavailable("kubernetes_unreachable", f"the watch ended: {failure.reason}: {failure.message}")
        node = _node(found.object) if found.type != "BOOKMARK" else None
        if node is None:
            meta = msgspec.json.decode(found.object, type=dict[str, Any]).get("metadata", {})
            return Change(None, deleted=False, version=str(meta.get("resourceVersion", "")))
    except msgspec.MsgspecError as error:
        raise Unavailable("kubernetes_unreachable", f"a line of the watch is unreadable: {error}") from error
    return Change(node, deleted=found.type == "DELETED", version=node.metadata.resource_version)


def _refusal(method: str, path: str, status: int, body: bytes) -> IsthmusError:
    try:
        failure = _failure(body)
    except msgspec.MsgspecError:
        failure = Failure(code=status, message=body[:200].decode(errors="replace"))
    said = f"{method} {path}: {status} {failure.reason} {failure.message}".strip()
    if status in _RETRIED:
        return Unavailable("kubernetes_unreachable", f"the API server is busy or ill: {said}", status=status)
    if status in {401, 403}:
        said += " (the account needs the rights of `isthmus deploy kubernetes`, file rbac.yaml)"
    return Refused("kubernetes_refused", f"the API server refuses {said}", status=status, reason=failure.reason)
