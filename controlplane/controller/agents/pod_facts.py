"""Takes what nodes say of their pods, checks it, keeps it in a stream of its own, and answers from that.

A node speaks of addresses of its own ranges only: of the one that it has, or of an earlier one that nobody else
has been given yet. What is kept is bounded by age, by address and in all; nothing of it is in the log, and
nothing is decided by it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from ipaddress import AddressValueError, IPv4Address
from typing import Any, NamedTuple

import msgspec
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.errors import NoRespondersError

from controlplane.cluster.addressing.addresses import address_value, network
from controlplane.cluster.state import ClusterState, Range
from events import subjects
from events.errors import BadRequest, IsthmusError, Overloaded, Refused, Unavailable
from events.jetstream.api import STREAM_NOT_FOUND, ApiError, call, error_in
from events.jetstream.direct import DirectReader, recorded_ns
from events.jetstream.stream import ensure_stream, pods_stream_settings
from events.printable import printable
from events.protocol.commands import CommandReply
from events.protocol.pods import (
    CONTAINER,
    FACTS_A_REQUEST,
    INTERFACE,
    KeptFact,
    ListPods,
    NodeFact,
    PodFact,
    PodPage,
    PodsView,
    ReportPods,
    ShowPods,
)

log = logging.getLogger("isthmus.controller.pods")

BODY_LIMIT_BYTES = 32 * 1024
WAITING_MAX = 1024
"""Reports that may wait; who comes then is told to ask again."""
WORKERS = 4
STORE_S = 3.0
PAGE = 500
"""Facts in one answer: at most half a kilobyte each, under the bus's largest message."""
_decode_report = msgspec.json.Decoder(ReportPods).decode
_decode_question = msgspec.json.Decoder(ShowPods).decode
_decode_list = msgspec.json.Decoder(ListPods).decode
_decode_fact = msgspec.json.Decoder(NodeFact).decode

Answer = Callable[[CommandReply | IsthmusError], None]


class _Waiting(NamedTuple):
    report: ReportPods
    answer: Answer


def problem(state: ClusterState, node: str, uid: str, fact: PodFact) -> str:
    """Why a fact is not taken from this node; empty for a sound one. O(1)."""
    if not CONTAINER.fullmatch(fact.container) or not INTERFACE.fullmatch(fact.interface):
        return "container or interface is no name"
    if fact.pod.problem():
        return fact.pod.problem()
    if fact.since.tzinfo is None or (fact.until is not None and fact.until.tzinfo is None):
        return "a time has no zone"
    if fact.until is not None and fact.until < fact.since:
        return "it ends before it begins"
    held = range_of(state, fact.address)
    if held is None or (held.node, held.uid, held.epoch) != (node, uid, fact.epoch):
        return f"{printable(fact.address, 40)} is of no range that this node had at epoch {fact.epoch}"
    return ""


def range_of(state: ClusterState, address: str) -> Range | None:
    """The range that an address is of, if it is not free; None for anything else."""
    value, definition = address_value(address), state.definition
    if value is None or definition is None or str(IPv4Address(address)) != address:
        return None
    for own in state.cidrs:
        if network(own.cidr).has(value):
            position = (value - own.first) // definition.range_size
            return state.ranges.get(own.first_index + position) if position < own.capacity else None
    return None


