"""``bisect``: the first event behind which a condition no longer holds.

A condition that stays false once it is false (:mod:`replay.queries.expression` proves it) is searched
by halves over the read model, in about twenty looks at a million events. Any other may recover, and
halves would miss it: then every event is folded and looked at.

Ready-made conditions are the invariants of the design: ``invariants`` (all), ``invariant-1`` ….
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import msgspec

from controlplane.cluster.evolve import evolve
from controlplane.cluster.invariants import violation
from controlplane.readmodel.asof import DAMAGE
from events.codec import decode
from events.errors import Usage, VerificationFailed
from replay.history import History, Progress
from replay.queries.expression import Expression, Moment, compile_expression
from replay.queries.lives import fields
from replay.queries.stamp import Stamp, stamp
from replay.queries.states import ReadModel, States, base

READY: dict[str, tuple[str, int]] = {
    "invariants": ("every invariant that events can break", 0),
    "invariant-1": ("ranges are pairwise disjoint, aligned and inside a container CIDR", 1),
    "invariant-2": ("the next range is the first free one at or after the cursor, wrapping", 2),
    "invariant-3": ("one live node per name, uid and address; a fenced uid stays out", 3),
    "invariant-5": ("no range is reused before it was confirmed drained and has rested", 5),
    "invariant-6": ("allocated + draining + quarantined + free = the capacity formula", 6),
    "invariant-7": ("a CLB reservation is exactly two usable addresses of its subnet", 7),
}


class BisectAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """``failed`` is None when the condition held to the end. ``looked_at`` counts the states evaluated."""

    condition: str
    held_at: int
    failed: Stamp | None
    event: dict[str, Any]
    message: str
    method: Literal["by halves", "every event"]
    looked_at: int


async def bisect(
    states: States,
    condition: str,
    *,
    after: int = 0,
    until: int | None = None,
    progress: Progress | None = None,
) -> BisectAnswer:
    """Find the first event in ``(after, until]`` behind which ``condition`` is false.

    Raises Usage for a text that is no condition, VerificationFailed for a log that cannot be folded. Cancelled,
    it leaves nothing behind.
    """
    history = states.history
    end = history.end if until is None else until
    if condition in READY:
        found = await _invariant(states, READY[condition][1], after, end, progress)
        return await _answer(history, condition, end, found, "every event")
    if condition.startswith("invariant-"):
        raise Usage("usage", f"there is no {condition!r}; ready-made are {', '.join(READY)}")
    expression = compile_expression(condition)
    model = states.read_model
    if expression.monotone and model is not None and end <= model.checkpoint:
        try:
            return await _answer(
                history, condition, end, _by_halves(model, expression, after, end), "by halves"
            )
        except DAMAGE as error:
            states.distrust(error)
    found = await _every_event(states, expression, after, end, progress)
    return await _answer(history, condition, end, found, "every event")


class _Found(NamedTuple):
    """The first event behind which the condition is false (0: none), why, and how many states were seen."""

    sequence: int
    message: str
    looked: int


async def _answer(
    history: History, condition: str, end: int, found: _Found, method: Literal["by halves", "every event"]
) -> BisectAnswer:
    recorded = decode(await history.message(found.sequence)) if found.sequence else None
    return BisectAnswer(
        condition=condition,
        held_at=end if recorded is None else found.sequence - 1,
        failed=None if recorded is None else stamp(recorded),
        event={} if recorded is None else fields(recorded),
        message=found.message,
        method=method,
        looked_at=found.looked,
    )


def _held(looked: int) -> _Found:
    return _Found(0, "it holds to the end", looked)


def _false(expression: Expression, sequence: int, looked: int) -> _Found:
    return _Found(sequence, f"{expression.text} is false behind event {sequence}", looked)


async def _every_event(
    states: States, expression: Expression, after: int, end: int, progress: Progress | None
) -> _Found:
    state = base(states.history)
    kinds = {kind: name for name, kind in expression.totals.items()}
    totals = dict.fromkeys(expression.totals, 0)
    moment = Moment(state, totals)
    looked = 0
    async for batch in states.history.facts(after=state.sequence, until=end, progress=progress):
        for fact in batch:
            evolve(state, fact.seq, fact.body)
            if kinds:
                name = kinds.get(fact.body.type_name())
                if name is not None:
                    totals[name] += 1
            if fact.seq <= after:
                continue
            looked += 1
            if not expression.holds(moment):
                return _false(expression, fact.seq, looked)
    return _held(looked)


def _by_halves(model: ReadModel, expression: Expression, after: int, end: int) -> _Found:
    looked = 0

    def holds(sequence: int) -> bool:
        nonlocal looked
        looked += 1
        totals = {
            name: int(
                model.connection.execute(
                    "SELECT count(*) FROM event WHERE type = ? AND sequence <= ?", (kind, sequence)
                ).fetchone()[0]
            )
            for name, kind in expression.totals.items()
        }
        return expression.holds(Moment(model.state(sequence), totals))

    low, high = after, end  # what is asked for lies in (low, high], if anywhere
    if holds(end):
        return _held(looked)
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return _false(expression, high, looked)


async def _invariant(states: States, number: int, after: int, end: int, progress: Progress | None) -> _Found:
    state = base(states.history)
    looked = 0
    async for batch in states.history.facts(after=state.sequence, until=end, progress=progress):
        for fact in batch:
            looked += 1
            found = violation(state, fact.seq, fact.body)
            if found is not None and number in (0, found.invariant) and fact.seq > after:
                return _Found(fact.seq, f"invariant {found.invariant}: {found.message}", looked)
            try:
                evolve(state, fact.seq, fact.body)
            except VerificationFailed as error:
                return _Found(fact.seq, error.message, looked)
    return _held(looked)
