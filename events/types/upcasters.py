"""Reads bodies that no release would write today into today's structs.

Golden files (``tests/replay/golden``) prove each. Stored bytes never change.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

from events.types import ClbHolderWithdrawn, Event


class _Unable(ClbHolderWithdrawn, frozen=True, kw_only=True, gc=False):
    cause: Literal["unable"]  # type: ignore[assignment]  # a value that the type has no more


_withdrawn = msgspec.json.Decoder(ClbHolderWithdrawn).decode
_unable = msgspec.json.Decoder(_Unable).decode


def _holder_withdrawn(body: bytes) -> Event:
    """What was written between 0.1.0 and 0.2.0 had a further cause, ``unable``, without a reason.

    Release 0.1.0 does not know it and refused the event, so it became a reason beside ``silent``.
    """
    try:
        return _withdrawn(body)
    except msgspec.ValidationError as error:
        try:
            old = _unable(body)
        except msgspec.ValidationError:
            raise error from None
    return ClbHolderWithdrawn(
        name=old.name,
        purpose=old.purpose,
        address=old.address,
        node=old.node,
        uid=old.uid,
        epoch=old.epoch,
        cause="silent",
        reason="it said that it cannot hold addresses",
    )


UPCASTERS: dict[str, Callable[[bytes], Event]] = {
    ClbHolderWithdrawn.type_name(): _holder_withdrawn,
}
"""Type name → a function that reads its body into today's struct, in place of the struct's own decoder."""
