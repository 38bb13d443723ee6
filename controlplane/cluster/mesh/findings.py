"""What a verdict says: which node, site, pair or direction is in trouble, and what does not pass there."""

from __future__ import annotations

from typing import Literal

import msgspec

Scope = Literal["cluster", "site", "sites", "node", "pair", "view"]
Fault = Literal["silent", "direction", "part", "large", "pods", "view"]

SCOPES = ("cluster", "site", "sites", "node", "pair")
FAULTS = ("silent", "direction", "part", "large", "pods")
"""What is recorded; a ``view`` never is."""
SHOWN = 6
"""Names in a sentence or a list of evidence, at most."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One explanation. ``a`` and ``b`` are nodes or sites, ``b`` empty where one is meant.

    ``broken``: the direction in which nothing passes (from, to), where it is only one. ``doubt``: only one end
    says so, and the other one may still contradict. ``last`` is when its newest measurement began to fail;
    ``since`` when the oldest did.
    """

    scope: Scope
    a: str
    b: str = ""
    fault: Fault = "silent"
    broken: tuple[str, str] = ("", "")
    since: float = 0.0
    last: float = 0.0
    doubt: bool = False
    evidence: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    """Those that are behind it, some of them."""

    @property
    def key(self) -> tuple[str, str, str]:
        """What it is about: of each there is one finding at a time."""
        return self.scope, self.a, self.b

    @property
    def sentence(self) -> str:
        """In one sentence."""
        return sentence(self.scope, self.a, self.b, self.fault, self.broken)


def sentence(scope: str, a: str, b: str, fault: str, broken: tuple[str, str] = ("", "")) -> str:
    """A finding, or a recorded one, for people."""
    what = {
        "cluster": "no node reaches another one",
        "site": f"site {a} is cut off from all others",
        "sites": f"sites {a} and {b} do not reach each other",
        "node": f"node {a} is reached by nobody",
        "pair": f"{a} and {b} do not reach each other",
        "view": f"only {a} says so: others are reached by everybody else, and reach {a}",
    }
    where = {
        "cluster": "everywhere",
        "site": f"between site {a} and all others",
        "sites": f"between sites {a} and {b}",
        "node": f"node {a}",
        "pair": f"{a} and {b}",
    }.get(scope, f"{a} {b}".strip())
    if fault == "large":
        return f"large packets do not pass, small ones do: {where}"
    if fault == "pods":
        if scope == "node":
            return f"the tunnel works, but node {a} does not forward packets to or from pods"
        if scope == "pair":
            return f"the tunnel works, but one of {a} and {b} does not forward packets to or from pods"
        return f"the tunnel works, but packets of pods do not pass: {where}"
    if fault == "part":
        return f"node {a} and some of the others do not reach each other"
    if fault == "direction":
        start, end = broken
        return f"one direction only: nothing passes from {start or 'the others'} to {end or 'the others'}"
    return what.get(scope, f"{a} {b}".strip())
