"""Is a recorded history linearizable? Knows nothing of the code under test: only what a membership list is.

A history is a list of operations, each with the time of its invocation, the time of its answer and what the
answer said. It is linearizable if the operations on each node can be put into one order in which every
answer is right, and in which none stands before one that was answered before it was asked (Herlihy and Wing
1990; the search is Wing's and Gong's, with the memory of Lowe 2017). An operation without an answer may have
happened at any time after its invocation, or never.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple


class State(NamedTuple):
    """``uid`` of the member (empty: nobody), and the newest epoch that an answer has told: epochs only grow.

    ``own``: that epoch is this member's; otherwise nobody was told it yet.
    """

    uid: str = ""
    epoch: int = 0
    own: bool = False


class Op(NamedTuple):
    """One operation. ``kind`` is join, leave, remove or show; ``end`` is infinite without an answer.

    ``told``: a code for a refusal, empty otherwise; ``uid`` and ``epoch`` as asked (join, leave) or as
    answered (join, show; a show of nobody has no uid).
    """

    who: str
    kind: str
    node: str
    uid: str
    start: float
    end: float = math.inf
    told: str = ""
    epoch: int = 0

    def __str__(self) -> str:
        end = f"{self.end:9.3f}" if self.end < math.inf else "        ?"
        return (
            f"{self.start:9.3f} … {end}  {self.who}: {self.kind} {self.node} {self.uid} "
            f"→ {self.told or self.epoch or ('?' if self.end == math.inf else 'ok')}"
        )


def _after(op: Op, state: State) -> Iterator[State]:
    """The states that can follow; none when the answer would be wrong."""
    leaves = op.kind in {"leave", "remove"}
    nobody = State("", state.epoch)
    if op.end == math.inf:
        if op.kind == "join":
            yield state if state.uid == op.uid else State(op.uid, state.epoch)
        elif leaves and state.uid and op.uid in {"", state.uid}:
            yield nobody
    elif leaves and not op.told:
        if state.uid and op.uid in {"", state.uid}:
            yield nobody
    elif leaves:
        if op.told != "node_unknown" or not state.uid:
            yield state
    elif op.kind == "join" and op.told:
        if op.told != "no_free_range" or state.uid != op.uid:
            yield state
        if op.told == "no_free_range" and state.uid not in {"", op.uid}:
            yield nobody  # the reinstalled machine replaces the one of before, and gets no range
    elif op.told or not op.uid:
        if not state.uid:
            yield state
    elif state.uid == op.uid and state.own:
        if op.epoch == state.epoch:
            yield state
    elif op.epoch > state.epoch and (state.uid == op.uid or op.kind == "join"):
        yield State(op.uid, op.epoch, own=True)


def violation(history: Iterable[Op]) -> str:
    """Empty when the history is linearizable; otherwise the operations on the node where it is not."""
    by_node: dict[str, list[Op]] = defaultdict(list)
    for op in history:
        by_node[op.node].append(op)
    for node, ops in sorted(by_node.items()):
        if not _linearizable(sorted(ops, key=lambda op: (op.start, op.end))):
            lines = "\n".join(f"  {op}" for op in sorted(ops))
            return f"no order of the operations on {node} explains their answers:\n{lines}"
    return ""


def _linearizable(ops: list[Op]) -> bool:
    """``ops`` by their start. Its cost grows with their number times how many of them overlap."""
    answered = [op for op in ops if op.end < math.inf]
    lost = [op for op in ops if op.end == math.inf]
    # How many operations come first in the order found so far, which of those behind them do too (bits), which
    # lost ones happened (bits), and what is true then.
    seen: set[tuple[int, int, int, State]] = set()
    open_: list[tuple[int, int, int, State]] = [(0, 0, 0, State())]
    while open_:
        step = open_.pop()
        begin, done, happened, state = step
        while done & 1:
            begin, done = begin + 1, done >> 1
        if begin == len(answered):
            return True
        step = (begin, done, happened, state)
        if step in seen:
            continue
        seen.add(step)
        window: list[tuple[float, int]] = []
        first_end = math.inf
        for i in range(begin, len(answered)):
            op = answered[i]
            if op.start > first_end:
                break
            if not done >> (i - begin) & 1:
                window.append((op.end, i))
                first_end = min(first_end, op.end)
        for number, op in enumerate(lost):
            if op.start > first_end:
                break
            if not happened >> number & 1:
                changed = [after for after in _after(op, state) if after != state]
                open_ += [(begin, done, happened | 1 << number, after) for after in changed]
        for _, i in sorted(window, reverse=True):  # what was answered first is tried first
            if answered[i].start <= first_end:
                open_ += [
                    (begin, done | 1 << (i - begin), happened, after) for after in _after(answered[i], state)
                ]
    return False
