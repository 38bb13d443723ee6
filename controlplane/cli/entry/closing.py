"""Which gateways have closed an entry: by what their agents report of the log and their firewalls."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from events.bus.client import ControllerClient
from events.cli.options import BusContext, controller
from events.errors import Refused, Unavailable
from events.protocol.queries import NodeView, ShowNode

LOOK_S = 0.25


class Closing(msgspec.Struct, frozen=True, kw_only=True):
    """Of one gateway; ``why`` says what is known when it has not confirmed."""

    node: str
    closed: bool
    why: str = ""


async def closing(
    context: BusContext, gateways: Sequence[str], sequence: int, within_s: float
) -> list[Closing]:
    """Wait until all have applied the event, or the time is over. Cancelled, it leaves nothing behind.

    An agent reports an event as applied only when its firewall has it.
    """
    if not gateways:
        return []
    deadline = asyncio.get_running_loop().time() + within_s
    async with controller(context) as client:
        while True:
            found = [await _look(client, name, sequence) for name in gateways]
            left_s = deadline - asyncio.get_running_loop().time()
            if all(one.closed for one in found) or left_s <= 0:
                return found
            await asyncio.sleep(min(LOOK_S, left_s))


async def _look(client: ControllerClient, name: str, sequence: int) -> Closing:
    try:
        view = await client.ask(ShowNode(node=name), NodeView, timeout_s=3.0)
    except (Refused, Unavailable) as error:
        return Closing(node=name, closed=False, why=error.message)
    if not view.member:
        return Closing(node=name, closed=False, why="it is no member any more, and says nothing")
    if view.applied is None:
        return Closing(node=name, closed=False, why="it has never reported")
    if view.applied < sequence:
        heard = f", last heard {view.last_seen:%H:%M:%S}Z" if view.last_seen is not None else ""
        return Closing(
            node=name, closed=False, why=f"it has applied event {view.applied:,} of {sequence:,}{heard}"
        )
    return Closing(node=name, closed=True)
