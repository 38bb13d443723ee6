"""Fixtures of the labs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture
def where(tmp_path: Path) -> dict[str, str]:
    """Environment of a lab that cannot meet anybody else's: its directory is this test's own."""
    return {**os.environ, "TMPDIR": str(tmp_path), "COLUMNS": "150"}
