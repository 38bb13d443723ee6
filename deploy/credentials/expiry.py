"""The end of credentials in the plain form: the server knows keys only, so the file says until when.

Each user stands on a line of its own, with its end behind it. :func:`prune` takes out the lines whose time
has come; a reload then closes the connections that were opened with them. Pure.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import NamedTuple

MARK = "# until"
_LINE = re.compile(rf"^.*\bnkey: (?P<key>U[A-Z2-7]{{55}})\b.*{MARK} (?P<until>\S+)$")


class ExpiredUser(NamedTuple):
    """A user that was taken out: its public key, and when its credentials ended."""

    public: str
    until: datetime


class Pruned(NamedTuple):
    """``marks``: how many users with an end the text had; ``next``: when the next one's time comes."""

    text: str
    ended: list[ExpiredUser]
    marks: int
    next: datetime | None


def mark(expires: int) -> str:
    """The end of a user's line. ``expires`` are Unix seconds."""
    return f"{MARK} {datetime.fromtimestamp(expires, UTC).isoformat().replace('+00:00', 'Z')}"


def prune(text: str, now: datetime) -> Pruned:
    """The configuration without the users whose credentials ended at ``now`` or before.

    A mark that cannot be read counts as ended: who changed it by hand meant something, and a user too few is
    noticed.
    """
    kept, ended, ahead = [], [], []
    for line in text.splitlines(keepends=True):
        found = _LINE.match(line.rstrip("\r\n"))
        until = _moment(found["until"]) if found else None
        if found is None or (until is not None and until > now):
            kept.append(line)
            ahead += [until] if until is not None else []
        else:
            ended.append(ExpiredUser(found["key"], until or now))
    return Pruned("".join(kept), ended, len(ended) + len(ahead), min(ahead, default=None))


def _moment(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
