"""A sample log: a long, valid history made from a seed, with no cluster behind it.

For trying the tool, for training, and for the benchmarks: nodes join, move, fall silent, leave and
reinstall; ranges go round cyclically through draining and quarantine; balancers come and go. Allocation
here is a second, independent reading of the rules (it shares no code with the control plane), so
verifying a sample also checks the control plane against it.

Time in a sample is made up as well; nothing here reads a clock.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address

from events import types
from events.chain import genesis
from events.codec import Cause, StoredMessage, seal

EPOCH = datetime(2026, 3, 2, 8, 0, tzinfo=UTC)
"""When every sample begins."""

_POOL = int(IPv4Address("10.64.0.0"))
_CAPACITY_BITS = 20
_RANGE_SIZE = 64
_SERVICE_SIZE = 1024
_QUARANTINE = timedelta(seconds=60)


@dataclass(slots=True)
class _Node:
    """A live node of the sample."""

    name: str
    uid: str
    underlay: str
    index: int
    epoch: int
    reachable: bool = True


class Sample:
    """One history. ``target`` is about how many nodes live at a time; ``seed`` decides everything else."""

    def __init__(self, cluster: str, *, seed: int, target: int = 3000) -> None:
        self._cluster = cluster
        self._random = random.Random(seed)  # noqa: S311  a reproducible history, no secret
        self._target = target
        self._now = EPOCH
        self._head = genesis(cluster)
        self._nodes: list[_Node] = []
        self._capacity = (2**_CAPACITY_BITS - _SERVICE_SIZE) // _RANGE_SIZE
        self._taken = bytearray(self._capacity)
        self._cursor = 0
        self._made = 0
        self._draining: deque[tuple[int, int, int, datetime]] = deque()
        self._resting: deque[tuple[int, int, datetime]] = deque()
        self._balancers: list[types.ClbReserved] = []

    def _cidr(self, index: int) -> str:
        return f"{IPv4Address(_POOL + index * _RANGE_SIZE)}/26"

    def batches(self, count: int, *, batch: int = 1000) -> Iterator[list[StoredMessage]]:
        """At least ``count`` events, the last command whole, as stored messages in lists of about ``batch``."""
        waiting: list[StoredMessage] = []
        while self._head.sequence < count:
            events, actor = self._step()
            before = self._head.sequence
            command = f"{self._random.getrandbits(128):032x}"
            cause = Cause(
                command_id=f"{command[:8]}-{command[8:12]}-7{command[13:16]}-8{command[17:20]}-{command[20:]}",
                actor=actor,
                time=self._now,
                source="controller/sample",
                traceparent=f"00-{self._random.getrandbits(128):032x}-{self._random.getrandbits(64):016x}-01",
            )
            messages, self._head = seal(self._cluster, self._head, [(cause, events)])
            stored = int(self._now.timestamp()) * 10**9 + self._now.microsecond * 1000 + 1_500_000
            waiting.extend(
                StoredMessage(before + i, m.subject, m.headers, m.body, stored)
                for i, m in enumerate(messages, 1)
            )
            if len(waiting) >= batch:
                yield waiting
                waiting = []
        if waiting:
            yield waiting

    def _step(self) -> tuple[list[types.Event], str]:
        if not self._made:
            self._made = 1
            return [self._defined()], "ops@sample"
        self._now += timedelta(milliseconds=self._random.randint(200, 4000))
        if self._resting and self._resting[0][2] <= self._now:
            index, epoch, _ = self._resting.popleft()
            self._taken[index] = 0
            return [types.RangeFreed(cidr=self._cidr(index), index=index, epoch=epoch)], "controller"
        if self._draining and self._draining[0][3] <= self._now:
            index, epoch, drained, _ = self._draining.popleft()
            until = self._now + _QUARANTINE
            self._resting.append((index, epoch, until))
            return [
                types.RangeQuarantined(
                    cidr=self._cidr(index), index=index, epoch=epoch, watermark=drained, until=until
                )
            ], "controller"
        return self._something()

    def _defined(self) -> types.Event:
        return types.ClusterDefined(
            cluster=self._cluster,
            container_cidr=f"{IPv4Address(_POOL)}/{32 - _CAPACITY_BITS}",
            max_pods_per_node=_RANGE_SIZE,
            max_services=_SERVICE_SIZE,
            range_size=_RANGE_SIZE,
            service_size=_SERVICE_SIZE,
            service_cidr=f"{IPv4Address(_POOL + 2**_CAPACITY_BITS - _SERVICE_SIZE)}/22",
            capacity=self._capacity,
        )

    def _something(self) -> tuple[list[types.Event], str]:
        nodes = self._nodes
        # Fuller means fewer joins: the number of nodes wanders about two thirds of the target.
        if self._random.random() > 0.75 * len(nodes) / self._target:
            return self._join()
        chance = self._random.random()
        at = self._random.randrange(len(nodes))
        node = nodes[at]
        who = {"node": node.name, "uid": node.uid}
        if not node.reachable:
            node.reachable = True
            return [types.NodeRecovered(**who)], "controller"
        if chance < 0.04:
            node.reachable = False
            return [types.NodeUnreachable(**who, last_seen=self._now - timedelta(seconds=30))], "controller"
        if chance < 0.10:
            node.underlay = self._address()
            return [
                types.NodeUnderlayChanged(**who, underlay=node.underlay, announced=node.underlay)
            ], f"node/{node.name}"
        if chance < 0.12:
            return self._balancer()
        nodes[at] = nodes[-1]
        nodes.pop()
        if chance < 0.16:
            return self._rejoin(node)
        actor = "ops@sample" if chance < 0.4 else f"node/{node.name}"
        return [types.NodeLeft(**who, reason="scaled in"), self._drain(node, 1)], actor

    def _address(self) -> str:
        """Distinct for the first 2²³ calls: a counter in disguise."""
        self._made += 1
        return str(IPv4Address((172 << 24) + (16 << 16) + self._made % 2**20))

    def _drain(self, node: _Node, offset: int) -> types.Event:
        drained = self._head.sequence + 1 + offset
        ready = self._now + timedelta(seconds=self._random.randint(1, 20))
        if self._draining:
            ready = max(ready, self._draining[-1][3])
        self._draining.append((node.index, node.epoch, drained, ready))
        return types.RangeDraining(
            cidr=self._cidr(node.index), index=node.index, node=node.name, uid=node.uid, epoch=node.epoch
        )

    def _join(self) -> tuple[list[types.Event], str]:
        name = f"{self._random.choice(('gz', 'sh', 'idc'))}-{self._made:06d}"
        return self._member(name, []), f"node/{name}"

    def _rejoin(self, node: _Node) -> tuple[list[types.Event], str]:
        uid = self._uid()
        fenced = types.NodeFenced(node=node.name, uid=node.uid, cause="rejoin", by_uid=uid)
        return self._member(node.name, [fenced, self._drain(node, 1)], uid), f"node/{node.name}"

    def _uid(self) -> str:
        value = f"{self._random.getrandbits(128):032x}"
        return f"{value[:8]}-{value[8:12]}-{value[12:16]}-{value[16:20]}-{value[20:]}"

    def _member(self, name: str, before: list[types.Event], uid: str = "") -> list[types.Event]:
        index = self._taken.find(0, self._cursor)
        if index < 0:
            index = self._taken.find(0)
        self._taken[index] = 1
        self._cursor = (index + 1) % self._capacity
        uid = uid or self._uid()
        address = self._address()
        epoch = self._head.sequence + len(before) + 2
        node = _Node(name, uid, address, index, epoch)
        self._nodes.append(node)
        mac = self._random.getrandbits(40)
        joined = types.NodeJoined(
            node=name,
            uid=uid,
            kind="external" if name.startswith("idc") else "cloud",
            underlay=address,
            announced=address,
            vtep_mac="02:" + ":".join(f"{mac >> shift & 255:02x}" for shift in (32, 24, 16, 8, 0)),
            site=name.partition("-")[0],
        )
        allocated = types.RangeAllocated(
            cidr=self._cidr(index), index=index, node=name, uid=uid, cursor_after=self._cursor
        )
        return [*before, joined, allocated]

    def _balancer(self) -> tuple[list[types.Event], str]:
        if len(self._balancers) > 20:
            gone = self._balancers.pop(0)
            return [
                types.ClbReleased(name=gone.name, subnet=gone.subnet, addresses=gone.addresses)
            ], "ops@sample"
        self._made += 1
        third, fourth = self._made // 32 % 256, self._made % 32 * 8
        reserved = types.ClbReserved(
            name=f"clb-{self._made}",
            subnet=f"192.168.{third}.{fourth}/29",
            gateway=f"192.168.{third}.{fourth + 1}",
            addresses=(
                types.ClbAddress(purpose="apiserver", address=f"192.168.{third}.{fourth + 2}"),
                types.ClbAddress(purpose="public-services", address=f"192.168.{third}.{fourth + 3}"),
            ),
        )
        self._balancers.append(reserved)
        return [reserved], "ops@sample"
