"""The smallest explanation of what the agents could not reach: everything, one site, two, one node, one pair.

Pure: what was seen goes in, findings come out, in time that grows with the trouble and not with the cluster.
The same is asked three times: of packets to pods' addresses that kernels answer for, of any packet, and of
large ones. A node or a site is named only when nothing that was measured later speaks for it, and when the
trouble is not that of fewer; what one agent says alone, and others contradict, is that agent's own view.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from controlplane.cluster.mesh.evidence import Evidence, Missing, Passed, some
from controlplane.cluster.mesh.findings import SHOWN, Fault, Finding, Scope

WITNESSES = 3
"""Peers that must miss a node before it alone is named, where there are so many."""
FOUND_MAX = 64
"""Findings given at most, the largest explanations first."""
MARGIN_S = 0.2
"""Moments of two agents' measurements closer than this are not told apart."""
LATER_S = 2 * MARGIN_S + 1.0
"""An answer that the other end got so long after is a contradiction."""
NEVER = float("-inf")
Pair = tuple[str, str]


def explain(evidence: Evidence) -> list[Finding]:
    """The findings, the widest first."""
    by_kind: dict[str, list[Missing]] = {"": [], "pods": [], "large": []}
    for one in evidence.missing:
        if one.by in evidence.sites and one.of in evidence.sites and one.by != one.of:
            by_kind[one.only].append(one)
    stuck = _Pairs(evidence, "pods", by_kind["pods"], evidence.pods).explained()
    blocked = {one.a for one in stuck if one.scope == "node"}
    dark = _Pairs(
        evidence,
        "silent",
        [one for one in by_kind[""] if not blocked & {one.by, one.of}],
        evidence.passed,
    )
    lost = dark.all
    found = dark.explained()
    cut = {one.a for one in found if one.scope == "site"}
    covered = {one.a for one in found if one.scope == "node"}
    covered |= {name for name, site in evidence.sites.items() if site in cut} if cut else set()
    found += [one for one in stuck if not covered & {one.a, one.b}]
    covered |= blocked
    large = [
        one
        for one in by_kind["large"]
        if _sorted(one.by, one.of) not in lost and not covered & {one.by, one.of}
    ]
    found += _Pairs(evidence, "large", large, evidence.large).explained()
    return found[:FOUND_MAX]


def _sorted(a: str, b: str) -> Pair:
    return (a, b) if a < b else (b, a)


def _disjoint(pairs: Iterable[Pair], enough: int) -> bool:
    """Whether so many of the pairs have no node in common: then fewer nodes do not explain them."""
    pairs = list(pairs)
    degree: dict[str, int] = {}
    for pair in pairs:
        for name in pair:
            degree[name] = degree.get(name, 0) + 1
    taken: set[str] = set()
    count = 0
    for a, b in sorted(pairs, key=lambda pair: degree[pair[0]] + degree[pair[1]]):
        if count >= enough:
            break
        if a not in taken and b not in taken:
            taken |= {a, b}
            count += 1
    return count >= enough


