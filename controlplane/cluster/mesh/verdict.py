"""The smallest explanation of what the agents could not reach: one node, one site, one pair, one direction.

Pure: what was seen goes in, findings come out, in time that grows with the trouble and not with the cluster. A
node or a site is named only when nothing that was measured later speaks for it; what one agent says alone, and
others contradict, is that agent's own view.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Literal, NamedTuple

import msgspec

Scope = Literal["site", "sites", "node", "pair", "view"]
Fault = Literal["silent", "direction", "large", "pods", "view"]

SCOPES = ("site", "sites", "node", "pair")
FAULTS = ("silent", "direction", "large", "pods")
"""What is recorded; a ``view`` never is."""

WITNESSES = 3
"""Peers that must miss a node before it alone is named, where there are so many."""
SHOWN = 6
FOUND_MAX = 64
"""Findings given at most, the largest explanations first."""
MARGIN_S = 0.2
"""Moments of two agents' measurements closer than this are not told apart."""


class Missing(NamedTuple):
    """``by`` got no answer of ``of`` since the moment ``since``.

    ``only``: of what alone there is none: of ``large`` packets, or of ``pods``, while the kernel there answers.
    """

    by: str
    of: str
    since: float
    only: Literal["", "large", "pods"] = ""


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """Everything by node name; moments are seconds of one monotonic clock.

    ``sites`` are those of all members. ``passed``: when an answer last came to or from a node, by any
    measurement;
    ``passed_sites`` the same for two sites (sorted), ``passed_pairs`` for who asked whom. ``heard``: when
    ``by``
    last heard a question of ``of``. ``quiet`` agents do not report. ``steps``: where a trace of ``by`` to
    ``of`` stopped, in words.
    """

    sites: Mapping[str, str]
    missing: Collection[Missing]
    passed: Mapping[str, float] = {}
    passed_sites: Mapping[tuple[str, str], float] = {}
    passed_pairs: Mapping[tuple[str, str], float] = {}
    heard: Mapping[tuple[str, str], float] = {}
    kernel: Mapping[tuple[str, str], float] = {}
    """Since when ``by`` gets answers of the kernel of ``of`` alone."""
    quiet: Collection[str] = frozenset()
    steps: Mapping[tuple[str, str], str] = {}


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One explanation. ``a`` and ``b`` are nodes or sites, ``b`` empty where one is meant.

    ``broken``: the direction in which nothing passes (from, to), where it is only one.
    """

    scope: Scope
    a: str
    b: str = ""
    fault: Fault = "silent"
    broken: tuple[str, str] = ("", "")
    since: float = 0.0
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
        "site": f"site {a} is cut off from all others",
        "sites": f"sites {a} and {b} do not reach each other",
        "node": f"node {a} is reached by nobody",
        "pair": f"{a} and {b} do not reach each other",
        "view": f"only {a} says so: others are reached by everybody else, and reach {a}",
    }
    if fault == "large":
        where = f"{scope} {a}" if not b else f"{a} and {b}" if scope == "pair" else f"sites {a} and {b}"
        return f"large packets do not pass, small ones do: {where}"
    if fault == "pods":
        where = f"node {a} does" if scope == "node" else f"one of {a} and {b} does"
        return f"the tunnel works, but {where} not forward packets to or from pods"
    if fault == "direction":
        start, end = broken
        return f"one direction only: nothing passes from {start or 'the others'} to {end or 'the others'}"
    return what.get(scope, f"{a} {b}".strip())


def _sorted(a: str, b: str) -> tuple[str, str]:
    return (a, b) if a < b else (b, a)


def explain(evidence: Evidence) -> list[Finding]:
    """The findings, the widest first."""
    found: list[Finding] = []
    pods = [one for one in evidence.missing if one.only == "pods"]
    stuck = _stuck(evidence, pods)
    blocked = {one.a for one in stuck if one.scope == "node"}
    left = _Pairs(
        evidence, [one for one in evidence.missing if not one.only and not blocked & {one.by, one.of}]
    )
    found += left.views()
    found += left.cut_sites()
    found += left.dark_nodes()
    found += left.rest()
    cut = {one.a for one in found if one.scope == "site"}
    covered = {one.a for one in found if one.scope == "node"}
    covered |= {name for name, site in evidence.sites.items() if site in cut} if cut else set()
    lost = left.all
    found += [one for one in stuck if not covered & {one.a, one.b}]
    covered |= blocked
    large = [
        one
        for one in evidence.missing
        if one.only == "large" and _sorted(one.by, one.of) not in lost and not covered & {one.by, one.of}
    ]
    found += _large(evidence, large)
    return found[:FOUND_MAX]


class _Pairs:
    """Pairs without an answer that nothing explains yet."""

    def __init__(self, evidence: Evidence, missing: Iterable[Missing]) -> None:
        self._e = evidence
        self._said: dict[tuple[str, str], list[Missing]] = {}
        self._views: dict[str, list[Missing]] = {}
        for one in missing:
            if one.by not in evidence.sites or one.of not in evidence.sites or one.by == one.of:
                continue
            if evidence.passed_pairs.get((one.of, one.by), float("-inf")) > one.since + 2 * MARGIN_S + 1.0:
                self._views.setdefault(one.by, []).append(one)
            elif (one.of, one.by) in evidence.kernel:
                continue  # the other side reaches its kernel: what it says of its pods will tell
            else:
                self._said.setdefault(_sorted(one.by, one.of), []).append(one)
        self.all = frozenset(self._said)

    def _newest(self, pairs: Iterable[tuple[str, str]]) -> float:
        return max(one.since for pair in pairs for one in self._said[pair])

    def _oldest(self, pairs: Iterable[tuple[str, str]]) -> float:
        return min(one.since for pair in pairs for one in self._said[pair])

    def _take(self, pairs: Iterable[tuple[str, str]]) -> None:
        for pair in pairs:
            self._said.pop(pair, None)

    def views(self) -> list[Finding]:
        """What one agent says and the other side contradicts."""
        return [
            Finding(
                scope="view",
                a=name,
                fault="view",
                since=min(one.since for one in said),
                evidence=(
                    f"{name} gets no answer of {_some([one.of for one in said])}, and they get its answers",
                    *self._steps((name, one.of) for one in said),
                ),
                nodes=tuple(sorted(one.of for one in said))[:SHOWN],
            )
            for name, said in sorted(self._views.items())
        ]

    def cut_sites(self) -> list[Finding]:
        """Sites between which nothing passes."""
        sites, e = self._e.sites, self._e
        members: dict[str, int] = {}
        for site in sites.values():
            members[site] = members.get(site, 0) + 1
        between: dict[tuple[str, str], list[tuple[str, str]]] = {}
        for pair in self._said:
            s, t = sites[pair[0]], sites[pair[1]]
            if s != t:
                between.setdefault(_sorted(s, t), []).append(pair)
        dark = {
            (s, t): pairs
            for (s, t), pairs in between.items()
            if members[s] + members[t] > 2
            and len(pairs) >= min(WITNESSES, members[s] * members[t])
            and all(
                len({n for pair in pairs for n in pair if sites[n] == one}) >= min(2, members[one])
                for one in (s, t)
            )
            and e.passed_sites.get((s, t), float("-inf")) <= self._newest(pairs) + MARGIN_S
        }
        found: list[Finding] = []
        for site in sorted(
            {one for pair in dark for one in pair}, key=lambda one: (not self._silent(one), one)
        ):
            mine = {pair: pairs for pair, pairs in dark.items() if site in pair}
            lit = [
                pair
                for pair in e.passed_sites
                if site in pair
                and pair[0] != pair[1]
                and mine
                and e.passed_sites[pair] > max(self._newest(pairs) for pairs in mine.values()) + MARGIN_S
            ]
            alone = len(members) > 2 and len(mine) >= 2
            if (
                not mine
                or lit
                or members[site] < 2
                or not (alone or (len(members) == 2 and self._silent(site)))
            ):
                continue
            pairs = [pair for some in mine.values() for pair in some if pair in self._said]
            if not pairs:
                continue
            found.append(self._finding("site", site, "", pairs))
            inner = [pair for pair in self._said if sites[pair[0]] == site or sites[pair[1]] == site]
            self._take(inner)
            dark = {pair: some for pair, some in dark.items() if site not in pair}
        for (s, t), pairs in sorted(dark.items()):
            if members[s] > 1 and members[t] > 1:
                left = [pair for pair in pairs if pair in self._said]
                if left:
                    found.append(self._finding("sites", s, t, left))
                    self._take(left)
        return found

    def _silent(self, site: str) -> bool:
        names = [name for name, one in self._e.sites.items() if one == site]
        return bool(names) and all(name in self._e.quiet for name in names)

    def dark_nodes(self) -> list[Finding]:
        """Nodes that nobody reaches any more."""
        e = self._e
        around: dict[str, list[tuple[str, str]]] = {}
        for pair in self._said:
            for name in pair:
                around.setdefault(name, []).append(pair)
        found: list[Finding] = []
        others = len(e.sites) - 1
        for name in sorted(around, key=lambda one: (-len(around[one]), one not in e.quiet, one)):
            pairs = [pair for pair in around[name] if pair in self._said]
            enough = len(pairs) >= min(WITNESSES, others) or (name in e.quiet and len(pairs) >= min(2, others))
            if not pairs or not enough:
                continue
            if others == 1 and name not in e.quiet:
                continue  # of two nodes either may be the one
            if e.passed.get(name, float("-inf")) > self._newest(pairs) + MARGIN_S:
                continue
            found.append(self._finding("node", name, "", pairs))
            self._take(pairs)
        return found

    def rest(self) -> list[Finding]:
        """Each pair by itself."""
        return [self._finding("pair", a, b, [(a, b)]) for a, b in sorted(self._said)]

    def _finding(self, scope: Scope, a: str, b: str, pairs: list[tuple[str, str]]) -> Finding:
        broken = self._direction(scope, a, pairs)
        said = [one for pair in pairs for one in self._said[pair]]
        witnesses = sorted({one.by for one in said})
        evidence = [f"{len(pairs)} of their paths without an answer, as {_some(witnesses)} found"]
        quiet = sorted({name for pair in pairs for name in pair} & set(self._e.quiet))
        if quiet:
            evidence.append(f"no report of {_some(quiet)} either")
        evidence += self._steps((one.by, one.of) for one in said)
        return Finding(
            scope=scope,
            a=a,
            b=b,
            fault="direction" if broken != ("", "") else "silent",
            broken=broken,
            since=self._oldest(pairs),
            evidence=tuple(evidence),
            nodes=tuple(sorted({name for pair in pairs for name in pair}))[:SHOWN],
        )

    def _steps(self, pairs: Iterable[tuple[str, str]]) -> list[str]:
        told = [f"{by}: {self._e.steps[by, of]}" for by, of in sorted(set(pairs)) if (by, of) in self._e.steps]
        return list(dict.fromkeys(told))[:2]

    def _direction(self, scope: Scope, a: str, pairs: list[tuple[str, str]]) -> tuple[str, str]:
        """From where to where nothing passes, if questions still arrive the other way."""
        sites = self._e.sites

        def side(name: str) -> str:
            if scope in {"site", "sites"}:
                own = sites[name]
                return own if own == a or scope == "sites" else ""
            return name if name == a or scope == "pair" else ""

        arrives: set[tuple[str, str]] = set()
        for one, other in pairs:
            since = max(said.since for said in self._said[one, other])
            for by, of in ((one, other), (other, one)):
                if self._e.heard.get((by, of), float("-inf")) > since + 2 * MARGIN_S:
                    arrives.add((side(of), side(by)))
        ends = {(side(one), side(other)) for one, other in pairs}
        ways = ends | {(end, start) for start, end in ends}
        names = {name for pair in pairs for name in pair}
        if len(arrives) == 1 and len(ways) == 2 and not names <= set(self._e.quiet):
            (passing,) = arrives
            return passing[1], passing[0]
        return "", ""


def _stuck(e: Evidence, missing: list[Missing]) -> list[Finding]:
    """Hosts whose kernels and agents live, and of which nothing comes that they had to forward."""
    said: dict[str, list[Missing]] = {}
    for one in missing:
        if one.by in e.sites and one.of in e.sites and one.by != one.of:
            said.setdefault(one.of, []).append(one)
    found: list[Finding] = []
    for name, ones in sorted(said.items()):
        witnesses = sorted({one.by for one in ones})
        alone = len(witnesses) < min(WITNESSES, len(e.sites) - 1)
        for some in [[one] for one in ones] if alone else [ones]:
            a, b = _sorted(some[0].by, name) if alone else (name, "")
            steps = [f"{name}: {e.steps[name, one.by]}" for one in some if (name, one.by) in e.steps]
            found.append(
                Finding(
                    scope="pair" if alone else "node",
                    a=a,
                    b=b,
                    fault="pods",
                    since=min(one.since for one in some),
                    evidence=(
                        f"its kernel answers {_some({one.by for one in some})}, its probe address does not",
                        f"the agent of {name} lives",
                        *list(dict.fromkeys(steps))[:2],
                    ),
                    nodes=tuple(sorted({name, *witnesses}))[:SHOWN],
                )
            )
    return found


def _large(e: Evidence, missing: list[Missing]) -> list[Finding]:
    """Paths that carry small packets only: of a pair of sites, of one node, or of a pair."""
    said: dict[tuple[str, str], list[Missing]] = {}
    for one in missing:
        if one.by in e.sites and one.of in e.sites:
            said.setdefault(_sorted(one.by, one.of), []).append(one)
    found: list[Finding] = []

    def add(scope: Scope, a: str, b: str, pairs: list[tuple[str, str]]) -> None:
        ones = [one for pair in pairs for one in said.pop(pair)]
        steps = [f"{one.by}: {e.steps[one.by, one.of]}" for one in ones if (one.by, one.of) in e.steps]
        found.append(
            Finding(
                scope=scope,
                a=a,
                b=b,
                fault="large",
                since=min(one.since for one in ones),
                evidence=(
                    f"{len(pairs)} of their paths, as {_some(sorted({one.by for one in ones}))} found",
                    *list(dict.fromkeys(steps))[:2],
                ),
                nodes=tuple(sorted({name for pair in pairs for name in pair}))[:SHOWN],
            )
        )

    around: dict[str, list[tuple[str, str]]] = {}
    for pair in said:
        for name in pair:
            around.setdefault(name, []).append(pair)
    others = len(e.sites) - 1
    hubs = [name for name, pairs in around.items() if len(pairs) >= max(2, min(WITNESSES, others))]
    if len(hubs) == 1 or (hubs and len(max(around.values(), key=len)) > 1 and _one_hub(around)):
        hub = max(hubs, key=lambda name: (len(around[name]), name))
        add("node", hub, "", list(around[hub]))
    between: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for a, b in said:
        if e.sites[a] != e.sites[b]:
            between.setdefault(_sorted(e.sites[a], e.sites[b]), []).append((a, b))
    for (s, t), pairs in sorted(between.items()):
        if len(pairs) >= WITNESSES and all(
            len({n for p in pairs for n in p if e.sites[n] == one}) > 1 for one in (s, t)
        ):
            add("sites", s, t, pairs)
    for a, b in sorted(said):
        add("pair", a, b, [(a, b)])
    return found


def _one_hub(around: Mapping[str, list[tuple[str, str]]]) -> bool:
    """Whether all pairs have one node in common."""
    pairs = {pair for some in around.values() for pair in some}
    return any(len(some) == len(pairs) for some in around.values())


def _some(names: Collection[str]) -> str:
    ordered = sorted(names)
    rest = len(ordered) - SHOWN
    return ", ".join(ordered[:SHOWN]) + (f" and {rest:,} more" if rest > 0 else "")
