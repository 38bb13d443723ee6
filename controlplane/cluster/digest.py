"""One digest per state: equal states have equal digests in every process, on every machine.

The digest is the SHA-256 of a canonical text of the state: JSON with a fixed order of fields, every
map sorted by its key. Only facts enter; indices that follow from them do not. So two folds of the
same log agree whatever the hash seed, the Python version or the history of forks.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from hashlib import sha256
from typing import Any

import msgspec

from controlplane.cluster.state import FURTHER, ClusterState

FORMAT = "isthmus-state/1"
"""Changes whenever the canonical text does; digests of different formats are not comparable."""

_encode = msgspec.json.Encoder().encode


def _sorted(entries: MutableMapping[Any, Any]) -> list[Any]:
    return [(key, entries[key]) for key in sorted(entries)]


def canonical(state: ClusterState) -> bytes:
    """The canonical text of the state. O(n log n) in members and ranges."""
    text: list[Any] = [
        FORMAT,
        state.name,
        state.sequence,
        state.deleted,
        state.definition,
        state.cidrs,
        state.pool.cursor,
        _sorted(state.networks),
        _sorted(state.overrides),
        _sorted(state.nodes),
        _sorted(state.ranges),
        _sorted(state.draining),
        _sorted(state.quarantined),
        _sorted(state.unreachable),
        _sorted(state.fenced),
        _sorted(state.clb),
        [(asker, _sorted(known)) for asker, known in _sorted(state.refusals)],
    ]
    further = [_sorted(getattr(state, field)) for field in FURTHER]
    while further and not further[-1]:
        further.pop()
    if state.gateways or state.backends or state.holders or further:
        # Only where there is any, so that the digests of logs from before gateways stay what they were.
        text.append([_sorted(state.gateways), _sorted(state.backends), _sorted(state.holders)])
    return _encode([*text, *further])


def state_digest(state: ClusterState) -> str:
    """64 hexadecimal digits. O(n log n): take it at checkpoints, not at each event."""
    return sha256(canonical(state)).hexdigest()