class _Pairs:
    """Pairs without an answer of one kind that nothing explains yet."""

    def __init__(self, evidence: Evidence, fault: Fault, missing: Iterable[Missing], passed: Passed) -> None:
        self._e, self._fault, self._passed = evidence, fault, passed
        self._said: dict[Pair, list[Missing]] = {}
        self._views: dict[str, list[Missing]] = {}
        for one in missing:
            if passed.pairs.get((one.of, one.by), NEVER) > one.since + LATER_S:
                self._views.setdefault(one.by, []).append(one)
            elif fault == "silent" and (one.of, one.by) in evidence.kernel:
                continue  # the other side reaches its kernel: what it says of its pods will tell
            else:
                self._said.setdefault(_sorted(one.by, one.of), []).append(one)
        self.all = frozenset(self._said)
        self._members: dict[str, int] = {}
        if self._said:
            for site in evidence.sites.values():
                self._members[site] = self._members.get(site, 0) + 1

    def explained(self) -> list[Finding]:
        """What explains them, the widest first. Call it once."""
        return [
            *self._own_views(),
            *self._everything(),
            *self._cut_sites(),
            *self._nodes(),
            *self._lone_sites(),
            *self._parts(),
            *(self._finding("pair", a, b, [(a, b)]) for a, b in sorted(self._said)),
        ]

    def _newest(self, pairs: Iterable[Pair]) -> float:
        return max(one.since for pair in pairs for one in self._said[pair])

    def _take(self, pairs: Iterable[Pair]) -> None:
        for pair in list(pairs):
            self._said.pop(pair, None)

    def _own_views(self) -> list[Finding]:
        """What one agent says and the other side contradicts; what else it says alone belongs to that."""
        for name in [one for one, said in self._views.items() if len(said) > 1]:
            for pair in [one for one in self._said if name in one]:
                if {one.by for one in self._said[pair]} == {name}:
                    self._views[name] += self._said.pop(pair)
        return [
            Finding(
                scope="view",
                a=name,
                fault="view",
                since=min(one.since for one in said),
                evidence=(
                    f"{name} gets no answer of {some([one.of for one in said])}, and they get its answers",
                    *self._steps((name, one.of) for one in said),
                ),
                nodes=tuple(sorted(one.of for one in said))[:SHOWN],
            )
            for name, said in sorted(self._views.items())
            if self._fault != "large"  # one of its large packets was lost, and then they passed
        ]

    def _everything(self) -> list[Finding]:
        """Nothing at all passes between any two."""
        said, members = self._said, len(self._e.sites)
        witnesses = {one.by for ones in said.values() for one in ones}
        if (
            members < 4
            or len(witnesses) < max(WITNESSES, members // 2)
            or max(self._passed.nodes.values(), default=NEVER) > self._newest(said) + MARGIN_S
            or not _disjoint(said, max(2, members // 3))
        ):
            return []
        found = self._finding("cluster", "", "", list(said))
        said.clear()
        return [found]

    def _cut_sites(self) -> list[Finding]:
        """Sites between which nothing passes."""
        sites, members = self._e.sites, self._members
        between: dict[Pair, list[Pair]] = {}
        for pair in self._said:
            s, t = sites[pair[0]], sites[pair[1]]
            if s != t:
                between.setdefault(_sorted(s, t), []).append(pair)
        dark = {
            (s, t): pairs
            for (s, t), pairs in between.items()
            if members[s] + members[t] > 2
            and len(pairs) >= min(WITNESSES, members[s] * members[t])
            and _disjoint(pairs, min(WITNESSES, members[s], members[t]))
            and self._passed.sites.get((s, t), NEVER) <= self._newest(pairs) + MARGIN_S
        }
        found: list[Finding] = []
        for site in sorted(
            {one for pair in dark for one in pair}, key=lambda one: (not self._silent(one), one)
        ):
            mine = {pair: pairs for pair, pairs in dark.items() if site in pair}
            lit = mine and any(
                at > max(self._newest(pairs) for pairs in mine.values()) + MARGIN_S
                for pair, at in self._passed.sites.items()
                if site in pair and pair[0] != pair[1]
            )
            alone = len(members) > 2 and len(mine) >= 2
            if (
                not mine
                or lit
                or members[site] < 2
                or not (alone or (len(members) == 2 and self._silent(site)))
            ):
                continue
            pairs = [pair for some_pairs in mine.values() for pair in some_pairs if pair in self._said]
            if not pairs:
                continue
            found.append(self._finding("site", site, "", pairs))
            if self._fault == "silent":
                self._take([pair for pair in self._said if site in {sites[pair[0]], sites[pair[1]]}])
            else:
                self._take(pairs)
            dark = {pair: some_pairs for pair, some_pairs in dark.items() if site not in pair}
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

    def _around(self) -> dict[str, list[Pair]]:
        around: dict[str, list[Pair]] = {}
        for pair in self._said:
            for name in pair:
                around.setdefault(name, []).append(pair)
        return around

    def _nodes(self) -> list[Finding]:
        """Nodes that nobody reaches any more."""
        e, around = self._e, self._around()
        found: list[Finding] = []
        others = len(e.sites) - 1
        for name in sorted(around, key=lambda one: (-len(around[one]), one not in e.quiet, one)):
            pairs = [pair for pair in around[name] if pair in self._said]
            quiet = name in e.quiet
            enough = len(pairs) >= min(WITNESSES, others) or (quiet and len(pairs) >= min(2, others))
            if not pairs or not enough:
                continue
            if others == 1 and not quiet:
                continue  # of two nodes either may be the one
            if len({one.by for pair in pairs for one in self._said[pair]} - {name}) < min(2, others):
                continue  # it says so itself: the others would, too
            if self._passed.nodes.get(name, NEVER) > self._newest(pairs) + MARGIN_S:
                continue
            found.append(self._finding("node", name, "", pairs))
            self._take(pairs)
        return found

    def _lone_sites(self) -> list[Finding]:
        """A site of one node that reaches other sites, and nothing at one of them."""
        sites, between = self._e.sites, dict[Pair, list[Pair]]()
        for pair in self._said:
            s, t = sites[pair[0]], sites[pair[1]]
            if s != t and 1 in {self._members[s], self._members[t]}:
                between.setdefault(_sorted(s, t), []).append(pair)
        found: list[Finding] = []
        for (s, t), pairs in sorted(between.items()):
            if len(pairs) < WITNESSES or self._passed.sites.get((s, t), NEVER) > self._newest(pairs) + MARGIN_S:
                continue
            found.append(self._finding("sites", s, t, pairs))
            self._take(pairs)
        return found

    def _parts(self) -> list[Finding]:
        """Nodes that others reach, and several do not."""
        found: list[Finding] = []
        around = self._around()
        for name in sorted(around, key=lambda one: (-len(around[one]), one)):
            pairs = [pair for pair in around[name] if pair in self._said]
            if len(pairs) >= WITNESSES:
                one = self._finding("node", name, "", pairs)
                found.append(one if one.fault not in {"silent", "direction"} else _part(one))
                self._take(pairs)
        return found

    def _finding(self, scope: Scope, a: str, b: str, pairs: list[Pair]) -> Finding:
        said = [one for pair in pairs for one in self._said[pair]]
        broken = self._direction(scope, a, pairs) if self._fault == "silent" else ("", "")
        return Finding(
            scope=scope,
            a=a,
            b=b,
            fault="direction" if broken != ("", "") else self._fault,
            broken=broken,
            since=min(one.since for one in said),
            last=max(one.since for one in said),
            doubt=self._doubtful(scope, a, said),
            evidence=tuple(self._evidence(scope, a, pairs, said)),
            nodes=tuple(sorted({name for pair in pairs for name in pair}))[:SHOWN],
        )

    def _doubtful(self, scope: Scope, a: str, said: list[Missing]) -> bool:
        if scope not in {"node", "pair"}:
            return False
        witnesses = {one.by for one in said}
        ends = {one.of for one in said} - witnesses
        return len(witnesses) == 1 and a in witnesses | ends and not ends <= set(self._e.quiet)

    def _evidence(self, scope: Scope, a: str, pairs: list[Pair], said: list[Missing]) -> list[str]:
        witnesses = sorted({one.by for one in said})
        if self._fault == "pods":
            hosts = [a] if scope == "node" else sorted({one.of for one in said})
            asking = {one.by for one in said} - set(hosts)
            text = [
                f"kernels answer {some(asking or witnesses)}, the probe addresses behind them do not",
                f"the agent of {some(hosts)} lives",
            ]
            told = self._steps((one.of, one.by) for one in said)
            return text + (told or self._steps((one.by, one.of) for one in said))
        if self._fault == "large":
            text = [f"{len(pairs):,} of their paths, as {some(witnesses)} found"]
        else:
            text = [f"{len(pairs):,} of their paths without an answer, as {some(witnesses)} found"]
        quiet = sorted({name for pair in pairs for name in pair} & set(self._e.quiet))
        if quiet and self._fault == "silent":
            text.append(f"no report of {some(quiet)} either")
        return text + self._steps((one.by, one.of) for one in said)

    def _steps(self, pairs: Iterable[Pair]) -> list[str]:
        told = [f"{by}: {self._e.steps[by, of]}" for by, of in sorted(set(pairs)) if (by, of) in self._e.steps]
        return list(dict.fromkeys(told))[:2]

    def _direction(self, scope: Scope, a: str, pairs: list[Pair]) -> tuple[str, str]:
        """From where to where nothing passes, if questions still arrive the other way."""
        sites = self._e.sites
        if scope == "cluster":
            return "", ""

        def side(name: str) -> str:
            if scope in {"site", "sites"}:
                own = sites[name]
                return own if own == a or scope == "sites" else ""
            return name if name == a or scope == "pair" else ""

        arrives: set[Pair] = set()
        for one, other in pairs:
            since = max(said.since for said in self._said[one, other])
            for by, of in ((one, other), (other, one)):
                if self._e.heard.get((by, of), NEVER) > since + 2 * MARGIN_S:
                    arrives.add((side(of), side(by)))
        ends = {(side(one), side(other)) for one, other in pairs}
        ways = ends | {(end, start) for start, end in ends}
        names = {name for pair in pairs for name in pair}
        if len(arrives) == 1 and len(ways) == 2 and not names <= set(self._e.quiet):
            (passing,) = arrives
            return passing[1], passing[0]
        return "", ""


def _part(one: Finding) -> Finding:
    others = [name for name in one.nodes if name != one.a]
    text = (f"among others with {some(others)}; it reaches, and is reached by, the rest", *one.evidence)
    return msgspec.structs.replace(one, fault="part", broken=("", ""), evidence=text)
