"""Recorded churn as clients send it, and everything that they were told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

from deploy.churn.drive import Fleet
from deploy.churn.trace import ChurnStep, changes, find_files, load, simulated_uid
from events.bus.client import ControllerClient
from events.errors import OutcomeUnknown, Overloaded, Refused, Unavailable
from events.ids import event_id
from events.protocol.commands import Command, JoinNode, LeaveNode
from tests.faults.bus_probe import BusProbe
from tests.faults.checker import Answers

CHURN = Path(__file__).parents[1] / "data" / "node-churn"
TRY_S = 4.0
"""How long a client lets one command hang before it asks again with the same id."""
PATIENCE_S = 60.0
WORKS_S = 20.0
"""A bus that has worked for so long since its last election has no excuse for a client without an answer."""
LIMIT_S = 300.0


def shares(seed: int) -> list[list[ChurnStep]]:
    """The joins and leaves of each recorded site: one client's work each."""
    traces = load(find_files([CHURN]))
    recorded = list(changes(traces, run="f", order="longest-lived", seed=seed))
    return [[change for change in recorded if change.instance.site == trace.site] for trace in traces]


def endlessly(work: list[ChurnStep]) -> Iterator[ChurnStep]:
    """The trace, then everybody left leaves, then the trace again with new instances, and so on."""
    for turn in count():
        left: dict[str, ChurnStep] = {}
        for change in work:
            name = f"{change.instance.name}-{turn}"
            instance = replace(change.instance, name=name, uid=simulated_uid(name))
            made = replace(change, instance=instance)
            if made.joins:
                left[name] = replace(made, joins=False)
            else:
                del left[name]
            yield made
        yield from left.values()


class Clients:
    """Callers that keep a command's id over all tries and write down every answer."""

    def __init__(self, pause_s: float = 0.0) -> None:
        """Between two commands of one lane there are ``pause_s`` seconds."""
        self.answers = Answers()
        self.bus: BusProbe | None = None
        self._pause_s = pause_s
        self.slowest_s = 0.0

    async def settle(self, client: ControllerClient, command: Command, command_id: str) -> None:
        """Send until there is an answer; remember it.

        Raises AssertionError without one in PATIENCE_S when the bus has worked for WORKS_S of them lately, or
        for PATIENCE_S in total, with elections in between; and in LIMIT_S whatever it does.
        """
        loop = asyncio.get_running_loop()
        began_s, worked_before_s = loop.time(), self.bus.worked_s if self.bus else 0.0
        while True:
            waited_s = loop.time() - began_s
            worked_s = self.bus.worked_s - worked_before_s if self.bus else waited_s
            works = self.bus is None or self.bus.works_s() > WORKS_S
            if max(waited_s - LIMIT_S, worked_s - PATIENCE_S) > 0 or (waited_s > PATIENCE_S and works):
                raise AssertionError(
                    f"no answer to {command} for {waited_s:.0f} s, for {worked_s:.0f} s of which the bus worked"
                )
            try:
                reply = await client.send(command, command_id=command_id, timeout_s=TRY_S, try_timeout_s=1.5)
            except (OutcomeUnknown, Unavailable, Overloaded):
                self.answers.unknown.add(command_id)
                continue
            except Refused as refusal:
                self.answers.refused[command_id] = refusal.code
            else:
                self.answers.acknowledged[command_id] = reply
            self.answers.unknown.discard(command_id)
            self.slowest_s = max(self.slowest_s, loop.time() - began_s)
            return

    async def lane(
        self,
        client: ControllerClient,
        fleet: Fleet,
        work: list[ChurnStep],
        lane: int,
        stopped: Callable[[], bool],
    ) -> None:
        """One command after the other, joins and leaves in the trace's order, until ``stopped``."""
        for number, change in enumerate(endlessly(work)):
            if stopped():
                return
            instance = change.instance
            command: Command
            if change.joins:
                command = JoinNode(
                    node=instance.name,
                    uid=instance.uid,
                    kind=instance.kind,
                    underlay=instance.underlay,
                    site=instance.site,
                )
            else:
                command = LeaveNode(node=instance.name, uid=instance.uid, reason="reclaimed")
            await self.settle(client, command, event_id(f"lane-{lane}", number))
            if change.joins:
                fleet.live[instance.name] = instance.uid
            else:
                fleet.live.pop(instance.name, None)
            if self._pause_s:
                await asyncio.sleep(self._pause_s)
