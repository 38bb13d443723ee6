"""Which traces are recorded: the standard samplers by the standard variables, and a default with a ceiling.

The default records every trace at human pace and at most a fixed number a second in a storm, so that
tracing can be left on: a person's command is always there to look at, and ten thousand joins cost
no more than a hundred. A trace that another process sampled is continued under a ceiling of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    Decision,
    ParentBased,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)
from opentelemetry.trace import Link, SpanKind, TraceState, get_current_span
from opentelemetry.util.types import Attributes

from events.errors import Usage

DEFAULT_ROOTS_PER_S = 10.0
DEFAULT_CONTINUED_PER_S = 20.0
"""Traces a second that one process starts, and that it continues for others, before it drops the rest."""


class RateLimited(Sampler):
    """A token bucket: ``per_s`` decisions a second to record, one second's worth of burst."""

    def __init__(self, per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_s = per_s
        self._clock = clock
        self._tokens = max(1.0, per_s) if per_s else 0.0
        self._filled_at = clock()

    def spent(self) -> bool:
        """Whether the next decision would surely be to drop."""
        if self._tokens >= 1.0:
            return False
        return self._tokens + (self._clock() - self._filled_at) * self.per_s < 1.0

    def should_sample(  # noqa: PLR0917  the sampler's signature
        self,
        parent_context: Context | None,
        trace_id: int,  # noqa: ARG002
        name: str,  # noqa: ARG002
        kind: SpanKind | None = None,  # noqa: ARG002
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,  # noqa: ARG002
        trace_state: TraceState | None = None,  # noqa: ARG002
    ) -> SamplingResult:
        now = self._clock()
        self._tokens = min(max(1.0, self.per_s), self._tokens + (now - self._filled_at) * self.per_s)
        self._filled_at = now
        state = get_current_span(parent_context).get_span_context().trace_state
        if self._tokens < 1.0:
            return SamplingResult(Decision.DROP, None, state)
        self._tokens -= 1.0
        return SamplingResult(Decision.RECORD_AND_SAMPLE, attributes, state)

    def get_description(self) -> str:
        return f"RateLimited{{{self.per_s:g}/s}}"


class Sampling(NamedTuple):
    """A sampler, and the buckets behind it when it has them: a caller in a hurry asks them first.

    ``root`` decides about traces that begin here, ``continued`` about those that others sampled.
    """

    sampler: Sampler
    root: RateLimited | None = None
    continued: RateLimited | None = None


def choose_sampler(role: str, environ: Mapping[str, str]) -> Sampling:
    """The sampler that ``OTEL_TRACES_SAMPLER`` names, or the default described above.

    ``OTEL_TRACES_SAMPLER_ARG`` is the ratio of ``traceidratio`` (0 … 1), or traces a second for
    ``ratelimited`` and ``parentbased_ratelimited``. The command line records every trace: a process
    makes one. Raises Usage(usage) for an unknown name or an argument that is no number.
    """
    default = "parentbased_always_on" if role == "cli" else "parentbased_ratelimited"
    name = environ.get("OTEL_TRACES_SAMPLER", "").strip().lower() or default
    text = environ.get("OTEL_TRACES_SAMPLER_ARG", "").strip()
    try:
        argument = float(text) if text else None
    except ValueError:
        raise Usage("usage", f"OTEL_TRACES_SAMPLER_ARG={text} is not a number") from None
    base = name.removeprefix("parentbased_")
    parent_based = base != name
    if base == "always_on":
        root: Sampler = ALWAYS_ON
    elif base == "always_off":
        nothing = RateLimited(0.0)
        return Sampling(
            ParentBased(ALWAYS_OFF) if parent_based else ALWAYS_OFF, nothing, None if parent_based else nothing
        )
    elif base == "traceidratio":
        ratio = 1.0 if argument is None else argument
        if not 0.0 <= ratio <= 1.0:
            raise Usage("usage", f"OTEL_TRACES_SAMPLER_ARG={text}: a ratio lies between 0 and 1")
        root = TraceIdRatioBased(ratio)
    elif base == "ratelimited":
        limited = RateLimited(DEFAULT_ROOTS_PER_S if argument is None else argument)
        if not parent_based:
            return Sampling(limited, limited, limited)
        continued = RateLimited(DEFAULT_CONTINUED_PER_S if argument is None else 2 * argument)
        return Sampling(ParentBased(limited, remote_parent_sampled=continued), limited, continued)
    else:
        raise Usage(
            "usage",
            f"OTEL_TRACES_SAMPLER={name} is unknown: [parentbased_]always_on, always_off, "
            f"traceidratio or ratelimited",
        )
    return Sampling(ParentBased(root) if parent_based else root)
