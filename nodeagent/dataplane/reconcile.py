"""Desired − kernel, written in a safe order, read back, and told as it is.

What only adds rows and was acknowledged whole is not read back at once: the caller compares again soon
(:attr:`Outcome.unread`). Until then a row rests on what a direct write rests on: the kernel acknowledged it,
and tells of whatever others change. Everything else (rows that stood in another form, removals, refusals) is
read back here, because there a success says less: an FDB removal succeeds without removing, a replaced FDB row
keeps its other destinations.

Works on any :class:`~nodeagent.netlink.socket.Engine`; the decisions are the pure functions of
:mod:`nodeagent.dataplane.desired`. It never removes a row of which it has not read the present value.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Sequence

import msgspec

from events.attestation import MODULUS, fdb_hash, neighbour_hash, route_hash
from nodeagent.dataplane.desired import changes
from nodeagent.netlink.messages import Action, Operation, Operations
from nodeagent.netlink.rows import Kind, Rows, split_route_key
from nodeagent.netlink.socket import AnswersLost, Engine, KernelRefusal

ROUNDS = 3
"""Attempts to make the kernel agree in one reconciliation; what is left then is reported."""

_DROP = Action.DROP
_ABSENT = frozenset({errno.ENOENT, errno.ESRCH})


class Outcome(msgspec.Struct, frozen=True):
    """What a reconciliation did and what is still different (read back, unless ``unread``).

    ``written`` and ``removed`` count rows; ``withheld`` are operations that the guard did not let
    through; ``digest_shift`` is kernel − desired as a sum of row hashes (0: equal). ``found`` and
    ``left`` count the rows that differed before and after, by :class:`~nodeagent.netlink.rows.Kind`.
    ``unread``: the rows that were missing are there by the kernel's acknowledgement, nobody has looked.
    """

    written: int
    removed: int
    refusals: tuple[KernelRefusal, ...]
    remaining: tuple[Operation, ...]
    withheld: tuple[Operation, ...]
    digest_shift: int
    found: tuple[int, ...] = ()
    left: tuple[int, ...] = ()
    unread: bool = False

    @property
    def clean(self) -> bool:
        """Whether the kernel has exactly the desired rows."""
        return not self.remaining


def reconcile(
    engine: Engine,
    ifindex: int,
    desired: Rows,
    *,
    allow: Callable[[Operation], bool] | None = None,
    seen: Callable[[Rows], Rows] = lambda kernel: kernel,
    routes: bool = True,
) -> Outcome:
    """Make the kernel agree with ``desired``, as far as ``allow`` lets operations through.

    ``seen`` says which of the kernel's rows count: another network's may stand beside ours. Without ``routes``
    these are another comparison's.
    Raises AnswersLost and OSError of the engine.
    """
    written = removed = 0
    refusals: list[KernelRefusal] = []
    withheld: dict[tuple[Kind, bytes], Operation] = {}
    permitted: set[tuple[Kind, bytes]] = set()

    def let_through(operation: Operation) -> bool:
        row = (operation.kind, operation.key)
        if row in permitted or (allow is not None and row not in withheld and allow(operation)):
            permitted.add(row)
            return True
        withheld[row] = operation
        return False

    kernel = seen(engine.read(ifindex, routes=routes))
    found: tuple[int, ...] | None = None
    unread = False
    for _ in range(ROUNDS):
        pending = changes(desired, kernel)
        found = _by_kind(pending) if found is None else found
        operations = pending if allow is None else pending.only(let_through)
        if not operations:
            break
        refusals = [refusal for refusal in engine.execute(operations, ifindex) if _matters(refusal)]
        written += operations.count_of(action=Action.PUT)
        removed += operations.count_of(action=Action.DROP)
        if not refusals and len(operations) == len(pending) and _only_adds(operations, kernel):
            pending, unread = Operations(()), True
            break
        kernel = seen(engine.read(ifindex, routes=routes))
    else:
        pending = changes(desired, kernel)
    return Outcome(
        written,
        removed,
        tuple(refusals) if pending else (),
        tuple(pending),
        tuple(withheld.values()),
        digest_shift(kernel, pending),
        found or (),
        _by_kind(pending),
        unread,
    )


def _only_adds(operations: Operations, kernel: Rows) -> bool:
    """Whether each of them writes a row of whose key the kernel has none."""
    return all(
        run.action is Action.PUT and kernel[run.kind].keys().isdisjoint(run.keys) for run in operations.runs
    )


def joined(outcome: Outcome, beside: Outcome) -> Outcome:
    """What two comparisons did together; the digest is the first one's."""
    return msgspec.structs.replace(
        outcome,
        written=outcome.written + beside.written,
        removed=outcome.removed + beside.removed,
        refusals=outcome.refusals + beside.refusals,
        remaining=outcome.remaining + beside.remaining,
        withheld=outcome.withheld + beside.withheld,
        found=tuple(map(sum, zip(outcome.found, beside.found, strict=True))),
        left=tuple(map(sum, zip(outcome.left, beside.left, strict=True))),
        unread=outcome.unread or beside.unread,
    )


def _by_kind(operations: Operations) -> tuple[int, ...]:
    return tuple(operations.count_of(kind=kind) for kind in Kind)


def apply_directly(engine: Engine, ifindex: int, operations: Sequence[Operation]) -> list[KernelRefusal]:
    """The short way for one change: its messages in one batch, and a look at the FDB rows that had to go.

    The kernel's silence proves a write; an FDB removal is read back, because with a wrong
    destination it succeeds and deletes nothing. Raises AnswersLost when a row is still there, OSError.
    """
    refusals = engine.execute(operations, ifindex)
    if refusals:
        refusals = [refusal for refusal in refusals if _matters(refusal)]
    for action, kind, key, _ in operations:
        if action is _DROP and kind is Kind.FDB and engine.read_one(kind, key, ifindex) is not None:
            raise AnswersLost(errno.EAGAIN, "an FDB row survived its removal")
    return refusals


def _matters(refusal: KernelRefusal) -> bool:
    """A row that was gone already is what we wanted."""
    return not (refusal.operation.action is Action.DROP and refusal.errno in _ABSENT)


def digest_shift(kernel: Rows, remaining: Iterable[Operation]) -> int:
    """What to add to the expected digest to get the kernel's (modulo 2²⁵⁶)."""
    shift = 0
    for action, kind, key, value in remaining:
        there = kernel[kind].get(key)
        if there is not None:
            shift += row_digest(kind, key, there)
        if action is Action.PUT:
            shift -= row_digest(kind, key, value)
    return shift % MODULUS


def row_digest(kind: Kind, key: bytes, value: bytes) -> int:
    """The hash of one row, as :mod:`events.attestation` defines it."""
    if kind is Kind.NEIGHBOUR:
        return neighbour_hash(key, value)
    if kind is Kind.FDB:
        return fdb_hash(key, value)
    network, length, metric = split_route_key(key)
    return route_hash(network, length, metric, value)
