"""What is not as it should be on this node, in sentences for people, keyed so that each can be cleared."""

from __future__ import annotations

import logging

log = logging.getLogger("isthmus.agent")

TEXT_LIMIT = 400


class Conditions:
    """At most one sentence per key; a change is logged once."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def set(self, key: str, text: str) -> None:
        """State a condition (empty text clears it)."""
        if not text:
            self.clear(key)
            return
        text = text[:TEXT_LIMIT]
        if self._texts.get(key) != text:
            self._texts[key] = text
            log.warning("%s: %s", key, text)

    def clear(self, key: str) -> None:
        """The condition is over."""
        if self._texts.pop(key, None) is not None:
            log.info("%s: cleared", key)

    def has(self, key: str) -> bool:
        """Whether it is stated now."""
        return key in self._texts

    def sentences(self) -> tuple[str, ...]:
        """All of them, each with its key before it."""
        return tuple(f"{key}: {text}" for key, text in sorted(self._texts.items()))
