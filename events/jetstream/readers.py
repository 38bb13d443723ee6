"""Who reads the log by a consumer now, and of which release: controllers, and others where the bus is open.

Agents and people with credentials make no consumers. A reader that ended without a word is gone at once here:
nobody waits for messages any more.
"""

from __future__ import annotations

from typing import NamedTuple

from nats.aio.client import Client

from events import subjects
from events.errors import Unavailable
from events.jetstream.api import DEFAULT_PREFIX, ApiError, call
from events.jetstream.read import READER, VERSION_KEY

TIMEOUT_S = 2.0


class Reader(NamedTuple):
    """``version`` is empty for one of a release before 0.3."""

    name: str
    version: str


async def readers(client: Client, cluster: str) -> list[Reader]:
    """All of them. Raises Unavailable(log_unavailable). Cancelled, it leaves nothing behind."""
    subject = f"{DEFAULT_PREFIX}.CONSUMER.LIST.{subjects.stream(cluster)}"
    found: list[Reader] = []
    seen = 0
    while True:
        try:
            answer = await call(client, subject, {"offset": seen}, timeout_s=TIMEOUT_S)
        except ApiError as error:
            raise Unavailable("log_unavailable", f"the readers of the log: {error}") from error
        page = answer.get("consumers") or []
        seen += len(page)
        found += [
            Reader(each["name"], str((each["config"].get("metadata") or {}).get(VERSION_KEY, "")))
            for each in page
            if each["name"].startswith(READER) and each.get("num_waiting", 0)
        ]
        if not page or seen >= int(answer.get("total", 0)):
            return found
