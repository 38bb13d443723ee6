"""Keeps Nodes and members in step: follows Nodes, the log and the reports, and writes what differs.

Level-triggered: a change anywhere only marks a name; what is written follows from the Node and the member as
they are when its turn comes, so that lost, late and repeated notices do no harm. Only a leading controller
writes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any, cast

from controlplane.kubernetes import objects, pods
from controlplane.kubernetes.api import Change, KubernetesApi, WatchExpiredError
from controlplane.kubernetes.desired import Member, Wanted, left_to_flannel, same_machine, wanted
from controlplane.kubernetes.objects import Node
from controlplane.kubernetes.port import Members
from events.bus.retry import backoff_s, happened, jittered_s
from events.errors import IsthmusError, Refused, Unavailable
from events.ids import new_id

log = logging.getLogger("isthmus.kubernetes")

WRITERS = 8
"""Nodes written at a time: a whole cluster must not be a flood for the API server."""
RESYNC_S = 300.0
"""Everything is looked at anew this often (jittered), whatever was noticed."""
PAUSE_FIRST_S, PAUSE_LONGEST_S = 0.5, 30.0
REMOVE_S = 10.0
"""For how long the Node of a member on flannel has been deleted before it goes: kubelets register anew."""
LOOK_S = 0.5
"""How often the agents' reports are looked at for a change."""
BINDINGS = 500
"""Nodes whose binding is recorded at a time: one atomic batch."""
WARNINGS_LIMIT = 20_000
"""Nodes whose last warning is remembered, so that it is not repeated."""


