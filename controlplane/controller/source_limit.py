"""How much one source may send: of spans, of reports."""

from __future__ import annotations

import time


class SourceLimit:
    """A token bucket per source: one noisy agent cannot take what is everybody's."""

    def __init__(self, per_s: float, *, burst: float, sources_max: int = 20_000) -> None:
        self._per_s = per_s
        self._burst = burst
        self._sources_max = sources_max
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, source: str, wanted: int, now: float | None = None) -> int:
        """How many of ``wanted`` are let through."""
        moment = time.monotonic() if now is None else now
        tokens, at = self._buckets.pop(source, (self._burst, moment))
        tokens = min(self._burst, tokens + (moment - at) * self._per_s)
        granted = min(wanted, int(tokens))
        if len(self._buckets) >= self._sources_max:
            del self._buckets[next(iter(self._buckets))]
        self._buckets[source] = (tokens - granted, moment)
        return granted
