"""``bisect``: the first event behind which a condition no longer holds.

A condition that stays false once it is false (:mod:`replay.queries.expression` proves it) is searched
by halves over the read model, in about twenty looks at a million events. Any other may recover, and
halves would miss it: then every event is folded and looked at.

Ready-made conditions are the invariants of the design: ``invariants`` (all), ``invariant-1`` ….
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from controlplane.cluster.evolve import evolve
from controlplane.cluster.invariants import violation
from controlplane.cluster.state import ClusterState
from controlplane.readmodel.asof import DAMAGE
from events.errors import Usage, VerificationFailed
from replay.history import History, Progress
from replay.queries.expression import Expression, Moment, compile_expression
from replay.queries.lives import fields
from replay.queries.stamp import Stamp, stamp
from replay.queries.states import States, base

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
        return await _invariant(states, condition, after, end, progress)
    if condition.startswith("invariant-"):
        raise Usage("usage", f"there is no {condition!r}; ready-made are {', '.join(READY)}")
    expression = compile_expression(condition)
    model = states.read_model
    if expression.monotone and model is not None and end <= model.checkpoint:
        try:
            return await _by_halves(states, expression, after, end)
        except DAMAGE as error:
            states.distrust(error)
    return await _every_event(states, expression, after, end, progress)


async def _answer(
    history: History,
    condition: str,
    sequence: int,
    *,
    before: int = 0,
    message: str = "",
    method: Any,
    looked: int,
) -> BisectAnswer:
    if not sequence:
        return BisectAnswer(
            condition=condition,
            held_at=before,
            failed=None,
            event={},
            message="it holds to the end",
            method=method,
            looked_at=looked,
        )
    from events.codec import decode

    recorded = decode(await history.message(sequence))
    return BisectAnswer(
        condition=condition,
        held_at=sequence - 1,
        failed=stamp(recorded),
        event=fields(recorded),
        message=message,
        method=method,
        looked_at=looked,
    )


async def _every_event(
    states: States, expression: Expression, after: int, end: int, progress: Progress | None
) -> BisectAnswer:
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
                message = f"{expression.text} is false behind event {fact.seq}"
                return await _answer(
                    states.history,
                    expression.text,
                    fact.seq,
                    message=message,
                    method="every event",
                    looked=looked,
                )
    return await _answer(states.history, expression.text, 0, before=end, method="every event", looked=looked)


async def _by_halves(states: States, expression: Expression, after: int, end: int) -> BisectAnswer:
    model = states.read_model
    if model is None:
        raise VerificationFailed("digest_mismatch", "the search by halves needs a read model")
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
        return await _answer(states.history, expression.text, 0, before=end, method="by halves", looked=looked)
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            low = middle
        else:
            high = middle
    message = f"{expression.text} is false behind event {high}"
    return await _answer(
        states.history, expression.text, high, message=message, method="by halves", looked=looked
    )


async def _invariant(
    states: States, condition: str, after: int, end: int, progress: Progress | None
) -> BisectAnswer:
    number = READY[condition][1]
    state: ClusterState = base(states.history)
    looked = 0
    async for batch in states.history.facts(after=state.sequence, until=end, progress=progress):
        for fact in batch:
            looked += 1
            found = violation(state, fact.seq, fact.body)
            if found is not None and number in (0, found.invariant) and fact.seq > after:
                message = f"invariant {found.invariant}: {found.message}"
                return await _answer(
                    states.history, condition, fact.seq, message=message, method="every event", looked=looked
                )
            try:
                evolve(state, fact.seq, fact.body)
            except VerificationFailed as error:
                return await _answer(
                    states.history,
                    condition,
                    fact.seq,
                    message=error.message,
                    method="every event",
                    looked=looked,
                )
    return await _answer(states.history, condition, 0, before=end, method="every event", looked=looked)
