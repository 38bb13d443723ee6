"""A small, safe language for conditions on a state: ``nodes <= 500 and utilisation < 0.9``.

Python's expression syntax, of which only these parts exist: numbers, texts, ``and or not``,
comparisons, ``in``, ``+ - * / // %`` on numbers, the names in :data:`VARIABLES` and the functions in
:data:`FUNCTIONS`. The text is parsed, checked and turned into closures; it is never given to
``eval``, has no attribute access, no loops, and bounded size, so that a foreign text is harmless.

For the search by halves it also says whether the condition, once false, stays false (``monotone``).
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from controlplane.cluster.state import ClusterState
from events.errors import Usage

LENGTH_LIMIT = 500
DEPTH_LIMIT = 30


class Moment(NamedTuple):
    """What an expression may look at: the state behind an event, and totals since the beginning."""

    state: ClusterState
    totals: dict[str, int]


Term = Callable[[Moment], Any]
Trend = Literal["constant", "rising", "falling", "any"]

_TOTALS = {
    "joins": "node.joined.v1",
    "leaves": "node.left.v1",
    "fences": "node.fenced.v1",
    "allocations": "range.allocated.v1",
    "refusals": "allocation.refused.v1",
}


def _total(name: str) -> Term:
    return lambda moment: moment.totals[name]


VARIABLES: dict[str, tuple[Term, Trend, str]] = {
    "sequence": (lambda m: m.state.sequence, "rising", "the event's sequence"),
    "nodes": (lambda m: len(m.state.nodes), "any", "live nodes"),
    "external": (lambda m: m.state.external, "any", "live external nodes"),
    "cloud": (lambda m: len(m.state.nodes) - m.state.external, "any", "live cloud nodes"),
    "unreachable": (lambda m: len(m.state.unreachable), "any", "live nodes that do not report"),
    "allocated": (lambda m: len(m.state.owned), "any", "ranges with a live owner"),
    "draining": (lambda m: len(m.state.draining), "any", "ranges that drain"),
    "quarantined": (lambda m: len(m.state.quarantined), "any", "ranges in quarantine"),
    "free": (lambda m: m.state.pool.free, "any", "free ranges"),
    "capacity": (lambda m: m.state.pool.capacity, "rising", "all ranges"),
    "cursor": (lambda m: m.state.pool.cursor, "any", "index where the next search starts"),
    "utilisation": (
        lambda m: 1 - m.state.pool.free / m.state.pool.capacity if m.state.pool.capacity else 0.0,
        "any",
        "share of ranges that are not free, 0 … 1",
    ),
    "fenced": (lambda m: len(m.state.fenced), "rising", "fenced uids"),
    "reservations": (lambda m: len(m.state.clb), "any", "CLB reservations"),
    "entries": (lambda m: len(m.state.entries), "any", "entries: who from outside may reach pods"),
    "networks": (lambda m: len(m.state.networks), "any", "declared networks"),
    "defined": (lambda m: m.state.definition is not None, "rising", "whether the cluster is defined"),
    "deleted": (lambda m: bool(m.state.deleted), "rising", "whether the cluster was deleted"),
    **{
        name: (_total(name), "rising", f"{kind.rsplit('.', 1)[0]} events so far")
        for name, kind in _TOTALS.items()
    },
}
FUNCTIONS: dict[str, tuple[Callable[[Moment, Any], Any], str]] = {
    "member": (lambda m, name: name in m.state.nodes, "member('idc-7'): whether the node is live"),
    "range_of": (
        lambda m, name: m.state.owned[name].cidr if name in m.state.owned else "",
        "range_of('idc-7'): the CIDR that the node holds, or ''",
    ),
    "uid_of": (
        lambda m, name: m.state.nodes[name].uid if name in m.state.nodes else "",
        "uid_of('idc-7'): its uid, or ''",
    ),
    "underlay_of": (
        lambda m, name: m.state.nodes[name].underlay if name in m.state.nodes else "",
        "underlay_of('idc-7'): its underlay address, or ''",
    ),
    "reachable": (
        lambda m, name: name in m.state.nodes and name not in m.state.unreachable,
        "reachable('idc-7'): live and reporting",
    ),
    "reserved": (lambda m, name: name in m.state.clb, "reserved('apiserver'): whether the reservation exists"),
    "fenced_uid": (lambda m, uid: uid in m.state.fenced, "fenced_uid('…'): whether the uid is fenced"),
}

_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


class Expression(NamedTuple):
    """A compiled condition. ``totals`` are the event types whose counts it needs (name → type)."""

    text: str
    holds: Callable[[Moment], bool]
    monotone: bool
    totals: dict[str, str]


def compile_expression(text: str) -> Expression:
    """Understand ``text``. Raises Usage(usage) that points at the first part that is not allowed."""
    if len(text) > LENGTH_LIMIT:
        raise Usage("usage", f"the expression has {len(text):,} characters, the limit is {LENGTH_LIMIT}")
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise Usage("usage", f"cannot read the expression {text!r}: {error}", expression=text) from error
    used: set[str] = set()
    term, trend = _build(tree.body, text, used, 0)

    def holds(moment: Moment) -> bool:
        try:
            return bool(term(moment))
        except (ArithmeticError, TypeError, ValueError) as error:
            raise Usage(
                "usage", f"the expression {text!r} fails at event {moment.state.sequence}: {error}"
            ) from error

    totals = {name: _TOTALS[name] for name in used if name in _TOTALS}
    return Expression(text, holds, trend in ("falling", "constant"), totals)


def _refuse(node: ast.AST, text: str, why: str) -> Usage:
    part = ast.get_source_segment(text.strip(), node) if isinstance(node, ast.expr) else None
    return Usage(
        "usage", f"in the expression {text!r}: {part or type(node).__name__!s}: {why}", expression=text
    )


def _build(node: ast.expr, text: str, used: set[str], depth: int) -> tuple[Term, Trend]:
    if depth > DEPTH_LIMIT:
        raise Usage("usage", f"the expression is nested deeper than {DEPTH_LIMIT} levels")
    match node:
        case ast.Constant(value=bool() | int() | float() | str() as value):
            return (lambda _: value), "constant"
        case ast.Tuple(elts=items) | ast.List(elts=items):
            parts = [_build(item, text, used, depth + 1) for item in items]
            terms = [part[0] for part in parts]
            fixed: Trend = "constant" if all(part[1] == "constant" for part in parts) else "any"
            return (lambda m: tuple(term(m) for term in terms)), fixed
        case ast.Name(id=name):
            if name not in VARIABLES:
                raise _refuse(node, text, f"no such name; known are {', '.join(sorted(VARIABLES))}")
            used.add(name)
            return VARIABLES[name][0], VARIABLES[name][1]
        case ast.BoolOp(op=op, values=values):
            built = [_build(value, text, used, depth + 1) for value in values]
            terms = [part[0] for part in built]
            trend = _together([part[1] for part in built])
            if isinstance(op, ast.And):
                return (lambda m: all(term(m) for term in terms)), trend
            return (lambda m: any(term(m) for term in terms)), trend
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            term, trend = _build(operand, text, used, depth + 1)
            return (lambda m: not term(m)), _opposite(trend)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            term, trend = _build(operand, text, used, depth + 1)
            return (lambda m: -term(m)), _opposite(trend)
        case ast.BinOp(left=left, op=operation, right=right) if type(operation) in _ARITHMETIC:
            return _arithmetic(
                operation, _build(left, text, used, depth + 1), _build(right, text, used, depth + 1)
            )
        case ast.Compare():
            return _comparison(node, text, used, depth)
        case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if name in FUNCTIONS:
            function = FUNCTIONS[name][0]
            given, _ = _build(argument, text, used, depth + 1)
            return (lambda m: function(m, given(m))), "any"
    raise _refuse(
        node,
        text,
        f"is not allowed; there are numbers, texts, and/or/not, comparisons, + - * / // %, the names "
        f"{', '.join(sorted(VARIABLES))} and the functions {', '.join(sorted(FUNCTIONS))}",
    )


def _arithmetic(
    operation: ast.operator, left: tuple[Term, Trend], right: tuple[Term, Trend]
) -> tuple[Term, Trend]:
    work = _ARITHMETIC[type(operation)]
    a, b = left[0], right[0]

    def numbers(m: Moment) -> Any:
        x, y = a(m), b(m)
        if isinstance(x, str | tuple) or isinstance(y, str | tuple):
            raise TypeError("arithmetic is for numbers")
        return work(x, y)

    if isinstance(operation, ast.Add):
        return numbers, _together([left[1], right[1]])
    if isinstance(operation, ast.Sub):
        return numbers, _together([left[1], _opposite(right[1])])
    return numbers, "constant" if left[1] == right[1] == "constant" else "any"


def _comparison(node: ast.Compare, text: str, used: set[str], depth: int) -> tuple[Term, Trend]:
    sides = [_build(side, text, used, depth + 1) for side in (node.left, *node.comparators)]
    steps: list[tuple[Term, Callable[[Any, Any], Any], Term]] = []
    trends: list[Trend] = []
    for i, op in enumerate(node.ops):
        if type(op) not in _COMPARE:
            raise _refuse(node, text, "this comparison is not allowed")
        steps.append((sides[i][0], _COMPARE[type(op)], sides[i + 1][0]))
        if isinstance(op, ast.Lt | ast.LtE):
            trends.append(_together([_opposite(sides[i][1]), sides[i + 1][1]]))
        elif isinstance(op, ast.Gt | ast.GtE):
            trends.append(_together([sides[i][1], _opposite(sides[i + 1][1])]))
        else:
            trends.append("constant" if sides[i][1] == sides[i + 1][1] == "constant" else "any")
    return (lambda m: all(compare(a(m), b(m)) for a, compare, b in steps)), _together(trends)


def _opposite(trend: Trend) -> Trend:
    turned: dict[Trend, Trend] = {"rising": "falling", "falling": "rising"}
    return turned.get(trend, trend)


def _together(trends: list[Trend]) -> Trend:
    """The trend of a sum, or of truths joined by ``and`` or ``or``: what all of them share."""
    moving = {trend for trend in trends if trend != "constant"}
    if not moving:
        return "constant"
    return moving.pop() if len(moving) == 1 else "any"
