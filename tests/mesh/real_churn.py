"""Real agents while members come and go as recorded, and agents are killed at random: nothing may be lost.

``python -m tests.mesh.real_churn AGENTS SECONDS [SEED]``, as root: that many agents in namespaces, the busiest
hour of a recording (faster when the run is shorter, again and again when it is longer), a SIGKILL or SIGTERM
now and then, and bus and controller killed every four minutes. It prints what it did and what was recorded,
and ends with 1 when any path was recorded as lost, or a finding is left at the end.
"""

from __future__ import annotations

import json
import random
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

from deploy.churn.trace import ChurnStep
from events.errors import IsthmusError
from events.protocol.commands import JoinNode, LeaveNode
from tests.mesh.real_agents import Operator, begin, inside, prepare, say, wait
from tests.mesh.recording import recorded_hour
from tests.nodeagent.site import Node, Site, site

HOUR_S = 3600.0
KILL_EVERY_S, AWAY_S = 12.0, (0.5, 3.0, 20.0, 70.0)
CONTROLLER_EVERY_S = 240.0
QUIET_S = 30.0
"""At the end, with nobody killed any more."""


def _scheduled(seconds: float, pick: random.Random) -> Iterator[tuple[float, ChurnStep]]:
    """The recorded hour, as often as it fits; who is left at its end leaves then."""
    pace = min(1.0, seconds / HOUR_S)
    for hour in range(int(seconds // HOUR_S) + 1):
        live: dict[str, ChurnStep] = {}
        begin_s = hour * HOUR_S
        for at, _, change in sorted(
            (change.at_s + pick.random() * 20, n, change)
            for n, change in enumerate(recorded_hour(f"hour{hour}"))
        ):
            if change.joins:
                live[change.instance.name] = change
            else:
                live.pop(change.instance.name, None)
            yield (at + begin_s) * pace, change
        yield from (((HOUR_S + begin_s) * pace, replace(one, joins=False)) for one in live.values())


def _restart(node: Node, name: str) -> None:
    node.start("--heartbeat", "5", "--site", name, "--machine-id", "none")


class Churn:
    """What is done to the place, and what was done so far."""

    def __init__(self, place: Site, operator: Operator, where: dict[str, str], pick: random.Random) -> None:
        self._place, self._operator, self._where, self._pick = place, operator, where, pick
        self._back: list[tuple[float, str]] = []
        self.done = {"joins": 0, "leaves": 0, "kills": 0, "ends": 0, "controller kills": 0, "unanswered": 0}

    def member(self, change: ChurnStep) -> None:
        """A member that has no agent comes or goes."""
        one = change.instance
        join = JoinNode(node=one.name, uid=one.uid, kind=one.kind, underlay=one.underlay, site=one.site)
        leave = LeaveNode(node=one.name, uid=one.uid, reason="instance reclaimed")
        try:
            self._operator.send(join if change.joins else leave)
            self.done["joins" if change.joins else "leaves"] += 1
        except (IsthmusError, TimeoutError):
            self.done["unanswered"] += 1  # bus and controllers are away just now

    def kill(self, now: float) -> None:
        """An agent ends, mostly without a word, and comes back after a while."""
        alive = [node for node in self._place.nodes.values() if node.agent is not None]
        if len(alive) > 1:
            victim, hard = self._pick.choice(alive), self._pick.random() < 0.75
            victim.stop(signal.SIGKILL if hard else signal.SIGTERM)
            self.done["kills" if hard else "ends"] += 1
            self._back.append((now + self._pick.choice(AWAY_S), victim.name))

    def return_those_due(self, now: float) -> None:
        """Start again who was away long enough."""
        for at, name in [one for one in self._back if one[0] <= now]:
            self._back.remove((at, name))
            _restart(self._place.nodes[name], self._where[name])

    def kill_controller(self) -> None:
        """Bus and controller begin anew."""
        self._place.down(signal.SIGKILL)
        self._place.up()
        self.done["controller kills"] += 1


def real(agents: int, seconds: float, seed: int) -> int:
    """The run; its exit code."""
    pick = random.Random(seed)
    where = {f"n{number}": "ab"[number * 2 // agents] for number in range(agents)}
    with site(*where, start=False) as place:
        wait(lambda: place.isthmus("cluster", "show").returncode == 0, "a cluster", 60)
        operator = Operator(place.bus)
        try:
            begin(place, where)
            wait(
                lambda: _measured(operator) >= agents * (agents - 1), "all paths to be measured", 120, poll_s=1
            )
            say(f"{agents} agents measure each other; {seconds:.0f} s of churn begin, seed {seed}")
            churn = Churn(place, operator, where, pick)
            pending = list(_scheduled(seconds, pick))
            begun = time.monotonic()
            kill_at, anew_at, told_at = KILL_EVERY_S, CONTROLLER_EVERY_S, 60.0
            while (now := time.monotonic() - begun) < seconds:
                if pending and pending[0][0] <= now:
                    churn.member(pending.pop(0)[1])
                if now >= kill_at:
                    churn.kill(now)
                    kill_at = now + pick.expovariate(1 / KILL_EVERY_S)
                if now >= anew_at:
                    churn.kill_controller()
                    anew_at += CONTROLLER_EVERY_S
                if now >= told_at:
                    say(f"{now:.0f} s: {churn.done}, recorded as lost: {_lost(place)}")
                    told_at += 60.0
                churn.return_those_due(now)
                time.sleep(0.05)
            churn.return_those_due(float("inf"))
            quiet_until = time.monotonic() + QUIET_S
            wait(lambda: time.monotonic() > quiet_until and operator.mesh(), "an answer at the end", 120)
            lost, view = _lost(place), operator.mesh()
            left = [one.sentence for one in view.findings] if view is not None else ["no answer"]
        finally:
            operator.close()
    say(f"done: {churn.done}")
    say(f"recorded as lost: {lost or 'nothing'}; findings at the end: {left or 'none'}")
    return int(bool(lost or left))


def _measured(operator: Operator) -> int:
    view = operator.mesh()
    return sum(path.measured - path.lost for path in view.sites) if view is not None else 0


def _lost(place: Site) -> list[str]:
    """The sentences of all events that recorded a lost path."""
    found = []
    for line in place.isthmus("events", "tail", "--from", "1", "--json").stdout.splitlines():
        with suppress(ValueError):
            event = json.loads(line)
            if event.get("type") == "path.lost.v1":
                found.append(f"{event['sequence']}: {event.get('data')}")
    return found


def main() -> int:
    """See the module."""
    agents, seconds, *more = sys.argv[1:]
    seed = next((int(text) for text in more if text != "inside"), 20)
    if "inside" in more:
        prepare()
        return real(int(agents), float(seconds), seed)
    limit_s = float(seconds) + 900
    return inside("tests.mesh.real_churn", agents, seconds, str(seed), agents=int(agents), limit_s=limit_s)


if __name__ == "__main__":
    sys.exit(main())
