"""When a finding is told, and when it is over: what holds for a while, and what something later speaks against.

Pure: moments are arguments (seconds of one monotonic clock).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from controlplane.cluster.mesh.findings import Finding

HOLD_S, CLEAR_S = 1.0, 3.0
"""A finding is told when it has held so long, and is over when it has been absent so long."""
PAIR_HOLD_S, SLOW_HOLD_S = 4.0, 8.0
"""The same for what few witnesses say, and for what is measured more rarely: large packets, and pods."""
DOUBT_S = 5.0
"""What only one end says waits so much longer for the other one to contradict, unless it has reported since."""
REPORT_S = 3.5
"""A report so long after a trouble began would have contradicted it."""
SETTLE_S = 15.0
"""After a start or a change of leadership nothing is told to have ended before this."""
FLAP_S, CLEAR_MAX_S, FLAPS_MAX = 600.0, 60.0, 1024
"""What comes and goes again within so long must each time be absent twice as long, up to a minute."""
Key = tuple[str, str, str]


class Debounce:
    """``since``: from when on it is watched."""

    def __init__(self, since: float) -> None:
        self._since = since
        self._first: dict[Key, float] = {}
        self._fault: dict[Key, tuple[str, float]] = {}
        self._absent: dict[Key, float] = {}
        self._known: dict[Key, Finding] = {}
        self._ending: set[Key] = set()
        self._flaps: dict[Key, tuple[int, float]] = {}

    def look(
        self,
        now: float,
        present: Iterable[Finding],
        open_keys: set[Key],
        *,
        answered: Callable[[str, float], bool],
        passed: Callable[[Finding], float],
    ) -> tuple[list[Finding], set[Key]]:
        """What is to be told of what is present, and which of those told (``open_keys``) are over.

        ``answered``: whether an agent has reported since a moment; ``passed``: when something last passed that
        speaks against a finding.
        """
        here = {one.key: one for one in present}
        for key in self._first.keys() - here.keys():
            del self._first[key], self._fault[key]
        told: list[Finding] = []
        for key, one in here.items():
            first = self._first.setdefault(key, now)
            self._absent.pop(key, None)
            if key in open_keys:
                self._known[key] = one
            if self._fault.get(key, ("", 0.0))[0] != one.fault:
                self._fault[key] = one.fault, now
            # What is told already, and begins to look otherwise, may just be about to end.
            steady = key not in open_keys or now - self._fault[key][1] >= PAIR_HOLD_S
            if steady and now - first >= self._hold_s(one, answered):
                told.append(one)
        self._ended(now, open_keys)
        over: set[Key] = set()
        for key in open_keys - here.keys():
            absent = self._absent.setdefault(key, now)
            if now - absent >= self._clear_s(key, now) and self._proven(key, now, passed):
                over.add(key)
        self._ending |= over
        return told, over

    def _hold_s(self, one: Finding, answered: Callable[[str, float], bool]) -> float:
        if one.fault in {"large", "pods"}:
            hold = SLOW_HOLD_S
        elif one.fault == "part" or (one.scope == "pair") or (one.scope == "node" and len(one.nodes) <= 3):
            hold = PAIR_HOLD_S
        else:
            hold = HOLD_S
        if one.doubt and not all(answered(name, one.last + REPORT_S) for name in one.nodes):
            hold += DOUBT_S
        return hold

    def _ended(self, now: float, open_keys: set[Key]) -> None:
        """Take note of those that were over and are not open any more."""
        for key in self._ending - open_keys:
            count, last = self._flaps.get(key, (0, now))
            self._flaps[key] = (count + 1 if now - last < FLAP_S else 1), now
        self._ending &= open_keys
        if len(self._flaps) > FLAPS_MAX:
            self._flaps = {key: flap for key, flap in self._flaps.items() if now - flap[1] < FLAP_S}
        for table in (self._absent, self._known):
            for key in table.keys() - open_keys:
                del table[key]

    def _clear_s(self, key: Key, now: float) -> float:
        count, last = self._flaps.get(key, (0, 0.0))
        return min(CLEAR_MAX_S, CLEAR_S * 2.0**count) if now - last < FLAP_S else CLEAR_S

    def _proven(self, key: Key, now: float, passed: Callable[[Finding], float]) -> bool:
        """Whether something passed since: silence of everybody ends no trouble, nor does a restarted agent."""
        if now - self._since < SETTLE_S:
            return False
        known = self._known.get(key)
        if known is not None:
            return passed(known) > known.last
        scope, a, b = key
        return passed(Finding(scope=scope, a=a, b=b, fault="view")) > self._since  # type: ignore[arg-type]
