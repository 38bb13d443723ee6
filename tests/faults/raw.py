"""The stored stream read by itself: by the bus's own client, as JSON, with nothing of what wrote or folds it.

What clients were told is held against what is stored: every acknowledged command's events are there, where
and as the answer said; no refused command has done anything; the stream has no gap.
"""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any, NamedTuple

from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from tests.faults.checker import Answers

REFUSALS = ("allocation.refused", "clb.refused", "conflict.refused")
BATCH = 500


class Stored(NamedTuple):
    sequence: int
    type: str
    body: dict[str, Any]


async def stored(client: Client, cluster: str) -> dict[str, list[Stored]]:
    """Command id → its stored messages, in order. Raises AssertionError for a gap."""
    stream = client.jetstream()
    found: dict[str, list[Stored]] = defaultdict(list)
    last, ends = 0, (await stream.stream_info(f"ISTHMUS_{cluster}")).state.last_seq
    reader = await stream.pull_subscribe(
        f"isthmus.{cluster}.events.>",
        stream=f"ISTHMUS_{cluster}",
        config=ConsumerConfig(deliver_policy=DeliverPolicy.ALL, ack_policy=AckPolicy.NONE),
    )
    while last < ends:
        try:
            messages = await reader.fetch(BATCH, timeout=60)
        except (NatsError, TimeoutError) as error:
            raise AssertionError(f"the stream cannot be read behind {last} of {ends}: {error}") from error
        for message in messages:
            sequence = message.metadata.sequence.stream
            assert sequence == last + 1, f"the stream goes from {last} to {sequence}"
            last = sequence
            headers = message.headers or {}
            found[headers.get("ce-commandid", "")].append(
                Stored(sequence, headers.get("ce-type", ""), json.loads(message.data))
            )
    await reader.unsubscribe()
    return found


def differing(answers: Answers, found: dict[str, list[Stored]]) -> list[str]:
    """How the clients' answers differ from what is stored."""
    wrong = []
    for command_id, reply in answers.acknowledged.items():
        events = found.get(command_id, [])
        said = [(written.sequence, written.type) for written in reply.events]
        if not events or (said and said != [(event.sequence, event.type) for event in events]):
            wrong.append(f"raw: {command_id} was acknowledged with {said}, stored is {[e[:2] for e in events]}")
        cidrs = [event.body["cidr"] for event in events if event.type.startswith("range.allocated")]
        if cidrs and reply.result.get("cidr") and cidrs != [reply.result["cidr"]]:
            wrong.append(f"raw: {command_id} was told {reply.result['cidr']}, stored is {cidrs}")
    for command_id, code in answers.refused.items():
        effects = [event for event in found.get(command_id, []) if not event.type.startswith(REFUSALS)]
        if effects:
            wrong.append(f"raw: {command_id} was refused with {code}, stored is {effects[0]}")
    return wrong