class Bridge:
    """One bridge. :meth:`run` until cancelled."""

    def __init__(
        self,
        api: KubernetesApi,
        members: Members,
        *,
        instance: str,
        fence_deleted_s: float = 0.0,
        evict_stale_pods: bool = False,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._api = api
        self._members = members
        self._instance = instance
        self._fence_deleted_s = fence_deleted_s
        self._evict_stale_pods = evict_stale_pods
        self._deleted: dict[str, tuple[str, float]] = {}
        """Name of a Node that was deleted → the member's uid, and when it was noticed (the loop's clock)."""
        self._unbound: dict[str, tuple[str, str]] = {}
        """Name → (the member's uid, the Node's UID): to be recorded."""
        self._binding = asyncio.Event()
        self._now = now
        self.nodes: dict[str, Node] = {}
        """Name → the Node as last seen."""
        self._due: dict[str, None] = {}
        self._again: dict[str, tuple[float, int]] = {}
        """Name → (when it is to be tried again by the loop's clock, how often that failed)."""
        self._busy: set[str] = set()
        self._wake = asyncio.Event()
        self._warned: dict[tuple[str, str], str] = {}
        """(Name, kind of warning) → the warning as last told."""
        self.evicted = 0
        self.written = 0
        self.failed = 0
        self.synced = asyncio.Event()
        """Set once all Nodes were listed."""
        self.problem = ""
        """What keeps the bridge from its work, in words; empty while nothing does."""

    async def run(self) -> None:
        """List, watch, write, for ever. What a cancelled bridge wrote stands, and another one goes on."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_nodes(), name="nodes")
            tasks.create_task(self._follow_members(), name="members")
            tasks.create_task(self._resync(), name="resync")
            tasks.create_task(self._bind(), name="bindings")
            tasks.create_task(self._follow_deleted(), name="deleted")
            for number in range(WRITERS):
                tasks.create_task(self._write(), name=f"writer {number}")

    # --- what is noticed -------------------------------------------------------------------------------

    def mark(self, name: str) -> None:
        """Something about this name may have changed."""
        if name in self.nodes:
            self._due[name] = None
            self._wake.set()

    def mark_all(self) -> None:
        """Anything may have changed."""
        self._due.update(dict.fromkeys(self.nodes))
        self._wake.set()

    async def _follow_nodes(self) -> None:
        version, failures = "", 0
        while True:
            try:
                if not version:
                    listed, version = await self._api.list_nodes()
                    self.nodes = {node.name: node for node in listed}
                    self.problem = self._compare()
                    self.synced.set()
                    self.mark_all()
                changes = self._api.watch_nodes(version)
                async with aclosing(cast("AsyncGenerator[Change, None]", changes)) as following:
                    async for change in following:
                        version = change.version or version
                        failures = 0
                        self._notice(change)
            except WatchExpiredError:
                version = ""
            except (Unavailable, Refused) as error:
                self._troubled(error)
                version = version if isinstance(error, Unavailable) else ""
                await asyncio.sleep(_pause_s(failures))
                failures += 1

    def _notice(self, change: Change) -> None:
        node = change.node
        if node is None:
            return
        if change.deleted:
            self._gone(node.name, node.metadata.uid)
            self.nodes.pop(node.name, None)
            for kind in ("node", "pods", "adoption"):
                self._warned.pop((node.name, kind), None)
            return
        self._deleted.pop(node.name, None)
        known = self.nodes.get(node.name)
        self.nodes[node.name] = node
        # A heartbeat changes nothing that is looked at: five thousand of them must cost next to nothing.
        if known is None or known.looked_at != node.looked_at:
            self.mark(node.name)

    def _gone(self, name: str, node_uid: str) -> None:
        """The Node with this UID is there no more. Only the member that is bound to it asks to leave."""
        member = self._members.member(name)
        if member is not None and member.node_uid == node_uid and name not in self._deleted:
            self._deleted[name] = (member.uid, asyncio.get_running_loop().time())

    def _compare(self) -> str:
        """After a list: who was deleted while nobody watched; or in words, why nobody counts as deleted.

        A list without a single bound Node is that of another cluster, or of one that was made anew: from it
        nothing may follow for members.
        """
        self._deleted = {name: found for name, found in self._deleted.items() if name not in self.nodes}
        bound = self._members.bound()
        missing = {name: uid for name, uid in bound.items() if name not in self.nodes}
        if len(bound) > 1 and not any(
            name in self.nodes and self.nodes[name].metadata.uid == uid for name, uid in bound.items()
        ):
            return (
                f"none of the {len(bound):,} Nodes that the log knows is among the {len(self.nodes):,} of this "
                f"API server: none of them counts as deleted. Is --kubeconfig that of this cluster?"
            )
        for name, uid in missing.items():
            self._gone(name, uid)
        return ""

    async def _bind(self) -> None:
        """Have it recorded which member is which Node, many at a time."""
        failures = 0
        while True:
            await self._binding.wait()
            if not self._members.leading:
                await asyncio.sleep(LOOK_S)
                continue
            self._binding.clear()
            some = dict(list(self._unbound.items())[:BINDINGS])
            try:
                await self._members.bind([(name, *uids) for name, uids in some.items()])
            except IsthmusError as error:
                log.warning("%d Nodes are not recorded yet: %s [%s]", len(some), error.message, error.code)
                await asyncio.sleep(_pause_s(failures))
                failures += 1
            else:
                failures = 0
                for name, uids in some.items():
                    if self._unbound.get(name) == uids:
                        del self._unbound[name]
            if self._unbound:
                self._binding.set()

    async def _follow_deleted(self) -> None:
        """Act upon members of which Kubernetes says that they are gone.

        One that flannel has served so far goes as it goes for flannel. Of others, those that nobody hears
        either are fenced where that was asked for: otherwise the range of a dead machine, and all that are
        released after it, wait for a person. A node that reports is never touched, whatever became of its
        Node: a cloud deletes the Nodes of a site that is cut off.
        """
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(LOOK_S)
            if not self._members.leading:
                continue
            for name, (uid, since) in list(self._deleted.items()):
                member, ago_s = self._members.member(name), loop.time() - since
                if member is None or member.uid != uid:
                    self._deleted.pop(name, None)
                    continue
                try:
                    if member.elsewhere and member.agent == "never heard" and ago_s >= REMOVE_S:
                        await self._members.take_out(
                            name, uid, f"its Node was deleted {ago_s:.0f} s ago, on flannel"
                        )
                    elif member.agent == "silent" and 0 < self._fence_deleted_s <= ago_s:
                        await self._members.fence(
                            name, uid, f"its Node was deleted {ago_s:.0f} s ago, and it is silent"
                        )
                    else:
                        continue
                except IsthmusError as error:
                    log.warning("node %s is still a member: %s [%s]", name, error.message, error.code)
                else:
                    self._deleted.pop(name, None)

    async def _follow_members(self) -> None:
        async for name in self._members.moved():
            if name:
                self.mark(name)
            else:
                self.mark_all()

    async def _resync(self) -> None:
        while True:
            await asyncio.sleep(jittered_s(RESYNC_S, 0.2))
            self.mark_all()

    # --- what is written -------------------------------------------------------------------------------

    async def _write(self) -> None:
        while True:
            name = await self._next()
            self._busy.add(name)
            try:
                settled = await self._settle(name)
            except (Unavailable, Refused) as error:
                self.failed += 1
                self._troubled(error)
                settled = False
            else:
                if settled:
                    self._again.pop(name, None)
            finally:
                self._busy.discard(name)
                self._wake.set()
            if not settled:
                _, failures = self._again.get(name, (0.0, 0))
                due = asyncio.get_running_loop().time() + _pause_s(failures)
                self._again[name] = (due, failures + 1)

    async def _next(self) -> str:
        """The next name whose turn it is. One name is never with two writers."""
        loop = asyncio.get_running_loop()
        while True:
            if self._members.leading:
                now = loop.time()
                for name in self._due:
                    if name not in self._busy and self._again.get(name, (0.0, 0))[0] <= now:
                        del self._due[name]
                        return name
                for name, (due, _) in self._again.items():
                    if due <= now and name not in self._busy and name not in self._due and name in self.nodes:
                        return name
            self._wake.clear()
            await happened(self._wake, within_s=LOOK_S)

    async def _settle(self, name: str) -> bool:
        """Write what one Node lacks; False when it changed meanwhile, or this bridge may not write any more.

        Raises Unavailable, Refused.
        """
        node = self.nodes.get(name)
        if node is None or node.metadata.deletion_timestamp:
            return True
        member = self._members.member(name)
        if self._members.adopting == "flannel" and left_to_flannel(node, member):
            await self._adopt(node, member)
            member = self._members.member(name)
        if member is not None and member.node_uid != node.metadata.uid and same_machine(node, member):
            self._unbound[name] = (member.uid, node.metadata.uid)
            self._binding.set()
        owner = self._members.owner(node.spec.pod_cidr) if node.spec.pod_cidr else ""
        want = wanted(
            node, member, refusal=self._members.refusal(name), taken_by="" if owner == name else owner,
            adopting=bool(self._members.adopting),
        )  # fmt: skip
        if want:
            if not await self._apply(node, member, want):
                return name not in self.nodes
            self.written += 1
            if said := _said(want, member):
                log.info("node %s: %s", name, said)
        await self._settle_pods(node, member)
        return True

    async def _adopt(self, node: Node, member: Member | None) -> None:
        """Follow what flannel has done: a node added, made anew with another range, or with another device.

        Raises Unavailable, Refused: it is tried again, and its Node tells why it is not in the log.
        """
        whole = await self._api.read(f"/api/v1/nodes/{node.name}")
        if whole is None or whole.get("metadata", {}).get("uid") != node.metadata.uid:
            return
        if member is not None and member.agent == "never heard" and member.cidr != node.spec.pod_cidr:
            await self._members.take_out(node.name, member.uid, f"flannel gave it {node.spec.pod_cidr} anew")
        try:
            await self._members.adopt(whole)
        except Refused as error:
            await self._warn(node, error.message, "IsthmusNotAdopted", kind="adoption", action="AdoptNode")
            raise
        await self._warn(node, "", "IsthmusNotAdopted", kind="adoption", action="AdoptNode")
        log.info("node %s: followed flannel, podCIDR %s", node.name, node.spec.pod_cidr)

    async def _settle_pods(self, node: Node, member: Member | None) -> None:
        """Tell of pods that kept an address of an earlier range, and evict them if that was asked for.

        A disruption budget that forbids it (429) is tried again like any other answer of that kind. Raises
        Unavailable, Refused.
        """
        left_over = member is not None and bool(member.stray_ranges)
        told = (
            pods.stale_pods_text(node.name, member, evicting=self._evict_stale_pods)
            if member and left_over
            else ""
        )
        await self._warn(node, told, "IsthmusStalePods", kind="pods", action="EvictPods")
        if member is None or not left_over or not self._evict_stale_pods or not same_machine(node, member):
            return
        held_up: Unavailable | None = None
        for pod in pods.stale(await self._api.list_pods(node.name), member):
            if not self._members.leading:
                return
            try:
                await self._api.evict(pod)
            except Unavailable as error:  # one budget must not hold the others up
                held_up = error
                continue
            self.evicted += 1
            meta, address = pod.metadata, pod.status.pod_ip
            log.info("node %s: evicted %s/%s (%s)", node.name, meta.namespace, meta.name, address)
        if held_up is not None:
            raise held_up

    async def _apply(self, node: Node, member: Member | None, want: Wanted) -> bool:
        """The podCIDR before the condition that lets pods in; False when the Node has changed meanwhile."""
        patches: list[tuple[dict[str, Any], bool]] = []
        own: dict[str, Any] = objects.pod_cidr_patch(node, want.pod_cidr) if want.pod_cidr else {}
        if want.annotate and member is not None:
            # In one patch: of five thousand Nodes each request counts.
            own |= objects.annotations_patch(node, member.cidr, member.epoch, member.uid, member.flannel)
        if own:
            patches.append((own, False))
        if want.condition is not None:
            said = want.condition
            patches.append(
                (objects.condition_patch(node, said.status, said.reason, said.message, self._moment()), True)
            )
        if want.pod_cidr and not await self._members.still(node.name, want.pod_cidr):
            return False
        latest = node
        for patch, status in patches:
            answer = await self._patched(latest, patch, status=status)
            if answer is None:
                return False
            latest = answer
        if want.untaint and await self._patched(latest, objects.untaint_patch(latest)) is None:
            return False
        await self._warn(node, want.warning, want.about)
        return True

    async def _patched(self, node: Node, patch: Mapping[str, Any], *, status: bool = False) -> Node | None:
        """Patch exactly what was looked at, and go on from the answer: the watch may bring it much later.

        None when the Node has another version by now, or the right to write has ended: a bridge that stood
        still in between (a paused process, whose Lease another took) meets what its successor wrote.
        """
        if not self._members.leading:
            return None
        exact = {**patch, "metadata": {**patch["metadata"], "resourceVersion": node.metadata.resource_version}}
        latest = await self._api.patch_node(node.name, exact, status=status)
        known = self.nodes.get(node.name)
        if latest is not None and known is not None and known.metadata.uid == latest.metadata.uid:
            self.nodes[node.name] = latest
        return latest

    async def _warn(
        self, node: Node, warning: str, about: str, *, kind: str = "node", action: str = "WritePodCIDR"
    ) -> None:
        """An Event, once for each warning of its kind until it changes."""
        if not warning:
            self._warned.pop((node.name, kind), None)
            return
        if self._warned.get((node.name, kind)) == warning:
            return
        if len(self._warned) >= WARNINGS_LIMIT:
            self._warned.clear()
        await self._api.create_event(
            objects.event(
                node, name=f"{node.name}.{new_id()[-12:]}", reason=about,
                action=action, note=warning, instance=self._instance, now=self._moment(micro=True),
            )
        )  # fmt: skip
        self._warned[node.name, kind] = warning

    def _moment(self, *, micro: bool = False) -> str:
        """RFC 3339, as metav1.Time (seconds) or metav1.MicroTime wants it."""
        return self._now().strftime("%Y-%m-%dT%H:%M:%S.%fZ" if micro else "%Y-%m-%dT%H:%M:%SZ")

    def _troubled(self, error: IsthmusError) -> None:
        """One line a change, not one a try."""
        if self.problem != error.message:
            log.warning("%s [%s]", error.message, error.code)
        self.problem = error.message


def _pause_s(failures: int) -> float:
    return backoff_s(failures, first_s=PAUSE_FIRST_S, longest_s=PAUSE_LONGEST_S)


def _said(want: Wanted, member: Member | None) -> str:
    parts = [
        f"podCIDR {want.pod_cidr}" if want.pod_cidr else "",
        f"NetworkUnavailable={want.condition.status} ({want.condition.reason})" if want.condition else "",
        "annotations" if want.annotate and member is not None else "",
        "start-up taint removed" if want.untaint else "",
    ]
    return ", ".join(part for part in parts if part)
