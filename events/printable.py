"""Text from outside, made safe to keep and to show: on one line, printable, and no longer than it may be.

Control characters can rewrite what a terminal shows, and direction marks can make a name read as another. What
:meth:`str.isprintable` does not take (Unicode's *Other* and *Separator* categories but the space) is replaced.
"""

from __future__ import annotations

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_SPACES = frozenset("\t\n\r\v\f\N{NO-BREAK SPACE}\N{LINE SEPARATOR}\N{PARAGRAPH SEPARATOR}")


def printable(text: str, limit: int | None = None) -> str:
    """``text`` with every line break and odd space as a space, anything else unprintable as U+FFFD, and cut.

    ``limit`` is in characters; a text that was cut ends in ``…``.
    """
    if limit is not None and len(text) > limit:
        text = text[: limit - 1] + "…"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " if c in _SPACES else REPLACEMENT for c in text)