class PodFacts:
    """:meth:`offer` takes reports, :meth:`run` stores them, :meth:`answer` reads them."""

    def __init__(
        self,
        client: Client,
        cluster: str,
        *,
        state: Callable[[], ClusterState],
        spend: Callable[[str, int], None],
        replicas: int | None,
    ) -> None:
        """``spend`` counts a node's facts against its budget, and raises Overloaded."""
        self._client, self._cluster, self._state, self._spend = client, cluster, state, spend
        self._replicas = replicas
        self._stream = subjects.pods_stream(cluster)
        self._waiting: asyncio.Queue[_Waiting] = asyncio.Queue(WAITING_MAX)
        self._direct = DirectReader(client, self._stream)

    def wants(self, subject: str) -> bool:
        """Whether a request on this subject is a report of pods."""
        return subject.endswith(f".{ReportPods.name}")

    def offer(self, subject: str, body: bytes, answer: Answer) -> None:
        """Take a report off the bus; it is answered later.

        Raises BadRequest (bad_request, payload_too_large), Refused(forbidden), Overloaded.
        """
        if len(body) > BODY_LIMIT_BYTES:
            text = f"the report has {len(body):,} bytes; at most {BODY_LIMIT_BYTES:,} are accepted"
            raise BadRequest("payload_too_large", text, size=len(body), limit=BODY_LIMIT_BYTES)
        try:
            report = _decode_report(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise BadRequest("bad_request", f"{ReportPods.name}: {error}", command=ReportPods.name) from error
        if subject != subjects.node_command(self._cluster, report.node, ReportPods.name):
            named = printable(report.node, 253)
            raise Refused(
                "forbidden", f"a report on {subject[:128]!r} names node {named!r}: a node tells of itself"
            )
        member = self._state().nodes.get(report.node)
        if member is None or member.uid != report.uid:
            raise Refused("forbidden", f"node {report.node} with this uid is no member", node=report.node)
        if len(report.facts) > FACTS_A_REQUEST:
            text = f"{len(report.facts)} facts in one report; at most {FACTS_A_REQUEST} are accepted"
            raise BadRequest("payload_too_large", text, size=len(report.facts), limit=FACTS_A_REQUEST)
        self._spend(report.node, len(report.facts))
        try:
            self._waiting.put_nowait(_Waiting(report, answer))
        except asyncio.QueueFull:
            raise Overloaded(
                "overloaded", "too many reports of pods wait: ask again", retry_after_s=1.0
            ) from None

    async def run(self) -> None:
        """Until cancelled; reports that wait then are not answered, and their nodes repeat them."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(WORKERS):
                tasks.create_task(self._work())

    async def _work(self) -> None:
        while True:
            report, answer = await self._waiting.get()
            try:
                answer(await self._take(report))
            except IsthmusError as error:
                answer(error)
            except Exception as error:
                log.exception("a report of pods failed")
                answer(IsthmusError("internal", f"the report could not be kept: {type(error).__name__}"))

    async def _take(self, report: ReportPods) -> CommandReply:
        state = self._state()
        refused = {
            str(index): why
            for index, fact in enumerate(report.facts)
            if (why := problem(state, report.node, report.uid, fact))
        }
        if refused:
            log.warning("facts of pods by %s are refused: %s", report.node, next(iter(refused.values())))
        sound = [fact for index, fact in enumerate(report.facts) if str(index) not in refused]
        for fact in sound:  # in their order: of one attachment the last one counts
            await self._store(NodeFact(node=report.node, uid=report.uid, fact=fact))
        return CommandReply(sequence=state.sequence, result={"stored": len(sound), "refused": refused})

    async def _store(self, fact: NodeFact) -> None:
        """Raises Unavailable."""
        body = msgspec.json.encode(fact)
        subject = subjects.pods(self._cluster, fact.node, fact.fact.address)
        headers = {"Nats-Msg-Id": hashlib.sha256(body).hexdigest()[:32], "Nats-Expected-Stream": self._stream}
        for again in (True, False):
            try:
                message = await self._client.request(subject, body, timeout=STORE_S, headers=dict(headers))
            except NoRespondersError:
                if not again:
                    raise Unavailable("log_unavailable", f"stream {self._stream} does not take facts") from None
                await self._ensure()
                continue
            except (NatsError, TimeoutError) as error:
                raise Unavailable(
                    "log_unavailable", f"stream {self._stream}: {str(error) or 'no answer'}"
                ) from error
            refusal = error_in(msgspec.json.decode(message.data, type=dict[str, Any]))
            if refusal is not None:
                raise Unavailable("log_unavailable", f"stream {self._stream}: {refusal}")
            return

    async def _ensure(self) -> None:
        """Raises Unavailable, Refused. Other limits than ours are its operator's, and hold."""
        try:
            await ensure_stream(
                self._client, pods_stream_settings(self._cluster), replicas=self._replicas, timeout_s=STORE_S
            )
        except Refused as error:
            log.info("%s", error.message)

    async def answer(self, body: bytes) -> bytes:
        """Answers :class:`ShowPods`. Raises BadRequest, Unavailable. Cancelled, nothing is left behind."""
        try:
            query = _decode_question(body)
            address = str(IPv4Address(query.address))
            node = subjects.check_node_name(query.node) if query.node else ""
        except (msgspec.MsgspecError, UnicodeDecodeError, AddressValueError, RecursionError) as error:
            raise BadRequest("bad_request", f"query pods: {error}", query=ShowPods.name) from error
        return msgspec.json.encode(await self.of(address, node))

    async def of(self, address: str, node: str) -> PodsView:
        """Those of an address, told by a node (empty: by any). Raises Unavailable.

        Cancelled, it leaves nothing behind.
        """
        kept = await self._kept()
        if kept is None:
            return PodsView(kept=False)
        facts = []
        for message in await self._direct.every(subjects.pods(self._cluster, node, address)):
            with suppress(msgspec.MsgspecError):
                facts.append(_decode_fact(message.body))
        return PodsView(kept=True, since=kept[0], facts=tuple(facts))

    async def page(self, body: bytes) -> bytes:
        """Answers :class:`ListPods`. Raises BadRequest, Unavailable. Cancelled, nothing is left behind."""
        try:
            after = _decode_list(body).after
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise BadRequest("bad_request", f"query list-pods: {error}", query=ListPods.name) from error
        if after < 0:
            raise BadRequest("bad_request", f"after is {after}; the least is 0", query=ListPods.name)
        kept = await self._kept()
        if kept is None:
            return msgspec.json.encode(PodPage(kept=False))
        since, last = kept
        found = await self._direct.after(after, subjects.pods_wildcard(self._cluster), count=PAGE)
        facts = []
        for message in found.messages:
            with suppress(msgspec.MsgspecError):
                fact = _decode_fact(message.body)
                facts.append(KeptFact(sequence=message.sequence, node=fact.node, uid=fact.uid, fact=fact.fact))
        return msgspec.json.encode(
            PodPage(kept=True, since=since, last=last, facts=tuple(facts), more=bool(found.pending))
        )

    async def _kept(self) -> tuple[datetime | None, int] | None:
        """Since when facts are kept, and where their stream ends; None while there is none."""
        try:
            info = await call(self._client, f"$JS.API.STREAM.INFO.{self._stream}", timeout_s=STORE_S)
        except ApiError as error:
            if error.err_code == STREAM_NOT_FOUND:
                return None
            raise Unavailable("log_unavailable", f"stream {self._stream}: {error}") from error
        state = info["state"]
        since = recorded_ns(state["first_ts"]) / 1e9 if state.get("messages") else None
        return (datetime.fromtimestamp(since, UTC) if since else None), int(state["last_seq"])
