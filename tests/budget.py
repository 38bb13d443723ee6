"""Budgets of properties that want another number of examples than the profile gives."""

from __future__ import annotations

import os

from hypothesis import settings


def examples(count: int) -> settings:
    """``count`` examples; in the daily loop (``make test-fast``) no more than its profile allows."""
    daily = os.environ.get("ISTHMUS_HYPOTHESIS") == "fast"
    return settings(max_examples=min(count, settings.get_profile("fast").max_examples) if daily else count)
