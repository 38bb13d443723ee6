"""A small API server of the tests' own: as much of Kubernetes' as the bridge meets, by HTTP on the loopback.

Nodes with list (limit, continue), watch (resourceVersion, bookmarks, 410 behind what was forgotten), merge
patch, strategic merge patch of conditions on the status subresource, preconditions, immutability of podCIDR,
bearer tokens with rights, projected ServiceAccount tokens and their review. The words of refusals are those
of Kubernetes 1.36.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

TOKEN = "bridge-token"
KEPT = 1000
"""Changes that a watch can still go on from."""


def status(code: int, reason: str, message: str) -> web.Response:
    return web.json_response(
        {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Failure",
            "code": code,
            "reason": reason,
            "message": message,
        },
        status=code,
    )


class ApiServer:
    """The objects, and what happened to them. Times and uids are counted, not taken."""

    def __init__(self) -> None:
        self.nodes: dict[str, dict[str, Any]] = {}
        self.events: list[dict[str, Any]] = []
        self.pods: dict[str, dict[str, Any]] = {}
        """By uid."""
        self.slices: list[dict[str, Any]] = []
        """Of the Service ``kubernetes``."""
        self.services: list[dict[str, Any]] = []
        self.service_slices: dict[str, list[dict[str, Any]]] = {}
        """NAMESPACE/NAME of another Service → its EndpointSlices."""
        self.tokens: dict[str, dict[str, Any]] = {}
        """Projected token → whose it is; one that is expired or whose pod is gone is taken out."""
        self.reviews = 0
        self.objects: dict[str, dict[str, Any]] = {}
        """ConfigMaps and Secrets by their paths."""
        self.custom: dict[str, list[dict[str, Any]]] = {}
        """Objects of other kinds, by the path of their list; a path that is not here is unknown."""
        self.guarded: set[str] = set()
        """Names of pods that a disruption budget does not let go."""
        self.patches: list[tuple[str, str, dict[str, Any]]] = []
        """(path, content type, patch) of each that was taken."""
        self.lists = 0
        self.requested = 0
        """Requests of any kind."""
        self.requests = 0
        """Requests for EndpointSlices."""
        self.forbidden: set[str] = set()
        """Methods that the account may not use."""
        self.broken = False
        """Whether every request ends with 503."""
        self._versions = itertools.count(1)
        self._uids = itertools.count(1)
        self._log: list[tuple[int, str, dict[str, Any]]] = []
        self._floor = 0
        self._changed = asyncio.Event()
        self._watches: set[asyncio.Task[Any]] = set()

    # --- what a cluster does to its Nodes --------------------------------------------------------------

    def add(self, name: str, **spec: Any) -> dict[str, Any]:
        """A kubelet registers."""
        node = {
            "kind": "Node", "apiVersion": "v1",
            "metadata": {"name": name, "uid": f"node-uid-{next(self._uids)}", "labels": {}, "annotations": {}},
            "spec": spec,
            "status": {"conditions": [{"type": "Ready", "status": "False", "reason": "KubeletNotReady"}]},
        }  # fmt: skip
        self.nodes[name] = node
        self._note("ADDED", node)
        return node

    def put(self, node: dict[str, Any]) -> None:
        """A Node as it stands: registered by a kubelet, and served by whatever wrote its annotations."""
        name = node["metadata"]["name"]
        kind = "MODIFIED" if name in self.nodes else "ADDED"
        node["metadata"].setdefault("uid", f"node-uid-{next(self._uids)}")
        node["status"].setdefault("conditions", [])
        self.nodes[name] = node
        self._note(kind, node)

    def delete(self, name: str) -> None:
        """Somebody deletes the Node."""
        self._note("DELETED", self.nodes.pop(name))

    def heartbeat(self, name: str) -> None:
        """The kubelet refreshes its conditions."""
        node = self.nodes[name]
        node["status"]["conditions"][0]["lastHeartbeatTime"] = f"beat-{next(self._uids)}"
        self._note("MODIFIED", node)

    def compact(self) -> None:
        """Forget every change: watches from before get 410."""
        self._floor = self._log[-1][0] if self._log else 0
        self._log.clear()
        self.cut()

    def cut(self) -> None:
        """Break every watch off."""
        for task in list(self._watches):
            task.cancel()

    def network(self, name: str) -> tuple[str, str] | None:
        """The condition NetworkUnavailable: (status, reason)."""
        return next(
            ((each["status"], each["reason"]) for each in self.nodes[name]["status"]["conditions"]
             if each["type"] == "NetworkUnavailable"),
            None,
        )  # fmt: skip

    def _note(self, kind: str, node: dict[str, Any]) -> None:
        version = next(self._versions)
        node["metadata"]["resourceVersion"] = str(version)
        self._log.append((version, kind, copy.deepcopy(node)))
        if len(self._log) > KEPT:
            self._floor = self._log.pop(0)[0]
        self._changed.set()
        self._changed = asyncio.Event()

    # --- requests --------------------------------------------------------------------------------------

    @web.middleware
    async def _gate(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.requested += 1
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return status(401, "Unauthorized", "Unauthorized")
        if self.broken:
            return status(503, "ServiceUnavailable", "etcd is away")
        if request.method in self.forbidden:
            return status(
                403, "Forbidden", f'nodes is forbidden: User "isthmus" cannot {request.method.lower()}'
            )
        answer: web.StreamResponse = await handler(request)
        return answer

    async def _list(self, request: web.Request) -> web.StreamResponse:
        if request.query.get("watch") == "true":
            return await self._watch(request)
        self.lists += 1
        limit, start = int(request.query.get("limit", "0") or 0), int(request.query.get("continue", "0") or 0)
        names = sorted(self.nodes)[start:]
        page = names[:limit] if limit else names
        following = str(start + limit) if limit and len(names) > limit else ""
        meta = {"resourceVersion": str(self._log[-1][0] if self._log else self._floor), "continue": following}
        return web.json_response(
            {"kind": "NodeList", "metadata": meta, "items": [self.nodes[name] for name in page]}
        )

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        seen = int(request.query["resourceVersion"])
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        task = asyncio.current_task()
        assert task is not None
        self._watches.add(task)
        try:
            while True:
                changed = self._changed
                if seen < self._floor:
                    gone = {
                        "kind": "Status",
                        "code": 410,
                        "reason": "Expired",
                        "message": "too old resource version",
                    }
                    await response.write(json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n")
                    return response
                lines = [(v, kind, node) for v, kind, node in self._log if v > seen]
                for version, kind, node in lines:
                    line = json.dumps({"type": kind, "object": node}).encode() + b"\n"
                    middle = len(line) // 2  # a line seldom comes in one piece
                    await response.write(line[:middle])
                    await response.write(line[middle:])
                    seen = version
                mark = {"kind": "Node", "metadata": {"resourceVersion": str(seen)}}
                await response.write(json.dumps({"type": "BOOKMARK", "object": mark}).encode() + b"\n")
                await changed.wait()
        except (asyncio.CancelledError, ConnectionError):
            return response
        finally:
            self._watches.discard(task)

    async def _one(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        if name not in self.nodes:
            return status(404, "NotFound", f'nodes "{name}" not found')
        return web.json_response(self.nodes[name])

    async def _patch(self, request: web.Request) -> web.StreamResponse:
        node = self.nodes.get(request.match_info["name"])
        if node is None:
            return status(404, "NotFound", f'nodes "{request.match_info["name"]}" not found')
        patch = await request.json()
        meta = patch.get("metadata", {})
        name = node["metadata"]["name"]
        if meta.get("uid", node["metadata"]["uid"]) != node["metadata"]["uid"]:
            return status(
                422, "Invalid", f'Node "{name}" is invalid: metadata.uid: Invalid value: field is immutable'
            )
        if (
            meta.get("resourceVersion", node["metadata"]["resourceVersion"])
            != node["metadata"]["resourceVersion"]
        ):
            return status(
                409, "Conflict", "the object has been modified; please apply your changes to the latest"
            )
        on_status = request.path.endswith("/status")
        strategic = request.content_type == "application/strategic-merge-patch+json"
        merged = copy.deepcopy(node)
        merge(merged, patch, strategic=strategic)
        if on_status:
            merged["spec"] = node["spec"]
        else:
            merged["status"] = node["status"]
        before, after = node["spec"].get("podCIDR", ""), merged["spec"].get("podCIDR", "")
        if before and after != before:
            message = 'node updates may not change podCIDR except from "" to valid'
            return status(422, "Invalid", f'Node "{name}" is invalid: spec.podCIDRs: Forbidden: {message}')
        self.patches.append((request.path, request.content_type, patch))
        if merged != node:
            self.nodes[name] = merged
            self._note("MODIFIED", merged)
        return web.json_response(merged)

    async def _event(self, request: web.Request) -> web.StreamResponse:
        event = await request.json()
        needed = ("eventTime", "reportingController", "reportingInstance", "action", "reason", "type")
        missing = [key for key in needed if not event.get(key)]
        if missing or len(event["note"].encode()) > 1024:
            return status(422, "Invalid", f"Event is invalid: {missing}")
        name = event["metadata"]["name"]
        if any(known["metadata"]["name"] == name for known in self.events):
            return status(409, "AlreadyExists", f'events.events.k8s.io "{name}" already exists')
        self.events.append(event)
        return web.json_response(event, status=201)

    def add_pod(self, name: str, node: str, address: str, **spec: Any) -> None:
        """A pod runs on a Node."""
        uid = f"pod-uid-{next(self._uids)}"
        self.pods[uid] = {
            "metadata": {"name": name, "namespace": "default", "uid": uid},
            "spec": {"nodeName": node, **spec},
            "status": {"phase": "Running", "podIP": address},
        }

    def project(
        self, node: str, *, account: str = "isthmus-system:isthmus-agent", audience: str = "isthmus",
        bound: bool = True,
    ) -> str:  # fmt: skip
        """The token of a pod on a Node; one that is not ``bound`` belongs to no pod."""
        number = next(self._uids)
        token = f"head.body-{number}.signature"
        where = {
            "node-name": node, "node-uid": f"uid-of-{node}",
            "pod-name": f"pod-{number}", "pod-uid": f"p-{number}",
        }  # fmt: skip
        extra = {f"authentication.kubernetes.io/{key}": [value] for key, value in where.items()}
        self.tokens[token] = {
            "audience": audience,
            "user": {
                "username": f"system:serviceaccount:{account}",
                "extra": {"authentication.kubernetes.io/credential-id": ["JTI=1"], **(extra if bound else {})},
            },
        }
        return token

    async def _create(self, request: web.Request) -> web.StreamResponse:
        thing = await request.json()
        path = f"{request.path}/{thing['metadata']['name']}"
        if path in self.objects:
            return status(409, "AlreadyExists", f"{path} already exists")
        thing["metadata"]["resourceVersion"] = str(next(self._versions))
        self.objects[path] = thing
        return web.json_response(thing, status=201)

    async def _object(self, request: web.Request) -> web.StreamResponse:
        found = self.objects.get(request.path)
        if found is None:
            return status(404, "NotFound", f"{request.path} not found")
        if request.method == "PUT":
            thing = await request.json()
            if thing["metadata"].get("resourceVersion") != found["metadata"]["resourceVersion"]:
                return status(409, "Conflict", "the object has been modified; please apply your changes")
            thing["metadata"]["resourceVersion"] = str(next(self._versions))
            found = self.objects[request.path] = thing
        if request.method == "PATCH":
            assert request.content_type == "application/merge-patch+json"
            merge(found, await request.json(), strategic=False)
        return web.json_response(found)

    async def _review(self, request: web.Request) -> web.StreamResponse:
        self.reviews += 1
        body = await request.json()
        audiences = body["spec"].get("audiences", [])
        found = self.tokens.get(body["spec"]["token"])
        if found is None:
            said: dict[str, Any] = {"user": {}, "error": "[invalid bearer token, token lookup failed]"}
        elif found["audience"] not in audiences:
            words = f'token audiences ["{found["audience"]}"] is invalid for the target audiences {audiences}'
            said = {"user": {}, "error": f"[invalid bearer token, {words}]"}
        else:
            said = {"authenticated": True, "user": found["user"], "audiences": [found["audience"]]}
        return web.json_response({**body, "status": said}, status=201)

    async def _pods(self, request: web.Request) -> web.StreamResponse:
        field, _, node = request.query["fieldSelector"].partition("=")
        assert field == "spec.nodeName"
        found = [pod for pod in self.pods.values() if pod["spec"]["nodeName"] == node]
        return web.json_response({"kind": "PodList", "metadata": {"resourceVersion": "1"}, "items": found})

    async def _slices(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        label, _, name = request.query["labelSelector"].partition("=")
        assert label == "kubernetes.io/service-name"
        service = f"{request.match_info['namespace']}/{name}"
        found = self.slices if service == "default/kubernetes" else self.service_slices.get(service, [])
        return web.json_response(
            {"kind": "EndpointSliceList", "metadata": {"resourceVersion": "1"}, "items": found}
        )

    async def _services(self, request: web.Request) -> web.StreamResponse:
        del request
        return web.json_response(
            {"kind": "ServiceList", "metadata": {"resourceVersion": "1"}, "items": self.services}
        )

    async def _custom(self, request: web.Request) -> web.StreamResponse:
        if request.path not in self.custom:
            return status(404, "NotFound", "the server could not find the requested resource")
        return web.json_response({"metadata": {"resourceVersion": "1"}, "items": self.custom[request.path]})

    async def _evict(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        uid = next((uid for uid, pod in self.pods.items() if pod["metadata"]["name"] == name), "")
        if not uid:
            return status(404, "NotFound", f'pods "{name}" not found')
        wanted = (await request.json())["deleteOptions"]["preconditions"]["uid"]
        if wanted != uid:
            return status(409, "Conflict", "the UID in the precondition does not match the UID in record")
        if name in self.guarded:
            return status(
                429, "TooManyRequests", "Cannot evict pod as it would violate the pod's disruption budget."
            )
        del self.pods[uid]
        return web.json_response({"kind": "Status", "status": "Success"}, status=201)

    @asynccontextmanager
    async def serving(self, folder: Path, host: str = "127.0.0.1") -> AsyncIterator[Path]:
        """Serve; yields a kubeconfig file."""
        app = web.Application(middlewares=[self._gate])
        app.add_routes([
            web.get("/api/v1/nodes", self._list),
            web.get("/api/v1/nodes/{name}", self._one),
            web.get("/api/v1/services", self._services),
            web.patch("/api/v1/nodes/{name}", self._patch),
            web.patch("/api/v1/nodes/{name}/status", self._patch),
            web.get("/api/v1/pods", self._pods),
            web.get("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices", self._slices),
            web.post("/api/v1/namespaces/default/pods/{name}/eviction", self._evict),
            web.post("/api/v1/namespaces/isthmus-system/{kind:configmaps|secrets}", self._create),
            web.get("/api/v1/namespaces/{namespace}/{kind}/{name}", self._object),
            web.post("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases", self._create),
            web.get("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{name}", self._object),
            web.put("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{name}", self._object),
            web.get("/apis/cilium.io/v2/ciliumnodes", self._custom),
            web.patch("/api/v1/namespaces/isthmus-system/{kind}/{name}", self._object),
            web.post("/apis/authentication.k8s.io/v1/tokenreviews", self._review),
            web.post("/apis/events.k8s.io/v1/namespaces/default/events", self._event),
        ])  # fmt: skip
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, host, 0)
        await site.start()
        port = runner.addresses[0][1]
        file = folder / "kubeconfig"
        file.write_text(
            json.dumps({
                "apiVersion": "v1", "kind": "Config", "current-context": "t",
                "clusters": [{"name": "t", "cluster": {"server": f"http://{host}:{port}"}}],
                "users": [{"name": "t", "user": {"token": TOKEN}}],
                "contexts": [{"name": "t", "context": {"cluster": "t", "user": "t"}}],
            })
        )  # fmt: skip
        try:
            yield file
        finally:
            self.cut()
            await runner.cleanup()


def merge(target: dict[str, Any], patch: dict[str, Any], *, strategic: bool) -> None:
    """RFC 7386, or Kubernetes' strategic merge, which merges conditions by their type and appends podCIDRs."""
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict):
            merge(target.setdefault(key, {}), value, strategic=strategic)
        elif strategic and key == "conditions":
            known = {each["type"]: each for each in target.get(key, [])}
            for each in value:
                known.setdefault(each["type"], {}).update(each)
            target[key] = list(known.values())
        elif strategic and isinstance(value, list):
            target[key] = [*target.get(key, []), *(each for each in value if each not in target.get(key, []))]
        else:
            target[key] = value
