"""A history with every kind of event in it, and its read model."""

from __future__ import annotations

import asyncio
import random
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from hashlib import blake2b
from pathlib import Path
from typing import Any

from controlplane.cluster.decision import AdvanceDrains, AssignHolders, MarkLiveness, MarkPaths
from controlplane.cluster.mesh.verdict import Finding
from controlplane.controller.hooks import Observer
from controlplane.readmodel.projector import Projector
from events.errors import IsthmusError
from events.protocol.commands import (
    AddBackend,
    AddEntry,
    AppendCidr,
    BeginAdoption,
    BindNodes,
    ChangeKey,
    ChangeUnderlay,
    DeclareNetwork,
    EndAdoption,
    FenceNode,
    LeaveNode,
    MarkGateway,
    Override,
    ReleaseClb,
    RemoveBackend,
    RemoveEntry,
    RemoveNode,
    ReportHealth,
    ReserveClb,
    SetEncryption,
    SharedUse,
    UseToken,
    WithdrawNetwork,
)
from events.types import (
    Network,
)
from tests.service.rig import Rig, join


async def lived_in(it: Rig, steps: int, seed: int) -> None:
    """A history with every kind of event in it, many of them refused."""
    pick = random.Random(seed)
    await it.send(DeclareNetwork(network=Network(cidr="10.9.0.0/16", kind="idc")))
    for step in range(steps):
        number = pick.randrange(60)
        state = it.replica.state
        it.clock.forward(pick.choice((0.0, 0.5, 3.0)))
        holder = next(iter(state.holders.values()), None)
        at: dict[str, Any] = {
            "reservation": "gw",
            "purpose": "apiserver",
            "address": f"10.21.0.{number % 3}",
        }
        heard = {uid: it.clock() - timedelta(seconds=pick.choice((0, 9))) for uid in state.by_uid}
        seen = {f"uid-{n}": it.clock() - timedelta(seconds=pick.choice((0, 100))) for n in range(60)}
        if step % 10 == 9:
            nodes = tuple((name, node.uid, f"node-{step % 3}") for name, node in state.nodes.items())
            await it.send(BindNodes(nodes=nodes))
            known = [name for name in (f"n{step % 60}", *state.nodes) if name in state.nodes]
            lost = tuple(Finding(scope="node", a=name, since=1.0) for name in known[: step // 10 % 4])
            over = frozenset(list(state.lost_paths)[: step // 10 % 2])
            await it.send(MarkPaths(found=lost, over=over, at_s=step + 2.0))
        if step % 40 == 19:
            await it.send(BeginAdoption(source="flannel"))
        if step % 40 == 39:
            await it.send(EndAdoption())
        if step % 20 == 9 and any(one.provider == "gateway" for one in state.clb.values()):
            await it.send(AddEntry(entry="api", sources=(f"203.0.113.{step % 40}/32",)))
        with suppress(IsthmusError):
            if step % 10 == 4:
                await it.send(_use_of_a_token(it, step))
                for name, member in [*state.nodes.items()][:1]:
                    await it.send(_key(name, member.uid, step))
            if step == steps - 12:  # for a short time, in which nobody without a key joins
                for name, member in [*state.nodes.items()]:
                    await it.send(_key(name, member.uid, step))
                await it.send(SetEncryption(scope="sites"))
            if step == steps - 8:
                await it.send(SetEncryption(scope="off"))
        if step % 20 == 14 and state.entries:
            await it.send(RemoveEntry(entry="api"))
        command: Any = pick.choice(
            (
                join(number),
                join(number, nat="on" if number % 5 == 0 else "auto"),
                join(number, kind="external", site="idc"),
                join(number, uid=f"twin-{step}"),
                ChangeUnderlay(node=f"n{number}", uid=f"uid-{number}", underlay=f"192.168.9.{number + 1}"),
                LeaveNode(node=f"n{number}", uid=f"uid-{number}"),
                RemoveNode(node=f"n{number}", reason="test"),
                FenceNode(node=f"n{number}", reason="test"),
                ReserveClb(reservation=f"lb{number % 3}", subnet=f"10.20.{number % 2}.0/29"),
                ReserveClb(reservation="gw", subnet="10.20.2.0/28", provider="gateway"),
                ReserveClb(reservation="gw", subnet="10.20.2.0/28", provider="gateway"),
                ReleaseClb(reservation="gw") if not step % 3 else RemoveBackend(**at, port=443),
                MarkGateway(node=f"n{number}", on=number % 4 > 0),
                MarkGateway(node=f"n{number}"),
                AddBackend(**at, port=443),
                AssignHolders(
                    last_seen=heard,
                    watching_since=it.clock() - timedelta(hours=1),
                    able=frozenset(heard),
                ),
                ReportHealth(
                    **at,
                    port=443,
                    backend_port=443,
                    protocol="tcp",
                    healthy=bool(step % 2),
                    node=holder.node if holder else "n1",
                    uid=holder.uid if holder else "",
                    epoch=holder.epoch if holder else 0,
                ),
                ReserveClb(reservation="tiny", subnet="10.30.0.0/31"),
                ReleaseClb(reservation=f"lb{number % 3}"),
                DeclareNetwork(network=Network(cidr=f"10.{number}.0.0/16", kind="vpc")),
                DeclareNetwork(network=Network(cidr="172.16.0.0/20", kind="vpc")),
                DeclareNetwork(
                    network=Network(cidr="172.16.64.0/20", kind="vpc"),
                    overrides=(Override(code="cidr_conflict_with_vpc", reason="moving"),),
                ),
                WithdrawNetwork(cidr=f"10.{number}.0.0/16"),
                AppendCidr(cidr=f"172.{18 + step % 3}.0.0/24"),
                MarkLiveness(last_seen=seen, watching_since=it.clock() - timedelta(hours=1)),
                AdvanceDrains(applied=dict.fromkeys(state.by_uid, state.sequence)),
            )
        )
        try:
            await it.send(command)
        except IsthmusError:
            continue


def _key(node: str, uid: str, number: int) -> ChangeKey:
    digest = blake2b(f"{node} {number}".encode(), digest_size=32).digest()
    return ChangeKey(node=node, uid=uid, key=b64encode(digest).decode(), port=51820)


def _use_of_a_token(it: Rig, number: int) -> UseToken:
    until = it.clock() + timedelta(days=1)
    return UseToken(
        token="U" + "A" * 55,
        node=f"guest-{number}",
        public_key=f"U{number:055d}",
        expires=until,
        shared=SharedUse(uses=1000, until=until),
    )


@asynccontextmanager
async def projecting(it: Rig, directory: Path, **options: Any) -> AsyncIterator[Projector]:
    projector = Projector(directory, it.log, it.replica.changes, observer=Observer(), **options)
    task = asyncio.create_task(projector.run())
    try:
        yield projector
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await projector.close()
