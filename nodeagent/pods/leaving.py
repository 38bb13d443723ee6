"""Leaving with the pods in mind: the range is not reused before the node itself said that none runs any more.

For a node whose agent is stopped, so that nobody else says it.
"""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from nats.aio.client import Client

from events import subjects
from events.bus.client import ControllerClient
from events.bus.retry import raise_if_cancelled
from events.errors import Refused, Unavailable
from events.ids import new_id
from events.jetstream.api import DEFAULT_PREFIX, prefix_of
from events.jetstream.read import log_head
from events.protocol.commands import INSTANCE, LeaveNode
from events.status import AgentStatus
from nodeagent import identity
from nodeagent.config import DEFAULT_DEVICE
from nodeagent.local_files import STATUS_FILE, LocalStatus, read_status
from nodeagent.membership.cache import Cache
from nodeagent.netlink.links import own_addresses
from nodeagent.pods import cni
from nodeagent.pods.addresses import Pods, find

SHOWN = 5
PATIENCE_S = 10.0
"""How long the log's end is asked for."""


def pods_here(state_dir: Path, status: LocalStatus, data_dir: Path) -> Pods:
    """The pods on this node, in a worker thread. Raises OSError."""
    view = Cache(state_dir).load(status.cluster, status.node, status.uid)
    cidrs = view.plan.cidrs if view.plan is not None else (status.range,) if status.range else ()
    own = view.own.cidr if view.own is not None else status.range
    return find(data_dir, cidrs, own, device=status.device, sequence=view.sequence)


def last_word(
    state_dir: Path, *, node: str = "", cluster: str = "", device: str = DEFAULT_DEVICE
) -> LocalStatus | None:
    """What the agent said last; where that is cut or gone, what else its folder knows of the member that it is.

    ``node``, ``cluster``, ``device``: what its settings say; with a sound uid that is enough where nothing else
    is. None when no agent was a member here. Raises Refused: ``not_permitted``, and ``identity_unreadable``
    where files of an agent are there and none says who it is.
    """
    with contextlib.suppress(Unavailable):
        return read_status(state_dir)
    known = identity.known_of(state_dir)
    if known is None:
        damaged = identity.damaged(state_dir, (STATUS_FILE,))
        if not damaged:
            return None
        uid = identity.kept_uid(state_dir)
        if not (uid and node and cluster):
            raise Refused(
                "identity_unreadable",
                f"an agent has run here, and {' and '.join(damaged)} in {state_dir} cannot be read: nothing "
                f"else there says which node this is",
                path=str(state_dir),
            )
        known = identity.Identity(uid=uid, node=node, cluster=cluster)
    if not known.node:
        return None
    view = Cache(state_dir).load(known.cluster, known.node, known.uid)
    return LocalStatus(
        node=known.node, uid=known.uid, cluster=known.cluster, pid=0, started_at=0, written_at=0,
        range=view.own.cidr if view.own is not None else "", device=device,
    )  # fmt: skip


def is_elsewhere(state_dir: Path, status: LocalStatus) -> bool:
    """Whether the log has the node at an address that is not this machine's: a copy? Raises OSError."""
    member = Cache(state_dir).load(status.cluster, status.node, status.uid).members.get(status.node)
    known = member.underlay if member is not None else status.underlay
    return bool(known) and known not in own_addresses()


def in_words(pods: Pods, node: str) -> str:
    """How many pods run here, and some of their addresses; empty when none does."""
    running = (*pods.homes, *pods.strays)
    if not running:
        return ""
    more = f" and {len(running) - SHOWN} more" if len(running) > SHOWN else ""
    old = f", {len(pods.strays)} of them of an earlier range" if pods.strays else ""
    some = f"{len(running)} pods still run" if len(running) > 1 else "1 pod still runs"
    return f"{some} on {node} with addresses of the container network ({', '.join(running[:SHOWN])}{more}){old}"


def refuse_running(pods: Pods, status: LocalStatus, command: str) -> None:
    """Raises Refused(pods_running) when any runs; ``command`` is the way to leave all the same."""
    said = in_words(pods, status.node)
    if said:
        raise Refused(
            "pods_running",
            f"{said}: they would be cut off, and {status.range or 'their range'} is not reused before they are "
            f"gone. End them first, or: {command}",
            node=status.node,
            pods=len(pods.homes) + len(pods.strays),
        )


async def leave(
    client: Client, status: LocalStatus, pods: Pods, *, reason: str, cni_dir: Path, actor: str, elsewhere: bool
) -> bool:
    """Take the CNI configuration away, leave, and say which ranges still have pods here.

    ``actor`` is the person or program that has asked for it, for the record. ``elsewhere``: this machine is not
    where the log has the node; if the node reports, it stays.

    False when it was no member any more: a leave before this one may have been broken off behind the
    controller's answer, so its pods are said again. Raises IsthmusError, OSError. Cancelled, the node may have
    left; repeating it then says so.
    """
    cni.remove(cni_dir)
    controller = ControllerClient(client, status.cluster, actor=actor)
    command = LeaveNode(node=status.node, uid=status.uid, reason=reason)
    controller.node = status.node  # with the node's own credentials …
    headers = {INSTANCE: new_id()} if elsewhere else {}
    was_member = True
    try:
        try:
            sequence = (await controller.send(command, headers=headers)).sequence
        except Refused as error:
            if error.code != "forbidden":
                raise
            controller.node = ""  # … or with an operator's, who asks on another subject
            sequence = (await controller.send(command, headers=headers)).sequence
    except Refused as error:
        if error.code != "node_unknown" or "live_uid" in error.details:
            raise
        was_member = False
        head = await log_head(
            client, status.cluster, prefix=prefix_of(client, DEFAULT_PREFIX), patience_s=PATIENCE_S
        )
        sequence = head.sequence
    occupied = {status.range} if pods.own and status.range else set()
    if pods.strays and status.range:
        occupied |= set(pods.ranges(int(status.range.partition("/")[2])))
    report = AgentStatus(
        node=status.node,
        uid=status.uid,
        applied=0,
        sent_at=datetime.now(UTC),
        state="stopping",
        pods=0,
        pods_sequence=sequence,
        stray_ranges=tuple(sorted(occupied)),
        stray_pods=pods.strays[:SHOWN],
    )
    await client.publish(subjects.status(status.cluster, status.node), msgspec.json.encode(report))
    await client.flush()
    raise_if_cancelled()
    return was_member
